#include "hooks/rows.h"

#include <gtest/gtest.h>

#include <stdexcept>

namespace lenscpp {
namespace {

Config config() {
  Config c{.family = "llama",
           .n_layers = 2,
           .n_heads = 2,
           .n_kv_heads = 1,
           .d_model = 6,
           .d_head = 4,
           .d_mlp = 5,
           .d_vocab = 11,
           .n_ctx = 4,
           .norm_eps = 1e-5,
           .norm = NormKind::rms_norm,
           .positions = PositionKind::rotary,
           .topology = Topology::sequential};
  c.rotary = Rotary{.dimensions = 4, .pairs = RotaryPairs::halves, .rope = {.base = 100}};
  return c;
}

Rows padded(std::vector<Span> spans) {
  return Rows::from_tokens(std::vector<std::int64_t>(12, 1), 2, config(), std::move(spans));
}

TEST(Rows, PositionsOfPaddedPromptsStayWithinTheContext) {
  Rows rows = padded({{2, 6}, {0, 3}});
  EXPECT_EQ(rows.positions, (std::vector<std::int64_t>{0, 0, 0, 1, 2, 3, 0, 1, 2, 2, 2, 2}));
  EXPECT_NO_THROW(rows.validate(config()));
  EXPECT_THROW(padded({}).validate(config()), std::out_of_range);  // six positions, a context of 4
  EXPECT_EQ(rows.extents(Site::rotary_cos, 0).apart, 2);
  EXPECT_EQ(shape_of(Site::rotary_cos, config(), rows.extents()), (Shape{2, 6, 2}));
}

TEST(Rows, SpansThatDoNotFitAreRefused) {
  Rows good = padded({{2, 6}, {0, 3}});
  for (Span wrong : {Span{-1, 3}, Span{3, 3}, Span{0, 7}}) {
    Rows rows = good;
    rows.spans[1] = wrong;
    EXPECT_THROW(rows.validate(config()), std::invalid_argument) << wrong.begin << wrong.end;
  }
  Rows three = good;
  three.spans.push_back({0, 3});
  EXPECT_THROW(three.validate(config()), std::invalid_argument);
}

TEST(Rows, PromptsThatEnterStandWhereTheSpansSay) {
  Rows rows = padded({{2, 6}, {0, 3}});
  rows.entering = {Array::wrap(nullptr, {3, 6, 6}, DType::f32, nullptr)};
  EXPECT_THROW(rows.validate(config()), std::invalid_argument);
}

TEST(Rows, OthersThanThoseOfTheSpansStandAtOnePlace) {
  Rows rows = padded({{2, 6}, {0, 3}});
  rows.spans.clear();
  EXPECT_THROW(rows.validate(config()), std::invalid_argument);
}

TEST(Rows, NoPositionIsLeftOutWhereEverythingIsSeen) {
  Config both_ways = config();
  both_ways.causal = false;
  Array kv = Array::wrap(nullptr, {1, 1, 1, 4}, DType::f32, nullptr);
  Rows rows = Rows::from_tokens({1, 2, 3}, 1, config());
  rows.first_pos = 1;
  rows.base = {{kv, kv}, {kv, kv}};
  EXPECT_NO_THROW(rows.validate(config()));
  EXPECT_THROW(rows.validate(both_ways), std::invalid_argument);
}

TEST(Rows, MeansOverPaddingAreRefused) {
  Request request{.rows = padded({{2, 6}, {0, 3}}),
                  .plan = Plan({{.kind = EditKind::mean, .site = Site::mlp_out}}),
                  .on_demand = {}};
  EXPECT_THROW(request.validate(config()), std::invalid_argument);
  MutableArray source({1, 2, 6}, DType::f32);
  request.plan =
      Plan({{.kind = EditKind::mean, .site = Site::mlp_out, .source = std::move(source).freeze()}});
  EXPECT_NO_THROW(request.validate(config()));
}

TEST(Rows, KindsOfTokensAreThoseOfTheModel) {
  Config kinds = config();
  kinds.n_token_types = 2;
  Rows rows = Rows::from_tokens({1, 2, 3}, 1, config());
  rows.token_types = {0, 1, 1};
  EXPECT_NO_THROW(rows.validate(kinds));
  EXPECT_THROW(rows.validate(config()), std::invalid_argument);
  rows.token_types = {0, 2, 1};
  EXPECT_THROW(rows.validate(kinds), std::out_of_range);
  rows.token_types = {0, 1};
  EXPECT_THROW(rows.validate(kinds), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
