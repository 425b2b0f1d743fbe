"""Makes tests/golden/tokenizer_families: one tokenizer per kind of family, and every component by itself.

Peer: Hugging Face's tokenizers, which trains the small vocabularies on text made here, and says what every text of
the corpus becomes (that of make_tokenizer_golden.py, and the words of this file). Kept small: hashes of eight texts
at a time, in full only what a reader may want to see. Keys and commands: README.md.
"""

import os

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")

import argparse
import copy
import json
import math
import shutil
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import make_tokenizer_golden as base
from make_tokenizer_golden import added, byte_level

TOP = Path(__file__).resolve().parent / "tokenizer_families"
VOCAB_SIZE = 420
CHUNK = 8  # texts under one hash
MARK = "\u2581"
BLOOM_PATTERN = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

MORE_TEXTS = base.texts(
    f"{MARK}¦{MARK}{MARK} a¦a{MARK}b¦ {MARK} ¦Hello {MARK}world¦<0x41>¦<0xE2><0x82>¦<unk>¦a<unk>b¦</s>¦<s>x</s>¦"
    "[MASK]¦a [MASK] b¦[CLS] x [SEP]¦Foo foo FOO¦##ing¦the##re¦\u0130stanbul I\u0307 \u03a3\u03a3 \u039f\u03a3¦"
    "do not, n't 's 've 're 'm ! ? . ,¦ ' ¦x ' y¦a\u00adb\u200bc\u202ed¦\ufffd a \x00 b \ue000¦\u4e2d\u6587 mixed \u6587¦"
    "\ufb01\u00bd\u2460\ufdfa\u3392¦\u1e9b\u0323 \u0958 \u2126 \u212b \uac01 \u1112\u1161\u11ab¦a\u0328\u0301 a\u0301\u0328¦"
    "\u09c7\u09be \u0b47\u0b56 \u1025\u102e¦\U00011935\U00011930 \U00011938¦a\u1abf\u0301 a\u0301\u1abf¦"
    "123456789 12 1 1234¦a1b22c333¦\u00bd\u00b2\u0663\u0664\u0665\u0666¦x--y---z-¦-¦--¦a-b¦!!a!!b!!¦\u2014\u2026\u00bf?\u00a1!¦"
    "$100+5=<b>^`|~¦\u00a3\u20ac\u00a2¦co-operate, e-mail; \"quotes\" (parens) [brackets] {braces}¦"
    "Supercalifragilisticexpialidocious antidisestablishmentarianism¦\U0001f600\U0001f600\U0001f600 \U00020000\U00020001¦"
    "\u0958\u0959 \u0344 \u0f73\u0f75 \u2adc¦  lead¦trail  ¦\t tab \n¦\u3000wide\u3000¦\u0085next¦a\u180eb"
) + ["x" * 99, "x" * 100, "x" * 101, "\u00e9" * 100, "\u00e9" * 101, "ab" * 300]


def corpus() -> list[str]:
    texts = [entry["text"] for entry in base.make_corpus() if "text" in entry]
    more = [text for text in MORE_TEXTS if text not in set(texts)]
    return texts + more + [base.from_formula(base.FORMULAS["long_words"])[:9000]]


# ---- tokenizers -----------------------------------------------------------------------------------------------


def parts(**sections) -> dict:
    empty = dict(normalizer=None, pre_tokenizer=None, post_processor=None, decoder=None)
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], **empty, **sections}


def sequence(key: str, *members: dict) -> dict:
    return {"type": "Sequence", key: list(members)}


def component(made) -> dict:
    return json.loads(made.__getstate__())


def replace(old, new, regex=False) -> dict:
    return {"type": "Replace", "pattern": {"Regex" if regex else "String": old}, "content": new}


def split(pattern, behavior="Isolated", invert=False, regex=True) -> dict:
    return {"type": "Split", "pattern": {"Regex" if regex else "String": pattern}, "behavior": behavior, "invert": invert}


def metaspace(scheme: str, cut: bool = True) -> dict:
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": cut}


def alphabet(n: int) -> list[str]:
    """The most frequent characters of the training text: the library's own choice among equals changes."""
    text = "".join(base.training_text()).replace(" ", "")
    return sorted(set(text), key=lambda c: (-text.count(c), c))[:n]


def trained(pre_tokenizer, characters: list[str]) -> dict:
    """The model of a BPE tokenizer trained over these characters, as a dict."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    options = dict(initial_alphabet=characters, limit_alphabet=len(characters), show_progress=False)
    tokenizer.train_from_iterator(base.training_text(), trainers.BpeTrainer(vocab_size=VOCAB_SIZE, **options))
    return json.loads(tokenizer.to_str())["model"]


def affixed_model(n_characters: int, n_merges: int, prefix: str = "", suffix: str = "", **options) -> dict:
    """BPE with marks inside or at the end of words; trained here, since the library's trainer orders them by chance."""
    words = Counter(word for line in base.training_text() for word in line.split())
    known = set(alphabet(n_characters))
    cut = {w: [prefix * (i > 0) + c + suffix * (i == len(w) - 1) for i, c in enumerate(w)] for w in words if set(w) <= known}
    vocab = sorted({symbol for symbols in cut.values() for symbol in symbols})
    merges = []
    while len(merges) < n_merges:
        pairs = Counter(pair for w, symbols in sorted(cut.items()) for pair in zip(symbols, symbols[1:]) for _ in range(words[w]))
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append([left, right])
        joined = left + right[len(prefix) :]
        vocab += [joined] * (joined not in vocab)
        for symbols in cut.values():
            for i in range(len(symbols) - 2, -1, -1):
                if symbols[i : i + 2] == [left, right]:
                    symbols[i : i + 2] = [joined]
    ids = {entry: i for i, entry in enumerate(["<unk>"] + vocab)}
    return {"type": "BPE", "vocab": ids, "merges": merges, "unk_token": "<unk>"} | options


def mark_model(specials: list[str], **options) -> dict:
    """BPE over characters with U+2581 for spaces, as SentencePiece's; with its 256 bytes after the special tokens."""
    cut = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always")
    model = trained(cut, [MARK] + alphabet(90))
    entries = specials + [f"<0x{byte:02X}>" for byte in range(256)] + list(model["vocab"])
    model["vocab"] = {entry: i for i, entry in enumerate(entries)}
    return model | dict(unk_token=specials[-1], fuse_unk=True, byte_fallback=True) | options


def with_runs(model: dict, runs: list[str]) -> dict:
    """Tokens of Gemma: runs of white space, merged from shorter ones."""
    made = copy.deepcopy(model)
    for run in runs:
        for entry in (run[0], run):
            made["vocab"].setdefault(entry, len(made["vocab"]))
        pair = [run[: len(run) // 2], run[len(run) // 2 :]]
        assert all(part in made["vocab"] for part in pair)
        if pair not in made["merges"]:
            made["merges"].append(pair)
    return made


def byte_model(pre_tokenizer) -> dict:
    return trained(pre_tokenizer, sorted(byte_level().alphabet()))


def from_component(made: dict):
    """A pre-tokenizer for training, from its JSON."""
    text = json.dumps(parts(model={"type": "BPE", "vocab": {"a": 0}, "merges": []}, pre_tokenizer=made))
    return Tokenizer.from_str(text).pre_tokenizer


def wordpiece_model(lowercase: bool) -> dict:
    """The entries of a trained BPE: those that start a word, and the others with ##."""
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    for entry in mark_model(["<unk>"])["vocab"]:
        entry = entry.lower() if lowercase else entry
        if not entry.startswith("<"):
            entries += [entry[1:]] if entry.startswith(MARK) else ["##" + entry] + [entry] * (len(entry) == 1)
    ids = {entry: i for i, entry in enumerate(dict.fromkeys(e for e in entries if e))}
    return {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": ids}


def unigram_model(byte_fallback: bool) -> dict:
    """The entries of a trained BPE, scored by how often they occur: the library's own trainer gives others each time."""
    entries = [e for e in mark_model(["<unk>"])["vocab"] if not e.startswith("<")]
    text = MARK + MARK.join(base.training_text()).replace(" ", MARK)
    total = len(text)
    scored = [[e, round(math.log((text.count(e) + 0.5) / total), 6)] for e in entries]
    specials = [["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]]
    extra = [[f"<0x{byte:02X}>", 0.0] for byte in range(256)] if byte_fallback else []
    ties = [["ab", -4.0], ["abab", -8.0], ["ba", -4.0], ["\U0001f600\U0001f600", -90.0]]
    ties = [tie for tie in ties if tie[0] not in entries]
    return {"type": "Unigram", "unk_id": 2, "vocab": specials + extra + scored + ties, "byte_fallback": byte_fallback}


def with_tokens(tokenizer: dict, tokens: list[dict]) -> dict:
    """Added tokens: what the vocabulary has keeps its id there, the rest is numbered after it."""
    made = copy.deepcopy(tokenizer)
    vocab = made["model"]["vocab"]
    ids = vocab if isinstance(vocab, dict) else {entry: i for i, (entry, _) in enumerate(vocab)}
    free = len(ids)
    for token in tokens:
        known = ids.get(token["content"])
        made["added_tokens"].append({"id": free if known is None else known, **token})
        free += known is None
    made["added_tokens"].sort(key=lambda token: token["id"])
    return made


def special(*contents: str, **flags) -> list[dict]:
    return [added(content, special=True, **flags) for content in contents]


def template(single: list, pair: list, tokens: dict[str, int]) -> dict:
    def item(text):
        name, type_id = text.rsplit(":", 1)
        kind = "Sequence" if name in "AB" else "SpecialToken"
        return {kind: {"id": name, "type_id": int(type_id)}}

    return {
        "type": "TemplateProcessing",
        "single": [item(text) for text in single],
        "pair": [item(text) for text in pair],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in tokens.items()},
    }


def bytes_to_text(*more: dict) -> dict:
    return sequence("decoders", replace(MARK, " "), {"type": "ByteFallback"}, {"type": "Fuse"}, *more)


def old_merges(model: dict) -> dict:
    return model | {"merges": [" ".join(pair) for pair in model["merges"]]}


def make_tokenizers() -> dict[str, dict]:
    eot = special(base.EOT)
    byte_decoder = component(decoders.ByteLevel())
    no_regex = component(byte_level(use_regex=False))
    llama_specials = special("<unk>", "<s>", "</s>")
    llama_model = mark_model(["<s>", "</s>", "<unk>"])
    llama_template = template(["<s>:0", "A:0"], ["<s>:0", "A:0", "<s>:1", "B:1"], {"<s>": 0})
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prepend = sequence("normalizers", {"type": "Prepend", "prepend": MARK}, replace(" ", MARK))
    gemma_model = with_runs(mark_model(["<pad>", "<eos>", "<bos>", "<unk>"]), ["\n\n", "\n" * 4, MARK * 2, MARK * 4])
    runs = [added(" " * n, normalized=True) for n in (2, 3, 4, 8)]
    falcon = sequence(
        "pretokenizers",
        {"type": "Punctuation", "behavior": "Contiguous"},
        component(byte_level()),
        {"type": "Digits", "individual_digits": False},
        split("[0-9][0-9][0-9]"),
    )
    bloom = sequence("pretokenizers", split(BLOOM_PATTERN), no_regex)
    qwen = sequence("pretokenizers", split(QWEN_PATTERN), no_regex)
    uncased, cased = dict(lowercase=True), dict(lowercase=False, strip_accents=False)
    cls_sep = template(["[CLS]:0", "A:0", "[SEP]:0"], ["[CLS]:0", "A:0", "[SEP]:0", "B:1", "[SEP]:1"], {"[CLS]": 2, "[SEP]": 3})
    bert_specials = special("[PAD]", "[UNK]", "[CLS]", "[SEP]") + special("[MASK]", lstrip=True)
    bert_parts = dict(pre_tokenizer={"type": "BertPreTokenizer"}, decoder={"type": "WordPiece", "prefix": "##", "cleanup": True})
    used = dict(
        truncation={"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0},
        padding={"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
    )
    t5_template = template(["A:0", "</s>:0"], ["A:0", "</s>:0", "B:0", "</s>:0"], {"</s>": 1})
    nmt = sequence("normalizers", {"type": "Nmt"}, {"type": "NFKC"}, replace(" {2,}", " ", regex=True))
    fold = sequence("normalizers", {"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Lowercase"})
    digits = {"type": "Digits", "individual_digits": True}
    few_bytes = copy.deepcopy(llama_model)
    for byte in (0xE2, 0xF0, 0xC3):  # characters with these bytes are unknown, the others fall back
        del few_bytes["vocab"][f"<0x{byte:02X}>"]
    few_bytes["vocab"] = {entry: i for i, entry in enumerate(few_bytes["vocab"])}
    bare = lambda model: old_merges(model) | {"fuse_unk": False}
    return {
        "llama": with_tokens(
            parts(model=old_merges(llama_model), normalizer=prepend, decoder=bytes_to_text(strip), post_processor=llama_template),
            llama_specials + [added("word", normalized=True), added("<tool>", rstrip=True)],
        ),
        "mistral": with_tokens(
            parts(model=llama_model, pre_tokenizer=metaspace("first", False), decoder=bytes_to_text(strip), post_processor=llama_template),
            llama_specials + special("[INST]", "[/INST]") + base.ADDED[:3],
        ),
        "gemma": with_tokens(
            parts(
                model=gemma_model,
                normalizer=replace(" ", MARK),
                pre_tokenizer=split(" ", "MergedWithPrevious", regex=False),
                decoder=bytes_to_text(),
                post_processor=template(["<bos>:0", "A:0"], ["<bos>:0", "A:0", "<bos>:1", "B:1"], {"<bos>": 2}),
            ),
            special("<pad>", "<eos>", "<bos>", "<unk>") + [added("\n\n"), added(MARK * 4)],
        ),
        "few_bytes": with_tokens(parts(model=few_bytes, pre_tokenizer=metaspace("always"), decoder=bytes_to_text()), llama_specials),
        "few_bytes_apart": with_tokens(
            parts(model=bare(few_bytes), pre_tokenizer=metaspace("never"), decoder={"type": "ByteFallback"}), llama_specials
        ),
        "gpt_neox": with_tokens(
            parts(
                model=byte_model(byte_level()),
                normalizer={"type": "NFC"},
                pre_tokenizer=component(byte_level()),
                decoder=byte_decoder,
                post_processor=component(base.processors.ByteLevel(trim_offsets=True)),
            ),
            eot + runs + [added("caf\u00e9", normalized=True), added("\u212bngstrom", normalized=True)],
        ),
        "qwen2": with_tokens(
            parts(model=byte_model(from_component(qwen)), normalizer={"type": "NFC"}, pre_tokenizer=qwen, decoder=byte_decoder), eot
        ),
        "bloom": with_tokens(parts(model=byte_model(from_component(bloom)), pre_tokenizer=bloom, decoder=byte_decoder), special("<unk>", "<s>", "</s>")),
        "falcon": with_tokens(parts(model=byte_model(byte_level()), pre_tokenizer=falcon, decoder=byte_decoder), eot),
        "roberta": with_tokens(
            parts(
                model=byte_model(byte_level()),
                pre_tokenizer=component(byte_level(add_prefix_space=True)),
                decoder=byte_decoder,
                post_processor={"type": "RobertaProcessing", "sep": ["</s>", 421], "cls": ["<s>", 420], "trim_offsets": True, "add_prefix_space": True},
            ),
            special("<s>", "</s>") + special("<mask>", lstrip=True),
        ),
        "bert_uncased": with_tokens(
            parts(model=wordpiece_model(True), normalizer=component(normalizers.BertNormalizer(**uncased)), post_processor=cls_sep, **bert_parts, **used),
            bert_specials + [added("Foo", normalized=True), added("\u0130st", normalized=True), added("WORD", single_word=True, normalized=True)],
        ),
        "bert_cased": with_tokens(
            parts(
                model=wordpiece_model(False) | {"max_input_chars_per_word": 12},
                normalizer=component(normalizers.BertNormalizer(**cased)),
                post_processor={"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
                **bert_parts,
            ),
            bert_specials,
        ),
        "unigram": with_tokens(
            parts(
                model=unigram_model(False),
                normalizer=nmt,
                pre_tokenizer=sequence("pretokenizers", {"type": "WhitespaceSplit"}, metaspace("always")),
                decoder=metaspace("always"),
                post_processor=t5_template,
            ),
            special("<pad>", "</s>", "<unk>") + [added("\ufb01x", normalized=True)],
        ),
        "unigram_bytes": with_tokens(
            parts(model=unigram_model(True), pre_tokenizer=metaspace("first", False), decoder=bytes_to_text(strip)),
            special("<pad>", "</s>", "<unk>"),
        ),
        "suffix": with_tokens(
            parts(model=affixed_model(60, 150, suffix="</w>", end_of_word_suffix="</w>"), normalizer=fold, pre_tokenizer={"type": "Whitespace"}, decoder={"type": "BPEDecoder", "suffix": "</w>"}),
            special("<unk>"),
        ),
        "prefix": with_tokens(
            parts(
                model=affixed_model(60, 150, prefix="##", continuing_subword_prefix="##", fuse_unk=True),
                normalizer={"type": "Strip", "strip_left": True, "strip_right": True},
                pre_tokenizer=sequence("pretokenizers", {"type": "Whitespace"}, digits, {"type": "Punctuation", "behavior": "Removed"}),
            ),
            special("<unk>"),
        ),
    }


# ---- components -----------------------------------------------------------------------------------------------


def make_normalizers() -> list[dict]:
    plain = [{"type": kind} for kind in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt")]
    strips = [{"type": "Strip", "strip_left": left, "strip_right": right} for left, right in ((True, False), (False, True), (True, True))]
    flags = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    berts = [{"type": "BertNormalizer", **flags, flag: True} for flag in flags]
    berts += [{"type": "BertNormalizer", **{**flags, "strip_accents": None, "lowercase": on}} for on in (False, True)]
    others = [replace("e", "EE"), replace(" ", MARK), replace(r"\s+", " ", regex=True), replace(r"[aeiou]+", "", regex=True)]
    others += [{"type": "Prepend", "prepend": MARK + "x"}, sequence("normalizers"), sequence("normalizers", {"type": "NFKD"}, {"type": "StripAccents"})]
    return plain + strips + berts + others


def make_pre_tokenizers() -> list[dict]:
    behaviors = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
    made = [
        split(pattern, behavior, invert, regex)
        for behavior in behaviors
        for invert in (False, True)
        for pattern, regex in (("-", False), (r"\s+|[a-m]", True))
    ]
    made += [{"type": "Punctuation", "behavior": behavior} for behavior in behaviors] + [{"type": "Punctuation"}]
    made += [{"type": kind} for kind in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer")]
    made += [{"type": "Digits", "individual_digits": alone} for alone in (False, True)]
    made += [metaspace(scheme, cut) for scheme in ("first", "never", "always") for cut in (False, True)]
    made += [{"type": "Metaspace", "replacement": "_", "add_prefix_space": True}, {"type": "CharDelimiterSplit", "delimiter": "a"}]
    made += [component(byte_level(add_prefix_space=prefix, use_regex=regex)) for prefix in (False, True) for regex in (False, True)]
    made += [split(BLOOM_PATTERN), sequence("pretokenizers", {"type": "Whitespace"}, metaspace("first"))]
    made += [sequence("pretokenizers", split(" ", "Isolated", regex=False), metaspace("first")), sequence("pretokenizers", component(byte_level()), {"type": "Digits", "individual_digits": True})]
    return made


def make_decoders() -> list[dict]:
    strips = [{"type": "Strip", "content": " ", "start": start, "stop": stop} for start, stop in ((1, 0), (2, 0), (0, 1))]  # the peer panics on others
    made = [{"type": "ByteFallback"}, {"type": "Fuse"}, component(decoders.ByteLevel()), *strips, bytes_to_text(strips[0])]
    made += [{"type": "WordPiece", "prefix": "##", "cleanup": cleanup} for cleanup in (False, True)]
    made += [metaspace(scheme) for scheme in ("first", "never", "always")] + [{"type": "BPEDecoder", "suffix": "</w>"}]
    made += [replace(MARK, " "), replace("[a-e]+", "x", regex=True), sequence("decoders")]
    return made


SPELLINGS = ["the", "##ing", " ", "  a  ", MARK, MARK + "the", MARK * 2 + "a" + MARK, "<0x41>", "<0xE2>", "<0x82>", "<0xAC>", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>", "<0xa>"]
SPELLINGS += ["<0x+f>", "<0x0g>", "<0xC3>", "<0xc3>", "<0xA9>", "x</w>", "</w>", "\u0120the", "\u00c3", "\u00a9", "\u00e9", ".", "?", "!", ",", "'", "n't", "'s", "do", "not", " do not", " ' ", "\u65e5", "a##b", "##"]


def spellings() -> list[list[str]]:
    lcg = base.Lcg(base.SEED + 9)
    rows = [[spelling] for spelling in SPELLINGS] + [["<0xE2>", "<0x82>", "<0xAC>"]]
    return rows + [[lcg.pick(SPELLINGS) for _ in range(1 + lcg.below(9))] for _ in range(160)]


def sweep() -> list[str]:
    """Every character but most of planes 2 to 16, which are alike, each after a letter and before a mark."""
    ranges = (range(0xD800), range(0xE000, 0x20000), range(0x2F800, 0x2FA20), range(0xE0000, 0xE0200))
    chosen = [c for members in ranges for c in members]
    return ["".join(f"a{chr(c)}\u0301" for c in chosen[i : i + 2048]) for i in range(0, len(chosen), 2048)]


# ---- what the peer gives --------------------------------------------------------------------------------------


def hashes(outputs: list[str]) -> list[str]:
    """One hash for every eight outputs, each of them ended by U+001E."""
    joined = ["".join(text + "\x1e" for text in outputs[i : i + CHUNK]) for i in range(0, len(outputs), CHUNK)]
    return [base.fnv1a64(text.encode())[:8] for text in joined]


def as_text(ids: list[int]) -> str:
    return " ".join(map(str, ids))


def loaded(tokenizer: dict) -> Tokenizer:
    made = Tokenizer.from_str(json.dumps(tokenizer))
    made.no_truncation()
    made.no_padding()
    return made


def random_ids(n_ids: int) -> list[list[int]]:
    lcg = base.Lcg(base.SEED + 3)
    return [[lcg.below(n_ids) for _ in range(1 + lcg.below(12))] for _ in range(160)]


def expect(made: Tokenizer, texts: list[str]) -> dict:
    ids = [made.encode(text, add_special_tokens=False).ids for text in texts]
    rows = random_ids(made.get_vocab_size())
    pairs = [("The words", "and more"), ("", "x"), ("caf\u00e9", "")]
    return {
        "ids": hashes([as_text(row) for row in ids]),
        "decoded": hashes([made.decode(row, skip_special_tokens=False) for row in ids]),
        "random_decoded": hashes([made.decode(row, skip_special_tokens=False) for row in rows]),
        "random_decoded_without_special": hashes([made.decode(row) for row in rows]),
        "in_full": [{"text": text, "ids": row} for text, row in zip(texts, ids) if text in base.CODE[:4] + ["\u00e9\u65e5\U0001f600 x", "unknown \u13a0"]],
        "with_special": [{"text": a, "ids": e.ids, "type_ids": e.type_ids} for a, _ in pairs for e in [made.encode(a)]],
        "pairs": [{"first": a, "second": b, "ids": e.ids, "type_ids": e.type_ids} for a, b in pairs for e in [made.encode(a, b)]],
    }


def stage_of(section: str, config: dict):
    model = {"type": "BPE", "vocab": {"a": 0}, "merges": []}
    return getattr(Tokenizer.from_str(json.dumps(parts(model=model, **{section: config}))), section)


def expect_components(texts: list[str]) -> list[dict]:
    everything, rows = sweep(), spellings()
    lines = []
    for config in make_normalizers():
        normalize = stage_of("normalizer", config).normalize_str
        outputs = [normalize(text) for text in texts]
        lines.append({"stage": "normalizer", "config": config, "outputs": hashes(outputs), "sweep": hashes([normalize(text) for text in everything])})
    for config in make_pre_tokenizers():
        cut = stage_of("pre_tokenizer", config).pre_tokenize_str
        words = lambda text: "\x1f".join(word for word, _ in cut(text))
        line = {"stage": "pre_tokenizer", "config": config, "outputs": hashes([words(text) for text in texts])}
        if config["type"] in ("Punctuation", "Whitespace", "WhitespaceSplit", "BertPreTokenizer", "Digits"):
            line["sweep"] = hashes([words(text) for text in everything])
        lines.append(line)
    for config in make_decoders():
        decode = stage_of("decoder", config).decode
        lines.append({"stage": "decoder", "config": config, "outputs": hashes([decode(row) for row in rows])})
    return lines


def make_all(top: Path) -> None:
    top.mkdir(parents=True)
    texts = corpus()
    rows = [{"text": text} for text in texts]
    base.write_jsonl(top / "corpus.jsonl", rows)
    about = {"made_with": {"tokenizers": version("tokenizers")}, "n_texts": len(texts), "spellings": SPELLINGS}
    (top / "manifest.json").write_text(json.dumps(about, ensure_ascii=True, indent=1) + "\n", encoding="ascii")
    base.write_jsonl(top / "spellings.jsonl", spellings())
    base.write_jsonl(top / "components.jsonl", expect_components(texts))
    for name, tokenizer in make_tokenizers().items():
        (top / name).mkdir()
        (top / name / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
        (top / name / "expected.json").write_text(json.dumps(expect(loaded(tokenizer), texts)) + "\n", encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="make into a temporary folder and compare bytes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "tokenizer_families"
        make_all(made)
        if arguments.check:
            different = base.differing(made, TOP)
            sys.exit("differ: " + ", ".join(different) if different else 0)
        shutil.rmtree(TOP, ignore_errors=True)
        shutil.copytree(made, TOP)


if __name__ == "__main__":
    main()
