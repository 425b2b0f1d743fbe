"""The program `lenscpp`, run as a user would run it: what it prints, where, and its exit status.

Takes the program beside the interpreter that runs the tests, or the one in LENSCPP_PROGRAM.
"""

import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = os.environ.get("LENSCPP_PROGRAM") or str(Path(sys.executable).parent / "lenscpp")
PROMPT = "When John and Mary went to the store, John gave the bag to"
COMMANDS = ["demo", "run", "lens", "compare", "patch", "doctor"]
LENS = ["lens", "tiny-ioi", "--prompt", PROMPT]
RUN = ["run", "tiny-ioi", "--prompt", PROMPT]
FAULT = ["--inject", "head:head=2@blocks.1.attn.hook_z"]
ESCAPE = "\x1b"


def environment(**changes):
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "LENSCPP_MODELS", "TERM")}
    return {**kept, "TERM": "xterm", **changes}


def lenscpp(*arguments, **changes):
    return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment(**changes))


def succeeds(*arguments, **changes):
    done = lenscpp(*arguments, **changes)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def fails(status, *arguments, **changes):
    """The one line on standard error."""
    done = lenscpp(*arguments, **changes)
    assert done.returncode == status, done
    assert done.stderr.startswith("lenscpp: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def header_of(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length])


def test_there_is_a_program():
    assert os.access(PROGRAM, os.X_OK), f"{PROGRAM} is missing: make build, or set LENSCPP_PROGRAM"


# ---- help ----


def test_version():
    assert re.fullmatch(r"lenscpp \d+\.\d+\.\d+ \(commit [0-9a-z]+(, changed)?, torch \S+\)\n", succeeds("--version"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_holds_examples(command):
    text = succeeds(command, "--help")
    assert "Examples:" in text and f"  lenscpp {command}" in text.split("Examples:")[1]
    for option in ("--device", "--dtype", "--threads", "--seed", "--no-processing", "--json"):
        assert option in text
    assert "\n\n\n" not in text


def test_help_lists_commands_and_exit_statuses():
    text = succeeds("--help")
    assert all(f"\n  {command} " in text for command in COMMANDS)
    assert "Exit status" in text and "Examples:" in text


def test_examples_in_help_work(tmp_path):
    for command in COMMANDS:
        for line in succeeds(command, "--help").split("Examples:")[1].splitlines():
            if not line.startswith("  lenscpp") or "path/to" in line or "cuda" in line or "--device mps" in line:
                continue
            line = line.partition("#")[0].replace("lenscpp", f"'{PROGRAM}'", 1)
            done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment(), capture_output=True, text=True)
            assert done.returncode == (3 if "--inject" in line else 0), (line, done.stderr)


# ---- run ----


def test_run_says_verdict_and_next_token():
    text = succeeds(*RUN)
    assert 'tiny-ioi on cpu in float32\n15 tokens: "<|endoftext|>" "When" " John"' in text
    assert "\nVERIFIED: " in text and "blocks.*.attn.hook_pattern" in text
    assert 'next token:  " Mary" ' in text
    assert ESCAPE not in text


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_run_json(dtype):
    document = json.loads(succeeds(*RUN, "--json", "--dtype", dtype, "--seed", 5, "--threads", 2))
    assert (document["command"], document["exit_status"], document["status"]) == ("run", 0, "VERIFIED")
    assert document["prediction"][0]["text"] == " Mary" and document["saved"] is None
    assert document["verdict"]["coverage"] == 1 and document["verdict"]["n_compared"] > 0
    assert document["record"]["dtype"] == dtype
    assert (document["record"]["seed"], document["record"]["threads"]) == (5, 2)


def test_run_saves(tmp_path):
    file = tmp_path / "run.safetensors"
    assert f"activations, 7" in (text := succeeds(*RUN, "--out", file)) and str(file) in text
    header = header_of(file)
    about = header.pop("__metadata__")
    assert about["lenscpp.status"] == "VERIFIED" and about["lenscpp.prompt"] == PROMPT
    assert json.loads(about["lenscpp.verdict"])["status"] == "VERIFIED"
    assert json.loads(about["lenscpp.record"])["model"] == "tiny-ioi"
    assert header["tokens"] == {"dtype": "I64", "shape": [1, 15], "data_offsets": header["tokens"]["data_offsets"]}
    assert header["blocks.3.hook_resid_post"]["shape"][:2] == [1, 15]
    assert os.listdir(tmp_path) == ["run.safetensors"]


def test_processing_can_be_left_out():
    document = json.loads(succeeds(*RUN, "--json", "--no-processing"))
    assert not any(document["record"]["processing"].values())
    assert document["prediction"][0]["text"] == " Mary"


def test_unverified_run_is_saved_as_such(tmp_path):
    file = tmp_path / "run.safetensors"
    text = succeeds(*RUN, "--verify", "off", "--out", file)
    assert "\nUNVERIFIED: " in text and "next token" not in text
    assert header_of(file)["__metadata__"]["lenscpp.status"] == "UNVERIFIED"
    document = json.loads(succeeds(*RUN, "--verify", "off", "--json"))
    assert document["status"] == "UNVERIFIED" and document["prediction"] == []


@pytest.mark.parametrize("command", ["run", "lens"])
def test_fault_is_refused(command):
    message = lenscpp(command, *RUN[1:], *FAULT)
    assert message.returncode == 3
    assert "INVALID: blocks.1.attn.hook_z" in message.stderr and "head 2" in message.stderr
    assert "VERIFIED:" not in message.stdout and "next token" not in message.stdout


def test_refused_run_is_not_saved(tmp_path):
    file = tmp_path / "run.safetensors"
    done = lenscpp(*RUN, *FAULT, "--out", file)
    assert done.returncode == 3 and os.listdir(tmp_path) == []
    assert f"nothing was written to {file}" in done.stderr
    file.write_text("from before")
    assert lenscpp(*RUN, *FAULT, "--out", file).returncode == 3
    assert file.read_text() == "from before"


def test_refusal_as_json():
    done = lenscpp(*RUN, *FAULT, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_status"], document["status"]) == (3, 3, "INVALID")
    assert document["verdict"]["first_failure"]["name"] == "blocks.1.attn.hook_z"
    assert document["record"]["model"] == "tiny-ioi" and document["error"] in done.stderr


def test_several_faults_and_one_that_changes_nothing():
    done = lenscpp(*RUN, *FAULT, "--inject", "nan@blocks.0.hook_mlp_out")
    assert done.returncode == 3 and "INVALID: blocks.0.hook_mlp_out" in done.stderr
    assert "nan at blocks.0.hook_mlp_out changed 1 elements; head at" in done.stdout
    assert "injected: nothing was changed\n" in succeeds(*RUN, "--inject", "scale:factor=1@attn.hook_z")


# ---- lens ----


def test_lens_table():
    lines = succeeds(*LENS, "--top", 2).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layer"))
    rows = lines[start + 1 : start + 6]
    assert [row.split()[0] for row in rows] == ["0_pre", "1_pre", "2_pre", "3_pre", "final_post"]
    assert re.match(r'final_post +0 +\d+\.\d % +" Mary"', rows[-1])
    first_percent = {re.search(r"\d %", row).end() for row in rows}
    assert len(first_percent) == 1  # aligned
    assert lines[-1].startswith("VERIFIED")


@pytest.mark.parametrize("site, n_rows", [("resid_pre", 5), ("resid_mid", 4), ("resid_post", 4), ("attn_out", 4), ("mlp_out", 4)])
@pytest.mark.parametrize("options", [[], ["--no-ln"]])
def test_lens_json(site, n_rows, options):
    document = json.loads(succeeds(*LENS, "--json", "--site", site, "--top", 3, *options))
    assert (document["command"], document["exit_status"], document["status"]) == ("lens", 0, "VERIFIED")
    assert len(document["layers"]) == n_rows and all(len(layer["top"]) == 3 for layer in document["layers"])
    assert document["prediction"]["text"] == " Mary" and document["apply_ln"] == (not options)
    assert all(0 <= layer["probability"] <= 1 and layer["entropy_nats"] >= 0 for layer in document["layers"])
    if site == "resid_post" and not options:
        last = document["layers"][-1]
        assert last["rank"] == 0 and last["probability"] == pytest.approx(document["prediction"]["probability"], abs=1e-4)


def test_lens_at_a_position():
    whole = json.loads(succeeds("lens", "tiny-ioi", "--prompt", "When John and Mary", "--json"))
    within = json.loads(succeeds("lens", "tiny-ioi", "--prompt", "When John and Mary went", "--json", "--pos", -2))
    assert within["pos"] == whole["pos"] == 4
    for a, b in zip(whole["layers"], within["layers"]):
        assert a["rank"] == b["rank"] and a["probability"] == pytest.approx(b["probability"], rel=1e-4, abs=1e-9)


def test_lens_reads_nothing_unverified():
    assert "verified activations only" in fails(3, *LENS, "--verify", "off")


def test_odd_tokens_are_shown_with_escapes():
    text = succeeds("run", "tiny-ioi", "--prompt", 'a\n\t\x1b[31m"\\')
    assert ESCAPE not in text and r'"\n"' in text and r'"\t"' in text and r'"\x1b"' in text and r'"\""' in text and r'"\\"' in text


# ---- demo ----


def test_demo(tmp_path):
    text = succeeds("demo", "--out", tmp_path / "made" / "here")
    assert "\nVERIFIED: " in text and "\nINVALID: " in text and text.endswith("All as it should be.\n")
    made = tmp_path / "made" / "here"
    assert sorted(path.name for path in made.iterdir()) == ["patches.html", "resid_pre.h5", "run.h5", "z.h5"]
    for file in made.glob("*.h5"):
        assert "VERIFIED" in succeeds("show", file)
    assert "VERIFIED" in (made / "patches.html").read_text()
    assert "60 patches" in text and "16 patches" in text


def test_demo_json():
    document = json.loads(succeeds("demo", "--json"))
    assert document["exit_status"] == 0 and document["shortcomings"] == []
    assert document["clean"]["top"] == " Mary" and document["clean"]["logit_difference"] > 0
    assert document["layers"][-1]["rank"] == 0 < document["layers"][0]["rank"]
    assert document["fault"]["refused"] and document["fault"]["verdict"]["status"] == "INVALID"
    assert document["fault"]["verdict"]["first_failure"]["name"] in document["fault"]["injected"]
    assert document["fault"]["unchecked"]["logit_difference"] < document["clean"]["logit_difference"]
    assert document["declared"]["status"] == "VERIFIED"
    assert document["declared"]["answer"] == pytest.approx(document["fault"]["unchecked"])


# ---- refusals of input: status 2 unless another is given ----


@pytest.mark.parametrize(
    "arguments, says",
    [
        ([], ["a command is needed", "demo"]),
        (["lnes"], ['no command "lnes"', "demo, run, lens"]),
        (["--json=x"], ["options stand after"]),
        (["lens", "tiny-ioi"], ["--prompt is required"]),
        (["run"], ["is required"]),
        (["lens", "tiny-ioi", "--promt", "x"], ['no option "--promt"', '"--prompt"']),
        (["lens", "tiny-ioi", "--prompt", "When", "John"], ['unexpected argument "John"', "quotes"]),
        (["lens", "tiny-iio", "--prompt", "x"], ['"tiny-iio" is neither a folder nor', "one of: tiny-ioi", "models"]),
        (["lens", "no/such", "--prompt", "x"], ['"no/such": no such folder', "nothing is downloaded"]),
        (["lens", __file__, "--prompt", "x"], ["is not a folder"]),
        (["lens", "", "--prompt", "x"], ["[model]"]),
        ([*LENS, "--site", "resid"], ['"resid"', "resid_pre, resid_mid, resid_post, attn_out, mlp_out"]),
        ([*LENS, "--dtype", "int8"], ['"int8"', "float32, float64, bfloat16, float16"]),
        ([*LENS, "--dtype", "int64"], ["int64", "float32, float64, bfloat16, float16"]),
        ([*LENS, "--verify", "maybe"], ['"maybe"', "exact, checksum, off"]),
        ([*LENS, "--top", "0"], ["--top", "from 1"]),
        ([*LENS, "--top", "many"], ["--top", "a whole number"]),
        ([*LENS, "--top", "100000"], ["--top", "vocabulary"]),
        ([*LENS, "--pos", "15"], ["--pos", "15 tokens (0..14"]),
        ([*LENS, "--pos", "-16"], ["--pos", "15 tokens"]),
        ([*LENS, "--threads", "-1"], ["--threads", "0 to 4096"]),
        ([*LENS, "--seed", "-1"], ["--seed", "from 0"]),
        (["run", "tiny-ioi", "--prompt", "a " * 100], ["n_ctx"]),
        ([*RUN, "--out", "run.txt"], ['"run.txt"', "allowed: .h5, .safetensors"]),
        ([*RUN, "--out", "no/such/run.safetensors"], ["--out", '"no/such"']),
        ([*RUN, "--inject", "nothing@z"], ['"nothing"', "nan"]),
        ([*RUN, "--inject", "nan@attn.hook_y"], ['"attn.hook_y"', '"attn.hook_q"']),
        ([*RUN, "--inject", "nan:index@z"], ['"index" is no key=value']),
        ([*RUN, "--inject", "nan:index=x@z"], ['"x" is not a number']),
        ([*RUN, "--inject", "nan:idx=1@attn.hook_z"], ['"idx"', "index"]),
        ([*RUN, "--inject", "head:head=99@attn.hook_z"], ["99", "0..3"]),
        (["demo", "--out", __file__], ["--out"]),
    ],
)
def test_bad_usage(arguments, says):
    done = lenscpp(*arguments)
    line = done.stderr
    assert done.returncode == 2 and line.startswith("lenscpp: ") and line.count("\n") == 1, done
    for part in says:
        assert part in line
    if arguments:
        document = json.loads(lenscpp(*arguments, "--json").stdout)
        assert document["exit_status"] == 2 and document["error"]


def test_prompt_that_is_not_utf8():
    done = subprocess.run([PROGRAM.encode(), b"lens", b"tiny-ioi", b"--prompt", b"a\xff"], capture_output=True, env=environment())
    assert done.returncode == 2 and b"not UTF-8 at byte 1" in done.stderr


def test_broken_model_folder(tmp_path):
    assert "config.json" in fails(2, "run", tmp_path, "--prompt", "x")
    (tmp_path / "config.json").write_text("{")
    assert "config.json" in fails(2, "run", tmp_path, "--prompt", "x")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_missing_device(device):
    assert f'"{device}"' in fails(4, *LENS, "--device", device)
    document = json.loads(lenscpp(*LENS, "--device", device, "--json").stdout)
    assert document["exit_status"] == 4


def test_unwritable_folder_is_said_first(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    message = fails(2, "run", "no-such-model", "--prompt", "x", "--out", tmp_path / "run.safetensors")
    assert "--out" in message and "no-such-model" not in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", [LENS, ["demo"], ["--help"], [*RUN, "--json"]])
def test_full_disk_is_status_1(command):
    with open("/dev/full", "w") as full:
        done = subprocess.run([PROGRAM, *command], stdout=full, stderr=subprocess.PIPE, text=True, env=environment())
    assert done.returncode == 1 and "No space left" in done.stderr


# ---- where models are ----


def test_models_of_the_environment(tmp_path):
    shipped = json.loads(succeeds(*RUN, "--json"))["record"]["model_digest"]
    where = next(Path(p) for p in re.search(r"\(in (.*)\)\n", fails(2, "run", "nope", "--prompt", "x")).group(1).split(", ") if Path(p, "tiny-ioi").is_dir())
    (tmp_path / "other").symlink_to(where / "tiny-ioi")
    places = f"/no/such/folder:{tmp_path}"
    document = json.loads(succeeds("run", "other", "--prompt", "x", "--json", LENSCPP_MODELS=places))
    assert document["record"]["model_digest"] == shipped and document["record"]["model"] == "other"
    assert "other, tiny-ioi" in fails(2, "run", "nope", "--prompt", "x", LENSCPP_MODELS=places)
    assert succeeds("run", where / "tiny-ioi", "--prompt", "x") and succeeds("run", f"{where}/tiny-ioi/", "--prompt", "x")


# ---- terminals, pipes, signals ----


def on_terminal(*arguments, **changes):
    """Standard output and standard error as a terminal shows them."""
    parent, child = pty.openpty()
    process = subprocess.Popen([PROGRAM, *arguments], stdin=child, stdout=child, stderr=child, env=environment(**changes))
    os.close(child)
    shown = b""
    while True:
        try:
            ready, _, _ = select.select([parent], [], [], 120)
            part = os.read(parent, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        if not part:
            break
        shown += part
    os.close(parent)
    return process.wait(), shown.decode()


def test_colours_and_progress_on_a_terminal():
    status, shown = on_terminal(*RUN)
    assert status == 0 and "\x1b[1;32mVERIFIED\x1b[0m" in shown
    assert "loading tiny-ioi ..." in shown and "\r\x1b[K" in shown


@pytest.mark.parametrize("changes", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colours_where_none_are_wanted(changes):
    status, shown = on_terminal(*RUN, **changes)
    assert status == 0 and "VERIFIED" in shown and not re.search(r"\x1b\[[0-9;]*m", shown)


def test_empty_no_color_is_as_unset():
    assert "\x1b[1;32m" in on_terminal(*RUN, NO_COLOR="")[1]


@pytest.mark.parametrize("command", [LENS, ["demo"], ["--help"], [*RUN, "--json"]])
def test_closed_pipe_makes_no_noise(command):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([PROGRAM, *command], stdout=write, stderr=subprocess.PIPE, text=True, env=environment())
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_closed_pipe_does_not_hide_a_refusal():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([PROGRAM, *RUN, *FAULT], stdout=write, stderr=subprocess.PIPE, text=True, env=environment())
    os.close(write)
    assert done.returncode == 3


def test_interrupt_leaves_no_half_file(tmp_path):
    file = tmp_path / "run.safetensors"
    outcomes = set()
    for delay_s in [0.05 * i for i in range(1, 25)]:
        process = subprocess.Popen([PROGRAM, *RUN, "--out", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment())
        time.sleep(delay_s)
        process.send_signal(signal.SIGINT)
        noise = process.communicate()[1]
        outcomes.add(process.returncode)
        assert os.listdir(tmp_path) in ([], ["run.safetensors"])
        if process.returncode == 130:
            assert noise == b""
        if file.exists():
            assert header_of(file)["__metadata__"]["lenscpp.status"] == "VERIFIED"
            file.unlink()
    # Before the program is up, an interrupt ends it as it ends Python or any other program.
    assert outcomes <= {0, 1, 130, -signal.SIGINT} and 130 in outcomes
