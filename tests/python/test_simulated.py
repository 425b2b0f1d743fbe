"""The simulated device from Python: what it is to torch, its limits, and faults inside of it."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

import lenscpp as lens

PROMPT = "When John and Mary went to the store, John gave the bag to"


@pytest.fixture(scope="module")
def model():
    return lens.HookedTransformer.from_pretrained("tiny-ioi", device="simulated")


def test_computes_what_the_cpu_computes(model):
    here, there = (m.run_with_cache(PROMPT)[1] for m in (lens.HookedTransformer.from_pretrained("tiny-ioi"), model))
    assert there.verdict.status == "VERIFIED"
    assert "simulated" in there.record["device_name"] and there.record["device"] == "simulated"
    assert all(torch.equal(here[name], there[name]) for name in here.keys())


def test_torch_knows_it(model):
    assert str(model.device) == "simulated" == str(torch.accelerator.current_accelerator())
    x = torch.arange(6.0).to("simulated").view(2, 3)
    assert "simulated:0" in repr(x) and x.sum().item() == 15
    assert torch.equal(copy.deepcopy(x).cpu(), x.cpu())
    with pytest.raises(RuntimeError, match="same device"):
        x + torch.ones(2, 3)


def test_backward_runs_on_it():
    """In a process of its own: autograd's engine counts the devices at the first backward of a process, once."""
    script = """
import torch, lenscpp as lens
lens._simulated.prepare("simulated")
w = torch.full((2, 2), 3.0, device="simulated", requires_grad=True)
(w @ w).sum().backward()
assert torch.equal(w.grad.cpu(), torch.full((2, 2), 12.0))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_limits_hold_inside_a_block_alone(model):
    x = torch.ones(3, device="simulated")
    with lens.faults.simulated_limits(float64=False, missing=["gelu"], fallback=False):
        with pytest.raises(TypeError, match="MPS framework doesn't support float64"):
            x.double()
        with pytest.raises(NotImplementedError, match="aten::gelu"):
            torch.nn.functional.gelu(x)
        with lens.faults.simulated_limits(fallback=True), pytest.warns(UserWarning, match="will fall back to run on the CPU"):
            torch.nn.functional.gelu(x)
    assert x.double().dtype == torch.float64
    with pytest.raises(ValueError, match="float64"):
        with lens.faults.simulated_limits(float46=False):
            pass


def test_limits_come_from_the_environment():
    """Preflight refuses a model that does not fit; what passes it by ends the process, as Apple's assertion does."""
    script = "import lenscpp as lens; lens.HookedTransformer.from_pretrained('tiny-ioi', device='simulated'); print('loaded')"
    around = "import torch, lenscpp as lens; lens._simulated.prepare('simulated'); torch.ones(5000, device='simulated'); print('loaded')"
    limits = {"max_buffer_bytes": 4096}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "LENSCPP_SIMULATED": json.dumps(limits)}
    )
    assert done.returncode == 1 and "DeviceError: [preflight]" in done.stderr and "4096 bytes a buffer" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", around], capture_output=True, text=True, env={**os.environ, "LENSCPP_SIMULATED": json.dumps(limits)}
    )
    assert done.returncode == -6 and "total bytes of NDArray > 2**32" in done.stderr and "loaded" not in done.stdout
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "LENSCPP_SIMULATED": "{"})
    assert done.returncode == 1 and "LENSCPP_SIMULATED is not JSON" in done.stderr


def test_a_fault_inside_an_operator_is_refused_where_it_sits(model):
    with lens.faults.inject("S1", hook="blocks.1.hook_attn_out", transposed=1) as fault:
        with pytest.raises(lens.VerificationFailed) as refused:
            model.run_with_cache(PROMPT)
    assert refused.value.verdict.first_failure.name == "blocks.1.hook_attn_out"
    assert fault.fired == [("blocks.1.hook_attn_out", 15 * 128)]
    assert model.run_with_cache(PROMPT)[1].verdict.status == "VERIFIED"


def test_a_fault_inside_a_device_needs_that_device():
    cpu = lens.HookedTransformer.from_pretrained("tiny-ioi")
    with lens.faults.inject("ignores_weight_strides"), pytest.raises(ValueError, match="simulated device"):
        cpu.run_with_cache(PROMPT)
    with pytest.raises(ValueError, match="nearest"), lens.faults.inject("ignores_weight_stride"):
        pass


def test_the_catalogue_lists_both_kinds():
    rows = lens.faults.catalogue()
    kinds = {row["kind"] for row in rows}
    assert kinds == {"tap", "device"}
    device = {row["id"]: row for row in rows if row["kind"] == "device"}
    assert {"S1", "S4", "S8", "Z4", "Z5", "U1", "U3", "M1", "M3", "M7", "P1", "P5", "C1"} <= device.keys()
    assert all(row["trigger"] and row["recipe"] and row["operators"] for row in device.values())
    assert device["Z4"]["parameters"]["rows"]["default"] == 8 and "call" in device["Z4"]["parameters"]
