"""Whether it fits, asked before: the answer, the refusals of loads and runs, and the plan beside real peaks."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lenscpp as lens

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
GPT2_SMALL = {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}


@pytest.fixture
def gpt2_config(tmp_path):
    """GPT-2 small's folder with nothing in it but the config."""
    (tmp_path / "config.json").write_text(json.dumps(GPT2_SMALL))
    return tmp_path


def test_four_gigabytes_are_refused_before_anything_is_allocated(gpt2_config, monkeypatch):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    monkeypatch.setenv("LENSCPP_ALLOW_MPS", "1")
    found = lens.preflight(gpt2_config, device="mps", batch=64, length=1024)
    assert not found and not found.fits
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 * 1024
    first = found["violations"][0]
    assert first["limit"]["name"] == "2^32 bytes a buffer" and first["shape"] == [64, 1024, 50257]
    assert found["largest_batch"] == 20 and "20 prompts of 1024 tokens" in str(found)


def test_what_fits_says_so(gpt2_config):
    found = lens.preflight(gpt2_config, batch=1, length=15)
    assert found["violations"] == [] and found["largest_batch"] == 1 and found["longest_prompt"] == 15
    assert set(found) >= {"load", "run", "host_memory", "limits", "tensors", "device", "dtype"}
    names = {t["name"]: t for t in found["tensors"]}
    assert names["blocks.0.attn.hook_q"]["shape"] == [1, 15, 12, 64]
    assert names["blocks.11.attn.W_QKV"]["bytes"] == 768 * 2304 * 4


def test_dtypes_are_refused_in_pytorchs_words(gpt2_config, monkeypatch):
    monkeypatch.setenv("LENSCPP_ALLOW_MPS", "1")
    found = lens.preflight(gpt2_config, device="mps", dtype="float64", length=8)
    assert not found and "MPS framework doesn't support float64" in found["dtype_refused"]


def test_a_loaded_model_can_be_asked(tiny):
    found = lens.preflight(tiny, batch=2, length=15, names="blocks.0.attn.hook_result")
    assert found and found["model"] == tiny.cfg.model_name and found["dtype"] == "float32"
    assert "blocks.0.attn.hook_result" in {t["name"] for t in found["tensors"]}


def test_the_weights_of_a_loaded_model_are_there(tiny):
    found = lens.preflight(tiny, length=15)
    assert found["load"]["host_bytes"] == found["load"]["staying_bytes"] == 0 and "the model is loaded" in str(found)
    assert lens.preflight("tiny-ioi", length=15)["load"]["staying_bytes"] > 0
    other = lens.preflight(tiny, length=15, dtype="bfloat16", device="cuda")
    assert 0 < other["load"]["staying_bytes"] == other["load"]["device_bytes"] and other["dtype"] == "bfloat16"


def test_a_misspelt_device_is_an_error(tiny):
    for model in (tiny, "tiny-ioi"):
        with pytest.raises(lens.DeviceError, match='"msp" is not a device'):
            lens.preflight(model, device="msp")
    assert "no limits known of cuda" in str(lens.preflight("tiny-ioi", device="cuda", length=4))


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (ValueError, {"batch": 0}),
        (IndexError, {"length": 10**6}),
        (ValueError, {"dtype": "int8"}),
        (ValueError, {"names": ["blocks.0.hook_nothing"]}),
        (TypeError, {"batch": 1.5}),
        (TypeError, {"length": True}),
        (TypeError, {"processing": 1}),
    ],
)
def test_bad_questions_are_errors(error, options):
    with pytest.raises(error):
        lens.preflight("tiny-ioi", **options)


def child(code, **options):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, **options)


LIMITED = """
import torch, lenscpp as lens
model = lens.HookedTransformer.from_pretrained("tiny-ioi", device="simulated")
whole = lens.HookedTransformer.from_pretrained("tiny-ioi")
tokens = (torch.arange(100 * 15) * 37 % 128).reshape(100, 15)
sizes = {t["name"]: t["bytes"] for t in lens.preflight(model, batch=40, length=15)["tensors"]}
limit = max(sizes.values())
"""


def test_a_run_on_a_device_that_would_abort_is_split():
    done = child(
        LIMITED
        + """
with lens.faults.simulated_limits(max_buffer_bytes=limit):
    logits, cache = model.run_with_cache(tokens)
assert cache.record["split"] == [40, 40, 20], cache.record["split"]
assert cache.verdict.status == "VERIFIED"
expected, clean = whole.run_with_cache(tokens)
assert clean.record["split"] == [] and set(clean) == set(cache)
assert torch.allclose(logits, expected, atol=1e-4), (logits - expected).abs().max()
"""
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_cannot_be_split_is_refused_and_would_have_aborted():
    refused = child(
        LIMITED
        + """
with lens.faults.simulated_limits(max_buffer_bytes=limit):
    try:
        model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.hook_resid_pre", lambda value, hook: value)])
    except lens.DeviceError as error:
        print(error)
"""
    )
    assert refused.returncode == 0, refused.stderr[-2000:]
    assert "cannot be split" in refused.stdout and "bytes a buffer" in refused.stdout
    aborted = child(
        LIMITED
        + """
with lens.faults.simulated_limits(max_buffer_bytes=limit):
    torch.empty(limit + 1, dtype=torch.uint8).to("privateuseone")
"""
    )
    assert aborted.returncode == -signal.SIGABRT, (aborted.returncode, aborted.stderr[-2000:])


def test_a_dtype_that_the_device_has_not_is_refused_at_load():
    with lens.faults.simulated_limits(float64=False), pytest.raises(lens.DeviceError, match="doesn't support float64"):
        lens.HookedTransformer.from_pretrained("tiny-ioi", device="simulated", dtype="float64")


# ---- memory ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model of 100 MB, so that its weights outweigh everything else."""
    sys.path.insert(0, str(BENCHMARKS))
    import common

    folder = tmp_path_factory.mktemp("checkpoint")
    return common.make_checkpoint(folder, {"n_layer": 4, "n_head": 8, "n_embd": 512, "n_positions": 512, "vocab_size": 20000})


MEASURED = """
import json, sys
sys.path.insert(0, {benchmarks!r})
import common, torch, lenscpp as lens
torch.set_num_threads(1)
lens.HookedTransformer.from_pretrained("tiny-ioi").run_with_cache("John")
plan = lens.preflight({folder!r}, batch=1, length=512)
before = common.start_of_phase()
model = lens.HookedTransformer.from_pretrained({folder!r})
load = common.memory_mib("VmHWM") - before
model.run_with_cache([1, 2])
before = common.start_of_phase()
cache = model.run_with_cache(common.tokens_of(512, 20000), return_type=None)
run = common.memory_mib("VmHWM") - before
print(json.dumps({{"load": load, "run": run, "plan": {{k: plan[k] for k in ("load", "run")}}}}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_the_plan_is_what_a_load_and_a_run_take(checkpoint):
    # What is freed goes back at once: by itself the allocator keeps some 30 MB for later, more or less by chance.
    returned = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = child(MEASURED.format(benchmarks=str(BENCHMARKS), folder=str(checkpoint)), env={**os.environ, **returned})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    load = (found["plan"]["load"]["host_bytes"] + found["plan"]["load"]["mapped_bytes"]) / 2**20
    run = found["plan"]["run"]["host_bytes"] / 2**20
    assert 0.95 <= load / found["load"] <= 1.3, (load, found["load"])
    assert 0.95 <= run / found["run"] <= 1.3, (run, found["run"])


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
@pytest.mark.parametrize("what", ["load", "run"])
def test_what_cannot_fit_is_refused_with_both_numbers_before_it_is_tried(checkpoint, what):
    loads = f"model = lens.HookedTransformer.from_pretrained({str(checkpoint)!r})"
    runs = "model.run_with_cache([[1] * 512] * 64)"
    done = child(
        f"""
import resource, torch, lenscpp as lens
torch.set_num_threads(1)
def data():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData:")) * 1024
{"" if what == "load" else loads}
limit = data() + (120 << 20)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    {loads if what == "load" else runs}
except lens.DeviceError as error:
    print(error)
"""
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[preflight]" in done.stdout and "RLIMIT_DATA of this process" in done.stdout and "at its peak" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts mapped memory on Linux only")
def test_logits_alone_are_not_refused_for_what_nobody_keeps(checkpoint):
    done = child(
        f"""
import resource, torch, lenscpp as lens
torch.set_num_threads(1)
model = lens.HookedTransformer.from_pretrained({str(checkpoint)!r})
model([[1, 2]], verify="off")
data = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData:")) * 1024
recorded = lens.preflight(model, length=512, batch=2, verify="off")["run"]["host_bytes"]
limit = data + recorded + (56 << 20)  # and 64 MiB stay with the system
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    model.run_with_cache([[1] * 512] * 2, verify="off")
except lens.DeviceError as error:
    print(error)
assert model([[1] * 512] * 2, verify="off").shape == (2, 512, 20000)
"""
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "[preflight] this run needs" in done.stdout, "so that the test is one"


def test_quantized_checkpoints_are_refused_by_name(tmp_path):
    folder = shutil.copytree(Path(lens.__file__).parent / "models" / "tiny-ioi", tmp_path / "quantized")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    with pytest.raises(ValueError, match="awq, 4 bits.*dequantize"):
        lens.HookedTransformer.from_pretrained(folder)
    assert torch.is_tensor(lens.HookedTransformer.from_pretrained("tiny-ioi").W_E)
