"""Loading, tokens, runs: what they return, and what they refuse."""

import json
import re
import shutil
import signal
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import GOLDEN, PROMPT

import lenscpp as lens

MODELS = Path(lens.__file__).parent / "models"


# ---- loading ----


def test_shipped_by_name_and_by_path(tiny):
    assert tiny.digest == lens.HookedTransformer.from_pretrained(MODELS / "tiny-ioi").digest
    assert "tiny-ioi" in repr(tiny) and "fold_ln" in repr(tiny)


def test_config(tiny):
    cfg = tiny.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head, cfg.d_mlp, cfg.n_ctx) == (4, 4, 128, 32, 512, 64)
    assert cfg["n_layers"] == 4 and dict(cfg)["act_fn"] == "gelu_new" and len(cfg) == len(list(cfg)) and cfg.get("nothing") is None
    assert cfg.normalization_type == "LNPre" and cfg.original_architecture == "GPT2LMHeadModel" and cfg.d_vocab == tiny.W_U.shape[1]
    assert cfg.eps == 1e-5 and cfg.dtype is torch.float32 and cfg.device == "cpu" and cfg.default_prepend_bos is True
    assert tiny.device == torch.device("cpu") and tiny.dtype is torch.float32 and tiny.verify == "exact"
    with pytest.raises(AttributeError, match="n_layers"):
        cfg.n_layer
    with pytest.raises(AttributeError):
        cfg.n_layers = 5
    with pytest.raises(AttributeError):
        del cfg.n_layers
    with pytest.raises(KeyError):
        cfg["n_layer"]
    with pytest.raises(TypeError):
        cfg["n_layers"] = 5


def test_options():
    folder = GOLDEN / "three_layers"
    raw = lens.HookedTransformer.from_pretrained_no_processing(folder)
    assert not any(raw.processing.values()) and raw.cfg.normalization_type == "LN" and "processed: nothing" in repr(raw)
    half = lens.HookedTransformer.from_pretrained_no_processing(folder, fold_ln=True)
    assert half.processing == {"fold_ln": True, "center_writing_weights": False, "center_unembed": False, "fold_value_biases": False}
    two = lens.HookedTransformer.from_pretrained(folder, first_n_layers=2, dtype="bfloat16", verify="off", device="cpu:0")
    assert two.cfg.n_layers == 2 and two.dtype is torch.bfloat16 and two.W_E.dtype is torch.bfloat16 and two.verify == "off"
    assert isinstance(two.run_with_cache([1])[1], lens.UnverifiedCache)
    assert isinstance(two.run_with_cache([1], verify="exact")[1], lens.VerifiedCache)
    with_tokenizer = lens.HookedTransformer.from_pretrained(GOLDEN / "sharded", tokenizer=MODELS / "tiny-ioi" / "tokenizer.json", default_prepend_bos=False)
    assert with_tokenizer.cfg.default_prepend_bos is False and with_tokenizer.to_single_token("<|endoftext|>") == 0
    assert with_tokenizer.to_tokens("John").shape == (1, 1)


LOAD_ERRORS = [
    (("gpt2",), {}, FileNotFoundError, "tiny-ioi"),
    (("tiny_ioi",), {}, FileNotFoundError, "neither a model that ships"),
    (("openai-community/gpt2",), {}, FileNotFoundError, "Nothing is downloaded"),
    (("",), {}, FileNotFoundError, "neither"),
    ((MODELS / "nothing",), {}, FileNotFoundError, "nothing"),
    ((MODELS,), {}, FileNotFoundError, "config.json"),
    ((5,), {}, TypeError, "int"),
    ((None,), {}, TypeError, "None"),
    ((b"tiny-ioi",), {}, TypeError, "bytes"),
    (("tiny-ioi",), {"dtype": "float31"}, ValueError, "float32, float64, bfloat16, float16"),
    (("tiny-ioi",), {"dtype": torch.int64}, ValueError, "int64"),
    (("tiny-ioi",), {"dtype": "int64"}, ValueError, "int64"),
    (("tiny-ioi",), {"dtype": float}, TypeError, "dtype"),
    (("tiny-ioi",), {"device": "tpu"}, lens.DeviceError, "tpu"),
    (("tiny-ioi",), {"device": "meta"}, lens.DeviceError, "meta"),
    (("tiny-ioi",), {"device": 0}, TypeError, "int"),
    (("tiny-ioi",), {"verify": "mostly"}, ValueError, "exact, checksum, off"),
    (("tiny-ioi",), {"verify": None}, TypeError, "None"),
    (("tiny-ioi",), {"verify": True}, TypeError, "bool"),
    (("tiny-ioi",), {"fold_ln": 1}, TypeError, "fold_ln"),
    (("tiny-ioi",), {"fold_value_biases": None}, TypeError, "fold_value_biases"),
    (("tiny-ioi",), {"first_n_layers": 5}, IndexError, "4 layers"),
    (("tiny-ioi",), {"first_n_layers": 0}, IndexError, "0"),
    (("tiny-ioi",), {"first_n_layers": "2"}, TypeError, "first_n_layers"),
    (("tiny-ioi",), {"first_n_layers": True}, TypeError, "bool"),
    (("tiny-ioi",), {"adapter": "lora"}, FileNotFoundError, "adapter_config.json"),
    (("tiny-ioi",), {"adapter": 5}, TypeError, "int"),
    (("tiny-ioi",), {"adapter": MODELS / "tiny-ioi"}, FileNotFoundError, "adapter_config.json"),
    (("tiny-ioi",), {"adapter": GOLDEN.parent / "adapters" / "gpt2_lora" / "adapter"}, ValueError, "of another model"),
    (("tiny-ioi",), {"adapter": GOLDEN.parent / "adapters" / "llama_dora" / "adapter"}, ValueError, "of another model"),
    (("tiny-ioi",), {"tokenizer": "nowhere/tokenizer.json"}, FileNotFoundError, "nowhere"),
    (("tiny-ioi",), {"tokenizer": object()}, TypeError, "tokenizer.json"),
    (("tiny-ioi",), {"tokenizer": str(MODELS / "tiny-ioi" / "config.json")}, ValueError, "config.json"),
    (("tiny-ioi",), {"default_prepend_bos": "yes"}, TypeError, "default_prepend_bos"),
    (("tiny-ioi",), {"hf_model": None}, TypeError, "hf_model"),
    (("tiny-ioi", True), {}, TypeError, "positional"),
]


@pytest.mark.parametrize("args, options, error, says", LOAD_ERRORS)
def test_load_errors(args, options, error, says):
    with pytest.raises(error, match=says):
        lens.HookedTransformer.from_pretrained(*args, **options)


@pytest.mark.parametrize("device", ["cuda", "mps", "xpu"])
def test_missing_devices(device):
    if getattr(torch, device).is_available():
        pytest.skip(f"{device} is here")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of mps: test_devices.py
        with pytest.raises(lens.DeviceError, match=device):
            lens.HookedTransformer.from_pretrained("tiny-ioi", device=device)


def test_no_warning_and_no_output(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = lens.HookedTransformer.from_pretrained("tiny-ioi")
        lens.logit_lens(model.run_with_cache(PROMPT)[1]).plot()
    assert capfd.readouterr() == ("", "")


def broken(tmp_path, change):
    folder = tmp_path / "broken"
    shutil.copytree(GOLDEN / "three_layers", folder, ignore=shutil.ignore_patterns("tl_*", "hf.*"))
    change(folder)
    return folder


def edit_config(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))

    return change


@pytest.mark.parametrize(
    "change, error, says",
    [
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "config.json"),
        (lambda f: (f / "config.json").write_text("[1]"), ValueError, "config.json"),
        (edit_config(model_type="t5"), ValueError, "t5"),
        (edit_config(model_type="bert"), ValueError, "BertModel"),
        (edit_config(n_head=5), ValueError, "5"),
        (edit_config(n_layer=4), ValueError, "h.3"),
        (edit_config(activation_function="tanhish"), ValueError, "tanhish"),
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 64), ValueError, "model.safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-8]), ValueError, "model.safetensors"),
        (lambda f: (f / "tokenizer.json").write_text("nonsense"), ValueError, "tokenizer.json"),
    ],
)
def test_broken_checkpoints(tmp_path, change, error, says):
    with pytest.raises(error, match=says):
        lens.HookedTransformer.from_pretrained(broken(tmp_path, change))


def test_the_unbroken_one_loads(tmp_path):
    assert lens.HookedTransformer.from_pretrained(broken(tmp_path, lambda folder: None)).cfg.n_layers == 3


def test_no_model_from_a_config():
    with pytest.raises(NotImplementedError, match="from_pretrained"):
        lens.HookedTransformer({"n_layers": 1})


# ---- tokens ----


def test_tokens_and_back(tiny):
    bos = tiny.tokenizer.bos_token_id
    tokens = tiny.to_tokens(PROMPT)
    assert tokens.dtype is torch.int64 and tokens.shape[0] == 1 and tokens[0, 0] == bos
    assert torch.equal(tiny.to_tokens(PROMPT, prepend_bos=False), tokens[:, 1:])
    assert tiny.tokenizer.encode(PROMPT) == tokens[0, 1:].tolist() and tiny.tokenizer.decode(tokens[0, 1:].tolist()) == PROMPT
    assert tiny.to_string(tokens[0, 1:]) == PROMPT and tiny.to_string(tokens[:, 1:]) == [PROMPT]
    assert tiny.to_string(tokens[0, 1:].tolist()) == PROMPT and tiny.to_string([tokens[0, 1:].tolist()]) == [PROMPT]
    assert tiny.to_string(tokens[0, 1:].numpy()) == PROMPT and tiny.to_string(tokens[:, 1:].numpy()) == [PROMPT]
    assert tiny.to_string(bos) == "<|endoftext|>" and tiny.to_string(torch.tensor(bos)) == "<|endoftext|>"
    pieces = tiny.to_str_tokens(PROMPT)
    assert pieces[0] == "<|endoftext|>" and "".join(pieces[1:]) == PROMPT and len(pieces) == tokens.shape[1]
    assert tiny.to_str_tokens(PROMPT, prepend_bos=False) == pieces[1:]
    assert tiny.to_str_tokens(tokens) == tiny.to_str_tokens(tokens[0]) == tiny.to_str_tokens(tokens[0].tolist()) == pieces
    assert tiny.to_str_tokens([PROMPT, " Mary"]) == [pieces, ["<|endoftext|>", " Mary"]]
    mary = tiny.to_single_token(" Mary")
    assert tiny.to_single_str_token(mary) == " Mary"
    first = tiny.get_token_position(" Mary", PROMPT)
    assert pieces[first] == " Mary" and tiny.get_token_position(mary, PROMPT, prepend_bos=False) == first - 1
    assert tiny.get_token_position(" John", PROMPT, mode="last") > tiny.get_token_position(" John", tokens) > 0
    assert torch.equal(tiny.to_tokens(["John", "Mary"]), torch.cat([tiny.to_tokens("John"), tiny.to_tokens("Mary")]))
    assert len(tiny.tokenizer) == tiny.tokenizer.vocab_size == tiny.cfg.d_vocab
    assert tiny.tokenizer.convert_ids_to_tokens(mary) == "\u0120Mary" and tiny.tokenizer.convert_tokens_to_ids("\u0120Mary") == mary
    assert tiny.tokenizer.convert_tokens_to_ids("no such spelling") is None
    assert tiny.tokenizer.bos_token == tiny.tokenizer.eos_token == "<|endoftext|>"


TOKEN_ERRORS = [
    (lambda m: m.to_tokens(5), TypeError, "int"),
    (lambda m: m.to_tokens([5]), TypeError, "list of int"),
    (lambda m: m.to_tokens([]), ValueError, "no prompt"),
    (lambda m: m.to_tokens("", prepend_bos=False), ValueError, "empty prompt"),
    (lambda m: m.to_tokens("x", prepend_bos=1), TypeError, "prepend_bos"),
    (lambda m: m.to_tokens("half \ud800"), ValueError, "surrogates"),
    (lambda m: m.to_single_token("John and Mary"), ValueError, "tokens, not one"),
    (lambda m: m.to_single_token(""), ValueError, "0 tokens"),
    (lambda m: m.to_single_token(5), TypeError, "int"),
    (lambda m: m.to_single_str_token("x"), TypeError, "str"),
    (lambda m: m.to_single_str_token(10**7), ValueError, "10000000"),
    (lambda m: m.to_single_str_token(2**70), IndexError, "64 bits"),
    (lambda m: m.to_single_str_token(True), TypeError, "bool"),
    (lambda m: m.to_string([-1]), ValueError, "-1"),
    (lambda m: m.to_string(torch.tensor([1.5])), TypeError, "Float"),
    (lambda m: m.to_string(None), TypeError, "None"),
    (lambda m: m.to_str_tokens(torch.zeros(2, 3, dtype=torch.long)), ValueError, "one prompt"),
    (lambda m: m.to_str_tokens(torch.zeros(0, dtype=torch.long)), ValueError, r"\[0\]"),
    (lambda m: m.get_token_position(" Mary", "John"), ValueError, "does not occur"),
    (lambda m: m.get_token_position(" Mary", PROMPT, mode="any"), ValueError, "any"),
    (lambda m: m.get_token_position(1.5, PROMPT), TypeError, "float"),
    (lambda m: m.tokens_to_residual_directions(10**6), IndexError, "vocabulary"),
    (lambda m: m.tokens_to_residual_directions("John and"), ValueError, "tokens, not one"),
]


@pytest.mark.parametrize("call, error, says", TOKEN_ERRORS)
def test_token_errors(tiny, call, error, says):
    with pytest.raises(error, match=says):
        call(tiny)


@pytest.mark.parametrize(
    "call",
    [lambda m: m("text"), lambda m: m.to_tokens("text"), lambda m: m.to_string([1]), lambda m: m.to_str_tokens([1]), lambda m: m.to_single_token("a")],
)
def test_without_a_tokenizer(three, call):
    assert three.tokenizer is None
    with pytest.raises(ValueError, match="no tokenizer"):
        call(three)


# ---- runs ----


def test_every_kind_of_input(three):
    ids = [[1, 5, 200], [7, 3, 256]]
    expected = three(torch.tensor(ids))
    assert expected.shape == (2, 3, 257)
    for same in (
        ids,
        tuple(map(tuple, ids)),
        np.array(ids),
        np.array(ids, dtype=np.uint16),
        torch.tensor(ids, dtype=torch.int32),
        torch.tensor(ids, dtype=torch.int16),
        torch.tensor(ids).T.contiguous().T,
        torch.tensor([[0, 1, 0, 5, 0, 200], [0, 7, 0, 3, 0, 256]])[:, 1::2],
        [[np.int64(1), 5, 200], [7, 3, torch.tensor(256)]],
    ):
        assert torch.equal(three(same), expected)
    for one in (ids[0], torch.tensor(ids[0]), np.array(ids[0]), tuple(ids[0]), torch.tensor(ids[:1])):
        assert three(one).shape == (1, 3, 257) and torch.equal(three(one), three([ids[0]]))


def test_texts(tiny):
    assert torch.equal(tiny(PROMPT), tiny(tiny.to_tokens(PROMPT))) and torch.equal(tiny(PROMPT), tiny.forward(PROMPT))
    assert torch.equal(tiny([PROMPT, PROMPT])[1:], tiny([PROMPT, PROMPT])[:1])
    assert tiny(PROMPT, prepend_bos=False).shape[1] == tiny(PROMPT).shape[1] - 1


RUN_ERRORS = [
    (lambda m: m(None), TypeError, "None"),
    (lambda m: m(5), TypeError, "an int"),
    (lambda m: m({"a": 1}), TypeError, "a dict"),
    (lambda m: m([]), ValueError, "empty"),
    (lambda m: m([[]]), ValueError, "no tokens"),
    (lambda m: m([[1], []]), ValueError, "no tokens"),
    (lambda m: m([1, [2]]), TypeError, "int, list"),
    (lambda m: m([1, "a"]), TypeError, "str"),
    (lambda m: m([1.0]), TypeError, "float"),
    (lambda m: m([True]), TypeError, "bool"),
    (lambda m: m([2**70]), IndexError, "64 bits"),
    (lambda m: m([257]), IndexError, r"257.*\(0\.\.256\)"),
    (lambda m: m([-1]), IndexError, "-1"),
    (lambda m: m(torch.tensor([[0, 1], [300, 0]])), IndexError, "300 at prompt 1, position 0"),
    (lambda m: m(list(range(17))), IndexError, "n_ctx is 16"),
    (lambda m: m(torch.tensor([1.0, 2.0])), TypeError, "Float"),
    (lambda m: m(torch.tensor([True])), TypeError, "Bool"),
    (lambda m: m(torch.tensor(3)), ValueError, r"\[\]"),
    (lambda m: m(torch.zeros(1, 1, 1, dtype=torch.long)), ValueError, r"\[1, 1, 1\]"),
    (lambda m: m(torch.zeros(2, 0, dtype=torch.long)), ValueError, r"\[2, 0\]"),
    (lambda m: m(torch.zeros(2, 2, dtype=torch.long, device="meta")), TypeError, "meta"),
    (lambda m: m(torch.eye(3, dtype=torch.long).to_sparse()), TypeError, "sparse"),
    (lambda m: m(np.array([1.0])), TypeError, "float64"),
    (lambda m: m(np.array(["a"])), TypeError, "numpy"),
    (lambda m: m(np.zeros((0, 3), dtype=int)), ValueError, r"\[0, 3\]"),
    (lambda m: m(np.zeros((1, 1, 1), dtype=int)), ValueError, r"\[1, 1, 1\]"),
    (lambda m: m([1], return_type="logit"), ValueError, '"logits", "loss", "both", None'),
    (lambda m: m([1], return_type="loss"), ValueError, "one token"),
    (lambda m: m([1], prepend_bos="no"), TypeError, "prepend_bos"),
    (lambda m: m([1], stop_at_layer=4), IndexError, "3 layers"),
    (lambda m: m([1], stop_at_layer=-4), IndexError, "3 layers"),
    (lambda m: m([1], stop_at_layer="1"), TypeError, "stop_at_layer"),
    (lambda m: m([1], start_at_layer=1), TypeError, "a residual"),
    (lambda m: m(torch.zeros(1, 3, dtype=torch.long), start_at_layer=1), ValueError, "a residual"),
    (lambda m: m(torch.zeros(1, 3, 35), start_at_layer=1), ValueError, "36"),
    (lambda m: m(torch.zeros(1, 0, 36), start_at_layer=1), ValueError, "no tokens"),
    (lambda m: m(torch.zeros(1, 3, 36).double(), start_at_layer=1), ValueError, "float64"),
    (lambda m: m(torch.zeros(1, 3, 36).int(), start_at_layer=1), ValueError, "Int"),
    (lambda m: m(torch.zeros(1, 17, 36), start_at_layer=1), IndexError, "n_ctx"),
    (lambda m: m(torch.zeros(1, 3, 36), start_at_layer=3), IndexError, "3 layers"),
    (lambda m: m(torch.zeros(1, 3, 36), start_at_layer=2, stop_at_layer=1), IndexError, "layers 2 to 1"),
    (lambda m: m(torch.zeros(1, 3, 36), start_at_layer=1, return_type="loss"), ValueError, "tokens="),
    (lambda m: m(torch.zeros(1, 3, 36), start_at_layer=1, return_type="loss", tokens=[1, 2]), ValueError, r"\[1, 2\]"),
    (lambda m: m([1, 2], tokens=[1, 2]), ValueError, "residual"),
    (lambda m: m([1, 2], attention_mask=torch.tensor([[2, 0]])), ValueError, "holds 2"),
    (lambda m: m([1, 2], attention_mask=torch.tensor([[0.5, 1.0]])), TypeError, "integers"),
    (lambda m: m([1, 2], attention_mask=torch.ones(3)), ValueError, r"\[1, 2\]"),
    (lambda m: m([1, 2], attention_mask="11"), TypeError, "str"),
    (lambda m: m([1], verify="checksums"), ValueError, "exact, checksum, off"),
    (lambda m: m([1], verify=0), TypeError, "int"),
    (lambda m: m([1], plan=3), TypeError, "Plan"),
    (lambda m: m([1], nothing=1), TypeError, "nothing"),
    (lambda m: m.run_with_cache([1], drift=1), TypeError, "drift"),
    (lambda m: m.run_with_cache([1], "blocks.0.hook_resid_per"), ValueError, "hook_resid_pre"),
    (lambda m: m.run_with_cache([1], ["hook_embed", "nothing"]), ValueError, "nearest"),
    (lambda m: m.run_with_cache([1], []), ValueError, "empty"),
    (lambda m: m.run_with_cache([1], ("resid_pre", 1)), TypeError, "int, str"),
    (lambda m: m.run_with_cache([1], 5), TypeError, "int"),
    (lambda m: m.run_with_cache([1], lambda name: False), ValueError, "matches no hook point"),
    (lambda m: m.run_with_cache([1], lambda name: name.endswith("hook_result")), ValueError, "hook_result.*is computed where it is named"),
    (lambda m: m.run_with_cache([1], "blocks.7.hook_resid_pre"), IndexError, "3 layers"),
    (lambda m: m.run_with_cache([1], "blocks.2.hook_resid_post", stop_at_layer=1), ValueError, "does not compute"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=2), IndexError, r"\(0\.\.1\)"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=[0, -3]), IndexError, "-3"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=[]), ValueError, "none of 2"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=(5, 9)), ValueError, "none of 2"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=(0, 2, -1)), ValueError, "step"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=()), ValueError, "tuple of 0"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=("a",)), TypeError, "str"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=1.0), TypeError, "float"),
    (lambda m: m.run_with_cache([1, 2], pos_slice="1"), TypeError, "str"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=True), TypeError, "bool"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=[True]), IndexError, "mask of 1"),
    (lambda m: m.run_with_cache([1, 2], pos_slice=torch.tensor([0.5])), TypeError, "float"),
]


@pytest.mark.parametrize("call, error, says", RUN_ERRORS)
def test_run_errors(three, call, error, says):
    with pytest.raises(error, match=says) as raised:
        call(three)
    assert len(str(raised.value)) < 500 and "Traceback" not in str(raised.value) and "frame #" not in str(raised.value)


def test_errors_do_not_print_tensors(three):
    with pytest.raises(TypeError) as raised:
        three(torch.randn(100, 100))
    assert len(str(raised.value)) < 200


def test_losses(three):
    tokens = torch.tensor([[1, 5, 200], [7, 3, 256]])
    logits, loss = three(tokens, return_type="both")
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].double().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(2, 2)
    assert loss.shape == () and loss.dtype is torch.float32 and torch.allclose(loss.double(), expected.mean(), rtol=1e-6)
    per_token = three(tokens, return_type="loss", loss_per_token=True)
    assert per_token.shape == (2, 2) and torch.allclose(per_token.double(), expected, rtol=1e-6)
    assert three(tokens, return_type=None) is None
    assert three.run_with_cache(tokens, return_type="loss")[0] == loss and three.run_with_cache(tokens, return_type=None)[0] is None
    residual = three.run_with_cache(tokens)[1]["resid_pre", 2]
    assert three(residual, start_at_layer=2, return_type="loss", tokens=tokens) == loss


def test_layers_to_start_and_to_stop_at(three):
    logits, whole = three.run_with_cache([1, 5, 200])
    for layer in range(-3, 4):
        stopped, cache = three.run_with_cache([1, 5, 200], stop_at_layer=layer)
        name = ("resid_pre", layer % 3) if layer < 3 else ("resid_post", 2)
        assert torch.equal(stopped, whole[name])
        assert torch.equal(three([1, 5, 200], stop_at_layer=layer, return_type="loss"), stopped)
        assert "unembed.hook_out" not in cache and cache.verdict.status == "VERIFIED"
    for layer in (0, 1, 2, -1):
        assert torch.equal(three(whole["resid_pre", layer], start_at_layer=layer), logits)
    result, cache = three.run_with_cache(whole["resid_pre", 1], start_at_layer=1, stop_at_layer=2)
    assert torch.equal(result, whole["resid_pre", 2]) and list(cache)[0] == "blocks.1.hook_resid_pre" and cache.tokens is None
    assert cache.record["first_layer"] == 1 and cache.record["tokens"] == []


def test_all_ones_mask(three):
    for dtype in (torch.long, torch.bool, torch.float32):
        assert torch.equal(three([1, 2], attention_mask=torch.ones(1, 2, dtype=dtype)), three([1, 2]))


def test_names_filter(three):
    everything = three.run_with_cache([1, 2])[1]
    for names_filter, expected in [
        ("blocks.1.attn.hook_z", ["blocks.1.attn.hook_z"]),
        ("z1", ["blocks.1.attn.hook_z"]),
        (["unembed.hook_out", "hook_embed"], ["hook_embed", "unembed.hook_out"]),
        ({"hook_embed"}, ["hook_embed"]),
        (lambda name: "resid_mid" in name, [f"blocks.{l}.hook_resid_mid" for l in range(3)]),
        (["blocks.0.attn.hook_result", "blocks.0.attn.hook_z"], ["blocks.0.attn.hook_z", "blocks.0.attn.hook_result"]),
    ]:
        _, cache = three.run_with_cache([1, 2], names_filter)
        assert list(cache) == expected
        assert all(torch.equal(cache[name], everything[name]) for name in expected if name in everything)
        assert len(cache.verdict.points) >= len(everything)
    _, cache = three.run_with_cache([1, 2], lambda name: "resid_pre" in name, stop_at_layer=2)
    assert list(cache) == ["blocks.0.hook_resid_pre", "blocks.1.hook_resid_pre"]


@pytest.mark.parametrize(
    "pos_slice, kept",
    [
        (1, [1]),
        (-1, [3]),
        (np.int64(2), [2]),
        ((2,), [0, 1]),
        ((1, 3), [1, 2]),
        ((0, 4, 2), [0, 2]),
        ((None, None, 3), [0, 3]),
        ((-2, None), [2, 3]),
        ((1, 99), [1, 2, 3]),
        (slice(1, None), [1, 2, 3]),
        ([3, 0, 0], [3, 0, 0]),
        (range(2), [0, 1]),
        (torch.tensor([2, -1]), [2, 3]),
        (np.array([1]), [1]),
        (torch.tensor(1), [1]),
        ([True, False, False, True], [0, 3]),
        (torch.tensor([False, True, False, False]), [1]),
        (None, [0, 1, 2, 3]),
    ],
)
def test_pos_slice(three, pos_slice, kept):
    tokens = [1, 5, 200, 7]
    whole_logits, whole = three.run_with_cache(tokens)
    logits, cache = three.run_with_cache(tokens, pos_slice=pos_slice)
    assert torch.equal(logits, whole_logits) and list(cache) == list(whole)
    for name, tensor in cache.items():
        axis = 2 if name.endswith(("attn_scores", "pattern")) else 1
        assert torch.equal(tensor, whole[name].index_select(axis, torch.tensor(kept))), name
    assert cache.positions == (None if pos_slice is None else kept) and cache.verdict.n_compared == whole.verdict.n_compared


# ---- refusals ----


def test_a_wrong_run_is_refused(three):
    for call in (three, three.run_with_cache, lambda t: three(t, return_type=None), lambda t: three(t, stop_at_layer=2)):
        with lens.faults.inject("one_element", hook="blocks.1.attn.hook_z", delta=0.5) as fault, pytest.raises(lens.VerificationFailed) as raised:
            call([1, 5, 200])
        assert fault.fired == [("blocks.1.attn.hook_z", 1)]
        error = raised.value
        assert isinstance(error, RuntimeError) and error.partial is None and "blocks.1.attn.hook_z" in str(error)
        assert error.verdict.status == "INVALID" and error.verdict.first_failure.name == "blocks.1.attn.hook_z"
        assert error.verdict.first_failure.failed == 1 and error.verdict.first_failure.worst_ratio > 1 and error.verdict.first_failure.hint
        assert error.record["tokens"] == [1, 5, 200] and isinstance(error.unverified_cache, lens.UnverifiedCache)
        with pytest.raises(lens.NotVerified):
            lens.logit_lens(error.unverified_cache)
    assert three([1, 5, 200]).isfinite().all()


def test_refusals_can_be_pickled():
    import pickle

    error = pickle.loads(pickle.dumps(lens.VerificationFailed("INVALID: x")))
    assert str(error) == "INVALID: x" and error.verdict is None and error.unverified_cache is None


def test_verify_off(three):
    logits, cache = three.run_with_cache([1, 2], verify="off")
    assert type(cache) is lens.UnverifiedCache and torch.equal(logits, three([1, 2])) and torch.equal(three([1, 2], verify="off"), logits)
    with lens.faults.inject("scale", hook="unembed.hook_out", factor=2.0):
        assert torch.equal(three([1, 2], verify="off"), 2 * logits)


def test_faults_nest_and_end(three):
    assert {"one_element", "nan", "mask_off_by_one"} <= {fault["name"] for fault in lens.faults.catalogue()}
    assert all(fault["description"] and fault["source"] for fault in lens.faults.catalogue())
    with lens.faults.inject("scale", hook="attn.hook_z", layer=0, factor=1.5) as outer, lens.faults.inject("nan", hook="unembed.hook_out") as inner:
        with pytest.raises(lens.VerificationFailed) as raised:
            three([1, 2])
        failed = [p.name for p in raised.value.verdict.points if not p.passed]
        assert failed == ["blocks.0.attn.hook_z", "unembed.hook_out"]
        assert inner.fired == [("unembed.hook_out", 1)] and outer.fired[0][0] == "blocks.0.attn.hook_z"
    assert three([1, 2]).isfinite().all()


@pytest.mark.parametrize(
    "name, options, error, says",
    [
        ("on_element", {}, ValueError, "one_element"),
        ("one_element", {"hook": "nowhere"}, ValueError, "nowhere"),
        ("one_element", {"layer": 3}, IndexError, "3"),
        ("one_element", {"nothing": 1.0}, ValueError, "nothing"),
        ("one_element", {"delta": "big"}, TypeError, "str"),
        ("one_element", {"delta": True}, TypeError, "bool"),
        ("swap_heads", {"hook": "hook_embed"}, ValueError, "hook_embed"),
    ],
)
def test_fault_errors(three, name, options, error, says):
    with pytest.raises(error, match=says), lens.faults.inject(name, **options):
        three([1, 2])


# ---- recorded elsewhere ----


def test_verify_recorded(three):
    tokens = torch.tensor([[1, 5, 200], [7, 3, 256]])
    logits, whole = three.run_with_cache(tokens)
    gaps = ("hook_scale", "hook_normalized", "hook_attn_scores", "mlp.hook_pre")
    recorded = {name: whole[name] for name in whole if not name.endswith(gaps)}
    cache = lens.verify_recorded(three, tokens, recorded)
    assert type(cache) is lens.VerifiedCache and set(cache) == set(recorded) and cache.verdict.recomputed
    assert torch.equal(cache["unembed.hook_out"], logits)
    wrong = dict(recorded)
    wrong["blocks.1.attn.hook_z"] = recorded["blocks.1.attn.hook_z"].clone()
    wrong["blocks.1.attn.hook_z"][:, :, 1] += 0.1
    with pytest.raises(lens.VerificationFailed, match="blocks.1.attn.hook_z"):
        lens.verify_recorded(three, tokens, wrong)
    # So little that a bound would allow anything: refused, never verified.
    with pytest.raises(ValueError, match="record more"):
        lens.verify_recorded(three, tokens, {"blocks.0.hook_resid_post": torch.randn(2, 3, 36) * 100})


@pytest.mark.parametrize(
    "activations, error, says",
    [
        ({}, ValueError, "nothing"),
        ({"nowhere": torch.zeros(1)}, ValueError, "nearest"),
        ({"hook_embed": torch.zeros(1, 2, 36)}, ValueError, r"\[1, 2, 36\]"),
        ({"hook_embed": torch.zeros(1, 3, 36).double()}, ValueError, "float64"),
        ({"hook_embed": torch.zeros(1, 3, 36).int()}, ValueError, "Int"),
        ({"hook_embed": np.zeros((1, 3, 36), np.float32)}, TypeError, "ndarray"),
        ({"hook_embed": None}, TypeError, "None"),
        ({5: torch.zeros(1)}, TypeError, "hook name"),
        ([1], TypeError, "list"),
    ],
)
def test_verify_recorded_errors(three, activations, error, says):
    with pytest.raises(error, match=says):
        lens.verify_recorded(three, [1, 5, 200], activations)
    with pytest.raises(TypeError, match="HookedTransformer"):
        lens.verify_recorded(None, [1], {})


# ---- interrupts ----


def test_an_interrupt_in_a_filter_comes_through(three):
    def interrupted(name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        three.run_with_cache([1], interrupted)


def test_an_interrupt_ends_a_run(tiny):
    """Heard between two tensors, not only when all is done."""
    tokens = tiny.to_tokens(PROMPT).repeat(200, 1)
    start = time.perf_counter()
    tiny(tokens)
    whole = time.perf_counter() - start

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(3):  # a busy machine may stall one of them
            start = time.perf_counter()
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, whole / 10)
                tiny(tokens)
            if (seconds := time.perf_counter() - start) < 0.6 * whole:
                break
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seconds < 0.6 * whole
    assert tiny(PROMPT).isfinite().all()


def test_checksums_verify_the_same_run(tiny):
    tokens = tiny.to_tokens("When John and Mary went to the store, John gave the bag to")
    exact_logits, exact = tiny.run_with_cache(tokens)
    logits, cache = tiny.run_with_cache(tokens, verify="checksum")
    assert torch.equal(logits, exact_logits) and isinstance(cache, lens.VerifiedCache)
    verdict = cache.verdict
    assert verdict.status == "VERIFIED" and verdict.mode == cache.record["mode"] == "checksum"
    assert verdict.n_compared + verdict.n_projected == exact.verdict.n_compared and 0 < verdict.coverage < 1 == exact.verdict.coverage
    assert isinstance(cache.record["seed"], int) and exact.record["seed"] is None
    pre = next(p for p in verdict.points if p.name == "blocks.1.mlp.hook_pre")
    assert pre.projected > 0 < pre.residual <= 1 and pre.compared + pre.projected == exact["mlp_pre", 1].numel()
    assert f"; {verdict.n_projected} more only by random projections of their rows" in verdict.summary and "by checksum" in str(verdict)
    (point, *_) = [p for p in verdict.points if p.projected > 0]
    head, *rows = re.findall("<tr.*?</tr>", verdict._repr_html_())
    assert re.findall("<th[^>]*>(.*?)</th>", head)[3:6] == ["compared", "by checksum", "failed"]
    cells = [re.findall("<td[^>]*>(.*?)</td>", row) for row in rows]
    assert sum(int(row[4]) for row in cells) == verdict.n_projected and point.projected > 0
    assert "by checksum" not in exact.verdict._repr_html_()


def test_a_fault_in_a_checksum_run_is_refused_where_it_is(tiny):
    with lens.faults.inject("tile", hook="blocks.2.hook_mlp_out", garbage=1), pytest.raises(lens.VerificationFailed) as failed:
        tiny.run_with_cache("When John and Mary went to the store", verify="checksum")
    assert failed.value.verdict.first_failure.name == "blocks.2.hook_mlp_out" and failed.value.verdict.mode == "checksum"
