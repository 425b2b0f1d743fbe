"""The logit lens: shapes, labels, numbers against PyTorch's, pictures."""

import json

import pytest
import torch
from conftest import PROMPT

import lenscpp as lens


@pytest.fixture(scope="module")
def looked(run):
    return lens.logit_lens(run[1])


def test_what_it_holds(tiny, run, looked):
    logits, cache = run
    assert looked.labels == ["0_pre", "1_pre", "2_pre", "3_pre", "final_post"] and looked.site == "resid_pre" and looked.apply_ln
    assert looked.logits.shape == (5, *logits.shape) and looked.logits.dtype is torch.float32
    assert torch.allclose(looked.logits[-1], logits, atol=1e-4)
    assert torch.allclose(looked.probs(), looked.logits.softmax(-1), atol=1e-6)
    assert torch.allclose(looked.entropy(), torch.distributions.Categorical(logits=looked.logits).entropy(), atol=1e-4)
    mary = tiny.to_single_token(" Mary")
    assert torch.equal(looked.rank(" Mary"), (looked.logits > looked.logits[..., mary : mary + 1]).sum(-1))
    assert torch.equal(looked.rank(" Mary"), looked.rank(mary)) and looked.rank(mary).dtype is torch.int64
    top = looked.top_k(4)
    assert top.tokens.shape == top.probs.shape == top.logits.shape == (*looked.logits.shape[:3], 4)
    assert torch.allclose(top.logits, looked.logits.topk(4).values) and torch.equal(looked.logits.gather(-1, top.tokens), top.logits)
    assert torch.allclose(looked.probs().gather(-1, top.tokens), top.probs, atol=1e-6)
    assert looked.verdict.status == "VERIFIED" and looked.record == cache.record and "5 layers" in repr(looked)


def test_resid_pre_without_the_norm(tiny, cache):
    found = lens.logit_lens(cache, apply_ln=False).logits
    for layer in range(4):
        assert torch.allclose(found[layer], cache["resid_pre", layer] @ tiny.W_U + tiny.b_U, atol=1e-4)


@pytest.mark.parametrize("site, suffix", [("resid_mid", "mid"), ("resid_post", "post"), ("attn_out", "attn_out"), ("mlp_out", "mlp_out")])
def test_other_sites(tiny, cache, site, suffix):
    found = lens.logit_lens(cache, site=site)
    assert found.labels == [f"{l}_{suffix}" for l in range(4)] and found.site == site and found.logits.shape[0] == 4
    x = cache[site, 2]
    if site.startswith("resid"):
        centred = x - x.mean(-1, keepdim=True)
        expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() @ tiny.W_U + tiny.b_U
    else:
        expected = (x - x.mean(-1, keepdim=True)) / cache["ln_final.hook_scale"] @ tiny.W_U
    assert torch.allclose(found.logits[2], expected, atol=1e-3)


def test_model_without_tokenizer(three):
    looked = lens.logit_lens(three.run_with_cache([[1, 2], [3, 4]])[1])
    assert looked.rank(5).shape == (4, 2, 2)
    with pytest.raises(ValueError, match="no tokenizer"):
        looked.rank(" Mary")
    assert looked.plot(batch=-1).layout.xaxis.ticktext == ("3", "4")


ERRORS = [
    (lambda c: lens.logit_lens(c, site="q"), ValueError, "resid_pre, resid_mid"),
    (lambda c: lens.logit_lens(c, site="nowhere"), ValueError, "nearest"),
    (lambda c: lens.logit_lens(c, site=5), TypeError, "site"),
    (lambda c: lens.logit_lens(c, apply_ln=1), TypeError, "apply_ln"),
    (lambda c: lens.logit_lens(c).rank(10**6), IndexError, "10000"),
    (lambda c: lens.logit_lens(c).rank("John and Mary"), ValueError, "tokens, not one"),
    (lambda c: lens.logit_lens(c).rank(1.5), TypeError, "float"),
    (lambda c: lens.logit_lens(c).rank(None), TypeError, "None"),
    (lambda c: lens.logit_lens(c).top_k(0), IndexError, "k 0"),
    (lambda c: lens.logit_lens(c).top_k(10**6), IndexError, "k 1000000"),
    (lambda c: lens.logit_lens(c).top_k("3"), TypeError, "str"),
    (lambda c: lens.logit_lens(c).plot(batch=1), IndexError, r"\(0\.\.0\)"),
    (lambda c: lens.logit_lens(c).plot(batch="a"), TypeError, "str"),
]


@pytest.mark.parametrize("call, error, says", ERRORS)
def test_errors(cache, call, error, says):
    with pytest.raises(error, match=says):
        call(cache)


def test_needs_what_it_reads(tiny):
    _, cache = tiny.run_with_cache(PROMPT, "blocks.0.hook_resid_pre")
    with pytest.raises(ValueError, match="blocks.1.hook_resid_pre"):
        lens.logit_lens(cache)
    _, cache = tiny.run_with_cache(PROMPT, lambda name: name.endswith("attn_out"))
    with pytest.raises(ValueError, match="ln_final.hook_scale"):
        lens.logit_lens(cache, site="attn_out")
    assert lens.logit_lens(cache, site="attn_out", apply_ln=False).logits.shape[0] == 4


# ---- pictures ----


def test_plot(tiny, looked):
    figure = looked.plot()
    heat, layout = figure.data[0], figure.layout
    prompt, top = tiny.to_str_tokens(PROMPT), looked.top_k(5)
    assert len(figure.data) == 1 and list(layout.yaxis.ticktext) == looked.labels
    assert torch.allclose(torch.tensor(heat.z), top.probs[:, 0, :, 0]) and (heat.zmin, heat.zmax) == (0, 1)
    assert layout.xaxis.ticktext[0].startswith("&lt;|endo") and "␣Mary" in layout.xaxis.ticktext and len(layout.xaxis.ticktext) == len(prompt)
    last = tiny.to_single_str_token(top.tokens[-1, 0, -1, 0].item())
    assert heat.text[-1][-1].replace("␣", " ").removesuffix("…") in last and heat.texttemplate == "%{text}"
    assert heat.customdata[0][0].count("<br>") == 4 and "VERIFIED" in layout.title.text and "tiny-ioi" in layout.title.text
    json.loads(figure.to_json())


def test_plot_of_a_long_prompt_leaves_text_to_hovering(tiny, monkeypatch):
    from lenscpp import _logit_lens

    looked = lens.logit_lens(tiny.run_with_cache(list(range(64)))[1])
    figure = looked.plot()
    assert figure.data[0].texttemplate and figure.layout.width < 4500 and len(figure.layout.xaxis.tickvals) == 64
    monkeypatch.setattr(_logit_lens, "MOST_CELLS", 20)
    figure = looked.plot()
    assert figure.data[0].texttemplate is None and figure.layout.width < 1500 and list(figure.layout.xaxis.tickvals)[:2] == [0, 4]
    assert lens.logit_lens(tiny.run_with_cache([1, 2, 3])[1]).plot().layout.width > 400


def test_plot_of_some_positions(tiny):
    looked = lens.logit_lens(tiny.run_with_cache(PROMPT, pos_slice=[-1, 2])[1])
    prompt = tiny.to_str_tokens(PROMPT)
    assert [t.replace("␣", " ") for t in looked.plot().layout.xaxis.ticktext] == [prompt[-1], prompt[2]]


def test_plot_from_a_residual(tiny, cache):
    _, part = tiny.run_with_cache(cache["resid_pre", 0], start_at_layer=0)
    assert lens.logit_lens(part).plot().layout.xaxis.ticktext[1] == "1"


def test_tokens_are_escaped_in_pictures(tiny):
    """Plotly reads text as HTML: a token must not become markup."""
    from lenscpp._pictures import short, visible

    assert short("<b>x") == "&lt;b&gt;x" and short("&amp;") == "&amp;amp;" and short("abcdefghijkl") == "abcdefgh…"
    assert visible(" a\n\t") == "␣a↵⇥" and visible("") == "∅"
