"""What the tests of the package share: golden data, the shipped model."""

import json
from pathlib import Path

import pytest
import torch

import lenscpp as lens

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "gpt2"
CASES = sorted(p.name for p in GOLDEN.iterdir() if p.is_dir())
PROMPT = "When John and Mary went to the store, John gave the bag to"
# Threads of a pool wait for each other by spinning: on a busy machine that takes hundreds of times as long
# as the products of these small models. test_ambient.py runs with two.
torch.set_num_threads(1)
_DTYPES = {"F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16, "F16": torch.float16, "I64": torch.int64}


def read_safetensors(path):
    """{name: tensor}, the tensors' own memory."""
    data = bytearray(Path(path).read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        bytes_ = data[8 + size + begin : 8 + size + end]
        dtype = _DTYPES[entry["dtype"]]
        flat = torch.frombuffer(bytes_, dtype=dtype).clone() if bytes_ else torch.empty(0, dtype=dtype)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def golden_runs(case, file):
    """[(tokens, {hook name: tensor}, logits)] of one golden file."""
    stored = read_safetensors(GOLDEN / case / file)
    tokens = read_safetensors(GOLDEN / case / "hf.safetensors")
    runs = {}
    for key, value in stored.items():
        i, name = key.split("/", 1)
        runs.setdefault(i, {})[name] = value
    return [(tokens[f"tokens.{i}"], run, run.pop("logits")) for i, run in sorted(runs.items())]


def normalized_error(found, expected):
    """Largest difference over the largest expected value; infinite entries must match in place and sign."""
    found, expected = found.double(), expected.double()
    infinite = expected.isinf()
    if not torch.equal(found[infinite], expected[infinite]):
        return float("inf")
    found, expected = found[~infinite], expected[~infinite]
    return ((found - expected).abs().max() / expected.abs().max().clamp_min(1e-300)).item()


@pytest.fixture(scope="session")
def tiny():
    return lens.HookedTransformer.from_pretrained("tiny-ioi")


@pytest.fixture(scope="session")
def three():
    """A random model of 3 layers without a tokenizer."""
    return lens.HookedTransformer.from_pretrained(GOLDEN / "three_layers")


@pytest.fixture(scope="session")
def run(tiny):
    return tiny.run_with_cache(PROMPT)


@pytest.fixture
def cache(run):
    return run[1]
