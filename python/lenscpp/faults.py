"""Faults as devices make them, injected into runs: to see that wrong numbers are refused, and where.

    with lens.faults.inject("one_element", hook="blocks.1.attn.hook_z", delta=0.5) as fault:
        model.run_with_cache(prompt)        # raises VerificationFailed
    fault.fired                             # [("blocks.1.attn.hook_z", 1)]
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from . import _lenscpp


class Injection:
    """One fault that is active in the block of its `with`."""

    def __init__(self, spec: _lenscpp.FaultSpec) -> None:
        self._spec = spec
        #: What it changed, in order: (tensor, number of elements). A fault that changed no bit has not fired.
        self.fired: list[tuple[str, int]] = []

    def __repr__(self) -> str:
        return f"{self._spec!r}, fired {len(self.fired)} times"


_active: ContextVar[tuple[Injection, ...]] = ContextVar("lenscpp_faults", default=())


def catalogue() -> list[dict[str, Any]]:
    """Every fault: name, description, source (where it was seen in the wild), and its parameters by name
    (meaning, default or None, whole: whether it is an integer)."""
    return _lenscpp.fault_catalogue()


@contextmanager
def inject(
    name: str,
    *,
    hook: str | None = None,
    layer: int | None = None,
    seed: int = 0,
    stage: int = 0,
    **parameters: float,
) -> Iterator[Injection]:
    """Every run inside this block, in this thread or task, has the fault. Blocks inside one another add up.

    name: of the catalogue. hook: a full hook name, or one without its layer; None is every site where the
    fault can occur. layer: negative from the end; None is every layer. seed: chooses what is not given.
    stage: of an edited tensor, 0 as computed, n after its n-th edit. parameters: those of the fault.
    Raises ValueError for an unknown fault; the run raises ValueError or IndexError for a hook, a layer or a
    parameter that its model has not.
    """
    for key, value in parameters.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"[faults] {name}: {key} is a number; found: {type(value).__name__}")
    numbers = {key: float(value) for key, value in parameters.items()}
    injection = Injection(_lenscpp.FaultSpec(name=name, parameters=numbers, hook=hook, layer=layer, seed=seed, stage=stage))
    token = _active.set((*_active.get(), injection))
    try:
        yield injection
    finally:
        _active.reset(token)


def _for_run() -> tuple[Injection, ...]:
    return _active.get()
