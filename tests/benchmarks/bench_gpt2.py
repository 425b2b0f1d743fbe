"""lenscpp beside transformer-lens at GPT-2 small's shape (random weights): runs, grids of patches, loading, growth.

    python tests/benchmarks/bench_gpt2.py [--quick] [--full] [--peer-python build/golden/bin/python] [--into README.md]

One process for each library and one for the machine's own limits. They are asked in turn, never at the same time, so
that what else the machine does hits all of them; ratios are of the answers of one round, then the median over rounds.
Every patch costs transformer-lens a forward pass, whatever the prompts are: of its grids each round runs some patches,
drawn anew, and scales their time to all; --full also runs the two headline grids whole, once (six minutes).
Memory is the kernel's peak of resident memory (VmHWM), each figure from a fresh process: for loading beyond what the
imports take, for the rest beyond what is resident once the model is loaded and has run once on two tokens.
Results in --out: gpt2.json (every round), gpt2.txt (every row), gpt2.md (as README.md carries it), growth.html and,
where chromium is installed, growth.png. --into replaces the README's part and its picture.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import bench_plots
import bench_report
import bench_work
import common

SERVER = Path(__file__).with_name("bench_workers.py")
PICTURE = "notebooks/pictures/growth.png"  # from the README
OTHER_ROUNDS, LONG_S = 3, 5.0  # of the grids beside the headline ones: one round where it takes us so many seconds
LOADS = {"raw": False, "processed": True}


@dataclass(frozen=True)
class Size:
    """How much is done."""

    shape: dict[str, int]
    rounds: dict[int, int]  # of runs, by tokens
    pair_length: int
    grid_rounds: int
    sampled: dict[str, int]  # transformer-lens's patches a round, an equal number of each pair of prompts
    sampled_of_others: int
    load_rounds: int
    import_rounds: int
    layers: tuple[int, ...]  # of the models in the plots
    growth_length: int
    growth_rounds: int


FULL = Size(
    shape=common.GPT2_SMALL, rounds={15: 15, 32: 5, 64: 15, 128: 5, 256: 9, 512: 5, 1024: 5}, pair_length=15, grid_rounds=5,
    sampled={"resid_pre": 12, "attn_head_out_by_pos": 24}, sampled_of_others=8, load_rounds=7, import_rounds=7,
    layers=(1, 2, 4, 8, 12), growth_length=64, growth_rounds=3,
)  # fmt: skip
QUICK = Size(
    shape={"n_layer": 2, "n_head": 2, "n_embd": 64, "n_positions": 64, "vocab_size": 500}, rounds={15: 3, 64: 2}, pair_length=15, grid_rounds=2,
    sampled={"resid_pre": 3, "attn_head_out_by_pos": 3}, sampled_of_others=2, load_rounds=2, import_rounds=1,
    layers=(1, 2), growth_length=15, growth_rounds=1,
)  # fmt: skip


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def environment(threads: int) -> dict[str, str]:
    """As users have it: what `make` sets for tests that run side by side would slow both libraries down."""
    return {name: value for name, value in common.threads_env(threads).items() if name != "OMP_WAIT_POLICY"}


class Worker:
    """A library in a process of its own, with one checkpoint."""

    def __init__(self, python: str, name: str, folder: Path, threads: int) -> None:
        self.name, self.python, self.arguments = name, python, (name, str(folder), str(threads))
        self.environment, self.errors = environment(threads), tempfile.TemporaryFile("w+")
        command = [python, str(SERVER), "serve", *self.arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=self.environment
        )
        self.hello = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"the process of {self.name} ended with status {status}:\n{self.errors.read()[-3000:]}")
        return json.loads(line)

    def ask(self, op: str, **request) -> dict:
        self.process.stdin.write(json.dumps({"op": op, **request}) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def seconds(self, op: str, **request) -> float:
        return self.ask(op, **request)["s"]

    def peak_mib(self, op: str, **request) -> float:
        """In a fresh process."""
        arguments = ("memory", *self.arguments, json.dumps({"op": op, **request}))
        return common.in_fresh_process(self.python, SERVER, *arguments, env=self.environment)["peak_mib"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


class Bench:
    """Measurements of one run; results is what goes into the JSON."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.size = args, limited(QUICK if args.quick else FULL, args.rounds)
        self.random, self.others = random.Random(20240601), common.OtherLoad()
        self.folder = self.checkpoint(self.size.shape["n_layer"])
        self.ours, self.peer = self.pair_of_workers(self.folder)
        self.machine = Worker(sys.executable, "machine", self.folder, args.threads)
        workers = (self.ours, self.peer, self.machine)
        self.modes, grid_mode = self.ours.hello["modes"], self.ours.hello["grid_mode"]
        self.rows: dict[str, bench_report.Row] = {}
        self.memory: dict[str, float] = {}
        self.growth: list[dict] = []
        self.results: bench_report.Results = {
            "kind": "quick" if args.quick else "full", "machine": common.machine(), "threads": args.threads, "shape": self.size.shape,
            "versions": {worker.name: worker.hello["versions"] for worker in workers}, "modes": self.modes, "grid_mode": grid_mode,
            "weights_mib": (self.folder / "model.safetensors").stat().st_size / common.MIB, "pair_length": self.size.pair_length,
            "sampled": self.size.sampled, "n_patches": {grid: self.n_patches(grid) for grid in bench_work.GRIDS},
            "rows": self.rows, "memory": self.memory, "growth": self.growth, "growth_length": self.size.growth_length,
        }  # fmt: skip

    # ---- what is asked ----

    def checkpoint(self, layers: int) -> Path:
        # Named by what it is, so that a quick run does not overwrite the large ones.
        shape = {**self.size.shape, "n_layer": layers}
        return common.make_checkpoint(self.args.out / "checkpoints" / "-".join(map(str, shape.values())), shape)

    def pair_of_workers(self, folder: Path) -> tuple[Worker, Worker]:
        return Worker(sys.executable, "lenscpp", folder, self.args.threads), Worker(self.args.peer_python, "transformer-lens", folder, self.args.threads)

    def n_patches(self, grid: str) -> int:
        return bench_work.n_patches(grid, self.size.shape, self.size.pair_length)

    def row(self, row_name: str, row: bench_report.Row) -> None:
        self.rows[row_name] = row
        say(f"{row_name}: {bench_report.judged(row)}")

    def compared(self, row_name: str, ours: list[float], theirs: list[float], **more) -> None:
        self.row(row_name, bench_report.compared(row_name, ours, theirs, **more))

    def of_rounds(self, row_name: str, unit: str, values: list[float], **more) -> None:
        self.row(row_name, bench_report.of_rounds(row_name, unit, values, **more))

    # ---- the measurements, in order ----

    def loads(self) -> None:
        """Processed last: what follows runs on that."""
        for what, processed in LOADS.items():
            ours, theirs = [], []
            for _ in range(self.size.load_rounds):
                theirs.append(self.peer.seconds("load", processed=processed))
                ours.append(self.ours.ask("load", processed=processed))
            self.compared(f"load {what}", [a["s"] for a in ours], theirs)
            self.compared(f"load {what}, until its digest is there", [a["s"] + a["digest_s"] for a in ours], theirs)

    def same_model(self) -> None:
        a, b = (worker.ask("logits", length=self.size.pair_length)["logits"] for worker in (self.ours, self.peer))
        difference = max(abs(x - y) for row, other in zip(a, b) for x, y in zip(row, other))
        self.results["largest_difference_of_log_probabilities_nats"] = difference
        if not difference < 1e-3:
            raise RuntimeError(f"the two libraries do not compute the same model: log-probabilities differ by {difference}")

    def runs(self) -> None:
        for length, rounds in self.size.rounds.items():
            jobs = [(op, mode) for op in ("run_with_cache", "forward") for mode in ("transformer-lens", *self.modes)]
            answers: dict[tuple[str, str], list[dict]] = {job: [] for job in jobs}
            for round_ in range(rounds + 1):  # the first one warms up
                for op, mode in jobs:
                    worker, verify = (self.peer, {}) if mode == "transformer-lens" else (self.ours, {"verify": mode})
                    answer = worker.ask(op, length=length, **verify)
                    answers[op, mode] += [answer] if round_ else []
            s = {job: [answer["s"] for answer in found] for job, found in answers.items()}
            for op, mode in jobs:
                if mode != "transformer-lens":
                    self.compared(f"{op}, {mode}, T={length}", s[op, mode], s[op, "transformer-lens"])
            for mode in self.modes[1:]:
                check = [answer["check_s"] for answer in answers["run_with_cache", mode]]
                alone = [a / b for a, b in zip(check, s["forward", "off"])]
                compared = answers["run_with_cache", mode][0]["compared"]
                self.of_rounds(f"check alone, {mode}, T={length}", "share", alone, check_s=median(check), compared=compared)
                self.of_rounds(f"check adds, {mode}, T={length}", "share", bench_report.added(s["forward", mode], s["forward", "off"]))

    def their_grid(self, peer: Worker, grid: str, shape: dict[str, int], pair: str, sampled: int) -> tuple[float, list[int], list[float]]:
        """Some cells of a grid: seconds scaled to all, the cells, their values."""
        length = self.size.pair_length
        n = bench_work.n_patches(grid, shape, length)
        cells = sorted(self.random.sample(range(n), min(sampled, n)))
        answer = peer.ask("grid", grid=grid, pair=pair, length=length, cells=cells)
        return answer["s"] * n / len(cells), cells, answer["values"]

    def our_grid(self, ours: Worker, grid: str, pair: str, verify: str | None) -> dict:
        return ours.ask("grid", grid=grid, pair=pair, length=self.size.pair_length, verify=verify)

    def same_cells(self, grid: str, values: list[float], cells: list[int], theirs: list[float]) -> None:
        if len(bench_work.GRIDS[grid]) > 1:
            return  # of several parts, each of which is a grid of its own
        difference = max(abs(values[cell] - their) for cell, their in zip(cells, theirs))
        allowed = 1e-3 * (max(values) - min(values)) + 1e-4
        if not difference <= allowed:
            raise RuntimeError(f"{grid}: cells differ from transformer-lens's by up to {difference} logits; rounding explains {allowed}")

    def headline_grids(self) -> None:
        """With the machine's limits in every round, so that a share of them is of one round as well."""
        size, pairs = self.size, bench_work.PAIRS
        loops: dict[str, list[float]] = {"all": [], "last": []}
        rates: dict[str, list[float]] = {"packed": [], "linear": [], "copy": []}
        theirs: dict[str, list[float]] = {grid: [] for grid in bench_work.HEADLINE}
        ours: dict[tuple[str, str, str | None], list[float]] = {
            (grid, pair, verify): [] for grid in bench_work.HEADLINE for pair in pairs for verify in (None, "off")
        }
        last: dict[str, list[float]] = {}  # of pair C, which comes last
        for pair in pairs:  # warm up: each has a clean run to make
            self.their_grid(self.peer, "resid_pre", size.shape, pair, 1)
            self.our_grid(self.ours, "resid_pre", pair, None)
        for _ in range(size.grid_rounds):
            rates["packed"].append(self.machine.ask("product", packed=True)["rate"])
            rates["linear"].append(self.machine.ask("product", packed=False)["rate"])
            rates["copy"].append(self.machine.ask("copy")["rate"])
            for grid in bench_work.HEADLINE:
                of_pairs = []
                for pair in pairs:
                    seconds, cells, values = self.their_grid(self.peer, grid, size.shape, pair, size.sampled[grid] // len(pairs))
                    of_pairs.append(seconds)
                    for verify in (None, "off"):
                        answer = self.our_grid(self.ours, grid, pair, verify)
                        self.same_cells(grid, answer["values"], cells, values)
                        ours[grid, pair, verify].append(answer["s"])
                        last[grid] = answer["values"]
                # Its cost does not depend on the pair: a round's patches of all three are one sample.
                theirs[grid].append(mean(of_pairs))
            for unembed, found in loops.items():
                answer = self.peer.ask("batched_loop", pair="C", length=size.pair_length, unembed=unembed)
                self.same_cells("resid_pre", last["resid_pre"], list(range(len(answer["values"]))), answer["values"])
                found.append(answer["s"])
        self.results["limits"] = {kind: median(values) for kind, values in rates.items()}
        self.results["limits_rounds"] = rates
        for grid in bench_work.HEADLINE:
            for pair in pairs:
                verified, unverified = ours[grid, pair, None], ours[grid, pair, "off"]
                self.compared(f"grid {grid}, {pair}", verified, theirs[grid])
                self.compared(f"grid {grid}, {pair}, unverified", unverified, theirs[grid])
                self.of_rounds(f"check adds, grid {grid}, {pair}", "share", bench_report.added(verified, unverified))
        for unembed, found in loops.items():
            self.compared(f"batched loop, {unembed} position{'s' if unembed == 'all' else ''} unembedded", ours["resid_pre", "C", None], found)
        for name, whole in {"sweep, share of the product rate": False, "sweep, the same with the last layer counted whole": True}.items():
            flops = bench_work.sweep_flops(size.shape, size.pair_length, whole)
            self.of_rounds(name, "share", [flops / s / rate for s, rate in zip(ours["resid_pre", "C", "off"], rates["packed"])], flops=flops)

    def whole_grids(self) -> None:
        """The two headline grids by transformer-lens's own functions, once: are the estimates right?"""
        self.results["whole"] = {}
        for grid in bench_work.HEADLINE:
            row = {"whole_s": self.peer.seconds("grid", grid=grid, pair="C", length=self.size.pair_length, cells=None), "estimated_s": self.rows[f"grid {grid}, C"]["theirs_s"]}
            self.results["whole"][grid] = row
            say(f"transformer-lens, {grid}: {row['whole_s']:.2f} s whole, {row['estimated_s']:.2f} s estimated")

    def other_grids(self) -> None:
        for grid in bench_work.GRIDS:
            if grid not in bench_work.HEADLINE:
                ours, theirs = [], []
                while len(ours) < (1 if sum(ours) > LONG_S else OTHER_ROUNDS):
                    seconds, cells, values = self.their_grid(self.peer, grid, self.size.shape, "C", self.size.sampled_of_others)
                    answer = self.our_grid(self.ours, grid, "C", None)
                    self.same_cells(grid, answer["values"], cells, values)
                    ours.append(answer["s"])
                    theirs.append(seconds)
                self.compared(f"grid {grid}, C", ours, theirs)

    def shares_of_possible(self) -> None:
        """What the machine would need at its measured best, as a share of what was needed: 1 is the end of the road."""
        shape, limits = self.size.shape, self.results["limits"]
        for length in self.size.rounds:
            weights, flops = bench_work.weight_bytes(shape), bench_work.forward_flops(shape, length)
            for op, moved in (("forward", weights), ("run_with_cache", weights + bench_work.cache_bytes(shape, length))):
                row = self.rows[f"{op}, off, T={length}"]
                row["share_of_possible"] = bench_work.least_seconds(flops, moved, limits) / row["ours_s"]
        for what in LOADS:  # every byte copied once: read and written
            row = self.rows[f"load {what}"]
            row["share_of_possible"] = bench_work.least_seconds(0, 2 * self.results["weights_mib"] * common.MIB, limits) / row["ours_s"]

    def growth_with_layers(self) -> None:
        length = self.size.growth_length
        for layers in self.size.layers:
            shape, folder = {**self.size.shape, "n_layer": layers}, self.checkpoint(layers)
            ours, peer = self.pair_of_workers(folder)
            for worker in (ours, peer):
                worker.ask("load", processed=True)
            for round_ in range(self.size.growth_rounds + 1):  # the first one warms up
                found = {("layers", layers, mode): ours.seconds("run_with_cache", length=length, verify=mode) for mode in self.modes}
                found["layers", layers, "transformer-lens"] = peer.seconds("run_with_cache", length=length)
                for grid in bench_work.HEADLINE:
                    patches = bench_work.n_patches(grid, shape, self.size.pair_length)
                    found[grid, patches, "transformer-lens"] = self.their_grid(peer, grid, shape, "C", self.size.sampled_of_others)[0]
                    found[grid, patches, "off"] = self.our_grid(ours, grid, "C", "off")["s"]
                    found[grid, patches, "verified"] = self.our_grid(ours, grid, "C", None)["s"]
                self.add_growth(found if round_ else {})
            for point in self.growth:
                if (point["axis"], point["at"]) in {(axis, at) for axis, at, _ in found}:
                    point["peak_mib"] = self.peak_of(point, ours, peer)
            ours.close()
            peer.close()
            say(f"growth: {layers} layers done")

    def add_growth(self, found: dict[tuple[str, int, str], float]) -> None:
        """axis: tokens, layers, or a grid, over whose patches it goes; kind: transformer-lens, a mode or verified."""
        for (axis, at, kind), seconds in found.items():
            point = next((p for p in self.growth if (p["axis"], p["at"], p["kind"]) == (axis, at, kind)), None)
            if point is None:
                self.growth.append(point := {"axis": axis, "at": at, "kind": kind, "rounds_s": []})
            point["rounds_s"].append(seconds)
            point["s"] = median(point["rounds_s"])

    def peak_of(self, point: dict, ours: Worker, peer: Worker) -> float:
        theirs = point["kind"] == "transformer-lens"
        worker, length = peer if theirs else ours, self.size.pair_length
        if point["axis"] in bench_work.GRIDS:
            # Patches one after another: as much for one as for all.
            more = {"cells": [0]} if theirs else {"verify": None if point["kind"] == "verified" else "off"}
            return worker.peak_mib("grid", grid=point["axis"], pair="C", length=length, **more)
        length = point["at"] if point["axis"] == "tokens" else self.size.growth_length
        return worker.peak_mib("run_with_cache", length=length, **({} if theirs else {"verify": point["kind"]}))

    def growth_with_tokens(self) -> None:
        """Times as measured already; peaks, which the table shows as well."""
        for length in self.size.rounds:
            rows = {mode: self.rows[f"run_with_cache, {mode}, T={length}"] for mode in self.modes}
            found = {("tokens", length, mode): row["ours_s"] for mode, row in rows.items()}
            self.add_growth(found | {("tokens", length, "transformer-lens"): rows["off"]["theirs_s"]})
        for point in self.growth:
            if point["axis"] == "tokens":
                point["peak_mib"] = self.memory[f"{point['kind']}, run_with_cache, T={point['at']}"] = self.peak_of(point, self.ours, self.peer)
        say("growth: tokens done")

    def other_memory(self) -> None:
        for what, processed in LOADS.items():
            for worker in (self.ours, self.peer):
                self.memory[f"{worker.name}, load {what}"] = worker.peak_mib("load", processed=processed)
            peak = self.memory[f"lenscpp, load {what}"]
            self.of_rounds(f"peak of load {what}", "weights", [peak / self.results["weights_mib"]], theirs=self.memory[f"transformer-lens, load {what}"] / self.results["weights_mib"])
        for point in self.growth:
            if point["axis"] in bench_work.GRIDS and point["at"] == self.n_patches(point["axis"]):
                self.memory[f"{point['kind']}, grid {point['axis']}"] = point["peak_mib"]

    def imports(self) -> None:
        """Whole processes: what importing the library adds to importing torch."""

        def seconds(python: str, modules: str) -> float:
            start = time.perf_counter()
            subprocess.run([python, "-c", f"import {modules}"], check=True, capture_output=True, env=environment(self.args.threads), cwd=self.args.out)
            return time.perf_counter() - start

        ours, theirs = [], []
        for round_ in range(self.size.import_rounds + 1):  # the first one brings the files into memory
            added = [seconds(python, f"torch, {library}") - seconds(python, "torch") for python, library in ((sys.executable, "lenscpp"), (self.args.peer_python, "transformer_lens"))]
            ours += added[:1] if round_ else []
            theirs += added[1:] if round_ else []
        self.of_rounds("import", "s", ours, theirs_s=median(theirs))

    def measure(self) -> bench_report.Results:
        self.loads()
        self.same_model()
        self.runs()
        self.headline_grids()
        self.shares_of_possible()
        self.other_grids()
        if self.args.full:
            self.whole_grids()
        self.growth_with_tokens()
        self.growth_with_layers()
        self.other_memory()
        self.imports()
        for worker in (self.ours, self.peer, self.machine):
            worker.close()
        self.results["machine"]["others_share"] = self.others.share()
        return self.results


def limited(size: Size, most: int) -> Size:
    """The same with at most so many repetitions of anything."""
    counts = {name: min(getattr(size, name), most) for name in ("grid_rounds", "load_rounds", "import_rounds", "growth_rounds")}
    return replace(size, rounds={length: min(n, most) for length, n in size.rounds.items()}, **counts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds: does everything work?")
    parser.add_argument("--rounds", type=int, default=1000, help="at most so many repetitions of anything; fewer are less steady")
    parser.add_argument("--full", action="store_true", help="also transformer-lens's two headline grids whole")
    parser.add_argument("--peer-python", default=str(common.ROOT / "build/golden/bin/python"), help="interpreter of an environment with transformer-lens 3.9")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--into", type=Path, help="README whose part between the two comments is replaced")
    parser.add_argument("--out", type=Path, default=common.BUILD)
    args = parser.parse_args()
    if not Path(args.peer_python).is_file():
        sys.exit(f"{args.peer_python} is missing: make build/golden/.prepared")
    args.peer_python, args.out = str(Path(args.peer_python).absolute()), args.out.absolute()  # not resolved: an environment's python is a link
    if args.quick and args.into:
        sys.exit("--quick measures another model: its figures are not for a README")
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.time()
    results = Bench(args).measure()
    results["minutes"] = (time.time() - start) / 60
    name = "quick" if args.quick else "gpt2"
    (args.out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    listing = bench_report.listing(results["rows"])
    (args.out / f"{name}.txt").write_text(listing)
    png = bench_plots.draw(results, args.out)
    part = bench_report.markdown(results, PICTURE if png else None)
    (args.out / f"{name}.md").write_text(part, encoding="utf-8")
    if args.into:
        bench_report.put_into_file(args.into, part)
        if png:
            shutil.copy(png, args.into.parent / PICTURE)
    print(listing)


if __name__ == "__main__":
    main()
