"""Makes tests/golden/patching.npz: what transformer-lens's patching functions return for checkpoints of tests/golden/gpt2.

    python tests/golden/make_patching_golden.py [--check]

In float64 without processing; transformer-lens stores the results as float32. Keys: README.md.
"""

from make_gpt2_golden import CASES, PACKAGES, TOP, WITHOUT_PROCESSING, hf_config, load_hf, random_parameters, tl_model  # isort: skip (sets threads)

import argparse
import io
import json
import logging
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from transformer_lens import patching

FILE = Path(__file__).resolve().parent / "patching.npz"
SEED = 20240607
NAMES = ("three_layers", "odd_heads", "inverse_layer_scale")
BATCH, POS = 2, 5
ROWS = {  # index_df of generic_activation_patch: (activation, setter, columns, rows)
    "rows_resid_pre": ("resid_pre", "layer_pos_patch_setter", ["layer", "pos"], [[0, 1], [1, 4], [1, 3]]),
    "rows_z": ("z", "layer_pos_head_vector_patch_setter", ["layer", "pos", "head"], [[1, 4, 1], [0, 2, 0]]),
    "rows_pattern": ("pattern", "layer_head_dest_src_pos_pattern_patch_setter", ["layer", "head", "dest_pos", "src_pos"], [[1, 1, 4, 3]]),
}


def logit_diff(logits: torch.Tensor, answer: int, wrong: int) -> torch.Tensor:
    return (logits[:, -1, answer] - logits[:, -1, wrong]).mean()


def results_of(case, generator: torch.Generator) -> dict[str, np.ndarray]:
    config = hf_config(case)
    model = tl_model(load_hf(TOP / case.name, random_parameters(case, config), torch.float64), {}, WITHOUT_PROCESSING)
    clean = torch.randint(config.vocab_size, (BATCH, POS), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 1 + torch.randint(config.vocab_size - 1, (BATCH,), generator=generator)) % config.vocab_size
    answer, wrong = torch.randint(config.vocab_size, (2,), generator=generator).tolist()
    _, cache = model.run_with_cache(clean)
    arguments = (model, corrupted, cache, lambda logits: logit_diff(logits, answer, wrong))
    made = {"clean": clean, "corrupted": corrupted, "answer": torch.tensor(answer), "wrong": torch.tensor(wrong)}
    for name in sorted(n for n in dir(patching) if n.startswith("get_act_patch_")):
        made[name] = getattr(patching, name)(*arguments)
    for name, (activation, setter, columns, rows) in ROWS.items():
        frame = patching.pd.DataFrame(rows, columns=columns)
        made[name] = patching.generic_activation_patch(*arguments, getattr(patching, setter), activation, index_df=frame)
        made[f"{name}/rows"] = torch.tensor(rows)
    return {f"{case.name}/{name}": value.numpy() for name, value in made.items()}


def make() -> bytes:
    generator = torch.Generator().manual_seed(SEED)
    arrays = {}
    for case in CASES:
        if case.name in NAMES:
            arrays.update(results_of(case, generator))
    about = {"made_with": {package: version(package).split("+")[0] for package in PACKAGES}, "seed": SEED}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with what is there instead of writing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore", DeprecationWarning)
    patching.tqdm = lambda rows: rows
    made = make()
    if arguments.check:
        found, expected = np.load(io.BytesIO(made)), np.load(FILE)
        different = [k for k in {*found, *expected} if k not in found or k not in expected or not np.array_equal(found[k], expected[k])]
        sys.exit("differ: " + ", ".join(sorted(different)) if different else 0)
    FILE.write_bytes(made)


if __name__ == "__main__":
    main()
