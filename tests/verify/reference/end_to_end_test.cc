// The reference's wiring and operations by themselves, against transformers: no device pass takes
// part.
#include "verify/reference/end_to_end.h"

#include <gtest/gtest.h>

#include "hooks/checkpoint/processing.h"
#include "tests/golden_cases.h"
#include "verify/reference/exact.h"
#include "verify/reference/wiring.h"

namespace lenscpp {
namespace {

class Reference : public testing::TestWithParam<std::string> {};

TEST_P(Reference, EqualsTransformersInFloat64) {
  SafetensorsFile hf = SafetensorsFile::open(golden::folder(GetParam()) / "hf.safetensors");
  Weights weights = load_weights(golden::folder(GetParam()), DType::f64);
  for (std::string i : {"0", "1"}) {
    Array tokens = hf.tensor("tokens." + i);
    Request request{.rows = Rows::from_tokens(golden::ids(tokens), tokens.size(0), weights.config)};
    EXPECT_LT(golden::normalized_error(run_in_float64(weights, request, serial_for),
                                       hf.tensor("logits." + i)),
              1e-12);
    request.rows.unembeds = false;
    EXPECT_LT(golden::normalized_error(run_in_float64(weights, request, serial_for),
                                       hf.tensor("resid_final." + i)),
              1e-12);
  }
}

// A run continued from a residual, over the last positions only, equals the full run's part.
TEST_P(Reference, RestartsFromAResidualAndFromKeysAndValues) {
  Weights weights = load_weights(golden::folder(GetParam()), DType::f64);
  const Config& c = weights.config;
  SafetensorsFile hf = SafetensorsFile::open(golden::folder(GetParam()) / "hf.safetensors");
  Array tokens = hf.tensor("tokens.0");
  std::int64_t batch = tokens.size(0), pos = tokens.size(1);
  if (c.n_layers < 2) return;  // one layer cannot be restarted behind the first
  ASSERT_GE(pos, 4);
  Request full{.rows = Rows::from_tokens(golden::ids(tokens), batch, c)};
  std::map<TensorId, Array> known;
  for (const Link& link : wire(weights, full)) {
    std::vector<Array> inputs;
    for (const TensorId& input : link.inputs) inputs.push_back(known.at(input));
    known[link.output] =
        compute(link, inputs, shape_of(link.output.site, c, full.rows.extents()), serial_for);
  }
  std::int64_t first = pos - 3;
  auto part = [&](const Array& a, std::int64_t begin, std::int64_t end) {
    Shape shape = a.shape();
    std::int64_t inner = a.numel() / shape[0] / shape[1];
    shape[1] = end - begin;
    MutableArray out(shape, DType::f64);
    for (std::int64_t b = 0; b < batch; ++b)
      for (std::int64_t i = 0; i < shape[1] * inner; ++i)
        out.set(b * shape[1] * inner + i, a[(b * pos + begin) * inner + i]);
    return std::move(out).freeze();
  };
  Rows rows{.batch = batch,
            .pos = 3,
            .tokens = {},
            .positions = {},
            .first_layer = 1,
            .end_layer = c.n_layers,
            .start_residual = part(known.at({Site::resid_pre, 1}), first, pos),
            .first_pos = first};
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t p = first; p < pos; ++p) rows.positions.push_back(p);
  for (std::int64_t l = 1; l < c.n_layers; ++l)
    rows.base.push_back(
        {part(known.at({Site::k, l}), 0, first), part(known.at({Site::v, l}), 0, first)});
  Request restarted{.rows = rows};
  restarted.validate(c);
  Array logits = run_in_float64(weights, restarted, serial_for);
  EXPECT_LT(golden::normalized_error(logits, part(known.at({Site::unembed_out}), first, pos)),
            1e-13);
}

INSTANTIATE_TEST_SUITE_P(Golden, Reference, testing::ValuesIn(golden::case_names()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lenscpp
