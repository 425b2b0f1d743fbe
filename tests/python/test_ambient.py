"""What surrounds a call changes no number, and a call changes nothing that surrounds it."""

import threading
from contextlib import contextmanager

import pytest
import torch
from conftest import PROMPT
from torch.utils._python_dispatch import TorchDispatchMode

import lenscpp as lens


class Spoil(TorchDispatchMode):
    """Halves every floating result."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        return out * 0.5 if isinstance(out, torch.Tensor) and out.is_floating_point() else out


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def lower_precision():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


AMBIENT = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "default_float64": lambda: default_dtype(torch.float64),
    "default_bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "dispatch_mode": Spoil,
    "medium_precision": lower_precision,
    "default_device_meta": lambda: torch.device("meta"),
}


def everything(model):
    logits, cache = model.run_with_cache(PROMPT)
    lens_ = lens.logit_lens(cache)
    return {
        "logits": logits,
        **dict(cache.items()),
        "loss": model(PROMPT, return_type="loss"),
        "tokens": model.to_tokens(PROMPT),
        "directions": model.tokens_to_residual_directions(" Mary"),
        "W_Q": model.W_Q,
        "lens": lens_.logits,
        "probs": lens_.probs(),
        "entropy": lens_.entropy(),
        "rank": lens_.rank(" Mary"),
        "top": lens_.top_k(3).probs,
    }


@pytest.fixture(scope="module")
def plain(tiny):
    return everything(tiny)


@pytest.mark.parametrize("ambient", AMBIENT)
def test_same_numbers(tiny, plain, ambient):
    with AMBIENT[ambient]():
        found = everything(tiny)
    assert found.keys() == plain.keys()
    for name, tensor in found.items():
        assert tensor.dtype == plain[name].dtype and tensor.device == plain[name].device, name
        assert torch.equal(tensor, plain[name]), name


def test_a_spoilt_number_would_be_seen(plain):
    with Spoil():
        x = plain["logits"] + 0
    assert not torch.equal(x, plain["logits"])


@pytest.mark.parametrize("ambient", AMBIENT)
def test_loading_is_the_same(plain, ambient):
    with AMBIENT[ambient]():
        model = lens.HookedTransformer.from_pretrained("tiny-ioi")
    assert torch.equal(model(PROMPT), plain["logits"])


def test_nothing_is_left_behind(tiny):
    def state():
        return (
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.get_float32_matmul_precision(),
            torch.get_num_threads(),
        )

    before = state()
    tiny(PROMPT)
    assert state() == before
    with default_dtype(torch.float64), torch.autocast("cpu"), lower_precision():
        inside = state()
        tiny(PROMPT)
        with pytest.raises(lens.VerificationFailed), lens.faults.inject("nan", hook="blocks.0.attn.hook_z"):
            tiny(PROMPT)
        assert state() == inside and inside != before
    assert state() == before


def test_tensors_are_ordinary(run):
    logits, cache = run
    for tensor in (logits, cache["resid_post", 1]):
        assert type(tensor) is torch.Tensor and tensor.device.type == "cpu"
        assert not tensor.requires_grad and not tensor.is_inference()
    x = cache["resid_post", 1].requires_grad_()
    (x * x).sum().backward()
    assert torch.equal(x.grad, 2 * x.detach())


def test_requires_grad_inputs_are_read(three):
    residual = three.run_with_cache([1, 2, 3])[1]["resid_pre", 1]
    assert torch.equal(three(residual.clone().requires_grad_(), start_at_layer=1), three(residual, start_at_layer=1))


def test_threads_run_at_the_same_time(tiny, plain):
    found, errors = {}, []

    def work(i):
        try:
            found[i] = tiny.run_with_cache(PROMPT)[0]
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == 4
    assert all(torch.equal(logits, plain["logits"]) for logits in found.values())


def test_two_threads_of_torch(tiny, plain):
    """Not bit for bit: products are summed in another order."""
    torch.set_num_threads(2)
    try:
        logits, cache = tiny.run_with_cache(PROMPT)
    finally:
        torch.set_num_threads(1)
    assert cache.record["threads"] == 2 and cache.verdict.status == "VERIFIED"
    assert torch.allclose(logits, plain["logits"], atol=1e-3)


def test_the_gil_is_released(tiny):
    """Another thread goes on counting while a run lasts."""
    tokens = tiny.to_tokens(PROMPT).repeat(32, 1)
    seen, done = [0], threading.Event()

    def count():
        while not done.is_set():
            seen[0] += 1
            done.wait(0.001)

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = seen[0]
        tiny(tokens)
        assert seen[0] - before >= 3
    finally:
        done.set()
        thread.join()
