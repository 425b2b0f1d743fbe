"""A model's config under TransformerLens's names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", "relu": "relu", "silu": "silu", "tanh": "tanh"}
_NORMS = {"layer_norm": "LN", "layer_norm_pre": "LNPre", "rms_norm": "RMS", "rms_norm_pre": "RMSPre"}
_POSITIONS = {"learned": "standard", "rotary": "rotary", "alibi": "alibi"}
_ARCHITECTURES = {
    "bloom": "BloomForCausalLM", "falcon": "FalconForCausalLM", "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "gpt2": "GPT2LMHeadModel",
    "gpt_neo": "GPTNeoForCausalLM", "gpt_neox": "GPTNeoXForCausalLM", "gptj": "GPTJForCausalLM",
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM",
    "olmo2": "Olmo2ForCausalLM", "opt": "OPTForCausalLM", "phi": "PhiForCausalLM", "phi3": "Phi3ForCausalLM", "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM", "stablelm": "StableLmForCausalLM",
}  # fmt: skip
_ENCODERS = {"bert": "Bert", "distilbert": "DistilBert"}
_WITHOUT_LOGITS = ("none", "pooled")
_HEADS = {"none": "Model", "pooled": "Model", "masked_lm": "ForMaskedLM", "classifier": "ForSequenceClassification"}


class HookedTransformerConfig(Mapping[str, Any]):
    """Dimensions and kinds of a model, by attribute or by key; read only.

    n_layers n_heads n_key_value_heads (None where every head has its own) d_model d_head d_mlp d_vocab
    d_vocab_out (of logits: labels of a classifier, None where there are none) n_ctx eps act_fn normalization_type ("LN", "RMS", or with "Pre" once folded) positional_embedding_type
    original_architecture use_attn_scale attn_scale scale_attn_by_inverse_layer_idx tied_unembedding device dtype
    default_prepend_bos (None: the tokenizer's own special tokens, as encoders get them) model_name n_params (weight matrices of blocks, as TransformerLens counts) gated_mlp
    parallel_attn_mlp rotary_dim rotary_base rotary_adjacent_pairs window_size use_local_attn attn_types
    attention_dir ("causal" or "bidirectional") attn_scores_soft_cap output_logits_soft_cap (-1: none) use_qk_norm
    use_normalization_before_and_after num_experts experts_per_token (None: no experts).
    """

    _values: dict[str, Any]

    def __init__(self, values: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_values", dict(values))

    def __getattr__(self, name: str) -> Any:
        try:
            return object.__getattribute__(self, "_values")[name]
        except KeyError:
            raise AttributeError(f"[config] no {name!r}; there are: {', '.join(self._values)}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"[config] {name} cannot be set: a loaded model does not change")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"[config] {name} cannot be deleted: a loaded model does not change")

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._values]

    def __repr__(self) -> str:
        return "HookedTransformerConfig(\n" + "".join(f"    {k}={v!r},\n" for k, v in self._values.items()) + ")"

    def __reduce__(self) -> tuple[Any, ...]:
        return HookedTransformerConfig, (dict(self._values),)

    def to_dict(self) -> dict[str, Any]:
        """A dict of one's own."""
        return dict(self._values)


def config_of(model: Any) -> HookedTransformerConfig:
    """The config of a _lenscpp.Model."""
    c = model.config()
    heads, kv_heads, gated = c["n_heads"], c["n_kv_heads"], c.get("gated_mlp", False)
    mlp, experts = (3 if gated else 2) * c["d_mlp"], c.get("experts")
    if experts:
        mlp = experts["count"] * (mlp + 1)  # and the router's
    return HookedTransformerConfig(
        {
            "model_name": model.name,
            "original_architecture": _architecture(c),
            "n_layers": c["n_layers"],
            "n_heads": heads,
            "n_key_value_heads": None if kv_heads == heads else kv_heads,
            "d_model": c["d_model"],
            "d_head": c["d_head"],
            "d_mlp": c["d_mlp"],
            "d_vocab": c["d_vocab"],
            "d_vocab_out": None if c.get("head") in _WITHOUT_LOGITS else c.get("n_labels", c["d_vocab"]),
            "n_ctx": c["n_ctx"],
            "eps": c["norm_eps"],
            "act_fn": _ACTIVATIONS[c["activation"]],
            "normalization_type": _NORMS[c["norm"]],
            "positional_embedding_type": _POSITIONS[c["positions"]],
            "attn_only": False,
            "attention_dir": "causal" if c.get("causal", True) else "bidirectional",
            "gated_mlp": gated,
            "parallel_attn_mlp": c["topology"] != "sequential",
            "use_attn_scale": c["scale_attn_by_sqrt_d_head"],
            "attn_scale": c.get("scores_divisor", c["d_head"] ** 0.5 if c["scale_attn_by_sqrt_d_head"] else 1.0),
            "scale_attn_by_inverse_layer_idx": c["scale_attn_by_inverse_layer"],
            "tied_unembedding": c["tied_unembedding"],
            "default_prepend_bos": model.default_prepend_bos,
            "default_padding_side": model.default_padding_side,
            "device": model.device,
            "dtype": getattr(torch, model.dtype),
            "n_params": c["n_layers"] * c["d_model"] * (2 * c["d_head"] * (heads + kv_heads) + mlp),
        }
        | _optional_kinds(c)
    )


def _architecture(c: Mapping[str, Any]) -> str:
    if c["family"] in _ENCODERS:
        return _ENCODERS[c["family"]] + _HEADS[c["head"]]
    return _ARCHITECTURES.get(c["family"], c["family"])


def _optional_kinds(c: Mapping[str, Any]) -> dict[str, Any]:
    """What only some models have; transformer-lens writes -1 and None for what a model has not."""
    rotary, windowed = c.get("rotary"), c.get("windowed_layers") or []
    return {
        "rotary_dim": rotary["dimensions"] if rotary else None,
        "rotary_base": rotary["rope"]["base"] if rotary else 10000,
        "rotary_adjacent_pairs": rotary["pairs"] == "adjacent" if rotary else False,
        "window_size": c.get("window") if any(windowed) else None,
        "use_local_attn": any(windowed),
        "attn_types": ["local" if w else "global" for w in windowed] if any(windowed) else None,
        "attn_scores_soft_cap": c.get("scores_softcap", -1.0),
        "output_logits_soft_cap": c.get("logits_softcap", -1.0),
        "use_qk_norm": "qk_norm" in c,
        "use_normalization_before_and_after": c.get("norm_placement") == "around",
        "num_experts": c["experts"]["count"] if "experts" in c else None,
        "experts_per_token": c["experts"]["per_token"] if "experts" in c else None,
        "post_embedding_ln": c.get("embed_norm", False),
    }
