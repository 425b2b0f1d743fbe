"""The logit lens with labels and pictures. What it computes is in lens/logit_lens.h."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from . import _inputs, _lenscpp, _pictures
from ._pictures import CELL, MOST_CELLS

if TYPE_CHECKING:
    from plotly.graph_objects import Figure  # type: ignore[import-untyped]


class TopK(NamedTuple):
    """The k most likely tokens of every layer, prompt and position."""

    tokens: torch.Tensor  #: LongTensor [layer, batch, pos, k]
    probs: torch.Tensor  #: [layer, batch, pos, k]
    logits: torch.Tensor  #: [layer, batch, pos, k]


def logit_lens(cache: _lenscpp.VerifiedCache, apply_ln: bool = True, site: str = "resid_pre") -> LogitLens:
    """What each layer would predict if its activation were unembedded.

    site: "resid_pre" (one more row holds the final residual), "resid_mid", "resid_post", "attn_out" or
    "mlp_out". apply_ln: residuals go through the final norm, its scale recomputed for each layer; contributions
    (attn_out, mlp_out) are centred and divided by the run's own final scale. Off: W_U alone.

    Raises NotVerified (a TypeError) for anything but a VerifiedCache, ValueError for another site or where the
    cache does not hold what is needed.
    """
    if not isinstance(site, str):
        raise TypeError(f"[logit_lens] a site is a str; found: {_inputs.kind(site)}")
    if not isinstance(apply_ln, bool):
        raise TypeError(f"[logit_lens] apply_ln is True or False; found: {_inputs.kind(apply_ln)}")
    return LogitLens(_lenscpp.logit_lens(cache, site, apply_ln), cache)


class LogitLens:
    """Logits by layer, prompt and position, with labels. Every tensor read from it is the caller's own."""

    def __init__(self, lens: _lenscpp.Lens, cache: _lenscpp.VerifiedCache) -> None:
        if not isinstance(lens, _lenscpp.Lens):
            raise TypeError("[logit_lens] made by lenscpp.logit_lens(cache)")
        self._lens = lens
        self._cache = cache

    @property
    def labels(self) -> list[str]:
        """One a layer, as TransformerLens's accumulated_resid names them: "0_pre", ..., "final_post"."""
        return self._lens.labels

    @property
    def logits(self) -> torch.Tensor:
        """[layer, batch, pos, d_vocab] float32"""
        return self._lens.logits()

    @property
    def site(self) -> str:
        return self._lens.site

    @property
    def apply_ln(self) -> bool:
        return self._lens.apply_ln

    @property
    def verdict(self) -> _lenscpp.Verdict:
        """Of the run that was read."""
        return self._cache.verdict

    @property
    def record(self) -> dict[str, Any]:
        """Of the run that was read."""
        return self._cache.record

    def probs(self) -> torch.Tensor:
        """Softmax over the vocabulary: [layer, batch, pos, d_vocab] float32"""
        return self._lens.probs()

    def top_k(self, k: int = 10) -> TopK:
        """The k most likely tokens; ties in order of id. IndexError for a k beyond the vocabulary."""
        return TopK(*self._lens.top_k(_integer("k", k)))

    def rank(self, token: int | str) -> torch.Tensor:
        """How many tokens have a larger logit: LongTensor [layer, batch, pos], 0 for the most likely.

        token: an id, or a text that is one token (ValueError where it is not, IndexError for an id beyond the
        vocabulary).
        """
        if isinstance(token, str):
            tokenizer = self._cache.tokenizer
            if tokenizer is None:
                raise ValueError("[logit_lens] no tokenizer is at hand: give a token id, or, for a saved run, load it with lens.load(path, model)")
            token = _lenscpp.single_token(tokenizer, _inputs.utf8(token))
        return self._lens.rank(_integer("token", token))

    def entropy(self) -> torch.Tensor:
        """[layer, batch, pos] float32, in nats"""
        return self._lens.entropy()

    def plot(self, batch: int = 0) -> Figure:
        """Layers over positions, the last layer on top: each cell is labelled with its most likely token and
        coloured by that token's probability; hovering shows the five most likely."""
        import plotly.graph_objects as go  # type: ignore[import-untyped]

        n_layers, n_batch, n_pos, vocab = self._lens.shape
        batch = _integer("batch", batch)
        if not -n_batch <= batch < n_batch:
            raise IndexError(f"[logit_lens] batch {batch} out of range: there are {n_batch} (0..{n_batch - 1})")
        best = self.top_k(min(5, vocab))
        tokens, probs = best.tokens[:, batch].tolist(), best.probs[:, batch].tolist()  # [layer][pos][k]
        text = [[_pictures.short(_pictures.token_text(self._cache, cell[0])) for cell in row] for row in tokens]
        hover = [
            [
                "<br>".join(f"{escape(_pictures.visible(_pictures.token_text(self._cache, t)))}  {p:.1%}" for t, p in zip(tokens[l][i], probs[l][i]))
                for i in range(n_pos)
            ]
            for l in range(n_layers)
        ]
        prompt = _pictures.prompt(self._cache, batch, self._cache.positions or range(n_pos))
        with_text = n_pos <= MOST_CELLS
        figure = go.Figure(
            go.Heatmap(
                z=[[cell[0] for cell in row] for row in probs],
                x=list(range(n_pos)),
                y=list(range(n_layers)),
                zmin=0,
                zmax=1,
                colorscale=[[0, "#ffffff"], [1, "#5aa5d8"]],  # dark text is read on all of it
                colorbar={"title": {"text": "probability"}, "tickformat": ".0%", "thickness": 14},
                text=text,
                texttemplate="%{text}" if with_text else None,
                textfont={"size": 11, "color": "#111"},
                customdata=hover,
                hovertemplate="position %{x}, %{y}<br>%{customdata}<extra></extra>",
                xgap=1,
                ygap=1,
            )
        )
        labels = self.labels
        figure.update_layout(
            title={"text": self._title(), "font": {"size": 15}},
            template="plotly_white",
            width=180 + CELL * min(n_pos, MOST_CELLS) if n_pos > 8 else 180 + 8 * CELL,
            height=190 + 26 * n_layers,
            margin={"l": 20, "r": 20, "t": 60, "b": 20},
        )
        every = 1 if with_text else -(-n_pos // MOST_CELLS)
        shown = list(range(0, n_pos, every))
        figure.update_xaxes(
            title_text="token", tickvals=shown, ticktext=[_pictures.short(prompt[i]) for i in shown], tickangle=-60, automargin=True, showgrid=False
        )
        figure.update_yaxes(title_text="layer", tickvals=list(range(n_layers)), ticktext=labels, automargin=True, showgrid=False)
        return figure

    def __repr__(self) -> str:
        layers, batch, pos, vocab = self._lens.shape
        return f"<LogitLens of {self.site}, {layers} layers x {batch} prompts x {pos} positions x {vocab} tokens, {'with' if self.apply_ln else 'without'} the final norm>"

    def _title(self) -> str:
        norm = "" if self.apply_ln else ", without the final norm"
        return _pictures.title(f"Logit lens of {self.site}{norm}", self._cache)


def _integer(what: str, value: Any) -> int:
    number = _inputs.optional_int(what, value)
    if number is None:
        raise TypeError(f"[logit_lens] {what} is an int; found: None")
    return number
