"""Faults as devices make them, injected into runs: to see that wrong numbers are refused, and where.

    with lens.faults.inject("one_element", hook="blocks.1.attn.hook_z", delta=0.5) as fault:
        model.run_with_cache(prompt)        # raises VerificationFailed
    fault.fired                             # [("blocks.1.attn.hook_z", 1)]
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from . import _lenscpp, _simulated


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
    """Every fault: name, kind ("tap": a whole tensor is changed, on any device; "device": inside an operator of
    the simulated device), description, source (where it was seen in the wild), and its parameters by name
    (meaning, default or None, whole: whether it is an integer). Those of a device also have an id, which
    serves as a name too, a trigger, a recipe, and the operators in which they sit."""
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
    A fault of kind "device" with a hook sits in the operators that compute that tensor.
    Raises ValueError for an unknown fault; the run raises ValueError or IndexError for a hook, a layer or a
    parameter that its model has not, and ValueError for a device fault on any but the simulated device.
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


@contextmanager
def simulated_limits(**limits: Any) -> Iterator[None]:
    """Inside this block the simulated device imitates a lesser one; other limits stay as they are.

    float64: False refuses it with Apple's TypeError. max_buffer_bytes: a larger allocation aborts the process,
    as Apple's does; 0 is no limit. missing: operators without a kernel, as ["gelu"]. fallback: whether those
    run on the CPU with PyTorch's warning, or raise NotImplementedError. aborts_at, hangs_at: an operator whose
    call aborts the process, or never returns. faults: device faults that are armed outside of runs too,
    in every thread, each {"name": ..., "parameters": {...}, "seed": ...}.
    Raises ValueError for what is unknown or of the wrong type.
    """
    _simulated.prepare("simulated")
    before = _lenscpp.simulated_limits()
    _lenscpp.simulated_set_limits(json.dumps({**json.loads(before), **limits}))
    try:
        yield
    finally:
        _lenscpp.simulated_set_limits(before)


def _for_run() -> tuple[Injection, ...]:
    return _active.get()
