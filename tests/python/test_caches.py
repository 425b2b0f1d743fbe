"""Caches: read like TransformerLens's, immutable, and made by the verifier alone."""

import copy
import copyreg
import io
import pickle
from collections.abc import Mapping

import pytest
import torch
from conftest import PROMPT

import lenscpp as lens


@pytest.fixture
def unverified(tiny):
    return tiny.run_with_cache(PROMPT, verify="off")[1]


# ---- reading ----


def test_is_a_mapping(tiny, cache):
    assert isinstance(cache, Mapping) and isinstance(cache, lens.VerifiedCache)
    assert list(cache) == list(cache.keys()) == tiny.hook_names == [name for name, _ in cache.items()]
    assert len(cache) == len(list(cache.values())) == 17 * 4 + 6
    assert "blocks.0.attn.hook_q" in cache and ("q", 0) in cache and ("resid_post", -1) in cache
    assert "blocks.9.attn.hook_q" not in cache and "nothing" not in cache and 5 not in cache and ("q", 9) not in cache
    assert cache.get("nothing") is None and cache.get("nothing", 7) == 7 and cache.get(("q", 9)) is None
    assert torch.equal(cache.get("hook_embed"), cache["hook_embed"])
    assert {"hook_embed"} <= cache.keys()


@pytest.mark.parametrize(
    "key, name",
    [
        (("resid_post", 3), "blocks.3.hook_resid_post"),
        (("resid_post", -1), "blocks.3.hook_resid_post"),
        (("scale", 2, "ln1"), "blocks.2.ln1.hook_scale"),
        (("normalized", -4, "ln2"), "blocks.0.ln2.hook_normalized"),
        (("attn", 1), "blocks.1.attn.hook_pattern"),
        (("attn_scores", 1), "blocks.1.attn.hook_attn_scores"),
        (("post", 2), "blocks.2.mlp.hook_post"),
        (("k", 0, "attn"), "blocks.0.attn.hook_k"),
        ("k2", "blocks.2.attn.hook_k"),
        ("scale1ln2", "blocks.1.ln2.hook_scale"),
        ("scale", "ln_final.hook_scale"),
        ("embed", "hook_embed"),
        (("embed",), "hook_embed"),
        (("hook_embed", None), "hook_embed"),
        ("blocks.3.attn.hook_pattern", "blocks.3.attn.hook_pattern"),
    ],
)
def test_short_names(cache, key, name):
    assert torch.equal(cache[key], cache[name])


def test_get_act_name():
    assert lens.utils.get_act_name("resid_post", 3) == "blocks.3.hook_resid_post"
    assert lens.utils.get_act_name("scale", 3, "ln1") == "blocks.3.ln1.hook_scale"
    assert lens.utils.get_act_name("k6") == "blocks.6.attn.hook_k"
    assert lens.utils.get_act_name("scale4ln1") == "blocks.4.ln1.hook_scale"
    assert lens.utils.get_act_name("normalized") == "ln_final.hook_normalized"


@pytest.mark.parametrize(
    "key, error, says",
    [
        ("resid_pots", KeyError, "nearest"),
        (("resid_post", 4), IndexError, "4 layers"),
        (("resid_post", -5), IndexError, "4 layers"),
        (("attn.hook_q", 0), KeyError, "nearest"),
        ("blocks.0.attn.hook_result", KeyError, "not in this cache"),
        (3, TypeError, "hook name"),
        (("resid_post", "3"), TypeError, "found"),
        (("resid_post", 1.0), TypeError, "found"),
        (("resid_post", True), TypeError, "found"),
        (("resid_post", 1, 2), TypeError, "found"),
        (("resid_post", 1, "", ""), TypeError, "found"),
        ((), TypeError, "found"),
        (None, TypeError, "found"),
        (slice(0, 1), TypeError, "found"),
    ],
)
def test_wrong_keys(cache, key, error, says):
    with pytest.raises(error, match=says):
        cache[key]


def test_record_and_verdict(tiny, cache):
    record = cache.record
    assert record["model"] == "tiny-ioi" and record["device"] == "cpu" and record["dtype"] == "float32" and record["mode"] == "exact"
    assert record["tokens"] == cache.tokens.flatten().tolist() == tiny.to_tokens(PROMPT).flatten().tolist()
    assert record["processing"] == dict.fromkeys(["fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases"], True)
    assert record["model_digest"] == tiny.digest and record["build_commit"] and record["libraries"]["torch"].startswith("2.")
    record["tokens"][0] = -1
    assert cache.record["tokens"] != record["tokens"]

    verdict = cache.verdict
    assert verdict.status == "VERIFIED" and verdict.mode == "exact" and verdict.first_failure is None
    assert verdict.coverage == 1.0 and verdict.seconds > 0 and verdict.drift is None
    assert [p.name for p in verdict.points] == tiny.hook_names
    assert verdict.n_compared == sum(p.compared for p in verdict.points) == sum(t.numel() for t in cache.values())
    point = next(p for p in verdict.points if p.name == "blocks.0.attn.hook_attn_scores")
    assert point.passed and point.failed == 0 and point.op == "scores" and 0 <= point.worst_ratio <= 1
    assert len(point.worst_index) == 4 and cache[point.name][point.worst_index].item() == point.device_value
    assert abs(point.device_value - point.reference_value) < 1e-4
    assert "VERIFIED" in str(verdict) and "blocks.*.attn.hook_z" in str(verdict) and "VERIFIED" in repr(verdict)
    assert verdict.to_dict()["n_compared"] == verdict.n_compared and point.to_dict()["name"] == point.name


def test_drift(tiny):
    drift = tiny.run_with_cache(PROMPT, names_filter="hook_embed", drift=True)[1].verdict.drift
    assert [row["name"] for row in drift] == tiny.hook_names
    assert 0 < drift[-1]["relative"] < 1e-4


def test_html(cache, unverified, tiny):
    assert "VERIFIED" in cache._repr_html_() and "blocks.*.attn.hook_z" in cache.verdict._repr_html_()
    assert "UNVERIFIED" in unverified._repr_html_()
    with pytest.raises(lens.VerificationFailed) as raised, lens.faults.inject("nan", hook="blocks.2.attn.hook_z"):
        tiny(PROMPT)
    html = raised.value.verdict._repr_html_()
    assert "INVALID" in html and "#cf222e" in html and "blocks.2.attn.hook_z" in html


# ---- what is handed out is the caller's own ----


def test_writes_reach_nothing(tiny):
    logits, cache = tiny.run_with_cache(PROMPT)
    before = {name: tensor.clone() for name, tensor in cache.items()}
    looked = lens.logit_lens(cache)
    lens_before = looked.logits.clone()
    tiny.W_E.zero_()
    tiny.b_U.fill_(7)
    tiny.to_tokens(PROMPT).zero_()
    cache.tokens.zero_()
    logits.fill_(float("nan"))
    for tensor in cache.values():
        tensor.zero_()
        tensor.data.fill_(1)
        tensor.numpy()[...] = 2
        tensor.untyped_storage().fill_(3)
    looked.logits.zero_()
    looked.probs().zero_()
    cache.verdict.points.clear()
    assert all(torch.equal(cache[name], tensor) for name, tensor in before.items())
    assert torch.equal(cache["unembed.hook_out"], before["unembed.hook_out"])
    assert torch.equal(looked.logits, lens_before) and torch.equal(lens.logit_lens(cache).logits, lens_before)
    assert torch.equal(tiny(PROMPT), before["unembed.hook_out"])
    assert cache.verdict.points and cache["hook_embed"].data_ptr() != cache["hook_embed"].data_ptr()


def test_what_was_given_may_change(three):
    """Sources of edits and recorded activations are copied when they are given."""
    source = torch.randn(1, 3, 36)
    plan = lens.Plan([lens.Patch(("resid_pre", 1), source=source)])
    before = three([1, 2, 3], plan=plan)
    source.zero_()
    assert torch.equal(three([1, 2, 3], plan=plan), before)
    recorded = dict(three.run_with_cache([1, 2, 3])[1].items())
    cache = lens.verify_recorded(three, [1, 2, 3], recorded)
    for tensor in recorded.values():
        tensor.fill_(9)
    assert torch.equal(cache["unembed.hook_out"], three([1, 2, 3]))


def test_a_cache_outlives_its_model():
    _, cache = lens.HookedTransformer.from_pretrained("tiny-ioi").run_with_cache(PROMPT)
    assert lens.logit_lens(cache).logits.isfinite().all()


# ---- no way round the verifier ----


def refused(call):
    """What comes out of a way round: nothing that an analysis takes."""
    with pytest.raises(TypeError):
        made = call()
        lens.logit_lens(made)


BASE = lens.VerifiedCache.__mro__[1]


class LooksLikeOne(dict):
    verdict = record = tokens = None
    __class__ = lens.VerifiedCache


WAYS = {
    "call": lambda v, u: lens.VerifiedCache(),
    "call_with_cache": lambda v, u: lens.VerifiedCache(v),
    "call_with_unverified": lambda v, u: lens.VerifiedCache(u),
    "call_with_dict": lambda v, u: lens.VerifiedCache(dict(u.items())),
    "new": lambda v, u: lens.VerifiedCache.__new__(lens.VerifiedCache),
    "object_new": lambda v, u: object.__new__(lens.VerifiedCache),
    "base_new": lambda v, u: BASE.__new__(lens.VerifiedCache),
    "init_again": lambda v, u: lens.VerifiedCache.__init__(BASE.__new__(lens.VerifiedCache), u),
    "reconstructor": lambda v, u: copyreg._reconstructor(lens.VerifiedCache, object, None),
    "newobj": lambda v, u: copyreg.__newobj__(lens.VerifiedCache),
    "subclass": lambda v, u: type("Mine", (lens.VerifiedCache,), {}),
    "subclass_of_both": lambda v, u: type("Mine", (dict, lens.VerifiedCache), {}),
    "class_assignment": lambda v, u: setattr(u, "__class__", lens.VerifiedCache),
    "class_assignment_by_object": lambda v, u: object.__setattr__(u, "__class__", lens.VerifiedCache),
    "class_assignment_of_a_lens": lambda v, u: setattr(lens.logit_lens(v)._lens, "__class__", lens.VerifiedCache),
    "class_assignment_away": lambda v, u: setattr(v, "__class__", lens.UnverifiedCache),
    "looks_like_one": lambda v, u: LooksLikeOne(u.items()),
    "setstate": lambda v, u: BASE.__new__(lens.VerifiedCache).__setstate__({}) if hasattr(v, "__setstate__") else refuse(),
    "reduce": lambda v, u: v.__reduce__(),
    "reduce_ex": lambda v, u: v.__reduce_ex__(4),
    "object_reduce_ex": lambda v, u: object.__reduce_ex__(v, 4),
    "object_reduce_ex_1": lambda v, u: object.__reduce_ex__(v, 1),
    "pickle": lambda v, u: pickle.loads(pickle.dumps(v)),
    "pickle_0": lambda v, u: pickle.loads(pickle.dumps(v, 0)),
    "torch_save": lambda v, u: torch.save(v, io.BytesIO()),
    "dict": lambda v, u: dict(v),
    "unverified": lambda v, u: u,
    "set_method": lambda v, u: setattr(lens.VerifiedCache, "__getitem__", lambda self, key: 0),
    "set_attribute": lambda v, u: setattr(lens.VerifiedCache, "verdict", None),
    "delete_method": lambda v, u: delattr(lens.VerifiedCache, "__reduce_ex__"),
    "bases": lambda v, u: setattr(lens.VerifiedCache, "__bases__", (dict,)),
    "unverified_pickle": lambda v, u: pickle.dumps(u),
    "verdict_call": lambda v, u: lens.Verdict(),
    "verdict_pickle": lambda v, u: pickle.dumps(v.verdict),
    "native_lens": lambda v, u: lens.LogitLens(u, v),
}


def refuse():
    raise TypeError("there is no __setstate__")


@pytest.mark.parametrize("way", WAYS)
def test_no_way_round(cache, unverified, way):
    refused(lambda: WAYS[way](cache, unverified))
    assert type(cache) is lens.VerifiedCache and type(unverified) is lens.UnverifiedCache
    assert lens.logit_lens(cache).logits.shape[0] == 5


def test_attributes_of_one_are_read_only(cache):
    for name in ("verdict", "record", "tokens", "keys", "anything"):
        with pytest.raises(AttributeError):
            setattr(cache, name, None)


def test_an_unfinished_object_is_harmless():
    """Made behind the back of its constructor: every method refuses it instead of reading memory."""
    for cls in (lens.VerifiedCache, lens.UnverifiedCache, lens.Verdict, lens.Point, lens.Plan, lens.Edit, lens.Tokenizer):
        empty = BASE.__new__(cls)
        for name in dir(cls):
            attribute = getattr(cls, name)
            if name in ("__class__", "__copy__", "__deepcopy__", "__new__", "__init__", "__doc__") or hasattr(object, name) and name != "__repr__":
                continue
            if isinstance(attribute, property):
                with pytest.raises(TypeError):
                    attribute.fget(empty)
            elif name in ("__getitem__", "__contains__", "get", "encode", "decode", "convert_tokens_to_ids", "convert_ids_to_tokens"):
                with pytest.raises(TypeError):
                    attribute(empty, [] if name == "decode" else 0 if name == "convert_ids_to_tokens" else "x")
            elif name in ("values", "items"):
                with pytest.raises(TypeError):
                    list(attribute(empty))
            elif callable(attribute) and not name.startswith("_pybind"):
                with pytest.raises(TypeError):
                    attribute(empty)


def test_copies_are_itself(cache, unverified):
    """Immutable: a copy that is the same object is no way round anything."""
    for one in (cache, unverified, cache.verdict):
        assert copy.copy(one) is one and copy.deepcopy(one) is one
    assert copy.deepcopy({"a": [cache]})["a"][0] is cache


def test_no_analysis_takes_anything_else(cache, unverified, tiny):
    for other in (unverified, dict(cache), None, 5, tiny, PROMPT, cache["hook_embed"], lens.VerifiedCache, cache.verdict):
        with pytest.raises(lens.NotVerified, match="needed: a VerifiedCache"):
            lens.logit_lens(other)
    for other in (unverified, dict(cache), 5, [1.0], "x"):
        with pytest.raises(lens.NotVerified, match="source"):
            lens.Patch("hook_embed", source=other)
    assert issubclass(lens.NotVerified, TypeError)


def test_unverified_reads_like_the_other(cache, unverified):
    assert list(unverified) == list(cache) and isinstance(unverified, Mapping)
    assert all(torch.equal(unverified[name], cache[name]) for name in cache)
    assert unverified.verdict.status == "UNVERIFIED" and unverified.record["mode"] == "off"
    assert "Unverified" in repr(unverified) and "no analysis" in repr(unverified)
