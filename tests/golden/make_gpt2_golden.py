"""Makes tests/golden/gpt2: random GPT-2 checkpoints of awkward shapes, and what two peers compute from them.

Peers: transformers (float64) and transformer-lens. Not a generator of test tolerances. Keys and commands: README.md.
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
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformer_lens.weight_processing import ProcessWeights
from transformers import GPT2Config, GPT2LMHeadModel

TOP = Path(__file__).resolve().parent / "gpt2"
PACKAGES = ("torch", "transformers", "transformer-lens", "safetensors", "numpy")
RAW_LIMIT = 1e-12  # relative to the largest entry; both sides are float64
PROCESSED_LIMIT = 3e-5  # nats; transformer-lens processes and runs in float32
EXACT_LIMIT = 1e-12  # nats; the same steps in float64
WITHOUT_PROCESSING = dict(
    fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
)


@dataclass
class Case:
    """One checkpoint: its shape, how it is spelled on disk, and which golden files go with it."""

    name: str
    seed: int
    covers: str
    config: dict
    token_shapes: list[tuple[int, int]]
    tl_tokens: list[int]  # which of token_shapes the tl_* files hold
    spelling: str = "dtype"  # "dtype" | "torch_dtype" | "openai" (names no dtype)
    storage: torch.dtype = torch.float32
    prefix: str = "transformer."
    mask_dtype: torch.dtype | None = None  # stores h.L.attn.bias and masked_bias where set
    stores_tied_lm_head: bool = False
    n_shards: int = 1
    extras: set[str] = field(default_factory=set)  # of "weights", "float64", "flags"
    tl_processing_is_wrong: bool = False


def shape(n_layer, n_head, d_head, vocab_size, n_positions, **rest) -> dict:
    return dict(
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_head * d_head,
        vocab_size=vocab_size,
        n_positions=n_positions,
        **rest,
    )


CASES = [
    Case(
        "three_layers",
        1001,
        "3 layers, vocab 257, d_head 12, 3 heads, n_inner 100, n_positions 16, gelu_new; spelled `dtype`",
        shape(3, 3, 12, 257, 16, n_inner=100),
        [(2, 11), (1, 16)],
        [0],
        extras={"weights"},
    ),
    Case(
        "odd_heads",
        1002,
        "5 heads of 6, n_inner 20 < d_model 30, gelu (erf), layer_norm_epsilon 1e-3; spelled `dtype`",
        shape(2, 5, 6, 101, 16, n_inner=20, activation_function="gelu", layer_norm_epsilon=1e-3),
        [(2, 7), (1, 16)],
        [0],
        extras={"float64"},
    ),
    Case(
        "inverse_layer_scale",
        1003,
        "scale_attn_by_inverse_layer_idx over 4 layers; spelled `torch_dtype`",
        shape(4, 2, 8, 67, 16, n_inner=40, scale_attn_by_inverse_layer_idx=True),
        [(2, 9), (1, 1)],
        [0, 1],
        spelling="torch_dtype",
        extras={"float64"},
    ),
    Case(
        "unscaled_attention",
        1004,
        "scale_attn_weights false, silu, layer_norm_epsilon 1e-6; spelled `dtype`",
        shape(
            2, 2, 10, 53, 16, n_inner=30, scale_attn_weights=False, activation_function="silu",
            layer_norm_epsilon=1e-6,
        ),
        [(2, 7), (1, 1)],
        [0, 1],
    ),
    Case(
        "untied",
        1005,
        "tie_word_embeddings false with lm_head.weight, relu, d_head 12; spelled `dtype`",
        shape(
            2, 2, 12, 101, 24, n_inner=50, tie_word_embeddings=False, activation_function="relu"
        ),
        [(2, 8), (1, 1)],
        [0, 1],
        extras={"weights"},
    ),
    Case(
        "hub_names",
        1006,
        "names without `transformer.`, stray float32 h.L.attn.bias and masked_bias, n_inner absent (4 d_model);"
        " config.json with the keys of openai-community/gpt2 (no dtype)",
        shape(2, 4, 6, 101, 16),
        [(2, 7), (1, 16)],
        [0],
        spelling="openai",
        prefix="",
        mask_dtype=torch.float32,
    ),
    Case(
        "one_layer_one_head",
        1007,
        "1 layer, 1 head, d_model 7, vocab 11, n_positions 5 (all used), silu; spelled `torch_dtype`",
        shape(1, 1, 7, 11, 5, n_inner=13, activation_function="silu"),
        [(3, 5), (1, 1)],
        [0, 1],
        spelling="torch_dtype",
        extras={"weights", "float64"},
    ),
    Case(
        "sharded",
        1008,
        "3 shards with model.safetensors.index.json, 3 layers, gelu_pytorch_tanh; spelled `torch_dtype`",
        shape(3, 3, 5, 71, 12, n_inner=37, activation_function="gelu_pytorch_tanh"),
        [(2, 8), (1, 12)],
        [0],
        spelling="torch_dtype",
        n_shards=3,
    ),
    Case(
        "float16",
        1009,
        "stored in float16, with uint8 transformer.h.L.attn.bias masks and lm_head.weight though tied;"
        " spelled `torch_dtype`",
        shape(2, 3, 8, 101, 16, n_inner=60),
        [(2, 9), (1, 1)],
        [0, 1],
        spelling="torch_dtype",
        storage=torch.float16,
        mask_dtype=torch.uint8,
        stores_tied_lm_head=True,
    ),
    Case(
        "bfloat16",
        1010,
        "stored in bfloat16, gelu_fast; spelled `dtype`",
        shape(2, 3, 8, 101, 16, n_inner=60, activation_function="gelu_fast"),
        [(2, 9), (1, 1)],
        [0, 1],
        storage=torch.bfloat16,
    ),
    Case(
        "flags",
        1011,
        "hook_result, hook_{q,k,v}_input, hook_mlp_in, hook_tokens, and (second file) hook_attn_in; spelled `dtype`",
        shape(2, 3, 5, 31, 8, n_inner=22),
        [(2, 6), (1, 1)],
        [0, 1],
        extras={"flags"},
    ),
    Case(
        "square",
        1012,
        "d_model = n_inner = vocab = n_positions = 12: no shape says which axis is which; spelled `dtype`",
        shape(2, 3, 4, 12, 12, n_inner=12),
        [(2, 12), (1, 1)],
        [0, 1],
        tl_processing_is_wrong=True,
    ),
]


# ---- the checkpoints ------------------------------------------------------------------------------------------


def hf_config(case: Case) -> GPT2Config:
    last = case.config["vocab_size"] - 1
    return GPT2Config(**case.config, bos_token_id=last, eos_token_id=last)


def random_parameters(case: Case, config: GPT2Config) -> dict[str, torch.Tensor]:
    """Every parameter random, biases and LayerNorms included; query and key scaled for patterns of middling entropy."""
    rng = np.random.Generator(np.random.PCG64(case.seed))
    d_model, d_head = config.n_embd, config.n_embd // config.n_head
    normal = lambda shape, std, mean=0.0: mean + std * rng.standard_normal(tuple(shape))
    parameters = {}
    for name, old in GPT2LMHeadModel(config).state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
            value = normal(old.shape, 0.3 if "wpe" in name else 0.4)
        elif ".ln_" in name:
            value = normal(old.shape, 0.35, 1.0) if name.endswith("weight") else normal(old.shape, 0.25)
        elif name.endswith("bias"):
            value = normal(old.shape, 0.25)
        else:
            value = normal(old.shape, 1 / old.shape[0] ** 0.5)
        if name.endswith("attn.c_attn.weight"):
            gain = 1.3 if config.scale_attn_weights else 1.3 / d_head**0.25
            if config.scale_attn_by_inverse_layer_idx:
                gain *= (int(name.split(".")[2]) + 1) ** 0.5
            value[:, : 2 * d_model] *= gain
        parameters[name] = torch.from_numpy(value).to(torch.float32).to(case.storage)
    return parameters


def stored_tensors(case: Case, config: GPT2Config, parameters: dict) -> dict[str, torch.Tensor]:
    """The parameters under the names of the file, with the strays that real checkpoints have."""
    tensors = {name.replace("transformer.", case.prefix, 1): t for name, t in parameters.items()}
    if case.stores_tied_lm_head:
        tensors["lm_head.weight"] = parameters["transformer.wte.weight"].clone()
    if case.mask_dtype is not None:
        n_ctx = config.n_positions
        for layer in range(config.n_layer):
            mask = torch.ones(n_ctx, n_ctx).tril().view(1, 1, n_ctx, n_ctx)  # [1, 1, query, key]
            tensors[f"{case.prefix}h.{layer}.attn.bias"] = mask.to(case.mask_dtype)
            tensors[f"{case.prefix}h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    return tensors


def config_json(case: Case, config: GPT2Config) -> dict:
    dtype = str(case.storage).removeprefix("torch.")
    if case.spelling == "openai":
        keys = (
            "activation_function attn_pdrop bos_token_id embd_pdrop eos_token_id initializer_range"
            " layer_norm_epsilon model_type n_embd n_head n_layer n_positions resid_pdrop"
            " summary_activation summary_first_dropout summary_proj_to_labels summary_type"
            " summary_use_proj vocab_size"
        ).split()
        return {key: config.to_dict()[key] for key in keys} | {
            "architectures": ["GPT2LMHeadModel"],
            "n_ctx": config.n_positions,
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        }
    written = config.to_dict() | {"architectures": ["GPT2LMHeadModel"]}
    for key in ("_name_or_path", "dtype", "torch_dtype"):
        written.pop(key, None)
    if case.spelling == "torch_dtype":
        written |= {"n_ctx": config.n_positions, "transformers_version": "4.31.0"}
    return written | {case.spelling: dtype}


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="ascii")


def write_checkpoint(case: Case, folder: Path, tensors: dict) -> None:
    names = sorted(tensors)
    if case.n_shards == 1:
        return save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    weight_map = {}
    for shard in range(case.n_shards):
        file = f"model-{shard + 1:05d}-of-{case.n_shards:05d}.safetensors"
        own = names[shard * len(names) // case.n_shards : (shard + 1) * len(names) // case.n_shards]
        save_file({name: tensors[name] for name in own}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(own, file)
    total_size = sum(t.numel() * t.element_size() for t in tensors.values())  # bytes
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def load_hf(folder: Path, parameters: dict, dtype: torch.dtype) -> GPT2LMHeadModel:
    """from_pretrained, after which every parameter must be the stored one, upcast."""
    model, report = GPT2LMHeadModel.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"], report
    loaded = model.state_dict()
    for name, value in parameters.items():
        assert torch.equal(loaded[name], value.to(dtype)), name
    return model.eval()


def random_tokens(case: Case) -> list[torch.Tensor]:
    """Tokens of each shape; the first id is vocab - 1 and, where there is another, the last id is 0."""
    rng = np.random.Generator(np.random.PCG64(case.seed + 500_000))
    result = []
    for shape in case.token_shapes:
        tokens = rng.integers(0, case.config["vocab_size"], shape)
        tokens[-1, -1] = 0
        tokens[0, 0] = case.config["vocab_size"] - 1
        result.append(torch.from_numpy(tokens))  # [batch, pos]
    return result


# ---- what the peers compute -----------------------------------------------------------------------------------


def run_hf(model: GPT2LMHeadModel, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    kept = {}
    hook = model.transformer.h[-1].register_forward_hook(lambda m, args, out: kept.update(last=out))
    out = model(tokens, output_hidden_states=True, output_attentions=True, use_cache=False)
    hook.remove()
    assert torch.equal(out.hidden_states[-1], model.transformer.ln_f(kept["last"]))
    result = {"tokens": tokens, "logits": out.logits, "resid_final": kept["last"]}
    result |= {f"hidden.{l}": value for l, value in enumerate(out.hidden_states)}
    result |= {f"attention.{l}": value for l, value in enumerate(out.attentions)}
    return result


def tl_config(config: GPT2Config, dtype: torch.dtype, **flags) -> HookedTransformerConfig:
    return HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_ctx=config.n_positions,
        d_head=config.n_embd // config.n_head,
        n_heads=config.n_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        d_vocab=config.vocab_size,
        act_fn=config.activation_function,
        eps=config.layer_norm_epsilon,
        use_attn_scale=config.scale_attn_weights,
        scale_attn_by_inverse_layer_idx=config.scale_attn_by_inverse_layer_idx,
        normalization_type="LN",
        original_architecture="GPT2LMHeadModel",
        init_weights=False,
        device="cpu",
        dtype=dtype,
        **flags,
    )


def tl_model(hf: GPT2LMHeadModel, flags: dict, processing: dict) -> HookedTransformer:
    cfg = tl_config(hf.config, hf.dtype, **flags)
    model = HookedTransformer(cfg)
    weights = {name: t.detach().clone() for name, t in convert_gpt2_weights(hf, cfg).items()}
    model.load_and_process_state_dict(weights, **processing)
    return model.eval()


def tl_model_processed_in_float64(hf: GPT2LMHeadModel) -> HookedTransformer:
    """ProcessWeights.process_weights' own steps in its order, without its detour through float32."""
    cfg = tl_config(hf.config, torch.float64)
    unprocessed = HookedTransformer(cfg)
    weights = {name: t.detach().clone() for name, t in convert_gpt2_weights(hf, cfg).items()}
    weights = unprocessed.fill_missing_keys(weights)
    weights = ProcessWeights.fold_layer_norm(weights, cfg)
    weights = ProcessWeights.center_writing_weights(weights, cfg)
    weights = ProcessWeights.center_unembed(weights, cfg=cfg)
    weights = ProcessWeights.fold_value_biases(weights, cfg)
    for layer in range(cfg.n_layers):
        weights[f"blocks.{layer}.attn.b_O"] -= weights[f"blocks.{layer}.attn.b_O"].mean()
    cfg.normalization_type = "LNPre"
    model = HookedTransformer(cfg)
    model.load_state_dict(weights, strict=False)  # load_and_process_state_dict would round to float32
    return model.eval()


def run_tl(model: HookedTransformer, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    logits, cache = model.run_with_cache(tokens)
    return {"logits": logits, **cache.cache_dict}


def tl_weights(model: HookedTransformer) -> dict[str, torch.Tensor]:
    return {k: v for k, v in model.state_dict().items() if not k.endswith(("attn.mask", "attn.IGNORE"))}


# ---- what the peers must agree on -----------------------------------------------------------------------------


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a - b| / max|b|"""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def log_prob_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference of the log-probabilities, in nats."""
    return (a.double().log_softmax(-1) - b.double().log_softmax(-1)).abs().max().item()


def raw_difference(hf: dict, tl: dict, n_layers: int) -> float:
    pairs = [("logits", "logits"), ("resid_final", f"blocks.{n_layers - 1}.hook_resid_post")]
    pairs += [(f"hidden.{l}", f"blocks.{l}.hook_resid_pre") for l in range(n_layers)]
    pairs += [(f"attention.{l}", f"blocks.{l}.attn.hook_pattern") for l in range(n_layers)]
    pairs += [(f"hidden.{n_layers}", "unembed.hook_in")]
    return max(relative(tl[tl_name], hf[hf_name]) for hf_name, tl_name in pairs)


def pattern_peak(hf: dict) -> float:
    """Mean of the largest attention weight of a row, over rows of at least 5 keys: 1 is one-hot, 1/keys uniform."""
    rows = [value[:, :, 4:].amax(-1) for name, value in hf.items() if name.startswith("attention.")]
    return torch.cat([r.flatten() for r in rows]).mean().item()


def must(name: str, value: float, limit: float) -> str:
    if not value <= limit:
        sys.exit(f"{name}: {value:.2e} exceeds {limit:.0e}")
    return f"{value:.0e}"


# ---- a case ---------------------------------------------------------------------------------------------------


def save(path: Path, runs: dict[int, dict], key: str) -> None:
    """Saves {run: {name: tensor}} under key.format(i=run, name=name)."""
    flat = {
        key.format(i=i, name=name): value.detach().clone().contiguous()
        for i, run in runs.items()
        for name, value in run.items()
    }
    save_file(flat, path)


def hf_key(name: str, i: int) -> str:
    kind, *layer = name.split(".")
    return ".".join([kind, str(i), *layer])


def make_case(case: Case, folder: Path) -> dict:
    folder.mkdir(parents=True)
    config = hf_config(case)
    parameters = random_parameters(case, config)
    write_json(folder / "config.json", config_json(case, config))
    write_checkpoint(case, folder, stored_tensors(case, config, parameters))
    tokens = random_tokens(case)
    hf64 = load_hf(folder, parameters, torch.float64)
    hf32 = load_hf(folder, parameters, torch.float32)
    n_layers = config.n_layer

    hf = {i: run_hf(hf64, t) for i, t in enumerate(tokens)}
    save(folder / "hf.safetensors", {0: {hf_key(n, i): v for i, r in hf.items() for n, v in r.items()}}, "{name}")
    peak = pattern_peak(hf[0])
    assert 0.3 < peak < 0.85, f"{case.name}: attention is too uniform or too sharp ({peak:.2f})"

    def store(file: str, model: HookedTransformer) -> dict[int, dict]:
        runs = {i: run_tl(model, tokens[i]) for i in case.tl_tokens}
        save(folder / file, runs, "{i}/{name}")
        return runs

    agreement = {}
    raw = store("tl_raw.safetensors", tl_model(hf64, {}, WITHOUT_PROCESSING))
    agreement["raw_relative"] = must(
        f"{case.name} raw", max(raw_difference(hf[i], raw[i], n_layers) for i in raw), RAW_LIMIT
    )

    def log_probs(runs: dict[int, dict]) -> float:
        return max(log_prob_difference(run["logits"], hf[i]["logits"]) for i, run in runs.items())

    processed = tl_model(hf32, {}, {})
    if case.tl_processing_is_wrong:
        error = log_probs({i: run_tl(processed, tokens[i]) for i in case.tl_tokens})
        assert error > 0.1, f"{case.name}: transformer-lens has been mended; drop tl_processing_is_wrong"
        agreement["processed_nats_wrong_not_stored"] = f"{error:.0e}"
    else:
        error = log_probs(store("tl_processed.safetensors", processed))
        agreement["processed_nats"] = must(f"{case.name} processed", error, PROCESSED_LIMIT)
    if "weights" in case.extras:
        save_file({k: v.clone() for k, v in tl_weights(processed).items()}, folder / "tl_weights_processed.safetensors")
    if "float64" in case.extras:
        error = log_probs(store("tl_processed_float64.safetensors", tl_model_processed_in_float64(hf64)))
        agreement["processed_float64_nats"] = must(f"{case.name} float64", error, EXACT_LIMIT)
    if "flags" in case.extras:
        split = dict.fromkeys(
            ["use_attn_result", "use_split_qkv_input", "use_hook_mlp_in", "use_hook_tokens"], True
        )
        for file, flags in (("tl_flags", split), ("tl_flags_attn_in", {"use_attn_in": True})):
            runs = store(f"{file}.safetensors", tl_model(hf64, flags, WITHOUT_PROCESSING))
            worst = max(raw_difference(hf[i], runs[i], n_layers) for i in runs)
            agreement[f"{file}_relative"] = must(f"{case.name} {file}", worst, RAW_LIMIT)

    return {
        "covers": case.covers,
        "seed": case.seed,
        "config": case.config,
        "storage": str(case.storage).removeprefix("torch."),
        "token_shapes": case.token_shapes,
        "tokens_in_tl_files": case.tl_tokens,
        "mean_peak_of_attention": f"{peak:.2f}",
        "agreement": agreement,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in sorted(folder.iterdir())
        },
    }


def make_all(top: Path) -> None:
    top.mkdir(parents=True)
    cases = {case.name: make_case(case, top / case.name) for case in CASES}
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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", DeprecationWarning)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "gpt2"
        make_all(made)
        if arguments.check:
            different = differing(made, TOP)
            sys.exit("differ: " + ", ".join(different) if different else 0)
        shutil.rmtree(TOP, ignore_errors=True)
        shutil.copytree(made, TOP)


if __name__ == "__main__":
    main()
