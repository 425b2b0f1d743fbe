"""Peak memory beyond the weights of a verified run, by number of layers: with a filter for one site, which must not
grow with depth, and without one.

    python tests/benchmarks/memory_by_depth.py [--layers 4 8 16 24 48] [--out build/benchmarks]

A narrow random-weight GPT-2 over a context long enough that activations outweigh everything else. Each figure is
the kernel's peak of resident memory (VmHWM) in a fresh process, beyond what is resident once the model is loaded
and has run once on two tokens. Writes memory_by_depth.json and memory_by_depth.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import common

SHAPE = {"n_head": 4, "n_embd": 64, "n_positions": 512, "vocab_size": 257}
KINDS = ("one site kept", "everything kept")


def measure(folder: str, kind: str, length: int) -> None:
    import torch

    import lenscpp

    torch.set_num_threads(1)
    model = lenscpp.HookedTransformer.from_pretrained(folder)
    tokens = common.tokens_of(length, model.cfg.d_vocab)
    middle = f"blocks.{model.cfg.n_layers // 2}.hook_resid_pre"
    names_filter = {"one site kept": middle, "everything kept": None}[kind]
    model.run_with_cache(tokens[:2], names_filter=names_filter)
    before = common.start_of_phase()
    _, cache = model.run_with_cache(tokens, names_filter=names_filter)
    print(json.dumps({"peak_mib": common.memory_mib("VmHWM") - before, "kept": len(cache), "compared": cache.verdict.n_compared}))


def peak(layers: int, kind: str, length: int, checkpoints: Path) -> dict:
    folder = common.make_checkpoint(checkpoints / f"narrow-{layers}-layers", {"n_layer": layers, **SHAPE})
    arguments = ("--child", str(folder), kind, "--length", str(length))
    # One arena of the allocator: what a loading thread frees in another is not there for the run. The least of three:
    # chance only adds.
    env = {**common.threads_env(1), "MALLOC_ARENA_MAX": "1"}
    return min((common.in_fresh_process(sys.executable, Path(__file__), *arguments, env=env) for _ in range(3)), key=lambda found: found["peak_mib"])


def plot(rows: list[dict], width: int = 640, height: int = 400) -> str:
    """A line a kind over the number of layers, as SVG: nothing need be installed for it."""
    left, bottom, top, right = 70, 50, 40, 20
    most_layers = max(row["layers"] for row in rows)
    most_mib = max(row["peak_mib"] for row in rows) * 1.05

    def x(layers: float) -> float:
        return left + (width - left - right) * layers / most_layers

    def y(mib: float) -> float:
        return height - bottom - (height - top - bottom) * mib / most_mib

    text = 'font-family="sans-serif" font-size="12" fill="#222"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{left}" y="22" {text}>Peak memory beyond the weights of a verified run, MiB</text>',
        f'<path d="M {left} {top} V {height - bottom} H {width - right}" fill="none" stroke="#222"/>',
        f'<text x="{width / 2}" y="{height - 12}" {text}>layers</text>',
    ]
    step = 10 ** (len(str(int(most_mib))) - 1)
    for mib in range(0, int(most_mib) + 1, max(step, 1)):
        out.append(f'<text x="{left - 8}" y="{y(mib) + 4:.1f}" text-anchor="end" {text}>{mib}</text>')
        out.append(f'<path d="M {left} {y(mib):.1f} H {width - right}" stroke="#ddd"/>')
    for layers in sorted({row["layers"] for row in rows}):
        out.append(f'<text x="{x(layers):.1f}" y="{height - bottom + 18}" text-anchor="middle" {text}>{layers}</text>')
    for kind, colour in zip(KINDS, ("#0072b2", "#d55e00")):
        points = [(x(row["layers"]), y(row["peak_mib"])) for row in rows if row["kind"] == kind]
        out.append(f'<polyline points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in points)}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        a, b = points[-1]
        out.append(f'<text x="{a:.1f}" y="{b - 8:.1f}" text-anchor="end" {text}>{kind}</text>')
    return "\n".join(out) + "\n</svg>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16, 24, 48])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--out", type=Path, default=common.BUILD)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return measure(*args.child, args.length)
    rows = []
    print(f"{'layers':>6}  " + "  ".join(f"{kind:>16}" for kind in KINDS) + "   MiB")
    for layers in args.layers:
        for kind in KINDS:
            rows.append({"layers": layers, "kind": kind, **peak(layers, kind, args.length, args.out)})
        print(f"{layers:6}  " + "  ".join(f"{row['peak_mib']:16.1f}" for row in rows[-len(KINDS) :]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    results = {"machine": common.machine(), "shape": SHAPE, "length": args.length, "rows": rows}
    (args.out / "memory_by_depth.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "memory_by_depth.svg").write_text(plot(rows))


if __name__ == "__main__":
    main()
