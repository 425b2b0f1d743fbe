"""What a run is scored by. The formulas are in patching/metrics.h; here tokens are spelled and resolved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import _inputs, _lenscpp


class Metric:
    """One number a prompt from logits [batch, pos, d_vocab], in float64; a grid's cell is their mean.

    Called on a tensor of logits it returns that mean, a float64 scalar tensor, so that it also serves where
    TransformerLens takes a function of logits. Tokens given as text must be resolved for that: resolve(model).
    """

    def __init__(self, kind: str, pos: int | None, **tokens: Any) -> None:
        self._kind = kind
        self._pos = pos if pos is None else _integer("pos", pos)
        self._tokens = {name: _listed(name, value) for name, value in tokens.items()}

    def resolve(self, model: Any) -> Metric:
        """The same with token ids for texts. ValueError for a text that is not one token of the model's tokenizer."""
        resolved = object.__new__(type(self))
        resolved.__dict__.update(self.__dict__)
        ids = {name: [model.to_single_token(t) if isinstance(t, str) else t for t in tokens] for name, tokens in self._tokens.items()}
        resolved._tokens = ids
        return resolved

    def per_prompt(self, logits: torch.Tensor) -> torch.Tensor:
        """float64 [batch]. IndexError (token, pos), ValueError (shapes, tokens that are still text)."""
        return self._made().values(logits)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return self.per_prompt(logits).mean()

    def __repr__(self) -> str:
        parts = [*(f"{name}={(tokens[0] if len(tokens) == 1 else tokens)!r}" for name, tokens in self._tokens.items())]
        return f"{type(self).__name__}({', '.join([*parts, *([] if self._pos is None else [f'pos={self._pos}'])])})"

    def _made(self) -> _lenscpp.Metric:
        texts = [t for tokens in self._tokens.values() for t in tokens if isinstance(t, str)]
        if texts:
            raise ValueError(f"[metric] {texts[0]!r} is text: call resolve(model), or give token ids")
        make = getattr(_lenscpp.Metric, self._kind)
        return make(**self._tokens, **({} if self._pos is None else {"pos": self._pos}))


class LogitDiff(Metric):
    """logit[answer] - logit[wrong] at `pos`, negative from the end.

    answer, wrong: a token id, a text that is one token (" Mary"), or one of either a prompt.
    """

    def __init__(self, answer: Any, wrong: Any, pos: int = -1) -> None:
        super().__init__("logit_diff", pos, answer=answer, wrong=wrong)


class Prob(Metric):
    """The probability of a token (an id, a text that is one token, or one a prompt) at `pos`."""

    def __init__(self, token: Any, pos: int = -1) -> None:
        super().__init__("prob", pos, token=token)


class LogProb(Metric):
    """The logarithm, in nats, of the probability of a token (an id, a text, or one a prompt) at `pos`."""

    def __init__(self, token: Any, pos: int = -1) -> None:
        super().__init__("log_prob", pos, token=token)


class ProbDiff(Metric):
    """The sum of the probabilities of `answers` less that of `wrong` at `pos`: of greater-than, for instance.

    answers, wrong: token ids or texts that are one token; the same for every prompt.
    """

    def __init__(self, answers: Any, wrong: Any, pos: int = -1) -> None:
        super().__init__("prob_diff", pos, answers=answers, wrong=wrong)

    def _made(self) -> _lenscpp.Metric:
        assert self._pos is not None
        lists = {name: [self._checked_ids(tokens)] for name, tokens in self._tokens.items()}
        return _lenscpp.Metric.prob_diff(lists["answers"], lists["wrong"], self._pos)

    @staticmethod
    def _checked_ids(tokens: list[Any]) -> list[int]:
        for token in tokens:
            if isinstance(token, str):
                raise ValueError(f"[metric] {token!r} is text: call resolve(model), or give token ids")
        return tokens


class KL(Metric):
    """KL(reference || run) of the predictions at `pos`, in nats.

    reference: logits [batch, pos, d_vocab], or of one prompt, which then serves every prompt.
    """

    def __init__(self, reference: torch.Tensor, pos: int = -1) -> None:
        if not isinstance(reference, torch.Tensor):
            raise TypeError(f"[metric] KL: reference logits are a torch.Tensor; found: {_inputs.kind(reference)}")
        super().__init__("kl", pos)
        self._reference = reference.detach().clone()

    def _made(self) -> _lenscpp.Metric:
        assert self._pos is not None
        return _lenscpp.Metric.kl(self._reference, self._pos)


class Loss(Metric):
    """The mean over positions of -log p(next token), in nats.

    tokens: what is to be predicted, [pos] or [batch, pos]; None means the clean prompt's, in both runs of a pair.
    """

    def __init__(self, tokens: Any = None) -> None:
        super().__init__("loss", None)
        ids = None if tokens is None else _inputs.ids(tokens)
        self._targets: list[int] | None = None if ids is None else torch.as_tensor(ids).flatten().tolist()

    def _for_pair(self, clean_tokens: torch.Tensor) -> Loss:
        return self if self._targets is not None else Loss(clean_tokens)

    def _made(self) -> _lenscpp.Metric:
        if self._targets is None:
            raise ValueError("[metric] Loss() takes the clean prompt's tokens in patch_grid; elsewhere give them: Loss(tokens)")
        return _lenscpp.Metric.loss(self._targets)


AnyMetric = Metric | Callable[[torch.Tensor], Any]


def made(metric: AnyMetric, model: Any, clean_tokens: torch.Tensor) -> _lenscpp.Metric:
    """What the C++ side runs, for one pair of prompts."""
    if isinstance(metric, Loss):
        metric = metric._for_pair(clean_tokens)
    if isinstance(metric, Metric):
        return metric.resolve(model)._made()
    if callable(metric):
        return _lenscpp.Metric.function(metric)
    raise TypeError(f"[metric] needed: a LogitDiff, Prob, LogProb, KL, Loss, or a function of logits; found: {_inputs.kind(metric)}")


def _listed(what: str, value: Any) -> list[Any]:
    if isinstance(value, torch.Tensor) or _inputs.is_numpy(value):
        value = value.tolist()
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        raise ValueError(f"[metric] {what} is empty; needed: a token, or one a prompt")
    return [_inputs.utf8(v) if isinstance(v, str) else _inputs.token_id(v) for v in values]


def _integer(what: str, value: Any) -> int:
    number = _inputs.optional_int(what, value)
    assert number is not None
    return number
