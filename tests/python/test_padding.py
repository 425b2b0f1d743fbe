"""Prompts of unequal length in one batch, padded on either side: each gets what it gets by itself, whatever the padding
holds, in every family; and every check passes."""

import pytest
import torch
from conftest import GOLDEN, PROMPT, normalized_error, read_safetensors

import lenscpp as lens
from lenscpp import patching

FAMILIES = GOLDEN.parent / "families"
CASES = [FAMILIES / p.name for p in sorted(FAMILIES.iterdir()) if p.is_dir()] + [GOLDEN / "three_layers", GOLDEN / "inverse_layer_scale"]
IDS = [p.name for p in CASES]
LENGTHS = (13, 3, 1, 9)  # of which two are beyond the trained context of llama_dynamic


def load(folder, **options):
    return lens.HookedTransformer.from_pretrained_no_processing(folder, **options)


def rows_of(model):
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(model.cfg.d_vocab, (n,), generator=generator).tolist() for n in LENGTHS]


def mask_of(side, lengths=LENGTHS):
    longest = max(lengths)
    return torch.tensor([[int((p >= longest - n) if side == "left" else (p < n)) for p in range(longest)] for n in lengths])


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("folder", CASES, ids=IDS)
def test_each_prompt_is_as_by_itself(folder, side):
    model = load(folder, dtype="float64")
    rows, mask = rows_of(model), mask_of(side)
    logits, cache = model.run_with_cache(rows, padding_side=side)
    assert cache.verdict.status == "VERIFIED"
    for prompt, row in enumerate(rows):
        real = mask[prompt].bool()
        alone, by_itself = model.run_with_cache(row)
        assert normalized_error(logits[prompt, real], alone[0]) < 1e-12
        for name in by_itself.keys():
            x, y = cache[name], by_itself[name]
            if name.endswith(("attn_scores", "pattern")):
                assert normalized_error(x[prompt][:, real][:, :, real], y[0]) < 1e-12, name
            else:
                assert normalized_error(x[prompt, real], y[0]) < 1e-12, name


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("folder", CASES, ids=IDS)
def test_honest_runs_are_verified(folder, dtype, side):
    for make in (lens.HookedTransformer.from_pretrained, lens.HookedTransformer.from_pretrained_no_processing):
        model = make(folder, dtype=dtype)
        for verify in ("exact", "checksum"):
            assert model.run_with_cache(rows_of(model), padding_side=side, verify=verify)[1].verdict.status == "VERIFIED"


def hf_masked(folder, tokens, mask):
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        return model(tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits


@pytest.mark.parametrize("name", ["llama_grouped", "neox_parallel", "qwen3_grouped", "gptj_rotary", "falcon_grouped"])
def test_equals_transformers_with_the_same_mask(name):
    """transformers itself, in this process, real rows alone. Where one of its queries sees nothing (padding on the left,
    or a window behind the tokens) all that it computes of the prompt is NaN; ours is what the prompt gets by itself."""
    model = load(FAMILIES / name)
    rows, mask = rows_of(model), mask_of("right")
    tokens = torch.full(mask.shape, 3)
    tokens[mask.bool()] = torch.tensor([t for row in rows for t in row])
    expected = hf_masked(FAMILIES / name, tokens, mask)
    logits = model(tokens, attention_mask=mask)
    assert normalized_error(logits[mask.bool()], expected[mask.bool()]) < 1e-5


def test_what_padding_holds_is_read_by_nobody(three):
    mask = mask_of("left")
    tokens = torch.randint(three.cfg.d_vocab, mask.shape, generator=torch.Generator().manual_seed(1))
    other = torch.where(mask.bool(), tokens, (tokens + 5) % three.cfg.d_vocab)
    a, b = (three.run_with_cache(t, attention_mask=mask) for t in (tokens, other))
    assert not torch.equal(a[1]["hook_embed"], b[1]["hook_embed"])
    assert torch.equal(a[0][mask.bool()], b[0][mask.bool()])


def test_a_query_that_sees_nothing_attends_to_nothing(three):
    mask = mask_of("left")
    _, cache = three.run_with_cache(torch.zeros(mask.shape, dtype=torch.long), attention_mask=mask)
    blind = ~mask.bool()
    for layer in range(three.cfg.n_layers):
        scores, pattern, z = (cache[name, layer] for name in ("attn_scores", "pattern", "z"))
        rows = blind[:, None, :, None].expand(pattern.shape)
        assert (scores[rows] == float("-inf")).all() and (pattern[rows] == 0).all() and (z[blind] == 0).all()
        assert not pattern.isnan().any()
        sums = pattern.sum(-1)
        assert torch.allclose(sums[mask.bool()[:, None].expand(sums.shape)], torch.tensor(1.0))


def test_positions_are_counted_from_the_first_token(three):
    mask = mask_of("left")
    _, cache = three.run_with_cache(torch.zeros(mask.shape, dtype=torch.long), attention_mask=mask)
    expected = three.W_pos[(mask.cumsum(1) - 1).clamp_min(0)]
    assert torch.equal(cache["hook_pos_embed"], expected)


def test_longer_than_the_context_with_padding_is_allowed_up_to_the_context(three):
    n = three.cfg.n_ctx + 2
    mask = torch.tensor([[0] * 4 + [1] * (n - 4)])
    assert three.run_with_cache(torch.zeros((1, n), dtype=torch.long), attention_mask=mask)[1].verdict.status == "VERIFIED"
    with pytest.raises(IndexError, match="n_ctx"):
        three(torch.zeros((1, n), dtype=torch.long))


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([[1, 0, 1]], "hole: 0 at position 1, 1 at 2"),
        ([[0, 0, 0]], "all of it is padding"),
        ([[1, 2, 1]], "holds 2"),
        ([[1, 1]], r"\[batch, pos\] = \[1, 3\]"),
    ],
)
def test_masks_that_mean_nothing_are_refused(three, mask, words):
    with pytest.raises(ValueError, match=words):
        three(torch.zeros((1, 3), dtype=torch.long), attention_mask=torch.tensor(mask))


def test_masks_of_other_types(three):
    tokens = torch.zeros((1, 3), dtype=torch.long)
    expected = three(tokens, attention_mask=torch.tensor([[0, 1, 1]]))
    for mask in ([[0, 1, 1]], torch.tensor([[False, True, True]]), torch.tensor([[0, 1, 1]]).numpy()):
        assert torch.equal(three(tokens, attention_mask=mask), expected)
    assert torch.equal(three(tokens, attention_mask=torch.tensor([[0.0, 1.0, 1.0]])), expected)
    with pytest.raises(TypeError, match="integers or bools"):
        three(tokens, attention_mask=torch.tensor([[0.0, 0.5, 1.0]]))


@pytest.mark.parametrize("mask", [[0, 1, 1], torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]).numpy()])
def test_a_mask_of_one_prompt_may_have_one_axis(three, mask):
    expected = three(torch.zeros((1, 3), dtype=torch.long), attention_mask=[[0, 1, 1]])
    for tokens in ([0, 0, 0], torch.zeros(3, dtype=torch.long), [[0, 0, 0]]):
        assert torch.equal(three(tokens, attention_mask=mask), expected)
    with pytest.raises(ValueError, match=r"\[batch, pos\] = \[2, 3\]"):
        three(torch.zeros((2, 3), dtype=torch.long), attention_mask=mask)


@pytest.mark.parametrize("mask", [[[1, 1, 1], [1]], [["1", "1", "1"]], [[None, 1, 1]]])
def test_masks_that_are_no_rows_of_numbers_are_refused_in_our_words(three, mask):
    with pytest.raises(ValueError, match=r"\[model\] attention_mask is \[batch, pos\] = \[2, 3\]"):
        three(torch.zeros((2, 3), dtype=torch.long), attention_mask=mask)


def test_a_mask_beside_unequal_prompts_must_be_theirs(three):
    rows = [[1, 2, 3], [4]]
    assert torch.equal(three(rows, attention_mask=[[1, 1, 1], [1, 0, 0]]), three(rows))
    with pytest.raises(ValueError, match="another than the padding"):
        three(rows, attention_mask=[[1, 1, 1], [0, 0, 1]])


def test_the_loss_is_of_tokens_alone(three):
    rows = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
    alone = [three(row, return_type="loss", loss_per_token=True)[0] for row in rows]
    for side in ("left", "right"):
        mask = mask_of(side, [len(row) for row in rows]).bool()
        predicted = mask[:, :-1] & mask[:, 1:]  # from a token, of a token
        losses = three(rows, return_type="loss", loss_per_token=True, padding_side=side)
        assert (losses[~predicted] == 0).all()
        for prompt, expected in enumerate(alone):
            assert torch.allclose(losses[prompt, predicted[prompt]], expected, atol=1e-5)
        assert abs(float(three(rows, return_type="loss", padding_side=side)) - float(torch.cat(alone).mean())) < 1e-5


def test_a_run_from_a_residual_takes_the_mask(three):
    mask = mask_of("left")
    tokens = torch.randint(three.cfg.d_vocab, mask.shape, generator=torch.Generator().manual_seed(2))
    logits, cache = three.run_with_cache(tokens, attention_mask=mask)
    again = three(cache["resid_pre", 1], start_at_layer=1, attention_mask=mask)
    assert torch.equal(again, logits)
    assert not torch.equal(three(cache["resid_pre", 1], start_at_layer=1), logits)


# ---- texts ------------------------------------------------------------------------------------------------------

TEXTS = [PROMPT, "When Mary", "Then John and Mary went"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_of_unequal_length(tiny, side):
    tokens, mask = tiny.to_tokens(TEXTS, padding_side=side, return_attention_mask=True)
    with pytest.warns(UserWarning, match="return_attention_mask=True"):
        assert torch.equal(tokens, tiny.to_tokens(TEXTS, padding_side=side))
    for i, text in enumerate(TEXTS):
        assert torch.equal(tokens[i, mask[i].bool()], tiny.to_tokens(text)[0])
    logits = tiny(TEXTS, padding_side=side)
    assert torch.equal(logits, tiny(tokens, attention_mask=mask))
    last = [int(m.nonzero()[-1]) for m in mask]
    for i, text in enumerate(TEXTS):
        assert (logits[i, last[i]] - tiny(text)[0, -1]).abs().max() < 1e-4


def test_the_default_side_is_the_right_as_in_transformer_lens(tiny):
    assert torch.equal(tiny(TEXTS), tiny(TEXTS, padding_side="right"))
    left = lens.HookedTransformer.from_pretrained("tiny-ioi", default_padding_side="left")
    assert torch.equal(left(TEXTS), tiny(TEXTS, padding_side="left"))
    for wrong in (lambda: tiny(TEXTS, padding_side="middle"), lambda: lens.HookedTransformer.from_pretrained("tiny-ioi", default_padding_side="up")):
        with pytest.raises(ValueError, match="padding_side"):
            wrong()


# ---- records, files, patches --------------------------------------------------------------------------------------


def test_saved_runs_know_their_padding(tiny, tmp_path):
    _, cache = tiny.run_with_cache(TEXTS, padding_side="left")
    cache.save(tmp_path / "run.h5")
    loaded = lens.load(tmp_path / "run.h5")
    assert loaded.record["spans"] == cache.record["spans"] != []
    clean = tiny.run_with_cache(PROMPT)[1]
    assert "spans" not in clean.record


def test_recorded_runs_are_checked_with_their_mask(three):
    mask = mask_of("left")
    tokens = torch.randint(three.cfg.d_vocab, mask.shape, generator=torch.Generator().manual_seed(3))
    _, cache = three.run_with_cache(tokens, attention_mask=mask)
    recorded = {name: cache[name] for name in cache.keys() if "pattern" not in name and "normalized" not in name}
    assert lens.verify_recorded(three, tokens, recorded, attention_mask=mask).verdict.status == "VERIFIED"
    with pytest.raises((lens.VerificationFailed, ValueError)):
        lens.verify_recorded(three, tokens, recorded)


@pytest.mark.parametrize("name", ["llama_grouped", "bloom_alibi", "gemma2_grouped", "opt_tied"])
def test_grids_over_padded_prompts(name):
    model = load(FAMILIES / name)
    mask = mask_of("left")
    generator = torch.Generator().manual_seed(4)
    clean, corrupted = (torch.randint(model.cfg.d_vocab, mask.shape, generator=generator) for _ in range(2))
    metric = lens.LogitDiff(answer=1, wrong=2)
    _, cache = model.run_with_cache(clean, attention_mask=mask)
    _, other = model.run_with_cache(corrupted, attention_mask=mask)
    for site in ("resid_pre", "z", "mlp_out"):
        grid = patching.patch_grid(model, cache, other, site=site, metric=metric, over=("layer", "pos"))
        assert grid.verdict.status == "VERIFIED"
        for layer, pos in ((0, 12), (1, 9), (2, 12)):
            full = f"blocks.{layer}.attn.hook_z" if site == "z" else f"blocks.{layer}.hook_{site}"
            tokens_there = [b for b in range(len(mask)) if mask[b, pos]]  # patched padding changes nothing
            logits = model(corrupted, attention_mask=mask, plan=[lens.Patch(full, cache, pos=pos, batch=b) for b in tokens_there])
            value = (logits[:, -1, 1] - logits[:, -1, 2]).mean()
            assert abs(grid.values[layer, pos] - value) < 2e-5, (site, layer, pos)


def test_a_metric_that_reads_padding_is_refused(three):
    rows, flipped = [[1, 2, 3], [4]], [[3, 2, 1], [5]]
    _, cache = three.run_with_cache(rows)
    _, other = three.run_with_cache(flipped)
    with pytest.raises(ValueError, match="position 2, which is padding in prompt 1"):
        patching.patch_grid(three, cache, other, site="resid_pre", metric=lens.LogitDiff(answer=1, wrong=2))
    grid = patching.patch_grid(three, cache, other, site="resid_pre", metric=lens.LogitDiff(answer=1, wrong=2, pos=0), over=("layer", "pos"))
    assert grid.verdict.status == "VERIFIED"


def test_a_setter_of_ones_own_is_held_to_the_same_padding(three):
    """Each index a run of its own: what patch_grid refuses is refused there."""
    rows, flipped = [[1, 2, 3], [4]], [[3, 2, 1], [5]]
    _, left = three.run_with_cache(rows, padding_side="left")
    _, right = three.run_with_cache(rows)

    def setter(corrupted, index, clean):
        return patching.layer_pos_patch_setter(corrupted, index, clean)

    def patched(cache, metric):
        return patching.generic_activation_patch(three, flipped, cache, metric, setter, "resid_pre", index_axis_names=["layer", "pos"])

    for metric in (lens.LogitDiff(answer=1, wrong=2, pos=0), lambda logits: logits[:, 0, 1].mean()):
        with pytest.raises(ValueError, match="padded otherwise"):
            patched(left, metric)
    with pytest.raises(ValueError, match="position 2, which is padding in prompt 1"):
        patched(right, lens.LogitDiff(answer=1, wrong=2))
    with pytest.raises(ValueError, match="prompts without padding"):
        patched(right, lens.Loss([[1, 2, 3], [4, 0, 0]]))
    read = lens.LogitDiff(answer=1, wrong=2, pos=0)
    grid = patching.patch_grid(three, right, flipped, site="resid_pre", metric=read, over=("layer", "pos"))
    assert torch.allclose(patched(right, read).double(), grid.values, atol=1e-5)


def test_what_is_written_from_a_cache_stands_where_its_tokens_stand(three):
    rows, name = [[1, 2, 3], [4]], "blocks.1.hook_resid_pre"
    _, left = three.run_with_cache(rows, padding_side="left")
    _, right = three.run_with_cache(rows)
    _, one = three.run_with_cache([7, 8, 9])
    for edit in (lens.Patch(name, left), lens.Patch(name, left, batch=1), lens.Patch(name, left, batch=-1), lens.Patch(name, one), lens.Add(name, left)):
        with pytest.raises(ValueError, match=r"blocks.1.hook_resid_pre: prompt 1 has its tokens at positions 0 to 0, .* padded otherwise"):
            three(rows, plan=edit)
        with pytest.raises(ValueError, match="padded otherwise"):
            three(right["resid_pre", 1], start_at_layer=1, attention_mask=[[1, 1, 1], [1, 0, 0]], plan=edit)
    for edit in (lens.Patch(name, right), lens.Patch(name, one, batch=0), lens.Patch(name, left, batch=0), lens.Patch(name, left[name]), lens.Ablate(name, to="mean", source=left)):
        assert three(rows, plan=edit).shape[:2] == (2, 3)


def test_ids_beside_a_padded_run_are_padded_alike(tiny):
    """As TransformerLens's functions are called: a clean cache and corrupted tokens."""
    clean, corrupted = [PROMPT, "When Mary went"], [PROMPT.replace("John gave", "Mary gave"), "When John went"]
    metric = lens.LogitDiff(" Mary", " John")
    _, cache = tiny.run_with_cache(clean, padding_side="left")
    with pytest.warns(UserWarning, match="attention_mask"):
        tokens = tiny.to_tokens(corrupted, padding_side="left")
    of_texts = patching.patch_grid(tiny, clean, corrupted, site="resid_pre", metric=metric, padding_side="left")
    of_ids = patching.patch_grid(tiny, cache, tokens, site="resid_pre", metric=metric)
    assert torch.equal(of_texts.values, of_ids.values) and of_ids.verdict.status == "VERIFIED"
    assert torch.equal(patching.get_act_patch_resid_pre(tiny, tokens, cache, metric), of_ids.values.float())
    noise = patching.patch_grid(tiny, clean, corrupted, site="resid_pre", metric=metric, padding_side="left", direction="noise")
    assert noise.verdict.status == "VERIFIED"
    with pytest.raises(ValueError, match="give attention_mask"):
        tiny(tokens, padding_side="left")


def test_an_analysis_at_a_padded_position_is_refused(three):
    _, cache = three.run_with_cache([[1, 2, 3], [4]])
    with pytest.raises(ValueError, match="padding"):
        cache.decompose_resid(pos_slice=-1)
    assert cache.decompose_resid(pos_slice=0)[0].shape[0] > 0


@pytest.mark.parametrize("side", ["left", "right"])
def test_edits_and_hooks_of_scores_decide_what_is_attended_to(three, side):
    """Zeroed scores are seen alike, also by padding; what an edit hides altogether attends to nothing."""
    rows = [[1, 2, 3], [4]]
    name = "blocks.1.attn.hook_attn_scores"
    _, cache = three.run_with_cache(rows, padding_side=side, plan=[lens.Ablate(name)])
    assert cache.verdict.status == "VERIFIED" and torch.equal(cache[name], torch.zeros_like(cache[name]))
    assert torch.allclose(cache["pattern", 1], torch.full_like(cache["pattern", 1], 1 / 3))
    _, clean = three.run_with_cache(rows, padding_side=side)
    _, patched = three.run_with_cache(rows, padding_side=side, plan=[lens.Patch(name, clean)])
    assert patched.verdict.status == "VERIFIED"
    hidden = torch.full_like(clean[name], float("-inf"))
    _, blind = three.run_with_cache(rows, padding_side=side, plan=[lens.Patch(name, hidden, pos=1, batch=0)])
    assert blind.verdict.status == "VERIFIED" and (blind["pattern", 1][0, :, 1] == 0).all()
    with three.hooks(fwd_hooks=[(name, lambda scores, hook: scores.clamp(min=-1e5))]):
        assert three.run_with_cache(rows, padding_side=side)[1].verdict.status == "VERIFIED"


def test_means_over_padding_are_refused(three):
    with pytest.raises(ValueError, match="padding"):
        three([[1, 2, 3], [4]], plan=[lens.Ablate("blocks.0.hook_mlp_out", to="mean")])
    _, source = three.run_with_cache([[1, 2, 3]])
    three([[1, 2, 3], [4]], plan=[lens.Ablate("blocks.0.hook_mlp_out", to="mean", source=source)])


def test_edits_at_padding_are_refused(three):
    rows = [[1, 2, 3], [4]]
    with pytest.raises(ValueError, match="position 2 of prompt 1 is padding"):
        three(rows, plan=[lens.Ablate("blocks.0.hook_attn_out", pos=-1)])
    three(rows, plan=[lens.Ablate("blocks.0.hook_attn_out", pos=-1, batch=0)])
    three(rows, plan=[lens.Ablate("blocks.0.hook_attn_out", pos=-1)], padding_side="left")


def test_kept_positions_are_known_to_be_padding(three):
    _, cache = three.run_with_cache([[1, 2, 3], [4]], pos_slice=-1)
    assert cache.record["kept_pos"] == [2]
    for analysis in (lambda: cache.decompose_resid(pos_slice=-1), lambda: lens.direct_logit_attribution(cache, 1, 2)):
        with pytest.raises(ValueError, match="position 2 of prompt 1 is padding"):
            analysis()
    _, left = three.run_with_cache([[1, 2, 3], [4]], pos_slice=-1, padding_side="left")
    assert lens.direct_logit_attribution(left, 1, 2) is not None


def test_patches_behind_attention_know_the_context(three):
    """Rows of a sweep stand at the positions of their prompts, however far padding has moved them."""
    n = three.cfg.n_ctx + 3
    mask = torch.tensor([[0] * 5 + [1] * (n - 5)])
    generator = torch.Generator().manual_seed(8)
    clean, corrupted = (torch.randint(three.cfg.d_vocab, (1, n), generator=generator) for _ in range(2))
    runs = [three.run_with_cache(t, attention_mask=mask)[1] for t in (clean, corrupted)]
    for site in ("z", "mlp_out"):
        assert patching.patch_grid(three, *runs, site=site, metric=lens.LogitDiff(1, 2), over=("layer", "pos")).verdict.status == "VERIFIED"


@pytest.mark.parametrize("site", ["blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_pattern", "blocks.0.attn.hook_z"])
def test_faults_in_padded_runs_are_refused(three, site):
    with lens.faults.inject("nan", hook=site), pytest.raises(lens.VerificationFailed) as failed:
        three.run_with_cache(torch.zeros((4, 13), dtype=torch.long), attention_mask=mask_of("left"))
    assert failed.value.verdict.first_failure.name == site


def test_what_a_device_makes_of_a_row_without_keys_is_not_read():
    """Fault M8, an even pattern instead of NaN: of a row that sees nothing the pass reads neither."""
    model = lens.HookedTransformer.from_pretrained(GOLDEN / "three_layers", device="simulated")
    mask = mask_of("left")
    tokens = torch.zeros(mask.shape, dtype=torch.long)
    clean = model(tokens, attention_mask=mask)
    with lens.faults.inject("masked_row_even") as injected:
        logits, cache = model.run_with_cache(tokens, attention_mask=mask)
    assert injected.fired and cache.verdict.status == "VERIFIED" and torch.equal(logits, clean)


def test_padding_that_is_seen_is_refused(three):
    """A run without the mask, shown as one with it."""
    mask = mask_of("left")
    tokens = torch.randint(three.cfg.d_vocab, mask.shape, generator=torch.Generator().manual_seed(5))
    _, unmasked = three.run_with_cache(tokens)
    recorded = {name: unmasked[name] for name in unmasked.keys()}
    with pytest.raises(lens.VerificationFailed):
        lens.verify_recorded(three, tokens, recorded, attention_mask=mask)
