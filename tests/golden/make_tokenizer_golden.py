"""Makes tests/golden/tokenizer: small byte-level BPE tokenizers, awkward strings, and the ids that `tokenizers` gives.

Peer: Hugging Face's tokenizers. Nothing is downloaded; the training text is made here. Keys and commands: README.md.
"""

import os

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1")

import argparse
import copy
import filecmp
import hashlib
import json
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

TOP = Path(__file__).resolve().parent / "tokenizer"
SEED = 20_240_607
VOCAB_SIZE = 700  # before added tokens
EOT = "<|endoftext|>"
GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Lcg:
    """x <- (1664525 x + 1013904223) mod 2^32; a choice among n is (x >> 16) mod n. Easy to repeat in any language."""

    def __init__(self, seed: int):
        self.x = seed % 2**32

    def below(self, n: int) -> int:
        self.x = (1664525 * self.x + 1013904223) % 2**32
        return (self.x >> 16) % n

    def pick(self, items):
        return items[self.below(len(items))]


def from_formula(formula: dict) -> str:
    """count picks among pieces, joined: the long strings are stored as this."""
    lcg = Lcg(formula["seed"])
    return "".join(lcg.pick(formula["pieces"]) for _ in range(formula["count"]))


def text_of(entry: dict) -> str:
    return entry["text"] if "text" in entry else from_formula(entry["formula"])


# ---- training text --------------------------------------------------------------------------------------------

SENTENCES = r"""The quick brown fox jumps over the lazy dog, and then it's gone; we're sure they'll be back.
When Mary and John went to the store, John gave a drink to Mary. I've said that you'd know.
In 1984 there were 365 days, 12 months and 52 weeks; in 2024 there were 366. That's 3.14159 or 1,000,000?
def forward(self, x):\n    return self.head(self.ln_f(x)) if x is not None else None\n
for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }\n\treturn sum;\n
The attention head attends to the previous token, and the induction head copies the token that followed it.
Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. Straße, Übermut, naïve café, façade.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
いろはにほへと ちりぬるを 日本語の文章です。 我能吞下玻璃而不伤身体。
다람쥐 헌 쳇바퀴에 타고파. नमस्ते दुनिया मेरा नाम. สวัสดีชาวโลก
نص حكيم له سر قاطع وذو شأن عظيم. דג סקרן שט בים מאוכזב
😀 😂 🎉 👍 ❤️ 🚀 ... !!! ??? --- === *** ### <tag attr="value">text</tag> https://example.org/a?b=c&d=e""".split("\n")


def training_text() -> list[str]:
    lcg = Lcg(SEED)
    words = [word for sentence in SENTENCES for word in sentence.split(" ")]
    lines = [sentence.replace("\\n", "\n").replace("\\t", "\t") for sentence in SENTENCES for _ in range(6)]
    lines += [" ".join(lcg.pick(words) for _ in range(12)) for _ in range(600)]
    return lines


# ---- tokenizers -----------------------------------------------------------------------------------------------


def byte_level(**options):
    return pre_tokenizers.ByteLevel(**({"add_prefix_space": False, "use_regex": True} | options))


def split_then_bytes(pattern: str):
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, byte_level(use_regex=False)])


def train(pre_tokenizer) -> dict:
    """A tokenizer.json as a dict, without added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(), trainer)
    return json.loads(tokenizer.to_str())


def added(content: str, special: bool = False, **flags) -> dict:
    default = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    return {"content": content, "special": special, **default, **flags}


ADDED = [
    added("<|im_start|>", special=True, lstrip=True),
    added("<|im_end|>", special=True, rstrip=True),
    added("<mask>", special=True, lstrip=True, rstrip=True),
    added("<tool>"),
    added("<tool>x"),  # longer than the one before it: the longest match at a place wins
    added("a<tool>", normalized=True),  # normalized ones are looked for only in what the others left
    added("[both]", lstrip=True, rstrip=True, normalized=True),
    added("word", single_word=True, normalized=True),
    added("#!", single_word=True),
    added("    "),  # 4 spaces
    added("        "),  # 8 spaces
    added("\n\n"),
    added("<caf\u00e9>"),  # every character is also one of the byte alphabet's: see README.md
    added("\u65e5\u672c", normalized=True),
    added("the", single_word=True, normalized=True),
    added("at", single_word=True, normalized=True),  # also an entry of the vocabulary, whose id it keeps
]


def with_added(base: dict, tokens: list[dict], eot_in_vocab: bool) -> dict:
    """Adds tokens with ids after the vocabulary's; one that the vocabulary has keeps its id there."""
    made = copy.deepcopy(base)
    vocab = made["model"]["vocab"]
    next_id = max(vocab.values()) + 1
    for token in tokens:
        known = vocab.get(token["content"])
        made["added_tokens"].append({"id": next_id if known is None else known, **token})
        next_id += known is None
    made["added_tokens"].sort(key=lambda token: token["id"])
    if eot_in_vocab:  # as in GPT-2's own file
        vocab[EOT] = next(t["id"] for t in made["added_tokens"] if t["content"] == EOT)
    return made


def to_bytes_alphabet(text: str) -> str:
    return "".join(piece for piece, _ in byte_level(use_regex=False).pre_tokenize_str(text))


# Whole pre-tokens that no merge builds: reachable only with ignore_merges.
WHOLE = [" encyclopaedia", "Zurich", " 2048", "  ", "\u6771\u4eac", " \U0001f680\U0001f680", "'ll", "?!?!"]


def with_whole_entries(base: dict) -> dict:
    made = copy.deepcopy(base)
    vocab = made["model"]["vocab"]
    for text in WHOLE:
        entry = to_bytes_alphabet(text)
        if entry not in vocab:
            vocab[entry] = len(vocab)
    made["model"]["ignore_merges"] = True
    return made


def with_old_merges(tokenizer: dict) -> dict:
    """Merges as `a b`, which files had before tokenizers 0.20; today's are pairs."""
    made = copy.deepcopy(tokenizer)
    made["model"]["merges"] = [" ".join(pair) for pair in made["model"]["merges"]]
    return made


def with_old_spelling(tokenizer: dict) -> dict:
    """As the first tokenizer.json files were: keys that came later are absent, empty affixes are empty strings."""
    made = with_old_merges(tokenizer)
    for key in ("type", "byte_fallback", "ignore_merges"):
        del made["model"][key]
    made["model"] |= {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    for part in ("pre_tokenizer", "post_processor", "decoder"):
        del made[part]["use_regex"]
    return made


def with_prefix_space(tokenizer: dict) -> dict:
    made = copy.deepcopy(tokenizer)
    made["pre_tokenizer"]["add_prefix_space"] = True
    return made


def with_pair_merges(tokenizer: dict, corpus: list[dict]) -> dict:
    """Instead of the trained merges one for every two bytes that meet in the corpus, ranked at random.

    Rare characters get no merges by training, so where they are split does not show in the ids. Here it does.
    """
    alphabet = {byte: to_bytes_alphabet(chr(byte)) for byte in range(128)}
    for code_point in (*range(0x80, 0x800), 0x800, *range(0x1000, 0x10000, 0x1000), *range(0x10000, 0x110000, 0x10000)):
        if not 0xD800 <= code_point < 0xE000:
            encoded = chr(code_point).encode()
            alphabet |= zip(encoded, to_bytes_alphabet(chr(code_point)))
    pairs = set()
    for entry in corpus:
        data = text_of(entry).encode()
        pairs |= set(zip(data, data[1:]))
    ranked = sorted(pairs)
    lcg = Lcg(SEED + 4)
    for i in range(len(ranked) - 1, 0, -1):  # Fisher and Yates
        j = lcg.below(i + 1)
        ranked[i], ranked[j] = ranked[j], ranked[i]
    made = copy.deepcopy(tokenizer)
    entries = sorted(pre_tokenizers.ByteLevel.alphabet()) + [alphabet[a] + alphabet[b] for a, b in ranked]
    made["model"]["vocab"] = {entry: i for i, entry in enumerate(entries)}
    made["model"]["merges"] = [f"{alphabet[a]} {alphabet[b]}" for a, b in ranked]
    return made


def make_variants(corpus: list[dict]) -> dict[str, dict]:
    eot = added(EOT, special=True)
    base = train(byte_level())
    gpt2 = with_added(base, [eot], eot_in_vocab=True)
    llama3 = train(split_then_bytes(LLAMA3_PATTERN))
    split = copy.deepcopy(gpt2)
    split["pre_tokenizer"] = json.loads(split_then_bytes(GPT2_PATTERN).__getstate__())
    return {
        "gpt2": with_old_spelling(gpt2),
        "gpt2_merge_pairs": gpt2,
        "prefix_space": with_prefix_space(gpt2),
        "added_tokens": with_added(base, [eot, *ADDED], eot_in_vocab=False),
        "ignore_merges": with_old_merges(with_added(with_whole_entries(base), [eot], eot_in_vocab=False)),
        "split_gpt2": split,
        "split_llama3": with_added(llama3, [eot, added("<|eot_id|>", special=True)], eot_in_vocab=False),
        "pairs_gpt2": with_added(with_pair_merges(base, corpus), [eot], eot_in_vocab=False),
        "pairs_llama3": with_added(with_pair_merges(llama3, corpus), [eot], eot_in_vocab=False),
    }


# ---- the corpus -----------------------------------------------------------------------------------------------


def texts(block: str) -> list[str]:
    """Texts separated by the broken bar; EOT stands for the end-of-text token."""
    return block.replace("EOT", EOT).split("\u00a6")


SPACES = [chr(c) for c in (0x20, 0x09, 0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0xA0, 0x1680, 0x2000, 0x2003, 0x2009, 0x200A)]
SPACES += [chr(c) for c in (0x2028, 0x2029, 0x202F, 0x205F, 0x3000)]
NOT_SPACES = [chr(c) for c in (0x1C, 0x1D, 0x1E, 0x1F, 0x180E, 0x200B, 0x200C, 0x200D, 0x2060, 0xFEFF, 0x00)]

SCRIPTS = """\
The five boxing wizards jump quickly.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Árvíztűrő tükörfúrógép, jó foxim és don Quijote.
Pijamalı hasta yağız şoföre çabucak güvendi. İIıi
Þótt ég sé öll; kæmi ný öxi hér ykist þjófum.
Tôi có thể ăn thủy tinh mà không hại gì.
Γαζέες καὶ μυρτιὲς δὲν θὰ βρῶ πιὰ.
В чащах юга жил бы цитрус? Да, но фальшивый экземпляр!
Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів!
Կրնամ ապակի ուտել և ինծի անհանգիստ չըներ։
მინას ვჭამ და არა მტკივა.
עטלף אבק נס דרך מזגן שהתפוצץ כי חם
شَرِبَ الخَوَاجَةُ القَهْوَةَ ثم خرج
میں کانچ کھا سکتا ہوں اور مجھے تکلیف نہیں ہوتی
ܐܒܓܕ ܗܘܙ
मैं काँच खा सकता हूँ और मुझे उससे कोई चोट नहीं पहुंचती।
আমি কাঁচ খেতে পারি, তাতে আমার কোনো ক্ষতি হয় না।
ਮੈਂ ਗਲਾਸ ਖਾ ਸਕਦਾ ਹਾਂ
હું કાચ ખાઈ શકું છું
நான் கண்ணாடி சாப்பிடுவேன், அதனால் எனக்கு ஒரு கேடும் வராது.
నేను గాజు తినగలను
ನನಗೆ ಹಾನಿ ಆಗದೆ, ನಾನು ಗಾಜನ್ನು ತಿನ್ನಬಹುದು
എനിക്ക് ഗ്ലാസ് തിന്നാം
මට වීදුරු කෑමට හැකියි
ฉันกินกระจกได้ แต่มันไม่ทำให้ฉันเจ็บ
ຂ້ອຍກິນແກ້ວໄດ້
ཤེལ་སྒོ་ཟ་ནས་ང་ན་གི་མ་རེད།
ကျွန်တော် ကျွန်မ မှန်စားနိုင်တယ်
ខ្ញុំអាចញុំកញ្ចក់បាន
አይጥ በበላ ዳዋ ተመታ።
ᐊᓕᒍᖅ ᓂᕆᔭᕌᖓᒃᑯ
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ
ᚠᛇᚻ᛫ᛒᛦᚦ᛫ᚠᚱᚩᚠᚢᚱ
᚛᚛ᚉᚑᚅᚔᚉᚉᚔᚋ᚜
ᠪᠢ ᠰᠢᠯᠢ ᠢᠳᠡᠶᠦ ᠴᠢᠳᠠᠨᠠ
私はガラスを食べられます。それは私を傷つけません。
ｶﾞﾗｽ ﾊﾟﾝ ヴァイオリン ゛ ゜ ー
敏捷的棕色狐狸跳過了懶狗，然後離開了。
나는 유리를 먹을 수 있어요. 그래도 아프지 않아요
ㄱㄴㄷㅏㅑㅓ 각ᄀ
ꀊꀋꀌ ꓐꓑ ꤀꤁
𐌼𐌰𐌲 𐌲𐌻𐌴𐍃 𐌹̈𐍄𐌰𐌽
𓀀𓁐𓂀 𒀀𒁀 𐤀𐤁
𝐇𝐞𝐥𝐥𝐨 𝒲ℴ𝓇𝓁𝒹 𝔊𝔬𝔱𝔥 𝟘𝟙𝟚
Ｆｕｌｌ　ｗｉｄｔｈ　１２３！？
ʰʷʲ ªº ℵℶ ⅷ ℻ ™ © ® ° µ ſ ﬁ ﬀ ĳ
ǅǈǋǲ ᾈᾼ ǅungla ǲ1 Ǆǆ
ẞß Kk Åå İi̇ ŉ ǰ""".split("\n")

CONTRACTIONS = texts(
    "it's¦don't¦we're¦I've¦I'm¦they'll¦he'd¦IT'S¦DON'T¦WE'RE¦I'VE¦I'M¦THEY'LL¦HE'D¦It'S¦We'Re¦They'lL¦"
    "y'all'd've¦rock'n'roll¦"
    "'sup¦'tis¦'reindeer¦'ve¦'m¦'ll¦'d¦' s¦'  ll¦''s¦'''ll'''¦s'¦'¦''¦it\u2019s¦they\u2019ll¦it`s¦O'Brien¦"
    "d'Artagnan's¦"
    "it'\u017f¦IT'\u017fab¦'\u212aelvin¦we'rex¦I'mm¦he'dd¦x's1¦1's¦2'LL¦$'s¦_'s¦'s's's¦'SS¦\u00e9's¦\u65e5's¦"
    "'s\u0301¦ 's¦  're¦ 'S¦"
    "can't won't shan't¦'LLama¦it's.¦(it's)¦\"it's\"¦'s\n¦\n's¦\t'll¦\u00a0's¦'\u00a0s¦'d\u200b¦'\u0301s¦'tT¦"
    "'Tt¦'mM¦'DD'd'D"
)

NUMBERS = texts(
    "0¦7¦42¦123¦1234¦12345¦123456¦1234567¦12345678901234567890¦3.14159¦1,000,000¦-273.15¦+1¦1e-5¦0x1F¦0b1010¦"
    "1/2¦50%¦$9.99¦#1¦1st 2nd 3rd¦"
    "v2.0.1¦a1b2c3¦1a¦a1¦1 2 3¦1  2¦  12¦2024-06-07T12:34:56Z¦192.168.0.1¦555-1234¦(555) 123-4567¦10:30¦"
    "1\u00d710\u00b2\u00b3¦x\u00b2+y\u00b2¦"
    "\u00bd\u00bc\u00be¦\u2153\u215b¦\u00b9\u00b2\u00b3\u2074\u2075¦\u2460\u2461\u2473¦\u2776\u277f¦"
    "\u3248\u324f¦\u2160\u2161\u2167\u216f¦\u2170\u217f¦"
    "\u3021\u3029\u3007¦\u4e00\u4e8c\u4e09\u5341¦\u0660\u0661\u0662\u0663¦\u06f1\u06f2\u06f3\u06f4¦"
    "\u0966\u0967\u0968\u0969¦\u0e51\u0e52\u0e53¦\uff11\uff12\uff13\uff14¦"
    "\U0001d7ce\U0001d7d8\U0001d7e2¦\U0001f100\U0001f101¦1\u0660\u0967\uff11¦12\u00bd¦\u21671984¦"
    "\u0bf0\u0bf1¦\u137c¦\U00010107\U00010108¦\u2150\u2080\u2081¦"
    "1\u20e3 2\ufe0f\u20e3¦1'000'000¦1_000_000¦1\u00a0000\u00a0000¦1\u202f000¦0.1+0.2=0.30000000000000004"
)

EMOJI = texts(
    "\U0001f600¦\U0001f600\U0001f600\U0001f600¦ \U0001f600¦\U0001f600 a¦a\U0001f600b¦\U0001f44d\U0001f3fb¦"
    "\U0001f44d\U0001f3ff\U0001f44d\U0001f3fd¦"
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466¦\U0001f469\U0001f3fe\u200d\U0001f680¦"
    "\U0001f3f3\ufe0f\u200d\U0001f308¦\U0001f1e9\U0001f1ea\U0001f1ef\U0001f1f5¦\U0001f1e9¦"
    "\u2764\ufe0f¦\u2764¦\u2764\ufe0e¦\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f¦"
    "\U0001f9d1\U0001f3fb\u200d\u2764\ufe0f\u200d\U0001f9d1\U0001f3ff¦"
    "\u200d¦\ufe0f¦\U0001f3fb¦hi\U0001f44b\U0001f3fc, it's \U0001f389!¦\u270c\U0001f3fd\u2603\ufe0f\u2744¦"
    "\U0001f680\U0001f680 \U0001f680\U0001f680¦\u00a9\ufe0f\u2122\ufe0f"
)

COMBINING = texts(
    "e\u0301¦\u00e9¦cafe\u0301¦caf\u00e9¦na\u0131\u0308ve¦a\u0300\u0301\u0302\u0303¦\u0301¦\u0301a¦ \u0301¦"
    "a \u0301b¦Z\u0351\u036b\u0343\u036aa\u0314\u030el\u0310g\u0302o\u0334¦"
    "\u1100\u1161\u11a8\uac01¦\u0915\u094d\u0937¦\u0e01\u0e33¦\u05e9\u05c1\u05bc\u05d9\u05df¦"
    "\u0644\u064e\u0651¦A\u030a\u212b\u00c5¦\u0344¦1\u0301¦.\u0301¦\u093f\u0915¦q\u0307\u0323 q\u0323\u0307¦"
    "\u1e9b\u0323¦\u034f\u0345¦a\u20dd\u20de¦\u302a\u3099\u309a\u304b\u3099¦\u0b4b \u0bca¦"
    "\U0001d15e\U0001d165"
)

RIGHT_TO_LEFT = texts(
    "\u0634\u0643\u0631\u0627 123 abc¦abc \u05d0\u05d1\u05d2 def¦\u202eevil\u202c¦\u200f\u05d0\u200e1\u061c¦"
    "\u2067\u0627\u2069 x¦\u0661\u060c\u0662\u061b\u061f¦\u05d0\u05f3 \u05d1\u05f4\u05d2¦\ufdfa\ufefb"
)

CODE = [
    "def f(x):\n    if x > 0:\n        return x\n    return -x\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    "\t\tindented with tabs\r\n\t\tand CRLF\r\n\r\n",
    "https://user:pw@example.org:8080/a/b.html?q=1&r=%20#frag",
    '{"key": [1, 2.5, null, true], "k\\u00e9y": "v\\n"}',
    "# Title\n\n- item *one*\n- item **two**\n\n```c++\nint main(){}\n```\n",
    "<!DOCTYPE html><p class='x'>It's</p>&nbsp;&amp;",
    "SELECT * FROM t WHERE a<>b AND c!='d';--",
    "C:\\Users\\name\\file.txt ~/.config $HOME %PATH%",
    "!@#$%^&*()_+-=[]{}|;':\",./<>?`~",
    "a->b::c(*d) && !e || f ? g : h; x <<= 2; y ^= ~z;",
    "camelCaseWord snake_case_word kebab-case-word SCREAMING_CASE",
    "e.g., i.e. etc... Mr. Smith's (born 1970) \u2014 \u201cquoted\u201d \u2018single\u2019 \u00abx\u00bb \u2026",
    "\u2200x\u2208\u211d: \u2308x\u2309, \u03b1 \u2227 \u00ac\u03b2 = \u00ac(\u00ac\u03b1 \u2228 \u03b2)",
    "When Mary and John went to the store, John gave a drink to",
    " When Mary and John went to the store, John gave a drink to",
    "encyclopaedia encyclopaedia Zurich Zurich. 2048 2048 \u6771\u4eac\u6771 ?!?! ?! they'll  \n  end",
]

SPECIAL = texts(
    "EOT¦EOTEOT¦EOTEOTEOT¦ EOT¦EOT ¦ EOT ¦aEOTb¦a EOT b¦a  EOT  b¦EOT\n¦\nEOT\n¦\n\nEOT\n\n¦EOThello¦"
    "helloEOT¦EOT's¦it'EOTs¦1EOT2¦<|endoftext¦<|endoftext¦"
    "<|ENDOFTEXT|>¦<| endoftext |>¦<EOT>¦<|EOT|>¦EOT<|endoftext¦\u00e9EOT\u00e9¦\U0001f600EOT\U0001f600¦"
    "e\u0301EOT\u0301¦\u00a0EOT\u00a0¦\u3000EOT\u3000¦\x00EOT\x00¦EOT EOT¦EOT  EOT¦EOT\tEOT¦"
    "<|eot_id|>¦a<|eot_id|>b¦EOT<|eot_id|> <|eot_id|>EOT¦<|eot_id|>EOT the end.EOT"
)

ADDED_TEXTS = texts(
    "<|im_start|>¦  <|im_start|>  x¦a <|im_start|> b¦"
    "\n\t <|im_start|>user\nHi!<|im_end|> \n<|im_start|>assistant\n¦<|im_end|>   x¦<|im_end|>\n\n\n¦"
    "<|im_end|> <|im_start|>¦x  <|im_end|>  y¦"
    "<|im_end|>\u00a0\u3000x¦x\u2028\u00a0<|im_start|>¦x\u200b<|im_start|>\u200bx¦<|im_end|>\u200b ¦<mask>¦"
    "The <mask> sat.¦  <mask>  ¦<mask><mask>¦<mask> <mask>  <mask>¦a<mask>b¦EOT <mask> EOT¦<mask>\n\nx¦"
    "<tool>¦<tool>x¦<tool>xy¦<tool>y¦a<tool>¦a<tool>x¦aa<tool>b¦a <tool>¦<tool><tool>x<tool>¦<tool¦"
    "<too<tool>¦[both]¦a [both] b¦a[both]b¦ [both][both] ¦[both] [both]¦  [both]EOT¦"
    "word¦words¦sword¦a word.¦(word)¦word word¦wordword¦word-word¦word_word¦word1¦1word¦\u00e9word¦"
    "word\u00e9¦word\u0301¦\u0301word¦\u65e5word¦word\u65e5¦word\U0001f600¦\U0001f600word¦Word¦WORD¦word's¦"
    "'word'¦\u200dword\u200d¦"
    "#!¦a#!¦#!a¦a #! b¦##!¦#!#!¦#!!¦.#!.¦1#!¦_#!_¦\u0663#!¦\u0301#!¦#!word#!¦word#!word¦   #!¦\u2167#!¦"
    "    ¦        ¦            ¦                 ¦a    b¦a        b¦     a¦   a¦    \n    x¦\n\n¦\n\n\n¦"
    "\n\n\n\n¦a\n\nb¦a\n \nb¦\r\n\r\n¦\n\n    \n\n¦  \n\n  ¦\t\n\n\t¦"
    "<caf\u00e9>¦a <caf\u00e9> b¦<cafe\u0301>¦caf\u00e9¦\u65e5\u672c¦\u65e5\u672c\u8a9e¦x\u65e5\u672cx¦"
    "\u65e5 \u672c¦\u65e5\u672c\u65e5\u672c¦the¦The the¦the the the¦other¦then¦bathe¦the.¦the's¦_the¦"
    "the\u0301¦at¦At at¦at at at¦bat¦attic¦at.¦at's¦_at¦at\u0301¦@at@¦"
    "the word <tool> the<|im_end|> \n\n word    the<mask>the"
)

POOL = list("aeiostrnlEZ019 .,'-_!\n\t\"") + [" ", "  ", "'s", "'ll", "'RE", " the", "\r\n", EOT]
POOL += list("\u00e9\u00df\u0131\u01c5\u03a9\u0416\u05d0\u0628\u0915\u094d\u0e01\u3042\u65e5\uac00\u00b2\u2167\u0663")
POOL += list("\u00a0\u2028\u3000\u200d\ufe0f\u0301\u0000\u007f\u0085\ufffd\ue000")
POOL += ["\U0001f600", "\U0001f3fd", "\U0001d7d9", "\U00020000", "\U0010ffff", "\u0378", "\ufeff"]

ODD_CODE_POINTS = texts(
    "\x00¦a\x00b¦\x00\x00\x00¦\x1b[31mred\x1b[0m¦\ufffe¦\uffff¦\U0010ffff¦\U0001fffe¦\ue000\uf8ff¦\U000f0000¦"
    "\ufff9a\ufffab\ufffb¦"
    "\u0378¦\ufffd¦\ufffd\ufffd¦\ufeffBOM¦a\ufeffb¦\u00ad soft\u00adhyphen¦\u2061\u2062¦"
    "\u061c¦\u0600\u06dd¦\U000e0001¦\u2800\u3164\uffa0"
)

FORMULAS = {
    "long_mixed": {
        "seed": 1,
        "count": 20_000,
        "pieces": POOL[:23] + list("\u00e9\u65e5\u0628\u0416\u3000\u00a0") + ["\U0001f600"],
    },
    "long_letters": {"seed": 2, "count": 20_000, "pieces": list("aeinorst")},
    "long_one_letter": {"seed": 3, "count": 20_000, "pieces": ["a"]},
    "long_words": {
        "seed": 4,
        "count": 4_000,
        "pieces": [" the", " head", " token", " caf\u00e9", ",", " it's", " 1984", "\n"],
    },
    "long_spaces": {"seed": 5, "count": 5_000, "pieces": [" ", " ", " ", "\n", "\t", "\u00a0"]},
}


def around(ws: str) -> list[str]:
    return [ws, f"a{ws}b", f"a {ws} b", f"{ws}{ws}a{ws}{ws}", f"a{ws}.{ws}{ws}.", f"1{ws}{ws}{ws}'s"]


def white_space() -> list[str]:
    result = [s for ws in SPACES + NOT_SPACES for s in around(ws)]
    for n in range(2, 10):
        result += [" " * n + "a", "a" + " " * n + "b.", "a" + " " * n]
    result += [" \n ", "\n \n", "a\n\nb", "a \n b", "\r\n\r\n", "a\r\nb", "\t \t", " \t\n\r\v\f x", "a  \u3000 b"]
    return result + ["\n" * n + "a" for n in (1, 2, 3, 8)]


def fuzz(seed: int, count: int, pool: list[str]) -> list[str]:
    lcg = Lcg(seed)
    return ["".join(lcg.pick(pool) for _ in range(1 + lcg.below(24))) for _ in range(count)]


def make_corpus() -> list[dict]:
    added_pool = [token["content"] for token in ADDED] + [EOT, " ", "  ", "\n", "a", ".", "\u3000", "\u00e9"]
    groups = {
        "empty": [""],
        "white_space": white_space(),
        "contractions": CONTRACTIONS,
        "numbers": NUMBERS,
        "scripts": SCRIPTS,
        "emoji": EMOJI,
        "combining": COMBINING,
        "right_to_left": RIGHT_TO_LEFT,
        "code": CODE,
        "special": SPECIAL,
        "added": ADDED_TEXTS,
        "odd_code_points": ODD_CODE_POINTS,
        "latin1_sweep": ["".join(map(chr, range(i, i + 8))) for i in range(0, 256, 8)],
        "fuzz": fuzz(SEED + 1, 200, POOL),
        "added_fuzz": fuzz(SEED + 2, 80, added_pool),
    }
    corpus, seen = [], set()
    for group, members in groups.items():
        for text in members:
            if text not in seen:
                seen.add(text)
                corpus.append({"n": len(corpus), "group": group, "text": text})
    for group, formula in FORMULAS.items():
        text = from_formula(formula).encode()
        about = {"n_bytes": len(text), "text_fnv1a64": fnv1a64(text)}
        corpus.append({"n": len(corpus), "group": group, "formula": formula, **about})
    return corpus


# ---- what the peer gives --------------------------------------------------------------------------------------


def fnv1a64(data: bytes) -> str:
    value = 0xCBF29CE484222325
    for byte in data:
        value = ((value ^ byte) * 0x100000001B3) % 2**64
    return f"{value:016x}"


def expect(tokenizer: Tokenizer, entry: dict) -> dict:
    text = text_of(entry)
    ids = tokenizer.encode(text).ids
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    if "text" in entry:
        return {"n": entry["n"], "ids": ids, "decoded": decoded}
    return {
        "n": entry["n"],
        "n_ids": len(ids),
        "ids_head": ids[:32],
        "ids_tail": ids[-32:],
        "ids_fnv1a64": fnv1a64(b"".join(i.to_bytes(4, "little") for i in ids)),
        "decoded_fnv1a64": fnv1a64(decoded.encode()),
    }


def decodings(tokenizer: Tokenizer) -> list[dict]:
    """Ids in no sensible order: broken UTF-8 must become U+FFFD as the peer has it."""
    lcg = Lcg(SEED + 3)
    rows = []
    for _ in range(120):
        ids = [lcg.below(tokenizer.get_vocab_size()) for _ in range(1 + lcg.below(12))]
        rows.append(
            {
                "ids": ids,
                "decoded": tokenizer.decode(ids, skip_special_tokens=False),
                "decoded_without_special": tokenizer.decode(ids, skip_special_tokens=True),
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=True) + "\n" for row in rows), encoding="ascii")


def make_all(top: Path) -> None:
    top.mkdir(parents=True)
    corpus = make_corpus()
    write_jsonl(top / "corpus.jsonl", corpus)
    variants = make_variants(corpus)
    tokenizers = {name: Tokenizer.from_str(json.dumps(tokenizer)) for name, tokenizer in variants.items()}
    expected = {name: [expect(t, entry) for entry in corpus] for name, t in tokenizers.items()}
    must_hold(corpus, expected)
    for name, tokenizer in variants.items():
        (top / name).mkdir()
        text = json.dumps(tokenizer, indent=None if name.startswith("pairs") else 1, ensure_ascii=True) + "\n"
        (top / name / "tokenizer.json").write_text(text, encoding="ascii")
        if name != "gpt2_merge_pairs":
            write_jsonl(top / name / "expected.jsonl", expected[name])
            write_jsonl(top / name / "decode.jsonl", decodings(tokenizers[name]))
    files = sorted(path for path in top.rglob("*.json*") if path.is_file())
    manifest = {
        "made_with": {"tokenizers": version("tokenizers")},
        "seed": SEED,
        "n_texts": len(corpus),
        "vocabulary": {name: t.get_vocab_size() for name, t in tokenizers.items()},
        "files": {
            str(path.relative_to(top)): {
                "bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        },
    }
    (top / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="ascii")


def must_hold(corpus: list[dict], expected: dict[str, list[dict]]) -> None:
    """That the variants differ where they are meant to, and are alike where they are meant to."""
    assert len(corpus) >= 400
    ids = {name: [row.get("ids", row.get("ids_fnv1a64")) for row in rows] for name, rows in expected.items()}
    assert ids["gpt2"] == ids["gpt2_merge_pairs"] == ids["split_gpt2"]
    for name in ("prefix_space", "added_tokens", "ignore_merges", "split_llama3"):
        assert sum(a != b for a, b in zip(ids["gpt2"], ids[name])) >= 10, name
    for row, entry in zip(expected["gpt2"], corpus):
        assert row.get("decoded", entry.get("text")) == entry.get("text"), entry
        assert row.get("decoded_fnv1a64") == entry.get("text_fnv1a64"), entry


def differing(a: Path, b: Path) -> list[str]:
    names = {str(p.relative_to(top)) for top in (a, b) for p in top.rglob("*") if p.is_file()}
    same = filecmp.cmpfiles(a, b, sorted(names), shallow=False)[0]
    return sorted(names - set(same))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="make into a temporary folder and compare bytes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "tokenizer"
        make_all(made)
        if arguments.check:
            different = differing(made, TOP)
            sys.exit("differ: " + ", ".join(different) if different else 0)
        shutil.rmtree(TOP, ignore_errors=True)
        shutil.copytree(made, TOP)


if __name__ == "__main__":
    main()
