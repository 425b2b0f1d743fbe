"""Decompositions and attributions: transformer-lens's own output, identities, refusals."""

import json

import pytest
import torch
from conftest import GOLDEN, PROMPT, normalized_error, read_safetensors

import lenscpp as lens

STORED = GOLDEN.parent / "attribution"
MANIFEST = json.loads((STORED / "manifest.json").read_text())
RAW = dict(fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False)
MARY, JOHN = " Mary", " John"


def load(case, processing="processed", dtype="float64"):
    return lens.HookedTransformer.from_pretrained(GOLDEN / case, dtype=dtype, **(RAW if processing == "raw" else {}))


def golden_tokens(case):
    return read_safetensors(GOLDEN / case / "hf.safetensors")["tokens.0"]


# ---- transformer-lens's own output ----


def meant(value, stored):
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    return tuple(inner) if kind == "tuple" else stored[f"{kind}.{inner if kind == 'projection' else len(inner)}"]


def as_here(value, dtype):
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("dtype, limit", [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("entry", MANIFEST["cases"], ids=lambda e: f"{e['case']}_{e['processing']}")
def test_golden(entry, dtype, limit):
    """Each call of the manifest gives transformer-lens's values and labels."""
    stored = read_safetensors(STORED / f"{entry['case']}_{entry['processing']}.safetensors")
    _, cache = load(entry["case"], entry["processing"], dtype).run_with_cache(golden_tokens(entry["case"]))
    compared = 0
    for i, (method, arguments) in enumerate(MANIFEST["calls"]):
        keywords = {key: as_here(meant(value, stored), getattr(torch, dtype)) for key, value in arguments.items() if key != "stack"}
        if "stack" in arguments:
            keywords["residual_stack"] = cache.decompose_resid(**{k: meant(v, stored) for k, v in arguments["stack"].items()})
        labels = entry["labels"].get(str(i))
        found = getattr(cache, method)(**keywords, **({"return_labels": True} if labels is not None else {}))
        if labels is not None:
            found, names = found
            assert names == labels, (method, arguments)
        expected = stored[f"call.{i}"]
        assert found.shape == expected.shape and found.dtype is getattr(torch, dtype), (method, arguments)
        error = normalized_error(found, expected)
        assert error <= limit, (method, arguments, error)
        compared += found.numel()
    assert compared > 1000


# ---- identities ----

CASES = [("three_layers", "raw"), ("untied", "processed"), ("odd_heads", "raw"), ("inverse_layer_scale", "processed"), ("flags", "processed")]


@pytest.fixture(scope="module", params=[(*c, d) for c in CASES for d in (("float64", 1e-12), ("float32", 1e-5))], ids=lambda p: f"{p[0]}_{p[1]}_{p[2][0]}")
def golden_run(request):
    case, processing, (dtype, limit) = request.param
    model = load(case, processing, dtype)
    return model, model.run_with_cache(golden_tokens(case))[1], limit


def test_parts_sum_to_the_residual(golden_run):
    model, cache, limit = golden_run
    n = model.cfg.n_layers
    final = cache["resid_post", n - 1]
    assert normalized_error(cache.decompose_resid().sum(0), final) <= limit
    assert normalized_error(cache.decompose_resid(layer=n - 1).sum(0), cache["resid_pre", n - 1]) <= limit
    assert normalized_error(cache.decompose_resid(layer=0, mlp_input=True).sum(0), cache["resid_mid", 0]) <= limit
    for expand in (True, False):
        assert normalized_error(cache.get_full_resid_decomposition(expand_neurons=expand).sum(0), final) <= limit
    heads = cache.stack_head_results(incl_remainder=True)
    assert normalized_error(heads.sum(0), final) <= limit
    parts = heads[:-1].sum(0) + model.b_O.sum(0) + cache.decompose_resid(mode="mlp").sum(0)
    assert normalized_error(parts, final) <= limit
    neurons = cache.stack_neuron_results(n, incl_remainder=True)
    assert normalized_error(neurons.sum(0), final) <= limit


def test_accumulated_residuals_are_the_cached_ones(golden_run):
    model, cache, _ = golden_run
    found, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    for value, label in zip(found, labels):
        layer, site = label.split("_")
        assert torch.equal(value, cache["resid_" + site, -1 if layer == "final" else int(layer)])
    assert len(labels) == 2 * model.cfg.n_layers + 1


@pytest.mark.parametrize("unit", ["component", "head", "layer"])
def test_attributions_sum_to_the_logit_difference(golden_run, unit):
    model, cache, limit = golden_run
    logits = cache["unembed.hook_out"]
    batch = logits.shape[0]
    for answer, wrong in [(1, 2), (5, None), (torch.arange(batch) + 1, torch.arange(batch) + 3)]:
        found = lens.direct_logit_attribution(cache, answer, wrong, unit=unit, pos=None)
        one = torch.as_tensor(answer).expand(batch)[:, None, None].expand(-1, logits.shape[1], 1)
        expected = logits.gather(-1, one)[..., 0]
        if wrong is not None:
            other = torch.as_tensor(wrong).expand(batch)[:, None, None].expand(-1, logits.shape[1], 1)
            expected = expected - logits.gather(-1, other)[..., 0]
        assert torch.equal(found.logit_diff, expected)
        scale = logits.abs().max()
        assert (found.values.sum(0) - expected).abs().max() <= limit * scale and (found.total - expected).abs().max() <= limit * scale
        assert ((found.total - expected).abs() <= found.bound + 1e-6 * scale).all() and (found.bound < 1e3 * limit * scale).all()
        assert found.labels[:2] == ["embed", "pos_embed"] and found.labels[-1] == "bias" and len(found.labels) == found.values.shape[0]


def test_units_agree(golden_run):
    """Heads and b_O sum to attn_out, sublayers to layers; logit_attrs says the same."""
    model, cache, limit = golden_run
    n, heads = model.cfg.n_layers, model.cfg.n_heads
    by = {unit: lens.direct_logit_attribution(cache, 1, 2, unit=unit) for unit in ("component", "head", "layer")}
    value = {unit: dict(zip(a.labels, a.values)) for unit, a in by.items()}
    scale = by["component"].values.abs().max()
    for l in range(n):
        attn = sum(value["head"][f"L{l}H{h}"] for h in range(heads)) + value["head"][f"{l}_b_O"]
        assert (attn - value["component"][f"{l}_attn_out"]).abs().max() <= limit * scale
        block = value["component"][f"{l}_attn_out"] + value["component"][f"{l}_mlp_out"]
        assert (block - value["layer"][f"L{l}"]).abs().max() <= limit * scale
    attrs = cache.logit_attrs(cache.decompose_resid(pos_slice=-1), 1, 2, pos_slice=-1)
    assert (attrs - by["component"].values[:-1]).abs().max() <= limit * scale


def test_processing_does_not_change_what_sublayers_add():
    """A difference of two tokens, before and after folding: the same number from other weights."""
    found = {}
    for processing in ("raw", "processed"):
        _, cache = load("untied", processing).run_with_cache(golden_tokens("untied"))
        found[processing] = lens.direct_logit_attribution(cache, 3, 8, pos=None)
    assert found["raw"].labels == found["processed"].labels
    assert torch.allclose(found["raw"].total, found["processed"].total, atol=1e-10)
    assert torch.allclose(found["raw"].values[:2], found["processed"].values[:2], atol=1e-10)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_runs_hold_within_their_bound(dtype):
    _, cache = lens.HookedTransformer.from_pretrained("tiny-ioi", dtype=dtype).run_with_cache(PROMPT)
    for unit in ("component", "head", "layer"):
        found = lens.direct_logit_attribution(cache, MARY, JOHN, unit=unit, pos=None)
        assert found.values.dtype is torch.float32
        assert ((found.total - found.logit_diff).abs() <= found.bound).all() and (found.bound < 1).all()


# ---- each check fails ----


def vector(model, seed=0):
    return torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


@pytest.mark.parametrize("name", ["blocks.1.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.0.hook_resid_mid", "blocks.3.hook_resid_post", "unembed.hook_out"])
@pytest.mark.parametrize("unit", ["component", "head", "layer"])
def test_an_edit_between_the_parts_is_refused(tiny, name, unit):
    edit = lens.Scale(name, 1.1)
    _, cache = tiny.run_with_cache(PROMPT, plan=lens.Plan([edit]))
    with pytest.raises(ValueError, match=rf"parts sum to .* rounding explains .* edited at {name}"):
        lens.direct_logit_attribution(cache, MARY, JOHN, unit=unit)


def test_a_small_edit_is_seen(tiny, cache):
    """A hundredth of a part in a hundred is more than rounding."""
    diff = lens.direct_logit_attribution(cache, MARY, JOHN)
    assert float(diff.bound) < 1e-3
    _, edited = tiny.run_with_cache(PROMPT, plan=lens.Plan([lens.Scale("blocks.3.hook_resid_post", 1.0005)]))
    with pytest.raises(ValueError, match="rounding explains"):
        lens.direct_logit_attribution(edited, MARY, JOHN)


def test_edited_parts_still_sum(tiny):
    """An edit of a part is a part: what it wrote is what was read."""
    for name in ("blocks.1.hook_attn_out", "blocks.2.hook_mlp_out", "hook_embed", "blocks.1.attn.hook_z"):
        _, cache = tiny.run_with_cache(PROMPT, plan=lens.Plan([lens.Scale(name, 0.5)]))
        assert lens.direct_logit_attribution(cache, MARY, JOHN).values.shape == (11, 1)
    assert lens.direct_logit_attribution(cache, MARY, JOHN, unit="head").values.shape == (2 + 4 * (tiny.cfg.n_heads + 2) + 1, 1)
    _, cache = tiny.run_with_cache(PROMPT, plan=lens.Plan([lens.Scale("blocks.1.hook_attn_out", 0.5)]))
    with pytest.raises(ValueError, match="blocks.1.hook_attn_out"):
        lens.direct_logit_attribution(cache, MARY, JOHN, unit="head")


def test_edited_head_results_are_read_where_kept(tiny):
    """z W_O is not what a head wrote once its result was edited."""
    plan = lens.Plan([lens.Ablate("blocks.1.attn.hook_result", head=0)])
    _, cache = tiny.run_with_cache(PROMPT, plan=plan)
    if "blocks.1.attn.hook_result" not in cache:
        with pytest.raises(ValueError, match="blocks.1.attn.hook_result"):
            cache.stack_head_results()
    names = [*cache.keys(), "blocks.1.attn.hook_result"]
    _, cache = tiny.run_with_cache(PROMPT, sorted(set(names)), plan=plan)
    found, labels = cache.stack_head_results(return_labels=True)
    assert not found[labels.index("L1H0")].any() and found[labels.index("L1H1")].any()
    assert float(lens.direct_logit_attribution(cache, MARY, JOHN, unit="head").values[2 + tiny.cfg.n_heads + 2]) == 0


# ---- what is missing, what is not allowed ----

NEEDS = [
    (lambda c: c.decompose_resid(), "hook_embed"),
    (lambda c: c.decompose_resid(incl_embeds=False), "blocks.0.hook_attn_out"),
    (lambda c: c.accumulated_resid(layer=2), "blocks.1.hook_resid_pre"),
    (lambda c: c.accumulated_resid(layer=0, mlp_input=True), "blocks.0.hook_resid_mid"),
    (lambda c: c.stack_head_results(), "blocks.0.attn.hook_z"),
    (lambda c: c.stack_neuron_results(1), "blocks.0.mlp.hook_post"),
    (lambda c: c.get_full_resid_decomposition(layer=0), "hook_embed"),
    (lambda c: c.stack_activation("q"), "blocks.0.attn.hook_q"),
    (lambda c: c.apply_ln_to_stack(torch.zeros(1, 1, 15, 128)), "ln_final.hook_scale"),
    (lambda c: c.logit_attrs(torch.zeros(1, 1, 15, 128), 3), "ln_final.hook_scale"),
    (lambda c: lens.direct_logit_attribution(c, MARY), "ln_final.hook_scale|hook_embed"),
]


@pytest.mark.parametrize("call, name", NEEDS)
def test_missing_activations_are_named(tiny, call, name):
    _, cache = tiny.run_with_cache(PROMPT, "blocks.0.hook_resid_pre")
    with pytest.raises(ValueError, match=rf"needs ({name}).*names_filter"):
        call(cache)


def test_stopped_runs_have_no_logits(tiny):
    cache = tiny.run_with_cache(PROMPT, stop_at_layer=2)[1]
    assert cache.decompose_resid(layer=2).shape[0] == 6 and cache.stack_head_results(2).shape[0] == 2 * tiny.cfg.n_heads
    with pytest.raises(ValueError, match=r"layers 0\.\.1 did not keep"):
        lens.direct_logit_attribution(cache, MARY)


ERRORS = [
    (lambda c: c.decompose_resid(layer=9), IndexError, r"layer 9 out of range: allowed are 0\.\.4"),
    (lambda c: c.decompose_resid(layer=-2), IndexError, "layer -2"),
    (lambda c: c.decompose_resid(layer="1"), TypeError, r"\[decompose_resid\] layer is an int"),
    (lambda c: c.decompose_resid(layer=4, mlp_input=True), ValueError, "no MLP"),
    (lambda c: c.accumulated_resid(mlp_input=True), ValueError, "no MLP"),
    (lambda c: c.decompose_resid(mode="heads"), ValueError, "all, mlp, attn"),
    (lambda c: c.decompose_resid(mode=None), TypeError, "mode is a str"),
    (lambda c: c.decompose_resid(apply_ln=1), TypeError, "apply_ln"),
    (lambda c: c.decompose_resid(return_labels="yes"), TypeError, "return_labels"),
    (lambda c: c.decompose_resid(pos_slice=15), IndexError, "position 15"),
    (lambda c: c.decompose_resid(pos_slice=(9, 3)), ValueError, "selects none"),
    (lambda c: c.decompose_resid(pos_slice="1"), TypeError, "pos_slice"),
    (lambda c: c.stack_head_results(layer=7), IndexError, "layer 7"),
    (lambda c: c.stack_neuron_results(1, neuron_slice=10**6), IndexError, "neuron_slice"),
    (lambda c: c.get_neuron_results(4), IndexError, r"layer 4 out of range: there are 4"),
    (lambda c: c.get_neuron_results(0, project_output_onto=torch.zeros(3)), ValueError, "project_output_onto of shape"),
    (lambda c: c.get_neuron_results(0, project_output_onto=[1]), TypeError, "torch.Tensor"),
    (lambda c: c.stack_activation("nowhere"), ValueError, "nearest"),
    (lambda c: c.stack_activation("embed"), ValueError, "no hook point"),
    (lambda c: c.stack_activation("ln_final.hook_scale"), ValueError, "not one a layer"),
    (lambda c: c.stack_activation("z", layer=0), IndexError, "layer 0"),
    (lambda c: c.apply_ln_to_stack(torch.zeros(2, 1, 14, 128)), ValueError, "a stack of shape"),
    (lambda c: c.apply_ln_to_stack(torch.zeros(2, 1, 15, 128), pos_slice=-1), ValueError, "a stack of shape"),
    (lambda c: c.apply_ln_to_stack([1.0]), TypeError, "torch.Tensor"),
    (lambda c: c.logit_attrs(torch.zeros(1, 1, 15, 128), 10**6), IndexError, "vocabulary"),
    (lambda c: c.logit_attrs(torch.zeros(1, 1, 15, 128), torch.zeros(4, dtype=torch.int64)), ValueError, "tokens of shape"),
    (lambda c: c.logit_attrs(torch.zeros(1, 1, 15, 128), "Mary John"), ValueError, "tokens, not one"),
    (lambda c: c.logit_attrs(torch.zeros(1, 1, 15, 128), 1.5), TypeError, "a token is"),
    (lambda c: lens.direct_logit_attribution(c, -1), IndexError, "token -1"),
    (lambda c: lens.direct_logit_attribution(c, MARY, unit="neuron"), ValueError, "component, head, layer"),
    (lambda c: lens.direct_logit_attribution(c, MARY, unit=None), TypeError, "unit"),
    (lambda c: lens.direct_logit_attribution(c, MARY, pos=99), IndexError, "99"),
    (lambda c: lens.direct_logit_attribution(c, MARY).top(0), ValueError, "k is 1"),
    (lambda c: lens.direct_logit_attribution(c, MARY).plot(batch=1), IndexError, r"\(0\.\.0\)"),
    (lambda c: lens.plot_attention(c, 9), IndexError, "9"),
    (lambda c: lens.plot_attention(c, 0, head=12), IndexError, "head 12"),
    (lambda c: lens.plot_attention(c, 0, batch=3), IndexError, "batch 3"),
]


@pytest.mark.parametrize("call, error, says", ERRORS)
def test_errors(cache, call, error, says):
    with pytest.raises(error, match=says):
        call(cache)


METHODS = [n for n in vars(lens.VerifiedCache) if n.startswith(("accumulated", "decompose", "stack_", "get_", "apply_ln", "logit_attrs"))]


def test_unverified_caches_are_refused(tiny):
    _, unverified = tiny.run_with_cache(PROMPT, verify="off")
    assert len(METHODS) == 9
    for name in METHODS:
        with pytest.raises(lens.NotVerified, match=name):
            getattr(unverified, name)()
        with pytest.raises((TypeError, lens.NotVerified)):
            getattr(lens.VerifiedCache, name)(unverified)
    for call in (lens.direct_logit_attribution, lens.plot_attention):
        with pytest.raises(lens.NotVerified, match="VerifiedCache"):
            call(unverified, 1)
        with pytest.raises(lens.NotVerified, match="VerifiedCache"):
            call({}, 1)


def test_nothing_here_changes_the_cache(tiny, cache):
    before = list(cache.keys())
    stack = cache.decompose_resid()
    stack.zero_()
    cache.stack_head_results()
    assert list(cache.keys()) == before and cache.decompose_resid().any()


# ---- slices, tokens ----


def test_slices_are_those_of_the_whole(three):
    _, cache = three.run_with_cache(torch.arange(12).reshape(2, 6))
    whole = cache.decompose_resid()
    assert torch.equal(cache.decompose_resid(pos_slice=2), whole[:, :, 2]) and torch.equal(cache.decompose_resid(pos_slice=-1), whole[:, :, -1])
    assert torch.equal(cache.decompose_resid(pos_slice=(1, 5, 2)), whole[:, :, 1:5:2])
    assert torch.equal(cache.decompose_resid(pos_slice=[3, 0]), whole[:, :, [3, 0]])
    assert torch.equal(cache.decompose_resid(pos_slice=torch.tensor([3, 0])), whole[:, :, [3, 0]])


def test_one_token_a_prompt_holds_for_all_its_positions(three):
    """transformer-lens lets them broadcast over positions instead."""
    _, cache = three.run_with_cache(torch.arange(12).reshape(2, 6))
    stack = cache.decompose_resid()
    both = cache.logit_attrs(stack, [3, 4])
    assert torch.equal(both[:, 0], cache.logit_attrs(stack, 3)[:, 0]) and torch.equal(both[:, 1], cache.logit_attrs(stack, 4)[:, 1])
    one = cache.logit_attrs(stack[:, 1], 4, batch_slice=1, has_batch_dim=False)
    assert torch.equal(one, both[:, 1])
    assert torch.equal(cache.logit_attrs(stack, 4, batch_slice=[1]), both[:, 1:])


def test_runs_that_kept_some_positions(tiny, cache):
    _, part = tiny.run_with_cache(PROMPT, pos_slice=[-1, 2])
    whole, few = (lens.direct_logit_attribution(c, MARY, JOHN, pos=None) for c in (cache, part))
    assert torch.allclose(few.values[:, 0, 0], whole.values[:, 0, -1]) and torch.allclose(few.values[:, 0, 1], whole.values[:, 0, 2])
    names = [n for n in cache.keys() if n != "unembed.hook_out"]
    _, part = tiny.run_with_cache(PROMPT, names, pos_slice=[-1, 2])
    with pytest.raises(ValueError, match="unembed.hook_out"):
        lens.direct_logit_attribution(part, MARY)
    _, part = tiny.run_with_cache(PROMPT, names)
    assert torch.equal(lens.direct_logit_attribution(part, MARY, JOHN, pos=None).values, whole.values)


# ---- what it holds, pictures ----


def test_what_an_attribution_holds(tiny, cache):
    found = lens.direct_logit_attribution(cache, MARY, JOHN)
    assert found.unit == "component" and found.values.shape == (11, 1) and found.total.shape == (1,) == found.logit_diff.shape
    mary, john = tiny.to_single_token(MARY), tiny.to_single_token(JOHN)
    logits = cache["unembed.hook_out"][0, -1]
    assert torch.equal(found.logit_diff[0], logits[mary] - logits[john]) and torch.allclose(found.total, found.logit_diff, atol=1e-4)
    top = found.top(3)
    assert len(top) == 3 and abs(top[0][1]) == found.values.abs().max() and top[0][0] in found.labels and abs(top[0][1]) >= abs(top[1][1])
    found.values.zero_()
    assert found.values.any() and found.verdict.status == "VERIFIED" and found.record == cache.record and "embed" not in repr(found)[:30]
    assert torch.equal(lens.direct_logit_attribution(cache, [MARY], [JOHN]).values, found.values)


def test_plots(tiny, cache):
    bar = lens.direct_logit_attribution(cache, MARY, JOHN).plot()
    assert list(bar.layout.xaxis.ticktext) == lens.direct_logit_attribution(cache, MARY).labels and len(bar.data[0].y) == 11
    assert "VERIFIED" in bar.layout.title.text and "␣Mary over ␣John = 9.42" in bar.layout.title.text and "tiny-ioi, float32 on cpu" in bar.layout.title.text
    heads = lens.direct_logit_attribution(cache, MARY, JOHN, unit="head").plot()
    values = torch.tensor(heads.data[0].z)
    assert values.shape == (4, tiny.cfg.n_heads + 2) and list(heads.layout.xaxis.ticktext)[-2:] == ["b_O", "MLP"] and heads.data[0].zmin == -heads.data[0].zmax
    by_pos = lens.direct_logit_attribution(cache, MARY, JOHN, pos=(3, 9)).plot()
    assert list(by_pos.layout.xaxis.ticktext)[0] == "␣" + tiny.to_str_tokens(PROMPT)[3].strip() and len(by_pos.data[0].z) == 11
    for figure in (bar, heads, by_pos):
        json.loads(figure.to_json())


def test_plot_attention(tiny, cache):
    figure = lens.plot_attention(cache, 1)
    assert len(figure.data) == tiny.cfg.n_heads and "VERIFIED" in figure.layout.title.text
    pattern, drawn = cache["pattern", 1][0, 2], figure.data[2].z
    for q in range(15):
        assert torch.allclose(torch.tensor([float(v) for v in drawn[q][: q + 1]]), pattern[q, : q + 1]) and all(v is None for v in drawn[q][q + 1 :])
    one = lens.plot_attention(cache, 1, head=-1)
    assert len(one.data) == 1 and one.layout.annotations[0].text == f"L1H{tiny.cfg.n_heads - 1}" and len(one.layout.xaxis.ticktext) == 15
    with pytest.raises(KeyError, match="hook_pattern"):
        lens.plot_attention(tiny.run_with_cache(PROMPT, "hook_embed")[1], 0)


def test_heatmaps():
    from lenscpp._pictures import bars, heatmap

    figure = heatmap([[1.0, -3.0], [float("nan"), 0.0]], ["a", "<b>"], ["x", "y"], "t")
    assert (figure.data[0].zmin, figure.data[0].zmax) == (-3, 3) and figure.data[0].z[1][0] is None and figure.layout.xaxis.ticktext[1] == "&lt;b&gt;"
    assert heatmap([[2.0, 4.0]], ["a", "b"], ["x"], "t", zmid=None).data[0].zmin == 2 and heatmap([[0.0]], ["a"], ["x"], "t").data[0].zmax == 1
    wide = heatmap([[0.1] * 400], [str(i) for i in range(400)], ["x"], "t")
    assert wide.layout.width < 1700 and wide.data[0].texttemplate is None and len(wide.layout.xaxis.tickvals) < 120
    assert len(bars([1.0, -1.0], ["a", "b"], "t").data[0].marker.color) == 2


# ---- saved runs ----


def test_saved_runs_can_be_analysed(tiny, cache, tmp_path):
    """What needs weights says so; what does not, does not ask for them."""
    cache.save(tmp_path / "run.h5")
    alone = lens.load(tmp_path / "run.h5")
    assert torch.equal(alone.decompose_resid(apply_ln=True), cache.decompose_resid(apply_ln=True))
    assert torch.equal(alone.accumulated_resid(incl_mid=True), cache.accumulated_resid(incl_mid=True))
    assert torch.equal(alone.stack_activation("z"), cache.stack_activation("z")) and lens.plot_attention(alone, 1).data
    for call in (lambda: alone.stack_head_results(), lambda: lens.direct_logit_attribution(alone, 1), lambda: alone.accumulated_resid(apply_ln=True)):
        with pytest.raises(ValueError, match="without its model"):
            call()
    whole = lens.load(tmp_path / "run.h5", model=tiny)
    assert torch.equal(lens.direct_logit_attribution(whole, MARY, JOHN, unit="head").values, lens.direct_logit_attribution(cache, MARY, JOHN, unit="head").values)
