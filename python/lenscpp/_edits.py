"""Interventions as data. What each does is in hooks/plan.h; here they are only spelled."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch

from ._lenscpp import Edit, VerifiedCache

Name = str | tuple[str, int] | tuple[str, int, str]
Positions = int | Sequence[int] | None


def Patch(
    name: Name,
    source: VerifiedCache | torch.Tensor,
    pos: Positions = None,
    head: int | None = None,
    batch: int | None = None,
    key: int | None = None,
) -> Edit:
    """Writes another run's activation at a hook point.

    name: a hook name, or ("resid_pre", 3). source: a VerifiedCache, whose value at that name is taken, or a
    tensor shaped as the activation (or with one prompt, which then serves every prompt). pos: one position or
    a list (the query position of attn_scores and pattern); head, batch, key: one index; None means all;
    negative ones count from the end.
    Raises NotVerified (a TypeError) for any other source; names, indices and shapes are checked by the run.
    """
    return _edit("patch", name, source=source, pos=pos, head=head, batch=batch, key=key)


def Ablate(
    name: Name,
    head: int | None = None,
    pos: Positions = None,
    to: str = "zero",
    source: VerifiedCache | torch.Tensor | None = None,
    batch: int | None = None,
    key: int | None = None,
) -> Edit:
    """Writes zero (to="zero") or the mean over batch and position (to="mean").

    With to="mean", `source` is what to average instead of the run's own activation: any batch and length.
    """
    if to not in ("zero", "mean"):
        raise ValueError(f'[plan] Ablate: to={to!r}; allowed: "zero", "mean"')
    return _edit(to, name, source=source, pos=pos, head=head, batch=batch, key=key)


def Add(
    name: Name,
    vector: VerifiedCache | torch.Tensor,
    scale: float = 1.0,
    pos: Positions = None,
    head: int | None = None,
    batch: int | None = None,
) -> Edit:
    """Adds scale * vector: [d] for the last axis, or shaped as the activation."""
    return _edit("add", name, source=vector, factor=scale, pos=pos, head=head, batch=batch)


def Scale(
    name: Name,
    factor: float,
    pos: Positions = None,
    head: int | None = None,
    batch: int | None = None,
    key: int | None = None,
) -> Edit:
    """Multiplies by a number."""
    return _edit("scale", name, factor=factor, pos=pos, head=head, batch=batch, key=key)


def _edit(kind: str, name: Name, *, source: Any = None, factor: float = 1.0, pos: Any = None, **indices: Any) -> Edit:
    parts = name if isinstance(name, tuple) else (name,)
    shapes: tuple[tuple[type, ...], ...] = ((str,), (str, int), (str, int, str))
    if not any(len(parts) == len(s) and all(isinstance(p, t) for p, t in zip(parts, s)) for s in shapes):
        raise TypeError(f"[plan] a hook point is a name, (name, layer) or (name, layer, layer_type); found: {_kinds(parts)}")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        raise TypeError(f"[plan] the factor is a number; found: {_kinds([factor])}")
    return Edit(
        kind=kind,
        name=parts[0],
        layer=parts[1] if len(parts) > 1 else None,
        layer_type=parts[2] if len(parts) > 2 else "",
        source=source,
        factor=float(factor),
        pos=_positions(pos),
        **{axis: None if index is None else _integer(axis, index) for axis, index in indices.items()},
    )


def _positions(pos: Any) -> list[int] | None:
    if pos is None:
        return None
    if isinstance(pos, (list, range)):
        return [_integer("pos", p) for p in pos]
    return [_integer("pos", pos)]


def _integer(what: str, value: Any) -> int:
    try:
        if isinstance(value, (bool, tuple)):
            raise TypeError
        return operator.index(value)
    except TypeError:
        allowed = "an int, a list of ints or a range" if what == "pos" else "an int"
        raise TypeError(f"[plan] {what} is {allowed}; found: {_kinds([value])}") from None


def _kinds(values: Sequence[Any]) -> str:
    return ", ".join(type(v).__name__ for v in values)
