"""The README's Python snippet runs and prints what the README says it prints."""

import math
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent.parent / "README.md"
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def fenced(text):
    """[(language, body)] of the fenced blocks of a Markdown text."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)


def same(found, expected, tolerance=0.02):
    """Equal texts whose numbers agree to 2 %: another processor rounds otherwise."""
    if NUMBER.sub("#", found) != NUMBER.sub("#", expected):
        return False
    numbers = zip(NUMBER.findall(found), NUMBER.findall(expected))
    return all(math.isclose(float(a), float(b), rel_tol=tolerance) for a, b in numbers)


def test_the_snippet_prints_what_stands_below_it():
    blocks = fenced(README.read_text(encoding="utf-8"))
    at = next(i for i, (language, _) in enumerate(blocks) if language == "python")
    done = subprocess.run([sys.executable, "-c", blocks[at][1]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    language, expected = blocks[at + 1]
    assert language == ""
    assert same(done.stdout, expected), done.stdout


def test_the_comparison_sees_other_words_and_other_numbers():
    assert same("worst 1.05e+06 at [0, 1]", "worst 1.051e+06 at [0, 1]")
    assert not same("worst 1.05e+06", "worst 2.05e+06")
    assert not same("VERIFIED: 3", "INVALID: 3")
    assert not same("3 points", "3 points, 1 failed")
