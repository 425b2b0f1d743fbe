"""Grids of patches with labels, tables and pictures. How they are made is in patching/patch_grid.h."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from html import escape
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from . import _inputs, _lenscpp, _metrics, _store, faults

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]

CELL, MOST_CELLS, MOST_NUMBERS = 34, 64, 20  # px a column; columns before cells get narrower; columns with numbers in them
GREY = "#c9c9c9"  # of refused cells
DIVERGING = [[0, "#b2182b"], [0.25, "#f4a582"], [0.5, "#ffffff"], [0.75, "#92c5de"], [1, "#2166ac"]]


def patch_grid(
    model: Any,
    clean: Any,
    corrupted: Any,
    site: str,
    over: Sequence[str] = ("layer", "pos"),
    metric: _metrics.AnyMetric | None = None,
    direction: str = "denoise",
    verify: str | None = None,
    *,
    prepend_bos: bool | None = None,
    padding_side: str | None = None,
    positions: Sequence[int] | None = None,
    max_cells: int | None = None,
    savings: bool = True,
    progress: Callable[[int, int], object] | None = None,
) -> GridResult:
    """Patches one activation at a time from one run into another; every patched run is verified.

    clean, corrupted: a text, texts, token ids ([pos] or [batch, pos]) or a VerifiedCache, of equal shape; several
    prompts are patched together and a cell is the mean over them. Texts of unequal length are padded on padding_side, alike
    in both; a tensor or rectangle of ids beside a padded clean run is padded as that is. site: "resid_pre" "resid_mid" "resid_post"
    "attn_out" "mlp_out" "z" "q" "k" "v" "pattern", or any other hook point that can be edited. over: "layer" and
    axes of the site ("pos"; "head"; of patterns "query" and "key"), in any order; values come in that order.
    metric: lens.LogitDiff(" Mary", " John") and the like, or a function of verified logits, a CPU tensor
    [batch, pos, d_vocab], that returns a number (or one a prompt). direction: "denoise" writes the clean run's
    activation into the corrupted prompt, "noise" the reverse. verify: of the patched runs; "checksum" (the default:
    products by random projections of their rows, all else recomputed), "exact", or "off": then the grid is
    UNVERIFIED, and says so everywhere. positions: those that an axis of positions goes over, negative from the end;
    None is all. max_cells: patches that share a run, at most. savings: compute only the
    layers and positions that a patch changes, and only the logits that the metric reads (all of them, where it is a
    function); False runs every patch as a whole, which moves values by rounding alone. progress(done, cells).

    Raises VerificationFailed when patched runs were refused, with the rest in .partial (refused cells NaN);
    NotVerified for an UnverifiedCache; ValueError, IndexError, TypeError, KeyboardInterrupt.
    """
    inner = getattr(model, "_model", None)
    if not isinstance(inner, _lenscpp.Model):
        raise TypeError(f"[patch_grid] model: needed: a HookedTransformer; found: {_inputs.kind(model)}")
    model._hooked.refuse("patch_grid")
    if metric is None:
        raise TypeError('[patch_grid] metric is missing: lens.LogitDiff(" Mary", " John"), or a function of logits')
    if not isinstance(site, str):
        raise TypeError(f"[patch_grid] a site is a str; found: {_inputs.kind(site)}")
    axes = [over] if isinstance(over, str) else list(over)
    if not all(isinstance(axis, str) for axis in axes):
        raise TypeError(f"[patch_grid] over: needed: names of axes; found: {_inputs.kind(over)}")
    if direction not in ("denoise", "noise"):
        raise ValueError(f'[patch_grid] direction {direction!r}; allowed: "denoise", "noise"')
    if not (verify is None or isinstance(verify, str)):
        raise TypeError(f'[patch_grid] verify: needed: "checksum", "exact" or "off"; found: {_inputs.kind(verify)}')
    if not isinstance(savings, bool):
        raise TypeError(f"[patch_grid] savings: needed: a bool; found: {_inputs.kind(savings)}")
    names = _lenscpp.grid_hooks(inner, _inputs.utf8(site))
    source = _run(model, clean, names if direction == "denoise" else [], prepend_bos, padding_side)
    tokens = source.tokens
    if tokens is None:
        raise ValueError("[patch_grid] the clean run started from a residual; needed: a run from tokens")
    other = corrupted
    if not _is_cache(corrupted):
        other = _inputs.padded_like(source.record.get("spans", []), _inputs.tokens(inner, corrupted, prepend_bos, padding_side), corrupted)
    active = faults._for_run()
    fired: list[tuple[str, str, int]] = []
    try:
        grid = _lenscpp.patch_grid(
            inner,
            source,
            other,
            _metrics.made(metric, model, tokens),
            site=site,
            over=axes,
            direction=direction,
            verify=verify,
            positions=None if positions is None else [_inputs.token_id(p) for p in positions],
            max_cells=_inputs.optional_int("max_cells", max_cells),
            savings=savings,
            progress=progress,
            faults=[injection._spec for injection in active],
            fired=fired,
        )
    finally:
        for injection in active:
            injection.fired += [(name, changed) for fault, name, changed in fired if fault == injection._spec.name]
    return GridResult(grid)


class GridResult:
    """What patches did to a metric, with everything that one needs to judge it. Every tensor read from it is the caller's own."""

    def __init__(self, grid: _lenscpp.Grid) -> None:
        if not isinstance(grid, _lenscpp.Grid):
            raise TypeError("[grid] made by lenscpp.patching.patch_grid")
        self._grid = grid

    @property
    def site(self) -> str:
        """What was patched: "resid_pre", "z", ..."""
        return self._grid.site

    @property
    def over(self) -> tuple[str, ...]:
        """The axes, in the order of the values."""
        return tuple(name for name, _ in self._grid.axes)

    @property
    def labels(self) -> dict[str, list[str]]:
        """Of each axis: layer and head numbers; positions with their token, "10: John", or "10: John/ Mary" where the
        corrupted prompt has another."""
        return dict(self._grid.axes)

    @property
    def direction(self) -> str:
        """ "denoise" (clean into corrupted) or "noise" (corrupted into clean)."""
        return self._grid.direction

    @property
    def values(self) -> torch.Tensor:
        """The metric of each patched run: float64, shaped by the axes; NaN where the run was refused."""
        return self._grid.values()

    @property
    def values_of_prompts(self) -> torch.Tensor:
        """The metric of each prompt alone, the prompts last: float64 [axes..., batch]; NaN where the run was refused.

        One prompt where the metric is a function that returns one number for them all.
        """
        return self._grid.values_of_prompts()

    @property
    def normalized(self) -> torch.Tensor:
        """Values on a scale where the corrupted run is 0 and the clean one 1, in both directions.

        ValueError where the metric does not tell the two apart.
        """
        return self._grid.normalized()

    @property
    def clean(self) -> float:
        """The metric of the clean run."""
        return self._grid.clean

    @property
    def corrupted(self) -> float:
        """The metric of the corrupted run."""
        return self._grid.corrupted

    @property
    def error_bar(self) -> float:
        """How far rounding moves the metric: |device - float64|, the larger one of the two base runs."""
        return self._grid.error_bar

    @property
    def metric(self) -> dict[str, Any]:
        """What was measured."""
        return self._grid.metric

    @property
    def verdict(self) -> _lenscpp.GridVerdict:
        """What the checks of all runs came to."""
        return self._grid.verdict

    @property
    def refused(self) -> torch.Tensor:
        """True where a run was refused: bool, shaped as the values."""
        values = self.values
        mask = torch.zeros(values.numel(), dtype=torch.bool)
        mask[self.verdict.refused_cells] = True
        return mask.reshape(values.shape)

    @property
    def record(self) -> dict[str, Any]:
        """Of the base runs: {"clean": ..., "corrupted": ...}."""
        return {"clean": self._grid.clean_record, "corrupted": self._grid.corrupted_record}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file that lens.load reads (and h5py), sealed with a digest of everything in it.

        A grid with refused cells is saved as INVALID, an unchecked one as UNVERIFIED: lens.load_unverified reads those.
        OSError when it cannot be written; what stood there before stays then.
        """
        self._grid.save(path)

    def to_dataframe(self) -> DataFrame:
        """One row a cell: a column of indices for each axis, then "value" and "refused". ImportError without pandas."""
        pandas = _pandas("to_dataframe")
        values = self.values
        frame = pandas.DataFrame(list(product(*(range(n) for n in values.shape))), columns=list(self.over))
        frame["value"] = values.flatten().numpy()
        frame["refused"] = self.refused.flatten().numpy()
        return frame

    def plot(self, normalized: bool = True) -> Figure:
        """The first axis over the last one; axes in between on a slider. Red lowers and blue raises; white is the
        corrupted run (0) when normalized, else zero; refused cells are grey.

        ValueError where the metric does not tell clean from corrupted: then use normalized=False.
        """
        import plotly.graph_objects as go  # type: ignore[import-untyped]

        values = self.normalized if normalized else self.values
        refused = self.refused
        names, labels = self.over, self.labels
        if values.dim() == 1:
            values, refused, names = values[None], refused[None], ("", *names)
        top, bottom, between = labels.get(names[0], [""]), labels[names[-1]], names[1:-1]
        reach = max([abs(x) for x in values.flatten().tolist() if x == x] + [1.0 if normalized else 1e-12])
        figure = go.Figure()
        picks = list(product(*(range(len(labels[name])) for name in between)))
        for pick in picks:
            at: Any = (slice(None), *pick, slice(None))
            figure.add_trace(self._heatmap(values[at], refused[at], top, bottom, reach, visible=pick == picks[0]))
        if len(picks) > 1:
            figure.update_layout(sliders=[_slider(between, labels, picks)])
        shown = list(range(0, len(bottom), max(1, -(-len(bottom) // MOST_CELLS))))
        figure.update_xaxes(
            title_text=names[-1], tickvals=shown, ticktext=[_short(bottom[i]) for i in shown], tickangle=-60 if names[-1] not in ("layer", "head", "kv_head") else 0
        )
        figure.update_xaxes(automargin=True, showgrid=False, zeroline=False, range=[-0.5, len(bottom) - 0.5])
        figure.update_yaxes(title_text=names[0], tickvals=list(range(len(top))), ticktext=[_short(t) for t in top])
        figure.update_yaxes(automargin=True, showgrid=False, zeroline=False, range=[-0.5, len(top) - 0.5])
        if names[0] != "layer":
            figure.update_yaxes(autorange="reversed", range=None)
        height = 210 + 26 * max(3, min(len(top), MOST_CELLS)) + (70 if len(picks) > 1 else 0)
        figure.update_layout(
            title={"text": self._title(), "font": {"size": 13}, "x": 0.01, "y": 1 - 26 / height, "yanchor": "top"},
            template="plotly_white",
            plot_bgcolor=GREY if bool(refused.any()) else "#ececec",  # lines between cells; what has no value
            width=max(620, 190 + CELL * min(len(bottom), MOST_CELLS)),
            height=height,
            margin={"l": 20, "r": 20, "t": 84, "b": 20},
        )
        return figure

    def _heatmap(self, values: torch.Tensor, refused: torch.Tensor, top: list[str], bottom: list[str], reach: float, visible: bool) -> Any:
        import plotly.graph_objects as go

        rows, lost = values.tolist(), refused.tolist()
        hover = [
            [f"{escape(t)}, {escape(_visible(b))}: {'refused (NaN)' if gone else f'{x:.4g}'}" for x, gone, b in zip(row, bad, bottom)]
            for row, bad, t in zip(rows, lost, top)
        ]
        return go.Heatmap(
            z=[[None if gone else x for x, gone in zip(row, bad)] for row, bad in zip(rows, lost)],
            x=list(range(len(bottom))),
            y=list(range(len(top))),
            zmin=-reach,
            zmax=reach,
            colorscale=DIVERGING,
            colorbar={"thickness": 14},
            text=[["×" if gone else f"{x:.2f}".replace("-0.00", "0.00") for x, gone in zip(row, bad)] for row, bad in zip(rows, lost)],
            texttemplate="%{text}" if len(bottom) <= MOST_NUMBERS else None,
            textfont={"size": 10},
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=True,
            xgap=1,
            ygap=1,
            visible=visible,
        )

    def _title(self) -> str:
        r = self._grid.clean_record
        what = " ".join(str(self.metric.get(k)) for k in ("metric", "name") if self.metric.get(k))
        lost = len(self.verdict.refused_cells)
        marked = f", {lost} of {self.verdict.cells} cells refused (grey)" if lost else ""
        head = f"{self.direction} {self.site} over {', '.join(self.over)}: {what}; clean {self.clean:+.3f}, corrupted {self.corrupted:+.3f}, error bar {self.error_bar:.1e}"
        return f"{escape(head)}<br>{escape(r['model'])}, {escape(r['dtype'])} on {escape(r['device'])}, <b>{self.verdict.status}</b>{marked}"

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(labels)} {name}" for name, labels in self.labels.items())
        return f"<GridResult ({self.verdict.status}) of {self.site}, {shape}: clean {self.clean:.4g}, corrupted {self.corrupted:.4g} ± {self.error_bar:.1e}>"


def _is_cache(value: Any) -> bool:
    if isinstance(value, _lenscpp.UnverifiedCache):
        raise _lenscpp.NotVerified("[patch_grid] needed: tokens, text or a VerifiedCache; found: an UnverifiedCache")
    return isinstance(value, _lenscpp.VerifiedCache)


def _run(model: Any, clean: Any, names: list[str], prepend_bos: bool | None, padding_side: str | None) -> _lenscpp.VerifiedCache:
    """The clean run: as given, or made now, keeping `names`; verified whatever the patched runs are."""
    if _is_cache(clean):
        return clean  # type: ignore[no-any-return]
    # A filter must name something: the smallest tensor there is stands for nothing.
    smallest = [name for name in model.hook_names if name.endswith("hook_scale")][-1:]
    _, cache = model.run_with_cache(clean, names or smallest, prepend_bos=prepend_bos, padding_side=padding_side, verify="exact")
    return cache  # type: ignore[no-any-return]


def _slider(between: Sequence[str], labels: dict[str, list[str]], picks: list[tuple[int, ...]]) -> dict[str, Any]:
    def name(pick: tuple[int, ...]) -> str:
        return escape(", ".join(f"{axis} {_visible(labels[axis][i])}" for axis, i in zip(between, pick)))

    steps = [
        {"label": name(pick), "method": "update", "args": [{"visible": [other == pick for other in picks]}]} for pick in picks
    ]
    return {"steps": steps, "pad": {"t": 60}, "currentvalue": {"prefix": ""}}


def _pandas(what: str) -> Any:
    try:
        import pandas
    except ImportError:
        raise ImportError(f"[grid] {what} needs pandas, which is not installed: pip install pandas") from None
    return pandas


def _visible(text: str) -> str:
    """White space that can be seen."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace("\r", "␍").replace(" ", "␣")


def _short(label: str) -> str:
    """As much of a label as an axis holds, escaped: plotly reads text as HTML."""
    label = _visible(label)
    return escape(label if len(label) <= 18 else label[:17] + "…")




def _load(path: Any, model: _lenscpp.Model | None) -> GridResult:
    grid = GridResult(_lenscpp.load_grid(path))
    wanted = grid.record["clean"]["model_digest"]
    if model is not None and model.digest() != wanted:
        found = f"the model given has {model.digest()}: other weights, processing or dtype"
        raise ValueError(f"[store] {os.fspath(path)!r} is a grid of a model with digest {wanted}; {found}")
    return grid


_store.LOADERS["grid"] = _load
_store.UNVERIFIED_LOADERS["grid"] = lambda path, model: GridResult(_lenscpp.load_grid_unverified(path))
