"""HookedTransformer as researchers know it from TransformerLens, over the C++ model."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import _hooks, _inputs, _lenscpp, _simulated, faults
from ._config import HookedTransformerConfig, config_of

Output = torch.Tensor | tuple[torch.Tensor, torch.Tensor] | None
NamesFilter = str | Iterable[str] | Callable[[str], bool] | None

MODELS = Path(__file__).parent / "models"
_DTYPES = ("float32", "float64", "bfloat16", "float16")
_RETURNS = {"logits": "logits", "loss": "loss", "both": "both", None: "none"}


class HookedTransformer:
    """A transformer whose every run is checked before anybody reads it.

    Made by from_pretrained. Runs raise VerificationFailed by themselves when what the device computed is not
    the model. Nothing is left on the model after a call but what add_hook put there; tensors handed out are CPU
    tensors of the caller's own.
    """

    def __init__(self, cfg: Any = None, tokenizer: Any = None) -> None:
        raise NotImplementedError("[model] models from a config alone are not built yet: use HookedTransformer.from_pretrained")

    # ---- loading ----

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        fold_value_biases: bool = True,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        verify: str = "exact",
        matmul_precision: str = "ieee",
        allow_fallback: bool = True,
        adapter: str | os.PathLike[str] | None = None,
        first_n_layers: int | None = None,
        tokenizer: Any = None,
        default_prepend_bos: bool | None = None,
        default_padding_side: str | None = None,
    ) -> HookedTransformer:
        """Loads a Hugging Face folder as it lies there, or a model that ships ("tiny-ioi"). Downloads nothing.

        The four processing steps are TransformerLens's, on by default, computed in float64 and checked against
        the raw model. device: None means the CPU; no accelerator is ever chosen unasked. dtype: "float32"
        "float64" "bfloat16" "float16", or torch's. verify: "exact", "checksum" or "off". matmul_precision: "ieee", or
        "tf32" to let a device round the operands of float32 products to 11 bits, with bounds that allow just that.
        allow_fallback: False refuses (DeviceError) a run in which operators ran on the CPU because the device has
        none; they are named in record and verdict either way. tokenizer: path of a tokenizer.json, or a loaded one
        (tokenizers.Tokenizer, a fast tokenizer of transformers, another model's); None takes the folder's, if any.
        default_prepend_bos: None means yes where the tokenizer has a BOS token; of a model that sees both ways, the special tokens that
        its tokenizer puts around a text, which True and False do without. default_padding_side: of prompts of
        unequal length, "right" (None) or "left". adapter: a folder in peft's format (LoRA
        or DoRA: adapter_config.json, adapter_model.safetensors), merged in float64 before processing and rounding; every
        merged weight is checked against checkpoint and adapter, and the record names folder and digest. first_n_layers:
        of the other layers nothing is read.

        Raises FileNotFoundError (no such model or file), ValueError naming file and field (what is malformed
        or not understood; an adapter of another model), IndexError (first_n_layers), DeviceError (unknown or missing
        device), TypeError, RuntimeError (processing or merging changed what the model computes).
        """
        folder = _folder(name_or_path)
        processing = {
            "fold_ln": fold_ln,
            "center_writing_weights": center_writing_weights,
            "center_unembed": center_unembed,
            "fold_value_biases": fold_value_biases,
        }
        for step, on in {**processing, "allow_fallback": allow_fallback}.items():
            if not isinstance(on, bool):
                raise TypeError(f"[model] {step} is True or False; found: {_inputs.kind(on)}")
        _inputs.optional_bool("default_prepend_bos", default_prepend_bos)
        model = _lenscpp.Model.load(
            os.fspath(folder),
            **processing,
            device=_device(device),
            dtype=_dtype(dtype),
            verify=_verify(verify),
            matmul_precision=_matmul_precision(matmul_precision),
            allow_fallback=allow_fallback,
            first_n_layers=_inputs.optional_int("first_n_layers", first_n_layers),
            adapter=_adapter(adapter),
            tokenizer=_tokenizer(tokenizer),
            default_prepend_bos=default_prepend_bos,
            default_padding_side=default_padding_side,
        )
        self = object.__new__(cls)
        self._model = model
        self._cfg = config_of(model)
        self._hooked = _hooks.Hooks(model)
        return self

    @classmethod
    def from_pretrained_no_processing(cls, name_or_path: str | os.PathLike[str], **options: Any) -> HookedTransformer:
        """from_pretrained with the four processing steps off: the checkpoint's own numbers."""
        steps = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
        return cls.from_pretrained(name_or_path, **{**dict.fromkeys(steps, False), **options})

    # ---- what it is ----

    _model: _lenscpp.Model
    _cfg: HookedTransformerConfig
    _hooked: _hooks.Hooks

    @property
    def cfg(self) -> HookedTransformerConfig:
        """Dimensions and kinds under TransformerLens's names; read only."""
        return self._cfg

    @property
    def tokenizer(self) -> _lenscpp.Tokenizer | None:
        return self._model.tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model runs. What it hands out is on the CPU, where it was verified."""
        return torch.device(self._model.device)

    @property
    def dtype(self) -> torch.dtype:
        return self._cfg.dtype

    @property
    def verify(self) -> str:
        """How runs are verified unless a call says otherwise: "exact", "checksum" or "off"."""
        return self._model.verify

    @property
    def processing(self) -> dict[str, bool]:
        """Which processing steps the weights went through."""
        return self._model.processing()

    @property
    def adapter(self) -> str | None:
        """Folder and digest of the adapter that was merged into the weights, as every record has it; None without one."""
        return self._model.adapter or None

    @property
    def digest(self) -> str:
        """Of config and weights, as every record of a run has it."""
        return self._model.digest()

    @property
    def hook_names(self) -> list[str]:
        """Every name that a default run caches, in firing order."""
        return self._model.hook_names()

    def __repr__(self) -> str:
        c = self._cfg
        steps = [step for step, on in self.processing.items() if on]
        return (
            f"<HookedTransformer {c.model_name}: {c.n_layers} layers, {c.n_heads} heads, d_model {c.d_model}, d_vocab {c.d_vocab}; "
            f"{self._model.dtype} on {self._model.device}, verify {self.verify}; processed: {', '.join(steps) or 'nothing'}>"
        )

    # ---- tokens ----

    def to_tokens(
        self,
        input: str | list[str] | list[tuple[str, str]],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        *,
        return_attention_mask: bool = False,
        return_token_type_ids: bool = False,
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """LongTensor [batch, pos] of a text or of texts, shorter ones padded on padding_side ("left" or "right").

        prepend_bos, padding_side: None means the model's default. A model that sees both ways gets the special tokens
        that its tokenizer puts around a text, and takes pairs of texts as well: [(first, second), ...]. What else a run of these tokens needs
        is returned where it is asked for, behind them and in this order, all [batch, pos]: return_attention_mask, 1
        for tokens and 0 for padding (UserWarning where there is padding and nobody asks), to give back as
        attention_mask; return_token_type_ids, which of a pair a token is of (ValueError for pairs where nobody asks), as
        token_type_ids. ValueError without a tokenizer and for text that cannot be encoded; nothing is truncated.
        """
        texts = [input] if isinstance(input, str) else input
        if not isinstance(texts, (list, tuple)) or not _inputs.is_text(texts):
            raise TypeError(f"[model] to_tokens takes a str, a list of str or of pairs of them; found: {_inputs.kind(input)}")
        if not texts:
            raise ValueError("[model] no prompt was given")
        tokens = _inputs.tokens(self._model, texts, prepend_bos, padding_side)
        has_types = "n_token_types" in self._model.config()
        if return_token_type_ids and not has_types:
            raise ValueError("[model] return_token_type_ids: this model has no kinds of tokens")
        if has_types and not return_token_type_ids and not isinstance(texts[0], str):
            raise ValueError("[model] a run of pairs needs to know which of the two a token is of: ask with return_token_type_ids=True, and give them back as token_type_ids")
        if tokens.spans and not return_attention_mask:
            warnings.warn(
                "[model] these prompts are of unequal length, and a run of their tokens needs to know what is padding: "
                "ask with return_attention_mask=True, and give it back as attention_mask",
                UserWarning,
                stacklevel=2,
            )
        made = [tokens.tensor(), *([tokens.mask()] if return_attention_mask else []), *([tokens.types()] if return_token_type_ids else [])]
        return made[0] if len(made) == 1 else tuple(made)

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of tokens: a str for an int or [pos], a list of str for [batch, pos]."""
        tokenizer = self._tokenizer()
        if isinstance(tokens, int) or (isinstance(tokens, torch.Tensor) and tokens.dim() == 0):
            return tokenizer.decode([_inputs.token_id(tokens)])
        rows = self._rows(tokens)
        texts = [tokenizer.decode(row) for row in rows]
        return texts if _nested(tokens) else texts[0]

    def to_str_tokens(self, input: Any, prepend_bos: bool | None = None) -> list[str] | list[list[str]]:
        """Every token as a text of its own: a list for one prompt, a list of lists for a list of texts.

        prepend_bos concerns text alone. ValueError for a batch of more than one row of ids.
        """
        _inputs.refuse_bare_pair(self._model, input)
        if isinstance(input, (list, tuple)) and input and all(isinstance(v, str) for v in input):
            return [self._str_tokens(_inputs.tokens(self._model, v, prepend_bos).rows()[0]) for v in input]
        if isinstance(input, str):
            return self._str_tokens(_inputs.tokens(self._model, input, prepend_bos).rows()[0])
        return self._str_tokens(self._one_row(input))

    def to_single_token(self, string: str) -> int:
        """The id of a text that is one token; ValueError listing the tokens where it is not."""
        if not isinstance(string, str):
            raise TypeError(f"[model] to_single_token takes a str; found: {_inputs.kind(string)}")
        return self._model.to_single_token(_inputs.utf8(string))

    def to_single_str_token(self, int_token: int) -> str:
        """The text of one token id; ValueError for an id that no token has."""
        return self._tokenizer().decode([_inputs.token_id(int_token)])

    def get_token_position(
        self, single_token: str | int, input: Any, mode: str = "first", prepend_bos: bool | None = None
    ) -> int:
        """Where a token stands in a text or in one row of ids: its first or last position (mode).

        ValueError where it does not occur.
        """
        if mode not in ("first", "last"):
            raise ValueError(f'[model] mode {mode!r}; allowed: "first", "last"')
        row = _inputs.tokens(self._model, input, prepend_bos).rows()[0] if isinstance(input, str) else self._one_row(input)
        token = self.to_single_token(single_token) if isinstance(single_token, str) else _inputs.token_id(single_token)
        if token not in row:
            raise ValueError(f"[model] token {token} does not occur in this prompt of {len(row)} tokens")
        return row.index(token) if mode == "first" else len(row) - 1 - row[::-1].index(token)

    def tokens_to_residual_directions(self, tokens: Any) -> torch.Tensor:
        """The columns of W_U of tokens: [d_model] for one (a str or int), [..., d_model] for ids [...]."""
        if isinstance(tokens, (str, int)) or (isinstance(tokens, torch.Tensor) and tokens.numel() == 1):
            token = self.to_single_token(tokens) if isinstance(tokens, str) else _inputs.token_id(tokens)
            return self._model.residual_directions([token], [])
        rows = self._rows(tokens)
        shape = [len(rows), len(rows[0])] if _nested(tokens) else [len(rows[0])]
        return self._model.residual_directions([t for row in rows for t in row], shape)

    # ---- runs ----

    def forward(
        self,
        input: Any,
        return_type: str | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        attention_mask: Any = None,
        verify: str | None = None,
        *,
        padding_side: str | None = None,
        token_type_ids: Any = None,
        plan: _lenscpp.Plan | _lenscpp.Edit | Sequence[_lenscpp.Edit] | None = None,
        tokens: Any = None,
    ) -> Output:
        """Runs the model and verifies the run.

        input: a str, a list of str, or token ids [pos] or [batch, pos] (a tensor, an array, lists); with
        start_at_layer, the residual [batch, pos, d_model] before that layer instead (and `tokens` where a loss is
        wanted). start_at_layer is inclusive, stop_at_layer exclusive, both may be negative. Texts and lists of ids
        of unequal length are padded on padding_side (None: the model's default). attention_mask: [batch, pos], 1 for
        tokens and 0 for padding before or behind them, which no query sees; positions are counted from a prompt's
        first token, also in encoders (transformers' count padding on the left, and give such a prompt other numbers
        there than by itself), and a query of padding that sees nothing attends to nothing (a pattern of zeros, as in
        TransformerLens). token_type_ids: [batch, pos], of models that have kinds of tokens; None: all 0.
        Of one prompt both may be [pos].

        Returns logits [batch, pos, d_vocab], of a classifier [batch, label], and the last residual where a model has
        no logits; with stop_at_layer the residual [batch, pos, d_model]; with return_type "loss" the mean of
        -log p(next token) in nats, or [batch, pos - 1] of them (loss_per_token; 0 where padding is read or
        predicted); "both" is (logits, loss); None is None.

        Raises VerificationFailed when the run is INVALID; ValueError, IndexError, TypeError naming what was
        found and what is allowed; KeyboardInterrupt between two tensors.
        """
        result, _ = self._run(
            input,
            return_type,
            loss_per_token,
            prepend_bos,
            start_at_layer,
            stop_at_layer,
            attention_mask,
            verify,
            plan,
            tokens,
            padding_side=padding_side,
            token_type_ids=token_type_ids,
            keep=False,
        )
        return result

    __call__ = forward

    def run_with_cache(
        self,
        input: Any,
        names_filter: NamesFilter = None,
        pos_slice: Any = None,
        plan: _lenscpp.Plan | _lenscpp.Edit | Sequence[_lenscpp.Edit] | None = None,
        stop_at_layer: int | None = None,
        return_type: str | None = "logits",
        prepend_bos: bool | None = None,
        verify: str | None = None,
        drift: bool = False,
        *,
        start_at_layer: int | None = None,
        attention_mask: Any = None,
        padding_side: str | None = None,
        token_type_ids: Any = None,
        loss_per_token: bool = False,
        tokens: Any = None,
    ) -> tuple[Output, _lenscpp.VerifiedCache | _lenscpp.UnverifiedCache]:
        """Runs, verifies all of the run, and keeps its activations: (what forward returns, VerifiedCache).

        names_filter: None (every default hook point), a name, a list of names (those that exist on demand
        included: hook_result, hook_attn_in, hook_q_input, ..., hook_mlp_in, hook_tokens), or a function of a
        name. pos_slice: positions to keep, as TransformerLens slices (an int keeps the axis, a tuple is a Python
        slice, a list are indices). plan: a lens.Plan, an edit or a list of them. drift: also report how far the run is from a
        float64 run from the same tokens, in cache.verdict.drift. verify="off" returns an UnverifiedCache, which
        no analysis takes.

        Raises what forward raises; ValueError where names_filter or pos_slice matches nothing.
        """
        if not isinstance(drift, bool):
            raise TypeError(f"[model] drift is True or False; found: {_inputs.kind(drift)}")
        result, cache = self._run(
            input,
            return_type,
            loss_per_token,
            prepend_bos,
            start_at_layer,
            stop_at_layer,
            attention_mask,
            verify,
            plan,
            tokens,
            padding_side=padding_side,
            token_type_ids=token_type_ids,
            keep=True,
            drift=drift,
            names_filter=names_filter,
            pos_slice=pos_slice,
        )
        assert cache is not None
        return result, cache

    # ---- hooks ----

    def run_with_hooks(
        self,
        input: Any,
        return_type: str | None = "logits",
        *args: Any,
        fwd_hooks: _hooks.Pairs = (),
        bwd_hooks: Iterable[Any] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **options: Any,
    ) -> Output:
        """forward (whose arguments these are) with functions at hook points: see hooks."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self.forward(input, return_type, *args, **options)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: _hooks.Pairs = (),
        bwd_hooks: Iterable[Any] = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedTransformer]:
        """Every run of this model inside the block, in this thread or task, calls these functions.

        fwd_hooks: pairs (name, fn). name: a full hook name, a short one ("z3", ("z", 3), ("scale", 3, "ln1")), or
        a predicate, which is asked about the default hook points (those that exist on demand, hook_result,
        hook_q_input, ..., must be named; naming one makes the run compute it). fn(tensor, hook) gets a CPU clone
        of the activation, after the plan's edits there, and a HookPoint (name, layer(), ctx). What it returns
        takes the activation's place; returning None leaves it, but a clone that was changed in place counts as
        returned. Functions at one hook point are called in order; blocks nest. Runs of this model inside fn call
        none of these functions.

        Everything else is verified as ever, what the device goes on with is compared bit by bit with what fn
        returned, and cache.record["hooks"] names each call with digests before and after. The cache holds the
        values after the hooks. reset_hooks_end=False leaves the hooks on the model after the block, as add_hook
        does; clear_contexts empties every ctx where they are removed.

        Raises ValueError naming the nearest names, or where a predicate matches nothing; IndexError for a layer
        that the model has not; NotImplementedError for bwd_hooks. A run raises ValueError where a hook would never
        fire (stop_at_layer, start_at_layer) and for a returned tensor of another shape, dtype or device or with
        values that are not finite (-inf in hook_attn_scores hides a key), TypeError for what is no tensor, and
        what fn raises.
        """
        _hooks.refuse_backward(bwd_hooks)
        with self._hooked.block(fwd_hooks, reset_hooks_end, clear_contexts):
            yield self

    def add_hook(
        self,
        name: _hooks.HookName,
        hook: _hooks.HookFunction,
        dir: str = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """A function for every run of this model, in any thread, until reset_hooks: see hooks.

        is_permanent: reset_hooks leaves it, unless told otherwise. level: a number for reset_hooks. prepend:
        before the functions that were added already. Raises what hooks raises.
        """
        _hooks.check_direction(dir, ("fwd",))
        self._hooked.add(name, hook, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_perma_hook(self, name: _hooks.HookName, hook: _hooks.HookFunction, dir: str = "fwd") -> None:
        """add_hook with is_permanent."""
        self.add_hook(name, hook, dir, is_permanent=True)

    def reset_hooks(
        self, clear_contexts: bool = True, direction: str = "both", including_permanent: bool = False, level: int | None = None
    ) -> None:
        """Removes the functions that were added, and those of the blocks that are open here.

        clear_contexts: empties every ctx. including_permanent: permanent ones too. level: only those of this level.
        """
        _hooks.check_direction(direction, ("fwd", "bwd", "both"))
        if clear_contexts:
            self._hooked.clear_contexts()
        if direction != "bwd":
            self._hooked.reset(including_permanent, level)

    def clear_contexts(self) -> None:
        """Empties the ctx of every hook point."""
        self._hooked.clear_contexts()

    def list_hooks(
        self, name_filter: NamesFilter = None, dir: str = "both", including_permanent: bool = True
    ) -> dict[str, list[_hooks.Hook]]:
        """Hook name -> the functions that a run would call there now, in order; without those that have none.

        name_filter: a name, names or a predicate. ValueError for a name that is not there.
        """
        _hooks.check_direction(dir, ("fwd", "bwd", "both"))
        if name_filter is None or callable(name_filter):
            matches = name_filter or (lambda _: True)
        else:
            names = {self._hooked.full_name(n) for n in ([name_filter] if isinstance(name_filter, str) else name_filter)}
            matches = names.__contains__
        listed: dict[str, list[_hooks.Hook]] = {}
        for hook in self._hooked.active() if dir != "bwd" else []:
            if matches(hook.name) and (including_permanent or not hook.is_permanent):
                listed.setdefault(hook.name, []).append(hook)
        return {name: listed[name] for name in self._hooked.points if name in listed}

    @property
    def hook_dict(self) -> dict[str, _hooks.HookPoint]:
        """Hook name -> HookPoint, those that exist on demand included, in firing order."""
        return dict(self._hooked.points)

    # ---- runs recorded elsewhere ----

    def verify_recorded(
        self, tokens: Any, activations: Mapping[str, torch.Tensor], attention_mask: Any = None, token_type_ids: Any = None
    ) -> _lenscpp.VerifiedCache:
        """See lenscpp.verify_recorded."""
        if not isinstance(activations, Mapping) or not all(isinstance(name, str) for name in activations):
            raise TypeError(f"[verify] activations: needed: a dict of hook name -> torch.Tensor; found: {_inputs.kind(activations)}")
        run_tokens = _inputs.with_types(_inputs.with_mask(_inputs.tokens(self._model, tokens), attention_mask), token_type_ids)
        return self._model.verify_recorded(run_tokens, dict(activations))

    def _run(
        self,
        input: Any,
        return_type: str | None,
        loss_per_token: bool,
        prepend_bos: bool | None,
        start_at_layer: int | None,
        stop_at_layer: int | None,
        attention_mask: Any,
        verify: str | None,
        plan: _lenscpp.Plan | _lenscpp.Edit | Sequence[_lenscpp.Edit] | None,
        tokens: Any,
        *,
        padding_side: str | None,
        token_type_ids: Any,
        keep: bool,
        drift: bool = False,
        names_filter: NamesFilter = None,
        pos_slice: Any = None,
    ) -> tuple[Output, _lenscpp.VerifiedCache | _lenscpp.UnverifiedCache | None]:
        if return_type is not None and return_type not in _RETURNS:
            raise ValueError(f'[model] return_type {return_type!r}; allowed: "logits", "loss", "both", None')
        start_at_layer = _inputs.optional_int("start_at_layer", start_at_layer)
        if start_at_layer is None:
            if tokens is not None:
                raise ValueError("[model] tokens are given beside a residual (start_at_layer) alone: the input is tokens already")
            run_tokens = _inputs.tokens(self._model, input, prepend_bos, padding_side)
            if attention_mask is None:
                self._warn_of_padding(input, run_tokens)
            run_tokens = _inputs.with_types(run_tokens, token_type_ids)
        else:
            batch, pos = _residual_shape(input, self._cfg.d_model)
            if tokens is not None:
                run_tokens = _inputs.tokens(self._model, tokens, prepend_bos, padding_side)
                if (run_tokens.batch, run_tokens.pos) != (batch, pos):
                    raise ValueError(f"[model] tokens [{run_tokens.batch}, {run_tokens.pos}] beside a residual [{batch}, {pos}, d_model]")
            elif return_type in ("loss", "both") and stop_at_layer is None:
                raise ValueError("[model] a loss from a residual needs the tokens: give tokens=")
            else:
                run_tokens = self._model.tokens_of_ids([[0] * pos] * batch, False)
        run_tokens = _inputs.with_mask(run_tokens, attention_mask)
        active = faults._for_run()
        fired: list[tuple[str, str, int]] = []
        try:
            return self._model.run(
                run_tokens,
                _RETURNS[return_type],
                bool(loss_per_token),
                keep,
                start_at_layer=start_at_layer,
                residual=None if start_at_layer is None else input,
                stop_at_layer=_inputs.optional_int("stop_at_layer", stop_at_layer),
                verify=None if verify is None else _verify(verify),
                plan=_plan(plan),
                callbacks=self._hooked.callbacks(),
                drift=drift,
                pos_slice=_inputs.positions(pos_slice, run_tokens.pos),
                faults=[injection._spec for injection in active],
                fired=fired,
                **(_inputs.names(self._model, names_filter) if keep else {"names": []}),
            )
        finally:
            for injection in active:
                injection.fired += [(name, changed) for fault, name, changed in fired if fault == injection._spec.name]

    # ---- weights: copies, as processed, in the model's dtype ----

    W_E = property(lambda self: self._model.weight("W_E"), doc="[d_vocab, d_model]")
    W_pos = property(lambda self: self._model.weight("W_pos"), doc="[n_ctx, d_model]")
    W_U = property(lambda self: self._model.weight("W_U"), doc="[d_model, d_vocab]")
    b_U = property(lambda self: self._model.weight("b_U"), doc="[d_vocab]")
    W_Q = property(lambda self: self._model.weight("W_Q"), doc="[layer, head, d_model, d_head]")
    W_K = property(lambda self: self._model.weight("W_K"), doc="[layer, head, d_model, d_head]")
    W_V = property(lambda self: self._model.weight("W_V"), doc="[layer, head, d_model, d_head]")
    W_O = property(lambda self: self._model.weight("W_O"), doc="[layer, head, d_head, d_model]")
    b_Q = property(lambda self: self._model.weight("b_Q"), doc="[layer, head, d_head]")
    b_K = property(lambda self: self._model.weight("b_K"), doc="[layer, head, d_head]")
    b_V = property(lambda self: self._model.weight("b_V"), doc="[layer, head, d_head]")
    b_O = property(lambda self: self._model.weight("b_O"), doc="[layer, d_model]")
    W_router = property(lambda self: self._model.weight("W_router"), doc="[layer, d_model, expert], where there are experts; those have an axis of their own in what follows")
    W_gate = property(lambda self: self._model.weight("W_gate"), doc="[layer, (expert,) d_model, d_mlp], where MLPs are gated")
    b_gate = property(lambda self: self._model.weight("b_gate"), doc="[layer, (expert,) d_mlp], where MLPs are gated")
    W_in = property(lambda self: self._model.weight("W_in"), doc="[layer, (expert,) d_model, d_mlp]")
    W_out = property(lambda self: self._model.weight("W_out"), doc="[layer, (expert,) d_mlp, d_model]")
    b_in = property(lambda self: self._model.weight("b_in"), doc="[layer, (expert,) d_mlp]")
    b_out = property(lambda self: self._model.weight("b_out"), doc="[layer, d_model]")

    # ---- helpers ----

    def _tokenizer(self) -> _lenscpp.Tokenizer:
        tokenizer = self._model.tokenizer
        if tokenizer is None:
            raise ValueError("[model] this model has no tokenizer: give token ids, or load it from a folder with a tokenizer.json")
        return tokenizer

    def _warn_of_padding(self, input: Any, tokens: _lenscpp.Tokens) -> None:
        """As transformers does, of ids that hold the padding token of a tokenizer which has one of its own."""
        pad, tokenizer = self._model.pad_token, self._model.tokenizer
        if tokenizer is None or pad is None or pad in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            return
        if not _inputs.is_text(input) and ((tokens.tensor() == pad) & tokens.mask().bool()).any():
            warnings.warn(
                "[model] these token ids hold the padding token, and no attention_mask says where: it is read like any other",
                UserWarning,
                stacklevel=4,
            )

    def _rows(self, tokens: Any) -> list[list[int]]:
        return self._model.tokens_of_ids(_inputs.ids(tokens), False).rows()

    def _one_row(self, tokens: Any) -> list[int]:
        rows = self._rows(tokens)
        if len(rows) != 1:
            raise ValueError(f"[model] needed: one prompt; found: {len(rows)}")
        return rows[0]

    def _str_tokens(self, row: list[int]) -> list[str]:
        tokenizer = self._tokenizer()
        return [tokenizer.decode([token]) for token in row]


def verify_recorded(
    model: HookedTransformer,
    tokens: Any,
    activations: Mapping[str, torch.Tensor],
    attention_mask: Any = None,
    token_type_ids: Any = None,
) -> _lenscpp.VerifiedCache:
    """Checks activations recorded elsewhere against the reference: a VerifiedCache, or VerificationFailed.

    tokens, attention_mask, token_type_ids: what they were recorded from, as for a run. activations: hook name -> tensor, from transformer-lens,
    from hooks on a Hugging Face model, from another machine, in the model's dtype. What is missing in between is
    recomputed inside the link that spans it, its bound widened accordingly, and listed in verdict.recomputed.
    ValueError for unknown names, wrong shapes or dtypes, or where nothing can be checked.
    """
    if not isinstance(model, HookedTransformer):
        raise TypeError(f"[verify] needed: a HookedTransformer; found: {_inputs.kind(model)}")
    return model.verify_recorded(tokens, activations, attention_mask, token_type_ids)


def _nested(tokens: Any) -> bool:
    """Whether ids are [batch, pos] rather than [pos]."""
    return tokens.ndim == 2 if hasattr(tokens, "ndim") else isinstance(tokens[0], (list, tuple))


def _folder(name_or_path: Any) -> Path:
    if not isinstance(name_or_path, (str, os.PathLike)):
        raise TypeError(f"[model] needed: the name of a model or the path of a folder; found: {_inputs.kind(name_or_path)}")
    text = os.fspath(name_or_path)
    if not isinstance(text, str):
        raise TypeError(f"[model] needed: a path of text; found: {_inputs.kind(text)}")
    ships = sorted(p.name for p in MODELS.iterdir() if (p / "config.json").is_file()) if MODELS.is_dir() else []
    bare = isinstance(name_or_path, str) and text not in ("", ".", "..") and not any(s and s in text for s in (os.sep, os.altsep))
    if bare and text in ships:
        return MODELS / text
    if text and Path(text).is_dir():
        return Path(text)
    raise FileNotFoundError(
        f"[model] {text!r} is neither a model that ships ({', '.join(ships) or 'none'}; looked in {MODELS}) nor a folder "
        f"(looked for {Path(text).absolute()}). Nothing is downloaded: give the folder of a checkpoint in Hugging Face's format."
    )


def _device(device: Any) -> str:
    if device is None:
        return "cpu"
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"[device] a device is a str, a torch.device or None; found: {_inputs.kind(device)}")
    warning = _lenscpp.device_warning_once(str(device))
    if warning is not None:
        warnings.warn(warning, UserWarning, stacklevel=3)
    return _simulated.prepare(str(device))


def _dtype(dtype: Any) -> str:
    name = str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype
    if not isinstance(name, str):
        raise TypeError(f"[model] a dtype is a str or a torch.dtype; found: {_inputs.kind(dtype)}")
    if name not in _DTYPES:
        raise ValueError(f"[model] dtype {name!r}; allowed: {', '.join(_DTYPES)}")
    return name


def _plan(plan: Any) -> Any:
    """Edits by themselves are a plan as well."""
    edits = [plan] if isinstance(plan, _lenscpp.Edit) else plan
    return _lenscpp.Plan(list(edits)) if isinstance(edits, (list, tuple)) else edits


def _verify(verify: Any) -> str:
    if not isinstance(verify, str):
        raise TypeError(f'[verify] a mode is "exact", "checksum" or "off"; found: {_inputs.kind(verify)}')
    return verify


def _matmul_precision(precision: Any) -> str:
    if not isinstance(precision, str):
        raise TypeError(f'[matmul_precision] needed: "ieee" or "tf32"; found: {_inputs.kind(precision)}')
    return precision


def _adapter(adapter: Any) -> str | None:
    if adapter is None:
        return None
    if not isinstance(adapter, (str, os.PathLike)) or not isinstance(os.fspath(adapter), str):
        raise TypeError(f"[adapter] needed: the path of a folder in peft's format; found: {_inputs.kind(adapter)}")
    if not Path(adapter).is_dir():
        raise FileNotFoundError(f"[adapter] no folder {os.fspath(adapter)!r}: give one with adapter_config.json. Nothing is downloaded")
    return os.fspath(adapter)


def _tokenizer(tokenizer: Any) -> str | _lenscpp.Tokenizer | None:
    if tokenizer is None or isinstance(tokenizer, _lenscpp.Tokenizer):
        return tokenizer
    if not isinstance(tokenizer, (str, os.PathLike)):
        return _loaded_tokenizer(tokenizer)
    if not Path(tokenizer).is_file():
        raise FileNotFoundError(f"[tokenizer] no file {os.fspath(tokenizer)!r}: give the path of a tokenizer.json")
    return str(os.fspath(tokenizer))


def _loaded_tokenizer(tokenizer: Any) -> _lenscpp.Tokenizer:
    """What `tokenizers` or `transformers` has loaded, read by our own reader; neither package is imported for it."""
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if isinstance(tokenizer, type) or not callable(getattr(backend, "to_str", None)):
        raise TypeError(
            "[tokenizer] needed: the path of a tokenizer.json, a tokenizers.Tokenizer, or a fast tokenizer of transformers; "
            f"found: {_inputs.kind(tokenizer)}"
        )
    made = json.loads(backend.to_str())
    made["truncation"] = made["padding"] = None  # how it was last used, which its digest is not to depend on
    config = None
    if backend is not tokenizer:
        names = ("bos_token", "eos_token")
        config = json.dumps({name: None if getattr(tokenizer, name) is None else str(getattr(tokenizer, name)) for name in names})
    return _lenscpp.tokenizer_from_json(json.dumps(made, ensure_ascii=False), _inputs.kind(tokenizer), config)


def _residual_shape(residual: Any, d_model: int) -> tuple[int, int]:
    if not isinstance(residual, torch.Tensor):
        raise TypeError(f"[model] with start_at_layer the input is a residual, a torch.Tensor [batch, pos, {d_model}]; found: {_inputs.kind(residual)}")
    if residual.dim() != 3 or residual.shape[-1] != d_model:
        raise ValueError(f"[model] with start_at_layer the input is a residual [batch, pos, {d_model}]; found: {_inputs.kind(residual)}")
    return residual.shape[0], residual.shape[1]
