"""The check-up of a device: `lenscpp doctor` run by this package's own program, its report as an object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

from . import _inputs, _lenscpp
from ._model import _dtype, _folder

_MARKS = {"pass": "pass", "warn": "warn", "fail": "FAIL", "skipped": "-"}


@dataclass(frozen=True)
class DoctorReport:
    """What lens.doctor found: `phases`, and what follows from them. str() is the report."""

    device: str
    dtype: str
    model: str
    phases: tuple[dict[str, Any], ...]  #: name, status ("pass" "warn" "fail" "skipped"), summary, details, measured, seconds
    recommendation: dict[str, Any]  #: advice (verify/device/doctor.h's words), settings, because
    usable: bool

    def __getitem__(self, phase: str) -> dict[str, Any]:
        for found in self.phases:
            if found["name"] == phase:
                return found
        raise KeyError(f"[doctor] no phase {phase!r}; the phases: {', '.join(p['name'] for p in self.phases)}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "dtype": self.dtype,
            "model": self.model,
            "phases": [dict(phase) for phase in self.phases],
            "recommendation": dict(self.recommendation),
            "usable": self.usable,
        }

    def _advice(self) -> list[str]:
        r = self.recommendation
        return [r["advice"], *(f"  with    {s}" for s in r["settings"]), *(f"  because {b}" for b in r["because"])]

    def __str__(self) -> str:
        width = max(len(phase["name"]) for phase in self.phases)
        lines = [f"{self.device} in {self.dtype}, with {self.model}", ""]
        for phase in self.phases:
            lines.append(f"{phase['name']:<{width}}  {_MARKS[phase['status']]:<4}  {phase['summary']}")
            if phase["status"] in ("warn", "fail") or phase["name"] == "plan":
                lines += [f"{'':<{width}}          {detail}" for detail in phase["details"] if detail != phase["summary"]]
        return "\n".join([*lines, "", *self._advice()])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(p['name'])}</td><td>{_MARKS[p['status']]}</td><td style='text-align:left'>{escape(p['summary'])}</td></tr>"
            for p in self.phases
        )
        return f"<table>{rows}</table><pre>{escape(chr(10).join(self._advice()))}</pre>"


def doctor(device: Any = None, model: Any = None, *, dtype: Any = "float32", seconds: float = 300) -> DoctorReport:
    """Examines a device in processes of their own and says whether to use it.

    device: None means the CPU. model: a folder or a model that ships; None means tiny-ioi. seconds: after how
    long a phase counts as hung. A device that is missing, aborts or hangs is a line of the report, not an error.

    Raises FileNotFoundError (no such model), ValueError and TypeError (dtype, seconds), RuntimeError where the
    package's program cannot be run.
    """
    if not isinstance(seconds, (int, float)) or isinstance(seconds, bool):
        raise TypeError(f"[doctor] seconds is a number; found: {_inputs.kind(seconds)}")
    if not seconds > 0:
        raise ValueError(f"[doctor] seconds: {seconds} found; allowed: more than 0")
    folder = _folder("tiny-ioi" if model is None else model)
    command = [os.fspath(program()), "doctor", os.fspath(folder), "--device", "cpu" if device is None else str(device)]
    command += ["--dtype", _dtype(dtype), "--seconds", str(seconds), "--json"]
    libraries = os.fspath(Path(torch.__file__).parent / "lib")
    known = os.environ.get("LD_LIBRARY_PATH")
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries + (os.pathsep + known if known else "")}
    run = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment)
    try:
        found: Mapping[str, Any] = json.loads(run.stdout)
        report = DoctorReport(
            device=found["device"],
            dtype=found["dtype"],
            model=Path(found["model"]).name,
            phases=tuple(found["phases"]),
            recommendation=found["recommendation"],
            usable=found["exit_status"] == 0,
        )
    except (ValueError, KeyError) as error:
        raise RuntimeError(f"[doctor] {command[0]} ended with {run.returncode} and no report: {run.stderr.strip()[-500:]}") from error
    return report


def program() -> Path:
    """The `lenscpp` program that came with this package."""
    name = "lenscpp.exe" if sys.platform == "win32" else "lenscpp"
    for folder in (Path(__file__).parent / "bin", Path(_lenscpp.__file__).parent / "bin"):
        if (folder / name).is_file():
            return folder / name
    raise RuntimeError(f"[doctor] the package has no program {name}: looked beside {_lenscpp.__file__}")
