"""What the benchmark patches, and how much arithmetic that is: data and counting, without a library of tensors.

Grids are transformer-lens 3.9's get_act_patch_* functions. In it every patch costs a whole forward pass, whatever the
prompts are; how much of it lenscpp leaves out depends on where they differ, so there are three pairs of prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import common

ANSWER, WRONG = 5, 11  # token ids of the metric: logit[ANSWER] - logit[WRONG] at the last position


@dataclass(frozen=True)
class Part:
    """One index of patches: an activation, transformer-lens's setter for it, and the axes of that setter's index."""

    activation: str
    setter: str
    axes: tuple[str, ...]

    @property
    def our_axes(self) -> tuple[str, ...]:
        """The axes as lenscpp's patch_grid calls them."""
        ours = {"head_index": "head", "dest_pos": "query", "src_pos": "key"}
        return tuple(ours.get(axis, axis) for axis in self.axes)

    def extents(self, shape: dict[str, int], length: int) -> tuple[int, ...]:
        of = {"layer": shape["n_layer"], "head": shape["n_head"], "head_index": shape["n_head"]}
        return tuple(of.get(axis, length) for axis in self.axes)


def _of_position(activation: str) -> Part:
    return Part(activation, "layer_pos_patch_setter", ("layer", "pos"))


def _of_head_by_pos(activation: str) -> Part:
    return Part(activation, "layer_pos_head_vector_patch_setter", ("layer", "pos", "head"))


def _of_head(activation: str) -> Part:
    return Part(activation, "layer_head_vector_patch_setter", ("layer", "head"))


_PATTERN_BY_POS = Part("pattern", "layer_head_pos_pattern_patch_setter", ("layer", "head_index", "dest_pos"))
_PATTERN = Part("pattern", "layer_head_pattern_patch_setter", ("layer", "head_index"))
_PATTERN_ENTRIES = Part("pattern", "layer_head_dest_src_pos_pattern_patch_setter", ("layer", "head_index", "dest_pos", "src_pos"))

HEADLINE = ("resid_pre", "attn_head_out_by_pos")
GRIDS: dict[str, tuple[Part, ...]] = {  # by what follows get_act_patch_
    **{name: (_of_position(name),) for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out")},
    **{f"attn_head_{name}_by_pos": (_of_head_by_pos(site),) for name, site in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))},
    "attn_head_pattern_by_pos": (_PATTERN_BY_POS,),
    "attn_head_pattern_dest_src_pos": (_PATTERN_ENTRIES,),
    **{f"attn_head_{name}_all_pos": (_of_head(site),) for name, site in (("out", "z"), ("q", "q"), ("k", "k"), ("v", "v"))},
    "attn_head_pattern_all_pos": (_PATTERN,),
    "attn_head_all_pos_every": (*map(_of_head, "zqkv"), _PATTERN),
    "attn_head_by_pos_every": (*map(_of_head_by_pos, "zqkv"), _PATTERN_BY_POS),
    "block_every": tuple(map(_of_position, ("resid_pre", "attn_out", "mlp_out"))),
}


def n_patches(grid: str, shape: dict[str, int], length: int) -> int:
    return sum(math.prod(part.extents(shape, length)) for part in GRIDS[grid])


def indices(grid: str, shape: dict[str, int], length: int, cells: list[int]) -> list[tuple[Part, list[tuple[int, ...]]]]:
    """Of cells, numbered through the parts of a grid with the last axis fastest: each part that has any, with their indices."""
    chosen, first = [], 0
    for part in GRIDS[grid]:
        every = list(product(*map(range, part.extents(shape, length))))
        here = [every[cell - first] for cell in cells if first <= cell < first + len(every)]
        if here:
            chosen.append((part, here))
        first += len(every)
    return chosen


# ---- prompts ----

PAIRS: dict[str, tuple[int, ...] | None] = {"A": (2, 4), "B": (10,), "C": None}  # where clean and corrupted differ; None: everywhere


def prompts(pair: str, length: int, vocab: int) -> tuple[list[int], list[int]]:
    """Clean and corrupted token ids, random, that differ where the pair says and nowhere else."""
    where = PAIRS[pair]
    clean, other = common.tokens_of(length, vocab), common.tokens_of(length, vocab - 1, seed=8)
    differing = range(length) if where is None else where
    return clean, [(token + 1 + other[pos]) % vocab if pos in differing else token for pos, token in enumerate(clean)]


# ---- arithmetic ----


def forward_flops(shape: dict[str, int], length: int) -> int:
    """Two to a multiply-add: the products with weights, and those of attention, masked entries included."""
    d, layers, vocab = shape["n_embd"], shape["n_layer"], shape["vocab_size"]
    return 2 * length * (layers * 12 * d * d + d * vocab) + 2 * layers * 2 * length * length * d


def sweep_flops(shape: dict[str, int], length: int, last_layer_whole: bool = False) -> int:
    """Of a grid of resid_pre over layer and position whose every patch changes something.

    A patch at (layer, pos) needs the rows pos .. length-1 of its layer and of those above: 12 d_model^2 multiply-adds a
    row. The metric reads the last position alone: so the last layer needs keys and values of these rows (2 d_model^2) and
    the rest of one row only, unless last_layer_whole. Attention, norms and the unembedding are not counted.
    """
    d, layers = shape["n_embd"], shape["n_layer"]
    counted = 0
    for layer, pos in product(range(layers), range(length)):
        rows = length - pos
        last = 12 * rows if last_layer_whole else 2 * rows + 10
        counted += (layers - 1 - layer) * 12 * rows + last
    return 2 * d * d * counted


def weight_bytes(shape: dict[str, int]) -> int:
    """Of the float32 weights that a forward pass reads whole: those of the layers and of the unembedding."""
    d = shape["n_embd"]
    return 4 * (shape["n_layer"] * 12 * d * d + d * shape["vocab_size"])


def cache_bytes(shape: dict[str, int], length: int) -> int:
    """Of the float32 activations that a run_with_cache of everything hands out, and of its logits."""
    d, heads, vocab = shape["n_embd"], shape["n_head"], shape["vocab_size"]
    of_layer = (5 + 2 + 4 + 8) * d + 2 + 2 * heads * length  # residual stream; ln1, ln2; q, k, v, z; MLP; scales; scores, pattern
    return 4 * length * (shape["n_layer"] * of_layer + 3 * d + 1 + vocab)


def least_seconds(flops: float, moved_bytes: float, limits: dict[str, float]) -> float:
    """What the machine needs at its measured best: {"packed": flops/s, "copy": bytes/s}."""
    return max(flops / limits["packed"], moved_bytes / limits["copy"])
