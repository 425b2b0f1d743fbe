"""Activations recorded by plain PyTorch hooks on a transformers model, checked here."""

import pytest
import torch

import lenscpp as lens
from conftest import GOLDEN, read_safetensors

transformers = pytest.importorskip("transformers", reason="the peer whose activations are recorded")

CASE = "three_layers"


@pytest.fixture(scope="module")
def model():
    return lens.HookedTransformer.from_pretrained_no_processing(str(GOLDEN / CASE))


def recorded_by_transformers(tokens, tamper=None):
    """{hook name: tensor} of one forward pass in float32, from forward hooks alone."""
    peer = transformers.GPT2LMHeadModel.from_pretrained(GOLDEN / CASE, attn_implementation="eager", dtype=torch.float32).eval()
    found = {}

    def keep(name, pick=lambda output: output):
        def hook(module, inputs, output):
            found[name] = pick(output).detach().clone()

        return hook

    heads = peer.config.n_head
    for l, block in enumerate(peer.transformer.h):
        # Pre-hooks see what a block reads; c_proj reads z with its heads side by side.
        block.register_forward_pre_hook(lambda module, args, l=l: found.__setitem__(f"blocks.{l}.hook_resid_pre", args[0].detach().clone()))

        def z_hook(module, args, l=l):
            z = args[0].unflatten(-1, (heads, -1))
            if tamper is not None:
                z = tamper(l, z)
            found[f"blocks.{l}.attn.hook_z"] = z.detach().clone()
            return (z.flatten(-2),)

        block.attn.c_proj.register_forward_pre_hook(z_hook)
        block.attn.register_forward_hook(keep(f"blocks.{l}.attn.hook_pattern", lambda output: output[1]))
        block.attn.c_proj.register_forward_hook(keep(f"blocks.{l}.hook_attn_out"))
        block.mlp.c_fc.register_forward_hook(keep(f"blocks.{l}.mlp.hook_pre"))
        block.mlp.act.register_forward_hook(keep(f"blocks.{l}.mlp.hook_post"))
        block.mlp.register_forward_hook(keep(f"blocks.{l}.hook_mlp_out"))
        block.register_forward_hook(keep(f"blocks.{l}.hook_resid_post", lambda output: output[0] if isinstance(output, tuple) else output))
    peer.transformer.ln_f.register_forward_hook(keep("unembed.hook_in"))
    peer.lm_head.register_forward_hook(keep("unembed.hook_out"))
    with torch.no_grad():
        peer(tokens)
    return found


TOKENS = read_safetensors(GOLDEN / CASE / "hf.safetensors")["tokens.0"]


def test_what_transformers_computes_is_verified(model):
    activations = recorded_by_transformers(TOKENS)
    assert len(activations) == 3 * 8 + 2
    cache = lens.verify_recorded(model, TOKENS, activations)
    assert cache.verdict.status == "VERIFIED"
    assert cache.verdict.n_compared == sum(a.numel() for a in activations.values())
    assert "blocks.0.attn.hook_q" in cache.verdict.recomputed
    assert set(cache.keys()) == set(activations)
    assert lens.logit_lens(cache, site="resid_post").logits.shape[0] == 3


def test_one_head_changed_in_the_record_is_named(model):
    activations = recorded_by_transformers(TOKENS)
    activations["blocks.1.attn.hook_z"][:, :, 2] *= 1.01
    with pytest.raises(lens.VerificationFailed) as refused:
        lens.verify_recorded(model, TOKENS, activations)
    assert refused.value.verdict.status == "INVALID"
    assert refused.value.verdict.first_failure.name == "blocks.1.attn.hook_z"
    assert "head 2" in refused.value.verdict.first_failure.hint


def test_one_head_changed_while_it_ran_is_named(model):
    def tamper(layer, z):
        if layer != 1:
            return z
        z = z.clone()
        z[:, :, 0] = 0
        return z

    with pytest.raises(lens.VerificationFailed) as refused:
        lens.verify_recorded(model, TOKENS, recorded_by_transformers(TOKENS, tamper))
    assert refused.value.verdict.first_failure.name == "blocks.1.attn.hook_z"
    assert "head 0" in refused.value.verdict.first_failure.hint
