"""The simulated device: loaded on first use of device="simulated", and known to torch from then on."""

from __future__ import annotations

import types

import torch

from . import _lenscpp


def prepare(device: str) -> str:
    """Loads the simulated device where `device` names it; returns `device`."""
    if device.partition(":")[0] == "simulated":
        _lenscpp.simulated_load()
        if not hasattr(torch, "simulated"):
            torch._register_device_module("simulated", _module())
    return device


def _module() -> types.ModuleType:
    """torch.simulated: what torch asks of the module of a device."""
    module = types.ModuleType("torch.simulated", "The simulated device of lenscpp.")
    functions = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "manual_seed_all": lambda seed: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
    }
    for name, function in functions.items():
        setattr(module, name, function)
    return module
