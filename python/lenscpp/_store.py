"""Files of this library, by their kind: lens.load and lens.load_unverified."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from . import _inputs, _lenscpp
from ._model import HookedTransformer

#: kind of file -> what loads it, given a path and the C++ model or None
LOADERS: dict[str, Callable[[Any, Any], Any]] = {"run": _lenscpp.load_run}
UNVERIFIED_LOADERS: dict[str, Callable[[Any, Any], Any]] = {"run": _lenscpp.load_run_unverified}


def load(path: str | os.PathLike[str], model: HookedTransformer | None = None) -> Any:
    """What was saved at path: for a run a VerifiedCache, checked byte for byte and read whole.

    model: the one that was run, for analyses that need its weights (a logit lens) or its tokenizer; its weights,
    their processing and their dtype must be those of the run (ValueError).
    NotVerified for a file whose status is not VERIFIED, or that is not what was written: edited, damaged, cut short;
    ValueError for one that lenscpp did not save or a later version did, FileNotFoundError and other OSErrors.
    """
    return _load(LOADERS, path, model)


def load_unverified(path: str | os.PathLike[str], model: HookedTransformer | None = None) -> Any:
    """What can be read at path, whatever its status and its digests say: for a run an UnverifiedCache.

    No analysis takes it. NotVerified for what cannot even be read, ValueError for a file that lenscpp did not save.
    """
    return _load(UNVERIFIED_LOADERS, path, model)


def _load(loaders: dict[str, Callable[[Any, Any], Any]], path: Any, model: Any) -> Any:
    if model is not None and not isinstance(model, HookedTransformer):
        raise TypeError(f"[store] needed: a HookedTransformer or None; found: {_inputs.kind(model)}")
    kind = _lenscpp.file_kind(path)
    if kind not in loaders:
        raise ValueError(f"[store] {os.fspath(path)!r} is a file of kind {kind!r}; allowed: {', '.join(sorted(loaders))}")
    return loaders[kind](path, None if model is None else model._model)
