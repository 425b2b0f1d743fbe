"""Experiments on many machines, by Dask (pip install "lenscpp[distributed]").

    from dask.distributed import Client
    lens.distributed.run(experiments, Client("tcp://scheduler:8786"), model="gpt2", folder="ioi")

A shard is a task; each worker loads the model once. What a worker computes comes back as the shard's file, is checked
here byte for byte, and lies in the same folder that run_experiments would have made: a cluster's run can be resumed on
a laptop, and the other way round. Workers need lenscpp and the model's folder under the same path, no common disk.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _lenscpp
from ._experiments import BatchReport, Experiments, as_dicts, options
from ._model import HookedTransformer

if TYPE_CHECKING:
    from dask.distributed import Client  # type: ignore[import-not-found, unused-ignore]

_models: dict[str, HookedTransformer] = {}  # of this worker, by how they are loaded


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
    turn the experiments into tokens. retries: how often a task is tried again whose worker failed. progress(done,
    shards). Raises what run_experiments raises; a shard that no worker could run is counted in the report.
    """
    from dask.distributed import as_completed

    loading = {"name_or_path": os.fspath(model), **dict(load or {})}
    own = _loaded(loading)
    given = as_dicts(experiments)
    chosen = options(sites, direction, verify, block, least_difference, keep_wrong, prepend_bos)
    plan = _lenscpp.open_batch(own._model, json.dumps(given), chosen, folder, resume)
    report = _empty_report(plan, len(given))
    missing = [shard for shard in plan["shards"] if not shard["finished"]]
    futures = {
        client.submit(
            _run_shard, loading, json.dumps([_with_id(given, i) for i in shard["indices"]]), chosen, shard["name"], retries=retries, pure=False
        ): shard
        for shard in missing
    }
    for done, future in enumerate(as_completed(list(futures)), 1):
        name = futures.pop(future)["name"]
        if future.status == "finished":
            _adopt(Path(os.fspath(folder)), name, future.result(), report)
        else:
            report["failed"] += 1
            report["failures"].append(f"{name[:12]}: {future.exception()}")
        future.release()
        if progress is not None:
            progress(report["before"] + done, report["shards"])
    report["complete"] = report["before"] + report["done"] == report["shards"]
    report["summary"] = _summary(report)
    return BatchReport(os.fspath(folder), report)


def _run_shard(loading: dict[str, Any], experiments: str, chosen: dict[str, Any], name: str) -> tuple[bytes, dict[str, Any]]:
    """On a worker: the shard's file, and its verdict."""
    with tempfile.TemporaryDirectory() as folder:
        verdict = _lenscpp.run_shard(_loaded(loading)._model, experiments, chosen, name, folder, [])
        return (Path(folder) / f"{name}.h5").read_bytes(), verdict


def _loaded(loading: dict[str, Any]) -> HookedTransformer:
    key = json.dumps(loading, sort_keys=True, default=str)
    if key not in _models:
        _models.clear()  # one at a time: models are large
        _models[key] = HookedTransformer.from_pretrained(**loading)
    return _models[key]


def _adopt(folder: Path, name: str, result: tuple[bytes, dict[str, Any]], report: dict[str, Any]) -> None:
    contents, verdict = result
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=folder) as incoming:
        path = Path(incoming) / f"{name}.h5"
        path.write_bytes(contents)
        status = _lenscpp.adopt_shard(folder, path)
    report["patches"] += verdict["cells"]
    report["seconds_checking"] += verdict["seconds"]
    if status == "INVALID":
        report["refused"] += 1
        report["refusals"].append(f"{name[:12]}: {verdict['first_failure']}")
    else:
        report["done"] += 1


def _with_id(experiments: list[dict[str, Any]], index: int) -> dict[str, Any]:
    """Without an id an experiment is called by its place, which a worker does not know."""
    return {"id": f"experiment {index}", **experiments[index]}


def _empty_report(plan: dict[str, Any], n: int) -> dict[str, Any]:
    rejected: dict[str, int] = {}
    for one in plan["rejected"]:
        rejected[one["reason"]] = rejected.get(one["reason"], 0) + 1
    return {
        "experiments": n,
        "shards": len(plan["shards"]),
        "before": sum(shard["finished"] for shard in plan["shards"]),
        "done": 0,
        "refused": 0,
        "failed": 0,
        "patches": 0,
        "seconds_checking": 0.0,
        "rejected": rejected,
        "refusals": [],
        "failures": [],
        "damaged": plan["damaged"],
    }


def _summary(report: dict[str, Any]) -> str:
    text = f"{report['before'] + report['done']} of {report['shards']} shards there"
    for what in ("refused", "failed"):
        text += f", {report[what]} {what}" if report[what] else ""
    return f"{text}; {report['experiments']} experiments"
