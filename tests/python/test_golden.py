"""Every cache name, shape and value equals transformer-lens's."""

import pytest
import torch
from conftest import CASES, GOLDEN, golden_runs, normalized_error, read_safetensors

import lenscpp as lens

# The case bfloat16 has gelu_fast, for which the peers write sqrt(2 / pi) with ten digits.
RAW = [(case, "float64", 1e-11 if case == "bfloat16" else 1e-12) for case in CASES] + [(case, "float32", 1e-5) for case in CASES]
PROCESSED = [case for case in CASES if (GOLDEN / case / "tl_processed.safetensors").exists()]
PROCESSED_64 = [case for case in CASES if (GOLDEN / case / "tl_processed_float64.safetensors").exists()]


def assert_equal(model, file, case, limit):
    compared = 0
    for tokens, expected, logits in golden_runs(case, file):
        found_logits, cache = model.run_with_cache(tokens)
        assert set(cache.keys()) == set(expected)
        assert cache.verdict.status == "VERIFIED"
        assert normalized_error(found_logits, logits) < limit
        for name, tensor in cache.items():
            assert tensor.shape == expected[name].shape, name
            assert normalized_error(tensor, expected[name]) < limit, name
            compared += 1
    assert compared > 0


@pytest.mark.parametrize("case, dtype, limit", RAW)
def test_raw(case, dtype, limit):
    model = lens.HookedTransformer.from_pretrained_no_processing(GOLDEN / case, dtype=dtype)
    assert_equal(model, "tl_raw.safetensors", case, limit)


@pytest.mark.parametrize("case", PROCESSED)
def test_processed(case):
    model = lens.HookedTransformer.from_pretrained(GOLDEN / case)
    assert model.cfg.normalization_type == "LNPre"
    assert_equal(model, "tl_processed.safetensors", case, 1e-5)


@pytest.mark.parametrize("case", PROCESSED_64)
def test_processed_in_float64(case):
    assert_equal(lens.HookedTransformer.from_pretrained(GOLDEN / case, dtype=torch.float64), "tl_processed_float64.safetensors", case, 1e-12)


@pytest.mark.parametrize("file", ["tl_flags.safetensors", "tl_flags_attn_in.safetensors"])
def test_on_demand_hooks(file):
    model = lens.HookedTransformer.from_pretrained_no_processing(GOLDEN / "flags", dtype="float64")
    for tokens, expected, _ in golden_runs("flags", file):
        on_demand = set(expected) - set(model.hook_names)
        assert on_demand
        _, cache = model.run_with_cache(tokens, names_filter=sorted(on_demand))
        assert set(cache) == on_demand
        for name in on_demand:
            assert cache[name].shape == expected[name].shape, name
            assert normalized_error(cache[name], expected[name]) < 1e-12, name


def test_processed_weights():
    model = lens.HookedTransformer.from_pretrained(GOLDEN / "three_layers")
    expected = read_safetensors(GOLDEN / "three_layers" / "tl_weights_processed.safetensors")
    stacked = {
        name: torch.stack([expected[f"blocks.{l}.{part}.{name}"] for l in range(3)])
        for part, names in {"attn": "W_Q W_K W_V W_O b_Q b_K b_V b_O", "mlp": "W_in W_out b_in b_out"}.items()
        for name in names.split()
    }
    stacked |= {"W_E": expected["embed.W_E"], "W_pos": expected["pos_embed.W_pos"]}
    stacked |= {name: expected[f"unembed.{name}"] for name in ("W_U", "b_U")}
    for name, weight in stacked.items():
        found = getattr(model, name)
        assert found.shape == weight.shape and found.dtype == torch.float32, name
        assert normalized_error(found, weight) < 1e-5, name
    assert torch.equal(model.tokens_to_residual_directions(torch.tensor([[3, 5], [256, 0]])), model.W_U.T[torch.tensor([[3, 5], [256, 0]])])
    assert torch.equal(model.tokens_to_residual_directions(7), model.W_U[:, 7])


def test_the_comparison_fails():
    """Where a name is missing, a shape differs, a value is off, or minus infinity stands at another place."""
    x = torch.tensor([1.0, 2.0, float("-inf")])
    assert normalized_error(x, x) == 0
    assert not normalized_error(torch.tensor([1.0, 2.1, float("-inf")]), x) < 1e-5
    assert not normalized_error(torch.tensor([1.0, float("-inf"), 2.0]), x) < 1e-5
    assert not normalized_error(torch.tensor([1.0, 2.0, float("inf")]), x) < 1e-5
    assert not normalized_error(torch.tensor([1.0, float("nan"), float("-inf")]), x) < 1e-5
    model = lens.HookedTransformer.from_pretrained(GOLDEN / "untied")
    with pytest.raises(AssertionError):
        assert_equal(model, "tl_raw.safetensors", "untied", 1e-5)
