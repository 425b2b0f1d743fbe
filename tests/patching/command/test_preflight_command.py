"""`lenscpp preflight`: what it prints, and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = os.environ.get("LENSCPP_PROGRAM") or str(Path(sys.executable).parent / "lenscpp")


def preflight(*arguments):
    return subprocess.run([PROGRAM, "preflight", *arguments], capture_output=True, text=True, timeout=120)


def test_what_fits_ends_with_0():
    done = preflight("tiny-ioi", "--batch", "2", "--length", "15")
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 prompts of 15 tokens in float32 on cpu: fits" in done.stdout


def test_what_does_not_fit_ends_with_4_and_says_what_would():
    done = preflight("tiny-ioi", "--device", "mps", "--batch", "4000000", "--json")
    assert done.returncode == 4
    found = json.loads(done.stdout)
    assert found["command"] == "preflight" and found["exit_status"] == 4 and found["fits"] is False
    assert 0 < found["largest_batch"] < 4000000
    assert found["violations"][0]["limit"]["name"] == "2^32 bytes a buffer"


def test_a_dtype_that_the_device_has_not_ends_with_4():
    done = preflight("tiny-ioi", "--device", "mps", "--dtype", "float64", "--length", "4")
    assert done.returncode == 4 and "MPS framework doesn't support float64" in done.stdout


def test_what_is_no_device_ends_with_4():
    for device in ("msp", "nonsense"):
        done = preflight("tiny-ioi", "--device", device, "--length", "4")
        assert done.returncode == 4 and done.stdout == "" and f'"{device}" is not a device' in done.stderr, done
    done = preflight("tiny-ioi", "--device", "cuda", "--length", "4")
    assert done.returncode == 0 and "no limits known of cuda" in done.stdout


def test_any_batch_can_be_asked_about():
    done = preflight("tiny-ioi", "--device", "mps", "--batch", str(2**63 - 1), "--length", "4", "--json")
    assert done.returncode == 4 and json.loads(done.stdout)["largest_batch"] > 0


def test_only_the_config_is_read(tmp_path):
    config = {"model_type": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 11}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert preflight(str(tmp_path)).returncode == 0


def test_bad_usage_ends_with_2(tmp_path):
    for arguments in (["nothing-of-that-name"], ["tiny-ioi", "--batch", "0"], ["tiny-ioi", "--length", "99999"],
                      ["tiny-ioi", "--dtype", "int8"], [str(tmp_path)]):
        assert preflight(*arguments).returncode == 2, arguments
