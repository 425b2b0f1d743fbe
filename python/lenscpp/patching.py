"""Activation patching: patch_grid, and TransformerLens's patching functions by their names, arguments and axes.

    grid = lens.patching.patch_grid(model, clean, corrupted, "resid_pre", metric=lens.LogitDiff(" Mary", " John"))
    grid.plot()
    lens.patching.get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, metric)     # [layer, pos] float32

Every patched run is verified. TransformerLens's functions run the corrupted prompt and write the clean activation;
clean_cache is a VerifiedCache; metric is a function of logits or a lens.LogitDiff and the like.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from . import _inputs, _lenscpp, _metrics, utils
from ._edits import Patch
from ._grid import GridResult, _pandas, patch_grid

Setter = Callable[[torch.Tensor, Sequence[int], torch.Tensor], torch.Tensor]


def make_df_from_ranges(column_max_ranges: Sequence[int], column_names: Sequence[str]) -> Any:
    """A pandas DataFrame of all index tuples, the last column fastest. ImportError without pandas."""
    return _pandas("make_df_from_ranges").DataFrame(list(product(*(range(n) for n in column_max_ranges))), columns=column_names)


# ---- what is written where: setters change the corrupted activation in place, as TransformerLens's do ----


def layer_pos_patch_setter(corrupted_activation: torch.Tensor, index: Sequence[int], clean_activation: torch.Tensor) -> torch.Tensor:
    """index = [layer, pos]: all of one position."""
    _, pos = index
    corrupted_activation[:, pos, ...] = clean_activation[:, pos, ...]
    return corrupted_activation


def layer_pos_head_vector_patch_setter(corrupted_activation: torch.Tensor, index: Sequence[int], clean_activation: torch.Tensor) -> torch.Tensor:
    """index = [layer, pos, head]: one head at one position, of q, k, v, z or result."""
    _, pos, head = index
    corrupted_activation[:, pos, head] = clean_activation[:, pos, head]
    return corrupted_activation


def layer_head_vector_patch_setter(corrupted_activation: torch.Tensor, index: Sequence[int], clean_activation: torch.Tensor) -> torch.Tensor:
    """index = [layer, head]: one head at every position, of q, k, v, z or result."""
    _, head = index
    corrupted_activation[:, :, head] = clean_activation[:, :, head]
    return corrupted_activation


def layer_head_pattern_patch_setter(corrupted_activation: torch.Tensor, index: Sequence[int], clean_activation: torch.Tensor) -> torch.Tensor:
    """index = [layer, head]: all of one head's scores or pattern."""
    _, head = index
    corrupted_activation[:, head, :, :] = clean_activation[:, head, :, :]
    return corrupted_activation


def layer_head_pos_pattern_patch_setter(corrupted_activation: torch.Tensor, index: Sequence[int], clean_activation: torch.Tensor) -> torch.Tensor:
    """index = [layer, head, dest_pos]: one row of one head's scores or pattern."""
    _, head, dest = index
    corrupted_activation[:, head, dest, :] = clean_activation[:, head, dest, :]
    return corrupted_activation


def layer_head_dest_src_pos_pattern_patch_setter(
    corrupted_activation: torch.Tensor, index: Sequence[int], clean_activation: torch.Tensor
) -> torch.Tensor:
    """index = [layer, head, dest_pos, src_pos]: one entry of one head's scores or pattern."""
    _, head, dest, src = index
    corrupted_activation[:, head, dest, src] = clean_activation[:, head, dest, src]
    return corrupted_activation


_AXES: dict[Any, tuple[str, ...]] = {
    layer_pos_patch_setter: ("layer", "pos"),
    layer_pos_head_vector_patch_setter: ("layer", "pos", "head"),
    layer_head_vector_patch_setter: ("layer", "head"),
    layer_head_pattern_patch_setter: ("layer", "head"),
    layer_head_pos_pattern_patch_setter: ("layer", "head", "query"),
    layer_head_dest_src_pos_pattern_patch_setter: ("layer", "head", "query", "key"),
}
_EXTENTS = {"layer": "layer", "pos": "pos", "head": "head", "head_index": "head", "dest_pos": "pos", "src_pos": "pos"}


def generic_activation_patch(
    model: Any,
    corrupted_tokens: Any,
    clean_cache: _lenscpp.VerifiedCache,
    patching_metric: _metrics.AnyMetric,
    patch_setter: Setter,
    activation_name: str,
    index_axis_names: Sequence[str] | None = None,
    index_df: Any = None,
    return_index_df: bool = False,
) -> Any:
    """The metric of the corrupted prompt with the clean activation written at each index: float32, shaped by the axes.

    index_axis_names: of layer (first), pos, head_index or head, src_pos, dest_pos. index_df instead: a DataFrame of
    indices, a row a patch; the result is flat then. return_index_df: also return the DataFrame. patch_setter: one of
    this module's (with index_axis_names: many patches share a run), or any function of (corrupted activation, index,
    clean activation) that returns the activation to be written: each index is a verified run of its own then.

    Raises VerificationFailed (with the rest in .partial where patches share runs); NotVerified for anything but a VerifiedCache;
    ValueError, IndexError, TypeError; ImportError where a DataFrame is needed and pandas is missing.
    """
    if (index_axis_names is None) == (index_df is None):
        raise ValueError("[patching] give index_axis_names or index_df, and not both")
    if not callable(patch_setter):
        raise TypeError(f"[patching] patch_setter: needed: a function of (corrupted activation, index, clean activation); found: {_inputs.kind(patch_setter)}")
    if not isinstance(clean_cache, _lenscpp.VerifiedCache):
        raise _lenscpp.NotVerified(
            f"[patching] clean_cache: needed: a VerifiedCache; found: {_inputs.kind(clean_cache)}; the order is TransformerLens's: "
            "(model, corrupted_tokens, clean_cache, metric)"
        )
    if index_df is not None:
        rows = [[int(i) for i in row] for _, row in index_df.iterrows()]
        result = _row_by_row(model, corrupted_tokens, clean_cache, patching_metric, patch_setter, activation_name, rows)
        return (result, index_df) if return_index_df else result
    assert index_axis_names is not None
    if unknown := [name for name in index_axis_names if name not in _EXTENTS]:
        raise ValueError(f"[patching] axis {unknown[0]!r}; allowed: {', '.join(_EXTENTS)}")
    if not index_axis_names or index_axis_names[0] != "layer":
        raise ValueError(f"[patching] the first axis is layer; found: {', '.join(index_axis_names) or 'none'}")
    axes = _AXES.get(patch_setter)
    if axes is None:
        shape = _shape(model, corrupted_tokens, activation_name, index_axis_names)
        rows = [list(row) for row in product(*(range(n) for n in shape))]
        values = _row_by_row(model, corrupted_tokens, clean_cache, patching_metric, patch_setter, activation_name, rows).reshape(shape)
    else:
        if [_EXTENTS[name] for name in index_axis_names] != [_EXTENTS.get(axis, "pos") for axis in axes]:
            raise ValueError(f"[patching] {patch_setter.__name__} has the index [{', '.join(axes)}]; found: {', '.join(index_axis_names)}")
        values = patch_grid(model, clean_cache, corrupted_tokens, _site(activation_name), axes, patching_metric, verify="checksum").values.float()
    return (values, make_df_from_ranges(list(values.shape), list(index_axis_names))) if return_index_df else values


def _shape(model: Any, corrupted: Any, activation_name: str, axes: Sequence[str]) -> list[int]:
    """How far each axis goes, as TransformerLens counts: heads of k and v are key-value heads."""
    cfg = model.cfg
    kv_heads = getattr(cfg, "n_key_value_heads", None)
    heads = kv_heads if activation_name in ("k", "v") and kv_heads is not None else cfg.n_heads
    pos = _inputs.tokens(model._model, corrupted).pos
    return [{"layer": cfg.n_layers, "head": heads, "pos": pos}[_EXTENTS[axis]] for axis in axes]


def _site(activation_name: str) -> str:
    return utils.get_act_name(activation_name, 0).removeprefix("blocks.0.")


def _row_by_row(
    model: Any, corrupted: Any, clean: _lenscpp.VerifiedCache, metric: _metrics.AnyMetric, setter: Setter, activation_name: str, rows: list[list[int]]
) -> torch.Tensor:
    """Any setter at any indices: what it makes of the corrupted run's activation is the source of one verified run each."""
    model._hooked.refuse("generic_activation_patch")
    _check_pair(model, corrupted, clean)
    _check_metric(model, metric, clean.record)
    of = metric.resolve(model) if isinstance(metric, _metrics.Metric) else metric
    names = {layer: utils.get_act_name(activation_name, layer) for layer in sorted({row[0] for row in rows})}
    _, base = model.run_with_cache(corrupted, list(names.values()), verify="exact")
    values = []
    for row in rows:
        name = names[row[0]]
        made = setter(base[name], row, clean[name])
        if not isinstance(made, torch.Tensor):
            raise TypeError(f"[patching] patch_setter returned {_inputs.kind(made)}; needed: the activation")
        value = float(of(model(corrupted, plan=_lenscpp.Plan([Patch(name, made)]), verify="exact")))
        if not math.isfinite(value):
            raise ValueError(f"[patching] the metric is {value} at index {row}; needed: a finite number")
        values.append(value)
    return torch.tensor(values, dtype=torch.float32)


def _check_pair(model: Any, corrupted: Any, clean: _lenscpp.VerifiedCache) -> None:
    """What patch_grid asks of a clean run as well: this model's, without edits or hooks, whole, as long as the corrupted one and padded alike."""
    record, tokens = clean.record, _inputs.tokens(model._model, corrupted)
    if (record["model_digest"], record["dtype"]) != (model.digest, str(model.dtype).removeprefix("torch.")):
        raise ValueError("[patching] clean_cache is of another model, processing or dtype; needed: a run of this model")
    if record["plan"] or record["hooks"]:
        raise ValueError("[patching] clean_cache is of a run with edits or hooks; needed: a run as the model computes it")
    if clean.positions is not None:
        raise ValueError("[patching] clean_cache holds some positions only (pos_slice); needed: all")
    if not record["tokens"] or (record["first_layer"], record["end_layer"]) != (0, model.cfg.n_layers):
        raise ValueError("[patching] clean_cache is of a run that is not one from tokens to logits; needed: all layers")
    if (record["batch"], record["pos"]) != (tokens.batch, tokens.pos):
        raise ValueError(
            f"[patching] the clean run is {record['batch']} x {record['pos']} tokens, the corrupted one {tokens.batch} x {tokens.pos}; needed: equal numbers"
        )
    if record.get("spans", []) != tokens.spans:
        raise ValueError(
            "[patching] the clean prompts and the corrupted ones are padded otherwise: their tokens do not stand at the same positions"
        )


def _check_metric(model: Any, metric: _metrics.AnyMetric, record: dict[str, Any]) -> None:
    """What patch_grid asks of a declared metric as well: logits to read, none of them padding's."""
    if not isinstance(metric, _metrics.Metric):
        return
    name, spans = type(metric).__name__, record.get("spans", [])
    if model.cfg.d_vocab_out is None:
        raise ValueError(f"[patching] the metric {name} reads logits, and this model has none: give a function of what the last block returns")
    if isinstance(metric, _metrics.Loss) and (model.cfg.attention_dir != "causal" or spans):
        raise ValueError("[patching] the loss is of the next token, of causal models and prompts without padding")
    if metric._pos is None or model._model.config().get("head") == "classifier":
        return
    pos = metric._pos + (record["pos"] if metric._pos < 0 else 0)
    for prompt, (begin, end) in enumerate(spans):
        if not begin <= pos < end:
            raise ValueError(
                f"[patching] the metric reads position {pos}, which is padding in prompt {prompt}; pad on the left (padding_side) to read the last token of each"
            )


# ---- the specialised functions: (model, corrupted_tokens, clean_cache, patching_metric) ----


def _specialised(activation_name: str, setter: Setter, axes: tuple[str, ...], what: str) -> Any:
    function = partial(generic_activation_patch, patch_setter=setter, activation_name=activation_name, index_axis_names=axes)
    function.__doc__ = f"Patches {what}: {list(axes)} float32. (model, corrupted_tokens, clean_cache, patching_metric); see generic_activation_patch."
    return function


_by_pos, _head_by_pos, _head = layer_pos_patch_setter, layer_pos_head_vector_patch_setter, layer_head_vector_patch_setter
_LAYER_POS, _LAYER_POS_HEAD, _LAYER_HEAD = ("layer", "pos"), ("layer", "pos", "head"), ("layer", "head")

get_act_patch_resid_pre = _specialised("resid_pre", _by_pos, _LAYER_POS, "the residual stream before each block")
get_act_patch_resid_mid = _specialised("resid_mid", _by_pos, _LAYER_POS, "the residual stream between attention and MLP")
get_act_patch_attn_out = _specialised("attn_out", _by_pos, _LAYER_POS, "the output of each attention layer")
get_act_patch_mlp_out = _specialised("mlp_out", _by_pos, _LAYER_POS, "the output of each MLP")
get_act_patch_attn_head_out_by_pos = _specialised("z", _head_by_pos, _LAYER_POS_HEAD, "the output z of each head at each position")
get_act_patch_attn_head_q_by_pos = _specialised("q", _head_by_pos, _LAYER_POS_HEAD, "the queries of each head at each position")
get_act_patch_attn_head_k_by_pos = _specialised("k", _head_by_pos, _LAYER_POS_HEAD, "the keys of each head at each position")
get_act_patch_attn_head_v_by_pos = _specialised("v", _head_by_pos, _LAYER_POS_HEAD, "the values of each head at each position")
get_act_patch_attn_head_pattern_by_pos = _specialised(
    "pattern", layer_head_pos_pattern_patch_setter, ("layer", "head_index", "dest_pos"), "each row of each head's pattern"
)
get_act_patch_attn_head_pattern_dest_src_pos = _specialised(
    "pattern", layer_head_dest_src_pos_pattern_patch_setter, ("layer", "head_index", "dest_pos", "src_pos"), "each entry of each head's pattern"
)
get_act_patch_attn_head_out_all_pos = _specialised("z", _head, _LAYER_HEAD, "the output z of each head at all positions")
get_act_patch_attn_head_q_all_pos = _specialised("q", _head, _LAYER_HEAD, "the queries of each head at all positions")
get_act_patch_attn_head_k_all_pos = _specialised("k", _head, _LAYER_HEAD, "the keys of each head at all positions")
get_act_patch_attn_head_v_all_pos = _specialised("v", _head, _LAYER_HEAD, "the values of each head at all positions")
get_act_patch_attn_head_pattern_all_pos = _specialised(
    "pattern", layer_head_pattern_patch_setter, ("layer", "head_index"), "all of each head's pattern"
)


def get_act_patch_attn_head_all_pos_every(model: Any, corrupted_tokens: Any, clean_cache: _lenscpp.VerifiedCache, metric: _metrics.AnyMetric) -> torch.Tensor:
    """Every head at all positions: [5 (z, q, k, v, pattern), layer, head] float32; k and v padded with zeros to head."""
    functions = (
        get_act_patch_attn_head_out_all_pos,
        get_act_patch_attn_head_q_all_pos,
        get_act_patch_attn_head_k_all_pos,
        get_act_patch_attn_head_v_all_pos,
        get_act_patch_attn_head_pattern_all_pos,
    )
    return _stacked([function(model, corrupted_tokens, clean_cache, metric) for function in functions])


def get_act_patch_attn_head_by_pos_every(model: Any, corrupted_tokens: Any, clean_cache: _lenscpp.VerifiedCache, metric: _metrics.AnyMetric) -> torch.Tensor:
    """Every head by position: [5 (z, q, k, v, pattern), layer, pos, head] float32; k and v padded with zeros to head."""
    functions = (
        get_act_patch_attn_head_out_by_pos,
        get_act_patch_attn_head_q_by_pos,
        get_act_patch_attn_head_k_by_pos,
        get_act_patch_attn_head_v_by_pos,
    )
    results = [function(model, corrupted_tokens, clean_cache, metric) for function in functions]
    pattern = get_act_patch_attn_head_pattern_by_pos(model, corrupted_tokens, clean_cache, metric)  # [layer, head, dest_pos]
    return _stacked([*results, pattern.transpose(1, 2)])


def get_act_patch_block_every(model: Any, corrupted_tokens: Any, clean_cache: _lenscpp.VerifiedCache, metric: _metrics.AnyMetric) -> torch.Tensor:
    """The residual stream and what each half of a block adds: [3 (resid_pre, attn_out, mlp_out), layer, pos] float32."""
    functions = (get_act_patch_resid_pre, get_act_patch_attn_out, get_act_patch_mlp_out)
    return torch.stack([function(model, corrupted_tokens, clean_cache, metric) for function in functions])


def _stacked(results: list[torch.Tensor]) -> torch.Tensor:
    heads = results[0].shape[-1]
    return torch.stack([torch.nn.functional.pad(r, (0, heads - r.shape[-1])) for r in results])


__all__ = [
    "GridResult",
    "generic_activation_patch",
    *(name for name in dir() if name.startswith("get_act_patch_")),
    *(setter.__name__ for setter in _AXES),
    "make_df_from_ranges",
    "patch_grid",
]
