"""Pictures that analyses share: labels of tokens, titles, heat maps, bars. Plotly is imported when one is drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from . import _lenscpp

if TYPE_CHECKING:
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]

CELL, MOST_CELLS = 62, 64  # px a position; beyond so many positions, cells get narrower and lose their text
DIVERGING = [[0, "#b2182b"], [0.25, "#ef9a7a"], [0.5, "#ffffff"], [0.75, "#7fb6d9"], [1, "#2166ac"]]
SEQUENTIAL = [[0, "#ffffff"], [1, "#2166ac"]]
POSITIVE, NEGATIVE = "#2166ac", "#b2182b"
WIDEST, TALLEST = 1400, 1000  # px of a heat map's cells
BLANK = "#e4e4e4"  # where there is no value


def visible(token: str) -> str:
    """White space that can be seen: a space is an open box, a line break an arrow."""
    return token.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍").replace(" ", "␣") or "∅"


def short(token: str, most: int = 9) -> str:
    """As much of a token as a label holds, escaped: plotly reads text as HTML."""
    token = visible(token)
    return escape(token if len(token) <= most else token[: most - 1] + "…")


def token_text(cache: _lenscpp.VerifiedCache, token: int) -> str:
    """What a token says, or its id where nothing tells."""
    tokenizer = cache.tokenizer
    try:
        return str(token) if tokenizer is None else tokenizer.decode([token])
    except ValueError:  # a vocabulary padded beyond the tokenizer's
        return str(token)


def prompt(cache: _lenscpp.VerifiedCache, batch: int, positions: Sequence[int]) -> list[str]:
    """The tokens of a prompt at some positions of the run; their numbers where it started from a residual."""
    tokens = cache.tokens
    if tokens is None:
        return [str(i) for i in positions]
    row = tokens[batch].tolist()
    return [token_text(cache, row[i]) for i in positions]


def title(what: str, cache: _lenscpp.VerifiedCache) -> str:
    """Two lines of HTML: `what` (plain text), and which run it shows, with the verdict."""
    record = cache.record
    run = f"{record['model']}, {record['dtype']} on {record['device']}, {cache.verdict.status}"
    return f"{escape(what)}<br><sup>{escape(run)}</sup>"


def ticks(labels: Sequence[str], px: float, least: float = 13) -> dict[str, Any]:
    """Tick labels (escaped, shortened), every so many that they do not touch at `px` a label."""
    every = max(1, math.ceil(least / px))
    shown = list(range(0, len(labels), every))
    return {"tickvals": shown, "ticktext": [short(labels[i], 14) for i in shown]}


def heatmap(
    values: Any,
    x_labels: Sequence[str],
    y_labels: Sequence[str],
    title: str,
    zmid: float | None = 0,
    *,
    x_title: str = "",
    y_title: str = "",
    value_title: str = "",
    first_row_on_top: bool = True,
) -> Figure:
    """Values [y, x] as colours, red below and blue above `zmid` (None: white at the least, blue at the most).

    Labels are plain text, `title` is HTML (see title()). NaN and None are left blank. Cells show their number where
    there is room; hovering shows it always.
    """
    import plotly.graph_objects as go  # type: ignore[import-untyped]

    rows = [[_number(v) for v in row] for row in (values.tolist() if hasattr(values, "tolist") else values)]
    finite = [v for row in rows for v in row if v is not None]
    far = max((abs(v - (zmid or 0)) for v in finite), default=0) or 1
    low, high = (min(finite, default=0), max(finite, default=1)) if zmid is None else (zmid - far, zmid + far)
    n_x, n_y = len(x_labels), len(y_labels)
    width, height = min(46.0, WIDEST / n_x), max(min(26.0, TALLEST / n_y), 3.0)
    with_text = width >= 36 and height >= 14
    figure = go.Figure(
        go.Heatmap(
            z=rows,
            x=list(range(n_x)),
            y=list(range(n_y)),
            zmin=low,
            zmax=high if high > low else low + 1,
            colorscale=SEQUENTIAL if zmid is None else DIVERGING,
            colorbar={"title": {"text": escape(value_title)}, "thickness": 14},
            text=[["" if v is None else number_text(v) for v in row] for row in rows],
            texttemplate="%{text}" if with_text else None,
            textfont={"size": 10},
            customdata=[
                [f"{escape(visible(y))}, {escape(visible(x))}<br>{'no value' if v is None else f'{v:+.4g}'}" for x, v in zip(x_labels, row)]
                for y, row in zip(y_labels, rows)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=True,
            xgap=1 if width > 8 else 0,
            ygap=1 if height > 8 else 0,
        )
    )
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        template="plotly_white",
        plot_bgcolor=BLANK,
        width=max(560, 190 + int(width * n_x)),
        height=190 + int(height * n_y),
        margin={"l": 20, "r": 20, "t": 55 + 16 * title.count("<br>"), "b": 20},
    )
    x_ticks = ticks(x_labels, width)
    straight = width >= 36 and max((len(t) for t in x_ticks["ticktext"]), default=0) <= 5
    figure.update_xaxes(title_text=escape(x_title), tickangle=0 if straight else -60, automargin=True, showgrid=False, zeroline=False, **x_ticks)
    figure.update_yaxes(
        title_text=escape(y_title),
        automargin=True,
        showgrid=False,
        zeroline=False,
        autorange="reversed" if first_row_on_top else True,
        **ticks(y_labels, height, least=14),
    )
    return figure


def bars(values: Any, labels: Sequence[str], title: str, value_title: str = "") -> Figure:
    """One bar a label, blue above zero and red below; numbers on the bars where there is room."""
    import plotly.graph_objects as go

    numbers = [float(v) for v in values]
    px = max(14.0, min(44.0, WIDEST / max(len(numbers), 1)))
    figure = go.Figure(
        go.Bar(
            x=list(range(len(numbers))),
            y=numbers,
            marker={"color": [POSITIVE if v >= 0 else NEGATIVE for v in numbers]},
            text=[number_text(v) for v in numbers] if px >= 34 else None,
            textposition="outside",
            textfont={"size": 10},
            cliponaxis=False,
            customdata=[f"{escape(visible(label))}<br>{v:+.4g}" for label, v in zip(labels, numbers)],
            hovertemplate="%{customdata}<extra></extra>",
        )
    )
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        template="plotly_white",
        width=max(620, 140 + int(px * len(numbers))),
        height=440,
        margin={"l": 20, "r": 20, "t": 70, "b": 20},
        bargap=0.25,
    )
    figure.update_xaxes(tickangle=-60, automargin=True, showgrid=False, zeroline=False, **ticks(labels, px))
    figure.update_yaxes(title_text=escape(value_title), automargin=True, zerolinecolor="#888")
    return figure


def number_text(value: float) -> str:
    """Three digits at most, no sign of zero."""
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:.0f}"
    return text.replace("-", "−") if float(text) else "0"


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
