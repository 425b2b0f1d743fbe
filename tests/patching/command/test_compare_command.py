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


def test_ignored_strides_in_an_attention_output_lose_the_answer_and_are_refused():
    fault = ("--devices", "cpu,simulated", "--inject", "S1:transposed=1@blocks.1.hook_attn_out")
    done = lenscpp(*COMPARE, *fault, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == document["exit_status"] == 3
    cpu, honest, lying = document["rows"]
    assert [row["device"] for row in document["rows"]] == ["cpu", "simulated", "simulated"]
    assert [row["status"] for row in document["rows"]] == ["VERIFIED", "VERIFIED", "INVALID"]
    assert honest["logit_difference"] == cpu["logit_difference"] > 5 and cpu["p_answer"] > 0.9
    assert lying["p_answer"] < 0.1 and lying["logit_difference"] < cpu["logit_difference"] / 4
    assert lying["verdict"]["first_failure"]["name"] == "blocks.1.hook_attn_out"
    assert lying["accuracy"]["refused"] == 20 and honest["accuracy"]["refused"] == 0


def test_a_fault_inside_a_device_needs_the_simulated_one():
    assert '"simulated"' in fails(2, *COMPARE, "--devices", "cpu", "--inject", "S1")
    assert "simulated device" in fails(2, "run", "tiny-ioi", "--prompt", PROMPT, "--inject", "S1")


def test_a_missing_device_is_status_4_and_the_others_are_shown():
    done = lenscpp(*COMPARE, "--devices", "cpu,privateuseone")
    assert done.returncode == 4
    assert "VERIFIED" in done.stdout and "cannot be used" in done.stdout


def test_bad_usage_is_status_2():
    assert "--answer" in fails(2, "compare", "tiny-ioi", "--prompt", PROMPT, "--wrong", " John")
    assert "not one" in fails(2, *(" Mary and" if word == " Mary" else word for word in COMPARE))
    assert "int7" in fails(2, *COMPARE, "--dtypes", "int7")
    assert "nearest" in fails(2, *COMPARE, "--verify", "off")
