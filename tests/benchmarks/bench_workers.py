"""The processes that the benchmark asks: lenscpp, transformer-lens, and the machine's own limits.

    python tests/benchmarks/bench_workers.py serve|memory NAME CHECKPOINT THREADS [REQUEST]

serve answers one JSON request a line until stdin ends; memory answers REQUEST once, with the peak of resident memory.
A library has `prepare`, which makes what a request needs and returns the work to be timed, and `about`, which says what
else is worth knowing of its result. Requests: {"op": "load", "processed"}, {"op": "logits", "length"},
{"op": "forward" | "run_with_cache", "length", "verify"}, {"op": "grid", "grid", "pair", "length", "verify" | "cells"},
{"op": "batched_loop", "pair", "length", "unembed"}, and of the machine {"op": "product", "packed"}, {"op": "copy"}.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import bench_work
import common

Request = dict[str, Any]


class Ours:
    def __init__(self, folder: str, threads: int) -> None:
        import torch

        import lenscpp

        torch.set_num_threads(threads)
        self.torch, self.library, self.folder, self.model = torch, lenscpp, folder, None

    def hello(self) -> dict:
        """Versions; the modes of verification that this build has; the one that its grids take unless told."""
        model, modes = self.library.HookedTransformer.from_pretrained("tiny-ioi"), []
        for mode in ("off", "checksum", "exact"):
            try:
                model.run_with_cache([0], verify=mode)
            except (ValueError, NotImplementedError):
                continue
            modes.append(mode)
        grid = self.library.patching.patch_grid(model, [0, 1], [2, 1], "resid_pre", metric=self.library.LogitDiff(0, 1))
        versions = {"lenscpp": self.library.__version__, "torch": self.torch.__version__}
        return {"versions": versions, "modes": modes, "grid_mode": grid.verdict.mode}

    def prepare(self, request: Request) -> Callable[[], Any]:
        op = request["op"]
        if op == "load":
            self.model = None
            return lambda: self._load(request["processed"])
        if op == "grid":
            return self._grid(request)
        tokens, verify = common.tokens_of(request["length"], self.model.cfg.d_vocab), request.get("verify", "off")
        run = self.model.run_with_cache if op == "run_with_cache" else self.model.forward
        return lambda: run(tokens, verify=verify)

    def _load(self, processed: bool):
        kind = self.library.HookedTransformer
        self.model = (kind.from_pretrained if processed else kind.from_pretrained_no_processing)(self.folder)
        self._clean.cache_clear()
        return self.model

    @cache
    def _clean(self, pair: str, length: int):
        return self.model.run_with_cache(bench_work.prompts(pair, length, self.model.cfg.d_vocab)[0])[1]

    def _grid(self, request: Request) -> Callable[[], Any]:
        """Verified: transformer-lens's function by its name. Not: patch_grid, the only one that can be told."""
        grid, pair, length = request["grid"], request["pair"], request["length"]
        clean, corrupted = self._clean(pair, length), bench_work.prompts(pair, length, self.model.cfg.d_vocab)[1]
        patching, metric = self.library.patching, self.library.LogitDiff(bench_work.ANSWER, bench_work.WRONG)
        if request["verify"] is None:
            function = getattr(patching, "get_act_patch_" + grid)
            return lambda: function(self.model, corrupted, clean, metric)
        arguments = {"metric": metric, "verify": request["verify"]}
        return lambda: self.torch.cat([
            patching.patch_grid(self.model, clean, corrupted, part.activation, part.our_axes, **arguments).values.flatten()
            for part in bench_work.GRIDS[grid]
        ])  # fmt: skip

    def about(self, request: Request, result: Any) -> dict:
        if request["op"] == "load":
            start = time.perf_counter()
            _ = result.digest  # computed in the background; the first verified run waits for it
            return {"digest_s": time.perf_counter() - start}
        if request["op"] == "logits":
            return {"logits": sampled_log_probabilities(result)}
        if request["op"] == "grid":
            return {"values": result.flatten().tolist()}
        if request["op"] == "run_with_cache" and request["verify"] != "off":
            verdict = result[1].verdict
            return {"check_s": verdict.seconds, "compared": verdict.n_compared}
        return {}


class Peer:
    """transformer-lens, as its users run it for speed: without gradients."""

    def __init__(self, folder: str, threads: int) -> None:
        import torch
        import transformer_lens
        import transformers

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.library, self.transformers, self.folder, self.model = torch, transformer_lens, transformers, folder, None

    def hello(self) -> dict:
        from importlib.metadata import version

        return {"versions": {name: version(name) for name in ("transformer-lens", "transformers", "torch")}}

    def prepare(self, request: Request) -> Callable[[], Any]:
        op = request["op"]
        if op == "load":
            self.model = None
            return lambda: self._load(request["processed"])
        if op in ("grid", "batched_loop"):
            clean, corrupted = self._clean(request["pair"], request["length"]), self._tokens(request["pair"], request["length"], 1)
            if op == "batched_loop":
                return lambda: self._batched_loop(corrupted, clean, request["unembed"])
            return self._grid(request, corrupted, clean)
        tokens = self.torch.tensor([common.tokens_of(request["length"], self.model.cfg.d_vocab)])
        run = self.model.run_with_cache if op == "run_with_cache" else self.model
        return lambda: run(tokens)

    def _load(self, processed: bool):
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
        model.load_and_process_state_dict(convert_gpt2_weights(hf, cfg), **dict.fromkeys(steps, processed))
        self.model = model.eval()
        self._clean.cache_clear()
        return self.model

    def _tokens(self, pair: str, length: int, which: int):
        return self.torch.tensor([bench_work.prompts(pair, length, self.model.cfg.d_vocab)[which]])

    @cache
    def _clean(self, pair: str, length: int):
        return self.model.run_with_cache(self._tokens(pair, length, 0))[1]

    def _grid(self, request: Request, corrupted: Any, clean: Any) -> Callable[[], Any]:
        """Some cells of a grid, each a forward pass, as its functions make them; without "cells" the function itself."""
        from transformer_lens import patching

        def metric(logits):
            return logits[0, -1, bench_work.ANSWER] - logits[0, -1, bench_work.WRONG]

        arguments = (self.model, corrupted, clean, metric)
        if request["cells"] is None:
            return lambda: getattr(patching, "get_act_patch_" + request["grid"])(*arguments)
        shape = {"n_layer": self.model.cfg.n_layers, "n_head": self.model.cfg.n_heads}
        parts = [
            (getattr(patching, part.setter), part.activation, patching.pd.DataFrame(rows, columns=part.axes))
            for part, rows in bench_work.indices(request["grid"], shape, request["length"], request["cells"])
        ]
        return lambda: self.torch.cat([patching.generic_activation_patch(*arguments, *part[:2], index_df=part[2]) for part in parts])

    def _batched_loop(self, corrupted: Any, clean: Any, unembed: str):
        """resid_pre over layer and pos as somebody in a hurry writes it: all positions of a layer in one batch, from the
        corrupted run's residual on. unembed: "all" positions, or the "last" one, which is all that the metric reads."""
        model, n_layers, length = self.model, self.model.cfg.n_layers, corrupted.shape[1]
        _, base = model.run_with_cache(corrupted, names_filter=lambda name: name.endswith("hook_resid_pre"))
        every, values = self.torch.arange(length), self.torch.empty(n_layers, length)
        for layer in range(n_layers):
            residual = base["resid_pre", layer].repeat(length, 1, 1)  # [patched pos, pos, d_model]
            residual[every, every] = clean["resid_pre", layer][0]
            if unembed == "all":
                logits = model(residual, start_at_layer=layer)
            else:
                final = model(residual, start_at_layer=layer, stop_at_layer=n_layers)
                logits = model.unembed(model.ln_final(final[:, -1:]))
            values[layer] = logits[:, -1, bench_work.ANSWER] - logits[:, -1, bench_work.WRONG]
        return values

    def about(self, request: Request, result: Any) -> dict:
        if request["op"] == "logits":
            return {"logits": sampled_log_probabilities(result)}
        return {"values": result.flatten().tolist()} if request["op"] in ("grid", "batched_loop") else {}


class Machine:
    """What the processor can do: products of GPT-2 small's MLP at 256 rows, and copying memory."""

    ROWS, IN, OUT, REPETITIONS = 256, 768, 3072, 40
    COPIED_BYTES, COPIES = 2**30, 3

    def __init__(self, folder: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch, self.model = torch, None

    def hello(self) -> dict:
        return {"versions": {"torch": self.torch.__version__, "mkldnn": self.torch.backends.mkldnn.is_available()}}

    def prepare(self, request: Request) -> Callable[[], Any]:
        """The work is a list of the seconds of each repetition."""
        torch = self.torch
        if request["op"] == "copy":
            source = torch.ones(self.COPIED_BYTES // 4)
            target = torch.zeros_like(source)
            return lambda: [self._seconds(target.copy_, source) for _ in range(self.COPIES)]
        rows, weight, bias = torch.randn(self.ROWS, self.IN), torch.randn(self.OUT, self.IN), torch.randn(self.OUT)
        if request["packed"]:
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, self.ROWS)
            work = (torch.ops.mkldnn._linear_pointwise, rows, packed, bias, "none", [], "")
        else:
            work = (torch.nn.functional.linear, rows, weight, bias)
        return lambda: [self._seconds(*work) for _ in range(self.REPETITIONS)]

    @staticmethod
    def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
        start = time.perf_counter()
        function(*arguments)
        return time.perf_counter() - start

    def about(self, request: Request, result: list[float]) -> dict:
        """A rate of the fastest repetition, the limit: flops or bytes (read and written) a second."""
        if request["op"] == "copy":
            return {"rate": 2 * self.COPIED_BYTES / min(result)}
        return {"rate": 2 * self.ROWS * self.IN * self.OUT / min(result)}


WORKERS = {"lenscpp": Ours, "transformer-lens": Peer, "machine": Machine}


def sampled_log_probabilities(logits: Any) -> list[list[float]]:
    result = logits[0].double().log_softmax(-1)
    return result[:, :: max(1, result.shape[-1] // 64)].tolist()


def answer(library: Any, request: Request) -> dict:
    work = library.prepare(request)
    start = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - start
    return {"s": seconds, **library.about(request, result)}


def serve(library: Any) -> None:
    out, sys.stdout = sys.stdout, sys.stderr  # libraries that print do not disturb the answers
    print(json.dumps(library.hello()), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(library, json.loads(line))), file=out, flush=True)


def measure_memory(library: Any, request: Request) -> None:
    """The peak beyond what the imports take, for a load; for the rest beyond what is resident once the model is loaded,
    has run once on two tokens, and has what the request starts from."""
    if request["op"] != "load":
        answer(library, {"op": "load", "processed": True})
        answer(library, {"op": "forward", "length": 2})
    work = library.prepare(request)
    before = common.start_of_phase()
    result = work()
    peak, kept = common.memory_mib("VmHWM") - before, common.memory_mib("VmRSS") - before
    del result
    print(json.dumps({"peak_mib": peak, "kept_mib": kept}))


def main() -> None:
    what, name, folder, threads, *request = sys.argv[1:]
    library = WORKERS[name](folder, int(threads))
    if what == "serve":
        serve(library)
    else:
        measure_memory(library, json.loads(*request))


if __name__ == "__main__":
    main()
