"""The standard tasks as experiments for run_experiments, for any tokenizer: how they are made is in patching/tasks.h.

    task = lens.tasks.ioi(model, n=200)
    lens.run_experiments(model, task, "ioi").merge().plot()
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from . import _inputs, _lenscpp
from ._experiments import as_dicts, as_json, checked_model


class Task(list[dict[str, Any]]):
    """Experiments, and in `dropped` the words that are not one token of the tokenizer and were left out."""

    def __init__(self, name: str, experiments: list[dict[str, Any]], dropped: list[str]) -> None:
        super().__init__(experiments)
        self.name = name
        self.dropped = dropped

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a JSON Lines file, which `lenscpp batch` reads. OSError."""
        write_experiments(path, self)

    def __repr__(self) -> str:
        left_out = f", {len(self.dropped)} words left out" if self.dropped else ""
        return f"<Task {self.name}: {len(self)} experiments{left_out}>"


def ioi(model: Any, n: int = 100, *, seed: int = 0, corruption: str = "flipped", names: Sequence[str] = ()) -> Task:
    """Indirect object identification: "When John and Mary went to the store, John gave the bag to" -> " Mary".

    15 templates in both orders of the names. corruption: "flipped" (the other name acts) or "abc" (three fresh names).
    names: in place of the built-in ones. ValueError when fewer than five are one token each.
    """
    return _task(model, "ioi", n, seed, corruption=corruption, names=names)


def greater_than(model: Any, n: int = 100, *, seed: int = 0) -> Task:
    """"The war lasted from the year 1741 to the year 17": years above 41 against the others; corrupted is 1701.

    ValueError for a tokenizer that does not split years after the century.
    """
    return _task(model, "greater_than", n, seed)


def induction(model: Any, n: int = 100, *, seed: int = 0, length: int = 20) -> Task:
    """`length` random tokens and the first half of them again: which token follows?

    ValueError when the model has no room for them.
    """
    return _task(model, "induction", n, seed, length=length)


def read_experiments(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Of a JSON Lines file. ValueError naming the line, OSError."""
    return as_dicts(path)


def write_experiments(path: str | os.PathLike[str], experiments: Any) -> None:
    """Writes a JSON Lines file whole or not at all. ValueError naming the experiment, OSError."""
    _lenscpp.write_experiments(path, as_json(as_dicts(experiments)))


def _task(model: Any, name: str, n: int, seed: int, corruption: str = "flipped", names: Sequence[str] = (), length: int = 20) -> Task:
    if isinstance(names, str):
        raise TypeError(f"[tasks] names: needed: a list of texts; found: {_inputs.kind(names)}")
    experiments, dropped = _lenscpp.task(checked_model(model, "tasks"), name, n, seed, corruption, list(names), length)
    return Task(name, experiments, dropped)
