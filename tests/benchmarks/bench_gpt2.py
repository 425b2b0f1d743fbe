"""Time and peak memory of load, forward, run_with_cache and exact verification at GPT-2 small's shape (random
weights), beside transformer-lens on the same checkpoint.

    python tests/benchmarks/bench_gpt2.py [--peer-python build/golden/bin/python] [--out build/benchmarks]

One process for each library. They are asked in turn, never at the same time, so that what else the machine does
hits both; times are medians of several repetitions after a warm-up, with the fastest beside them. Memory is the
kernel's peak of resident memory (VmHWM), each figure from a fresh process: for loading beyond what the imports
take, for a run beyond what is resident once the model is loaded and has run once on two tokens.
Results: a table on stdout, gpt2.json and gpt2.md in --out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import common

LENGTHS = (15, 64, 256)
# The verified ones last: the ratio that matters is theirs to forward, and both are asked in every round.
OURS = ("forward", "run_with_cache", "verified run_with_cache", "verified forward")
PEERS = ("forward", "run_with_cache")
LOADS = ("load raw", "load processed")
TARGET = 3.5


# ---- the two libraries, each in a process of its own ----


class Ours:
    def __init__(self, folder: str, threads: int) -> None:
        import torch

        import lenscpp

        torch.set_num_threads(threads)
        self.torch, self.library, self.folder = torch, lenscpp, folder
        self.model = None

    def load(self, what: str):
        load = self.library.HookedTransformer.from_pretrained
        model = (self.library.HookedTransformer.from_pretrained_no_processing if what == "load raw" else load)(self.folder)
        _ = model.digest  # computed in the background; the first run would wait for it
        return model

    def prepare(self, length: int):
        return common.tokens_of(length, self.model.cfg.d_vocab)

    def run(self, what: str, tokens):
        verify = "exact" if what.startswith("verified") else "off"
        if what.endswith("run_with_cache"):
            return self.model.run_with_cache(tokens, verify=verify)
        return self.model.forward(tokens, verify=verify)

    def after(self, what: str, result) -> dict:
        """What else is worth knowing of a run: how long the check itself took, what it compared."""
        if what != "verified run_with_cache":
            return {}
        verdict = result[1].verdict
        return {"check_s": verdict.seconds, "compared": verdict.n_compared}

    def versions(self) -> dict:
        return {"lenscpp": self.library.__version__, "torch": self.torch.__version__}


class Peer:
    def __init__(self, folder: str, threads: int) -> None:
        import torch
        import transformer_lens
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.library, self.transformers, self.folder = torch, transformer_lens, transformers, folder
        self.model = None

    def load(self, what: str):
        """As transformer-lens loads a name it knows, but from a folder: its table of names knows no folders."""
        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

        hf = self.transformers.GPT2LMHeadModel.from_pretrained(self.folder, dtype=self.torch.float32)
        c = hf.config
        cfg = HookedTransformerConfig(
            n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, d_head=c.n_embd // c.n_head, n_heads=c.n_head,
            d_mlp=4 * c.n_embd, d_vocab=c.vocab_size, act_fn=c.activation_function, eps=c.layer_norm_epsilon,
            normalization_type="LN", original_architecture="GPT2LMHeadModel", init_weights=False, device="cpu",
        )  # fmt: skip
        model = HookedTransformer(cfg)
        steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
        model.load_and_process_state_dict(convert_gpt2_weights(hf, cfg), **dict.fromkeys(steps, what == "load processed"))
        return model.eval()

    def prepare(self, length: int):
        return self.torch.tensor([common.tokens_of(length, self.model.cfg.d_vocab)])

    def run(self, what: str, tokens):
        return self.model.run_with_cache(tokens) if what == "run_with_cache" else self.model(tokens)

    def after(self, what: str, result) -> dict:
        return {}

    def versions(self) -> dict:
        from importlib.metadata import version

        return {name: version(name) for name in ("transformer-lens", "transformers", "torch")}


def library(name: str, folder: str, threads: int):
    return (Ours if name == "lenscpp" else Peer)(folder, threads)


def serve(name: str, folder: str, threads: int) -> None:
    """Answers one JSON request a line until stdin ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # libraries that print do not disturb the answers
    lib = library(name, folder, threads)
    print(json.dumps(lib.versions()), file=out, flush=True)
    for line in sys.stdin:
        what, length = json.loads(line)
        if what in LOADS:
            lib.model = None
            start = time.perf_counter()
            lib.model = lib.load(what)
            answer = {"s": time.perf_counter() - start}
        elif what == "logits":
            result = lib.run("forward", lib.prepare(length))[0].double().log_softmax(-1)
            answer = {"logits": result[:, :: max(1, result.shape[-1] // 64)].tolist()}
        else:
            tokens = lib.prepare(length)
            start = time.perf_counter()
            result = lib.run(what, tokens)
            answer = {"s": time.perf_counter() - start} | lib.after(what, result)
            del result
        print(json.dumps(answer), file=out, flush=True)


def measure_memory(name: str, folder: str, threads: int, what: str, length: int) -> None:
    lib = library(name, folder, threads)
    before = common.start_of_phase()
    if what in LOADS:
        lib.model = lib.load(what)
        kept = common.memory_mib("VmRSS") - before
    else:
        lib.model = lib.load("load processed")
        lib.run("forward", lib.prepare(2))
        before = common.start_of_phase()
        result = lib.run(what, lib.prepare(length))
        kept = common.memory_mib("VmRSS") - before
        del result
    print(json.dumps({"peak_mib": common.memory_mib("VmHWM") - before, "kept_mib": kept}))


# ---- asking them in turn ----


class Worker:
    def __init__(self, python: str, name: str, folder: Path, threads: int) -> None:
        command = [python, __file__, "--serve", name, "--checkpoint", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=common.threads_env(threads)
        )
        self.python, self.name = python, name
        self.versions = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self.name} ended with status {self.process.wait()}: run it with --serve {self.name} to see why")
        return json.loads(line)

    def ask(self, what: str, length: int = 0) -> dict:
        self.process.stdin.write(json.dumps([what, length]) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def summary(answers: list[dict]) -> dict:
    times = [a["s"] for a in answers]
    row = {"median_ms": 1000 * statistics.median(times), "fastest_ms": 1000 * min(times), "repetitions": len(times)}
    if "check_s" in answers[0]:
        row["check_median_ms"] = 1000 * statistics.median(a["check_s"] for a in answers)
        row["compared"] = answers[0]["compared"]
    return row


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(args: argparse.Namespace, folder: Path) -> dict:
    results: dict = {"machine": common.machine(), "threads": args.threads, "shape": common.GPT2_SMALL, "versions": {}, "time": {}, "memory": {}}
    workers = [Worker(sys.executable, "lenscpp", folder, args.threads)]
    if args.peer_python:
        workers.append(Worker(args.peer_python, "transformer-lens", folder, args.threads))
    for worker in workers:
        results["versions"][worker.name] = worker.versions
        results["time"][worker.name] = {}

    for what in LOADS:  # processed last: what follows runs on that
        answers = {worker.name: [] for worker in workers}
        for _ in range(args.load_repetitions):
            for worker in workers:
                answers[worker.name].append(worker.ask(what))
        for worker in workers:
            results["time"][worker.name][what] = summary(answers[worker.name])
            say(f"{worker.name} {what}: {results['time'][worker.name][what]['median_ms']:.0f} ms")

    if len(workers) == 2:
        a, b = (worker.ask("logits", 15)["logits"] for worker in workers)
        difference = max(abs(x - y) for row, other in zip(a, b) for x, y in zip(row, other))
        results["largest_difference_of_log_probabilities_nats"] = difference
        if not difference < 1e-3:
            raise RuntimeError(f"the two libraries do not compute the same model: log-probabilities differ by {difference}")

    for length in args.lengths:
        jobs = [(worker, what) for what in OURS for worker in workers if worker.name == "lenscpp" or what in PEERS]
        answers = {(worker.name, what): [] for worker, what in jobs}
        for worker, what in jobs:
            worker.ask(what, length)  # warm-up
        for _ in range(args.repetitions):
            for worker, what in jobs:
                answers[worker.name, what].append(worker.ask(what, length))
        for worker, what in jobs:
            row = results["time"][worker.name][f"{what}, T={length}"] = summary(answers[worker.name, what])
            say(f"{worker.name} {what}, T={length}: {row['median_ms']:.1f} ms")
    for worker in workers:
        worker.close()

    if not args.no_memory:
        for worker in workers:
            memory = results["memory"][worker.name] = {}
            jobs = [(what, 0) for what in LOADS]
            jobs += [(what, length) for length in args.lengths for what in (OURS if worker.name == "lenscpp" else PEERS)]
            for what, length in jobs:
                name = f"{what}, T={length}" if length else what
                memory[name] = common.in_fresh_process(
                    worker.python, Path(__file__), "--memory", worker.name, what, str(length), "--checkpoint", str(folder),
                    "--threads", str(args.threads), env=common.threads_env(args.threads),
                )  # fmt: skip
                say(f"{worker.name} {name}: peak {memory[name]['peak_mib']:.0f} MiB")
    results["machine"]["load_average_at_end"] = common.machine()["load_average_at_start"]
    results["ratios"] = ratios(results["time"]["lenscpp"], args.lengths)
    return results


def ratios(ours: dict, lengths: list[int]) -> dict:
    """Of medians, and of the fastest repetitions: those that the machine disturbed least."""
    table = {}
    for length in lengths:
        forward, verified = ours[f"forward, T={length}"], ours[f"verified forward, T={length}"]
        table[f"T={length}"] = {
            "verified forward / forward": verified["median_ms"] / forward["median_ms"],
            "of the fastest": verified["fastest_ms"] / forward["fastest_ms"],
            "check alone / forward": ours[f"verified run_with_cache, T={length}"]["check_median_ms"] / forward["median_ms"],
        }
    return table


def markdown(results: dict) -> str:
    time_, memory, m = results["time"], results["memory"], results["machine"]
    peer = "transformer-lens" in time_
    lines = [
        f"GPT-2 small's shape, random weights, float32, {results['threads']} threads on {m['processor']} ({m['processors']} processors, "
        f"load average {m['load_average_at_start'][0]} at start, {m['load_average_at_end'][0]} at end). Versions: "
        + "; ".join(", ".join(f"{k} {v}" for k, v in versions.items()) for versions in results["versions"].values())
        + ".",
        "",
        "| | lenscpp ms (fastest) | transformer-lens ms (fastest) | ratio of medians | lenscpp peak MiB | transformer-lens peak MiB |",
        "|---|---|---|---|---|---|",
    ]

    def cell(library: str, name: str) -> str:
        row = time_.get(library, {}).get(name)
        return f"{row['median_ms']:.1f} ({row['fastest_ms']:.1f})" if row else "-"

    def peak(library: str, name: str) -> str:
        row = memory.get(library, {}).get(name)
        return f"{row['peak_mib']:.0f}" if row else "-"

    for name, row in time_["lenscpp"].items():
        other = time_["transformer-lens"].get(name) if peer else None
        ratio = f"{row['median_ms'] / other['median_ms']:.2f}" if other else "-"
        cells = (name, cell("lenscpp", name), cell("transformer-lens", name), ratio, peak("lenscpp", name), peak("transformer-lens", name))
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Exact verification, target: at most {TARGET} times the forward.",
        "",
        "| | verified forward / forward | of the fastest | check alone / forward | |",
        "|---|---|---|---|---|",
    ]
    for length, row in results["ratios"].items():
        verdict = "met" if row["verified forward / forward"] <= TARGET else "missed"
        lines.append(f"| {length} | " + " | ".join(f"{value:.2f}" for value in row.values()) + f" | {verdict} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", help="interpreter of an environment with transformer-lens; without it ours alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--load-repetitions", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--checkpoint", help="folder of the checkpoint; made where it is missing")
    parser.add_argument("--out", type=Path, default=common.BUILD)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.serve, args.checkpoint, args.threads)
    if args.memory:
        name, what, length = args.memory
        return measure_memory(name, args.checkpoint, args.threads, what, int(length))
    folder = common.make_checkpoint(Path(args.checkpoint) if args.checkpoint else common.BUILD / "gpt2-small-shape", common.GPT2_SMALL)
    results = measure(args, folder)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpt2.json").write_text(json.dumps(results, indent=1) + "\n")
    table = markdown(results)
    (args.out / "gpt2.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
