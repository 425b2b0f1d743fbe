"""Makes tests/golden/families: random checkpoints of awkward shapes, at least two a family, and what the peers compute.

Peers: transformers (eager attention, float64) and, for the families that it can express, transformer-lens without
processing. Not a generator of test tolerances. Keys and commands: README.md.
"""

import os

# Before torch is imported: one thread and plain kernels, so that the last bits depend on the processor least.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    MKL_CBWR="COMPATIBLE",
    ATEN_CPU_CAPABILITY="default",
    CUDA_VISIBLE_DEVICES="",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
)

import argparse
import filecmp
import hashlib
import json
import logging
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig, loading_from_pretrained
from transformer_lens.pretrained import weight_conversions
from transformer_lens.weight_processing import ProcessWeights
from transformers import AutoConfig, AutoModelForCausalLM

TOP = Path(__file__).resolve().parent / "families"
PACKAGES = ("torch", "transformers", "transformer-lens", "safetensors", "numpy")
# Relative to the largest entry. transformers rounds rotary angles to float32 in a float64 model too.
RAW_LIMIT = 3e-6
PROCESSED_LIMIT = 1e-5  # nats
TL_POSITIONS = 7  # of the first prompt: what comes later changes nothing before it
ROUTER_GAIN = 1.5  # probabilities of experts neither alike nor one-hot
ENCODERS = {"bert": "BertForMaskedLM", "distilbert": "DistilBertForMaskedLM"}  # cases: make_encoder_golden.py
CONVERSIONS = {
    "llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gpt_neox": "neox", "gemma": "gemma",
    "gemma2": "gemma", "phi": "phi", "phi3": "phi3", "gptj": "gptj", "gpt_neo": "neo", "opt": "opt", "bloom": "bloom",
    "olmo2": "olmo2", "gemma3_text": "gemma", "mixtral": "mixtral",
}  # fmt: skip


@dataclass
class Case:
    """One checkpoint: its config, how it is spelled on disk, and what transformer-lens is told of it."""

    name: str
    seed: int
    covers: str
    model_type: str
    config: dict
    token_shapes: list[tuple[int, int]]
    spelling: str = "today"  # "today" | "older": rope_theta and rope_scaling, torch_dtype
    storage: torch.dtype = torch.float16  # of small files
    tl: dict | None = None  # HookedTransformerConfig's fields; None: not compared
    tl_is_wrong: bool = False  # whatever it is told; of its values the logits alone are stored
    # Where its own table leaves out what matters: "folder" for this config.json, or the name of a model. What of `tl`
    # that table has makes the wrong logits that are stored.
    tl_table: str = ""
    gain: float = 1.3  # of query and key matrices: attention neither uniform nor one-hot
    older: dict = field(default_factory=dict)  # fields of config.json that only older files have
    drop: tuple[str, ...] = ()  # fields that those have not
    as_held: bool = False  # tensors named as transformers holds them, not as it writes them


def llama_like(d_model, heads, kv_heads, d_head, d_mlp, vocab, n_ctx, eps, **rest) -> dict:
    return dict(
        hidden_size=d_model, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=d_head,
        intermediate_size=d_mlp, vocab_size=vocab, max_position_embeddings=n_ctx, rms_norm_eps=eps,
        num_hidden_layers=3, **rest,
    )  # fmt: skip


def rms(rotary_base=None, **rest) -> dict:
    """transformer-lens: RMSNorm, rotary, gated."""
    return dict(
        normalization_type="RMS", positional_embedding_type="rotary", gated_mlp=True, final_rms=True,
        rotary_base=rotary_base, rotary_adjacent_pairs=False, **rest,
    )  # fmt: skip


def rope(theta, kind="default", **rest) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **rest}}


def windows(kinds: str) -> dict:
    """ "sfs": sliding, full, sliding."""
    return {"layer_types": [{"s": "sliding_attention", "f": "full_attention"}[k] for k in kinds]}


TWO = [(2, 9), (1, 13)]
CASES = [
    Case(
        "llama_grouped", 2001, "6 heads of 4 over 2, d_model 18; llama3 rope; untied", "llama",
        llama_like(18, 6, 2, 4, 22, 53, 64, 1e-4, tie_word_embeddings=False,
                   **rope(500.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=16)),
        TWO, storage=torch.float32,
        tl=rms(500.0, use_NTK_by_parts_rope=True, NTK_by_parts_factor=8.0, NTK_by_parts_low_freq_factor=1.0,
               NTK_by_parts_high_freq_factor=4.0, NTK_original_ctx_len=16),
    ),
    Case(
        "llama_biases", 2002, "attention_bias, mlp_bias, linear rope; tied; bfloat16; rope_theta, rope_scaling",
        "llama",
        llama_like(16, 2, 2, 10, 20, 47, 32, 1e-6, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                   **rope(10000.0, "linear", factor=2.5)),
        TWO, spelling="older", storage=torch.bfloat16, older={"pretraining_tp": 1},
    ),
    Case(
        "llama_plain", 2003, "no head_dim and no num_key_value_heads in config.json; rope_theta only", "llama",
        dict(hidden_size=20, num_attention_heads=5, intermediate_size=28, vocab_size=41, max_position_embeddings=32,
             rms_norm_eps=1e-5, num_hidden_layers=3, tie_word_embeddings=False, **rope(50.0)),
        TWO, spelling="older", drop=("head_dim", "num_key_value_heads", "attention_bias", "mlp_bias"),
        tl=rms(50.0),
    ),
    Case(
        "llama_dynamic", 2004, "dynamic rope, prompts beyond max_position_embeddings and within", "llama",
        llama_like(16, 4, 2, 6, 20, 43, 8, 1e-5, tie_word_embeddings=True, **rope(300.0, "dynamic", factor=3.0)),
        [(2, 7), (1, 13)],
    ),
    Case(
        "llama_yarn", 2005, "yarn rope with its attention factor", "llama",
        llama_like(16, 4, 1, 12, 20, 43, 64, 1e-5, tie_word_embeddings=False,
                   **rope(100.0, "yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0,
                          beta_slow=0.5)),
        TWO,
    ),
    Case(
        "llama_wavelengths", 2006, "llama3 rope with a short, two middling and three long wavelengths", "llama",
        llama_like(16, 4, 2, 12, 20, 43, 64, 1e-5, tie_word_embeddings=False,
                   **rope(500.0, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=64)),
        TWO,
        tl=rms(500.0, use_NTK_by_parts_rope=True, NTK_by_parts_factor=8.0, NTK_by_parts_low_freq_factor=1.0,
               NTK_by_parts_high_freq_factor=4.0, NTK_original_ctx_len=64),
    ),
    Case(
        "mistral_window", 2101, "sliding window 4 in every layer, head_dim 6 of d_model 20 over 4 heads", "mistral",
        llama_like(20, 4, 2, 6, 26, 37, 32, 1e-3, sliding_window=4, tie_word_embeddings=False, **rope(1000.0)),
        TWO, tl=rms(1000.0, use_local_attn=True, window_size=4, attn_types=["local"] * 3),
    ),
    Case(
        "mistral_tied", 2102, "no window, tied, one key-value head; older spelling", "mistral",
        llama_like(15, 3, 1, 8, 18, 31, 32, 1e-5, sliding_window=None, tie_word_embeddings=True, **rope(1e6)),
        TWO, spelling="older", tl=rms(1e6),
    ),
    Case(
        "qwen2_grouped", 2201, "biases of q, k, v; use_sliding_window false though sliding_window 4", "qwen2",
        dict(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, intermediate_size=26, vocab_size=39,
             max_position_embeddings=32, rms_norm_eps=1e-6, num_hidden_layers=3, sliding_window=4,
             use_sliding_window=False, tie_word_embeddings=True, **rope(1e6)),
        TWO, tl=rms(1e6),
    ),
    Case(
        "qwen2_window", 2202, "windows from layer 1 on by max_window_layers; untied; older spelling", "qwen2",
        dict(hidden_size=18, num_attention_heads=3, num_key_value_heads=3, intermediate_size=22, vocab_size=33,
             max_position_embeddings=32, rms_norm_eps=1e-4, num_hidden_layers=3, sliding_window=3,
             use_sliding_window=True, max_window_layers=1, tie_word_embeddings=False, **rope(700.0)),
        TWO, spelling="older", drop=("layer_types",),
        tl=rms(700.0, use_local_attn=True, window_size=3, attn_types=["global", "local", "local"]),
    ),
    Case(
        "qwen3_grouped", 2301, "norms of q and k, head_dim 10 of d_model 16 over 4 heads", "qwen3",
        llama_like(16, 4, 2, 10, 24, 45, 32, 1e-6, tie_word_embeddings=False, **rope(1e6)),
        TWO, tl=rms(1000000, use_qk_norm=True), gain=1.0,
    ),
    Case(
        "qwen3_biases", 2302, "attention_bias, tied, linear rope, layer_types with a window; older spelling", "qwen3",
        llama_like(20, 2, 1, 6, 24, 35, 32, 1e-5, tie_word_embeddings=True, attention_bias=True, sliding_window=4,
                   use_sliding_window=True, max_window_layers=2, **rope(200.0, "linear", factor=4.0)),
        TWO, spelling="older", gain=1.0,
    ),
    Case(
        "neox_parallel", 2401, "parallel, a quarter of 16 rotated, gelu (erf), untied", "gpt_neox",
        dict(hidden_size=32, num_attention_heads=2, intermediate_size=40, vocab_size=51, max_position_embeddings=32,
             layer_norm_eps=1e-5, num_hidden_layers=3, tie_word_embeddings=False, use_parallel_residual=True,
             **rope(10000.0, partial_rotary_factor=0.25)),
        TWO, storage=torch.float32, spelling="older", older={"rotary_pct": 0.25, "rotary_emb_base": 10000},
        tl=dict(normalization_type="LN", positional_embedding_type="rotary", rotary_base=10000, rotary_dim=4,
                rotary_adjacent_pairs=False, parallel_attn_mlp=True),
    ),
    Case(
        "neox_sequential", 2402, "use_parallel_residual false, three quarters rotated, base 25, gelu_new", "gpt_neox",
        dict(hidden_size=24, num_attention_heads=3, intermediate_size=30, vocab_size=37, max_position_embeddings=32,
             layer_norm_eps=1e-3, num_hidden_layers=3, tie_word_embeddings=False, use_parallel_residual=False,
             hidden_act="gelu_new", **rope(25.0, partial_rotary_factor=0.75)),
        TWO, tl_table="folder",  # no rotary_base
        tl=dict(normalization_type="LN", positional_embedding_type="rotary", rotary_base=25, rotary_dim=6,
                rotary_adjacent_pairs=False, parallel_attn_mlp=False),
    ),
    Case(
        "neox_unbiased", 2403, "attention_bias false, linear rope of all dimensions, tied", "gpt_neox",
        dict(hidden_size=18, num_attention_heads=3, intermediate_size=22, vocab_size=33, max_position_embeddings=32,
             layer_norm_eps=1e-5, num_hidden_layers=3, tie_word_embeddings=True, attention_bias=False,
             **rope(100.0, "linear", factor=2.0, partial_rotary_factor=1.0)),
        TWO,
    ),
    Case(
        "gemma_multiquery", 2501, "(1 + w), scaled embedding, one key-value head, head_dim 8", "gemma",
        llama_like(18, 3, 1, 8, 24, 49, 32, 1e-6, tie_word_embeddings=True, **rope(10000.0)),
        TWO, tl=rms(10000.0), gain=1.0,
    ),
    Case(
        "gemma_older", 2502, "hidden_act gelu (which means tanh), bfloat16, head_dim 12; older spelling", "gemma",
        llama_like(16, 2, 2, 12, 20, 39, 32, 1e-4, tie_word_embeddings=True, **rope(77.0)),
        TWO, spelling="older", storage=torch.bfloat16, gain=1.0, older={"hidden_act": "gelu"},
    ),
    Case(
        "gemma2_grouped", 2601, "sandwich norms, softcaps 3 and 2, window 4 in layers 0 and 2, scale 12", "gemma2",
        llama_like(20, 4, 2, 8, 26, 41, 32, 1e-6, query_pre_attn_scalar=12, sliding_window=4,
                   attn_logit_softcapping=3.0, final_logit_softcapping=2.0, **rope(10000.0)),
        TWO, storage=torch.float32, gain=1.2,
        tl=rms(10000.0, use_normalization_before_and_after=True, attn_scores_soft_cap=3.0, output_logits_soft_cap=2.0,
               attn_scale=12**0.5, use_local_attn=True, window_size=4, attn_types=["local", "global", "local"]),
    ),
    Case(
        "gemma2_uncapped", 2602, "softcaps null, layer_types full first, window 3; older spelling", "gemma2",
        llama_like(16, 2, 1, 6, 20, 35, 32, 1e-4, query_pre_attn_scalar=6, sliding_window=3,
                   attn_logit_softcapping=None, final_logit_softcapping=None, **windows("fsf"), **rope(300.0)),
        TWO, spelling="older", gain=1.0,
        tl=rms(300.0, use_normalization_before_and_after=True, attn_scale=6**0.5, use_local_attn=True,
               window_size=3, attn_types=["global", "local", "global"]),
    ),
    Case(
        "gemma3_windows", 2701, "norms of q and k, two rope bases, window 4, global factor 8, scale 13", "gemma3_text",
        llama_like(20, 4, 2, 8, 26, 41, 32, 1e-6, query_pre_attn_scalar=13, sliding_window=4, **windows("ssf"),
                   rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
                                    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0}}),
        TWO, gain=0.8, tl_table="google/gemma-3-27b-it",  # no attn_scale, though query_pre_attn_scalar is not head_dim
        tl=rms(900.0, use_normalization_before_and_after=True, use_qk_norm=True, rotary_base_local=30.0,
               rotary_scaling_factor=8.0, attn_scale=13**0.5, use_local_attn=True, window_size=4,
               attn_types=["local", "local", "global"]),
    ),
    Case(
        "gemma3_older", 2702, "rope_theta, rope_local_base_freq, sliding_window_pattern 2", "gemma3_text",
        llama_like(16, 2, 1, 6, 20, 35, 32, 1e-4, query_pre_attn_scalar=6, sliding_window=3, **windows("sfs"),
                   rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 40.0},
                                    "full_attention": {"rope_type": "default", "rope_theta": 5000.0}}),
        TWO, spelling="older", gain=0.8, drop=("layer_types", "_sliding_window_pattern"),
        older={"rope_theta": 5000.0, "rope_local_base_freq": 40.0, "sliding_window_pattern": 2},
        tl=rms(5000.0, use_normalization_before_and_after=True, use_qk_norm=True, rotary_base_local=40.0,
               attn_scale=6**0.5, use_local_attn=True, window_size=3, attn_types=["local", "global", "local"]),
    ),
    Case(
        "phi_partial", 2801, "parallel with one norm, 0.4 of 10 rotated, biased unembedding", "phi",
        dict(hidden_size=20, num_attention_heads=2, intermediate_size=26, vocab_size=37, max_position_embeddings=32,
             layer_norm_eps=1e-5, num_hidden_layers=3, **rope(10000.0, partial_rotary_factor=0.4)),
        TWO, spelling="older", older={"partial_rotary_factor": 0.4},
        tl=dict(normalization_type="LN", positional_embedding_type="rotary", rotary_base=10000, rotary_dim=4,
                rotary_adjacent_pairs=False, parallel_attn_mlp=True),
    ),
    Case(
        "phi_grouped", 2802, "grouped heads, half rotated, base 60", "phi",
        dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=26, vocab_size=37,
             max_position_embeddings=32, layer_norm_eps=1e-3, num_hidden_layers=3,
             **rope(60.0, partial_rotary_factor=0.5)),
        TWO,
    ),
    Case(
        "phi3_grouped", 2901, "fused q, k, v and gate, up; grouped; half rotated; window 5", "phi3",
        dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=26, vocab_size=37,
             max_position_embeddings=32, original_max_position_embeddings=32, rms_norm_eps=1e-5, num_hidden_layers=3,
             sliding_window=5, tie_word_embeddings=False, pad_token_id=0,
             **rope(150.0, partial_rotary_factor=0.5)),
        TWO,
    ),
    Case(
        "phi3_plain", 2902, "all heads, no window; older spelling", "phi3",
        dict(hidden_size=18, num_attention_heads=3, num_key_value_heads=3, intermediate_size=22, vocab_size=37,
             max_position_embeddings=32, original_max_position_embeddings=32, rms_norm_eps=1e-4, num_hidden_layers=3,
             sliding_window=None, tie_word_embeddings=True, pad_token_id=0, **rope(10000.0)),
        TWO, spelling="older", tl=rms(10000.0),
    ),
    Case(
        "gptj_rotary", 3001, "adjacent pairs, 4 of 10 dimensions, parallel with one norm, n_inner 30", "gptj",
        dict(n_embd=20, n_head=2, n_inner=30, vocab_size=37, n_positions=32, n_layer=3, rotary_dim=4,
             layer_norm_epsilon=1e-5, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0),
        TWO,
        tl=dict(normalization_type="LN", positional_embedding_type="rotary", rotary_base=10000, rotary_dim=4,
                rotary_adjacent_pairs=True, parallel_attn_mlp=True, d_mlp=30),
    ),
    Case(
        "gptj_wide", 3002, "n_inner null (4 n_embd), rotary_dim 6 of 6, gelu", "gptj",
        dict(n_embd=18, n_head=3, vocab_size=31, n_positions=32, n_layer=3, rotary_dim=6, layer_norm_epsilon=1e-3,
             activation_function="gelu", tie_word_embeddings=False, bos_token_id=0, eos_token_id=0),
        TWO, spelling="older",
        tl=dict(normalization_type="LN", positional_embedding_type="rotary", rotary_base=10000, rotary_dim=6,
                rotary_adjacent_pairs=True, parallel_attn_mlp=True, d_mlp=72),
    ),
    Case(
        "gpt_neo_local", 3101, "unscaled scores, window 4 in the middle layer", "gpt_neo",
        dict(hidden_size=20, num_heads=2, num_layers=3, intermediate_size=30, vocab_size=37, window_size=4,
             max_position_embeddings=32, layer_norm_epsilon=1e-5, bos_token_id=0, eos_token_id=0,
             attention_types=[[["global", "local", "global"], 1]]),
        TWO, gain=0.75,
        tl=dict(normalization_type="LN", use_attn_scale=False, use_local_attn=True, window_size=4,
                attn_types=["global", "local", "global"]),
    ),
    Case(
        "gpt_neo_global", 3102, "all global, intermediate_size null, gelu; older spelling", "gpt_neo",
        dict(hidden_size=12, num_heads=3, num_layers=3, vocab_size=37, window_size=256, activation_function="gelu",
             max_position_embeddings=16, layer_norm_epsilon=1e-3, bos_token_id=0, eos_token_id=0,
             attention_types=[[["global"], 3]]),
        TWO, spelling="older", gain=0.85,
        tl=dict(normalization_type="LN", use_attn_scale=False, d_mlp=48),
    ),
    Case(
        "opt_tied", 3201, "learned positions offset by 2, relu, tied", "opt",
        dict(hidden_size=20, num_attention_heads=4, ffn_dim=26, vocab_size=37, max_position_embeddings=16,
             num_hidden_layers=3, word_embed_proj_dim=20),
        TWO, tl=dict(normalization_type="LN", d_mlp=26),
    ),
    Case(
        "opt_untied", 3202, "untied, gelu; older spelling", "opt",
        dict(hidden_size=18, num_attention_heads=3, ffn_dim=22, vocab_size=33, max_position_embeddings=16,
             num_hidden_layers=3, word_embed_proj_dim=18, tie_word_embeddings=False, activation_function="gelu"),
        TWO, spelling="older",
    ),
    Case(
        "olmo2_grouped", 3301, "norms after attention and MLP only, norms of all of q and of k, grouped", "olmo2",
        dict(hidden_size=24, num_attention_heads=4, num_key_value_heads=2, intermediate_size=26, vocab_size=37,
             max_position_embeddings=32, rms_norm_eps=1e-6, num_hidden_layers=3, tie_word_embeddings=False,
             **rope(500.0)),
        TWO, gain=1.0,
    ),
    Case(
        "olmo2_plain", 3302, "all heads, tied; older spelling", "olmo2",
        dict(hidden_size=18, num_attention_heads=3, num_key_value_heads=3, intermediate_size=22, vocab_size=33,
             max_position_embeddings=32, rms_norm_eps=1e-4, num_hidden_layers=3, tie_word_embeddings=True,
             **rope(10000.0)),
        TWO, spelling="older", gain=1.0,
    ),
    Case(
        "stablelm_sequential", 3401, "LayerNorm and gated SiLU, a quarter rotated, biases of q, k, v, grouped",
        "stablelm",
        dict(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, intermediate_size=26, vocab_size=37,
             max_position_embeddings=32, layer_norm_eps=1e-5, num_hidden_layers=3, use_qkv_bias=True,
             tie_word_embeddings=False, **rope(10000.0, partial_rotary_factor=0.25)),
        TWO,
    ),
    Case(
        "stablelm_parallel", 3402, "use_parallel_residual (one norm), half rotated, tied; older spelling", "stablelm",
        dict(hidden_size=24, num_attention_heads=3, num_key_value_heads=3, intermediate_size=22, vocab_size=33,
             max_position_embeddings=32, layer_norm_eps=1e-3, num_hidden_layers=3, use_parallel_residual=True,
             tie_word_embeddings=True, **rope(90.0, partial_rotary_factor=0.5)),
        TWO, spelling="older", older={"partial_rotary_factor": 0.5},
    ),
    Case(
        "falcon_multiquery", 3501, "parallel with one norm, one key-value head, no biases", "falcon",
        dict(hidden_size=24, num_attention_heads=4, num_hidden_layers=3, vocab_size=37, ffn_hidden_size=40,
             max_position_embeddings=32, multi_query=True, parallel_attn=True, bias=False,
             new_decoder_architecture=False, **rope(10000.0)),
        TWO,
    ),
    Case(
        "falcon_grouped", 3502, "new decoder architecture: two norms, grouped; older spelling", "falcon",
        dict(hidden_size=24, num_attention_heads=4, num_kv_heads=2, num_hidden_layers=3, vocab_size=37,
             max_position_embeddings=32, new_decoder_architecture=True, bias=True, layer_norm_epsilon=1e-3,
             **rope(60.0)),
        TWO, spelling="older",
    ),
    Case(
        "falcon_sequential", 3503, "parallel_attn false, all heads, biases", "falcon",
        dict(hidden_size=18, num_attention_heads=3, num_hidden_layers=3, vocab_size=33, max_position_embeddings=32,
             multi_query=False, parallel_attn=False, bias=True, new_decoder_architecture=False,
             tie_word_embeddings=False, **rope(10000.0)),
        TWO,
    ),
    Case(
        "bloom_alibi", 3601, "ALiBi over 3 heads, norm of the embedding, fused q, k, v a head", "bloom",
        dict(hidden_size=18, n_head=3, n_layer=3, vocab_size=37, layer_norm_epsilon=1e-5),
        TWO, tl_is_wrong=True, tl_table="folder",  # its slopes are those of four heads
        tl=dict(normalization_type="LN", positional_embedding_type="alibi", post_embedding_ln=True, d_mlp=72,
                act_fn="gelu_fast"),
    ),
    Case(
        "bloom_four_heads", 3602, "ALiBi over 4 heads, eps 1e-3; older spelling", "bloom",
        dict(hidden_size=16, n_head=4, n_layer=3, vocab_size=33, layer_norm_epsilon=1e-3),
        TWO, spelling="older", older={"n_embed": 16, "seq_length": 2048},
        tl=dict(normalization_type="LN", positional_embedding_type="alibi", post_embedding_ln=True, d_mlp=64,
                act_fn="gelu_fast"),
    ),
    Case(
        "mixtral_window", 3701, "2 of 5 experts; sliding window 4 in every layer; head_dim 6 of d_model 20 over 4 heads",
        "mixtral",
        llama_like(20, 4, 2, 6, 10, 37, 32, 1e-3, sliding_window=4, tie_word_embeddings=False, num_local_experts=5,
                   num_experts_per_tok=2, router_jitter_noise=0.1, **rope(1000.0)),
        TWO, tl=rms(1000.0, use_local_attn=True, window_size=4, attn_types=["local"] * 3, num_experts=5,
                    experts_per_token=2, norm_topk_prob=True),
    ),
    Case(
        "mixtral_together", 3702, "3 of 4 experts, stored in one tensor; no window, tied, one key-value head; older spelling",
        "mixtral",
        llama_like(15, 3, 1, 8, 7, 31, 32, 1e-5, sliding_window=None, tie_word_embeddings=True, num_local_experts=4,
                   num_experts_per_tok=3, **rope(1e6)),
        TWO, spelling="older", as_held=True,
        tl=rms(1e6, num_experts=4, experts_per_token=3, norm_topk_prob=True),
    ),
]  # fmt: skip


# ---- the checkpoints ------------------------------------------------------------------------------------------


def is_norm(name: str) -> bool:
    return any(part in name for part in ("norm", "ln_", "ln_f", "layernorm")) and name.endswith(("weight", "bias"))


def random_parameters(case: Case, model) -> dict[str, torch.Tensor]:
    """Every parameter random, biases and norms included; query and key scaled for patterns of middling entropy."""
    rng = np.random.Generator(np.random.PCG64(case.seed))
    normal = lambda shape, std, mean=0.0: mean + std * rng.standard_normal(tuple(shape))
    gemma = case.model_type.startswith("gemma")
    parameters = {}
    for name, old in model.named_parameters():
        if is_norm(name):
            value = normal(old.shape, 0.35, 0.0 if gemma else 1.0) if name.endswith("weight") else normal(old.shape, 0.25)
        elif "embed" in name or "wte" in name or "wpe" in name or "lm_head.weight" in name:
            value = normal(old.shape, 0.1 if gemma else 0.4)
        elif name.endswith("bias"):
            value = normal(old.shape, 0.25)
        else:
            value = normal(old.shape, 1 / old.shape[-1] ** 0.5)
        if any(part in name for part in ("q_proj", "k_proj", "query_key_value", "qkv_proj")):
            value *= case.gain
        if name.endswith("mlp.gate.weight"):
            value *= ROUTER_GAIN
        parameters[name] = torch.from_numpy(value).to(torch.float32).to(case.storage)
    return parameters


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="ascii")


def older_spelling(case: Case, written: dict) -> dict:
    """config.json as transformers wrote it before rope_parameters and dtype."""
    parameters = written.pop("rope_parameters", None)
    written["torch_dtype"] = written.pop("dtype")
    if parameters and "rope_theta" in parameters and "rotary_pct" not in case.older:
        written["rope_theta"] = parameters["rope_theta"]
        kind = parameters["rope_type"]
        rest = {k: v for k, v in parameters.items() if k not in ("rope_theta", "rope_type", "partial_rotary_factor")}
        written["rope_scaling"] = None if kind == "default" else {"type": kind} | rest
    for name in case.drop:
        written.pop(name, None)
    return written | case.older | {"transformers_version": "4.31.0"}


def write_checkpoint(case: Case, folder: Path) -> dict[str, torch.Tensor]:
    config = AutoConfig.for_model(case.model_type, **json.loads(json.dumps(case.config)))
    model = AutoModelForCausalLM.from_config(config, dtype=case.storage)
    parameters = random_parameters(case, model)
    for name, parameter in model.named_parameters():
        parameter.copy_(parameters[name])
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", older_spelling(case, written) if case.spelling == "older" else written)
    if case.as_held:
        save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / "model.safetensors")
    # Sorted, without what depends on the machine.
    save_file(dict(sorted(load_file(folder / "model.safetensors").items())), folder / "model.safetensors", metadata={"format": "pt"})
    return parameters


def load_hf(folder: Path, parameters: dict):
    """from_pretrained, after which every parameter must be the stored one, upcast."""
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    for name, value in model.named_parameters():
        assert torch.equal(value, parameters[name].to(torch.float64)), name
    if model.config.model_type == "mixtral":
        model.set_experts_implementation("eager")  # the grouped product takes no float64
    return model.eval()


def random_tokens(case: Case, vocab: int) -> list[torch.Tensor]:
    """Tokens of each shape; the first id is vocab - 1 and the last id is 0."""
    rng = np.random.Generator(np.random.PCG64(case.seed + 500_000))
    result = []
    for shape in case.token_shapes:
        tokens = rng.integers(0, vocab, shape)
        tokens[-1, -1] = 0
        tokens[0, 0] = vocab - 1
        result.append(torch.from_numpy(tokens))  # [batch, pos]
    return result


# ---- what the peers compute -----------------------------------------------------------------------------------


def run_hf(model, tokens: torch.Tensor) -> tuple[dict[str, torch.Tensor], float]:
    mask = torch.ones_like(tokens)
    out = model(tokens, attention_mask=mask, output_hidden_states=True, output_attentions=True, use_cache=False)
    result = {"tokens": tokens, "logits": out.logits}
    result |= {f"hidden.{l}": value for l, value in enumerate(out.hidden_states)}
    peaks = [a[:, :, 4:].amax(-1).flatten() for a in out.attentions if a is not None]
    return result, torch.cat(peaks).mean().item()


def check_routing(case: Case, model, tokens: torch.Tensor) -> None:
    """Every expert is chosen by some tokens, at least two of them not by all, and no choice hangs on rounding."""
    chosen = model.config.num_experts_per_tok
    for logits in model(tokens, output_router_logits=True, use_cache=False).router_logits:  # [token, expert]
        falling, order = logits.double().sort(-1, descending=True)
        counts = torch.bincount(order[:, :chosen].flatten(), minlength=logits.shape[1])
        if not (counts.min() > 0 and (counts < len(logits)).sum() >= 2):
            sys.exit(f"{case.name}: experts are chosen {counts.tolist()} times by {len(logits)} tokens")
        if not (falling[:, :-1] - falling[:, 1:]).min() > 1e-3:
            sys.exit(f"{case.name}: probabilities of experts are too close")


def tl_config(case: Case, hf) -> HookedTransformerConfig:
    c = hf.config
    get = lambda *names: next((getattr(c, n) for n in names if getattr(c, n, None) is not None), None)
    heads = get("num_attention_heads", "n_head", "num_heads")
    kv_heads = get("num_key_value_heads")
    d_model = get("hidden_size", "n_embd")
    d_head = get("head_dim") or d_model // heads
    fields = dict(
        n_layers=get("num_hidden_layers", "n_layer", "num_layers"), d_model=d_model, d_head=d_head, n_heads=heads,
        n_key_value_heads=None if kv_heads in (None, heads) and CONVERSIONS[case.model_type] not in ("mistral", "qwen2", "gemma") else kv_heads or heads,
        d_mlp=get("intermediate_size", "ffn_dim"), d_vocab=c.vocab_size,
        n_ctx=get("max_position_embeddings", "n_positions") or 64,
        eps=get("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon") or 1e-5,
        act_fn=get("hidden_activation", "hidden_act", "activation_function"), rotary_dim=d_head,
        original_architecture=type(hf).__name__, init_weights=False, device="cpu", dtype=torch.float64,
    )  # fmt: skip
    return HookedTransformerConfig(**(fields | case.tl))


def tl_weights(case: Case, hf, cfg: HookedTransformerConfig) -> dict[str, torch.Tensor]:
    convert = getattr(weight_conversions, f"convert_{CONVERSIONS[case.model_type]}_weights")
    return {name: t.detach().clone() for name, t in convert(hf, cfg).items()}


def tl_model(case: Case, hf) -> HookedTransformer:
    cfg = tl_config(case, hf)
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        tl_weights(case, hf, cfg), fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return torch.nn.Module.double(model).eval()  # as below


def tl_processed_model(case: Case, hf) -> HookedTransformer:
    """ProcessWeights.process_weights' own steps in its order and from_pretrained's refusals, without the detour through float32."""
    cfg = tl_config(case, hf)
    weights = HookedTransformer(cfg).fill_missing_keys(tl_weights(case, hf, cfg))
    centres = cfg.normalization_type == "LN"
    weights = ProcessWeights.fold_layer_norm(weights, cfg, fold_biases=centres, center_weights=centres)
    if centres:
        weights = ProcessWeights.center_writing_weights(weights, cfg)
    if cfg.output_logits_soft_cap <= 0:
        weights = ProcessWeights.center_unembed(weights, cfg=cfg)
    weights = ProcessWeights.fold_value_biases(weights, cfg)
    for layer in range(cfg.n_layers if centres else 0):
        weights[f"blocks.{layer}.attn.b_O"] -= weights[f"blocks.{layer}.attn.b_O"].mean()
    cfg.normalization_type += "Pre"
    model = torch.nn.Module.double(HookedTransformer(cfg))  # whatever cfg.dtype, its experts are float32
    model.load_state_dict(weights, strict=False)
    return model.eval()


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a - b| / max|b|"""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def raw_difference(hf: dict, logits: torch.Tensor, cache: dict, n_layers: int) -> float:
    pairs = [(hf["logits"], logits)]
    pairs += [(hf[f"hidden.{l}"], cache[f"blocks.{l}.hook_resid_pre"]) for l in range(n_layers)]
    return max(relative(tl, expected) for expected, tl in pairs)


def must(name: str, value: float, limit: float) -> str:
    if not value <= limit:
        sys.exit(f"{name}: {value:.2e} exceeds {limit:.0e}")
    return f"{value:.0e}"


def save_tl(path: Path, logits: torch.Tensor, cache) -> None:
    """Of the blocks the first two: the third has the same names."""
    kept = {"logits": logits} | {n: v for n, v in cache.items() if not n.startswith("blocks.2.")}
    save_file({f"0/{n}": v.detach().clone().contiguous() for n, v in kept.items()}, path)


# ---- a case ---------------------------------------------------------------------------------------------------


def make_case(case: Case, folder: Path) -> dict:
    folder.mkdir(parents=True)
    parameters = write_checkpoint(case, folder)
    hf = load_hf(folder, parameters)
    flat, peaks, runs = {}, [], []
    for i, tokens in enumerate(random_tokens(case, hf.config.vocab_size)):
        run, peak = run_hf(hf, tokens)
        runs.append(run)
        peaks.append(peak)
        for name, value in run.items():
            kind, *layer = name.split(".")
            flat[".".join([kind, str(i), *layer])] = value.to(torch.float32) if value.is_floating_point() else value
    save_file({name: value.detach().clone().contiguous() for name, value in flat.items()}, folder / "hf.safetensors")
    if case.model_type == "mixtral":
        check_routing(case, hf, runs[0]["tokens"])
    if not 0.25 < peaks[0] < 0.85:
        sys.exit(f"{case.name}: attention is too uniform or too sharp ({peaks[0]:.2f})")
    agreement = {}
    if case.tl is not None and not case.tl_is_wrong:
        prompt = runs[0]["tokens"][:1, :TL_POSITIONS]
        first = {name: value[:1, :TL_POSITIONS] for name, value in runs[0].items()}
        logits, cache = tl_model(case, hf).run_with_cache(prompt)
        difference = raw_difference(first, logits, cache.cache_dict, hf.config.num_hidden_layers)
        agreement["raw_relative"] = must(f"{case.name} raw", difference, RAW_LIMIT)
        save_tl(folder / "tl_raw.safetensors", logits, cache)
        logits, cache = tl_processed_model(case, hf).run_with_cache(prompt)
        nats = (logits.log_softmax(-1) - first["logits"].log_softmax(-1)).abs().max().item()
        agreement["processed_nats"] = must(f"{case.name} processed", nats, PROCESSED_LIMIT)
        save_tl(folder / "tl_processed.safetensors", logits, cache)
    if case.tl_table:
        table = loading_from_pretrained.convert_hf_model_config(str(folder) if case.tl_table == "folder" else case.tl_table)
        known = replace(case, tl={name: value for name, value in case.tl.items() if name in table})
        logits = tl_model(known, hf)(runs[0]["tokens"])
        difference = relative(logits, runs[0]["logits"])
        assert difference > 0.01, f"{case.name}: transformer-lens has been mended; drop tl_table"
        agreement["table_relative_wrong"] = f"{difference:.0e}"
        save_file({"logits": logits.to(torch.float32)}, folder / "tl_wrong.safetensors")
    return {
        "covers": case.covers,
        "model_type": case.model_type,
        "seed": case.seed,
        "spelling": case.spelling,
        "storage": str(case.storage).removeprefix("torch."),
        "token_shapes": case.token_shapes,
        "mean_peak_of_attention": f"{peaks[0]:.2f}",
        "agreement": agreement,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in sorted(folder.iterdir())
        },
    }


def default_config(name: str, **given) -> dict:
    """All that transformers puts where config.json says nothing, but of encoders the head, which is to be said."""
    config = AutoConfig.for_model(name, **given).to_dict()
    config.pop("transformers_version")
    return config | ({"architectures": [ENCODERS[name]]} if name in ENCODERS else {})


def write_defaults(top: Path) -> None:
    """Of every family, and once more with twice as many heads: which numbers follow theirs, and which are their own."""
    names = sorted({c.model_type for c in CASES} | {"gpt2"} | set(ENCODERS))
    heads = {name: AutoConfig.for_model(name).num_attention_heads for name in names}
    write_json(top / "defaults.json", {name: default_config(name) for name in names})
    write_json(top / "defaults_of_twice_the_heads.json", {name: default_config(name, num_attention_heads=2 * heads[name]) for name in names})


def make_all(top: Path, only: list[str]) -> None:
    top.mkdir(parents=True)
    write_defaults(top)
    cases = {c.name: make_case(c, top / c.name) for c in CASES if not only or c.name in only}
    versions = {package: version(package).split("+")[0] for package in PACKAGES}
    write_json(top / "manifest.json", {"made_with": versions, "cases": cases})
    for path in top.rglob("*.*"):
        path.chmod(0o644)  # safetensors writes 0600


def differing(a: Path, b: Path) -> list[str]:
    names = {str(p.relative_to(top)) for top in (a, b) for p in top.rglob("*") if p.is_file()}
    same = filecmp.cmpfiles(a, b, sorted(names), shallow=False)[0]
    return sorted(names - set(same))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="make into a temporary folder and compare bytes")
    parser.add_argument("--try", dest="only", nargs="+", default=[], help="make these cases only, and keep nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "families"
        make_all(made, arguments.only)
        if arguments.only:
            return
        if arguments.check:
            different = differing(made, TOP)
            sys.exit("differ: " + ", ".join(different) if different else 0)
        shutil.rmtree(TOP, ignore_errors=True)
        shutil.copytree(made, TOP)


if __name__ == "__main__":
    main()
