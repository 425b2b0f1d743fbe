"""Files: what is saved comes back byte for byte or not at all; h5py reads it without this library."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import PROMPT

import lenscpp as lens

h5py = pytest.importorskip("h5py")

PACKAGE = os.path.dirname(os.path.dirname(lens.__file__))
TWO = ["When John and Mary went to the store, John gave the bag to", "When Mary and John went to the store, Mary gave the bag to"]


def same(a, b):
    return list(a) == list(b) and all(a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(bits(a[k]), bits(b[k])) for k in a)


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "run.h5"
    tiny.run_with_cache(PROMPT)[1].save(path)
    return path


def spoiled(saved, tmp_path, change):
    """A copy that `change` has written to with h5py."""
    path = tmp_path / "spoiled.h5"
    shutil.copy(saved, path)
    with h5py.File(path, "r+") as file:
        change(file)
    return path


# ---- round trips ----


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("how", [{}, {"pos_slice": [3, 0]}, {"names_filter": ["blocks.1.attn.hook_z", "hook_embed"]}, {"stop_at_layer": 2}, {"drift": True}])
def test_returns_what_was_saved(dtype, how, tmp_path):
    model = lens.HookedTransformer.from_pretrained("tiny-ioi", dtype=dtype)
    _, cache = model.run_with_cache(TWO, **how)
    path = tmp_path / "run.h5"
    cache.save(path)
    for loaded in (lens.load(path), lens.load(str(path), model), lens.load_unverified(path)):
        assert same(loaded, cache)
        assert loaded.record == cache.record and loaded.positions == cache.positions
        assert torch.equal(loaded.tokens, cache.tokens) and loaded.tokens.shape[0] == 2
    loaded = lens.load(path)
    assert isinstance(loaded, lens.VerifiedCache) and loaded.verdict.to_dict() == cache.verdict.to_dict()
    assert str(loaded.verdict) == str(cache.verdict)
    assert ("resid_post", -1) in loaded or how.keys() & {"names_filter", "stop_at_layer"}


def test_edited_run_is_saved_with_its_plan(tiny, tmp_path):
    _, cache = tiny.run_with_cache(PROMPT, plan=lens.Plan([lens.Ablate("blocks.1.attn.hook_z", head=2)]))
    cache.save(tmp_path / "run.h5")
    loaded = lens.load(tmp_path / "run.h5")
    assert loaded.record == cache.record and loaded.record["plan"] and same(loaded, cache)
    assert [p.to_dict() for p in loaded.verdict.points] == [p.to_dict() for p in cache.verdict.points]


def test_analyses_need_the_model(tiny, cache, saved):
    with pytest.raises(ValueError, match=r"lens\.load\(path, model\)"):
        lens.logit_lens(lens.load(saved))
    loaded = lens.load(saved, tiny)
    assert torch.equal(lens.logit_lens(loaded).logits, lens.logit_lens(cache).logits)
    assert loaded.tokenizer.digest == tiny.tokenizer.digest and lens.load(saved).tokenizer is None


def test_another_model_is_refused(saved):
    other = lens.HookedTransformer.from_pretrained_no_processing("tiny-ioi")
    with pytest.raises(ValueError, match="digest"):
        lens.load(saved, other)
    with pytest.raises(TypeError, match="HookedTransformer"):
        lens.load(saved, "tiny-ioi")


def test_loaded_run_can_be_saved_and_patched_from(tiny, saved, tmp_path):
    loaded = lens.load(saved)
    loaded.save(tmp_path / "again.h5")
    assert same(lens.load(tmp_path / "again.h5"), loaded)
    with h5py.File(saved) as a, h5py.File(tmp_path / "again.h5") as b:
        assert a["root_digest"][()] == b["root_digest"][()]
    plan = lens.Plan([lens.Patch("blocks.1.hook_resid_pre", source=loaded)])
    assert tiny.run_with_cache(PROMPT, plan=plan)[1].verdict.status == "VERIFIED"


# ---- what is not verified ----


def test_unverified_and_invalid_runs_are_refused(tiny, tmp_path):
    path = tmp_path / "run.h5"
    unverified = tiny.run_with_cache(PROMPT, verify="off")[1]
    with lens.faults.inject("nan", hook="blocks.0.attn.hook_q"), pytest.raises(lens.VerificationFailed) as failed:
        tiny.run_with_cache(PROMPT)
    for cache, status in ((unverified, "UNVERIFIED"), (failed.value.unverified_cache, "INVALID")):
        cache.save(path)
        with pytest.raises(lens.NotVerified, match=status):
            lens.load(path)
        loaded = lens.load_unverified(path)
        assert isinstance(loaded, lens.UnverifiedCache) and loaded.verdict.status == status and same(loaded, cache)
        with pytest.raises(lens.NotVerified):
            lens.logit_lens(loaded)


def test_nothing_becomes_verified_by_saying_so(tiny, tmp_path):
    path = tmp_path / "run.h5"
    tiny.run_with_cache(PROMPT, verify="off")[1].save(path)

    def lie(file):
        del file["status"]
        file.create_dataset("status", data="VERIFIED", dtype=h5py.string_dtype("utf-8", 8))

    with pytest.raises(lens.NotVerified, match="status"):
        lens.load(spoiled(path, tmp_path, lie))


def test_verified_file_is_unverified_through_the_other_door(saved, cache):
    loaded = lens.load_unverified(saved)
    assert isinstance(loaded, lens.UnverifiedCache) and loaded.verdict.status == "UNVERIFIED" and same(loaded, cache)


def drop(name):
    return lambda file: file.__delitem__(name)


def add(name):
    return lambda file: file.create_dataset(name, data=[1.0])


def edit(file):
    file["act/blocks.1.attn.hook_z"][0, 3, 1, 2] += 1e-6


def edit_tokens(file):
    file["prompts/tokens"][0, 0] += 1


def edit_text(name):
    def change(file):
        text = file[name][()].replace(b"tiny-ioi", b"TINY-IOI").replace(b"Mary", b"Bill").replace(b"VERIFIED", b"verified")
        file[name][()] = text

    return change


def retype(file):
    values = file["act/hook_embed"][()]
    del file["act/hook_embed"]
    file["act/hook_embed"] = values.astype("float64")


def reshape(file):
    values = file["act/hook_embed"][()]
    del file["act/hook_embed"]
    file["act/hook_embed"] = values.reshape(-1)


def link(file):
    del file["act/hook_embed"]
    file["act/hook_embed"] = h5py.SoftLink("/act/hook_pos_embed")


def version(file):
    file.attrs["version"] = 2


@pytest.mark.parametrize(
    "change, says",
    [
        (drop("act/hook_embed"), "/act/hook_embed is missing"),
        (drop("run"), "/run is missing"),
        (drop("prompts/tokens"), "/prompts/tokens is missing"),
        (drop("status"), "/status is missing"),
        (drop("root_digest"), "/root_digest is missing"),
        (add("act/extra"), "/act/extra was added"),
        (add("more"), "/more was added"),
        (lambda file: file.create_group("group"), "/group was added"),
        (edit, "/act/blocks.1.attn.hook_z was changed"),
        (edit_tokens, "/prompts/tokens was changed"),
        (edit_text("run"), "/run was changed"),
        (edit_text("prompts/strings"), "/prompts/strings was changed"),
        (edit_text("verdict"), "/verdict was changed"),
        (edit_text("digests"), "root digest"),
        (edit_text("status"), "/status"),
        (retype, "/act/hook_embed is of another dtype"),
        (reshape, "/act/hook_embed is of another dtype or shape"),
        (link, "/act/hook_embed is a link"),
    ],
)
def test_edited_file_is_refused(change, says, saved, tmp_path):
    with pytest.raises(lens.NotVerified, match=says):
        lens.load(spoiled(saved, tmp_path, change))


def test_dataset_of_another_file_is_refused(tiny, saved, tmp_path):
    tiny.run_with_cache(TWO[1])[1].save(tmp_path / "other.h5")

    def swap(file):
        del file["act/hook_embed"]
        with h5py.File(tmp_path / "other.h5") as other:
            other.copy("act/hook_embed", file["act"])

    with pytest.raises(lens.NotVerified, match="/act/hook_embed was changed"):
        lens.load(spoiled(saved, tmp_path, swap))


@pytest.mark.parametrize(
    "make, error",
    [
        (lambda path: path.write_bytes(b""), ValueError),
        (lambda path: path.write_text("not HDF5"), ValueError),
        (lambda path: h5py.File(path, "w").close(), ValueError),
        (lambda path: path.mkdir(), IsADirectoryError),
        (lambda path: None, FileNotFoundError),
    ],
)
def test_what_is_no_file_of_ours(make, error, tmp_path):
    make(tmp_path / "x.h5")
    for load in (lens.load, lens.load_unverified):
        with pytest.raises(error, match="x.h5"):
            load(tmp_path / "x.h5")


def test_later_version_of_the_format(saved, tmp_path):
    with pytest.raises(ValueError, match="version 2 of the format; this lenscpp reads 1"):
        lens.load(spoiled(saved, tmp_path, version))


def test_paths_are_told_from_other_things(cache, tmp_path):
    for bad in (5, None, ["x"]):
        with pytest.raises(TypeError):
            cache.save(bad)
        with pytest.raises(TypeError):
            lens.load(bad)
    cache.save(os.fsencode(tmp_path / "b\u00fctes.h5"))
    assert same(lens.load(tmp_path / "b\u00fctes.h5"), cache)


def test_a_flipped_bit_is_refused_or_changes_nothing(tiny, tmp_path):
    _, cache = tiny.run_with_cache(PROMPT, names_filter=["blocks.1.attn.hook_pattern", "hook_embed"])
    path, bad = tmp_path / "run.h5", tmp_path / "bad.h5"
    cache.save(path)
    good = path.read_bytes()
    refused = 0
    positions = range(0, len(good), max(1, len(good) // 700))
    for at in positions:
        spoilt = bytearray(good)
        spoilt[at] ^= 1 << at % 8
        bad.write_bytes(spoilt)
        try:
            loaded = lens.load(bad)
        except (lens.NotVerified, ValueError):
            refused += 1
        else:
            assert same(loaded, cache) and loaded.record == cache.record and loaded.verdict.to_dict() == cache.verdict.to_dict(), at
    assert refused > len(positions) // 4


# ---- h5py ----

READ = """
import json, sys
{imports}
with h5py.File(sys.argv[1]) as file:
    assert file["status"][()] == b"VERIFIED" and file.attrs["format"] == b"lenscpp" and file.attrs["kind"] == b"run"
    assert json.loads(file["run"][()])["record"]["model"] == "tiny-ioi"
    assert json.loads(file["prompts/strings"][()])[-1] == " to"
    x = file["act/blocks.1.attn.hook_z"]
    assert x.attrs["dtype"] == b"bfloat16", dict(x.attrs)
    y = eval(x.attrs["decode"], {{"x": x}})
    print(float(y[0, 3, 1, 2]), y.shape, len(file["act"]), list(file["act"])[0])
{then}
"""
LOAD = """
import lenscpp as lens
cache = lens.load(sys.argv[1])
cache.save(sys.argv[1] + ".again")
assert float(cache["z", 1][0, 3, 1, 2]) == float(y[0, 3, 1, 2])
with h5py.File(sys.argv[1]) as file:
    assert file["status"][()] == b"VERIFIED"
"""


@pytest.mark.parametrize("imports, then", [("import h5py", ""), ("import h5py", LOAD), ("import lenscpp, h5py", LOAD)])
def test_h5py_reads_it(imports, then, tmp_path):
    model = lens.HookedTransformer.from_pretrained("tiny-ioi", dtype="bfloat16")
    _, cache = model.run_with_cache(PROMPT)
    path = tmp_path / "run.h5"
    cache.save(path)
    script = READ.format(imports=imports, then=then)
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": PACKAGE})
    assert done.returncode == 0, done.stderr
    value, rest = done.stdout.split(" ", 1)
    assert float(value) == cache["z", 1][0, 3, 1, 2].item()
    assert rest == f"{tuple(cache['z', 1].shape)} {len(cache)} {next(iter(cache))}\n"


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_h5py_reads_values_as_they_are(dtype, tmp_path):
    model = lens.HookedTransformer.from_pretrained("tiny-ioi", dtype=dtype)
    _, cache = model.run_with_cache(PROMPT)
    cache.save(tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert list(file["act"]) == list(cache)  # in execution order
        for name, value in cache.items():
            found = torch.from_numpy(file["act"][name][()])
            assert found.dtype == value.dtype and torch.equal(bits(found), bits(value))
        assert file["prompts/tokens"][()].tolist() == cache.tokens.tolist()
        digests = json.loads(file["digests"][()])
        assert digests["status"] == "VERIFIED" and set(digests["objects"]) >= {"/run", "/verdict", "/output", "/act/hook_embed"}


# ---- disks and processes ----


def test_full_disk_leaves_the_old_file(saved, cache, tmp_path):
    path = tmp_path / "run.h5"
    shutil.copy(saved, path)
    code = """
import os, resource, signal, sys
import lenscpp as lens
cache = lens.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in (0, 5000, 100_000, os.path.getsize(sys.argv[1]) - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        cache.save(sys.argv[1])
    except OSError as error:
        assert error.errno == 27 and sys.argv[1] in str(error), error
    else:
        assert False, limit
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
cache.save(sys.argv[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": PACKAGE})
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == ["run.h5"] and same(lens.load(path), cache)


def test_what_cannot_be_written(cache, tmp_path):
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(IsADirectoryError, match="folder.h5"):
        cache.save(tmp_path / "folder.h5")
    with pytest.raises(FileNotFoundError, match="none"):
        cache.save(tmp_path / "none" / "run.h5")
    with pytest.raises(OSError, match="proc"):
        cache.save("/proc/run.h5")
    assert os.listdir(tmp_path) == ["folder.h5"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_folder(cache, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        cache.save(tmp_path / "run.h5")
    tmp_path.chmod(0o700)


def test_killed_saves_leave_the_old_file_or_the_new(tiny, saved, tmp_path):
    path = tmp_path / "run.h5"
    other = tmp_path / "other.h5"
    tiny.run_with_cache(TWO[1])[1].save(other)
    both = [lens.load(saved), lens.load(other)]
    shutil.copy(saved, path)
    code = """
import sys
import lenscpp as lens
both = [lens.load(p) for p in sys.argv[2:]]
print("ready", flush=True)
while True:
    for cache in both:
        cache.save(sys.argv[1])
"""
    for round in range(8):  # 50 moments are tried in tests/verify/store/sealed_file_test.cc
        process = subprocess.Popen(
            [sys.executable, "-c", code, path, saved, other], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": PACKAGE}
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.003 * (round * 7 % 11))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert any(same(lens.load(path), cache) for cache in both)
    both[0].save(path)
    assert sorted(os.listdir(tmp_path)) == ["other.h5", "run.h5"]


def test_threads_save_and_load_at_once(cache, saved, tmp_path):
    wrong = []

    def work(own):
        try:
            for _ in range(3):
                cache.save(own)
                if not (same(lens.load(own), cache) and same(lens.load(saved), cache)):
                    wrong.append(own)
        except Exception as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(tmp_path / f"{i % 2}.h5",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and sorted(os.listdir(tmp_path)) == ["0.h5", "1.h5"]
