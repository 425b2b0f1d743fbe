"""Files of the program `lenscpp`: what run --out saves, what show says of it, what verify makes of it."""

import json
import os
import re
import signal
import subprocess
import time

import pytest
from test_command import ESCAPE, FAULT, PROGRAM, PROMPT, RUN, environment, fails, header_of, lenscpp, succeeds

h5py = pytest.importorskip("h5py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    file = tmp_path_factory.mktemp("run") / "run.h5"
    succeeds(*RUN, "--out", file, "--seed", 7)
    return file


@pytest.fixture(scope="module")
def unverified(tmp_path_factory):
    file = tmp_path_factory.mktemp("unverified") / "run.h5"
    succeeds(*RUN, "--verify", "off", "--out", file)
    return file


def copied(file, tmp_path):
    copy = tmp_path / "copy.h5"
    copy.write_bytes(file.read_bytes())
    return copy


# ---- run --out ----


def test_run_saves_sealed(run, tmp_path):
    text = succeeds(*RUN, "--out", tmp_path / "run.h5")
    assert re.search(r"saved 7\d activations, .* kB: ", text) and os.listdir(tmp_path) == ["run.h5"]
    with h5py.File(run) as file:
        assert file["status"][()] == b"VERIFIED" and file["act/blocks.3.hook_resid_post"].shape[:2] == (1, 15)
        about = json.loads(file["run"][()])
        assert about["record"]["model"] == "tiny-ioi" and about["remarks"] == {"prompt": PROMPT, "seed": 7, "injected": []}
        assert "".join(json.loads(file["prompts/strings"][()])).endswith(PROMPT)


def test_refused_run_leaves_the_old_file(run, tmp_path):
    file = copied(run, tmp_path)
    before = file.read_bytes()
    done = lenscpp(*RUN, *FAULT, "--out", file)
    assert done.returncode == 3 and f"nothing was written to {file}" in done.stderr
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["copy.h5"]


def test_interrupt_leaves_no_half_file(tmp_path):
    file = tmp_path / "run.h5"
    outcomes = set()
    for delay_s in [0.1 * i for i in range(1, 13)]:
        process = subprocess.Popen([PROGRAM, *RUN, "--out", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment())
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        outcomes.add(process.wait())
        assert os.listdir(tmp_path) in ([], ["run.h5"])
        if file.exists():
            succeeds("show", file)
            file.unlink()
    assert outcomes <= {0, 130, -signal.SIGINT}


# ---- show ----


def test_show(run):
    text = succeeds("show", run)
    assert f"{run}: a run, VERIFIED; the root digest and those of all " in text and ESCAPE not in text
    assert "tiny-ioi on cpu in float32, 1 x 15 tokens" in text and 'tokens: "<|endoftext|>" "When" " John"' in text.replace('"<bos>"', '"<|endoftext|>"')
    assert "\nVERIFIED: " in text and "worst points" in text
    assert re.search(r"\nblocks\.2\.attn\.hook_pattern +float32 +\[1, 4, 15, 15\]\n", text)
    assert re.search(r"\nprompts/tokens +int64 +\[1, 15\]\n", text)


def test_show_json(run):
    document = json.loads(succeeds("show", run, "--json"))
    assert (document["command"], document["exit_status"], document["kind"]) == ("show", 0, "run")
    assert document["status"] == "VERIFIED" and document["usable"] is True
    assert document["record"]["model"] == "tiny-ioi" and document["remarks"]["prompt"] == PROMPT
    arrays = {a["name"]: (a["dtype"], a["shape"]) for a in document["arrays"]}
    assert arrays["blocks.0.attn.hook_pattern"] == ("float32", [1, 4, 15, 15])
    ratios = [p["worst_ratio"] for p in document["points"]]
    assert ratios == sorted(ratios, reverse=True) and 0 < ratios[0] <= 1


def test_show_of_an_unverified_run(unverified):
    done = lenscpp("show", unverified)
    assert done.returncode == 3 and "status is UNVERIFIED" in done.stderr and "refused" in done.stdout
    assert "blocks.2.attn.hook_pattern" in done.stdout
    done = lenscpp("show", unverified, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_status"], document["usable"]) == (3, 3, False) and "UNVERIFIED" in document["error"]


def test_show_says_which_object_was_changed(run, tmp_path):
    file = copied(run, tmp_path)
    with h5py.File(file, "r+") as spoilt:
        spoilt["act/blocks.1.attn.hook_z"][0, 0, 0, 0] += 1
    done = lenscpp("show", file)
    assert done.returncode == 3 and "/act/blocks.1.attn.hook_z was changed" in done.stderr
    with h5py.File(file, "r+") as spoilt:
        spoilt["run"][()] = b"{" * spoilt["run"].dtype.itemsize
    done = lenscpp("show", file)
    assert done.returncode == 3 and "/run was changed" in done.stderr and "blocks.1.attn.hook_z" in done.stdout


def test_show_of_a_truncated_file(run, tmp_path):
    file = tmp_path / "half.h5"
    file.write_bytes(run.read_bytes()[: run.stat().st_size // 2])
    assert "cut short" in fails(3, "show", file)


def test_show_of_another_kind(tmp_path):
    assert "not an HDF5 file" in fails(2, "show", __file__)
    assert "No such file" in fails(2, "show", tmp_path / "none.h5")


# ---- verify ----


def test_verify_checks_an_unverified_run(unverified, tmp_path):
    out = tmp_path / "checked.h5"
    text = succeeds("verify", unverified, "tiny-ioi", "--out", out)
    assert "\nVERIFIED: " in text and "not the weights" not in text
    document = json.loads(succeeds("show", out, "--json"))
    assert document["usable"] and document["remarks"]["verified_from"] == str(unverified)
    assert document["remarks"]["recorded"]["mode"] == "off"


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("suffix", [".h5", ".safetensors"])
def test_verify_takes_the_dtype_of_the_recording(dtype, suffix, tmp_path):
    file = tmp_path / f"run{suffix}"
    succeeds(*RUN, "--verify", "off", "--dtype", dtype, "--out", file)
    document = json.loads(succeeds("verify", file, "tiny-ioi", "--json"))
    assert (document["command"], document["exit_status"], document["status"]) == ("verify", 0, "VERIFIED")
    assert document["record"]["dtype"] == dtype and document["verdict"]["n_compared"] > 0 and document["saved"] is None


def test_verify_refuses_a_wrong_run(tmp_path):
    file, out = tmp_path / "run.h5", tmp_path / "out.h5"
    succeeds(*RUN, *FAULT, "--verify", "off", "--out", file)
    done = lenscpp("verify", file, "tiny-ioi", "--out", out)
    assert done.returncode == 3 and "INVALID: blocks.1.attn.hook_z" in done.stderr and not out.exists()
    done = lenscpp("verify", file, "tiny-ioi", "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["verdict"]["first_failure"]["name"] == "blocks.1.attn.hook_z"


def test_verify_says_when_the_weights_are_others(unverified):
    done = lenscpp("verify", unverified, "tiny-ioi", "--no-processing")
    assert done.returncode in (2, 3) and "not the weights that the file names" in done.stdout + done.stderr


def test_verify_needs_tokens_and_activations(tmp_path):
    file = tmp_path / "x.safetensors"
    succeeds(*RUN, "--out", file)
    header = header_of(file)
    assert "tokens" in header
    for text, says in ((b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "tokens"), (b'{"tokens":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "int64")):
        padded = text + b" " * (-len(text) % 8)
        file.write_bytes(len(padded).to_bytes(8, "little") + padded + b"\0" * 4)
        assert says in fails(2, "verify", file, "tiny-ioi")
    assert "allowed: .h5" in fails(2, "verify", file, "tiny-ioi", "--out", "x.safetensors")
