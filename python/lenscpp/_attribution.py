"""What a residual stream is made of and what its parts do to the logits: arguments, labels, pictures. What is
computed is in lens/decomposition.h and lens/attribution.h; the methods of VerifiedCache end here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from . import _inputs, _lenscpp, _pictures

if TYPE_CHECKING:
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]

Stack = torch.Tensor | tuple[torch.Tensor, list[str]]
Slice = tuple[list[int], bool] | None


# ---- methods of VerifiedCache ----


def accumulated_resid(
    cache: _lenscpp.VerifiedCache,
    layer: int | None = None,
    incl_mid: bool = False,
    apply_ln: bool = False,
    pos_slice: Any = None,
    mlp_input: bool = False,
    return_labels: bool = False,
) -> Stack:
    where = "accumulated_resid"
    pos = _positions(where, cache, pos_slice)
    _flags(where, incl_mid=incl_mid, apply_ln=apply_ln, mlp_input=mlp_input)
    found = _lenscpp.accumulated_resid(cache, _layer(where, layer), incl_mid, apply_ln, pos, mlp_input)
    return _with_labels(where, found, return_labels)


def decompose_resid(
    cache: _lenscpp.VerifiedCache,
    layer: int | None = None,
    mlp_input: bool = False,
    mode: str = "all",
    apply_ln: bool = False,
    pos_slice: Any = None,
    incl_embeds: bool = True,
    return_labels: bool = False,
) -> Stack:
    where = "decompose_resid"
    pos = _positions(where, cache, pos_slice)
    _flags(where, mlp_input=mlp_input, apply_ln=apply_ln, incl_embeds=incl_embeds)
    found = _lenscpp.decompose_resid(cache, _layer(where, layer), mlp_input, _text(where, "mode", mode), apply_ln, pos, incl_embeds)
    return _with_labels(where, found, return_labels)


def stack_head_results(
    cache: _lenscpp.VerifiedCache,
    layer: int | None = -1,
    return_labels: bool = False,
    incl_remainder: bool = False,
    pos_slice: Any = None,
    apply_ln: bool = False,
) -> Stack:
    where = "stack_head_results"
    pos = _positions(where, cache, pos_slice)
    _flags(where, incl_remainder=incl_remainder, apply_ln=apply_ln)
    return _with_labels(where, _lenscpp.stack_head_results(cache, _layer(where, layer), incl_remainder, pos, apply_ln), return_labels)


def stack_neuron_results(
    cache: _lenscpp.VerifiedCache,
    layer: int | None,
    pos_slice: Any = None,
    neuron_slice: Any = None,
    return_labels: bool = False,
    incl_remainder: bool = False,
    apply_ln: bool = False,
    project_output_onto: torch.Tensor | None = None,
) -> Stack:
    where = "stack_neuron_results"
    pos = _positions(where, cache, pos_slice)
    _flags(where, incl_remainder=incl_remainder, apply_ln=apply_ln)
    neurons = _neurons(where, cache, neuron_slice)
    found = _lenscpp.stack_neuron_results(cache, _layer(where, layer), pos, neurons, incl_remainder, apply_ln, project_output_onto)
    return _with_labels(where, found, return_labels)


def get_neuron_results(
    cache: _lenscpp.VerifiedCache, layer: int, neuron_slice: Any = None, pos_slice: Any = None, project_output_onto: torch.Tensor | None = None
) -> torch.Tensor:
    where = "get_neuron_results"
    pos = _positions(where, cache, pos_slice)
    block = _layer(where, layer)
    if block is None:
        raise TypeError(f"[{where}] layer is an int; found: None")
    return _lenscpp.get_neuron_results(cache, block, _neurons(where, cache, neuron_slice), pos, project_output_onto)


def get_full_resid_decomposition(
    cache: _lenscpp.VerifiedCache,
    layer: int | None = None,
    mlp_input: bool = False,
    expand_neurons: bool = True,
    apply_ln: bool = False,
    pos_slice: Any = None,
    return_labels: bool = False,
    project_output_onto: torch.Tensor | None = None,
) -> Stack:
    where = "get_full_resid_decomposition"
    pos = _positions(where, cache, pos_slice)
    _flags(where, mlp_input=mlp_input, expand_neurons=expand_neurons, apply_ln=apply_ln)
    found = _lenscpp.get_full_resid_decomposition(cache, _layer(where, layer), mlp_input, expand_neurons, apply_ln, pos, project_output_onto)
    return _with_labels(where, found, return_labels)


def stack_activation(cache: _lenscpp.VerifiedCache, activation_name: str, layer: int | None = -1, sublayer_type: str | None = None) -> torch.Tensor:
    where = "stack_activation"
    name = _text(where, "activation_name", activation_name)
    kind = "" if sublayer_type is None else _text(where, "sublayer_type", sublayer_type)
    return _lenscpp.stack_activation(cache, name, _layer(where, layer), kind)


def apply_ln_to_stack(
    cache: _lenscpp.VerifiedCache,
    residual_stack: torch.Tensor,
    layer: int | None = None,
    mlp_input: bool = False,
    pos_slice: Any = None,
    batch_slice: Any = None,
    has_batch_dim: bool = True,
    recompute_ln: bool = False,
) -> torch.Tensor:
    where = "apply_ln_to_stack"
    pos, batch = _positions(where, cache, pos_slice), _prompts(where, cache, batch_slice)
    _flags(where, mlp_input=mlp_input, has_batch_dim=has_batch_dim, recompute_ln=recompute_ln)
    return _lenscpp.apply_ln_to_stack(cache, residual_stack, _layer(where, layer), mlp_input, pos, batch, has_batch_dim, recompute_ln)


def logit_attrs(
    cache: _lenscpp.VerifiedCache,
    residual_stack: torch.Tensor,
    tokens: Any,
    incorrect_tokens: Any = None,
    pos_slice: Any = None,
    batch_slice: Any = None,
    has_batch_dim: bool = True,
) -> torch.Tensor:
    where = "logit_attrs"
    pos, batch = _positions(where, cache, pos_slice), _prompts(where, cache, batch_slice)
    _flags(where, has_batch_dim=has_batch_dim)
    wrong = None if incorrect_tokens is None else _tokens(where, cache, incorrect_tokens)
    return _lenscpp.logit_attrs(cache, residual_stack, _tokens(where, cache, tokens), wrong, pos, batch, has_batch_dim)


# ---- direct logit attribution ----


def direct_logit_attribution(
    cache: _lenscpp.VerifiedCache, answer: Any, wrong: Any = None, unit: str = "component", pos: Any = -1
) -> LogitAttribution:
    """What each part of a run adds to logit(answer) - logit(wrong), or to logit(answer) alone.

    answer, wrong: a str that is one token, an id, or one of either a prompt (a list, or a tensor [batch]).
    unit: "component" (embeddings, attn_out, mlp_out), "head" (heads, with their b_O, and MLPs) or "layer". The last
    part, "bias", holds what the final norm's bias and b_U add. pos: an int (then values are [component, batch]), or
    None, a tuple (slice) or list of positions (then [component, batch, pos]).

    The parts sum to what the run itself computed: that is checked against its verified logits, within what rounding
    may do, and ValueError says where it does not hold, as in a run whose edits came between. ValueError, too, for
    an activation that was not kept, IndexError for a position or token that is not there, NotVerified (a TypeError)
    for anything but a VerifiedCache.
    """
    where = "direct_logit_attribution"
    positions = _positions(where, cache, pos)
    ids = _tokens(where, cache, answer)
    wrong_ids = None if wrong is None else _tokens(where, cache, wrong)
    found = _lenscpp.direct_logit_attribution(cache, ids, wrong_ids, _text(where, "unit", unit), positions)
    return LogitAttribution(cache, unit, positions, (ids, wrong_ids), found)


class LogitAttribution:
    """A logit difference divided among the parts that wrote it. Made by direct_logit_attribution."""

    def __init__(self, cache: _lenscpp.VerifiedCache, unit: str, positions: Slice, tokens: tuple[torch.Tensor, torch.Tensor | None], found: Any) -> None:
        self._cache, self._unit, self._tokens = cache, unit, tokens
        self._labels, self._values, self._total, self._logit_diff, self._bound = found
        self._positions = None if positions is None else positions[0]  # of those that the cache holds

    @property
    def unit(self) -> str:
        """ "component", "head" or "layer" """
        return self._unit

    @property
    def labels(self) -> list[str]:
        """One a component, in the order of the forward pass: "embed", "pos_embed", "0_attn_out", ..., "bias"."""
        return list(self._labels)

    @property
    def values(self) -> torch.Tensor:
        """[component, batch], or [component, batch, pos] where `pos` was no int"""
        return self._values.clone()

    @property
    def total(self) -> torch.Tensor:
        """The sum of all components: [batch] or [batch, pos]"""
        return self._total.clone()

    @property
    def logit_diff(self) -> torch.Tensor:
        """The same from the run's verified logits: [batch] or [batch, pos]"""
        return self._logit_diff.clone()

    @property
    def bound(self) -> torch.Tensor:
        """How far rounding may put total and logit_diff apart; they were checked to be nearer: float64"""
        return self._bound.clone()

    @property
    def verdict(self) -> _lenscpp.Verdict:
        """Of the run that was read."""
        return self._cache.verdict

    @property
    def record(self) -> dict[str, Any]:
        """Of the run that was read."""
        return self._cache.record

    def top(self, k: int = 10, batch: int = 0, pos: int = -1) -> list[tuple[str, float]]:
        """The k components that matter most, (label, value), by magnitude. `pos`: which of the chosen positions."""
        column = self._column(batch, pos)
        count = _inputs.optional_int("k", k)
        if count is None or count < 1:
            raise ValueError(f"[direct_logit_attribution] k is 1 or more; found: {k!r}")
        order = sorted(range(len(column)), key=lambda i: -abs(column[i]))
        return [(self._labels[i], column[i]) for i in order[:count]]

    def plot(self, batch: int = 0) -> Figure:
        """Bars for components and layers, layers x heads for heads; over positions, components x tokens."""
        b = _index("batch", batch, self._values.shape[1])
        if self._values.dim() == 3:
            kept = self._cache.positions or range(_lenscpp.cache_extents(self._cache)[1])
            shown = [kept[i] for i in (self._positions or range(self._values.shape[2]))]
            return _pictures.heatmap(
                self._values[:, b], _pictures.prompt(self._cache, b, shown), self._labels, self._title(None), y_title="component", x_title="token", value_title="logits"
            )
        if self._unit == "head":
            return self._plot_heads(b)
        return _pictures.bars(self._values[:, b].tolist(), self._labels, self._title(b), value_title="logits")

    def _plot_heads(self, batch: int) -> Figure:
        """Layers x (heads, b_O, MLP); what belongs to no layer is in the title."""
        values = dict(zip(self._labels, self._values[:, batch].tolist()))
        n_layers = sum(label.endswith("_mlp_out") for label in self._labels)
        n_heads = sum(label.startswith("L0H") for label in self._labels)
        rows = [[*(values[f"L{l}H{h}"] for h in range(n_heads)), values[f"{l}_b_O"], values[f"{l}_mlp_out"]] for l in range(n_layers)]
        rest = ", ".join(f"{label} {_pictures.number_text(values[label])}" for label in ("embed", "pos_embed", "bias"))
        columns = [*(f"H{h}" for h in range(n_heads)), "b_O", "MLP"]
        names = [f"L{l}" for l in range(n_layers)]
        return _pictures.heatmap(rows, columns, names, f"{self._title(batch)}<br><sup>besides: {rest}</sup>", value_title="logits")

    def _column(self, batch: int, pos: int) -> list[float]:
        column = self._values[:, _index("batch", batch, self._values.shape[1])]
        return (column[:, _index("pos", pos, column.shape[1])] if column.dim() == 2 else column).tolist()

    def _title(self, batch: int | None) -> str:
        """What is divided, and how much it is for one prompt at one position; HTML."""
        row = 0 if batch is None else batch
        names = []
        for ids in self._tokens:
            if ids is not None:
                mine = ids.reshape(-1)[row if ids.numel() > 1 and ids.dim() == 1 else 0]
                names.append(_pictures.visible(_pictures.token_text(self._cache, int(mine))))
        what = " over ".join(names)
        if batch is not None:
            what += f" = {_pictures.number_text(float(self._total[batch]))}"
        return _pictures.title(f"Direct logit attribution of {what}", self._cache)

    def __repr__(self) -> str:
        return f"<LogitAttribution of {len(self._labels)} {self._unit}s: {', '.join(f'{label} {value:+.3g}' for label, value in self.top(3))}, ...>"


# ---- attention ----


def plot_attention(cache: _lenscpp.VerifiedCache, layer: int, head: int | list[int] | None = None, batch: int = 0) -> Figure:
    """Attention patterns of a layer: one small picture a head (all of them, or `head`), queries down, keys across.

    What a query cannot see is blank. Raises NotVerified for anything but a VerifiedCache, KeyError where the run did
    not keep the pattern, IndexError for a layer, head or prompt that is not there.
    """
    import plotly.graph_objects as go  # type: ignore[import-untyped]
    from plotly.subplots import make_subplots  # type: ignore[import-untyped]

    n_batch = _lenscpp.cache_extents(cache)[0]
    pattern = cache["pattern", layer][_index("batch", batch, n_batch)].float()  # [head, query, key]
    n_heads, n_query, n_key = pattern.shape
    chosen = range(n_heads) if head is None else head if isinstance(head, (list, tuple, range)) else [head]
    heads = [_index("head", h, n_heads, "[plot_attention]") for h in chosen]
    queries = cache.positions or list(range(n_query))
    keys = list(range(n_key))
    x_labels, y_labels = _pictures.prompt(cache, batch, keys), _pictures.prompt(cache, batch, queries)
    columns = min(len(heads), 4)
    n_rows = math.ceil(len(heads) / columns)
    most = 900 if len(heads) == 1 else 420 if columns == 2 else 280
    side = max(160.0, min(most, 34.0 * max(n_key, n_query)))  # px of one picture
    labels_px = 12 * min(14, max((len(t) for t in x_labels), default=1)) * 0.62 + 14
    wide, tall = side + labels_px, side * max(0.2, n_query / n_key) + labels_px + 24
    figure = make_subplots(n_rows, columns, subplot_titles=[f"L{layer}H{h}" for h in heads], horizontal_spacing=labels_px / (wide * columns), vertical_spacing=(labels_px + 24) / (tall * n_rows) if n_rows > 1 else 0)
    for i, h in enumerate(heads):
        row, column = i // columns + 1, i % columns + 1
        z = [[None if keys[k] > queries[q] else float(pattern[h, q, k]) for k in range(n_key)] for q in range(n_query)]
        hover = [[f"{_pictures.short(y_labels[q], 20)} looks at {_pictures.short(x_labels[k], 20)}" for k in range(n_key)] for q in range(n_query)]
        heat = go.Heatmap(z=z, x=keys, y=list(range(n_query)), coloraxis="coloraxis", customdata=hover, hovertemplate="%{customdata}<br>%{z:.3f}<extra></extra>", hoverongaps=False)
        figure.add_trace(heat, row, column)
        figure.update_xaxes(tickangle=-90, showgrid=False, zeroline=False, row=row, col=column, **_pictures.ticks(x_labels, side / n_key, 14))
        figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, row=row, col=column, **_pictures.ticks(y_labels, side / n_key, 14))
    figure.update_xaxes(tickfont={"size": 10})
    figure.update_yaxes(tickfont={"size": 10})
    figure.update_layout(
        title={"text": _pictures.title(f"Attention of layer {layer}", cache), "font": {"size": 15}},
        template="plotly_white",
        plot_bgcolor=_pictures.BLANK,
        width=int(max(560, 120 + wide * columns)),
        height=int(120 + tall * n_rows),
        margin={"l": int(labels_px) + 10, "r": 20, "t": 90, "b": int(labels_px) + 10},
        coloraxis={"colorscale": _pictures.SEQUENTIAL, "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": "attention"}, "thickness": 14}},
    )
    return figure


# ---- arguments ----


def _flags(where: str, **flags: Any) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(f"[{where}] {name} is True or False; found: {_inputs.kind(value)}")


def _text(where: str, what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"[{where}] {what} is a str; found: {_inputs.kind(value)}")
    return _inputs.utf8(value)


def _layer(where: str, layer: Any) -> int | None:
    return _inputs.optional_int(f"[{where}] layer", layer)


def _with_labels(where: str, found: tuple[torch.Tensor, list[str]], return_labels: Any) -> Stack:
    _flags(where, return_labels=return_labels)
    return found if return_labels else found[0]


def _slice(what: str, value: Any, extent: int) -> Slice:
    """TransformerLens's Slice: None all, an int one (and no axis), a tuple a Python slice, a list or array indices."""
    if value is None:
        return None
    many = isinstance(value, (slice, tuple, list, range)) or ((isinstance(value, torch.Tensor) or _inputs.is_numpy(value)) and value.ndim > 0)
    indices = _inputs.positions(value, extent, what)
    assert indices is not None
    return indices, not many


def _positions(where: str, cache: _lenscpp.VerifiedCache, value: Any) -> Slice:
    return _slice(f"[{where}] pos_slice", value, _lenscpp.cache_extents(cache)[1])


def _prompts(where: str, cache: _lenscpp.VerifiedCache, value: Any) -> Slice:
    return _slice(f"[{where}] batch_slice", value, _lenscpp.cache_extents(cache)[0])


def _neurons(where: str, cache: _lenscpp.VerifiedCache, value: Any) -> Slice:
    return _slice(f"[{where}] neuron_slice", value, _lenscpp.cache_d_mlp(cache))


def _tokens(where: str, cache: _lenscpp.VerifiedCache, value: Any) -> torch.Tensor:
    """Token ids: [] of one, [batch] or [batch, pos] of more."""
    if isinstance(value, torch.Tensor):
        return value
    if _inputs.is_numpy(value):
        return torch.as_tensor(value)
    if isinstance(value, (list, tuple)):
        return torch.tensor([_token(where, cache, v) for v in value], dtype=torch.int64)
    return torch.tensor(_token(where, cache, value))


def _token(where: str, cache: _lenscpp.VerifiedCache, value: Any) -> int:
    if isinstance(value, str):
        if cache.tokenizer is None:
            raise ValueError(f"[{where}] no tokenizer is at hand: give a token id, or, for a saved run, load it with lens.load(path, model)")
        return _lenscpp.single_token(cache.tokenizer, _inputs.utf8(value))
    try:
        return _inputs.token_id(value)
    except TypeError:
        raise TypeError(f"[{where}] a token is a str or an int; found: {_inputs.kind(value)}") from None


def _index(what: str, value: Any, extent: int, where: str = "[direct_logit_attribution]") -> int:
    index = _inputs.optional_int(f"{where} {what}", value)
    if index is None or not -extent <= index < extent:
        raise IndexError(f"{where} {what} {index} out of range: there are {extent} (0..{extent - 1})")
    return index % extent
