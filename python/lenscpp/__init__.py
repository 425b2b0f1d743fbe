"""lenscpp: a HookedTransformer whose every activation is checked against an independent float64 reference.

    import lenscpp as lens

    model = lens.HookedTransformer.from_pretrained("tiny-ioi")
    logits, cache = model.run_with_cache("When John and Mary went to the store, John gave the bag to")
    print(cache.verdict)
    lens.logit_lens(cache).plot()

A run whose numbers are wrong raises VerificationFailed by itself; an analysis takes a VerifiedCache and
nothing else (NotVerified).
"""

import collections.abc as _abc

import torch as _torch  # noqa: F401  (loads the libraries that ours links to)

from . import distributed, faults, patching, tasks, utils
from ._attribution import LogitAttribution, direct_logit_attribution, plot_attention
from ._compare import CompareRow, Comparison, compare
from ._drill import DrillReport, drill
from ._config import HookedTransformerConfig
from ._doctor import DoctorReport, doctor
from ._edits import Ablate, Add, Patch, Scale
from ._lenscpp import (
    DeviceError,
    Edit,
    NotVerified,
    Plan,
    Point,
    Tokenizer,
    UnverifiedCache,
    Verdict,
    VerificationFailed,
    VerifiedCache,
    __version__,
)
from ._experiments import BatchReport, ExperimentsResult, ShardResult, merge_experiments, run_experiments
from ._grid import GridResult
from ._logit_lens import LogitLens, TopK, logit_lens
from ._metrics import KL, LogitDiff, LogProb, Loss, Metric, Prob, ProbDiff
from ._model import HookedTransformer, verify_recorded
from ._preflight import Preflight, preflight
from ._store import load, load_unverified

_abc.Mapping.register(VerifiedCache)
_abc.Mapping.register(UnverifiedCache)

__all__ = [
    "Ablate",
    "Add",
    "BatchReport",
    "CompareRow",
    "Comparison",
    "DeviceError",
    "DrillReport",
    "DoctorReport",
    "Edit",
    "ExperimentsResult",
    "GridResult",
    "HookedTransformer",
    "HookedTransformerConfig",
    "KL",
    "LogProb",
    "LogitAttribution",
    "LogitDiff",
    "LogitLens",
    "Loss",
    "Metric",
    "NotVerified",
    "Patch",
    "Plan",
    "Point",
    "Preflight",
    "Prob",
    "ProbDiff",
    "Scale",
    "ShardResult",
    "Tokenizer",
    "TopK",
    "UnverifiedCache",
    "Verdict",
    "VerificationFailed",
    "VerifiedCache",
    "__version__",
    "compare",
    "direct_logit_attribution",
    "distributed",
    "drill",
    "doctor",
    "faults",
    "load",
    "load_unverified",
    "logit_lens",
    "merge_experiments",
    "patching",
    "plot_attention",
    "preflight",
    "run_experiments",
    "tasks",
    "utils",
    "verify_recorded",
]
