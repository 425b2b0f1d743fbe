"""Makes hooks/tokenizer/unicode_extras.h: code points that `tokenizers` classifies and Unicode 14 does not.

PCRE2 10.42 (Debian 12) knows Unicode 14; the regular expressions inside `tokenizers` know later ones. The header
holds the difference, taken from the package itself by asking it about every code point, so a split is the same.

Run with tokenizers==0.23.3 under Python 3.11 (its unicodedata is Unicode 14.0.0):
    python tests/golden/make_unicode_extras.py > hooks/tokenizer/unicode_extras.h
With --classes it prints instead the whole classes as ranges, the golden file of split_pattern_test.cc:
    python tests/golden/make_unicode_extras.py --classes > tests/golden/unicode_classes.json
"""

import json
import sys
import unicodedata

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models
from tokenizers import pre_tokenizers

SCALARS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
CATEGORIES = ["L", "Lu", "Ll", "Lt", "Lm", "Lo", "M", "N", "Nd", "P", "S"]
assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
assert tokenizers.__version__ == "0.23.3", tokenizers.__version__


def regex_members(regex):
    split = pre_tokenizers.Split(Regex(regex), "removed", invert=True)
    found = set()
    for start in range(0, len(SCALARS), 4096):
        text = "".join(map(chr, SCALARS[start : start + 4096]))
        for piece, _ in split.pre_tokenize_str(text):
            found.update(map(ord, piece))
    return found


def digit_members():
    digits = pre_tokenizers.Digits(individual_digits=True)
    return {c for c in SCALARS if len(digits.pre_tokenize_str("a" + chr(c) + "a")) == 3}


def word_members():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken("<m>", single_word=True)])
    return {c for c in SCALARS if 256 not in tokenizer.encode(chr(c) + "<m>").ids}


def ranges(members):
    result = []
    for c in sorted(members):
        if result and result[-1][1] == c - 1:
            result[-1][1] = c
        else:
            result.append([c, c])
    return result


def main():
    members = {category: regex_members(rf"\p{{{category}}}") for category in CATEGORIES}
    members["space"] = regex_members(r"\s")
    members["Digits"] = digit_members()
    members["Word"] = word_members()
    if "--classes" in sys.argv:
        print(json.dumps({"made_by": "tests/golden/make_unicode_extras.py", "tokenizers": tokenizers.__version__,
                          "classes": {name: ranges(found) for name, found in members.items()}},
                         separators=(",", ":")))
        return
    print("// Code points that tokenizers " + tokenizers.__version__ + " classifies and Unicode 14 (PCRE2 10.42) does not.")
    print("// Made by tests/golden/make_unicode_extras.py; not edited by hand.\n// clang-format off")
    print("#pragma once\n\n#include <string_view>\n\nnamespace lenscpp::unicode_extras {\n")
    for name, found in members.items():
        if name == "space":
            continue
        if name == "Word":  # what PCRE2 cannot know: everything unassigned in Unicode 14
            extra = {c for c in found if unicodedata.category(chr(c)) == "Cn"}
        else:
            wanted = "N" if name == "Digits" else name
            extra = {c for c in found if not unicodedata.category(chr(c)).startswith(wanted)}
        text = [rf"\x{{{a:x}}}" if a == b else rf"\x{{{a:x}}}-\x{{{b:x}}}" for a, b in ranges(extra)]
        print(f"inline constexpr std::string_view k{name} =")
        lines = [""]
        for item in text:
            if len(lines[-1]) + len(item) > 84:
                lines.append("")
            lines[-1] += item
        print("\n".join(f'    R"({line})"' for line in lines) + ";\n")
    print("}  // namespace lenscpp::unicode_extras")


main()
