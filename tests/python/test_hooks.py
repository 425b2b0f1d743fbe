"""Functions at hook points: what they get, what becomes of what they return, how long they stay."""

import functools
import gc
import threading
import weakref

import pytest
import torch

import lenscpp as lens

TOKENS = [[1, 5, 200, 7], [7, 3, 256, 0]]
Z = "blocks.1.attn.hook_z"


def zero_head(z, hook):
    z[:, :, 2] = 0
    return z


@pytest.fixture(scope="module")
def clean(three):
    return three.run_with_cache(TOKENS)[1]


# ---- equal to plans and to hand computation ----


def test_zeroing_a_head_equals_the_plan_bit_by_bit(three):
    ablated = three(TOKENS, plan=lens.Plan([lens.Ablate(("z", 1), head=2)]))
    assert torch.equal(three.run_with_hooks(TOKENS, fwd_hooks=[(Z, zero_head)]), ablated)


def test_a_clone_changed_in_place_counts_as_returned(three):
    def without_return(z, hook):
        z[:, :, 2] = 0

    ablated = three(TOKENS, plan=lens.Plan([lens.Ablate(("z", 1), head=2)]))
    assert torch.equal(three.run_with_hooks(TOKENS, fwd_hooks=[(Z, without_return)]), ablated)


def test_what_is_returned_wins_over_what_was_written(three, clean):
    def both(z, hook):
        result = z.clone()
        z[:] = 7
        return result

    assert torch.equal(three.run_with_hooks(TOKENS, fwd_hooks=[(Z, both)]), clean["unembed.hook_out"])


def test_steering_equals_the_plan(three):
    direction = torch.linspace(-1, 1, three.cfg.d_model)
    steered = three.run_with_hooks(TOKENS, fwd_hooks=[(("resid_pre", 1), lambda x, hook: x + direction)])
    assert torch.equal(steered, three(TOKENS, plan=lens.Plan([lens.Add(("resid_pre", 1), direction)])))


def test_a_hook_comes_after_the_plans_edits(three, clean):
    plan = lens.Plan([lens.Scale("hook_embed", 2.0)])
    seen = []
    three.run_with_hooks(TOKENS, fwd_hooks=[("hook_embed", lambda x, hook: seen.append(x))], plan=plan)
    assert torch.equal(seen[0], 2 * clean["hook_embed"])


def test_patching_from_another_run(three):
    other = three.run_with_cache([[9, 8, 7, 6], [5, 4, 3, 2]])[1]
    patched = three.run_with_hooks(TOKENS, fwd_hooks=[("resid_pre0", lambda x, hook: other[hook.name])])
    assert torch.equal(patched, three([[9, 8, 7, 6], [5, 4, 3, 2]]))


def test_knocking_out_attention(three):
    def knock_out(scores, hook):
        scores[:, 0, 3, 1] = -torch.inf

    with three.hooks([(("attn_scores", 1), knock_out)]):
        cache = three.run_with_cache(TOKENS)[1]
    assert (cache["pattern", 1][:, 0, 3, 1] == 0).all()
    torch.testing.assert_close(cache["pattern", 1].sum(-1), torch.ones(2, three.cfg.n_heads, 4))
    with pytest.raises(ValueError, match="every key of row 0"), three.hooks([(("attn_scores", 1), lambda s, hook: torch.full_like(s, -torch.inf))]):
        three(TOKENS)


@pytest.mark.parametrize(
    "name",
    [
        *("blocks.1.attn.hook_result", "blocks.1.hook_q_input", "blocks.1.hook_k_input", "blocks.1.hook_v_input", "blocks.1.hook_attn_in"),
        *("blocks.1.hook_mlp_in", "blocks.1.ln1.hook_scale", "blocks.1.ln2.hook_normalized", "ln_final.hook_scale", "hook_embed"),
        *("hook_pos_embed", "blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores", "blocks.1.mlp.hook_post", "unembed.hook_in"),
        "unembed.hook_out",
    ],
)
def test_everywhere_a_hook_is_called_and_read_on(three, clean, name):
    shapes = []

    def half(x, hook):
        shapes.append((hook.name, x.dtype, x.device.type))
        return x / 2

    with three.hooks([(name, half)]):
        logits, cache = three.run_with_cache(TOKENS)
    assert shapes == [(name, torch.float32, "cpu")] and cache.verdict.status == "VERIFIED" and cache.verdict.coverage == 1
    assert not torch.equal(logits, clean["unembed.hook_out"])
    if name in cache and name in clean and not name.startswith("blocks.1.attn.hook_attn_scores"):
        torch.testing.assert_close(cache[name], clean[name] / 2, rtol=1e-5, atol=1e-5)
    record = cache.record["hooks"]
    assert [(call["name"], call["function"], call["changed"]) for call in record] == [(name, "half", True)]
    assert record[0]["before"] != record[0]["after"]


def test_hook_result_by_hand(three):
    logits, cache = three.run_with_cache(TOKENS, ["blocks.2.attn.hook_result", "blocks.2.hook_attn_out"])
    with three.hooks([("blocks.2.attn.hook_result", lambda r, hook: r * torch.tensor([1.0, 0, 1, 1][: r.shape[2]])[:, None])]):
        ablated = three.run_with_cache(TOKENS, ["blocks.2.hook_attn_out"])[1]
    expected = cache["attn_out", 2] - cache["result", 2][:, :, 1]
    torch.testing.assert_close(ablated["attn_out", 2], expected)


def test_a_hook_that_only_looks_changes_no_bit(three, clean):
    with three.hooks([(lambda name: True, lambda x, hook: None)]):
        cache = three.run_with_cache(TOKENS)[1]
    assert all(torch.equal(cache[name], clean[name]) for name in clean)
    assert len(cache.record["hooks"]) == len(clean) and not any(call["changed"] for call in cache.record["hooks"])


def test_what_a_hook_keeps_is_its_own_and_takes_gradients(three, clean):
    kept = []
    three.run_with_hooks(TOKENS, fwd_hooks=[(Z, lambda z, hook: kept.append(z))])
    assert torch.equal(kept[0], clean["z", 1])
    kept[0].requires_grad_()
    (kept[0] ** 2).sum().backward()
    assert torch.equal(kept[0].grad, 2 * clean["z", 1])
    kept[0].data[:] = 5
    assert torch.equal(three(TOKENS), clean["unembed.hook_out"])


def test_shipped_model_with_a_tokenizer(tiny):
    logits = tiny.run_with_hooks("When John", return_type="logits", prepend_bos=False, fwd_hooks=[("z0", zero_head)])
    assert logits.shape[1] == len(tiny.to_str_tokens("When John", prepend_bos=False))
    loss = tiny.run_with_hooks("When John and Mary", return_type="loss", fwd_hooks=[("z0", zero_head)])
    assert loss.shape == () and loss != tiny("When John and Mary", return_type="loss")


# ---- how long they stay ----


def counting(counts, key):
    def count(x, hook):
        counts.append(key)

    return count


def test_blocks_nest_and_end_also_by_exceptions(three):
    counts = []
    with three.hooks([(Z, counting(counts, "outer"))]) as model:
        assert model is three
        with three.hooks([(Z, counting(counts, "inner"))]):
            three(TOKENS)
        three.run_with_hooks(TOKENS, fwd_hooks=[(Z, counting(counts, "run"))])
        with pytest.raises(RuntimeError, match="mine"), three.hooks([(Z, counting(counts, "raised"))]):
            raise RuntimeError("mine")
        three(TOKENS)
    three(TOKENS)
    assert counts == ["outer", "inner", "outer", "run", "outer"]
    assert three.list_hooks() == {}


def test_added_hooks_stay_until_they_are_reset(three):
    counts = []
    try:
        three.add_hook(("z", -2), counting(counts, "added"))
        three.add_hook(Z, counting(counts, "first"), prepend=True)
        three.add_perma_hook(Z, counting(counts, "permanent"))
        three(TOKENS)
        assert counts == ["first", "added", "permanent"]
        listed = three.list_hooks()
        assert list(listed) == [Z] and [hook.is_permanent for hook in listed[Z]] == [False, False, True]
        assert three.list_hooks("z1") == listed and three.list_hooks("q1") == {} and three.list_hooks(dir="bwd") == {}
        assert len(three.list_hooks(including_permanent=False)[Z]) == 2
        three.reset_hooks()
        counts.clear()
        three(TOKENS)
        assert counts == ["permanent"]
    finally:
        three.reset_hooks(including_permanent=True)
    assert three.list_hooks() == {}


def test_reset_by_level_and_without_reset_at_the_end(three):
    try:
        with three.hooks([(Z, zero_head)], reset_hooks_end=False):
            pass
        assert [hook.context_level for hook in three.list_hooks()[Z]] == [1]
        three.add_hook(Z, zero_head, level=5)
        three.reset_hooks(level=5)
        assert [hook.context_level for hook in three.list_hooks()[Z]] == [1]
        with three.hooks([("q0", zero_head)]):
            three.reset_hooks()
            assert three.list_hooks() == {}
    finally:
        three.reset_hooks(including_permanent=True)


def test_blocks_are_of_one_thread_and_one_model(three, tiny):
    counts = []
    with three.hooks([(Z, counting(counts, "hook"))]):
        thread = threading.Thread(target=lambda: three(TOKENS))
        thread.start()
        thread.join()
        tiny(TOKENS)
        assert counts == []


def test_contexts_stay_until_they_are_cleared(three):
    def count(x, hook):
        hook.ctx["runs"] = hook.ctx.get("runs", 0) + 1
        assert hook.layer() == 1

    for _ in range(2):
        three.run_with_hooks(TOKENS, fwd_hooks=[(Z, count)])
    assert three.hook_dict[Z].ctx == {"runs": 2}
    three.run_with_hooks(TOKENS, fwd_hooks=[(Z, count)], clear_contexts=True)
    assert three.hook_dict[Z].ctx == {}
    three.run_with_hooks(TOKENS, fwd_hooks=[(Z, count)])
    three.reset_hooks(clear_contexts=False)
    assert three.hook_dict[Z].ctx == {"runs": 1}
    three.reset_hooks()
    assert three.hook_dict[Z].ctx == {}
    with pytest.raises(ValueError, match="hook_embed has no layer"):
        three.hook_dict["hook_embed"].layer()


def test_functions_are_let_go(three):
    class Function:
        def __call__(self, x, hook):
            raise RuntimeError("mine")

    function = Function()
    watch = weakref.ref(function)
    with pytest.raises(RuntimeError, match="mine"):
        three.run_with_hooks(TOKENS, fwd_hooks=[(Z, function)])
    del function
    gc.collect()
    assert watch() is None


# ---- names ----


def test_names_and_predicates(three):
    names = []

    def note(x, hook):
        names.append(hook.name)

    three.run_with_hooks(TOKENS, fwd_hooks=[(lambda name: name.endswith("hook_z"), note)])
    assert names == [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
    names.clear()
    three.run_with_hooks(TOKENS, fwd_hooks=[("z1", note), (("z", -1), note), (("scale", 0, "ln1"), note), ("blocks.0.hook_mlp_in", note)])
    assert names == ["blocks.0.ln1.hook_scale", "blocks.0.hook_mlp_in", Z, "blocks.2.attn.hook_z"]


@pytest.mark.parametrize(
    "name, error, text",
    [
        ("blocks.1.attn.hook_zz", ValueError, "blocks.1.attn.hook_z"),
        ("blocks.7.attn.hook_z", IndexError, "layer"),
        (("z", 7), IndexError, "layer"),
        (lambda name: False, ValueError, "matches no hook point"),
        (lambda name: "hook_result" in name, ValueError, "must be named"),
        (3, TypeError, "needed: a hook name"),
        (("z", "one"), TypeError, "layer"),
    ],
)
def test_names_that_mean_nothing_are_refused(three, name, error, text):
    for call in (lambda: three.run_with_hooks(TOKENS, fwd_hooks=[(name, zero_head)]), lambda: three.add_hook(name, zero_head)):
        with pytest.raises(error, match=text):
            call()
    assert three.list_hooks() == {}


def test_bad_calls_are_refused(three):
    for hooks, text in (([(Z, 3)], "needed: a function"), ([Z], "pairs"), (Z, "a list of"), ([(Z, zero_head, 1)], "pairs"), (None, "a list of")):
        with pytest.raises(TypeError, match=text):
            three.run_with_hooks(TOKENS, fwd_hooks=hooks)
    for call in (
        lambda: three.run_with_hooks(TOKENS, bwd_hooks=[(Z, zero_head)]),
        lambda: three.add_hook(Z, zero_head, "bwd"),
    ):
        with pytest.raises(NotImplementedError, match="gradients"):
            call()
    with pytest.raises(ValueError, match="'fwd'"):
        three.add_hook(Z, zero_head, "sideways")


def test_hooks_that_would_never_fire_are_refused_up_front(three):
    called = []
    hooks = [("resid_pre0", counting(called, 0)), (Z, zero_head)]
    with pytest.raises(ValueError, match="zero_head is at blocks.1.attn.hook_z, which this run does not compute"):
        three.run_with_hooks(TOKENS, fwd_hooks=hooks, stop_at_layer=1)
    residual = three(TOKENS, stop_at_layer=2)
    with pytest.raises(ValueError, match="does not compute"):
        three.run_with_hooks(residual, fwd_hooks=hooks, start_at_layer=2)
    with pytest.raises(ValueError, match="can be changed"):
        three.run_with_hooks(TOKENS, fwd_hooks=[("hook_tokens", zero_head)])
    assert called == []


# ---- what may be returned ----


@pytest.mark.parametrize(
    "function, error, text",
    [
        (lambda z, hook: z[:1], ValueError, r"returned float32 \[1, 4, .*\]; allowed: float32 \[2, 4, "),
        (lambda z, hook: z.double(), ValueError, "float64 on cpu; allowed: torch.float32 on cpu"),
        (lambda z, hook: z.to("meta"), ValueError, "on meta; allowed: torch.float32 on cpu"),
        (lambda z, hook: z.int(), ValueError, "int32"),
        (lambda z, hook: z / 0, ValueError, "finite"),
        (lambda z, hook: z * float("nan"), ValueError, "nan at element 0"),
        (lambda z, hook: 3, TypeError, "needed: a torch.Tensor; found: an object of int"),
        (lambda z, hook: z.numpy(), TypeError, "numpy.ndarray"),
        (lambda z, hook: z.to_sparse(), TypeError, "sparse"),
        (lambda z, hook: (z.resize_(3), None)[1], ValueError, r"returned float32 \[3\]"),
    ],
)
@pytest.mark.parametrize("verify", ["exact", "off"])
def test_what_does_not_fit_is_refused_naming_hook_and_point(three, function, error, text, verify):
    def steer(z, hook):
        return function(z, hook)

    with pytest.raises(error, match=text) as raised:
        three.run_with_hooks(TOKENS, fwd_hooks=[(Z, steer)], verify=verify)
    assert "steer at blocks.1.attn.hook_z" in str(raised.value)


def test_exceptions_come_through_unchanged(three, clean):
    class Own(BaseException):
        pass

    for error in (Own("mine"), KeyboardInterrupt(), StopIteration("mine"), lens.NotVerified("mine")):

        def fail(z, hook, error=error):
            raise error

        with pytest.raises(type(error)) as raised:
            three.run_with_hooks(TOKENS, fwd_hooks=[(Z, fail)])
        assert raised.value is error
    assert torch.equal(three(TOKENS), clean["unembed.hook_out"])


def test_a_hook_may_run_the_model(three, clean):
    inner = []

    def again(z, hook):
        inner.append(three(TOKENS))
        inner.append(three.run_with_hooks(TOKENS, fwd_hooks=[(Z, zero_head)]))

    with three.hooks([(Z, again)]):
        assert torch.equal(three(TOKENS), clean["unembed.hook_out"])
    assert torch.equal(inner[0], clean["unembed.hook_out"])
    assert torch.equal(inner[1], three.run_with_hooks(TOKENS, fwd_hooks=[(Z, zero_head)]))


def test_hooks_run_in_the_callers_torch(three):
    seen = []
    hooks = [(Z, lambda z, hook: seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled())))]
    three.run_with_hooks(TOKENS, fwd_hooks=hooks)
    with torch.no_grad():
        three.run_with_hooks(TOKENS, fwd_hooks=hooks)
    with torch.inference_mode():
        three.run_with_hooks(TOKENS, fwd_hooks=hooks)
    assert seen == [(True, False), (False, False), (False, True)]


def test_runs_that_would_call_no_hooks_are_refused_while_some_are_active(tiny):
    prompts = ("When John and Mary went to the store, John gave the bag to", "When John and Mary went to the store, Mary gave the bag to")
    with tiny.hooks([("z1", zero_head)]):
        with pytest.raises(ValueError, match=r"\[patch_grid\] its runs call no hooks, and 1 are active \(the first at blocks.1.attn.hook_z"):
            lens.patching.patch_grid(tiny, *prompts, "resid_pre", metric=lens.LogitDiff(" Mary", " John"))
        with pytest.raises(ValueError, match=r"\[compare\] its runs call no hooks"):
            lens.compare(tiny, prompts[0], " Mary", " John")


def test_saved_runs_remember_their_hooks(three, tmp_path):
    with three.hooks([(Z, zero_head)]):
        cache = three.run_with_cache(TOKENS)[1]
    cache.save(tmp_path / "run.h5")
    loaded = lens.load(tmp_path / "run.h5")
    assert loaded.record["hooks"] == cache.record["hooks"] and torch.equal(loaded[Z], cache[Z])
    assert [point.name for point in loaded.verdict.points] == [point.name for point in cache.verdict.points]


# ---- verification ----


def test_partials_are_named_by_their_function(three):
    def scale(z, hook, factor):
        return z * factor

    with three.hooks([(Z, functools.partial(scale, factor=0.5))]):
        cache = three.run_with_cache(TOKENS)[1]
    assert cache.record["hooks"][0]["function"] == "scale"
    assert f"{Z} (hook 1: scale)" in [point.name for point in cache.verdict.points]
    assert "(hooked)" in str(cache.verdict)


def test_a_fault_beside_hooks_is_named_at_its_stage(three):
    for stage, name in ((0, Z), (1, f"{Z} (hook 1: zero_head)"), (2, f"{Z} (hook 2: look)")):
        hooks = [(Z, zero_head), (Z, counting([], "look"))]
        hooks[1][1].__name__ = "look"
        with lens.faults.inject("one_element", hook=Z, stage=stage, delta=0.5) as fault, pytest.raises(lens.VerificationFailed) as raised:
            three.run_with_hooks(TOKENS, fwd_hooks=hooks)
        assert raised.value.verdict.first_failure.name == name and name in str(raised.value)
        assert fault.fired == [(name, 1)]
        assert len(raised.value.record["hooks"]) == 2


def test_unverified_runs_have_hooks_too(three, clean):
    with three.hooks([(Z, zero_head)]):
        logits, cache = three.run_with_cache(TOKENS, verify="off")
    assert isinstance(cache, lens.UnverifiedCache) and (cache["z", 1][:, :, 2] == 0).all()
    assert cache.record["hooks"][0]["function"] == "zero_head"
    assert torch.equal(logits, three.run_with_hooks(TOKENS, fwd_hooks=[(Z, zero_head)], verify="off"))


def test_pos_slice_and_drift_with_hooks(three):
    with three.hooks([(Z, zero_head)]):
        cache = three.run_with_cache(TOKENS, [Z], pos_slice=2, drift=True)[1]
    assert cache[Z].shape[1] == 1 and (cache[Z][:, :, 2] == 0).all()
    names = [row["name"] for row in cache.verdict.drift]
    assert f"{Z} (hook 1: zero_head)" in names


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_every_dtype(tiny, dtype):
    model = lens.HookedTransformer.from_pretrained("tiny-ioi", dtype=dtype)
    seen = []

    def half(x, hook):
        seen.append(x.dtype)
        return x / 2

    logits = model.run_with_hooks("When John", fwd_hooks=[("z1", half), (("scale", 1, "ln2"), half)])
    assert logits.dtype == getattr(torch, dtype)
    assert seen == [getattr(torch, dtype), torch.float64 if dtype == "float64" else torch.float32]


def test_reset_inside_a_block_holds_outside_of_it(three):
    calls = []
    pair = [("blocks.1.hook_resid_pre", lambda x, hook: calls.append(hook.name))]
    with three.hooks(pair):
        with three.hooks(pair):
            three([1, 5])
            assert len(calls) == 2
            three.reset_hooks()
        three([1, 5])
    three([1, 5])
    assert len(calls) == 2
