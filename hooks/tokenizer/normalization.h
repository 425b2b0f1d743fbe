// Unicode's normalization forms (UAX 15), of the characters that `tokenizers` knows.
#pragma once

#include <string>
#include <string_view>

namespace lenscpp::tokenizing {

enum class NormalizationForm { nfc, nfd, nfkc, nfkd };

/// Valid UTF-8 in a normalization form.
std::string normalized(std::string_view text, NormalizationForm form);

}  // namespace lenscpp::tokenizing
