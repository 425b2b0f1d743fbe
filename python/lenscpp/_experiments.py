"""Many patching experiments: run into a folder, merged into one file, read a part at a time. What runs them is in
patching/batch_folder.h, what they say together in patching/statistics.h."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import _inputs, _lenscpp, _store, faults
from ._grid import DIVERGING, _pandas, _short

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]
    from xarray import DataArray  # type: ignore[import-not-found, unused-ignore]

Experiments = Iterable[Mapping[str, Any]] | str | os.PathLike[str] | Any

#: what plot() and to_dataframe() can show of a cell
QUANTITIES = (
    "mean", "standard_error", "low", "high", "ratio_of_means", "ratio_low", "ratio_high", "mean_of_ratios",
    "ratio_standard_error", "sign_consistency", "p", "q", "n", "clusters",
)  # fmt: skip


def run_experiments(
    model: Any,
    experiments: Experiments,
    folder: str | os.PathLike[str],
    *,
    sites: Sequence[str | tuple[str, Sequence[str]]] = ("resid_pre", "head_z"),
    direction: str = "denoise",
    verify: str | None = None,
    block: int = 32,
    least_difference: float = 1e-3,
    keep_wrong: bool = False,
    prepend_bos: bool | None = None,
    shard: tuple[int, int] = (1, 1),
    resume: bool = False,
    progress: Callable[[int, int], object] | None = None,
) -> BatchReport:
    """Runs many patching experiments; every patched run is verified, and what is computed is in `folder` at once.

    experiments: dicts, a DataFrame, or the path of a JSON Lines file. Of each: "clean" and "corrupted" (a text or token
    ids, of as many tokens), "answer" and "wrong" (a text that is one token, or its id; several with the metric
    "prob_diff"); and as wished "id", "sites", "positions" ("all", [3, -1], or names that experiments share:
    {"S2": 10, "END": -1}), "template" (experiments of one template are not independent: statistics take them as a
    cluster), "metric" ("logit_diff", "prob_diff", "prob", "log_prob"). sites: of experiments that name none; a site, or
    (site, axes), such as ("z", ("layer", "head", "pos")). direction, verify: as in patch_grid. block: experiments in
    a shard, at most. least_difference: pairs whose |clean - corrupted| is below it are rejected, as are pairs whose
    clean run prefers the wrong answer, unless keep_wrong. prepend_bos: of prompts given as text, None is the model's
    default; positions count that token too. shard: (i, n): only this process's part of the shards.
    resume: go on with what the folder has; exactly what is missing is run, and shards can be added by more
    experiments. progress(done, patches).

    Shards that were refused (INVALID) are kept apart and never merged; the report counts them. Raises ValueError for
    experiments, options or a folder that do not fit, DeviceError, OSError when the disk refuses (what was finished
    before is there), KeyboardInterrupt (likewise).
    """
    inner = checked_model(model, "run_experiments")
    active = faults._for_run()
    report, fired = _lenscpp.run_experiments(
        inner,
        as_json(as_dicts(experiments)),
        options(sites, direction, verify, block, least_difference, keep_wrong, prepend_bos),
        folder,
        resume=bool(resume),
        share=_share(shard),
        progress=progress,
        faults=[injection._spec for injection in active],
    )
    for injection in active:
        injection.fired += [(name, changed) for fault, name, changed in fired if fault == injection._spec.name]
    return BatchReport(os.fspath(folder), report)


class BatchReport(Mapping[str, Any]):
    """What became of a batch: a mapping of counts, and what is left to do."""

    def __init__(self, folder: str, report: dict[str, Any]) -> None:
        self.folder = folder
        self._report = report

    def __getitem__(self, key: str) -> Any:
        return self._report[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._report)

    def __len__(self) -> int:
        return len(self._report)

    @property
    def complete(self) -> bool:
        """Whether every shard of this process's part is there."""
        return bool(self._report["complete"])

    def merge(self, path: str | os.PathLike[str] | None = None, **statistics: Any) -> ExperimentsResult:
        """lens.merge_experiments(folder, path)."""
        return merge_experiments(self.folder, path, **statistics)

    def __repr__(self) -> str:
        lines = [f"<BatchReport of {self.folder}: {self._report['summary']}>"]
        lines += [f"  INVALID {line}" for line in self._report["refusals"]]
        lines += [f"  failed {line}" for line in self._report["failures"]]
        lines += [f"  set aside: {line}" for line in self._report["damaged"]]
        return "\n".join(lines)


def merge_experiments(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    *,
    partial: bool = False,
    resamples: int = 2000,
    permutations: int = 10000,
    false_discovery_rate: float = 0.05,
    seed: int = 0,
) -> ExperimentsResult:
    """The shards of a batch as one file (folder/merged.h5), with statistics. Every byte of every shard is checked.

    partial: also when shards are missing; the file says which. resamples: of the bootstrap over templates
    (experiments without any are their own). permutations: of signs, for the tests. Raises ValueError when shards are
    missing or were refused, NotVerified naming a shard that is not what was written, OSError.
    """
    out = Path(os.fsdecode(folder)) / "merged.h5" if path is None else path
    _lenscpp.merge_batch(folder, out, partial, resamples, permutations, false_discovery_rate, seed)
    with open(os.fspath(Path(os.fsdecode(folder)) / "batch.json"), "rb") as plan:
        verified = json.load(plan)["identity"]["verify"] != "off"
    return ExperimentsResult(_lenscpp.load_merged(out) if verified else _lenscpp.load_merged_unverified(out))


class ExperimentsResult(Mapping[str, "ExperimentGrid"]):
    """A merged batch: a mapping of grids. Values stay in the file until they are asked for; each part that is read is
    checked. Its rows stand in the order of the shards: `index` says which experiment each is.

    result["z"] is what was found at a site: an ExperimentGrid. result.n: experiments."""

    def __init__(self, merged: _lenscpp.MergedFile) -> None:
        if not isinstance(merged, _lenscpp.MergedFile):
            raise TypeError("[experiments] made by lenscpp.merge_experiments and lenscpp.load")
        self._merged = merged
        self._about: dict[str, Any] = merged.about

    @property
    def n(self) -> int:
        """Experiments: rows of every grid."""
        return self._merged.n

    @property
    def error_bar(self) -> float:
        """How far rounding moves the metric: the largest |device - float64| of the runs of one pair of each shard."""
        return float(self._about["error_bar"])

    @property
    def refused(self) -> list[dict[str, str]]:
        """Of the missing shards those that were INVALID: name, first_failure."""
        return self._about["refused"]  # type: ignore[no-any-return]

    @property
    def status(self) -> str:
        """ "VERIFIED", or "UNVERIFIED" where verification was off."""
        return self._merged.status

    @property
    def verdict(self) -> dict[str, Any]:
        """What the checks of all runs came to."""
        return self._about["verdict"]  # type: ignore[no-any-return]

    @property
    def identity(self) -> dict[str, Any]:
        """The model's digest, and the options that the values depend on."""
        return self._about["identity"]  # type: ignore[no-any-return]

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """Of each shard: device, host, versions, time, verdict."""
        return self._about["provenance"]  # type: ignore[no-any-return]

    @property
    def rejected(self) -> list[dict[str, str]]:
        """Experiments that are not among the values: id, reason, what."""
        return self._about["rejected"]  # type: ignore[no-any-return]

    @property
    def reasons(self) -> dict[str, int]:
        """How many were rejected, by reason."""
        return self._about["reasons"]  # type: ignore[no-any-return]

    @property
    def missing(self) -> list[str]:
        """Shards that were not there when it was merged (partial=True)."""
        return self._about["missing"]  # type: ignore[no-any-return]

    @property
    def clean(self) -> torch.Tensor:
        """The metric of each clean run: float64 [n]."""
        return self._merged.clean()

    @property
    def corrupted(self) -> torch.Tensor:
        """The metric of each corrupted run: float64 [n]."""
        return self._merged.corrupted()

    @property
    def index(self) -> torch.Tensor:
        """The place of each row among the experiments that were given: int64 [n]. Rows stand by shard."""
        return self._merged.index()

    def experiments(self, begin: int = 0, end: int | None = None) -> list[dict[str, Any]]:
        """Rows begin to end as dicts: id, index, template, and the prompts as token ids."""
        return self._merged.experiments(begin, self.n if end is None else end)

    def __len__(self) -> int:
        return len(self._merged.grids)

    def __getitem__(self, site: str) -> ExperimentGrid:
        """A grid by its key, or by its site where that says which. ValueError naming what there is."""
        return ExperimentGrid(self._merged, self._merged.key(site))

    def __contains__(self, site: object) -> bool:
        try:
            return isinstance(site, str) and bool(self._merged.key(site))
        except ValueError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(key for key, _ in self._merged.grids)

    def to_dataframe(self) -> DataFrame:
        """A row an experiment: id, index, template, metric, clean, corrupted. ImportError without pandas."""
        pandas = _pandas("to_dataframe")
        rows = self.experiments()
        frame = pandas.DataFrame({key: [row[key] for row in rows] for key in ("id", "index", "template", "metric")})
        frame["clean"], frame["corrupted"] = self.clean.numpy(), self.corrupted.numpy()
        return frame

    def plot(self, site: str | None = None, quantity: str = "ratio_of_means") -> Figure:
        """self[site].plot(quantity), of the first grid where no site is given."""
        return self[next(iter(self)) if site is None else site].plot(quantity)

    def __repr__(self) -> str:
        out = f", {len(self.rejected)} rejected" if self.rejected else ""
        lost = f", {len(self.missing)} shards missing" if self.missing else ""
        return f"<ExperimentsResult ({self.status}) of {self.n} experiments{out}{lost}: {', '.join(self)}>"


class ExperimentGrid:
    """One site of a merged batch: a row an experiment, float64 [n, axes...]; NaN where an experiment has no such cell.

    grid[10:20] reads those rows, and checks them; len(grid), grid.shape and grid.ndim are those of all. For dask and
    xarray: to_xarray()."""

    def __init__(self, merged: _lenscpp.MergedFile, key: str) -> None:
        self._merged = merged
        self.key = key

    @property
    def labels(self) -> dict[str, list[str]]:
        """Of each axis: layer and head numbers; positions by their names or numbers."""
        return dict(dict(self._merged.grids)[self.key])

    @property
    def over(self) -> tuple[str, ...]:
        """The axes, in the order of the values."""
        return tuple(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._merged.n, *(len(labels) for labels in self.labels.values()))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __len__(self) -> int:
        return self._merged.n

    def __getitem__(self, rows: Any) -> torch.Tensor:
        """The metric of the patched runs, of one row, a slice of rows, or rows and then what torch takes: grid[:100, 3].

        Reads the shards that the rows are in, and nothing else. IndexError for rows that are not there."""
        first, *rest = rows if isinstance(rows, tuple) else (rows,)
        if first is None or not (isinstance(first, slice) or hasattr(first, "__index__")):
            raise TypeError(f"[experiments] rows: needed: an int or a slice (grid.values takes what torch takes); found: {_inputs.kind(first)}")
        if isinstance(first, slice):
            begin, end, step = first.indices(len(self))
            span = range(begin, end, step)
            low, high = (min(span), max(span) + 1) if len(span) else (0, 0)
            values = self._merged.rows(self.key, low, high)
            values = values[torch.tensor([i - low for i in span], dtype=torch.int64)]
            return values[(slice(None), *rest)] if rest else values
        number = operator.index(first)
        if not -len(self) <= number < len(self):
            raise IndexError(f"[experiments] row {number} out of range: there are {len(self)}")
        row = self._merged.rows(self.key, number % len(self), number % len(self) + 1)[0]
        return row[tuple(rest)] if rest else row

    @property
    def values(self) -> torch.Tensor:
        """All rows: float64 [n, axes...]."""
        return self[:]

    @property
    def normalized(self) -> torch.Tensor:
        """All rows where the corrupted run is 0 and the clean one 1, each experiment by its own: float64 [n, axes...]."""
        one = (len(self), *(1 for _ in self.over))
        clean, corrupted = self._merged.clean().reshape(one), self._merged.corrupted().reshape(one)
        return (self.values - corrupted) / (clean - corrupted)

    @property
    def statistics(self) -> dict[str, torch.Tensor]:
        """What the experiments say together: a tensor [axes...] a quantity (patching/statistics.h says what each is)."""
        found = self._merged.statistics(self.key)
        return {name: torch.tensor(_numbers(found[name]), dtype=torch.float64).reshape(self.shape[1:]) for name in QUANTITIES}

    @property
    def stability(self) -> float:
        """Mean Jaccard index of the cells with the largest effects and those of resampled data."""
        return float(_numbers([self._merged.statistics(self.key)["stability"]])[0])

    @property
    def top(self) -> list[dict[str, Any]]:
        """Cells that differ from no effect at the false discovery rate, the largest mean effect first, ten at most: axes
        and quantities. Effects within the error bar are never among them."""
        found = self._merged.statistics(self.key)
        cells = list(product(*self.labels.values()))
        return [dict(zip(self.over, cells[cell])) | {name: found[name][cell] for name in QUANTITIES} for cell in found["top"]]

    def to_dataframe(self) -> DataFrame:
        """A row a cell: its axes, and the statistics. ImportError without pandas."""
        pandas = _pandas("to_dataframe")
        frame = pandas.DataFrame(list(product(*self._coordinates())), columns=list(self.over))
        for name, values in self.statistics.items():
            frame[name] = values.flatten().numpy()
        for name in ("n", "clusters"):
            frame[name] = frame[name].astype("int64")
        return frame

    def to_long_dataframe(self, begin: int = 0, end: int | None = None) -> DataFrame:
        """A row a cell of each experiment of rows begin to end: id, the axes, value, and clean and corrupted beside it."""
        pandas = _pandas("to_long_dataframe")
        stop = len(self) if end is None else end
        rows = self._merged.experiments(begin, stop)
        cells = list(product(*self._coordinates()))
        frame = pandas.DataFrame([(row["id"], row["template"], *cell) for row in rows for cell in cells], columns=["id", "template", *self.over])
        frame["value"] = self._merged.rows(self.key, begin, stop).flatten().numpy()
        for name, column in (("clean", self._merged.clean()), ("corrupted", self._merged.corrupted())):
            frame[name] = column[begin:stop].repeat_interleave(len(cells)).numpy()
        return frame

    def to_xarray(self) -> DataArray:
        """Labelled [experiment, axes...]; with dask installed it reads the file when it is computed, else at once.

        ImportError without xarray."""
        try:
            import xarray
        except ImportError:
            raise ImportError("[experiments] to_xarray needs xarray, which is not installed: pip install xarray") from None
        rows = self._merged.experiments(0, len(self))
        data: Any
        try:
            import dask.array

            data = dask.array.from_array(_Numpy(self), chunks=(min(len(self), 1024), *self.shape[1:]))
        except ImportError:
            data = self.values.numpy()
        coords = {"experiment": [row["id"] for row in rows], "template": ("experiment", [row["template"] for row in rows])}
        coords |= {"clean": ("experiment", self._merged.clean().numpy()), "corrupted": ("experiment", self._merged.corrupted().numpy())}
        identity = self._merged.about["identity"]
        attributes = {"status": self._merged.status, "direction": identity["direction"], "model_digest": identity["model_digest"]}
        return xarray.DataArray(
            data, dims=("experiment", *self.over), coords={**coords, **dict(zip(self.over, self._coordinates()))}, name=self.key, attrs=attributes
        )

    def _coordinates(self) -> list[list[str] | list[int]]:
        """Labels; numbers where all of an axis are."""
        return [[int(label) for label in labels] if all(label.isdecimal() for label in labels) else labels for labels in self.labels.values()]

    def plot(self, quantity: str = "ratio_of_means") -> Figure:
        """The first axis over the last one, axes between on a slider; errors and tests in the hover text. Cells that
        differ from no effect at the false discovery rate have a star."""
        import plotly.graph_objects as go  # type: ignore[import-untyped]

        if quantity not in QUANTITIES:
            raise ValueError(f"[experiments] quantity {quantity!r}; allowed: {', '.join(QUANTITIES)}")
        statistics, names, labels = self.statistics, self.over, self.labels
        found = self._merged.statistics(self.key)["options"]
        if len(names) == 1:
            statistics = {name: values[None] for name, values in statistics.items()}
            names, labels = ("", *names), {"": [""], **labels}
        shown = statistics[quantity]
        finite = [abs(x) for x in shown.flatten().tolist() if x == x]
        reach = max([1.0 if quantity.endswith("_of_means") else 1e-12, *finite])
        top, bottom, between = labels[names[0]], labels[names[-1]], names[1:-1]
        figure = go.Figure()
        picks = list(product(*(range(len(labels[name])) for name in between)))
        for pick in picks:
            at: Any = (slice(None), *pick, slice(None))
            cells = {name: values[at].tolist() for name, values in statistics.items()}
            figure.add_trace(_heatmap(cells, quantity, found["false_discovery_rate"], found["error_bar"], top, bottom, reach, visible=pick == picks[0]))
        if len(picks) > 1:
            steps = [
                {"label": escape(", ".join(f"{name} {labels[name][i]}" for name, i in zip(between, pick))),
                 "method": "update", "args": [{"visible": [other == pick for other in picks]}]}
                for pick in picks
            ]  # fmt: skip
            figure.update_layout(sliders=[{"steps": steps, "pad": {"t": 60}}])
        figure.update_xaxes(title_text=names[-1], tickvals=list(range(len(bottom))), ticktext=[_short(b) for b in bottom], range=[-0.5, len(bottom) - 0.5])
        figure.update_yaxes(title_text=names[0], tickvals=list(range(len(top))), ticktext=[_short(t) for t in top], range=[-0.5, len(top) - 0.5])
        figure.update_layout(
            title={"text": self._title(quantity), "font": {"size": 13}, "x": 0.01},
            template="plotly_white",
            plot_bgcolor="#ececec",
            width=max(620, 190 + 44 * min(len(bottom), 64)),
            height=230 + 26 * max(3, min(len(top), 64)) + (70 if len(picks) > 1 else 0),
            margin={"l": 20, "r": 20, "t": 84, "b": 20},
        )
        return figure

    def _title(self, quantity: str) -> str:
        found = self._merged.statistics(self.key)
        direction = self._merged.about["identity"]["direction"]
        head = f"{direction} {self.key.split('_by_')[0]}: {quantity.replace('_', ' ')} over {len(self)} experiments"
        rate = found["options"]["false_discovery_rate"]
        return f"{escape(head)}<br>{found['significant']} of {len(found['n'])} cells differ from no effect (*, rate {rate}), <b>{self._merged.status}</b>"

    def __repr__(self) -> str:
        shape = " x ".join(f"{len(labels)} {name}" for name, labels in self.labels.items())
        return f"<ExperimentGrid ({self._merged.status}) {self.key}: {len(self)} experiments, {shape}>"


class ShardResult:
    """A shard of a batch as it lies in its folder."""

    def __init__(self, shard: _lenscpp.ShardFile) -> None:
        self._shard = shard

    @property
    def status(self) -> str:
        return self._shard.status

    @property
    def experiments(self) -> list[dict[str, Any]]:
        """A row of every tensor each."""
        return self._shard.experiments

    @property
    def rejected(self) -> list[dict[str, str]]:
        return self._shard.rejected

    @property
    def verdict(self) -> dict[str, Any]:
        """What the checks of its runs came to."""
        return self._shard.verdict

    @property
    def provenance(self) -> dict[str, Any]:
        """Device, host, versions, time."""
        return self._shard.provenance

    @property
    def clean(self) -> torch.Tensor:
        """float64 [n]"""
        return self._shard.clean()

    @property
    def corrupted(self) -> torch.Tensor:
        """float64 [n]"""
        return self._shard.corrupted()

    def keys(self) -> list[str]:
        return [key for key, _ in self._shard.grids]

    def __getitem__(self, key: str) -> torch.Tensor:
        """float64 [n, axes...]"""
        return self._shard.values(key)

    def __len__(self) -> int:
        return self._shard.n

    def __repr__(self) -> str:
        return f"<ShardResult ({self.status}) {self._shard.name[:12]}: {len(self)} experiments, {', '.join(self.keys())}>"


class _Numpy:
    """Rows as numpy arrays: what dask asks for. Opens the file anew in another process."""

    def __init__(self, grid: ExperimentGrid) -> None:
        import numpy

        self._grid = grid
        self.shape, self.ndim, self.dtype = grid.shape, grid.ndim, numpy.dtype("float64")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (os.path.abspath(self._grid._merged.path), self._grid.key, self._grid._merged.status == "VERIFIED")

    def __getitem__(self, rows: Any) -> Any:
        return self._grid[rows].numpy()


def _reopened(path: str, key: str, verified: bool) -> _Numpy:
    return _Numpy(ExperimentGrid(_lenscpp.load_merged(path) if verified else _lenscpp.load_merged_unverified(path), key))


def as_json(experiments: list[dict[str, Any]]) -> str:
    """What C++ reads; an experiment that is no JSON is named."""
    texts = []
    for number, one in enumerate(experiments):
        try:
            text = json.dumps(one, allow_nan=False)
            text.encode()
            json.dumps(one, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise ValueError(f"[experiments] experiment {number} ({one.get('id', 'without an id')!r}): {error}") from None
        texts.append(text)
    return f"[{','.join(texts)}]"


def as_dicts(experiments: Experiments) -> list[dict[str, Any]]:
    """Of a file, a DataFrame or dicts; what C++ reads as JSON."""
    if isinstance(experiments, (str, os.PathLike)):
        return _lenscpp.read_experiments(experiments)
    if hasattr(experiments, "to_dict") and hasattr(experiments, "columns"):
        rows = experiments.to_dict("records")
        return [{key: _plain(value) for key, value in row.items() if not _is_missing(value)} for row in rows]
    if isinstance(experiments, Mapping) or not isinstance(experiments, Iterable):
        raise TypeError(f"[experiments] needed: dicts, a DataFrame or a path; found: {_inputs.kind(experiments)}")
    result = []
    for number, one in enumerate(experiments):
        if not isinstance(one, Mapping):
            raise TypeError(f"[experiments] experiment {number}: needed: a dict; found: {_inputs.kind(one)}")
        result.append({key: _plain(value) for key, value in one.items()})
    return result


def options(
    sites: Any, direction: str, verify: str | None, block: int, least_difference: float, keep_wrong: bool, prepend_bos: bool | None
) -> dict[str, Any]:
    """What C++ reads as BatchOptions."""
    named = [_site(site) for site in ([sites] if isinstance(sites, str) else sites or [])]
    if not named:
        raise ValueError("[experiments] sites: none is named")
    size = _inputs.optional_int("block", block)
    if size is None or not 1 <= size < 2**31:
        raise ValueError(f"[experiments] block {block}; allowed: 1 experiment and more")
    for word in (direction, *([] if verify is None else [verify])):
        if not isinstance(word, str):
            raise TypeError(f"[experiments] direction and verify are texts; found: {_inputs.kind(word)}")
    _inputs.optional_bool("prepend_bos", prepend_bos)
    return {
        "sites": named,
        "direction": direction,
        "verify": verify,
        "block": size,
        "least_difference": float(least_difference),
        "keep_wrong": bool(keep_wrong),
        "prepend_bos": prepend_bos,
    }


def checked_model(model: Any, where: str) -> _lenscpp.Model:
    inner = getattr(model, "_model", None)
    if not isinstance(inner, _lenscpp.Model):
        raise TypeError(f"[{where}] model: needed: a HookedTransformer; found: {_inputs.kind(model)}")
    model._hooked.refuse(where)
    return inner


def _site(site: Any) -> tuple[str, list[str]]:
    """Of "z", ("z", axes) and {"site": "z", "over": axes}."""
    if isinstance(site, str):
        return site, []
    if isinstance(site, Mapping) and set(site) == {"site", "over"}:
        site = (site["site"], site["over"])
    if isinstance(site, (tuple, list)) and len(site) == 2 and isinstance(site[0], str) and isinstance(site[1], (tuple, list)) and all(isinstance(axis, str) for axis in site[1]):
        return site[0], list(site[1])
    raise TypeError(f'[experiments] sites: needed: "z", ("z", ("layer", "head", "pos")) or {{"site": ..., "over": ...}}; found: {_inputs.kind(site)}')


def _share(shard: tuple[int, int]) -> tuple[int, int]:
    if not (isinstance(shard, (tuple, list)) and len(shard) == 2):
        raise TypeError(f"[experiments] shard: needed: (i, n); found: {_inputs.kind(shard)}")
    index, count = (_inputs.optional_int("shard", part) for part in shard)
    assert index is not None and count is not None
    return index, count


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _plain(value: Any) -> Any:
    """Tensors and numpy's numbers as Python's."""
    if isinstance(value, torch.Tensor) or _inputs.is_numpy(value):
        return value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, Mapping) else value


def _numbers(values: list[Any]) -> list[float]:
    return [float("nan") if value is None else float(value) for value in values]


def _heatmap(cells: dict[str, list[list[float]]], quantity: str, rate: float, error_bar: float, top: list[str], bottom: list[str], reach: float, visible: bool) -> Any:
    import plotly.graph_objects as go

    def hover(row: int, column: int) -> str:
        c = {name: values[row][column] for name, values in cells.items()}
        return (
            f"{escape(top[row])}, {escape(bottom[column])}: n {c['n']:.0f}<br>mean effect {c['mean']:.4g} ± {c['standard_error']:.2g} [{c['low']:.4g}, {c['high']:.4g}]"
            f"<br>ratio of means {c['ratio_of_means']:.4g} [{c['ratio_low']:.4g}, {c['ratio_high']:.4g}], mean of ratios {c['mean_of_ratios']:.4g} ± {c['ratio_standard_error']:.2g}"
            f"<br>same sign {100 * c['sign_consistency']:.0f} %, p {c['p']:.2g}, q {c['q']:.2g}"
        )

    def text(row: int, column: int) -> str:
        value = cells[quantity][row][column]
        mark = "*" if cells["q"][row][column] <= rate and abs(cells["mean"][row][column]) > error_bar else ""
        return "" if value != value else f"{value:.2f}".replace("-0.00", "0.00") + mark

    rows, columns = range(len(top)), range(len(bottom))
    return go.Heatmap(
        z=[[None if x != x else x for x in row] for row in cells[quantity]],
        x=list(columns),
        y=list(rows),
        zmin=-reach,
        zmax=reach,
        colorscale=DIVERGING,
        colorbar={"thickness": 14},
        text=[[text(i, j) for j in columns] for i in rows],
        texttemplate="%{text}" if len(bottom) <= 20 else None,
        textfont={"size": 10},
        customdata=[[hover(i, j) for j in columns] for i in rows],
        hovertemplate="%{customdata}<extra></extra>",
        xgap=1,
        ygap=1,
        visible=visible,
    )


_store.LOADERS["batch"] = lambda path, model: ExperimentsResult(_lenscpp.load_merged(path))
_store.UNVERIFIED_LOADERS["batch"] = lambda path, model: ExperimentsResult(_lenscpp.load_merged_unverified(path))
_store.LOADERS["shard"] = lambda path, model: ShardResult(_lenscpp.load_shard(path))
_store.UNVERIFIED_LOADERS["shard"] = lambda path, model: ShardResult(_lenscpp.load_shard_unverified(path))
