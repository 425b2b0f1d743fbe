"""Whether a model and a run fit on a device, without running either. The arithmetic is verify/device/preflight.h."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import _inputs, _lenscpp
from ._model import HookedTransformer, _adapter, _device, _dtype, _folder, _verify

_STEPS = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")


class Preflight(Mapping[str, Any]):
    """What preflight() found, by key; printed as a few lines.

    fits; violations (what, shape, dtype, found, limit, message); largest_batch and longest_prompt that stay within the
    limits, at most what was asked for; load and run (host_bytes, device_bytes, mapped_bytes, staying_bytes, items): of
    a loaded model, load is what moving it takes, nothing where it stays; host_memory and
    device_memory (bytes, margin_bytes, from; None where unknown); dtype_refused; limits; tensors (name, role, shape,
    dtype, elements, bytes); model, device, dtype, batch, length.
    """

    def __init__(self, values: Mapping[str, Any], words: str) -> None:
        self._values, self._words = dict(values), words

    @property
    def fits(self) -> bool:
        return bool(self._values["fits"])

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __bool__(self) -> bool:
        return self.fits

    def __str__(self) -> str:
        return self._words.rstrip("\n")

    __repr__ = __str__


def preflight(
    model: HookedTransformer | str | os.PathLike[str],
    *,
    batch: int = 1,
    length: int | None = None,
    device: Any = None,
    dtype: Any = None,
    names: Iterable[str] | None = None,
    verify: str | None = None,
    processing: bool = True,
    adapter: str | os.PathLike[str] | None = None,
) -> Preflight:
    """Does it fit? The sizes of every weight and of every tensor of a run, intermediates included, beside the limits of
    the device in this PyTorch and the memory there is. Arithmetic alone: nothing is loaded, allocated or tried.

    model: a model, or the name or folder of one, of which only config.json is read (the folder may hold nothing else).
    batch prompts of length tokens (None: the model's context) are run; names: which hook points are kept (None: all).
    device, dtype, verify: None means the model's, or the CPU, float32 and "exact". processing: of a folder, whether the
    weights are processed, which is on by default; adapter: of a folder, the adapter to be merged, of which only its config
    and the sizes of its tensors are read.

    Raises ValueError (an unknown dtype, mode or hook, no prompts), IndexError (a length beyond the context),
    FileNotFoundError, TypeError, DeviceError (a name that is no device). What does not fit is not raised: see .fits.
    """
    loaded = model if isinstance(model, HookedTransformer) else None
    if not isinstance(processing, bool):
        raise TypeError(f"[preflight] processing is True or False; found: {_inputs.kind(processing)}")
    for what, value in (("batch", batch), ("length", length)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise TypeError(f"[preflight] {what} is an int; found: {_inputs.kind(value)}")
    if loaded and adapter is not None:
        raise ValueError("[preflight] adapter: the model is loaded already; it goes with the folder of a model")
    if isinstance(names, str):
        names = [names]
    question: dict[str, Any] = {
        "device": _device(device) if device is not None else loaded._model.device if loaded else "cpu",
        "dtype": _dtype(dtype) if dtype is not None else loaded._model.dtype if loaded else "float32",
        "verify": _verify(verify) if verify is not None else loaded.verify if loaded else "exact",
        "batch": batch,
        "length": length,
        "names": None if names is None else [str(name) for name in names],
    }
    if loaded:
        return Preflight(*_lenscpp.preflight_model(loaded._model, **question))
    folder = os.fspath(_folder(model))
    steps = dict.fromkeys(_STEPS, processing)
    return Preflight(*_lenscpp.preflight_folder(folder, **question, processing=steps, adapter=_adapter(adapter)))
