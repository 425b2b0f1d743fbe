"""Every fault at every site of a model: harmful, refused, located? What it runs is in lens/drill.h."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from . import _inputs, _lenscpp, _pictures, _simulated
from ._grid import _pandas
from ._model import HookedTransformer, _dtype

if TYPE_CHECKING:
    from pandas import DataFrame  # type: ignore[import-untyped]
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]


class DrillReport:
    """What a drill came to. Prints as a table: a row a fault, what was not seen with its size, a summary."""

    def __init__(self, document: dict[str, Any], table: str) -> None:
        self._document, self._table = document, table

    def __str__(self) -> str:
        return self._table

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self._table)}</pre>"

    @property
    def summary(self) -> str:
        return str(self._document["summary"])

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One a fault: runs, fired, harmful, between, harmless, refused, harmful_refused, named, hint."""
        return list(self._document["rows"])

    @property
    def total(self) -> dict[str, Any]:
        """The rows added up."""
        return dict(self._document["total"])

    @property
    def missed(self) -> list[dict[str, Any]]:
        """Runs that were harmful and not refused: none, or the checker has a hole. Runs that the device ended with an
        error have "ended" for their harm."""
        return [run for run in self._document["runs"] if run["harm"] == "harmful" and not run["refused"]]

    def to_dict(self) -> dict[str, Any]:
        """Everything, every run included, as JSON has it."""
        return self._document

    def to_dataframe(self) -> DataFrame:
        """One row a run. ImportError without pandas."""
        return _pandas("to_dataframe").DataFrame(self._document["runs"])

    def plot(self) -> Figure:
        """Faults over sites: the share of the harmful runs that was refused; blank where none was harmful."""
        shares = self._document["map"]
        width = len(shares["sites"])
        rows = [shares["refused"][i * width : (i + 1) * width] for i in range(len(shares["faults"]))]
        values = [[float("nan") if share is None else share for share in row] for row in rows]
        title = escape(f"Fault drill: {self._document['model']} on {self._document['device']}")
        return _pictures.heatmap(values, shares["sites"], shares["faults"], title, zmid=0, x_title="site", value_title="refused")


def _fault(fault: Any, seed: int) -> _lenscpp.FaultSpec:
    name, parameters = fault if isinstance(fault, tuple) and len(fault) == 2 else (fault, {})
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise TypeError(f"[drill] a fault is a name, or (name, parameters); found: {_inputs.kind(fault)}")
    numbers = {str(key): float(value) for key, value in parameters.items()}
    return _lenscpp.FaultSpec(name=name, parameters=numbers, hook=None, layer=None, seed=seed, stage=0)


def drill(
    model: HookedTransformer,
    faults: Sequence[str | tuple[str, Mapping[str, float]]] = (),
    *,
    sites: Sequence[str] = (),
    layers: Sequence[int] = (),
    dtypes: Sequence[Any] = ("float32", "bfloat16", "float16"),
    batches: Sequence[int] = (1, 2),
    lengths: Sequence[int] = (),
    verify: str = "exact",
    sample: int | None = None,
    seed: int = 0,
) -> DrillReport:
    """Every fault at every site, in every dtype and shape, one run each: was it harmful, was it refused, was the first
    wrong tensor named? Many minutes; `sample` takes so many runs of each fault, spread over dtypes and shapes.

    faults: names of lens.faults.catalogue(), or (name, parameters); none means all, those inside of a device on the
    simulated one. sites: hook names with or without their layer, on-demand ones too. layers: negative from the end.
    lengths: none means 1, 15 and as many as the model takes. Tokens are drawn by the seed.

    A fault is harmful when it takes any element of any tensor further from the clean run than 4 times the widest range
    that the clean run and 32 verified runs in other summation orders span at any one element of that tensor (no less
    than 4 units in the element's last place), or the logit difference of the two likeliest tokens further than 4 times
    its own range; harmless when no bit of the run differs; the rest lies between. The checker's opinion of the faulted
    run has no part in that. Raises ValueError, IndexError, TypeError; VerificationFailed when the device gets the clean
    run wrong, or one in another order; KeyboardInterrupt between two runs.
    """
    if not isinstance(model, HookedTransformer):
        raise TypeError(f"[drill] needed: a HookedTransformer; found: {_inputs.kind(model)}")
    model._hooked.refuse("drill")
    for what, given in {"faults": faults, "sites": sites, "dtypes": dtypes}.items():
        if isinstance(given, str):
            raise TypeError(f"[drill] {what} is a sequence; found: a str")
    inside = {name for row in _lenscpp.fault_catalogue() if row["kind"] == "device" for name in (row["id"], row["name"])}
    specs = [_fault(fault, seed) for fault in faults]
    if not specs or any(spec.name in inside for spec in specs):
        _simulated.prepare("simulated")
    document, table = _lenscpp.drill_report(
        model._model,
        faults=specs,
        sites=list(sites),
        layers=list(layers),
        verify=verify,
        dtypes=[_dtype(dtype) for dtype in dtypes],
        batches=list(batches),
        lengths=list(lengths),
        sample=sample,
        seed=seed,
    )
    return DrillReport(document, table)
