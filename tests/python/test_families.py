"""Every family: hidden states, logits and cache entries equal the peers', and all checks pass in every dtype."""

import re

import pytest
import torch
from conftest import GOLDEN, normalized_error, read_safetensors

import lenscpp as lens
from lenscpp import patching

FAMILIES = GOLDEN.parent / "families"
CASES = sorted(p.name for p in FAMILIES.iterdir() if p.is_dir())
WITH_TL = [case for case in CASES if (FAMILIES / case / "tl_raw.safetensors").exists()]
# transformers rounds rotary angles to float32 in a float64 model too, and the files are float32.
LIMIT = 1e-5


def load(case, dtype, processed=False):
    make = lens.HookedTransformer.from_pretrained if processed else lens.HookedTransformer.from_pretrained_no_processing
    return make(FAMILIES / case, dtype=dtype)


def runs(case):
    stored = read_safetensors(FAMILIES / case / "hf.safetensors")
    return [{k.replace(f".{i}", "", 1): v for k, v in stored.items() if k.split(".")[1] == str(i)} for i in (0, 1)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case, dtype):
    model = load(case, dtype)
    layers = model.cfg.n_layers
    for run in runs(case):
        logits, cache = model.run_with_cache(run["tokens"])
        assert cache.verdict.status == "VERIFIED"
        assert normalized_error(logits, run["logits"]) < LIMIT
        for layer in range(layers):
            assert normalized_error(cache[f"blocks.{layer}.hook_resid_pre"], run[f"hidden.{layer}"]) < LIMIT, layer
        assert normalized_error(cache["unembed.hook_in"], run[f"hidden.{layers}"]) < LIMIT


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_honest_runs_are_verified(case, dtype, processed):
    model = load(case, dtype, processed)
    generator = torch.Generator().manual_seed(7)
    for pos, verify in ((1, "exact"), (6, "exact"), (11, "checksum")):
        tokens = torch.randint(model.cfg.d_vocab, (2, pos), generator=generator)
        assert model.run_with_cache(tokens, verify=verify)[1].verdict.status == "VERIFIED"


@pytest.mark.parametrize("case", CASES)
def test_processing_keeps_the_log_probabilities(case):
    tokens = runs(case)[0]["tokens"]
    raw, processed = (load(case, "float64", p)(tokens).log_softmax(-1) for p in (False, True))
    assert (raw - processed).abs().max() < 1e-11


def routed(name, cache):
    """What transformer-lens records of one expert: the tokens that chose it, first choices first; and of a router: all tokens as one axis."""
    if ".experts." not in name:
        return cache[name].flatten(0, 1)  # [batch pos, expert or choice]
    block, rest = name.split("experts.")
    expert, hook = rest.split(".hook_")
    _, token = torch.where(cache[block + "hook_expert_indices"].flatten(0, 1).T == int(expert))  # [choice, batch pos]
    return cache[f"{block}hook_expert_{hook}"][:, :, int(expert)].flatten(0, 1)[token]


def without_number(name):
    return re.sub(r"experts\.\d+\.hook_", "hook_expert_", name)


@pytest.mark.parametrize("case", WITH_TL)
def test_equals_transformer_lens(case):
    """Names, shapes and values; of the blocks the file holds the first two."""
    stored = {name.removeprefix("0/"): value for name, value in read_safetensors(FAMILIES / case / "tl_raw.safetensors").items()}
    logits = stored.pop("logits")
    model = load(case, "float64")
    found_logits, cache = model.run_with_cache(runs(case)[0]["tokens"][:1, : logits.shape[1]])
    assert {name for name in cache if not name.startswith("blocks.2.")} == {without_number(name) for name in stored}
    # transformer-lens computes rotary frequencies, and Gemma's scale of the embedding, in float32 whatever the model is.
    limit = 1e-6 if model.cfg.positional_embedding_type == "rotary" else 1e-11
    assert normalized_error(found_logits, logits) < limit
    before = ["hook_embed", "blocks.0.attn.hook_q", "blocks.0.attn.hook_k", "blocks.0.attn.hook_v"]
    for name, expected in stored.items():
        # transformer-lens's embedding ends behind its norm.
        behind_norm = name == "hook_embed" and "embed.ln.hook_scale" in stored
        found = routed(name, cache) if "expert" in name else cache["blocks.0.hook_resid_pre" if behind_norm else name]
        # transformer-lens flattens batch, position and head in the norms of queries and keys.
        flattened = "q_norm" in name or "k_norm" in name
        assert found.shape == expected.shape or (flattened and found.numel() == expected.numel()), name
        exact = name in before and not case.startswith("gemma")
        if expected.numel() == 0:  # an expert that no token chose
            continue
        assert normalized_error(found.reshape(expected.shape), expected) < (1e-13 if exact else limit), name


KINDS = ["llama_dynamic", "neox_parallel", "gemma2_grouped", "gemma3_windows", "qwen3_grouped", "olmo2_grouped", "bloom_alibi", "gpt_neo_local", "mixtral_window"]


@pytest.mark.parametrize("site", ["resid_pre", "k", "z", "mlp_out"])
@pytest.mark.parametrize("case", KINDS)
def test_savings_of_a_sweep_move_values_by_rounding_alone(case, site):
    """Keys before the first changed position come from the base run, turned already."""
    model = load(case, "float64")
    clean, corrupted = (torch.arange(9).add(shift).remainder(model.cfg.d_vocab) for shift in (0, 5))
    corrupted = torch.cat([clean[:3], corrupted[3:]])
    metric = lens.LogitDiff(3, 4)
    base = model.run_with_cache(clean)[1]
    grids = [
        patching.patch_grid(model, base, corrupted, site, ("layer", "pos"), metric, savings=savings, verify="exact").values
        for savings in (True, False)
    ]
    assert (grids[0] - grids[1]).abs().max() < 1e-6 * grids[1].abs().max()
    assert grids[1].flatten().unique().numel() > 2


def test_the_input_of_all_heads_cannot_be_changed_where_keys_are_shared():
    model = load("llama_grouped", "float32")
    with pytest.raises(ValueError, match="6 heads and keys and values have 2"):
        model(torch.arange(5), plan=lens.Plan([lens.Ablate("blocks.1.hook_attn_in")]))


@pytest.mark.parametrize("site", ["hook_q_input", "hook_k_input", "attn.hook_result", "hook_mlp_in", "attn.hook_q", "attn.hook_pattern"])
@pytest.mark.parametrize("case", KINDS)
def test_edited_runs_are_verified(case, site):
    model = load(case, "bfloat16", processed=True)
    tokens = runs(case)[0]["tokens"]
    logits, cache = model.run_with_cache(tokens, plan=lens.Plan([lens.Ablate(f"blocks.1.{site}")]))
    assert cache.verdict.status == "VERIFIED"
    assert not torch.equal(logits, model(tokens))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("verify", ["exact", "checksum"])
def test_edits_of_an_expert_reach_what_is_mixed(verify, dtype):
    """An expert of probability 0 is chosen by nobody; one of probability 1 by everybody."""
    model = load("mixtral_window", dtype, processed=True)
    tokens = runs("mixtral_window")[0]["tokens"]
    plain = model.run_with_cache(tokens)[1]
    name = "blocks.1.mlp.hook_expert_weights"
    for value, chosen in ((0.0, 0), (1.0, tokens.numel())):
        source = plain[name].clone()
        source[..., 3] = value
        logits, cache = model.run_with_cache(tokens, plan=lens.Plan([lens.Patch(name, source)]), verify=verify)
        assert cache.verdict.status == "VERIFIED"
        assert (cache["blocks.1.mlp.hook_expert_indices"] == 3).sum() == chosen
        assert not torch.equal(cache["blocks.1.hook_mlp_out"], plain["blocks.1.hook_mlp_out"])
        assert torch.equal(cache["blocks.1.mlp.hook_expert_post"], plain["blocks.1.mlp.hook_expert_post"])


def test_mixed_experts_are_what_the_weights_say():
    """mlp_out from what is cached alone, in the words of the paper."""
    model = load("mixtral_together", "float64")
    cache = model.run_with_cache(runs("mixtral_together")[0]["tokens"])[1]
    post, weights, indices = (cache[f"blocks.2.mlp.hook_expert_{n}"] for n in ("post", "weights", "indices"))
    top = weights.gather(-1, indices)
    assert (top[..., :-1] > top[..., 1:]).all()
    shares = torch.zeros_like(weights).scatter(-1, indices, top / top.sum(-1, keepdim=True))
    out = torch.einsum("bpe,bpen,enm->bpm", shares, post, model.W_out[2])
    assert normalized_error(out, cache["blocks.2.hook_mlp_out"]) < 1e-13
    normalized = cache["blocks.2.ln2.hook_normalized"] * read_safetensors(FAMILIES / "mixtral_together" / "model.safetensors")["model.layers.2.post_attention_layernorm.weight"]
    assert normalized_error((normalized @ model.W_router[2]).softmax(-1), weights) < 1e-13
    assert normalized_error(torch.einsum("bpm,emn->bpen", normalized, model.W_gate[2]), cache["blocks.2.mlp.hook_expert_gate"]) < 1e-13


def test_what_experts_have_not_is_refused_by_name():
    model = load("mixtral_window", "float32")
    tokens = runs("mixtral_window")[0]["tokens"]
    cache = model.run_with_cache(tokens)[1]
    total = cache.decompose_resid(layer=3, mode="mlp", incl_embeds=False).sum(0)
    assert torch.allclose(total, sum(cache[f"blocks.{l}.hook_mlp_out"] for l in range(3)), atol=1e-5)
    for neurons in (lambda: cache.get_neuron_results(1), lambda: cache.stack_neuron_results(2), lambda: cache.get_full_resid_decomposition(2)):
        with pytest.raises(ValueError, match="neurons of experts are not taken apart"):
            neurons()
    with pytest.raises((KeyError, ValueError), match="hook_expert_post"):
        cache["blocks.1.mlp.hook_post"]
    with pytest.raises(ValueError, match="cannot be edited"):
        model(tokens, plan=lens.Plan([lens.Ablate("blocks.1.mlp.hook_expert_indices")]))
    with pytest.raises(ValueError, match="no expert has a share; edit hook_mlp_out"):
        model(tokens, plan=lens.Plan([lens.Ablate("blocks.1.mlp.hook_expert_weights", pos=2)]))
    with pytest.raises(ValueError, match="no experts"):
        load("mistral_window", "float32").W_router


def test_experts_on_another_device_are_the_cpus():
    """Sorting, gathering and scattering are the device's own operators: none may fall back."""
    tokens = runs("mixtral_window")[0]["tokens"]
    here = load("mixtral_window", "float32").run_with_cache(tokens)[1]
    there = lens.HookedTransformer.from_pretrained_no_processing(FAMILIES / "mixtral_window", device="simulated").run_with_cache(tokens)[1]
    assert there.verdict.status == "VERIFIED" and not there.verdict.fallbacks
    assert all(torch.equal(here[name], there[name]) for name in here)


def test_a_saved_run_of_experts_is_checked_and_read_again(tmp_path):
    model = load("mixtral_together", "bfloat16")
    cache = model.run_with_cache(runs("mixtral_together")[1]["tokens"])[1]
    cache.save(tmp_path / "run.h5")
    again = lens.load(tmp_path / "run.h5", model)
    assert list(again) == list(cache)
    assert again["blocks.2.mlp.hook_expert_indices"].dtype == torch.int64
    assert all(torch.equal(again[name], cache[name]) for name in cache)


@pytest.mark.parametrize("site", ["z", "mlp_out", "expert_weights", "expert_post"])
def test_patches_of_experts_are_one_run_each(site):
    """A cell of a grid is a run with that patch, wherever the router then sends the tokens."""
    model = load("mixtral_window", "float64")
    clean, corrupted = torch.arange(9), torch.cat([torch.arange(3), torch.arange(8, 14)])
    base, other = (model.run_with_cache(tokens)[1] for tokens in (clean, corrupted))
    grid = patching.patch_grid(model, base, corrupted, site, ("layer", "pos"), lens.LogitDiff(3, 4)).values
    assert grid.flatten().unique().numel() > 2
    name = next(n for n in base if n.startswith("blocks.1.") and n.endswith(f"hook_{site}"))
    for pos in (2, 5):
        patch = lens.Patch(name, base[name], pos=pos)
        logits, cache = model.run_with_cache(corrupted, plan=lens.Plan([patch]))
        assert cache.verdict.status == "VERIFIED"
        assert abs(grid[1, pos] - (logits[0, -1, 3] - logits[0, -1, 4])) < 1e-9
    moved = other["blocks.1.mlp.hook_expert_indices"] != base["blocks.1.mlp.hook_expert_indices"]
    assert moved.any(), "the prompts are sent to other experts"
