"""`lenscpp drill`: what it prints and writes, and its exit statuses."""

import json

from test_command import fails, lenscpp, succeeds

DRILL = ["drill", "tiny-ioi", "--dtypes", "float32", "--lengths", "5", "--batches", "1"]


def test_prints_a_row_a_fault_and_a_summary():
    text = succeeds(*DRILL, "--faults", "nan,scale:factor=1.01,tile:height=2,width=3", "--layers", "0,-1")
    rows = [line.split() for line in text.splitlines()]
    assert [row[0] for row in rows[1:5]] == ["nan", "scale:factor=1.01", "tile:height=2,width=3", "all"]
    assert rows[4][1] == rows[4][6] and "100 % of the harmful ones" in text.splitlines()[-1]


def test_json_holds_every_run_and_out_writes_the_same(tmp_path):
    folder = tmp_path / "drill"
    document = json.loads(succeeds(*DRILL, "--faults", "head,P5", "--sample", "6", "--json", "--out", str(folder)))
    assert (document["command"], document["exit_status"], document["missed"]) == ("drill", 0, 0)
    assert len(document["runs"]) == 12 and {run["in_device"] for run in document["runs"]} == {True, False}
    assert json.loads((folder / "drill.json").read_text()) == document
    page = (folder / "drill.html").read_text()
    assert "never fired" in page and "attn.hook_z" in page and document["summary"] in page
    assert document["summary"] in (folder / "drill.txt").read_text()


def test_what_is_below_the_bounds_is_listed_with_its_size():
    text = succeeds("drill", "tiny-ioi", "--faults", "scale:factor=1.000001", "--sites", "mlp_out", "--dtypes", "float32", "--lengths", "5")
    assert "Changed the run and not refused:" in text and "of the bound" in text and "between" in text


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
