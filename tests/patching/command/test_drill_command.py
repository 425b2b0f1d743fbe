"""`lenscpp drill`: what it prints and writes, and its exit statuses."""

import json
import os
import subprocess

from test_command import PROGRAM, environment, fails, lenscpp, succeeds

DRILL = ["drill", "tiny-ioi", "--dtypes", "float32", "--lengths", "5", "--batches", "1"]
MISSED = ["drill", "tiny-ioi", "--faults", "one_element:delta=0.001", "--dtypes", "bfloat16", "--lengths", "1", "--batches", "1"]


def test_prints_a_row_a_fault_and_a_summary():
    text = succeeds(*DRILL, "--faults", "nan,scale:factor=1.01,tile:height=2,width=3", "--layers", "0,-1")
    rows = [line.split() for line in text.splitlines()]
    assert [row[0] for row in rows[1:5]] == ["nan", "scale:factor=1.01", "tile:height=2,width=3", "all"]
    assert rows[4][2] == rows[4][6] and "100 % of the harmful ones" in text.splitlines()[-1]


def test_json_holds_every_run_and_out_writes_the_same(tmp_path):
    folder = tmp_path / "drill"
    document = json.loads(succeeds(*DRILL, "--faults", "head,P5", "--sample", "6", "--json", "--out", str(folder)))
    assert (document["command"], document["exit_status"], document["missed"]) == ("drill", 0, 0)
    assert len(document["runs"]) == 12 and {run["in_device"] for run in document["runs"]} == {True, False}
    assert json.loads((folder / "drill.json").read_text()) == document
    page = (folder / "drill.html").read_text()
    assert "never harmful" in page and "attn.hook_z" in page and document["summary"] in page
    assert document["summary"] in (folder / "drill.txt").read_text()


def test_what_is_below_the_bounds_is_listed_with_its_size():
    text = succeeds("drill", "tiny-ioi", "--faults", "nan,scale:factor=1.000001", "--sites", "mlp_out", "--dtypes", "float32", "--lengths", "5")
    assert "Changed the run and not refused:" in text and "of the bound" in text and "between" in text


def test_a_drill_without_harm_shows_nothing_and_is_status_2():
    for faults in ("S8", "scale:factor=1", "scale:factor=1.000001"):
        done = lenscpp(*DRILL, "--faults", faults, "--sites", "mlp_out")
        assert done.returncode == 2 and "No fault did harm: nothing was shown." in done.stdout, done
    done = lenscpp(*DRILL, "--faults", "S8,scale:factor=1", "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_status"]) == (2, 2)
    assert [row["fault"] for row in document["never_fired"]] == ["S8", "scale:factor=1"]
    assert document["never_fired"][1]["why"].startswith("changed no bit in")


def test_a_harmful_fault_that_was_not_refused_is_status_3():
    # Below what bfloat16 rounds away in the large elements of a tensor, and far beyond what honest runs differ by.
    done = lenscpp(*MISSED)
    assert done.returncode == 3 and "HARMFUL AND NOT REFUSED:" in done.stdout, done
    document = json.loads(lenscpp(*MISSED, "--json").stdout)
    assert document["missed"] > 0 and document["exit_status"] == 3
    assert [run["harm"] for run in document["runs"] if run["harm"] == "harmful" and not run["refused"]] == ["harmful"] * document["missed"]


def test_a_list_does_not_take_the_model_for_one_of_its_own():
    assert "nan" in succeeds("drill", *DRILL[2:], "--sites", "mlp_out", "--faults", "nan", "tiny-ioi")


def test_the_simulated_device_is_not_taken_from_the_working_directory(tmp_path):
    # A program found through PATH is called by its bare name: here that names a file that is not it.
    for name in ("lenscpp", "liblenscpp_simulated.so"):
        (tmp_path / name).write_bytes(b"not a shared object")
    path = os.path.dirname(os.path.realpath(PROGRAM)) + os.pathsep + os.environ["PATH"]
    done = subprocess.run(
        ["lenscpp", *DRILL, "--faults", "P5", "--sample", "2"], executable=PROGRAM, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment(PATH=path)
    )
    assert (done.returncode, done.stderr) == (0, ""), done


def test_bad_usage_is_status_2(tmp_path):
    assert "nearest" in fails(2, *DRILL, "--faults", "nana")
    assert "nearest" in fails(2, *DRILL, "--sites", "hook_zz")
    assert "out of range" in fails(2, *DRILL, "--layers", "4")
    assert "allowed: 1 to 64" in fails(2, "drill", "tiny-ioi", "--lengths", "65")
    assert "nothing could be refused" in fails(2, *DRILL, "--verify", "off")
    (tmp_path / "file").touch()
    assert "cannot be made" in fails(2, *DRILL, "--out", str(tmp_path / "file" / "folder"))


def test_a_missing_device_is_status_4():
    done = lenscpp(*DRILL, "--faults", "nan", "--device", "cuda:7")
    assert done.returncode == 4, done
