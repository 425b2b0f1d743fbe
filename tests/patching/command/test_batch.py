"""lenscpp task, batch, merge and show of batches, as a user would run them, and as users' machines end them."""

import json
import os
import random
import signal
import subprocess
import time

import h5py
import numpy as np
import pytest

import lenscpp as lens
from test_command import PROGRAM, environment, fails, lenscpp, succeeds

N = int(os.environ.get("LENSCPP_KILLS", "3"))  # `make kills` asks for more
FAULT = ["--inject", "head:head=2@blocks.1.attn.hook_z"]


@pytest.fixture(scope="module")
def experiments(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiments") / "ioi.jsonl"
    said = succeeds("task", "ioi", "tiny-ioi", "--n", 40, "--out", path)
    assert "40 experiments" in said and len(path.read_text().splitlines()) == 40
    return path


def batch(experiments, folder, *more):
    return ["batch", experiments, "--model", "tiny-ioi", "--out", folder, "--block", 2, "--threads", 1, *more]


@pytest.fixture(scope="module")
def whole(experiments, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "ioi"
    said = succeeds(*batch(experiments, folder))
    assert "shards there" in said and "lenscpp merge" in said
    succeeds("merge", folder)
    return folder


def shards(folder):
    return {path.name: path.read_bytes() for path in (folder / "shards").glob("*.h5")}


def assert_equal_files(a, b):
    """Value for value: everything but who ran it when."""
    with h5py.File(a / "merged.h5") as left, h5py.File(b / "merged.h5") as right:
        names = []
        left.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        compared = 0
        for name in names:
            if name in ("batch", "digests", "root_digest"):
                continue
            x, y = left[name][()], right[name][()]
            assert np.array_equal(x, y, equal_nan=True) if getattr(x, "dtype", None) == np.float64 else np.array_equal(x, y), name
            compared += 1
        assert compared >= 8


def test_says_what_it_found(whole):
    said = succeeds("show", whole / "merged.h5")
    assert "VERIFIED" in said and "resid_pre_by_layer_pos" in said and "z_by_layer_head" in said and "cells differ from no effect" in said
    assert "shards there" in succeeds("show", whole)
    document = json.loads(succeeds("show", whole / "merged.h5", "--json"))
    assert document["usable"] and document["verdict"]["status"] == "VERIFIED" and document["statistics"]["z_by_layer_head"]["shape"] == [4, 4]
    merged = json.loads(succeeds("merge", whole, "--out", whole / "again.h5", "--json"))
    assert merged["status"] == "VERIFIED" and merged["statistics"] == document["statistics"]
    one = next((whole / "shards").glob("*.h5"))
    assert "a shard" in succeeds("show", one)


def test_a_batch_is_not_begun_twice_unasked(experiments, whole):
    assert "holds a batch already" in fails(2, *batch(experiments, whole))
    before = shards(whole)
    assert "from before" in succeeds(*batch(experiments, whole, "--resume"))
    assert shards(whole) == before
    assert "direction" in fails(2, *batch(experiments, whole, "--resume", "--direction", "noise"))


def test_bad_input_is_named(experiments, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(experiments.read_text().splitlines()[0] + '\n{"clean": "a"}\n')
    assert "line 2 has no" in fails(2, *batch(bad, tmp_path / "out"))
    assert "No such file" in fails(2, *batch(tmp_path / "none.jsonl", tmp_path / "out"))
    assert "[--shard]" in fails(2, *batch(experiments, tmp_path / "out", "--shard", "3/2"))
    assert "there is no batch.json" in fails(2, "merge", tmp_path)
    assert "allowed: ioi" in fails(2, "task", "docstring", "tiny-ioi", "--out", tmp_path / "x.jsonl")
    assert not (tmp_path / "out").exists()


def test_two_halves_are_the_whole(experiments, whole, tmp_path):
    folder = tmp_path / "halves"
    succeeds(*batch(experiments, folder, "--shard", "1/2"))
    assert "are missing" in fails(2, "merge", folder)
    succeeds(*batch(experiments, folder, "--shard", "2/2", "--resume"))
    succeeds("merge", folder)
    assert_equal_files(whole, folder)


def test_two_processes_share_one_folder(experiments, whole, tmp_path):
    folder = tmp_path / "shared"
    command = [PROGRAM, *map(str, batch(experiments, folder, "--resume", "--json"))]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) for _ in range(2)]
    reports = [json.loads(process.communicate(timeout=300)[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    # Nothing twice: what one did not run it found, or the other had it.
    assert sum(report["done"] for report in reports) == len(shards(folder)) == reports[0]["shards"]
    succeeds("merge", folder)
    assert_equal_files(whole, folder)


def begun(command):
    """A batch that has finished a shard or more."""
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())
    return process


def test_survives_kill_9(experiments, whole, tmp_path):
    """What a killed process leaves is resumed to the same file; at most the running shard is lost."""
    chance = random.Random(5)
    for number in range(N):
        folder = tmp_path / f"killed-{number}"
        done = 0
        for kill in range(2):
            process = begun([PROGRAM, *batch(experiments, folder, "--resume")])
            time.sleep(chance.uniform(0.2, 2.0))
            process.kill()
            process.communicate()
            now = shards(folder) if folder.exists() else {}
            assert len(now) >= done
            done = len(now)
            for name in now:  # whatever has its name is whole
                lens.load(folder / "shards" / name)
        report = json.loads(succeeds(*batch(experiments, folder, "--resume", "--json")))
        assert report["before"] == done and report["complete"] and report["damaged"] == []
        succeeds("merge", folder)
        assert_equal_files(whole, folder)
        assert not list((folder / "shards").glob(".*"))  # no claim, no half-written file


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_after_the_running_shard(experiments, whole, tmp_path, number, status):
    folder = tmp_path / "stopped"
    process = begun([PROGRAM, *batch(experiments, folder, "--json")])
    until = time.time() + 60
    while time.time() < until and not (folder.exists() and shards(folder)):
        time.sleep(0.02)
    process.send_signal(number)  # two dozen shards are left
    out, _ = process.communicate(timeout=120)
    report = json.loads(out)
    assert process.returncode == status and report["stopped"] and report["left"] > 0
    assert len(shards(folder)) == report["done"] > 0
    assert not list((folder / "shards").glob(".*"))
    succeeds(*batch(experiments, folder, "--resume"))
    succeeds("merge", folder)
    assert_equal_files(whole, folder)


def test_refused_shards_are_kept_apart(experiments, whole, tmp_path):
    folder = tmp_path / "faulty"
    succeeds(*batch(experiments, folder, "--shard", "1/2"))
    good = shards(folder)
    done = lenscpp(*batch(experiments, folder, "--resume", *FAULT))
    assert done.returncode == 3 and "INVALID" in done.stdout and "blocks.1.attn.hook_z" in done.stdout
    assert "kept apart" in done.stderr
    assert shards(folder) == good
    refused = sorted((folder / "refused").glob("*.h5"))
    assert len(refused) + len(good) == len(shards(whole))
    assert "INVALID" in lenscpp("show", refused[0]).stdout and lenscpp("show", folder).returncode == 3
    assert lenscpp("show", refused[0]).returncode == 3
    with pytest.raises(lens.NotVerified, match="INVALID"):
        lens.load(refused[0])
    assert "because they were INVALID" in fails(2, "merge", folder)
    succeeds("merge", folder, "--partial")
    assert len(lens.load(folder / "merged.h5").missing) == len(refused)
    succeeds(*batch(experiments, folder, "--resume"))
    succeeds("merge", folder)
    assert_equal_files(whole, folder)


@pytest.mark.parametrize("what", ["values", "digests", "status"])
def test_a_changed_shard_is_refused_by_name(whole, tmp_path, what):
    folder = tmp_path / "changed"
    subprocess.run(["cp", "-r", whole, folder], check=True)
    shard = sorted((folder / "shards").glob("*.h5"))[1]
    with h5py.File(shard, "r+") as file:
        if what == "values":
            file["values/z_by_layer_head"][0, 0, 0] += 1e-9
        else:
            text = file[what][()]
            text = text if isinstance(text, bytes) else text.encode()
            file[what][()] = np.bytes_(text.replace(b"VERIFIED", b"VERIFIEd") if what == "status" else text.replace(b"sha256", b"sha257", 1))
    with pytest.raises(lens.NotVerified, match=shard.name):
        lens.load(shard)
    assert shard.name in fails(3, "merge", folder)
    assert lenscpp("show", shard).returncode == 3


def test_a_folder_that_cannot_be_written_is_said(experiments, tmp_path):
    if os.geteuid() == 0:
        # root writes anywhere: a file where the folder should be stands for it
        (tmp_path / "file").write_text("")
        assert "file" in fails(2, *batch(experiments, tmp_path / "file"))
        assert lenscpp(*batch(experiments, tmp_path / "file" / "below")).returncode in (1, 2)
        return
    tmp_path.chmod(0o500)
    try:
        assert "Permission denied" in fails(1, *batch(experiments, tmp_path / "out"))
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk_leaves_what_was_finished(experiments, whole, tmp_path):
    """Files beyond a limit cannot be written, as on a full disk."""
    folder = tmp_path / "full"
    succeeds(*batch(experiments, folder, "--shard", "1/4"))
    good = shards(folder)
    limit = max(len(content) for content in good.values()) // 2
    done = subprocess.run(
        ["bash", "-c", f'trap "" XFSZ; ulimit -f {max(1, limit // 1024)}; exec "$@"', "bash", PROGRAM, *map(str, batch(experiments, folder, "--resume"))],
        capture_output=True, text=True, env=environment(), timeout=300,
    )  # fmt: skip
    assert done.returncode == 1 and "File too large" in done.stderr, done
    assert shards(folder) == good
    succeeds(*batch(experiments, folder, "--resume"))
    succeeds("merge", folder)
    assert_equal_files(whole, folder)
