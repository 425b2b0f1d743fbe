"""What a model may be given, turned into what the C++ side runs. Kinds are told here, so that an error
names a kind and never prints a tensor."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch

from . import _lenscpp

ALLOWED = "a str, a list of str or of pairs of them, or token ids [pos] or [batch, pos]: a torch.Tensor or numpy array of integers, or lists of int"


def kind(value: Any) -> str:
    """What something is, in a few words."""
    if isinstance(value, torch.Tensor):
        return f"a torch.Tensor of {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if is_numpy(value):
        return f"a numpy array of {value.dtype} {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a {type(value).__name__} of {', '.join(sorted({type(v).__name__ for v in value})) or 'nothing'}"
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def is_numpy(value: Any) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "dtype")


def tokens(model: _lenscpp.Model, value: Any, prepend_bos: bool | None = None, padding_side: str | None = None) -> _lenscpp.Tokens:
    """Token ids of any allowed input, shorter prompts padded. `prepend_bos` concerns text alone."""
    optional_bool("prepend_bos", prepend_bos)
    if padding_side is not None and (isinstance(value, torch.Tensor) or is_numpy(value)):
        raise ValueError("[model] padding_side is of texts and lists of unequal length; of a tensor of ids give attention_mask")
    if padding_side not in (None, "left", "right"):
        raise ValueError(f'[model] padding_side is "left", "right" or None; found: {padding_side!r}')
    refuse_bare_pair(model, value)
    if isinstance(value, str):
        return model.tokens_of_texts([utf8(value)], prepend_bos)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value):
        return model.tokens_of_texts([utf8(v) for v in value], prepend_bos, padding_side)
    if isinstance(value, (list, tuple)) and value and all(_is_pair(v) for v in value):
        if prepend_bos is not None:
            raise ValueError("[model] prepend_bos concerns texts by themselves, not pairs of them")
        return model.tokens_of_pairs([(utf8(first), utf8(second)) for first, second in value], padding_side)
    return model.tokens_of_ids(ids(value), padding_side=padding_side)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, str) for v in value)


def refuse_bare_pair(model: _lenscpp.Model, value: Any) -> None:
    """A tuple of two texts by itself: where pairs are put together it may mean one of them, or two prompts."""
    if _is_pair(value) and not model.config().get("causal", True):
        raise ValueError("[model] a tuple of two texts may be a pair or two prompts: give [(first, second)] for a pair, [first, second] for two prompts")


def is_text(value: Any) -> bool:
    """A text, texts, or pairs of them."""
    return isinstance(value, str) or (isinstance(value, (list, tuple)) and all(isinstance(v, str) or _is_pair(v) for v in value))


def padded_like(spans: list[list[int]], tokens: _lenscpp.Tokens, value: Any) -> _lenscpp.Tokens:
    """Ids of which nothing else is known, padded as a run that they are set beside. Texts know their own padding."""
    if not spans or tokens.spans or isinstance(value, str) or (isinstance(value, (list, tuple)) and isinstance(value[0], (str, tuple))):
        return tokens
    return tokens.masked([int(begin <= p < end) for begin, end in spans for p in range(tokens.pos)])


def with_mask(tokens: _lenscpp.Tokens, mask: Any) -> _lenscpp.Tokens:
    """The same prompts with an attention mask [batch, pos]: 1 for a token, 0 for padding, before or behind them."""
    return tokens if mask is None else tokens.masked(_one_each("attention_mask", mask, tokens))


def with_types(tokens: _lenscpp.Tokens, types: Any) -> _lenscpp.Tokens:
    """The same prompts with the kind of each token, [batch, pos]."""
    return tokens if types is None else tokens.typed(_one_each("token_type_ids", types, tokens))


def _one_each(what: str, values: Any, tokens: _lenscpp.Tokens) -> list[int]:
    if isinstance(values, (list, tuple)):
        try:
            values = torch.tensor(values)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"[model] {what} is [batch, pos] = [{tokens.batch}, {tokens.pos}] integers or bools; found: rows of unequal length, or what is no number") from None
    if is_numpy(values):
        values = torch.as_tensor(values)
    if isinstance(values, torch.Tensor) and values.is_floating_point() and bool((values == values.round()).all()):
        values = values.long()  # as torch.ones makes them
    if not isinstance(values, torch.Tensor) or values.is_floating_point() or values.is_complex():
        raise TypeError(f"[model] {what} are integers or bools [batch, pos]: a tensor, an array, lists; found: {kind(values)}")
    if values.dim() == 1 and tokens.batch == 1:
        values = values[None]  # of one prompt, as its tokens may be
    if list(values.shape) != [tokens.batch, tokens.pos]:
        raise ValueError(f"[model] {what} is [batch, pos] = [{tokens.batch}, {tokens.pos}]; found: {kind(values)}")
    return [int(v) for v in values.flatten().tolist()]


def ids(value: Any) -> torch.Tensor | list[list[int]]:
    """Token ids: a tensor as it is, anything else as rows of int."""
    if isinstance(value, torch.Tensor):
        return value
    if is_numpy(value):
        if value.dtype.kind not in "iu":
            raise TypeError(f"[model] token ids are integers; found: {kind(value)}")
        if value.ndim not in (1, 2) or value.size == 0:
            raise ValueError(f"[model] tokens of shape {list(value.shape)}; allowed: [pos] and [batch, pos], neither of them 0")
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"[model] needed: {ALLOWED}; found: {kind(value)}")
    if not value:
        raise ValueError("[model] no prompt and no tokens were given: the list is empty")
    nested = isinstance(value[0], (list, tuple))
    if any(isinstance(v, (list, tuple)) != nested for v in value):
        raise TypeError(f"[model] needed: {ALLOWED}; found: {kind(value)}")
    rows = [[token_id(v) for v in row] for row in (value if nested else [value])]
    if not all(rows):
        raise ValueError("[model] a prompt of no tokens was given")
    return rows


def token_id(value: Any) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"[model] a token id is an int; found: {kind(value)}") from None
    if not -(2**63) <= number < 2**63:
        raise IndexError("[model] a token id beyond 64 bits")
    return number


def utf8(text: str) -> str:
    """The text, if it can be encoded: half a surrogate pair is no character (UnicodeEncodeError, a ValueError)."""
    text.encode()
    return text


def optional_bool(what: str, value: Any) -> None:
    if value is not None and not isinstance(value, bool):
        raise TypeError(f"[model] {what} is True, False or None; found: {kind(value)}")


def optional_int(what: str, value: Any) -> int | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{what if what.startswith('[') else f'[model] {what}'} is an int or None; found: {kind(value)}") from None


def positions(pos_slice: Any, pos: int, what: str = "[model] pos_slice") -> list[int] | None:
    """TransformerLens's slices: an int keeps the axis, a tuple is a Python slice, a list or array are indices.

    IndexError for a position that is not there, ValueError where nothing is left (there, silent).
    """
    if pos_slice is None:
        return None
    if isinstance(pos_slice, (slice, tuple)):
        bounds = (pos_slice.start, pos_slice.stop, pos_slice.step) if isinstance(pos_slice, slice) else pos_slice
        if not 1 <= len(bounds) <= 3:
            raise ValueError(f"{what}: a tuple of {len(bounds)}; allowed: (stop,), (start, stop), (start, stop, step)")
        parts = slice(*(optional_int(what, b) for b in bounds))
        if parts.step is not None and parts.step < 1:
            raise ValueError(f"{what}: a step of {parts.step}; allowed: 1 and more")
        chosen = list(range(pos))[parts]
        if not chosen:
            raise ValueError(f"{what} {pos_slice} selects none of {pos} positions")
        return chosen
    if isinstance(pos_slice, torch.Tensor) or is_numpy(pos_slice):
        pos_slice = pos_slice.tolist()
    if isinstance(pos_slice, (list, range)):
        listed = list(pos_slice)
        if listed and all(isinstance(p, bool) for p in listed):
            if len(listed) != pos:
                raise IndexError(f"{what}: a mask of {len(listed)} for {pos} positions")
            listed = [p for p, chosen_here in enumerate(listed) if chosen_here]
    else:
        listed = [pos_slice]
    chosen = []
    for p in listed:
        try:
            if isinstance(p, bool):
                raise TypeError
            index = operator.index(p)
        except TypeError:
            raise TypeError(f"{what} is an int, a tuple (a slice), a list, range, tensor or array of positions; found: {kind(p)}") from None
        if not -pos <= index < pos:
            raise IndexError(f"{what}: position {index} out of range: there are {pos} (0..{pos - 1})")
        chosen.append(index % pos)
    if not chosen:
        raise ValueError(f"{what} selects none of {pos} positions")
    return chosen


def names(model: _lenscpp.Model, names_filter: str | Iterable[str] | Callable[[str], bool] | None) -> dict[str, Any]:
    """The keywords of Model.run that a names_filter means. A predicate sees every name once; those that exist
    only on demand must be named."""
    if names_filter is None:
        return {}
    if isinstance(names_filter, str):
        return {"names": [names_filter]}
    if callable(names_filter):
        chosen = [name for name in model.hook_names() if names_filter(name)]
        if not chosen:
            extra = [name for name in model.hook_names(on_demand=True) if name not in set(model.hook_names()) and names_filter(name)]
            more = f"; {extra[0]!r} is computed where it is named, in a list" if extra else '; names look like "blocks.0.hook_resid_pre"'
            raise ValueError(f"[model] names_filter matches no hook point{more}")
        return {"among": chosen}
    if isinstance(names_filter, (list, tuple, set, frozenset)):
        if not all(isinstance(name, str) for name in names_filter):
            raise TypeError(f"[model] names_filter: needed: hook names; found: {kind(list(names_filter))}")
        if not names_filter:
            raise ValueError("[model] names_filter is empty: nothing would be kept; call the model for its logits alone")
        return {"names": list(names_filter)}
    raise TypeError(f"[model] names_filter is None, a str, a list of str or a function of a name; found: {kind(names_filter)}")
