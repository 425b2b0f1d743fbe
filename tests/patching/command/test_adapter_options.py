"""--adapter of patch, batch and compare: what they show is what the merged checkpoint shows."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_command import PROMPT, fails, succeeds
from test_patch import CORRUPTED

import lenscpp as lens

RANK, ALPHA = 2, 3.0
PATCH = ["patch", "--clean", PROMPT, "--corrupted", CORRUPTED, "--answer", " Mary", "--wrong", " John", "--threads", "1", "--json"]
COMPARE = ["compare", "--prompt", PROMPT, "--answer", " Mary", "--wrong", " John", "--prompts", "20", "--json"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random adapter of tiny-ioi, and tiny-ioi with that adapter added to its matrices here."""
    shipped = Path(lens.__file__).parent / "models" / "tiny-ioi"
    adapter, merged = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("models") / "merged"
    shutil.copytree(shipped, merged)
    weights, stored = load_file(merged / "model.safetensors"), {}
    random = np.random.default_rng(5)
    for layer in (0, 2):
        name = f"transformer.h.{layer}.mlp.c_proj"
        width, out = weights[f"{name}.weight"].shape  # Conv1D: [in, out]
        a, b = random.standard_normal((RANK, width)) / 40, random.standard_normal((out, RANK)) / 4
        stored |= {f"base_model.model.{name}.lora_{x}.weight": y.astype(np.float32) for x, y in (("A", a), ("B", b))}
        a, b = (stored[f"base_model.model.{name}.lora_{x}.weight"].astype(np.float64) for x in "AB")
        weights[f"{name}.weight"] = np.ascontiguousarray(weights[f"{name}.weight"] + ALPHA / RANK * (b @ a).T, np.float32)
    save_file(stored, adapter / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["mlp.c_proj"], "layers_to_transform": [0, 2]}
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "bias": "none", "fan_in_fan_out": True, "task_type": "CAUSAL_LM"}))
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    return adapter, merged


def test_patch(folders):
    adapter, merged = folders
    with_model = lambda *model: json.loads(succeeds(PATCH[0], *model, *PATCH[1:]))
    plain, tuned, expected = with_model("tiny-ioi"), with_model("tiny-ioi", "--adapter", adapter), with_model(merged)
    assert tuned["status"] == "VERIFIED" and str(adapter) in tuned["clean"]["record"]["adapter"]
    values = lambda document: np.array(document["grids"][0]["values"])
    assert np.abs(values(tuned) - values(expected)).max() < 1e-4
    assert np.abs(values(tuned) - values(plain)).max() > 0.05


def test_compare(folders):
    adapter, merged = folders
    rows = lambda *model: json.loads(succeeds(COMPARE[0], *model, *COMPARE[1:]))["rows"]
    (plain,), (tuned,), (expected,) = rows("tiny-ioi"), rows("tiny-ioi", "--adapter", adapter), rows(merged)
    assert tuned["status"] == "VERIFIED" and tuned["accuracy"] == expected["accuracy"]
    assert abs(tuned["logit_difference"] - expected["logit_difference"]) < 1e-4
    assert abs(tuned["logit_difference"] - plain["logit_difference"]) > 0.05


def test_batch(folders, tmp_path):
    adapter, merged = folders
    experiments = tmp_path / "ioi.jsonl"
    succeeds("task", "ioi", "tiny-ioi", "--n", 6, "--out", experiments)
    grids = {}
    for name, model in {"plain": ["tiny-ioi"], "tuned": ["tiny-ioi", "--adapter", adapter], "merged": [merged]}.items():
        folder = tmp_path / name
        succeeds("batch", experiments, "--model", *model, "--out", folder, "--threads", 1, "--site", "mlp_out")
        succeeds("merge", folder)
        with h5py.File(folder / "merged.h5") as file:
            grids[name] = {"clean": file["clean"][()], "mlp_out": file["values/mlp_out_by_layer_pos"][()]}
    for name, tuned in grids["tuned"].items():
        assert np.allclose(tuned, grids["merged"][name], rtol=0, atol=1e-4, equal_nan=True), name
        assert np.nanmax(np.abs(tuned - grids["plain"][name])) > 0.01, name
    # The folder of one model takes no runs of another.
    assert "model" in fails(2, "batch", experiments, "--model", "tiny-ioi", "--out", tmp_path / "tuned", "--threads", 1, "--site", "mlp_out", "--resume")


@pytest.mark.parametrize("command", [PATCH, COMPARE])
def test_a_folder_without_an_adapter_is_refused(command, tmp_path):
    assert "adapter_config.json" in fails(2, command[0], "tiny-ioi", "--adapter", tmp_path, *command[1:])
