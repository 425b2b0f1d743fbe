"""What the benchmarks share: checkpoints of random weights, memory as the kernel counts it, the state of the machine."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "benchmarks"
MIB = 2**20

GPT2_SMALL = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024, "vocab_size": 50257}


def make_checkpoint(folder: Path, shape: dict[str, int], seed: int = 20240601) -> Path:
    """A GPT-2 of random float32 weights in Hugging Face's format, unless it is there already.

    Scores come out with a standard deviation of about 1.2, so that attention is neither uniform nor one-hot, and
    logits with about 2.8, whatever d_model is.
    """
    import numpy as np

    config = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "torch_dtype": "float32",
        "n_inner": None,
        **shape,
    }
    done = folder / "config.json"
    if done.is_file() and json.loads(done.read_text()) == config and (folder / "model.safetensors").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    d, layers = shape["n_embd"], shape["n_layer"]
    unit = d**-0.5  # weights of this scale keep the variance of their input
    tensors: list[tuple[str, tuple[int, ...], float, float]] = [  # name, shape, mean, standard deviation
        ("wte.weight", (shape["vocab_size"], d), 0.0, 2.8 * unit),
        ("wpe.weight", (shape["n_positions"], d), 0.0, 1.4 * unit),
    ]
    for l in range(layers):
        block = f"h.{l}."
        tensors += [
            (block + "ln_1.weight", (d,), 1.0, 0.1),
            (block + "ln_1.bias", (d,), 0.0, 0.1),
            (block + "attn.c_attn.weight", (d, 3 * d), 0.0, 1.1 * unit),
            (block + "attn.c_attn.bias", (3 * d,), 0.0, 0.1),
            (block + "attn.c_proj.weight", (d, d), 0.0, 0.4 * unit),
            (block + "attn.c_proj.bias", (d,), 0.0, 0.02),
            (block + "ln_2.weight", (d,), 1.0, 0.1),
            (block + "ln_2.bias", (d,), 0.0, 0.1),
            (block + "mlp.c_fc.weight", (d, 4 * d), 0.0, unit),
            (block + "mlp.c_fc.bias", (4 * d,), 0.0, 0.1),
            (block + "mlp.c_proj.weight", (4 * d, d), 0.0, 0.3 * unit),
            (block + "mlp.c_proj.bias", (d,), 0.0, 0.02),
        ]
    tensors += [("ln_f.weight", (d,), 1.0, 0.1), ("ln_f.bias", (d,), 0.0, 0.1)]

    header: dict[str, dict] = {}
    end = 0
    for name, extents, _, _ in tensors:
        begin, end = end, end + 4 * int(np.prod(extents))
        header["transformer." + name] = {"dtype": "F32", "shape": list(extents), "data_offsets": [begin, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(seed)
    partial = folder / "model.safetensors.partial"
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, extents, mean, deviation in tensors:
            file.write((mean + deviation * random.standard_normal(extents, dtype=np.float32)).astype(np.float32).tobytes())
    partial.rename(folder / "model.safetensors")
    done.write_text(json.dumps(config, indent=1))
    return folder


def tokens_of(count: int, vocab: int, seed: int = 7) -> list[int]:
    import numpy as np

    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


# ---- memory ----


def memory_mib(field: str) -> float:
    """VmHWM (peak of the resident memory) or VmRSS (now) of this process, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {field}: memory is measured on Linux only")


def start_of_phase() -> float:
    """Returns what was freed to the system, sets the peak back to what is resident now, and returns that."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mib("VmRSS")


def in_fresh_process(python: str, script: Path, *arguments: str, env: dict[str, str] | None = None) -> dict:
    """What a child prints as the last line of its output, from JSON."""
    done = subprocess.run([python, str(script), *arguments], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join([script.name, *arguments])}: exit status {done.returncode}\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def threads_env(threads: int) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}


# ---- the machine ----


class OtherLoad:
    """How much of the processors others took since it was made: threads that wait for each other make a shared one misleading."""

    def __init__(self) -> None:
        self.start = self._now()

    def share(self) -> float:
        """Of all processors' time, without this process and the children that it has waited for."""
        elapsed, busy, own = (now - then for now, then in zip(self._now(), self.start))
        return max(0.0, busy - own) / (elapsed * (os.cpu_count() or 1))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Seconds: of the clock, of processors that were not idle, of our own."""
        user, nice, system, idle, iowait, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
        busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
        return time.monotonic(), busy, sum(os.times()[:4])


def machine() -> dict:
    """What the figures depend on. The load is the kernel's average over 1, 5 and 15 minutes."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    try:
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    except OSError:
        commit = ""
    return {
        "processor": model or platform.machine(),
        "processors": os.cpu_count(),
        "load_average_at_start": [round(x, 2) for x in os.getloadavg()],
        "python": sys.version.split()[0],
        "commit": commit,
    }
