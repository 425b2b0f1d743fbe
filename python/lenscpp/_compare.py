"""One prompt on several devices, side by side. What it runs is in lens/compare.h."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from . import _inputs, _lenscpp, faults
from ._model import MODELS, HookedTransformer, _device, _dtype


@dataclass(frozen=True)
class CompareRow:
    """One device in one dtype. Its numbers are read from its logits whether they were verified or not: this is
    the one place where what a verdict refuses can be seen, beside that verdict."""

    device: str
    dtype: str
    fault: str  #: what was injected; empty for the device as it is
    error: str = ""  #: why nothing could be run; everything below is None then
    p_answer: float | None = None
    p_wrong: float | None = None
    logit_difference: float | None = None
    top: int | None = None  #: the most likely token
    top_text: str | None = None
    accuracy: dict[str, int] | None = None  #: right, asked, refused, left_out
    verdict: _lenscpp.Verdict | None = None

    @property
    def status(self) -> str:
        """ "VERIFIED", "INVALID", or "FAILED" where nothing could be run."""
        return "FAILED" if self.verdict is None else self.verdict.status

    def cells(self) -> list[str]:
        where = f"{self.device} {self.dtype}" + (f" with {self.fault}" if self.fault else "")
        if self.verdict is None or self.accuracy is None:
            return [where, "-", "-", "-", "-", "-", self.error]
        asked = self.accuracy["asked"]
        share = f"{self.accuracy['right'] / asked:.1%} of {asked}" if asked else "-"
        top = repr(self.top_text) if self.top_text is not None else str(self.top)
        return [where, f"{self.p_answer:.4f}", f"{self.p_wrong:.4f}", f"{self.logit_difference:+.3f}", top, share, self.status]


class Comparison(tuple[CompareRow, ...]):
    """The rows of compare(): a tuple that prints as a table."""

    answer: str
    wrong: str

    def _titles(self) -> list[str]:
        return ["", f"P({self.answer!r})", f"P({self.wrong!r})", "logit difference", "top-1", "IOI accuracy", "verdict"]

    def __str__(self) -> str:
        table = [self._titles(), *(row.cells() for row in self)]
        widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in table)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag} style='text-align:left'>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        return "<table>" + line("th", self._titles()) + "".join(line("td", row.cells()) for row in self) + "</table>"


def compare(
    model: HookedTransformer,
    prompt: str,
    answer: str,
    wrong: str,
    devices: Sequence[str] = ("cpu", "mps"),
    dtypes: Sequence[Any] = ("float32",),
    prompts: int | Sequence[tuple[str, str, str]] = 100,
) -> Comparison:
    """The same prompt on several devices: P(answer), P(wrong), logit difference, top-1 token, accuracy, verdict.

    answer, wrong: texts of one token each. devices, dtypes: every pair gets a row, the model's weights rounded
    to the dtype. prompts: over which accuracy is measured, how often the answer beats the wrong token: so many
    of the indirect-object prompts that ship, or a list of (text, answer, wrong). Every run is verified exactly;
    a run that is INVALID is not raised but shown beside its verdict. Inside `lens.faults.inject`, each device
    is followed by a row with those faults. A device that is missing or fails gets a row that says why.

    Raises ValueError (a text that is not one token, no device, an unknown dtype), TypeError.
    """
    if not isinstance(model, HookedTransformer):
        raise TypeError(f"[compare] needed: a HookedTransformer; found: {_inputs.kind(model)}")
    model._hooked.refuse("compare")
    if isinstance(devices, str) or isinstance(dtypes, str):
        raise TypeError("[compare] devices and dtypes are sequences of names; found: a str")
    if isinstance(prompts, int):
        if prompts < 0:
            raise ValueError(f"[compare] prompts: {prompts} found; allowed: 0 or more, or a list of (text, answer, wrong)")
        prompts = _lenscpp.read_choice_prompts(str(MODELS / "tiny-ioi" / "prompts.jsonl"))[:prompts]
    rows = _lenscpp.compare_rows(
        model._model,
        _inputs.tokens(model._model, prompt),
        model.to_single_token(answer),
        model.to_single_token(wrong),
        devices=[_device(device) for device in devices],
        dtypes=[_dtype(dtype) for dtype in dtypes],
        prompts=list(prompts),
        faults=[injection._spec for injection in faults._for_run()],
    )
    result = Comparison(CompareRow(**row, verdict=verdict) for row, verdict in rows)
    result.answer, result.wrong = answer, wrong
    return result
