"""Makes tests/golden/adapters: tiny random models, LoRAs and DoRAs as peft saves them, and the logits that peft's
merge_and_unload leaves in float64. Not a generator of test tolerances. Files and keys: README.md.
"""

import os

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
import shutil
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

TOP = Path(__file__).resolve().parent / "adapters"
PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy")
MERGE_LIMIT = 1e-11  # between peft's own forward with the adapter beside the weights and merged into them
TOKENS = (2, 7)

GPT2 = dict(model_type="gpt2", n_layer=2, n_head=2, n_embd=12, n_inner=20, vocab_size=23, n_positions=8)
LLAMA = dict(
    model_type="llama", num_hidden_layers=3, hidden_size=12, num_attention_heads=4, num_key_value_heads=2, head_dim=6,
    intermediate_size=18, vocab_size=23, max_position_embeddings=16, rms_norm_eps=1e-5, rope_theta=500.0,
)  # fmt: skip


@dataclass
class Case:
    """A model, and the LoraConfig of its adapter."""

    name: str
    seed: int
    covers: str
    model: dict
    adapter: dict


CASES = [
    Case(
        "gpt2_lora", 1, "Conv1D, tied; rank_pattern and alpha_pattern, whose first match counts; every bias; a norm replaced",
        GPT2,
        dict(
            r=3, lora_alpha=5, target_modules=["c_attn", "mlp.c_proj"], bias="all", modules_to_save=["ln_f"], fan_in_fan_out=True,
            rank_pattern={"h.1.attn.c_attn": 2, r"h\.\d\.mlp\.c_proj": 4}, alpha_pattern={r"h.\d.attn.c_attn": 7, "c_attn": 1},
        ),
    ),
    Case(
        "gpt2_dora", 2, "Conv1D, square c_proj; DoRA; one layer; biases of its modules; an untied unembedding replaced",
        {**GPT2, "tie_word_embeddings": False},
        dict(
            r=2, lora_alpha=6, target_modules=["c_attn", "attn.c_proj"], bias="lora_only", modules_to_save=["lm_head"],
            fan_in_fan_out=True, use_dora=True, layers_to_transform=[1], layers_pattern="h",
        ),
    ),
    Case(
        "llama_rslora", 3, "alpha / sqrt(rank), a regular expression, two layers of it left out, ranks by pattern",
        LLAMA,
        dict(
            r=4, lora_alpha=3, target_modules=r"model\.layers\.(0|2)\.(self_attn\.(q|v|o)_proj|mlp\.(up|down)_proj)", use_rslora=True,
            rank_pattern={"layers.2.mlp.up_proj": 1}, exclude_modules=["layers.2.self_attn.v_proj"],
        ),
    ),
    Case(
        "llama_dora", 4, "DoRA on every matrix, stored in bfloat16; embedding and unembedding replaced",
        LLAMA,
        dict(
            r=2, lora_alpha=4, use_dora=True, modules_to_save=["embed_tokens", "lm_head"],
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        ),
    ),
]  # fmt: skip


def randomise(parameters, generator: torch.Generator, dtype: torch.dtype) -> None:
    """Numbers that `dtype` holds exactly, so that the stored adapter is the one that was merged."""
    for name, parameter in parameters:
        values = 0.5 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if name.endswith(("norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")) or "magnitude" in name:
            values = 1 + 0.3 * values
        parameter.data = values.to(dtype).double()


def rewrite_config(path: Path, case: Case) -> None:
    """Lists in a fixed order (peft saves sets), patterns in the order of the case, which peft's own writer sorts away: what
    it reads back is what counts."""
    saved = json.loads(path.read_text())
    for field in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(saved[field], list):
            saved[field] = sorted(saved[field])
    for field in ("rank_pattern", "alpha_pattern"):
        saved[field] = case.adapter.get(field, {})
    path.write_text(json.dumps(saved, indent=2) + "\n")


def load(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()


def make(case: Case, top: Path) -> dict:
    generator = torch.Generator().manual_seed(case.seed)
    config = AutoConfig.for_model(**case.model, bos_token_id=0, eos_token_id=0, dtype="float32")
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).double().eval()
    randomise(sorted(model.named_parameters()), generator, torch.float32)
    folder = top / case.name
    model.float().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    model.double()

    # init_lora_weights False: no matrix of zeros, whatever randomise leaves out.
    tuned = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **case.adapter)).eval()
    stored = torch.bfloat16 if "bfloat16" in case.covers else torch.float32
    trained = [(n, p) for n, p in tuned.named_parameters() if p.requires_grad]
    randomise(sorted(trained, key=lambda item: item[0]), generator, stored)
    tuned.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({k: v.to(stored).contiguous() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})

    rewrite_config(folder / "adapter" / "adapter_config.json", case)
    tuned = PeftModel.from_pretrained(load(folder), folder / "adapter", torch_dtype=torch.float64).eval()

    tokens = torch.randint(0, config.vocab_size, TOKENS, generator=generator)
    with torch.no_grad():
        beside = tuned(tokens).logits
        merged = tuned.merge_and_unload()
        logits = merged(tokens).logits
        plain = load(folder)(tokens).logits
    if not (float((beside - logits).abs().max()) <= MERGE_LIMIT):
        sys.exit(f"{case.name}: merged and unmerged differ by {float((beside - logits).abs().max())}")
    moved = float((plain - logits).abs().max())
    if not (moved >= 0.1):
        sys.exit(f"{case.name}: the adapter moves logits by {moved} only")
    save_file({"tokens": tokens, "logits": logits, "logits_of_base": plain}, folder / "merged.safetensors")
    return {"seed": case.seed, "covers": case.covers, "largest_change_of_a_logit": round(moved, 3)}


def make_all(top: Path) -> None:
    cases = {case.name: make(case, top) for case in CASES}
    manifest = {"versions": {p: version(p) for p in PACKAGES}, "cases": cases}
    (top / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="remake elsewhere and compare bytes")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "adapters"
        made.mkdir()
        make_all(made)
        if not arguments.check:
            shutil.rmtree(TOP, ignore_errors=True)
            shutil.copytree(made, TOP)
            return
        files = sorted(p.relative_to(made) for p in made.rglob("*") if p.is_file())
        stored = sorted(p.relative_to(TOP) for p in TOP.rglob("*") if p.is_file())
        different = [str(f) for f in files if f in stored and not filecmp.cmp(made / f, TOP / f, shallow=False)]
        if files != stored or different:
            sys.exit(f"differ: {different or set(files) ^ set(stored)}")
        print(f"{len(files)} files are the same")


if __name__ == "__main__":
    main()
