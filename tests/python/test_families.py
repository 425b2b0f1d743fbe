"""Every family: hidden states, logits and cache entries equal the peers', and all checks pass in every dtype."""

import json
import re
import shutil

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


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("case", WITH_TL)
def test_equals_transformer_lens(case, processed):
    """Names, shapes and values, without processing and with; of the blocks a file holds the first two."""
    file = FAMILIES / case / f"tl_{'processed' if processed else 'raw'}.safetensors"
    stored = {name.removeprefix("0/"): value for name, value in read_safetensors(file).items()}
    logits = stored.pop("logits")
    model = load(case, "float64", processed)
    assert model.cfg.normalization_type.endswith("Pre") == processed
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


def test_processing_says_what_it_leaves_alone():
    """What an RMSNorm reads keeps its mean, capped logits theirs, what is normed behind its norm; value biases go everywhere."""
    loaded = {case: (load(case, "float64"), load(case, "float64", True)) for case in ("qwen2_grouped", "gemma2_grouped", "neox_parallel", "olmo2_grouped")}
    embedding = {case: normalized_error(processed.W_E, raw.W_E) for case, (raw, processed) in loaded.items()}
    assert embedding["neox_parallel"] > 0.01 and {embedding[case] for case in loaded if case != "neox_parallel"} == {0}
    mean_logit = {case: processed.W_U.mean(-1).abs().max() < 1e-15 for case, (_, processed) in loaded.items()}
    assert mean_logit == {"qwen2_grouped": True, "gemma2_grouped": False, "neox_parallel": True, "olmo2_grouped": True}
    for case, (raw, processed) in loaded.items():
        assert processed.cfg.normalization_type == ("RMS" if case == "olmo2_grouped" else raw.cfg.normalization_type + "Pre")
        assert processed.b_V.abs().max() == 0
    raw, processed = loaded["qwen2_grouped"]
    assert raw.b_V.abs().max() > 0.1 and (processed.b_O - raw.b_O).abs().max() > 0.1


# What transformer-lens's own table of models makes of these, and why it is wrong.
TL_IS_WRONG = {
    "gemma3_windows": "scores divided by sqrt(head_dim), not by sqrt(query_pre_attn_scalar): as gemma-3-27b, 128 for 168",
    "neox_sequential": "angles of base 10000 whatever rope_theta is",
    "bloom_alibi": "slopes 2^(-8 h / n) where the number of heads n is no power of two",
}


@pytest.mark.parametrize("case", TL_IS_WRONG)
def test_transformer_lens_is_wrong(case):
    """Its logits are 5 to 50 % off those of transformers; ours are not."""
    theirs = read_safetensors(FAMILIES / case / "tl_wrong.safetensors")["logits"]
    expected = runs(case)[0]
    ours = load(case, "float64")(expected["tokens"])
    assert normalized_error(ours, expected["logits"]) < LIMIT
    assert 0.05 < normalized_error(theirs, expected["logits"]) < 0.5
    assert 0.1 < (theirs.log_softmax(-1) - expected["logits"].log_softmax(-1)).abs().max()


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("gemma3_windows", lambda config: config.update(query_pre_attn_scalar=config["head_dim"])),
        ("neox_sequential", lambda config: config["rope_parameters"].update(rope_theta=10000.0)),
    ],
)
def test_this_is_what_transformer_lens_gets_wrong(case, change, tmp_path):
    """With its mistake written into config.json, our logits are its own."""
    folder = shutil.copytree(FAMILIES / case, tmp_path / case)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    logits = lens.HookedTransformer.from_pretrained_no_processing(folder, dtype="float64")(runs(case)[0]["tokens"])
    assert normalized_error(logits, read_safetensors(FAMILIES / case / "tl_wrong.safetensors")["logits"]) < LIMIT


def test_slopes_of_three_heads_are_the_papers():
    """arXiv 2108.12409: those of two heads, then every other one of four; transformer-lens has 2^(-8/3), 2^(-16/3), 2^-8."""
    model = load("bloom_alibi", "float64")
    _, cache = model.run_with_cache(torch.arange(8))
    q, k = (cache[f"blocks.0.attn.hook_{x}"][0].transpose(0, 1) for x in "qk")  # [head, pos, d_head]
    bias = cache["blocks.0.attn.hook_attn_scores"][0] - q @ k.transpose(1, 2) / model.cfg.d_head**0.5
    assert torch.allclose(-bias[:, 7, :7] / torch.arange(7, 0, -1), torch.tensor([[2**-4], [2**-8], [2**-2]]).double(), atol=1e-12)


KINDS = [
    "llama_dynamic", "neox_parallel", "gptj_rotary", "gemma2_grouped", "gemma3_windows", "qwen3_grouped", "olmo2_grouped", "bloom_alibi", "gpt_neo_local",
    "mixtral_window",
]  # fmt: skip
SITES = {site: ("layer", "pos") for site in ("resid_pre", "k", "v", "z", "attn_out", "mlp_out")}
SITES |= {"embed": ("pos",), "attn_scores": ("layer", "query"), "pattern": ("layer", "head")}
ROTARY = {site: ("layer", "pos") for site in ("rot_q", "rot_k")}
POST = {"ln1_post.hook_scale": ("layer", "pos")}
GRIDS = [(case, *site) for case in KINDS for site in SITES.items()]
GRIDS += [(case, *site) for case in KINDS if case not in ("bloom_alibi", "gpt_neo_local") for site in ROTARY.items()]
GRIDS += [(case, *site) for case in ("gemma2_grouped", "gemma3_windows", "olmo2_grouped") for site in POST.items()]


@pytest.mark.parametrize(("case", "site", "over"), GRIDS)
def test_savings_of_a_sweep_move_values_by_rounding_alone(case, site, over):
    """Keys before the first changed position come from the base run, turned already."""
    model = load(case, "float64")
    clean, corrupted = (torch.arange(9).add(shift).remainder(model.cfg.d_vocab) for shift in (0, 5))
    corrupted = torch.cat([clean[:3], corrupted[3:]])
    base = model.run_with_cache(clean)[1]
    grids = [
        patching.patch_grid(model, base, corrupted, site, over, lens.LogitDiff(3, 4), savings=savings, verify="exact")
        for savings in (True, False)
    ]
    assert all(grid.verdict.status == "VERIFIED" for grid in grids)
    with_savings, without = (grid.values for grid in grids)
    assert (with_savings - without).abs().max() < 1e-13 * without.abs().max()
    assert without.flatten().unique().numel() > 2


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


ADDITIVE = [case for case in CASES if case.startswith(("llama", "neox", "gptj", "bloom", "gpt_neo", "gemma", "olmo2", "opt", "mixtral", "falcon", "phi"))]


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("case", ADDITIVE)
def test_the_residual_stream_is_the_sum_of_its_parts(case, processed):
    model = load(case, "float64", processed)
    _, cache = model.run_with_cache(torch.arange(6).remainder(model.cfg.d_vocab))
    final = cache["resid_post", -1]
    assert normalized_error(cache.decompose_resid().sum(0), final) < 1e-12
    attribution = lens.direct_logit_attribution(cache, 3, 5, unit="component")
    logits = cache["unembed.hook_out"][0, -1]
    assert abs(float(attribution.values.sum()) - float(logits[3] - logits[5])) < 1e-9
    normed = model.cfg.use_normalization_before_and_after or case.startswith("olmo2")
    for by_head in (lambda: cache.stack_head_results(incl_remainder=True), lambda: cache.get_full_resid_decomposition(expand_neurons=False)):
        if normed:
            with pytest.raises(ValueError, match="no sum of heads"):
                by_head()
        else:
            assert normalized_error(by_head().sum(0), final) < 1e-12
