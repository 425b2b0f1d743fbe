"""Peak memory of loading a sharded checkpoint, beyond what is resident before: beside the bytes of the loaded weights.

    python tests/benchmarks/memory_of_loading.py [--layers 8]

A random-weight Llama in float32 or bfloat16, a shard a few layers. Each figure is the kernel's peak of resident memory
(VmHWM) in a fresh process, in which the mapped file counts as well.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import common

SHAPE = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 2000}
CASES = {  # stored, loaded
    "float32 as bfloat16": ("float32", "bfloat16", None),
    "bfloat16 as bfloat16": ("bfloat16", "bfloat16", None),
    "float32 as float32": ("float32", "float32", None),
    "first layer of float32 as bfloat16": ("float32", "bfloat16", 1),
}


def make_sharded_llama(folder: Path, layers: int, stored: str, layers_a_shard: int = 3) -> Path:
    import torch
    from safetensors.torch import save_file

    if (folder / "config.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    d, mlp, kv = SHAPE["hidden_size"], SHAPE["intermediate_size"], 64 * SHAPE["num_key_value_heads"]

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * d**-0.5).to(getattr(torch, stored))

    shards = [{"model.embed_tokens.weight": random(SHAPE["vocab_size"], d), "lm_head.weight": random(SHAPE["vocab_size"], d), "model.norm.weight": random(d)}]
    for layer in range(layers):
        if layer % layers_a_shard == 0:
            shards.append({})
        matrices = {
            "self_attn.q_proj": (d, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, d),
            "mlp.gate_proj": (mlp, d), "mlp.up_proj": (mlp, d), "mlp.down_proj": (d, mlp), "input_layernorm": (d,), "post_attention_layernorm": (d,),
        }  # fmt: skip
        for name, shape in matrices.items():
            shards[-1][f"model.layers.{layer}.{name}.weight"] = random(*shape)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, tensors in zip(files, shards):
        save_file(tensors, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, tensors in zip(files, shards) for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "llama", "num_hidden_layers": layers, "max_position_embeddings": 64, "torch_dtype": stored, **SHAPE}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def measure(folder: str, dtype: str, first_n_layers: int | None) -> None:
    import torch

    import lenscpp

    torch.set_num_threads(1)
    lenscpp.HookedTransformer.from_pretrained("tiny-ioi").run_with_cache([1, 2])
    before = common.start_of_phase()
    model = lenscpp.HookedTransformer.from_pretrained_no_processing(folder, dtype=dtype, first_n_layers=first_n_layers)
    model.digest  # what loading does in the background is done
    peak = common.memory_mib("VmHWM") - before
    held = {name: getattr(model, name) for name in ("W_E", "W_U", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out")}
    weights = sum(w.numel() * w.element_size() for w in held.values()) / common.MIB
    print(json.dumps({"peak_mib": round(peak, 1), "weights_mib": round(weights, 1)}))


def peak(layers: int, case: str, checkpoints: Path) -> dict:
    stored, dtype, first = CASES[case]
    folder = make_sharded_llama(checkpoints / f"llama-{stored}-{layers}", layers, stored)
    arguments = ("--child", str(folder), dtype, str(first or 0))
    return common.in_fresh_process(sys.executable, Path(__file__), *arguments, env=common.threads_env(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--child", nargs=3)
    arguments = parser.parse_args()
    if arguments.child:
        folder, dtype, first = arguments.child
        return measure(folder, dtype, int(first) or None)
    for case in CASES:
        print(case, peak(arguments.layers, case, common.BUILD / "checkpoints"))


if __name__ == "__main__":
    main()
