"""Tokenizers that another library has loaded: the same ids, the same text, the same special tokens."""

import json

import pytest
from conftest import GOLDEN

import lenscpp as lens

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

FAMILIES = GOLDEN.parent / "tokenizer_families"
TEXTS = ["When John and Mary", "", "  caf\u00e9 \u65e5\u672c \U0001f600\n\n", "the word [MASK] <mask> 1234"]


def model_with(tokenizer):
    return lens.HookedTransformer.from_pretrained(GOLDEN / "three_layers", tokenizer=tokenizer)


def bare(path):
    """A tokenizers.Tokenizer that neither truncates nor pads."""
    made = tokenizers.Tokenizer.from_file(str(path))
    made.no_truncation()
    made.no_padding()
    return made


@pytest.mark.parametrize("family", sorted(path.name for path in FAMILIES.iterdir() if path.is_dir()))
def test_a_loaded_tokenizer_gives_what_it_gave(family):
    theirs = bare(FAMILIES / family / "tokenizer.json")
    ours = model_with(theirs).tokenizer
    for text in TEXTS:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(ids)
        with_special = theirs.encode(text, "and")
        assert ours.encode_with_special_tokens(text, "and") == (with_special.ids, with_special.type_ids)
        assert ours.encode_with_special_tokens(text)[0] == theirs.encode(text).ids
    assert len(ours) == theirs.get_vocab_size()


def test_special_tokens_come_from_transformers():
    path = str(FAMILIES / "llama" / "tokenizer.json")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=path, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    model = model_with(fast)
    assert (model.tokenizer.bos_token, model.tokenizer.eos_token) == ("<s>", "</s>")
    assert model.cfg.default_prepend_bos is True and model.to_tokens("the")[0, 0] == fast.bos_token_id
    assert model.tokenizer.encode("the word") == fast.encode("the word", add_special_tokens=False)
    assert model.tokenizer.encode_with_special_tokens("the word")[0] == fast.encode("the word")
    without = transformers.PreTrainedTokenizerFast(tokenizer_file=str(FAMILIES / "bert_cased" / "tokenizer.json"))
    assert model_with(without).tokenizer.bos_token_id is None and model_with(without).tokenizer.eos_token is None


def test_how_it_was_last_used_does_not_matter():
    theirs = bare(FAMILIES / "bert_uncased" / "tokenizer.json")
    before = model_with(theirs).tokenizer
    theirs.enable_truncation(2)
    theirs.enable_padding(length=9)
    after = model_with(theirs).tokenizer
    assert before.digest == after.digest and len(after.encode("one two three four")) > 2


def test_another_models_tokenizer_is_taken(tiny):
    model = model_with(tiny.tokenizer)
    assert model.tokenizer.digest == tiny.tokenizer.digest and model.to_string(model.to_tokens("John")[0]) == "<|endoftext|>John"


def test_what_our_reader_does_not_know_is_refused_by_name():
    theirs = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    with pytest.raises(ValueError, match=r"\[tokenizer\] .*Tokenizer: model: type is .*WordLevel.*allowed: \"BPE\", \"Unigram\", \"WordPiece\""):
        model_with(theirs)


class Slow:
    """Like a tokenizer of transformers that is written in Python: it has no backend."""

    def encode(self, text):
        return [len(text)]


@pytest.mark.parametrize("found", [Slow(), Slow, tokenizers.Tokenizer, 5, {"model": {}}])
def test_what_is_no_loaded_tokenizer_is_refused(found):
    with pytest.raises(TypeError, match=r"tokenizer\.json, a tokenizers\.Tokenizer, or a fast tokenizer"):
        model_with(found)


def test_golden_files_say_which_version_made_them():
    assert json.loads((FAMILIES / "manifest.json").read_text())["made_with"]["tokenizers"] == "0.23.3"
