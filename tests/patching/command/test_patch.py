"""lenscpp patch: grids in the terminal, as JSON and as a page; a fault in the middle of one."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios

import pytest
from test_command import ESCAPE, PROGRAM, environment, fails, lenscpp, succeeds

CLEAN = "When John and Mary went to the store, John gave the bag to"
CORRUPTED = "When John and Mary went to the store, Mary gave the bag to"
PATCH = ["patch", "tiny-ioi", "--clean", CLEAN, "--corrupted", CORRUPTED, "--answer", " Mary", "--wrong", " John", "--threads", "1"]
FAULT = ["--inject", "one_element:delta=0.5@blocks.1.attn.hook_z"]


def on_a_terminal(*arguments, columns=100, **changes):
    """What a terminal of so many columns is sent."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with subprocess.Popen([PROGRAM, *arguments], stdout=slave, stderr=subprocess.DEVNULL, env=environment(**changes)) as process:
        os.close(slave)
        text = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # nobody writes any more
                break
            text += part
            if not part:
                break
    os.close(master)
    assert process.returncode == 0
    return text.decode().replace("\r\n", "\n")


def test_a_grid_in_plain_text():
    text = succeeds(*PATCH)
    assert "denoise resid_pre: logit_diff, clean +9.4" in text and "VERIFIED: 60 patches in 2 runs (44 not run: they change nothing that is read)," in text and ESCAPE not in text
    assert re.search(r"^10: John/ Mary +1\.00 ", text, re.MULTILINE)
    assert re.search(r"^0:<\|endoftext\|> +0\.00 +0\.00 +0\.00 +0\.00", text, re.MULTILINE)


def test_json_has_everything():
    document = json.loads(succeeds(*PATCH, "--site", "resid_pre,head_z", "--json"))
    resid, heads = document["grids"]
    assert document["status"] == resid["status"] == heads["status"] == "VERIFIED" and document["exit_status"] == 0
    assert resid["shape"] == [4, 15] and resid["over"] == ["layer", "pos"] and heads["shape"] == [4, 4] and heads["over"] == ["layer", "head"]
    assert len(resid["values"]) == 60 and abs(resid["normalized"][10] - 1) < 1e-3
    assert resid["labels"]["pos"][10] == "10: John/ Mary" and resid["verdict"]["n_compared"] > 0
    assert 0 < resid["error_bar"] < 1e-3 and document["clean"]["record"]["tokens"] != document["corrupted"]["record"]["tokens"]


def test_axes_and_direction():
    document = json.loads(succeeds(*PATCH, "--site", "pattern", "--over", "head_index,layer", "--direction", "noise", "--json"))
    (grid,) = document["grids"]
    assert grid["over"] == ["head", "layer"] and grid["shape"] == [4, 4] and grid["direction"] == "noise"


@pytest.mark.parametrize(("depth", "code"), [("truecolor", "48;2;33;102;172"), ("", "48;5;")])
def test_colours_on_a_terminal(depth, code):
    assert f"{ESCAPE}[{code}" in on_a_terminal(*PATCH, "--site", "z", COLORTERM=depth)
    assert ESCAPE not in on_a_terminal(*PATCH, "--site", "z", NO_COLOR="1")


@pytest.mark.parametrize(("columns", "says"), [(110, " 0.00  0.00 "), (70, "in tenths of 1.00"), (30, "are not shown: the terminal has 30 columns")])
def test_a_grid_fits_the_terminal(columns, says):
    text = on_a_terminal(*PATCH, "--site", "pattern", "--over", "layer,key", columns=columns, NO_COLOR="1")
    assert says in text
    grid = text[text.index("layer ") :].split("\n\n")[0].splitlines()
    assert len(grid) >= 5 and all(len(line) <= columns for line in grid[:5])


def test_a_page_needs_nothing_else(tmp_path):
    page = tmp_path / "patches.html"
    assert f"written: {page}" in succeeds(*PATCH, "--html", page)
    html = page.read_text()
    assert "VERIFIED" in html and "0:&lt;|endoftext|&gt;" in html and "<|endoftext|>" not in html
    assert not re.search(r"<script|https?:|<link|src=", html)
    assert html.count("<td ") == 60


def test_grids_are_saved_one_a_site(tmp_path):
    assert "saved: " in succeeds(*PATCH, "--out", tmp_path / "grid.h5")
    document = json.loads(succeeds(*PATCH, "--site", "z,resid_pre", "--out", tmp_path / "both.h5", "--json"))
    assert document["saved"] == [str(tmp_path / "both-z.h5"), str(tmp_path / "both-resid_pre.h5")]
    assert {p.name for p in tmp_path.iterdir()} == {"grid.h5", "both-z.h5", "both-resid_pre.h5"}


def test_a_fault_loses_its_cells_and_the_status(tmp_path):
    page, file = tmp_path / "patches.html", tmp_path / "grid.h5"
    done = lenscpp(*PATCH, *FAULT, "--inject-run", "1", "--cells-per-run", "8", "--html", page, "--out", file)
    assert done.returncode == 3 and "8 of 60 patches in 3 runs (44 not run: they change nothing that is read) refused (1 run)" in done.stderr and not list(tmp_path.iterdir())
    assert done.stderr.count("nothing was written") == 2
    assert done.stdout.count("NaN") == 9 and "NaN refused" in done.stdout and "1.00" in done.stdout
    assert "INVALID" in done.stdout and "\nVERIFIED" not in done.stdout and "injected: one_element" in done.stdout
    done = lenscpp(*PATCH, *FAULT, "--inject-run", "1", "--cells-per-run", "8", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_status"] == 3 and document["status"] == "INVALID"
    assert document["partial"]["values"].count(None) == 8 == len(document["partial"]["verdict"]["refused_cells"])


def test_a_fault_in_every_run_is_refused_at_once():
    assert "INVALID: blocks.1.attn.hook_z" in fails(3, *PATCH, *FAULT)


def test_unchecked_grids_say_so():
    text = succeeds(*PATCH, "--site", "z", "--verify", "off")
    assert "UNVERIFIED: 16 patches" in text and not re.search(r"^VERIFIED", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--site", "resid_pri"], "nearest"),
        (["--site", "resid_pre,"], "nearest"),
        (["--over", "layer,head"], 'no axis "head"; allowed: layer, pos'),
        (["--direction", "up"], "allowed: denoise, noise"),
        (["--html", "patches.txt"], "FILE.html"),
        (["--out", "grid.txt"], ".h5"),
        (["--html", "no/such/folder/p.html"], "FILE.html"),
        (["--cells-per-run", "-1"], "a whole number from 0 on"),
    ],
)
def test_bad_input_is_told(change, says):
    assert says in fails(2, *PATCH, *change)


def test_unequal_lengths_and_tokens_are_told():
    assert "not one" in fails(2, "patch", "tiny-ioi", "--clean", CLEAN, "--corrupted", CORRUPTED, "--answer", " Mary went", "--wrong", " John")
    short = ["patch", "tiny-ioi", "--clean", CLEAN, "--corrupted", "When John", "--answer", " Mary", "--wrong", " John"]
    assert "needed: equal numbers" in fails(2, *short)
