"""Metrics, grids and TransformerLens's patching functions: what they compute, and what they refuse."""

import inspect
import math

import pytest
import torch

from conftest import GOLDEN

import lenscpp as lens
from lenscpp import patching

CLEAN = "When John and Mary went to the store, John gave the bag to"
CORRUPTED = "When John and Mary went to the store, Mary gave the bag to"
DIFF = lens.LogitDiff(" Mary", " John")


@pytest.fixture(scope="module")
def clean(tiny):
    return tiny.run_with_cache(CLEAN)[1]


@pytest.fixture(scope="module")
def grid(tiny, clean):
    return patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=DIFF)


@pytest.fixture(scope="module")
def partial(tiny):
    with lens.faults.inject("one_element", hook="blocks.1.hook_resid_pre", stage=1, delta=0.5), pytest.raises(lens.VerificationFailed) as refused:
        patching.patch_grid(tiny, CLEAN, CORRUPTED, "resid_pre", metric=DIFF, max_cells=1, savings=False)
    assert refused.value.verdict.first_failure.name == "blocks.1.hook_resid_pre (edit 1)"
    assert "15 of 60 patches" in str(refused.value)
    return refused.value.partial


# ---- metrics ----


def random_logits():
    return torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(4))


def test_metrics_are_their_formulas():
    logits = random_logits()
    last, probs = logits.double()[:, -1], logits.double()[:, -1].softmax(-1)
    close = dict(rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lens.LogitDiff(3, 7).per_prompt(logits), last[:, 3] - last[:, 7], **close)
    torch.testing.assert_close(lens.LogitDiff([3, 1], torch.tensor([7, 0])).per_prompt(logits), torch.stack([last[0, 3] - last[0, 7], last[1, 1] - last[1, 0]]), **close)
    torch.testing.assert_close(lens.Prob(3).per_prompt(logits), probs[:, 3], **close)
    torch.testing.assert_close(lens.LogProb(3, pos=1).per_prompt(logits), logits.double()[:, 1].log_softmax(-1)[:, 3], **close)
    reference = torch.randn(2, 5, 11, dtype=torch.float64)
    wanted = reference[:, -1].softmax(-1)
    torch.testing.assert_close(lens.KL(reference).per_prompt(logits), (wanted * (wanted.log() - probs.log())).sum(-1), **close)
    tokens = torch.arange(10).reshape(2, 5)
    nll = -logits.double().log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0].mean(-1)
    torch.testing.assert_close(lens.Loss(tokens).per_prompt(logits), nll, **close)
    torch.testing.assert_close(lens.LogitDiff(3, 7)(logits), (last[:, 3] - last[:, 7]).mean(), **close)


def test_texts_are_resolved_by_the_models_tokenizer(tiny):
    resolved = DIFF.resolve(tiny)
    assert repr(DIFF) == "LogitDiff(answer=' Mary', wrong=' John', pos=-1)" and repr(lens.Loss()) == "Loss()"
    logits = tiny(CLEAN)
    mary, john = tiny.to_single_token(" Mary"), tiny.to_single_token(" John")
    assert resolved(logits).item() == (logits[0, -1, mary].double() - logits[0, -1, john].double()).item()
    with pytest.raises(ValueError, match="resolve"):
        DIFF(logits)
    with pytest.raises(ValueError, match="2 tokens|3 tokens|not one"):
        lens.Prob(" Mary John").resolve(tiny)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: lens.Prob([]), ValueError, "empty"),
        (lambda: lens.Prob(1.5), TypeError, "token id"),
        (lambda: lens.Prob(11)(random_logits()), IndexError, "token 11"),
        (lambda: lens.Prob(-1)(random_logits()), IndexError, "token -1"),
        (lambda: lens.Prob(1, pos=5)(random_logits()), IndexError, "pos 5"),
        (lambda: lens.Prob([1, 2, 3])(random_logits()), ValueError, "3 tokens for 2 prompts"),
        (lambda: lens.Prob(1)(random_logits()[0]), ValueError, r"\[batch, pos, d_vocab\]"),
        (lambda: lens.Prob(1)("text"), TypeError, "needed: a torch.Tensor"),
        (lambda: lens.KL("text"), TypeError, "reference"),
        (lambda: lens.KL(torch.zeros(2, 5, 4))(random_logits()), ValueError, "reference logits"),
        (lambda: lens.Loss()(random_logits()), ValueError, "Loss"),
        (lambda: lens.Loss([[1, 2]])(random_logits()), ValueError, "do not fit"),
    ],
)
def test_what_a_metric_refuses(make, error, says):
    with pytest.raises(error, match=says):
        make()


# ---- grids ----


def test_a_grid_is_the_naive_loop(tiny, clean, grid):
    assert grid.values.shape == (4, 15) and grid.values.dtype == torch.float64
    diff = DIFF.resolve(tiny)
    for layer in range(4):
        for pos in (0, 10, 14):
            plan = lens.Plan([lens.Patch(("resid_pre", layer), clean, pos=pos)])
            assert abs(grid.values[layer, pos] - diff(tiny(CORRUPTED, plan=plan))) < 1e-4 * abs(grid.clean - grid.corrupted)


def test_what_a_grid_tells(tiny, grid):
    assert grid.verdict.status == "VERIFIED" and grid.verdict.mode == "checksum" and grid.verdict.cells == 60
    assert grid.verdict.n_compared > 0 and 0 < grid.verdict.worst_ratio <= 1 and grid.verdict.refused_cells == []
    assert grid.over == ("layer", "pos") and grid.labels["pos"][10] == "10: John/ Mary" and grid.labels["layer"] == ["0", "1", "2", "3"]
    assert grid.site == "resid_pre" and grid.direction == "denoise" and grid.metric["metric"] == "logit_diff"
    assert 0 < grid.error_bar < 1e-4 and not grid.refused.any()
    expected = (grid.values - grid.corrupted) / (grid.clean - grid.corrupted)
    torch.testing.assert_close(grid.normalized, expected, rtol=0, atol=1e-12)
    assert grid.record["clean"]["tokens"] == tiny.to_tokens(CLEAN).flatten().tolist()
    assert "VERIFIED" in repr(grid) and str(grid.verdict).startswith("VERIFIED: 60 patches")
    grid.values.zero_()
    assert grid.values.abs().sum() > 0


def test_inputs_of_every_kind_give_the_same(tiny, clean, grid):
    corrupted = tiny.run_with_cache(CORRUPTED)[1]
    for a, b in ((CLEAN, CORRUPTED), (tiny.to_tokens(CLEAN), tiny.to_tokens(CORRUPTED)), (clean, corrupted), ([CLEAN], [CORRUPTED])):
        assert torch.equal(patching.patch_grid(tiny, a, b, "resid_pre", metric=DIFF).values, grid.values)
    noised = patching.patch_grid(tiny, CLEAN, corrupted, "resid_pre", metric=DIFF, direction="noise")
    assert torch.equal(noised.values, patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=DIFF, direction="noise").values)
    assert noised.clean == grid.clean and noised.corrupted == grid.corrupted
    assert abs(noised.normalized[0, 10]) < 1e-4


def test_a_function_is_a_metric(tiny, clean, grid):
    mary, john = tiny.to_single_token(" Mary"), tiny.to_single_token(" John")
    shapes = set()

    def diff(logits):
        shapes.add((tuple(logits.shape), logits.dtype))
        return logits[0, -1, mary] - logits[0, -1, john]

    found = patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=diff)
    torch.testing.assert_close(found.values, grid.values, rtol=0, atol=1e-5)
    assert shapes == {((1, 15, tiny.cfg.d_vocab), torch.float32)}
    assert found.metric == {"metric": "function", "name": "diff"}
    assert patching.patch_grid(tiny, clean, CORRUPTED, "z", ("layer",), metric=lambda logits: 1).values.eq(1).all()


def test_prompts_in_pairs(tiny):
    good = [CLEAN, "When Mary and John went to the store, Mary gave the bag to"]
    bad = [CORRUPTED, "When Mary and John went to the store, John gave the bag to"]
    both = patching.patch_grid(tiny, good, bad, "z", ("layer", "head"), lens.LogitDiff([" Mary", " John"], [" John", " Mary"]), max_cells=3)
    single = [
        patching.patch_grid(tiny, good[i], bad[i], "z", ("layer", "head"), lens.LogitDiff(a, b)).values
        for i, (a, b) in enumerate([(" Mary", " John"), (" John", " Mary")])
    ]
    torch.testing.assert_close(both.values, (single[0] + single[1]) / 2, rtol=0, atol=1e-4)


def test_loss_is_of_the_clean_prompts_tokens(tiny):
    grid = patching.patch_grid(tiny, CLEAN, CORRUPTED, "resid_pre", ("layer",), lens.Loss())
    tokens = tiny.to_tokens(CLEAN)
    assert math.isclose(grid.corrupted, lens.Loss(tokens)(tiny(CORRUPTED)).item(), rel_tol=1e-9)
    assert math.isclose(grid.clean, tiny(CLEAN, return_type="loss").item(), rel_tol=1e-5)


def test_refused_cells_are_nan_and_the_others_right(grid, partial):
    assert isinstance(partial, lens.GridResult) and partial.verdict.status == "INVALID"
    assert partial.refused.tolist() == [[layer == 1] * 15 for layer in range(4)]
    assert torch.equal(partial.values.isnan(), partial.refused)
    kept = ~partial.refused
    torch.testing.assert_close(partial.values[kept], grid.values[kept], rtol=0, atol=1e-3)
    assert "INVALID" in repr(partial) and partial.verdict.refused_runs == 15


def test_an_unchecked_grid_says_so(tiny):
    grid = patching.patch_grid(tiny, CLEAN, CORRUPTED, "resid_pre", metric=DIFF, verify="off")
    assert grid.verdict.status == "UNVERIFIED" and grid.verdict.n_compared == 0
    assert "UNVERIFIED" in repr(grid) and "UNVERIFIED" in grid.plot().layout.title.text


def test_progress_and_its_exceptions(tiny, clean):
    seen = []
    patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=DIFF, max_cells=25, savings=False, progress=lambda done, cells: seen.append((done, cells)))
    assert seen == [(0, 60), (25, 60), (50, 60), (60, 60)]

    def stop(done, cells):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=DIFF, progress=stop)


def test_what_a_grid_refuses(tiny, three, clean):
    def refuses(error, says, model=tiny, clean=clean, corrupted=CORRUPTED, site="resid_pre", metric=DIFF, **options):
        with pytest.raises(error, match=says):
            patching.patch_grid(model, clean, corrupted, site, metric=metric, **options)

    refuses(TypeError, "HookedTransformer", model="tiny-ioi")
    refuses(TypeError, "metric is missing", metric=None)
    refuses(TypeError, "needed: a LogitDiff", metric=3)
    refuses(TypeError, "must return a number", metric=lambda logits: "much")
    refuses(ValueError, r"a tensor of shape \[1, 15\]", metric=lambda logits: logits[..., 0])
    refuses(ValueError, "the metric is nan for the clean run", metric=lambda logits: math.nan)
    refuses(ZeroDivisionError, "by zero", metric=lambda logits: 1 / 0)
    refuses(ValueError, "nearest", site="resid_pri")
    refuses(ValueError, "tokens cannot be patched in this model; allowed: embed, pos_embed", site="tokens", over="pos")
    refuses(TypeError, "a site is a str", site=3)
    refuses(ValueError, 'no axis "head"; allowed: layer, pos', over=("layer", "head"))
    refuses(ValueError, "layer is missing", over=("pos",))
    refuses(TypeError, "names of axes", over=(1, 2))
    refuses(ValueError, "direction", direction="up")
    refuses(ValueError, "verify|allowed", verify="perhaps")
    refuses(IndexError, "max_cells 0", max_cells=0)
    refuses(ValueError, "needed: equal numbers", corrupted="When John")
    refuses(lens.NotVerified, "UnverifiedCache", clean=tiny.run_with_cache(CLEAN, verify="off")[1])
    refuses(lens.NotVerified, "UnverifiedCache", corrupted=tiny.run_with_cache(CLEAN, verify="off")[1])
    refuses(ValueError, "another model", clean=three.run_with_cache([[1, 2, 3]])[1])
    refuses(ValueError, "does not hold blocks.0.hook_resid_pre", clean=tiny.run_with_cache(CLEAN, "hook_embed")[1])
    refuses(ValueError, "was edited itself", clean=tiny.run_with_cache(CLEAN, plan=lens.Plan([lens.Ablate(("z", 0))]))[1])
    same = patching.patch_grid(tiny, clean, CLEAN, "resid_pre", metric=DIFF)
    with pytest.raises(ValueError, match="the same to this metric"):
        same.normalized
    with pytest.raises(TypeError, match="made by"):
        lens.GridResult(clean)


# ---- files ----


def test_a_grid_comes_back_from_its_file(grid, tmp_path):
    grid.save(tmp_path / "grid.h5")
    back = lens.load(tmp_path / "grid.h5")
    assert isinstance(back, lens.GridResult) and torch.equal(back.values, grid.values) and torch.equal(back.normalized, grid.normalized)
    for name in ("site", "over", "labels", "direction", "clean", "corrupted", "error_bar", "metric", "record"):
        assert getattr(back, name) == getattr(grid, name), name
    assert back.verdict.to_dict() == grid.verdict.to_dict()
    with pytest.raises(OSError):
        grid.save(tmp_path / "no" / "such" / "folder.h5")


def test_refused_and_unchecked_grids_are_not_read_as_verified(tiny, grid, partial, tmp_path):
    partial.save(tmp_path / "partial.h5")
    with pytest.raises(lens.NotVerified, match="INVALID"):
        lens.load(tmp_path / "partial.h5")
    back = lens.load_unverified(tmp_path / "partial.h5")
    assert back.verdict.status == "INVALID" and torch.equal(back.refused, partial.refused) and torch.equal(back.values.isnan(), partial.refused)
    patching.patch_grid(tiny, CLEAN, CORRUPTED, "z", ("layer",), DIFF, verify="off").save(tmp_path / "off.h5")
    with pytest.raises(lens.NotVerified, match="UNVERIFIED"):
        lens.load(tmp_path / "off.h5")
    grid.save(tmp_path / "grid.h5")
    assert lens.load_unverified(tmp_path / "grid.h5").verdict.status == "UNVERIFIED"


def test_an_edited_file_is_refused(grid, tmp_path):
    h5py = pytest.importorskip("h5py")
    grid.save(tmp_path / "grid.h5")
    with h5py.File(tmp_path / "grid.h5", "r+") as file:
        assert file["values"].shape == (4, 15) and file["values"][0, 10] == grid.values[0, 10].item()
        file["values"][0, 10] = 0.5
    with pytest.raises(lens.NotVerified):
        lens.load(tmp_path / "grid.h5")


# ---- pictures and tables ----


def test_plot(grid, partial):
    figure = grid.plot()
    (heatmap,) = figure.data
    assert heatmap.zmin == -heatmap.zmax and len(heatmap.z) == 4 and len(heatmap.z[0]) == 15
    assert "VERIFIED" in figure.layout.title.text and "tiny-ioi" in figure.layout.title.text
    assert figure.layout.xaxis.ticktext[10] == "10:␣John/␣Mary" and "&lt;|endoftext" in figure.layout.xaxis.ticktext[0]
    (marked,) = partial.plot().data
    assert list(marked.z[1]) == [None] * 15 and "refused" in marked.customdata[1][0]
    assert "15 of 60 cells refused" in partial.plot().layout.title.text


def test_plot_of_other_axes(tiny, clean):
    three_axes = patching.patch_grid(tiny, clean, CORRUPTED, "z", ("layer", "head", "pos"), DIFF)
    figure = three_axes.plot(normalized=False)
    assert len(figure.data) == 4 and [t.visible for t in figure.data] == [True, False, False, False]
    assert len(figure.layout.sliders[0].steps) == 4
    one_axis = patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", ("layer",), DIFF)
    assert len(one_axis.plot().data[0].z) == 1


def test_dataframe(grid, partial):
    pytest.importorskip("pandas")
    frame = partial.to_dataframe()
    assert list(frame.columns) == ["layer", "pos", "value", "refused"] and len(frame) == 60
    assert frame["value"].isna().sum() == frame["refused"].sum() == 15
    assert frame["value"][14] == pytest.approx(partial.values[0, 14].item())


def test_a_dataframe_without_pandas_is_refused(grid, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        grid.to_dataframe()
    with pytest.raises(ImportError, match="pip install pandas"):
        patching.make_df_from_ranges([2, 3], ["layer", "pos"])


# ---- TransformerLens's functions ----

SHAPES = {
    "resid_pre": (4, 15),
    "resid_mid": (4, 15),
    "attn_out": (4, 15),
    "mlp_out": (4, 15),
    "attn_head_out_by_pos": (4, 15, 4),
    "attn_head_k_by_pos": (4, 15, 4),
    "attn_head_pattern_by_pos": (4, 4, 15),
    "attn_head_out_all_pos": (4, 4),
    "attn_head_pattern_all_pos": (4, 4),
    "attn_head_all_pos_every": (5, 4, 4),
    "block_every": (3, 4, 15),
}


@pytest.mark.parametrize("name", SHAPES)
def test_transformer_lens_shapes(tiny, clean, name):
    result = getattr(patching, f"get_act_patch_{name}")(tiny, tiny.to_tokens(CORRUPTED), clean, DIFF)
    assert tuple(result.shape) == SHAPES[name] and result.dtype == torch.float32


def test_a_setter_of_this_module_is_what_it_writes(tiny, clean):
    """Each setter, run by itself on tensors, is the patch that the grid makes."""
    corrupted = tiny.run_with_cache(CORRUPTED)[1]
    cases = [
        (patching.layer_pos_patch_setter, "resid_pre", [1, 10], dict(pos=10)),
        (patching.layer_pos_head_vector_patch_setter, "z", [1, 10, 2], dict(pos=10, head=2)),
        (patching.layer_head_vector_patch_setter, "q", [1, 2], dict(head=2)),
        (patching.layer_head_pattern_patch_setter, "pattern", [1, 2], dict(head=2)),
        (patching.layer_head_pos_pattern_patch_setter, "pattern", [1, 2, 11], dict(head=2, pos=11)),
        (patching.layer_head_dest_src_pos_pattern_patch_setter, "pattern", [1, 2, 11, 10], dict(head=2, pos=11, key=10)),
    ]
    for setter, site, index, where in cases:
        written = setter(corrupted[site, 1], index, clean[site, 1])
        plan = lens.Plan([lens.Patch((site, 1), clean, **where)])
        logits, cache = tiny.run_with_cache(CORRUPTED, [lens.utils.get_act_name(site, 1)], plan=plan)
        torch.testing.assert_close(cache[site, 1], written, rtol=0, atol=1e-5)


def test_generic_patch_with_axes_and_rows(tiny, clean, grid):
    diff = DIFF.resolve(tiny)
    whole = patching.generic_activation_patch(tiny, CORRUPTED, clean, diff, patching.layer_pos_patch_setter, "resid_pre", ("layer", "pos"))
    assert torch.equal(whole, grid.values.float())

    class Rows:
        def iterrows(self):
            return enumerate([[1, 10], [2, 14], [3, 0]])

    picked, rows = patching.generic_activation_patch(
        tiny, CORRUPTED, clean, diff, patching.layer_pos_patch_setter, "resid_pre", index_df=Rows(), return_index_df=True
    )
    assert isinstance(rows, Rows)
    torch.testing.assert_close(picked, torch.stack([whole[1, 10], whole[2, 14], whole[3, 0]]), rtol=0, atol=1e-4)


def test_a_setter_of_ones_own_is_run_and_verified(tiny, clean, grid):
    def same_as_ours(corrupted, index, clean):
        layer, pos = index
        corrupted[:, pos] = clean[:, pos]
        return corrupted

    def half_way(corrupted, index, clean):
        return (corrupted + clean) / 2

    diff = DIFF.resolve(tiny)
    found = patching.generic_activation_patch(tiny, CORRUPTED, clean, diff, same_as_ours, "resid_pre", ("layer", "pos"))
    torch.testing.assert_close(found, grid.values.float(), rtol=0, atol=1e-4)
    found = patching.generic_activation_patch(tiny, CORRUPTED, clean, diff, half_way, "mlp_out", ("layer",))
    corrupted = tiny.run_with_cache(CORRUPTED)[1]
    for layer in range(4):
        plan = lens.Plan([lens.Patch(("mlp_out", layer), (corrupted["mlp_out", layer] + clean["mlp_out", layer]) / 2)])
        assert abs(found[layer] - diff(tiny(CORRUPTED, plan=plan))) < 1e-5
    with pytest.raises(lens.VerificationFailed), lens.faults.inject("one_element", hook="blocks.2.hook_mlp_out", stage=1, delta=0.5):
        patching.generic_activation_patch(tiny, CORRUPTED, clean, diff, half_way, "mlp_out", ("layer",))


def test_what_the_generic_patch_refuses(tiny, clean):
    def refuses(error, says, setter=patching.layer_pos_patch_setter, name="resid_pre", cache=clean, **options):
        with pytest.raises(error, match=says):
            patching.generic_activation_patch(tiny, CORRUPTED, cache, DIFF, setter, name, **options)

    refuses(ValueError, "not both")
    refuses(ValueError, "has the index", index_axis_names=("layer", "head"))
    refuses(ValueError, "axis 'posi'", index_axis_names=("layer", "posi"))
    refuses(ValueError, "first axis is layer", index_axis_names=("pos", "layer"))
    refuses(TypeError, "patch_setter", setter="layer_pos", index_axis_names=("layer", "pos"))
    refuses(TypeError, "returned None", setter=lambda corrupted, index, clean: None, index_axis_names=("layer",))
    refuses(ValueError, "the source has shape", setter=lambda corrupted, index, clean: clean[0], index_axis_names=("layer",))
    refuses(lens.NotVerified, "UnverifiedCache", setter=lambda *_: None, cache=tiny.run_with_cache(CLEAN, verify="off")[1], index_axis_names=("layer",))
    refuses(ValueError, "nearest", name="resid", index_axis_names=("layer", "pos"))
    refuses(lens.NotVerified, "UnverifiedCache", cache=tiny.run_with_cache(CLEAN, verify="off")[1], index_axis_names=("layer", "pos"))


def test_every_name_of_transformer_lens_is_here():
    names = [n for n in dir(patching) if n.startswith("get_act_patch_")]
    assert len(names) == 18
    for name in names:
        function = getattr(patching, name)
        given = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty][:3]
        assert given == ["model", "corrupted_tokens", "clean_cache"] and function.__doc__
    assert all(name in patching.__all__ for name in [*names, "generic_activation_patch", "make_df_from_ranges", "patch_grid"])


def test_exchanged_arguments_are_refused(tiny):
    clean, corrupted = ("When John and Mary went to the store, %s gave the bag to" % name for name in ("John", "Mary"))
    _, cache = tiny.run_with_cache(clean)
    metric = lens.LogitDiff(" Mary", " John")
    for tokens, run in ((cache, tiny.to_tokens(corrupted)), (clean, tiny.to_tokens(corrupted))):
        with pytest.raises(lens.NotVerified, match="the order is TransformerLens's"):
            lens.patching.get_act_patch_attn_head_out_all_pos(tiny, tokens, run, metric)


def resid_at(corrupted, index, clean):
    """Like a setter of one's own: no standard one, so that each index is a run of its own."""
    patched = corrupted.clone()
    patched[:, index[1]] = clean[:, index[1]]
    return patched


def by_setter(model, corrupted, cache, metric=lambda logits: logits[0, -1, 0]):
    return lens.patching.generic_activation_patch(model, corrupted, cache, metric, resid_at, "resid_pre", ("layer", "pos"))


CLEAN_TOKENS, CORRUPTED_TOKENS = [[1, 5, 20, 7]], [[1, 5, 21, 7]]


def test_a_setter_of_ones_own_gives_what_the_standard_one_gives(three):
    _, cache = three.run_with_cache(CLEAN_TOKENS)
    standard = lens.patching.get_act_patch_resid_pre(three, CORRUPTED_TOKENS, cache, lambda logits: logits[0, -1, 0])
    assert torch.allclose(by_setter(three, CORRUPTED_TOKENS, cache), standard, atol=1e-6, rtol=0)


def test_patching_verifies_whatever_the_model_says():
    """TransformerLens's functions return bare tensors, which cannot say UNVERIFIED."""
    model = lens.HookedTransformer.from_pretrained(GOLDEN / "three_layers", verify="off")
    _, cache = model.run_with_cache(CLEAN_TOKENS, verify="exact")
    metric = lambda logits: logits[0, -1, 0]
    for patch in (by_setter, lambda *a: lens.patching.get_act_patch_resid_pre(*a, metric)):
        # Stage 1 is the patched one: the runs of the pair have none, and are verified in any case.
        with lens.faults.inject("scale", hook="hook_resid_pre", layer=1, stage=1), pytest.raises(lens.VerificationFailed):
            patch(model, CORRUPTED_TOKENS, cache)


def test_a_setter_of_ones_own_takes_no_other_clean_run_than_a_grid_does(three):
    raw = lens.HookedTransformer.from_pretrained_no_processing(GOLDEN / "three_layers")
    caches = {
        "of another model": raw.run_with_cache(CLEAN_TOKENS)[1],
        "edits or hooks": three.run_with_cache(CLEAN_TOKENS, plan=lens.Scale("blocks.0.attn.hook_z", 2.0))[1],
        "some positions": three.run_with_cache(CLEAN_TOKENS, pos_slice=[1, 2, 3])[1],
        "needed: equal numbers": three.run_with_cache([[1, 5, 20]])[1],
    }
    for message, cache in caches.items():
        with pytest.raises(ValueError, match=message):
            by_setter(three, CORRUPTED_TOKENS, cache)
    _, cache = three.run_with_cache(CLEAN_TOKENS)
    with pytest.raises(ValueError, match="the metric is nan"):
        by_setter(three, CORRUPTED_TOKENS, cache, lambda logits: logits[0, -1, 0] * float("nan"))
    with three.hooks([("blocks.1.hook_resid_pre", lambda x, hook: x + 1)]), pytest.raises(ValueError, match="call no hooks"):
        by_setter(three, CORRUPTED_TOKENS, cache)


@pytest.mark.parametrize("site,over", [("resid_pre", ("layer", "pos")), ("z", ("layer", "head")), ("pattern", ("layer", "query"))])
def test_savings_move_values_by_rounding_alone(tiny, clean, site, over):
    saved = patching.patch_grid(tiny, clean, CORRUPTED, site, over, DIFF)
    plain = patching.patch_grid(tiny, clean, CORRUPTED, site, over, DIFF, savings=False, verify="exact")
    torch.testing.assert_close(saved.values, plain.values, rtol=0, atol=1e-4 * abs(saved.clean - saved.corrupted))
    assert saved.verdict.mode == "checksum" and saved.verdict.n_projected > 0 and plain.verdict.n_projected == 0
    assert plain.verdict.mode == "exact" and plain.verdict.equal_cells == 0 and saved.verdict.n_compared < plain.verdict.n_compared


def test_patches_that_change_nothing_are_not_run(tiny, clean):
    grid = patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=DIFF)
    assert grid.verdict.equal_cells == 44 and "44 not run: they change nothing" in grid.verdict.summary
    assert (grid.values[:, :10] == grid.corrupted).all() and grid.verdict.to_dict()["equal_cells"] == 44


def test_a_saved_grid_is_of_one_model(tiny, grid, tmp_path):
    grid.save(tmp_path / "grid.h5")
    assert torch.equal(lens.load(tmp_path / "grid.h5", tiny).values, grid.values)
    other = lens.HookedTransformer.from_pretrained("tiny-ioi", fold_ln=False)
    with pytest.raises(ValueError, match="other weights, processing or dtype"):
        lens.load(tmp_path / "grid.h5", other)


def test_modes_and_savings_are_what_they_are(tiny, clean):
    with pytest.raises(TypeError, match='needed: "checksum", "exact" or "off"; found: a bool'):
        patching.patch_grid(tiny, clean, CORRUPTED, "z", metric=DIFF, verify=False)
    with pytest.raises(TypeError, match="savings: needed: a bool"):
        patching.patch_grid(tiny, clean, CORRUPTED, "z", metric=DIFF, savings="no")
    with pytest.raises(ValueError, match="names a layer; a grid goes over all of them"):
        patching.patch_grid(tiny, clean, CORRUPTED, "blocks.0.attn.hook_z", metric=DIFF)


def test_a_function_reads_all_logits(tiny, clean):
    shapes = set()

    def difference(logits):
        shapes.add(tuple(logits.shape))
        return logits[0, -1, mary] - logits[0, -1, john]

    mary, john = tiny.to_single_token(" Mary"), tiny.to_single_token(" John")
    declared = patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=DIFF)
    grid = patching.patch_grid(tiny, clean, CORRUPTED, "resid_pre", metric=difference)
    torch.testing.assert_close(grid.values, declared.values, rtol=0, atol=1e-4)
    assert shapes == {(1, 15, tiny.cfg.d_vocab)}
