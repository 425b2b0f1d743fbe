"""The installed C++ package, used as a stranger would: `cmake --install`, find_package(lenscpp), a program of 30 lines."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lenscpp as lens

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "release"
MODEL = Path(lens.__file__).parent / "models" / "tiny-ioi"


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    assert (BUILD / "CMakeCache.txt").exists(), "nothing to install: make test-python configures build/release"
    folder = tmp_path_factory.mktemp("installed")
    # The program of the command line and the libraries; `make test` has built them.
    run("cmake", "--build", BUILD, "--target", "lenscpp_command", "lenscpp_simulated")
    run("cmake", "--install", BUILD, "--prefix", folder / "prefix", "--component", "cpp")
    compiler = {"CXX": os.environ.get("CXX", "c++")}
    run("cmake", "-S", HERE, "-B", folder / "build", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={folder}/prefix",
        f"-DLENSCPP_PYTHON={sys.executable}", env={**os.environ, **compiler})  # fmt: skip
    run("cmake", "--build", folder / "build")
    return folder / "build" / "experiment"


@pytest.mark.parametrize("name", ["experiment.cc", "batch.cc"])
def test_the_program_is_short(name):
    assert len((HERE / name).read_text().splitlines()) <= 33


def test_finds_the_head_that_python_finds(experiment):
    lines = run(experiment, MODEL).splitlines()
    assert re.fullmatch(r"VERIFIED: \d+ elements at \d+ points compared with float64, all within their bounds", lines[0])
    model = lens.HookedTransformer.from_pretrained("tiny-ioi")
    clean, corrupted = ("When John and Mary went to the store, %s gave the bag to" % name for name in ("John", "Mary"))
    grid = lens.patching.patch_grid(model, clean, corrupted, "z", over=("layer", "head"), metric=lens.LogitDiff(" Mary", " John"))
    assert lines[1] == f"clean {grid.clean:+.2f}, corrupted {grid.corrupted:+.2f}"
    wanted = [f"layer {l}, head {h} restores {grid.normalized[l, h]:.2f}" for l, h in (grid.normalized > 0.1).nonzero().tolist()]
    assert wanted and lines[2:] == wanted


def test_a_batch_is_what_python_makes_of_it(experiment, tmp_path):
    lines = run(experiment.parent / "batch", MODEL, tmp_path / "cpp").splitlines()
    assert "shards there; 24 experiments" in lines[0]
    model = lens.HookedTransformer.from_pretrained("tiny-ioi")
    merged = lens.run_experiments(model, lens.tasks.ioi(model, n=24), tmp_path / "python", sites=[("z", ("layer", "head"))]).merge()
    wanted = [f"layer {c['layer']}, head {c['head']}: {c['mean']:+.3f} ({c['low']:+.3f} to {c['high']:+.3f}), n {c['n']}" for c in merged["z"].top]
    assert wanted and lines[1:] == wanted
    # What C++ has done Python does not do again.
    assert lens.run_experiments(model, lens.tasks.ioi(model, n=24), tmp_path / "cpp", sites=[("z", ("layer", "head"))], resume=True)["done"] == 0


def test_the_simulated_device_is_found_where_it_was_installed(experiment):
    said = run(experiment.parent / "on_the_device", MODEL).splitlines()
    assert "simulated" in said[0] and said[1:] == ["blocks.1.hook_mlp_out"]


def test_a_missing_checkpoint_is_an_exception(experiment, tmp_path):
    done = subprocess.run([experiment, tmp_path / "none"], capture_output=True, text=True)
    assert done.returncode != 0 and "none" in done.stderr
