"""Functions at hook points, as TransformerLens's users know them: which are active, and what they are handed.

The run itself calls them; what they return is checked and recorded there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from . import _inputs, _lenscpp

HookFunction = Callable[..., torch.Tensor | None]
HookName = str | tuple[Any, ...] | Callable[[str], bool]
Pairs = Iterable[tuple[HookName, HookFunction]]


class HookPoint:
    """What a hook function gets as `hook`: the name of its hook point, and `ctx`, a dict that stays there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ctx: dict[Any, Any] = {}

    def layer(self) -> int:
        """The layer of "blocks.{layer}. ..."; ValueError for a hook point of no layer."""
        parts = self.name.split(".")
        if parts[0] != "blocks":
            raise ValueError(f"[hook] {self.name} has no layer")
        return int(parts[1])

    def clear_context(self) -> None:
        self.ctx = {}

    def __repr__(self) -> str:
        return f"HookPoint(name={self.name!r})"


@dataclass(frozen=True)
class Hook:
    """One function at one hook point, as list_hooks tells it."""

    name: str
    user_hook: HookFunction
    is_permanent: bool = False
    context_level: int | None = None  # of a `with model.hooks(...)` block: 1 is the outermost


# Blocks belong to the thread or task that opened them; hooks do not see runs inside hooks of the same model.
_blocks: ContextVar[tuple[tuple[Hooks, Hook], ...]] = ContextVar("lenscpp_hooks", default=())
_running: ContextVar[tuple[Hooks, ...]] = ContextVar("lenscpp_hooks_running", default=())


class Hooks:
    """The hook functions of one model."""

    def __init__(self, model: _lenscpp.Model) -> None:
        self._model = model
        self.points = {name: HookPoint(name) for name in model.hook_names(on_demand=True)}
        self._added: list[Hook] = []

    def active(self) -> list[Hook]:
        """What a run would call now, in the order of the calls at one hook point: added ones, then blocks'."""
        added = [] if self in _running.get() else self._added
        return [*added, *(hook for owner, hook in _blocks.get() if owner is self)]

    def refuse(self, where: str) -> None:
        """ValueError where hooks are active and runs are to be made that would not call them."""
        if hooks := self.active():
            raise ValueError(f"[{where}] its runs call no hooks, and {len(hooks)} are active (the first at {hooks[0].name}); needed: none, or lens.Plan edits")

    def callbacks(self) -> list[tuple[str, str, Callable[[torch.Tensor], Any]]]:
        """(hook point, name of the function, what a run calls) of each active hook."""
        return [(hook.name, _spelled(hook.user_hook), functools.partial(self._call, hook)) for hook in self.active()]

    def _call(self, hook: Hook, tensor: torch.Tensor) -> Any:
        running = _running.set((*_running.get(), self))
        blocks = _blocks.set(tuple(block for block in _blocks.get() if block[0] is not self))
        try:
            return hook.user_hook(tensor, hook=self.points[hook.name])
        finally:
            _blocks.reset(blocks)
            _running.reset(running)

    def add(self, name: HookName, function: HookFunction, *, is_permanent: bool, level: int | None, prepend: bool) -> None:
        new = [Hook(at, function, is_permanent, level) for at in self._names(name, function)]
        self._added = new + self._added if prepend else self._added + new

    @contextmanager
    def block(self, fwd_hooks: Pairs, reset_hooks_end: bool, clear_contexts: bool) -> Iterator[None]:
        level = 1 + max((hook.context_level or 0 for owner, hook in _blocks.get() if owner is self), default=0)
        hooks = [Hook(at, function, False, level) for name, function in _pairs(fwd_hooks) for at in self._names(name, function)]
        own = {id(hook) for hook in hooks}
        _blocks.set((*_blocks.get(), *((self, hook) for hook in hooks)))
        try:
            yield
        finally:
            # Not as it was before: reset_hooks inside the block holds for the blocks around it as well.
            left = [hook for _, hook in _blocks.get() if id(hook) in own]
            _blocks.set(tuple(entry for entry in _blocks.get() if id(entry[1]) not in own))
            if not reset_hooks_end:
                self._added = self._added + left
            elif clear_contexts:
                self.clear_contexts()

    def reset(self, including_permanent: bool, level: int | None) -> None:
        def stays(hook: Hook) -> bool:
            return (hook.is_permanent and not including_permanent) or (level is not None and hook.context_level != level)

        self._added = [hook for hook in self._added if stays(hook)]
        _blocks.set(tuple((owner, hook) for owner, hook in _blocks.get() if owner is not self or stays(hook)))

    def clear_contexts(self) -> None:
        for point in self.points.values():
            point.clear_context()

    def full_name(self, name: Any) -> str:
        """The hook point of a full or short name, or of a tuple (name, layer, layer type).

        ValueError naming the nearest names, IndexError for a layer that the model has not."""
        parts = name if isinstance(name, tuple) else (name,)
        if not 1 <= len(parts) <= 3 or not isinstance(parts[0], str) or not isinstance(parts[-1], (str, int, type(None))):
            raise TypeError(f"[hook] needed: a hook name, (name, layer), (name, layer, layer type) or a function of a name; found: {_inputs.kind(name)}")
        layer = _inputs.optional_int("the layer of a hook", parts[1]) if len(parts) > 1 else None
        return self._model.find_hook(_inputs.utf8(parts[0]), layer, (parts[2] if len(parts) > 2 else None) or "")

    def _names(self, name: HookName, function: HookFunction) -> list[str]:
        if not callable(function):
            raise TypeError(f"[hook] needed: a function of (tensor, hook); found: {_inputs.kind(function)}")
        if isinstance(name, (str, tuple)) or not callable(name):
            return [self.full_name(name)]
        names = [at for at in self._model.hook_names() if name(at)]
        if not names:
            raise ValueError(
                f"[hook] the predicate for {_spelled(function)} matches no hook point; it is asked about the default ones, whose names look like "
                '"blocks.0.hook_resid_pre"; those that exist on demand (hook_result, hook_q_input, ...) must be named'
            )
        return names


def refuse_backward(bwd_hooks: Any) -> None:
    if len(list(bwd_hooks)) > 0:
        raise NotImplementedError("[hook] bwd_hooks: gradients are not built yet; allowed: fwd_hooks")


def check_direction(direction: str, allowed: tuple[str, ...]) -> None:
    if direction == "bwd" and "bwd" not in allowed:
        raise NotImplementedError('[hook] dir "bwd": gradients are not built yet; allowed: "fwd"')
    if direction not in allowed:
        raise ValueError(f"[hook] dir {direction!r}; allowed: {', '.join(map(repr, allowed))}")


def _pairs(fwd_hooks: Any) -> list[tuple[HookName, HookFunction]]:
    if isinstance(fwd_hooks, (str, torch.Tensor)) or not isinstance(fwd_hooks, Iterable):
        raise TypeError(f"[hook] fwd_hooks: needed: a list of (name, function); found: {_inputs.kind(fwd_hooks)}")
    pairs = list(fwd_hooks)
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"[hook] fwd_hooks: needed: pairs (name, function); found: {_inputs.kind(pair)}")
    return pairs


def _spelled(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))
