"""Makes tests/golden/attribution: what transformer-lens's ActivationCache computes on checkpoints of tests/golden/gpt2.

    python tests/golden/make_attribution_golden.py [--check]

Everything in float64. The calls, with their arguments, stand in manifest.json, so that a test makes the same ones.
"""

import make_gpt2_golden as gpt2  # first: it sets the environment before torch is imported

import argparse
import filecmp
import hashlib
import logging
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TOP = Path(__file__).resolve().parent / "attribution"
SEED = 4001
CASES = [("untied", "raw"), ("odd_heads", "raw"), ("odd_heads", "processed"), ("inverse_layer_scale", "processed")]

# (method, arguments). A tuple is written {"tuple": [...]}, a stored projection {"projection": columns, 0 for a vector},
# tokens {"tokens": shape}; "stack" holds the arguments of the decompose_resid that is passed as residual_stack.
LAST = {"pos_slice": -1}
CALLS = [
    ("accumulated_resid", {}),
    ("accumulated_resid", {"incl_mid": True, "pos_slice": [0, 2]}),
    ("accumulated_resid", {"apply_ln": True}),
    ("accumulated_resid", {"layer": 1, "apply_ln": True, "mlp_input": True, "incl_mid": True}),
    ("accumulated_resid", {"layer": 0}),
    ("accumulated_resid", {"layer": 1, "apply_ln": True, **LAST}),
    ("decompose_resid", {}),
    ("decompose_resid", {"mode": "attn"}),
    ("decompose_resid", {"mode": "mlp", "incl_embeds": False, "pos_slice": {"tuple": [1, 4, 2]}}),
    ("decompose_resid", {"layer": 1, "mlp_input": True}),
    ("decompose_resid", {"layer": 1, "mlp_input": True, "apply_ln": True}),
    ("decompose_resid", {"apply_ln": True, **LAST}),
    ("decompose_resid", {"layer": 0}),
    ("stack_head_results", {}),
    ("stack_head_results", {"layer": 1}),
    ("stack_head_results", {"incl_remainder": True, "apply_ln": True, **LAST}),
    ("stack_head_results", {"layer": 1, "incl_remainder": True, "pos_slice": {"tuple": [2]}}),
    ("stack_neuron_results", {"layer": 1, "neuron_slice": [0, 3, 5], **LAST}),
    ("stack_neuron_results", {"layer": -1, "neuron_slice": {"tuple": [1, 3]}, "incl_remainder": True, "apply_ln": True, **LAST}),
    ("stack_neuron_results", {"layer": 1, "project_output_onto": {"projection": 2}, "apply_ln": True, "pos_slice": [1]}),
    ("stack_neuron_results", {"layer": 1, "project_output_onto": {"projection": 0}, "incl_remainder": True}),
    ("get_neuron_results", {"layer": 0, "neuron_slice": {"tuple": [4]}, "pos_slice": [0, 1]}),
    ("get_neuron_results", {"layer": 1, "neuron_slice": 3, **LAST}),
    ("get_neuron_results", {"layer": 1, "project_output_onto": {"projection": 0}}),
    ("get_neuron_results", {"layer": 1, "project_output_onto": {"projection": 2}, **LAST}),
    ("get_full_resid_decomposition", {"expand_neurons": False}),
    ("get_full_resid_decomposition", {"layer": 1, "mlp_input": True, "expand_neurons": False, "apply_ln": True}),
    ("get_full_resid_decomposition", {"layer": 1, **LAST}),
    ("get_full_resid_decomposition", {"layer": 0}),
    ("get_full_resid_decomposition", {"apply_ln": True, "project_output_onto": {"projection": 2}, **LAST}),
    ("get_full_resid_decomposition", {"project_output_onto": {"projection": 0}}),
    ("stack_activation", {"activation_name": "z"}),
    ("stack_activation", {"activation_name": "pattern", "layer": 1}),
    ("stack_activation", {"activation_name": "normalized", "sublayer_type": "ln2"}),
    ("apply_ln_to_stack", {"stack": {}}),
    ("apply_ln_to_stack", {"stack": {"layer": 1}, "layer": 1}),
    ("apply_ln_to_stack", {"stack": {"layer": 1, "mlp_input": True}, "layer": 1, "mlp_input": True}),
    ("apply_ln_to_stack", {"stack": LAST, "recompute_ln": True, **LAST}),
    ("apply_ln_to_stack", {"stack": LAST, "batch_slice": [1], **LAST}),
    ("logit_attrs", {"stack": {}, "tokens": 3}),
    ("logit_attrs", {"stack": LAST, "tokens": 3, "incorrect_tokens": 7, **LAST}),
    ("logit_attrs", {"stack": LAST, "tokens": {"tokens": ["batch"]}, **LAST}),
    ("logit_attrs", {"stack": {}, "tokens": {"tokens": ["batch", "pos"]}}),
]
UNLABELLED = {"get_neuron_results", "stack_activation", "apply_ln_to_stack", "logit_attrs"}


def meant(value, given: dict[str, torch.Tensor]):
    """The argument that a value of CALLS stands for."""
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    return tuple(inner) if kind == "tuple" else given[f"{kind}.{inner if kind == 'projection' else len(inner)}"]


def call(cache, method: str, arguments: dict, given: dict[str, torch.Tensor]):
    """(values, labels or None)"""
    keywords = {key: meant(value, given) for key, value in arguments.items() if key != "stack"}
    if "stack" in arguments:
        keywords["residual_stack"] = cache.decompose_resid(**{k: meant(v, given) for k, v in arguments["stack"].items()})
    if method in UNLABELLED:
        return getattr(cache, method)(**keywords), None
    return getattr(cache, method)(**keywords, return_labels=True)


def make_case(name: str, processing: str, file: Path) -> dict:
    case = next(c for c in gpt2.CASES if c.name == name)
    folder = gpt2.TOP / name
    hf = gpt2.load_hf(folder, gpt2.random_parameters(case, gpt2.hf_config(case)), torch.float64)
    raw = processing == "raw"
    model = gpt2.tl_model(hf, {}, gpt2.WITHOUT_PROCESSING) if raw else gpt2.tl_model_processed_in_float64(hf)
    tokens = load_file(folder / "hf.safetensors")["tokens.0"]
    generator = torch.Generator().manual_seed(SEED)
    given = {
        "projection.0": torch.randn(model.cfg.d_model, generator=generator, dtype=torch.float64),
        "projection.2": torch.randn(model.cfg.d_model, 2, generator=generator, dtype=torch.float64),
        "tokens.1": torch.randint(model.cfg.d_vocab, tokens.shape[:1], generator=generator),
        "tokens.2": torch.randint(model.cfg.d_vocab, tokens.shape, generator=generator),
    }
    torch.set_default_dtype(torch.float64)  # transformer-lens sums biases in the default dtype
    _, cache = model.run_with_cache(tokens)
    stored, labels = dict(given), {}
    for i, (method, arguments) in enumerate(CALLS):
        if method == "logit_attrs" and raw:
            # Its directions leave out the final norm's weight unless that is folded into W_U.
            weights = model.unembed.W_U
            model.unembed.W_U = torch.nn.Parameter(weights * model.ln_final.w[:, None])
            values, names = call(cache, method, arguments, given)
            model.unembed.W_U = weights
        else:
            values, names = call(cache, method, arguments, given)
        stored[f"call.{i}"] = values.detach().clone().contiguous()
        if names is not None:
            labels[str(i)] = [str(name) for name in names]
    torch.set_default_dtype(torch.float32)
    save_file(stored, file)
    return {"case": name, "processing": processing, "labels": labels, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def make_all(top: Path) -> None:
    top.mkdir(parents=True)
    cases = [make_case(name, processing, top / f"{name}_{processing}.safetensors") for name, processing in CASES]
    versions = {package: version(package).split("+")[0] for package in gpt2.PACKAGES}
    gpt2.write_json(top / "manifest.json", {"made_with": versions, "seed": SEED, "calls": CALLS, "cases": cases})
    for path in top.iterdir():
        path.chmod(0o644)  # safetensors writes 0600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="make into a temporary folder and compare bytes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "attribution"
        make_all(made)
        if arguments.check:
            names = sorted({p.name for folder in (made, TOP) for p in folder.iterdir()})
            same = filecmp.cmpfiles(made, TOP, names, shallow=False)[0]
            different = sorted(set(names) - set(same))
            sys.exit("differ: " + ", ".join(different) if different else 0)
        shutil.rmtree(TOP, ignore_errors=True)
        shutil.copytree(made, TOP)


if __name__ == "__main__":
    main()
