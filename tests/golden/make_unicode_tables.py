"""Makes hooks/tokenizer/unicode_tables.h: classes of characters as `tokenizers` knows them.

Its normalizers and pre-tokenizers carry tables of several Unicode versions (8 to 17), none of which is that of the
libraries here. The header holds the classes, taken from the package itself by asking it about every code point.

Run with tokenizers==0.23.3 under Python 3.11 (its unicodedata is Unicode 14.0.0):
    python tests/golden/make_unicode_tables.py > hooks/tokenizer/unicode_tables.h
"""

import unicodedata

import tokenizers
from tokenizers import normalizers, pre_tokenizers

SCALARS = [c for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF]
assert unicodedata.unidata_version == "14.0.0", unicodedata.unidata_version
assert tokenizers.__version__ == "0.23.3", tokenizers.__version__


def bert(**on):
    off = dict(clean_text=False, handle_chinese_chars=False, strip_accents=False, lowercase=False)
    return normalizers.BertNormalizer(**{**off, **on})


def removed_by(normalizer):
    return {c for c in SCALARS if normalizer.normalize_str("a" + chr(c) + "a") == "aa"}


def normalized_somehow():
    """Decomposed, or put before a mark of the highest combining class, U+0345."""
    nfkd = normalizers.NFKD()
    found = {c for c in SCALARS if nfkd.normalize_str(chr(c)) != chr(c)}
    return found | {0x345} | {c for c in SCALARS if nfkd.normalize_str("a\u0345" + chr(c)) == "a" + chr(c) + "\u0345"}


def punctuation():
    cut = pre_tokenizers.Punctuation("isolated")
    return {c for c in SCALARS if len(cut.pre_tokenize_str("a" + chr(c) + "a")) == 3}


def ranges(members):
    result = []
    for c in sorted(members):
        if result and result[-1][1] == c - 1:
            result[-1][1] = c
        else:
            result.append([c, c])
    return result


def print_table(comment, name, rows):
    print(f"/// {comment}\ninline constexpr std::array<std::pair<char32_t, char32_t>, {len(rows)}> {name} = {{{{")
    items = [f"{{{a:#x}, {b:#x}}}," for a, b in rows]
    line = "   "
    for item in items:
        if len(line) + len(item) > 98:
            print(line)
            line = "   "
        line += " " + item
    print(line + "\n}};\n")


def main():
    lower = normalizers.Lowercase()
    lowered = [(c, lower.normalize_str(chr(c))) for c in SCALARS]
    newer = [(c, ord(text)) for c, text in lowered if text != chr(c).lower()]
    print("// Classes of characters as tokenizers " + tokenizers.__version__ + " has them: sorted ranges, ends included.")
    print("// Made by tests/golden/make_unicode_tables.py; not edited by hand.\n// clang-format off")
    print("#pragma once\n\n#include <array>\n#include <utility>\n\nnamespace lenscpp::unicode_tables {\n")
    print_table("What its NFC, NFD, NFKC, NFKD decompose or reorder.", "kNormalized", ranges(normalized_somehow()))
    print_table("What StripAccents removes.", "kMark", ranges(removed_by(normalizers.StripAccents())))
    print_table("What BertNormalizer removes as an accent.", "kNonspacingMark", ranges(removed_by(bert(strip_accents=True))))
    print_table("What BertNormalizer cleans away.", "kControl", ranges(removed_by(bert(clean_text=True))))
    print_table("What Punctuation and BertPreTokenizer cut at.", "kPunctuation", ranges(punctuation()))
    print_table("Capital and small letters that are newer than Unicode 14.", "kNewerLowercase", newer)
    print("}  // namespace lenscpp::unicode_tables")


main()
