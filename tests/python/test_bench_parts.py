"""What the benchmark counts, compares and writes. Nothing here is timed."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = {"n_layer": 2, "n_head": 3, "n_embd": 4, "n_positions": 8, "vocab_size": 50}
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}


@pytest.fixture(autouse=True)
def on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests/benchmarks"))


@pytest.fixture
def report(on_the_path):
    import bench_report

    return bench_report


@pytest.fixture
def work(on_the_path):
    import bench_work

    return bench_work


# ---- what is done ----


def test_every_patching_function_of_the_package_is_measured(work):
    import lenscpp.patching

    functions = {name for name in dir(lenscpp.patching) if name.startswith("get_act_patch_")}
    assert functions == {"get_act_patch_" + grid for grid in work.GRIDS}


def test_grids_of_gpt2_small_have_as_many_patches_as_the_issue_says(work):
    assert work.n_patches("resid_pre", GPT2, 15) == 180
    assert work.n_patches("attn_head_out_by_pos", GPT2, 15) == 2160
    assert work.n_patches("attn_head_pattern_dest_src_pos", GPT2, 15) == 144 * 225
    assert work.n_patches("attn_head_by_pos_every", GPT2, 15) == 5 * 2160


def test_cells_are_numbered_through_the_parts_with_the_last_axis_fastest(work):
    ((part, rows),) = work.indices("attn_head_pattern_by_pos", SMALL, 5, [0, 4, 5, 29])
    assert part.our_axes == ("layer", "head", "query") and rows == [(0, 0, 0), (0, 0, 4), (0, 1, 0), (1, 2, 4)]
    first, last = work.indices("block_every", SMALL, 5, [9, 29])
    assert (first[0].activation, first[1]) == ("resid_pre", [(1, 4)])
    assert (last[0].activation, last[1]) == ("mlp_out", [(1, 4)])


@pytest.mark.parametrize(("pair", "differing"), [("A", [2, 4]), ("B", [10]), ("C", list(range(15)))])
def test_prompts_differ_where_the_pair_says_and_nowhere_else(work, pair, differing):
    clean, corrupted = work.prompts(pair, 15, 50257)
    assert [pos for pos, (a, b) in enumerate(zip(clean, corrupted)) if a != b] == differing
    assert all(0 <= token < 50257 for token in clean + corrupted)


def test_flops_of_a_sweep_are_those_of_its_rows(work):
    one = {**SMALL, "n_layer": 1}
    # Two positions: rows 2 and 1. The last layer: keys and values of each row, the rest of one.
    assert work.sweep_flops(one, 2) == 2 * 16 * ((2 * 2 + 10) + (2 + 10))
    assert work.sweep_flops(one, 2, last_layer_whole=True) == 2 * 16 * 12 * 3
    # A second layer: patches in it cost as before, those below it 12 d^2 a row more.
    assert work.sweep_flops(SMALL, 2) == 2 * work.sweep_flops(one, 2) + 2 * 16 * 12 * 3
    # The arithmetic that the issue has in mind: 0.28 s at 477 GFLOP/s.
    assert work.sweep_flops(GPT2, 15, last_layer_whole=True) == pytest.approx(0.278 * 477e9, rel=0.01)


def test_arithmetic_and_bytes_of_a_run(work):
    assert work.weight_bytes(SMALL) == 4 * (2 * 12 * 16 + 4 * 50)
    assert work.forward_flops(SMALL, 3) == 2 * 3 * (2 * 12 * 16 + 4 * 50) + 2 * 2 * 2 * 9 * 4
    limits = {"packed": 10.0, "copy": 2.0}
    assert work.least_seconds(100, 4, limits) == 10 and work.least_seconds(10, 4, limits) == 2


def test_bytes_of_a_cache_are_those_of_its_tensors(work):
    import lenscpp as lens

    model = lens.HookedTransformer.from_pretrained("tiny-ioi")
    cfg = model.cfg
    shape = {"n_layer": cfg.n_layers, "n_head": cfg.n_heads, "n_embd": cfg.d_model, "vocab_size": cfg.d_vocab}
    logits, cache = model.run_with_cache([1, 2, 3, 4, 5])
    handed_out = {name: value for name, value in cache.items() if not name.startswith("unembed")}
    # The embeddings, the last norm, the logits; no hook outside of the blocks is counted twice.
    assert work.cache_bytes(shape, 5) == 4 * (sum(value.numel() for value in handed_out.values()) + logits.numel())


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="read from Linux's /proc")
def test_load_of_others_is_a_share_without_our_own(on_the_path):
    import common

    load = common.OtherLoad()
    clock, busy, own = load.start
    load.start = (clock - 10, busy, own)
    before = load.share()
    load.start = (clock - 10, busy - 10 * os.cpu_count(), own)
    assert 0 <= before < 1 and load.share() == pytest.approx(1, abs=before + 0.3)
    load.start = (clock - 10, busy - 10 * os.cpu_count(), own - 10 * os.cpu_count())
    assert load.share() < before + 0.3


# ---- what is made of it ----


def test_a_ratio_is_the_median_of_the_ratios_of_rounds(report):
    # A round in which the machine was slow for both hardly matters; the ratio of medians would be 2.
    row = report.compared("x", [1.0, 10.0, 3.0], [4.0, 20.0, 6.0])
    assert row["value"] == 2 and row["ratios"] == [4, 2, 2] and (row["ours_s"], row["theirs_s"]) == (3, 6)
    assert report.compared("x", [1.0, 10.0, 2.0], [4.0, 20.0, 20.0])["value"] == 4
    with pytest.raises(ValueError, match="2 of our rounds beside 1"):
        report.compared("x", [1.0, 2.0], [1.0])


def test_targets_are_judged_both_ways(report):
    assert report.compared("grid resid_pre, B", [1.0], [120.0])["met"]
    assert not report.compared("grid resid_pre, B", [1.0], [119.0])["met"]
    assert report.of_rounds("import", "s", [0.3])["met"] and not report.of_rounds("import", "s", [0.31])["met"]
    assert "met" not in report.of_rounds("something else", "s", [1.0])
    assert not report.compared("load raw", [1.0], [float("nan")])["met"]
    assert report.added([1.5, 3.0], [1.0, 2.0]) == [0.5, 0.5]


def test_numbers_as_text(report):
    assert [report.digits(x) for x in (0.0123, 0.96, 1.04, 9.99, 43.4, 1234.5)] == ["0.012", "0.96", "1.0", "10.0", "43", "1234"]
    assert [report.duration(x) for x in (0.0123, 0.9, 1.25, 335.2)] == ["12 ms", "900 ms", "1.2 s", "335 s"]
    missed = report.of_rounds("check alone, checksum, T=15", "share", [0.42])
    assert report.judged(missed) == "**42 %** (30 %)"
    assert report.judged(report.of_rounds("peak of load raw", "weights", [1.1])) == "1.1x the weights"


def results_of(report, work):
    """Made up: every row that has a target, and all that the table names."""
    rows = {}
    for name, (kind, limit) in report.TARGETS.items():
        if name.startswith(("check", "peak", "sweep")):
            rows[name] = report.of_rounds(name, "weights" if name.startswith("peak") else "share", [limit])
        elif name == "import":
            rows[name] = report.of_rounds(name, "s", [limit], theirs_s=7.0)
        else:
            rows[name] = report.compared(name, [0.1], [0.1 * limit * 1.01], share_of_possible=0.5)
    for unembedded in ("all positions", "last position"):
        rows.setdefault(name := f"batched loop, {unembedded} unembedded", report.compared(name, [1.0], [4.0]))
    rows["grid resid_mid, C"] = report.compared("grid resid_mid, C", [1.0], [10.0])
    return {
        "kind": "full", "machine": {"processor": "a processor", "others_share": 0.01}, "threads": 2, "shape": GPT2, "grid_mode": "checksum", "weights_mib": 475.0, "pair_length": 15,
        "versions": {"lenscpp": {"lenscpp": "0.1.0", "torch": "2.13.0"}, "transformer-lens": {"transformer-lens": "3.9.0"}},
        "sampled": {"resid_pre": 12, "attn_head_out_by_pos": 24}, "n_patches": {grid: work.n_patches(grid, GPT2, 15) for grid in work.GRIDS},
        "rows": rows, "memory": {"off, run_with_cache, T=15": 37.4}, "limits": {"packed": 477e9, "linear": 205e9, "copy": 2e10},
    }  # fmt: skip


def test_the_table_is_markdown_and_names_what_is_missed(report, work):
    text = report.markdown(results_of(report, work), "notebooks/pictures/growth.png")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1, block
    assert "batched" not in text and "**10x** (20x)" not in text  # a spread of functions, not a line each
    assert "**1 of them below** 20x" in text and "10x (resid_mid) to 20x" in text
    assert f"{len(report.TARGETS) - 1} of {len(report.TARGETS)} targets are met" in text
    assert "- / 37 / - / -" in text and "![" in text
    assert "![" not in report.markdown(results_of(report, work), None)


def test_the_listing_has_a_line_a_row_with_its_target(report, work):
    rows = results_of(report, work)["rows"]
    lines = report.listing(rows).splitlines()[1:]
    assert [line.split("  ")[0].strip() for line in lines] == list(rows)
    (missed,) = [line for line in lines if "MISSED" in line]
    assert missed.startswith("grid resid_mid, C ") and missed.endswith("10x  at least 20x: MISSED")


def test_a_mode_that_the_build_does_not_have_leaves_its_column_empty(report, work):
    results = results_of(report, work)
    results["rows"] = {name: row for name, row in results["rows"].items() if "checksum" not in name}
    text = report.markdown(results, None)
    assert re.search(r"^\| 15 tokens \|.*\| - \|", text, re.M)
    without = sum("checksum" in name for name in report.TARGETS)
    assert f"{len(report.TARGETS) - without - 1} of {len(report.TARGETS)} targets are met" in text and f"; {without} were not measured." in text


def test_only_what_stands_between_the_comments_is_replaced(report, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"before\n{report.BEGIN}old\n{report.END}after\n")
    for part in ("new\n", "newer\n"):
        report.put_into_file(file, part)
        assert file.read_text() == f"before\n{report.BEGIN}{part}{report.END}after\n"
    for text in ("", report.END + report.BEGIN, report.BEGIN * 2 + report.END):
        with pytest.raises(ValueError, match="needed"):
            report.put_into(text, "new")


def test_the_readme_has_a_place_for_the_table(report):
    report.put_into((ROOT / "README.md").read_text(encoding="utf-8"), "")
