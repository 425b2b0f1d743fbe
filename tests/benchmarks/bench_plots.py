"""How time and memory grow with tokens, layers and patches: growth.html, and growth.png where chromium is installed."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import bench_work
import common

COLOURS = {"transformer-lens": "#7f7f7f", "off": "#0072b2", "checksum": "#009e73", "exact": "#d55e00", "verified": "#cc79a7"}
NAMES = {
    "transformer-lens": "transformer-lens, unverified",
    "off": "lenscpp, unverified",
    "checksum": "verified by checksums",
    "exact": "verified exactly",
    "verified": "verified grid",
}
DASHES = dict(zip(bench_work.HEADLINE, ("solid", "dot")))


def _ticks(values: list[float]) -> list[float]:
    """Of a logarithmic axis, a decade below and above included: 1, 2, 5, or over more than two decades 1 alone."""
    positive = [value for value in values if value > 0]
    first, last = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return [float(f"{digit}e{decade}") for decade in range(first, last + 1) for digit in ((1, 2, 5) if last - first <= 2 else (1,))]


def figure(growth: list[dict], growth_length: int):
    """Seconds above, MiB below, over logarithmic axes."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    layers = [p["at"] for p in growth if p["axis"] == "layers"]
    columns = {
        "tokens": ("run_with_cache of everything", "tokens", ("tokens",)),
        "layers": (f"the same, {growth_length} tokens", "layers", ("layers",)),
        "patches": ("grids: resid_pre (line), z (dots)", f"patches (models of {min(layers)} to {max(layers)} layers)", bench_work.HEADLINE),
    }
    drawn = make_subplots(2, 3, shared_xaxes="columns", horizontal_spacing=0.06, vertical_spacing=0.06, subplot_titles=[title for title, _, _ in columns.values()])
    named = set()
    for column, (_, unit, axes) in enumerate(columns.values(), 1):
        for axis in axes:
            for kind in NAMES:
                points = sorted((p for p in growth if (p["axis"], p["kind"]) == (axis, kind)), key=lambda p: p["at"])
                for row, key in enumerate(("s", "peak_mib"), 1):
                    line = go.Scatter(
                        x=[p["at"] for p in points], y=[p[key] for p in points], name=NAMES[kind], legendgroup=kind, mode="lines+markers",
                        line={"color": COLOURS[kind], "dash": DASHES.get(axis, "solid")}, showlegend=bool(points) and kind not in named,
                    )  # fmt: skip
                    named |= {kind} if points else set()
                    drawn.add_trace(line, row, column)
        ticks = sorted({p["at"] for p in growth if p["axis"] in axes})
        drawn.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{tick:,}" for tick in ticks], tickangle=-45, col=column)
        drawn.update_xaxes(title_text=unit, row=2, col=column)
        for row, key in enumerate(("s", "peak_mib"), 1):
            marks = _ticks([p[key] for p in growth if p["axis"] in axes])
            drawn.update_yaxes(type="log", tickvals=marks, ticktext=[f"{mark:,g}" for mark in marks], row=row, col=column)
    drawn.update_annotations(font_size=14)
    drawn.update_yaxes(title_text="seconds", row=1, col=1)
    drawn.update_yaxes(title_text="peak memory, MiB", row=2, col=1)
    drawn.update_layout(template="plotly_white", width=1150, height=640, margin={"l": 70, "r": 20, "t": 40, "b": 110}, legend={"orientation": "h", "y": -0.16})
    return drawn


def draw(results: dict, folder: Path) -> Path | None:
    """Writes the plots; the path of the PNG, None where there is no chromium to draw it."""
    sys.path.insert(0, str(common.ROOT / "notebooks"))
    from make_pictures import chromium, screenshot

    drawn = figure(results["growth"], results["growth_length"])
    (folder / "growth.html").write_text(drawn.to_html(include_plotlyjs=True), encoding="utf-8")
    if chromium() is None:
        return None
    png = folder / "growth.png"
    screenshot(drawn, png)
    return png
