// The reference alone, from config.json and tensors to the output in float64, against transformers
// on encoders with each of their heads, padded and not.
#include <gtest/gtest.h>

#include "tests/golden_cases.h"
#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

constexpr double kLimit = 1e-6;  // the files are float32
constexpr std::int64_t kPrompts = 4;

struct Prompt {
  std::vector<std::int64_t> tokens, types;
  Array expected;  // logits, or hidden states where the model has none
};

class Encoders : public testing::TestWithParam<std::string> {
 protected:
  std::filesystem::path folder = golden::encoder_folder(GetParam());
  Weights weights = load_weights(folder, DType::f64);

  std::vector<Prompt> prompts() const {
    SafetensorsFile file = SafetensorsFile::open(folder / "hf.safetensors");
    std::vector<Prompt> prompts;
    for (std::int64_t i = 0; i < kPrompts; ++i) {
      std::string of = std::to_string(i) + ".";
      const char* output = file.has(of + "logits") ? "logits" : "hidden.3";
      prompts.push_back({golden::ids(file.tensor(of + "tokens")),
                         golden::ids(file.tensor(of + "types")), file.tensor(of + output)});
    }
    return prompts;
  }
  Array output(Rows rows, std::vector<std::int64_t> types) const {
    if (weights.config.n_token_types > 0) rows.token_types = std::move(types);
    Request request{.rows = std::move(rows), .plan = {}, .on_demand = {}};
    request.validate(weights.config);
    return run_in_float64(weights, request, serial_for);
  }
};

TEST_P(Encoders, ComputesWhatTransformersComputes) {
  for (const Prompt& p : prompts()) {
    Array found = output(Rows::from_tokens(p.tokens, 1, weights.config), p.types);
    EXPECT_LT(golden::normalized_error(found, p.expected), kLimit);
  }
}

TEST_P(Encoders, ComputesTheSameOfPaddedPrompts) {
  constexpr std::int64_t kPos = 9, kPad = 3;
  for (bool left : {true, false}) {
    std::vector<std::int64_t> tokens, types;
    std::vector<Span> spans;
    for (const Prompt& p : prompts()) {
      std::int64_t n = std::ssize(p.tokens), before = left ? kPos - n : 0;
      std::vector<std::int64_t> row(kPos, kPad), kinds(kPos, 0);
      std::ranges::copy(p.tokens, row.begin() + before);
      std::ranges::copy(p.types, kinds.begin() + before);
      tokens.insert(tokens.end(), row.begin(), row.end());
      types.insert(types.end(), kinds.begin(), kinds.end());
      spans.push_back({before, before + n});
    }
    Array found =
        output(Rows::from_tokens(tokens, kPrompts, weights.config, spans), std::move(types));
    auto all = prompts();
    for (std::int64_t b = 0; b < kPrompts; ++b) {
      Array mine = found.rows(b, b + 1);
      const Span& span = spans[static_cast<std::size_t>(b)];
      if (mine.rank() == 3) mine = mine.reshaped({kPos, mine.size(2)}).rows(span.begin, span.end);
      const Array& expected = all[static_cast<std::size_t>(b)].expected;
      EXPECT_LT(golden::normalized_error(mine, expected.reshaped(mine.shape())), kLimit) << b;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Encoders, testing::ValuesIn(golden::encoder_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lenscpp
