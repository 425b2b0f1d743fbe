"""What the benchmark makes of its answers: ratios of rounds, targets, the README's table. No timing, no libraries."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import median
from typing import Any

import bench_work

Row = dict[str, Any]
Results = dict[str, Any]

TABLE_LENGTHS = (15, 64, 256, 1024)
MODES = {"off": "unverified", "checksum": "verified by checksums", "exact": "verified exactly"}
BEGIN, END = "<!-- bench -->\n", "<!-- /bench -->\n"
MISSING = "-"


# ---- rows ----

AT_LEAST, AT_MOST = "at_least", "at_most"


def _targets() -> dict[str, tuple[str, float]]:
    """Of the rows that must show something. Of ratios: how many times faster than transformer-lens at least."""
    targets = {}
    for length, faster in zip(TABLE_LENGTHS, (3, 3, 2, 2)):
        targets[f"run_with_cache, off, T={length}"] = (AT_LEAST, faster)
        targets[f"run_with_cache, checksum, T={length}"] = (AT_LEAST, 1)
        targets[f"run_with_cache, exact, T={length}"] = (AT_LEAST, 0.5)
        for what in ("check alone", "check adds"):
            targets[f"{what}, checksum, T={length}"] = (AT_MOST, 0.5 if length == 1024 else 0.3)
    for grid, faster in {"resid_pre": (40, 120, 35), "attn_head_out_by_pos": (45, 130, 40)}.items():
        for pair, least in zip("ABC", faster):
            targets[f"grid {grid}, {pair}"] = (AT_LEAST, least)
            targets[f"check adds, grid {grid}, {pair}"] = (AT_MOST, 0.4)
    targets |= {f"grid {grid}, C": (AT_LEAST, 20) for grid in bench_work.GRIDS if grid not in bench_work.HEADLINE}
    return targets | {
        "batched loop, all positions unembedded": (AT_LEAST, 5),
        "sweep, share of the product rate": (AT_LEAST, 0.6),
        "load raw": (AT_LEAST, 8),
        "load processed": (AT_LEAST, 4),
        "peak of load raw": (AT_MOST, 1.2),
        "peak of load processed": (AT_MOST, 2.2),
        "import": (AT_MOST, 0.3),
    }


TARGETS = _targets()


def _judged(name: str, row: Row) -> Row:
    if name in TARGETS:
        kind, limit = TARGETS[name]
        row |= {kind: limit, "met": row["value"] >= limit if kind == AT_LEAST else row["value"] <= limit}
    return row


def compared(name: str, ours: list[float], theirs: list[float], **more: Any) -> Row:
    """Seconds of each round -> how many times faster we were: the median of each round's ratio."""
    if len(ours) != len(theirs):
        raise ValueError(f"[bench] {name}: {len(ours)} of our rounds beside {len(theirs)} of theirs; a ratio is of one round")
    ratios = [b / a for a, b in zip(ours, theirs)]
    row = {"unit": "times", "value": median(ratios), "ours_s": median(ours), "theirs_s": median(theirs), "ours_fastest_s": min(ours), "theirs_fastest_s": min(theirs)}
    return _judged(name, {**row, "ratios": ratios, **more})


def of_rounds(name: str, unit: str, values: list[float], **more: Any) -> Row:
    """The median of a value of each round: a "share", "s" or "weights" (as many times their size)."""
    return _judged(name, {"unit": unit, "value": median(values), "rounds": values, **more})


def added(verified: list[float], unverified: list[float]) -> list[float]:
    """What verification adds to each round, as a share of the unverified time."""
    return [a / b - 1 for a, b in zip(verified, unverified)]


# ---- numbers as text ----


def digits(value: float) -> str:
    """Two significant digits, or all of those before the point."""
    if not math.isfinite(value) or value == 0:
        return str(value)
    decimals = max(0, 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def duration(seconds: float) -> str:
    return f"{digits(seconds)} s" if seconds >= 0.9995 else f"{digits(1000 * seconds)} ms"


def amount(row: Row) -> str:
    value = row["value"]
    return {"times": f"{digits(value)}x", "share": f"{100 * value:.0f} %", "s": duration(value), "weights": f"{digits(value)}x the weights"}[row["unit"]]


def judged(row: Row) -> str:
    """The value; bold where a target is missed, with the target in brackets."""
    if row.get("met", True):
        return amount(row)
    limit = row[AT_LEAST] if AT_LEAST in row else row[AT_MOST]
    return f"**{amount(row)}** ({amount({**row, 'value': limit})})"


def listing(rows: dict[str, Row]) -> str:
    """Every row, a line each. Of possible: what the machine allows, as a share of our time."""
    lines = [f"{'':52} {'lenscpp':>10} {'of possible':>12} {'peer':>10} {'value':>18}  target"]
    for name, row in rows.items():
        ours, theirs = (duration(row[key]) if key in row else "" for key in ("ours_s", "theirs_s"))
        possible = f"{100 * row['share_of_possible']:.0f} %" if "share_of_possible" in row else ""
        target = ""
        if "met" in row:
            word, limit = ("at least", row[AT_LEAST]) if AT_LEAST in row else ("at most", row[AT_MOST])
            target = f"{word} {amount({**row, 'value': limit})}: {'met' if row['met'] else 'MISSED'}"
        lines.append(f"{name:52} {ours:>10} {possible:>12} {theirs:>10} {amount(row):>18}  {target}".rstrip())
    return "\n".join(lines) + "\n"


# ---- the README's table ----


def _table(titles: list[str], lines: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (titles, ["---"] * len(titles), *lines)] + [""]


def _ours(row: Row | None) -> str:
    return f"{duration(row['ours_s'])}, {judged(row)}" if row else MISSING


def _theirs(row: Row | None) -> str:
    return duration(row["theirs_s"]) if row else MISSING


def _value(row: Row | None) -> str:
    return judged(row) if row else MISSING


def _mib(results: Results, *keys: str) -> str:
    """Peaks, of transformer-lens first."""
    found = [results["memory"].get(key) for key in keys]
    return " / ".join(MISSING if peak is None else f"{peak:.0f}" for peak in found)


def _runs(results: Results) -> list[str]:
    rows, lines = results["rows"], []
    for length in TABLE_LENGTHS:
        of = {mode: rows.get(f"run_with_cache, {mode}, T={length}") for mode in MODES}
        if of["off"] is None:
            continue
        peaks = _mib(results, *(f"{kind}, run_with_cache, T={length}" for kind in ("transformer-lens", *MODES)))
        check = [_value(rows.get(f"check {what}, checksum, T={length}")) for what in ("alone", "adds")]
        lines.append([f"{length} tokens", _theirs(of["off"]), *(_ours(of[mode]) for mode in MODES), ", ".join(check), peaks])
    titles = ["run_with_cache of everything", "transformer-lens, unverified", *(f"lenscpp, {text}" for text in MODES.values())]
    return _table([*titles, "checksums: their own time, what they add; share of our forward", "peak memory, MiB, same order"], lines)


def _grids(results: Results) -> list[str]:
    rows, lines = results["rows"], []
    patches = results["n_patches"]
    for grid in bench_work.HEADLINE:
        of = [rows[f"grid {grid}, {pair}"] for pair in bench_work.PAIRS]
        check = ", ".join(_value(rows.get(f"check adds, grid {grid}, {pair}")) for pair in bench_work.PAIRS)
        peaks = _mib(results, f"transformer-lens, grid {grid}", f"verified, grid {grid}")
        (part,) = bench_work.GRIDS[grid]
        name = grid if part.activation == grid else f"{grid} ({part.activation})"
        lines.append([f"{name}, {patches[grid]:,} patches", _theirs(of[-1]), *map(_ours, of), check, peaks])
    for unembedded in ("all positions", "last position"):
        row = rows[f"batched loop, {unembedded} unembedded"]
        lines.append([f"the first, against a loop over `start_at_layer` written by hand, {unembedded} unembedded", _theirs(row), "", "", _ours(row), "", ""])
    others = {name: rows[f"grid {name}, C"] for name in patches if name not in bench_work.HEADLINE and f"grid {name}, C" in rows}
    if others:
        slowest = min(others, key=lambda name: others[name]["value"])
        missed = sum(not row["met"] for row in others.values())
        spread = f"{digits(others[slowest]['value'])}x ({slowest}) to {digits(max(row['value'] for row in others.values()))}x"
        most = f", **{missed} of them below** {amount({**others[slowest], 'value': others[slowest][AT_LEAST]})}" if missed else ""
        theirs = [row["theirs_s"] for row in others.values()]
        lines.append([f"the {len(others)} other functions", f"{duration(min(theirs))} to {duration(max(theirs))}", "", "", spread + most, "", ""])
    names = {"A": "positions 2 and 4 differ", "B": "position 10 differs", "C": "all differ"}
    titles = [f"get_act_patch_..., pairs of {results['pair_length']} tokens", "transformer-lens", *(f"lenscpp, {pair}: {text}" for pair, text in names.items())]
    return _table([*titles, "verifying adds, A, B, C", "peak memory, MiB"], lines)


def _loads(results: Results) -> list[str]:
    rows, lines, weights = results["rows"], [], results["weights_mib"]
    for what in ("raw", "processed"):
        row, peak = rows[f"load {what}"], rows.get(f"peak of load {what}")
        name = f"load {weights:.0f} MiB of safetensors, {what}"
        lines.append([name, duration(row["ours_s"]), _theirs(row), judged(row), _mib(results, f"lenscpp, load {what}", f"transformer-lens, load {what}"), _value(peak)])
    if "import" in rows:
        row = rows["import"]
        lines.append(["import, beyond `import torch`", judged(row), duration(row["theirs_s"]), "", "", ""])
    return _table(["", "lenscpp", "transformer-lens", "", "peak memory, MiB", "ours, of the weights"], lines)


def _limits(results: Results) -> str:
    limits, rows = results["limits"], results["rows"]
    text = (
        f"The machine's own limits, measured in the same run: {limits['packed'] / 1e9:.0f} GFLOP/s with a pre-packed weight (oneDNN, 256 rows), "
        f"{limits['linear'] / 1e9:.0f} with `at::linear`; {limits['copy'] / 1e9:.0f} GB/s copied (read and written)."
    )
    shares = [(f"{length} tokens", rows.get(f"run_with_cache, off, T={length}", {}).get("share_of_possible")) for length in TABLE_LENGTHS]
    shown = [f"{100 * share:.0f} % at {name}" for name, share in shares if share is not None]
    if shown:
        text += f" Of what they allow, an unverified run_with_cache reaches {', '.join(shown)}"
        sweep = rows.get("sweep, share of the product rate")
        text += f"; the products of the unverified sweep (resid_pre, C) run at {judged(sweep)} of the best rate." if sweep else "."
    return text


def _about(results: Results) -> str:
    machine, versions = results["machine"], results["versions"]
    peer = versions["transformer-lens"]["transformer-lens"]
    s = results["shape"]
    shape = "GPT-2 small's shape" if results["kind"] == "full" else f"A quick look at {s['n_layer']} layers of d_model {s['n_embd']}, not GPT-2 small's shape"
    sampled = " and ".join(f"{count} ({grid})" for grid, count in results["sampled"].items())
    whole = [f"{grid}: {duration(row['whole_s'])} where {duration(row['estimated_s'])} had been estimated" for grid, row in results.get("whole", {}).items()]
    return (
        f"{shape}, random weights, float32, {results['threads']} threads of {machine['processor']}; torch {versions['lenscpp']['torch']}, transformer-lens {peer} "
        "without gradients, on the same checkpoint, in turn in one run (`make bench`). Times are medians, ratios medians of each round's ratio: how many times faster "
        f"lenscpp is; others took {100 * machine['others_share']:.0f} % of the processors meanwhile. Every patch costs transformer-lens the same, so its grids are {sampled} patches, drawn anew each round, scaled to all"
        + (f" (made whole once, {'; '.join(whole)})" if whole else "")
        + f". Ours are whole, verified in mode {results['grid_mode']}."
    )


def markdown(results: Results, picture: str | None) -> str:
    """The README's part between the comments. picture: path of the plots, from the README."""
    met = [row["met"] for row in results["rows"].values() if "met" in row]
    lines = [_about(results), "", *_runs(results), *_grids(results), *_loads(results), _limits(results), ""]
    not_measured = f"; {len(TARGETS) - len(met)} were not measured" if len(met) < len(TARGETS) else ""
    lines += [f"{sum(met)} of {len(TARGETS)} targets are met; what misses one is bold, with the target in brackets{not_measured}.", ""]
    if picture:
        lines += [f"![How time and memory grow with tokens, layers and patches]({picture})", ""]
    return "\n".join(lines)


def put_into(text: str, part: str) -> str:
    """The text with what stands between the two comments replaced. ValueError where they are not there once each, in order."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"[bench] needed: {BEGIN.strip()} and {END.strip()}, each once, in this order, on lines of their own")
    head, _, rest = text.partition(BEGIN)
    return head + BEGIN + part + END + rest.partition(END)[2]


def put_into_file(path: Path, part: str) -> None:
    path.write_text(put_into(path.read_text(encoding="utf-8"), part), encoding="utf-8")
