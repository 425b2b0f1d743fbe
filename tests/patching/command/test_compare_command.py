"""`lenscpp compare`: what it prints, and its exit statuses."""

import json

from test_command import PROMPT, fails, lenscpp, succeeds

COMPARE = ["compare", "tiny-ioi", "--prompt", PROMPT, "--answer", " Mary", "--wrong", " John", "--prompts", "20"]


def test_prints_a_row_a_device():
    text = succeeds(*COMPARE, "--dtypes", "float32,float64")
    rows = [line.split() for line in text.splitlines() if line.startswith("cpu float") and not ": VERIFIED" in line]
    assert [row[:2] + row[-1:] for row in rows] == [["cpu", "float32", "VERIFIED"], ["cpu", "float64", "VERIFIED"]]
    assert all(row[5:7] == ['"', 'Mary"'] for row in rows)


def test_a_refused_device_is_status_3_beside_the_clean_row():
    done = lenscpp(*COMPARE, "--inject", "stale@attn.hook_z", "--json")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_status"] == 3
    clean, faulty = document["rows"]
    assert (clean["status"], faulty["status"]) == ("VERIFIED", "INVALID")
    assert clean["top_text"] == " Mary" != faulty["top_text"]
    assert faulty["verdict"]["first_failure"]["name"] == "blocks.0.attn.hook_z"
    assert clean["accuracy"]["asked"] == 20


def test_a_missing_device_is_status_4_and_the_others_are_shown():
    done = lenscpp(*COMPARE, "--devices", "cpu,privateuseone")
    assert done.returncode == 4
    assert "VERIFIED" in done.stdout and "cannot be used" in done.stdout


def test_bad_usage_is_status_2():
    assert "--answer" in fails(2, "compare", "tiny-ioi", "--prompt", PROMPT, "--wrong", " John")
    assert "not one" in fails(2, *(" Mary and" if word == " Mary" else word for word in COMPARE))
    assert "int7" in fails(2, *COMPARE, "--dtypes", "int7")
    assert "nearest" in fails(2, *COMPARE, "--verify", "off")
