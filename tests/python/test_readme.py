"""The README's Python snippet runs and prints what the README says it prints."""

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent.parent / "README.md"
PROGRAM = os.environ.get("LENSCPP_PROGRAM") or str(Path(sys.executable).parent / "lenscpp")
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


def test_the_table_of_devices_is_what_compare_prints():
    (block,) = [body for _, body in fenced(README.read_text(encoding="utf-8")) if body.startswith("$ lenscpp compare")]
    command, _, table = block.partition("\n")
    arguments = [re.sub(r"^2000$", "20", word) for word in shlex.split(command.removeprefix("$ lenscpp "))]
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=300, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 3, done.stderr
    without_accuracy = [re.sub(r"[\d.]+ % of \d+", "%", " ".join(line.split())) for line in (*table.splitlines(), *done.stdout.splitlines())]
    shown, printed = without_accuracy[: len(table.splitlines())], without_accuracy[len(table.splitlines()) :]
    assert len(shown) == 3
    for line in shown:
        assert any(same(other, line) for other in printed), (line, printed)


def drill_rows(table):
    """{fault as --faults takes it: its counts and shares} of the table that `lenscpp drill` prints."""
    rows = {}
    for line in table.splitlines():
        cells = re.split(r"\s{2,}", line.strip())
        if len(cells) < 9 or not cells[1].isdigit():
            continue
        name, _, parameters = cells[0].partition(":")
        numbers = [int(cell) for cell in cells[1:7]] + [float("nan") if cell == "-" else float(cell.split()[0]) for cell in cells[7:9]]
        titles = ("runs", "fired", "harmful", "between", "harmless", "refused", "of harmful", "named right")
        rows[name.split()[0] + (":" + parameters if parameters else "")] = dict(zip(titles, numbers))
    return rows


def worse_rows(shown, printed):
    """Rows that lost runs, firings, harm, refusals or a share; a share that is no number is lost. Another processor may
    round one run the other way, of many rows together one of a hundred."""
    counts, shares = ("fired", "harmful", "refused"), ("of harmful", "named right")

    def worse(row, other):
        return (
            other["runs"] < row["runs"]
            or any(not other[key] >= row[key] - max(1, row["runs"] // 100) for key in counts)
            or any(not other[key] >= row[key] for key in shares if not math.isnan(row[key]))
        )

    return [fault for fault, row in shown.items() if fault not in printed or worse(row, printed[fault])]


def test_no_row_of_the_drill_got_worse():
    (block,) = [body for _, body in fenced(README.read_text(encoding="utf-8")) if body.startswith("$ lenscpp drill")]
    command, _, table = block.partition("\n")
    shown = drill_rows(table)
    total, faults = shown["all"], [fault for fault in shown if fault != "all"]
    assert len(faults) > 30 and total["of harmful"] == 100 and total["named right"] >= 98
    for key in ("fired", "harmful", "refused"):
        assert total[key] == sum(shown[fault][key] for fault in faults), key
    total["runs"] = sum(shown[fault]["runs"] for fault in faults)  # not of those that never fired: they are not run here
    arguments = [*shlex.split(command.removeprefix("$ lenscpp ")), "--faults", ",".join(faults)]
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr + done.stdout
    assert worse_rows(shown, drill_rows(done.stdout)) == [], done.stdout


def test_a_row_that_got_worse_is_seen():
    row = {"runs": 12, "fired": 12, "harmful": 12, "refused": 11, "of harmful": 100.0, "named right": 100.0}
    assert worse_rows({"row": row}, {"row": row}) == []
    assert worse_rows({"row": row}, {}) == ["row"]
    nan = float("nan")
    worse = {"runs": 11, "fired": 10, "harmful": 10, "refused": 9, "of harmful": 99.9, "named right": 99.9}
    for key, value in [*worse.items(), ("of harmful", nan), ("named right", nan)]:
        assert worse_rows({"row": row}, {"row": {**row, key: value}}) == ["row"], key
    without_harm = {**row, "harmful": 0, "of harmful": nan}
    assert worse_rows({"row": without_harm}, {"row": without_harm}) == []
    assert worse_rows({"all": {**row, "runs": 600, "fired": 600}}, {"all": {**row, "runs": 600, "fired": 593}}) == ["all"]
    table = "fault runs\n" + "row  12  12  12  0  0  12  100 %  100 %  zeros\nall  12  12  0  0  12  0  -  -\n"
    assert set(drill_rows(table)) == {"row", "all"} and math.isnan(drill_rows(table)["all"]["of harmful"])


def test_the_program_in_cpp_is_the_one_that_is_tested():
    blocks = fenced(README.read_text(encoding="utf-8"))
    (program,) = [body for language, body in blocks if language == "cpp"]
    assert program == (README.parent / "tests/installed/experiment.cc").read_text(encoding="utf-8")
    # What tests/installed/test_installed.py holds the program's output to, as Python prints it.
    output = blocks[next(i for i, (language, _) in enumerate(blocks) if language == "cmake") + 1][1]
    code = """
import lenscpp as lens
model = lens.HookedTransformer.from_pretrained("tiny-ioi")
clean, corrupted = (f"When John and Mary went to the store, {name} gave the bag to" for name in ("John", "Mary"))
print(model.run_with_cache(clean)[1].verdict.summary)
grid = lens.patching.patch_grid(model, clean, corrupted, "z", over=("layer", "head"), metric=lens.LogitDiff(" Mary", " John"))
print(f"clean {grid.clean:+.2f}, corrupted {grid.corrupted:+.2f}")
for l, h in (grid.normalized > 0.1).nonzero().tolist():
    print(f"layer {l}, head {h} restores {grid.normalized[l, h]:.2f}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert same(done.stdout, output), (done.stdout, done.stderr)


def test_pictures_and_pages_exist():
    text = README.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert len(links) > 5
    assert [link for link in links if not (README.parent / link).exists()] == []


def test_the_comparison_sees_other_words_and_other_numbers():
    assert same("worst 1.05e+06 at [0, 1]", "worst 1.051e+06 at [0, 1]")
    assert not same("worst 1.05e+06", "worst 2.05e+06")
    assert not same("VERIFIED: 3", "INVALID: 3")
    assert not same("3 points", "3 points, 1 failed")
