"""Experiments on many machines, by Dask (pip install "lenscpp[distributed]").

    from dask.distributed import Client
    lens.distributed.run(experiments, Client("tcp://scheduler:8786"), model="gpt2", folder="ioi")

A shard is a task; each worker loads the model once. What a worker computes comes back as the shard's file, is checked
here against its digests, and lies in the same folder that run_experiments would have made: a cluster's run can be resumed on
a laptop, and the other way round. Workers need lenscpp and the model's folder under the same path, no common disk.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _inputs, _lenscpp, faults
from ._experiments import BatchReport, Experiments, as_dicts, as_json, options
from ._model import HookedTransformer

if TYPE_CHECKING:
    from dask.distributed import Client  # type: ignore[import-not-found, unused-ignore]

_models: dict[str, HookedTransformer] = {}  # of this worker, by how they are loaded
_loading = threading.Lock()


def run(
    experiments: Experiments,
    client: Client,
    *,
    model: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    load: Mapping[str, Any] | None = None,
    sites: Any = ("resid_pre", "head_z"),
    direction: str = "denoise",
    verify: str | None = None,
    block: int = 32,
    least_difference: float = 1e-3,
    keep_wrong: bool = False,
    prepend_bos: bool | None = None,
    resume: bool = False,
    retries: int = 3,
    progress: Callable[[int, int], object] | None = None,
) -> BatchReport:
    """run_experiments on the workers of a Dask client; the same folder, the same shards.

    model, load: what each worker calls HookedTransformer.from_pretrained(model, **load) with; here it is loaded too, to
    turn the experiments into tokens. retries: how often a shard is tried again when its worker died or could not
    run it. progress(there, shards). Raises what run_experiments raises; a shard that no worker could run is counted in the report.
    """
    from dask.distributed import Client, as_completed

    if not isinstance(client, Client):
        raise TypeError(f"[distributed] client: needed: a dask.distributed.Client; found: {_inputs.kind(client)}")
    if faults._for_run():
        raise ValueError("[distributed] faults of lens.faults.inject do not reach workers: use run_experiments")
    start = time.monotonic()
    loading = {"name_or_path": os.fspath(model), **dict(load or {})}
    given = as_dicts(experiments)
    chosen = options(sites, direction, verify, block, least_difference, keep_wrong, prepend_bos)
    plan = _lenscpp.open_batch(_loaded(loading)._model, as_json(given), chosen, folder, resume)
    report = _Report(plan, len(given), Path(os.fspath(folder)))

    def submit(shard: dict[str, Any]) -> Any:
        own = as_json([{"id": f"experiment {i}", **given[i]} for i in shard["indices"]])
        return client.submit(_run_shard, loading, own, chosen, shard["name"], pure=False)

    waiting = {submit(shard): (shard, retries) for shard in plan["shards"] if not shard["finished"]}
    done = as_completed(list(waiting))
    for future in done:
        shard, left = waiting.pop(future)
        if future.status == "finished":
            report.adopt(shard["name"], *future.result())
        elif left > 0 and not isinstance(future.exception(), ValueError):  # which the next worker would find, too
            again = submit(shard)
            waiting[again] = (shard, left - 1)
            done.add(again)
            continue
        else:
            report.fail(shard["name"], str(future.exception()))
        if progress is not None:
            progress(report.there, len(plan["shards"]))
    return BatchReport(os.fspath(folder), report.ended(time.monotonic() - start))


class _Report:
    """What run_experiments reports, from what workers send back."""

    def __init__(self, plan: dict[str, Any], experiments: int, folder: Path) -> None:
        before = [shard for shard in plan["shards"] if shard["finished"]]
        self._folder = folder
        self._counts: dict[str, Any] = {
            "experiments": experiments, "shards": len(plan["shards"]), "before": len(before), "done": 0, "refused": 0, "failed": 0,
            "elsewhere": 0, "left": 0, "patches": 0, "seconds_checking": 0.0, "rejected": {}, "refusals": [], "failures": [],
            "damaged": plan["damaged"], "stopped": False,
        }  # fmt: skip
        self._reject([*plan["rejected"], *(one for shard in before for one in shard["rejected"])])

    @property
    def there(self) -> int:
        return int(self._counts["before"] + self._counts["done"])

    def adopt(self, name: str, contents: bytes, said: dict[str, Any]) -> None:
        """Puts a shard's file into the folder, once every value of it was compared with its digest."""
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=self._folder) as incoming:
            path = Path(incoming) / f"{name}.h5"
            path.write_bytes(contents)
            try:
                status = _lenscpp.adopt_shard(self._folder, path)
            except _lenscpp.NotVerified as damage:
                return self.fail(name, str(damage))
        verdict = said["verdict"]
        self._counts["patches"] += verdict["cells"]
        self._counts["seconds_checking"] += verdict["seconds"]
        self._reject(said["rejected"])
        if status == "INVALID":
            self._counts["refused"] += 1
            self._counts["refusals"].append(f"{name[:12]}: {verdict['first_failure']}")
        else:
            self._counts["done"] += 1

    def fail(self, name: str, why: str) -> None:
        self._counts["failed"] += 1
        self._counts["failures"].append(f"{name[:12]}: {why}")

    def ended(self, seconds: float) -> dict[str, Any]:
        counts = self._counts
        counts["seconds"] = seconds
        counts["complete"] = self.there == counts["shards"]
        text = f"{self.there} of {counts['shards']} shards there"
        for count, what in (("refused", "refused"), ("failed", "could not be run")):
            text += f", {counts[count]} {what}" if counts[count] else ""
        rejected = sum(counts["rejected"].values())
        reasons = ", ".join(f"{n} {reason}" for reason, n in counts["rejected"].items())
        counts["summary"] = f"{text}; {counts['experiments']} experiments" + (f", {rejected} rejected ({reasons})" if rejected else "")
        return counts

    def _reject(self, rejected: list[dict[str, str]]) -> None:
        for one in rejected:
            self._counts["rejected"][one["reason"]] = self._counts["rejected"].get(one["reason"], 0) + 1


def _run_shard(loading: dict[str, Any], experiments: str, chosen: dict[str, Any], name: str) -> tuple[bytes, dict[str, Any]]:
    """On a worker: the shard's file, and what came of it."""
    with tempfile.TemporaryDirectory() as folder:
        said = _lenscpp.run_shard(_loaded(loading)._model, experiments, chosen, name, folder, [])
        return (Path(folder) / f"{name}.h5").read_bytes(), said


def _loaded(loading: dict[str, Any]) -> HookedTransformer:
    key = json.dumps(loading, sort_keys=True, default=str)
    with _loading:
        if key not in _models:
            _models.clear()  # one at a time: models are large
            _models[key] = HookedTransformer.from_pretrained(**loading)
        return _models[key]
