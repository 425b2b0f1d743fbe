"""What is asked of a device and said about it: the warning of mps, declared precision, fallbacks."""

import os
import subprocess
import sys

import pytest
from conftest import PROMPT

import lenscpp as lens

ASK_TWICE = """
import warnings
import lenscpp as lens
for device in ("mps", "mps:0", "mps"):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            lens.HookedTransformer.from_pretrained("tiny-ioi", device=device)
        except lens.DeviceError:
            pass
    print(len(warned), *{str(w.category.__name__) for w in warned}, *(str(w.message) for w in warned))
"""


def ask_twice(**environment):
    run = subprocess.run(
        [sys.executable, "-c", ASK_TWICE], capture_output=True, text=True, check=True, env={**os.environ, **environment}, timeout=300
    )
    assert "[device]" not in run.stderr, "said by Python, not once more by C++"
    return run.stdout.splitlines()


def test_mps_is_warned_of_once():
    first, *others = ask_twice(LENSCPP_ALLOW_MPS="")
    assert others == ["0", "0"]
    assert first.startswith("1 UserWarning [device] mps has computed wrong activations")
    for said in ("-0.99", "TransformerLens 1178", "161640", "lenscpp doctor --device mps", "LENSCPP_ALLOW_MPS=1"):
        assert said in first


def test_the_warning_can_be_silenced():
    assert ask_twice(LENSCPP_ALLOW_MPS="1") == ["0", "0", "0"]


def test_silence_is_of_the_warning_never_of_the_verification(tiny, monkeypatch):
    monkeypatch.setenv("LENSCPP_ALLOW_MPS", "1")
    assert tiny.run_with_cache(PROMPT)[1].verdict.status == "VERIFIED"
    with pytest.raises(lens.VerificationFailed), lens.faults.inject("nan", hook="blocks.0.attn.hook_z"):
        tiny(PROMPT)


@pytest.fixture(scope="module")
def tf32():
    return lens.HookedTransformer.from_pretrained("tiny-ioi", matmul_precision="tf32")


def test_declared_tf32_is_recorded_and_survives_a_file(tiny, tf32, tmp_path):
    _, cache = tf32.run_with_cache(PROMPT)
    assert cache.record["matmul_precision"] == "tf32" and cache.verdict.status == "VERIFIED"
    assert tiny.run_with_cache(PROMPT)[1].record["matmul_precision"] == "ieee"
    cache.save(tmp_path / "run.h5")
    assert lens.load(tmp_path / "run.h5", tf32).record["matmul_precision"] == "tf32"


def test_declared_tf32_widens_the_products_alone(tiny, tf32):
    """A CPU uses none of the permission: the same numbers, further within the bounds of products."""
    products = {"linear", "scores", "mix"}
    plain, declared = (model.run_with_cache(PROMPT)[1].verdict.points for model in (tiny, tf32))
    for a, b in zip(plain, declared, strict=True):
        assert (a.name, a.op, a.compared) == (b.name, b.op, b.compared)
        if a.op in products:
            assert b.worst_ratio < a.worst_ratio / 4 and b.rms_ratio < a.rms_ratio
        else:
            assert b.worst_ratio == a.worst_ratio


@pytest.mark.parametrize("hook", ["blocks.0.attn.hook_q", "blocks.1.hook_mlp_out", "blocks.2.attn.hook_attn_scores"])
def test_declared_tf32_lets_nothing_coarser_through(tf32, hook):
    with pytest.raises(lens.VerificationFailed), lens.faults.inject("round_bits", hook=hook, bits=8):
        tf32(PROMPT)


def test_attribution_of_a_declared_run_sums_to_its_logits(tf32):
    parts = lens.direct_logit_attribution(tf32.run_with_cache(PROMPT)[1], " Mary", " John", unit="head")
    assert parts.total.item() == pytest.approx(parts.logit_diff.item(), abs=1e-3)


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"matmul_precision": "tf23"}, ValueError, "allowed: ieee, tf32"),
        ({"matmul_precision": 1}, TypeError, "needed"),
        ({"matmul_precision": "tf32", "dtype": "bfloat16"}, ValueError, "bfloat16"),
        ({"allow_fallback": 1}, TypeError, "allow_fallback is True or False"),
    ],
)
def test_load_errors(options, error, says):
    with pytest.raises(error, match=says):
        lens.HookedTransformer.from_pretrained("tiny-ioi", **options)


def test_the_cpu_falls_back_to_nothing(run):
    assert run[1].verdict.fallbacks == [] and run[1].record["fallbacks"] == []
    assert "fallbacks" in run[1].verdict.to_dict()


# ---- operators that fall back ----


@pytest.fixture(scope="module")
def simulated():
    return lens.HookedTransformer.from_pretrained("tiny-ioi", device="simulated")


def test_an_operator_without_a_kernel_is_named_in_record_and_verdict(simulated, tmp_path):
    with lens.faults.simulated_limits(missing=["gelu", "_softmax"]):
        _, cache = simulated.run_with_cache(PROMPT)
    assert sorted(cache.verdict.fallbacks) == sorted(cache.record["fallbacks"]) == ["aten::_softmax", "aten::gelu"]
    assert cache.verdict.status == "VERIFIED", "a fallback is right, only slow"
    for text in (cache.verdict.summary, str(cache.verdict)):
        assert "on the CPU instead of the device ran: " in text and "aten::gelu" in text
    cache.save(tmp_path / "run.h5")
    assert lens.load(tmp_path / "run.h5", simulated).verdict.fallbacks == cache.verdict.fallbacks


def test_a_device_with_every_kernel_falls_back_to_nothing(simulated):
    _, cache = simulated.run_with_cache(PROMPT)
    assert cache.verdict.fallbacks == [] and "on the CPU" not in cache.verdict.summary


def test_a_refused_run_names_them_too(simulated):
    with (
        lens.faults.simulated_limits(missing=["gelu"]),
        lens.faults.inject("nan", hook="blocks.0.attn.hook_z"),
        pytest.raises(lens.VerificationFailed, match="on the CPU instead of the device ran: aten::gelu") as refused,
    ):
        simulated(PROMPT)
    assert refused.value.verdict.fallbacks == ["aten::gelu"]


@pytest.mark.parametrize("verify", ["exact", "off"])
def test_fallbacks_can_be_forbidden(verify):
    model = lens.HookedTransformer.from_pretrained("tiny-ioi", device="simulated", allow_fallback=False)
    model(PROMPT, verify=verify)
    with lens.faults.simulated_limits(missing=["gelu"]):
        for run in (model.forward, model.run_with_cache):
            with pytest.raises(lens.DeviceError, match="ran on the CPU instead: aten::gelu; allowed with allow_fallback"):
                run(PROMPT, verify=verify)


@pytest.mark.parametrize("flag, status", [([], 0), (["--no-fallback"], 4)])
def test_the_program_forbids_them_too(flag, status):
    program = os.environ.get("LENSCPP_PROGRAM") or os.path.join(os.path.dirname(sys.executable), "lenscpp")
    done = subprocess.run(
        [program, "run", "tiny-ioi", "--prompt", PROMPT, "--device", "simulated", *flag],
        capture_output=True,
        text=True,
        env={**os.environ, "LENSCPP_SIMULATED": '{"missing": ["gelu"]}'},
        timeout=300,
    )
    assert done.returncode == status and "aten::gelu" in done.stdout + done.stderr


# ---- products whose operands are rounded, inside of the device ----


def test_tf32_inside_of_the_device_needs_its_declaration(simulated):
    declared = lens.HookedTransformer.from_pretrained("tiny-ioi", device="simulated", matmul_precision="tf32")
    with lens.faults.simulated_limits(faults=[{"name": "P5"}]):
        with pytest.raises(lens.VerificationFailed, match="precision about tf32") as refused:
            simulated(PROMPT)
        assert 'matmul_precision="tf32"' in str(refused.value)
        for verify in ("exact", "checksum"):
            assert declared.run_with_cache(PROMPT, verify=verify)[1].verdict.status == "VERIFIED"
        with pytest.raises(lens.VerificationFailed), lens.faults.inject("one_element", hook="blocks.1.attn.hook_q"):
            declared(PROMPT)
