// Edits: what they touch, and that every malformed one is refused by name.
#include "hooks/plan.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "hooks/rows.h"

namespace lenscpp {
namespace {

Config small() {
  Config c{};
  c.n_layers = 2, c.n_heads = 3, c.n_kv_heads = 3, c.d_model = 6, c.d_head = 2, c.d_mlp = 8,
  c.d_vocab = 11, c.n_ctx = 7;
  return c;
}
constexpr Extents kExtents{.batch = 2, .pos = 4, .key = 4};

Array zeros(Shape shape, DType dtype = DType::f32) {
  return MutableArray(std::move(shape), dtype).freeze();
}

TEST(Plan, TouchesExactlyWhatItSelects) {
  Shape z{2, 4, 3, 2};
  EXPECT_EQ(touched({.kind = EditKind::zero, .site = Site::z}, z).size(), 48u);
  EXPECT_EQ(touched({.kind = EditKind::zero,
                     .site = Site::z,
                     .where = {.batch = 1, .head = 2, .pos = std::vector<std::int64_t>{3, 0}}},
                    z),
            (std::vector<std::int64_t>{28, 29, 46, 47}));
  EXPECT_EQ(touched({.kind = EditKind::zero,
                     .site = Site::z,
                     .where = {.batch = -1, .head = -1, .pos = std::vector<std::int64_t>{-1, 3}}},
                    z),
            (std::vector<std::int64_t>{46, 47}));
  Shape pattern{2, 3, 4, 4};
  EXPECT_EQ(
      touched({.kind = EditKind::zero,
               .site = Site::pattern,
               .where = {.batch = 0, .head = 1, .key = 2, .pos = std::vector<std::int64_t>{3}}},
              pattern),
      (std::vector<std::int64_t>{16 + 12 + 2}));
}

TEST(Plan, ReadsOneSourcePromptForEveryPrompt) {
  Array source = Array::of(std::span<const float>(std::vector<float>{1, 2, 3, 4}), {1, 2, 2});
  Edit edit{.kind = EditKind::patch, .site = Site::resid_pre, .source = source};
  EXPECT_EQ(source_values(edit, {2, 2, 2}, {1, 5, 7}), (std::vector<double>{2, 2, 4}));
  Edit add{.kind = EditKind::add,
           .site = Site::resid_pre,
           .source = Array::of(std::span<const float>(std::vector<float>{7, 8}), {2})};
  EXPECT_EQ(source_values(add, {2, 2, 2}, {3, 6}), (std::vector<double>{8, 7}));
}

Piece piece(std::int64_t batch, std::vector<std::int64_t> pos, std::vector<float> values) {
  auto count = static_cast<std::int64_t>(values.size());
  return {.where = {.batch = batch, .pos = std::move(pos)},
          .values = Array::of(std::span<const float>(values), {count})};
}

TEST(Plan, WritesPiecesEachInAPromptOfItsOwn) {
  Edit edit{.kind = EditKind::patch,
            .site = Site::resid_pre,
            .pieces = {piece(0, {1}, {1, 2}), piece(2, {0}, {3, 4})}};
  auto indices = touched(edit, {3, 2, 2});
  EXPECT_EQ(indices, (std::vector<std::int64_t>{2, 3, 8, 9}));
  EXPECT_EQ(source_values(edit, {3, 2, 2}, indices), (std::vector<double>{1, 2, 3, 4}));
  auto json = to_json(Plan({edit}));
  EXPECT_EQ(json[0]["pieces"][1]["batch"], 2);
  EXPECT_EQ(json[0]["pieces"][1]["source"]["xxh3"], edit.pieces[1].values.digest());
}

struct Refused {
  std::string name, says;
  Edit edit;
};
class BadEdit : public testing::TestWithParam<Refused> {};
TEST_P(BadEdit, IsRefusedByName) {
  try {
    Plan({GetParam().edit}).validate(small(), kExtents);
    FAIL() << GetParam().name;
  } catch (const std::exception& e) {
    EXPECT_NE(std::string(e.what()).find(GetParam().says), std::string::npos) << e.what();
    EXPECT_EQ(std::string(e.what()).find("[plan]"), 0u) << e.what();
  }
}
const std::vector<Refused> kRefused{
    {"head", "there are 3 (0..2)", {.kind = EditKind::zero, .site = Site::z, .where = {.head = 3}}},
    {"pos",
     "there are 4 (0..3)",
     {.kind = EditKind::zero, .site = Site::z, .where = {.pos = std::vector<std::int64_t>{4}}}},
    {"batch",
     "there are 2 (0..1)",
     {.kind = EditKind::zero, .site = Site::z, .where = {.batch = -3}}},
    {"key", "no key axis", {.kind = EditKind::zero, .site = Site::z, .where = {.key = 0}}},
    {"no_head",
     "no head axis",
     {.kind = EditKind::zero, .site = Site::resid_pre, .where = {.head = 0}}},
    {"empty_pos",
     "nothing would be edited",
     {.kind = EditKind::zero, .site = Site::z, .where = {.pos = std::vector<std::int64_t>{}}}},
    {"layer", "layer out of range", {.kind = EditKind::zero, .site = Site::z, .layer = 2}},
    {"internal", "cannot be edited", {.kind = EditKind::zero, .site = Site::ln1_out}},
    {"tokens", "cannot be edited", {.kind = EditKind::zero, .site = Site::tokens}},
    {"no_source", "needs a source", {.kind = EditKind::patch, .site = Site::z}},
    {"needless_source",
     "takes no source",
     {.kind = EditKind::zero, .site = Site::z, .source = zeros({2, 4, 3, 2})}},
    {"source_shape",
     "allowed: [2, 4, 3, 2] or [1, 4, 3, 2]",
     {.kind = EditKind::patch, .site = Site::z, .source = zeros({2, 5, 3, 2})}},
    {"source_dtype",
     "int64",
     {.kind = EditKind::patch, .site = Site::z, .source = zeros({2, 4, 3, 2}, DType::i64)}},
    {"vector", "or [6]", {.kind = EditKind::add, .site = Site::resid_pre, .source = zeros({5})}},
    {"factor",
     "factor is not a finite number",
     {.kind = EditKind::scale,
      .site = Site::z,
      .factor = std::numeric_limits<double>::quiet_NaN()}},
    {"scores_times_zero",
     "only a positive factor",
     {.kind = EditKind::scale, .site = Site::attn_scores, .factor = 0}},
    {"source_not_finite",
     "not finite at element 0",
     {.kind = EditKind::add,
      .site = Site::resid_pre,
      .source = Array::of(
          std::span<const float>(std::vector<float>(6, std::numeric_limits<float>::quiet_NaN())),
          {6})}},
    {"piece_of_zeros",
     "only a patch",
     {.kind = EditKind::zero,
      .site = Site::resid_pre,
      .pieces = {piece(0, {1}, {1, 2, 3, 4, 5, 6})}}},
    {"piece_and_where",
     "no where, no source",
     {.kind = EditKind::patch,
      .site = Site::resid_pre,
      .where = {.batch = 0},
      .pieces = {piece(0, {1}, {1, 2, 3, 4, 5, 6})}}},
    {"pieces_out_of_order",
     "after the one before",
     {.kind = EditKind::patch,
      .site = Site::resid_pre,
      .pieces = {piece(1, {1}, {1, 2, 3, 4, 5, 6}), piece(1, {2}, {1, 2, 3, 4, 5, 6})}}},
    {"piece_without_prompt",
     "after the one before",
     {.kind = EditKind::patch,
      .site = Site::resid_pre,
      .pieces = {{.where = {}, .values = zeros({48})}}}},
    {"piece_outside",
     "there are 4 (0..3)",
     {.kind = EditKind::patch, .site = Site::resid_pre, .pieces = {piece(0, {4}, {1})}}},
    {"piece_of_another_size",
     "needed: [6]",
     {.kind = EditKind::patch, .site = Site::resid_pre, .pieces = {piece(0, {1}, {1, 2})}}},
    {"piece_not_finite",
     "not finite at element 0",
     {.kind = EditKind::patch,
      .site = Site::resid_pre,
      .pieces = {piece(0, {1}, {std::numeric_limits<float>::infinity(), 2, 3, 4, 5, 6})}}},
    {"mean_of_scores", "no mean", {.kind = EditKind::mean, .site = Site::attn_scores}},
};
INSTANTIATE_TEST_SUITE_P(Plan, BadEdit, testing::ValuesIn(kRefused),
                         [](const auto& info) { return info.param.name; });

TEST(Plan, GoesIntoTheRecordWithTheDigestOfEachSource) {
  Array source = zeros({2, 4, 3, 2});
  auto json = to_json(Plan({{.kind = EditKind::patch,
                             .site = Site::z,
                             .layer = 1,
                             .where = {.head = 2},
                             .source = source},
                            {.kind = EditKind::scale, .site = Site::resid_pre, .factor = 0.5}}));
  EXPECT_EQ(json[0]["name"], "blocks.1.attn.hook_z");
  EXPECT_EQ(json[0]["head"], 2);
  EXPECT_EQ(json[0]["source"]["xxh3"], source.digest());
  EXPECT_EQ(json[1]["factor"], 0.5);
}

// Requests: what a run may be asked for.

Request request() { return {.rows = Rows::from_tokens({1, 2, 3, 4, 5, 6, 7, 8}, 2, small())}; }

TEST(Request, RefusesTokensPositionsAndShapesThatDoNotFit) {
  EXPECT_NO_THROW(request().validate(small()));
  EXPECT_THROW(Rows::from_tokens({}, 1, small()), std::invalid_argument);
  EXPECT_THROW(Rows::from_tokens({1, 2, 3}, 2, small()), std::invalid_argument);
  EXPECT_THROW(Rows::from_tokens({1}, 0, small()), std::invalid_argument);
  Request r = request();
  r.rows.tokens[5] = 11;
  try {
    r.validate(small());
    FAIL();
  } catch (const std::out_of_range& e) {
    EXPECT_NE(std::string(e.what()).find("token 11 at prompt 1, position 1"), std::string::npos)
        << e.what();
  }
  r.rows.tokens[5] = -1;
  EXPECT_THROW(r.validate(small()), std::out_of_range);
  r = request();
  r.rows.positions[0] = 7;
  EXPECT_THROW(r.validate(small()), std::out_of_range);
  EXPECT_THROW(
      Request{.rows = Rows::from_tokens(std::vector<std::int64_t>(8, 1), 1, small())}.validate(
          small()),
      std::out_of_range);
}

TEST(Request, RefusesRestartsThatLackWhatTheyRead) {
  Request r = request();
  r.rows.first_layer = 1;
  EXPECT_THROW(r.validate(small()), std::invalid_argument);  // no start residual
  r.rows.start_residual = zeros({2, 4, 6});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);  // and tokens besides
  r.rows.tokens.clear();
  EXPECT_NO_THROW(r.validate(small()));
  r.rows.start_residual = zeros({2, 4, 5});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.rows.start_residual = zeros({2, 4, 6});
  r.rows.first_pos = 2;
  EXPECT_THROW(r.validate(small()), std::invalid_argument);  // no keys and values before position 2
  r.rows.base = {{zeros({2, 2, 3, 2}), zeros({2, 2, 3, 2})}};
  EXPECT_NO_THROW(r.validate(small()));
  r.rows.base[0].values = zeros({2, 1, 3, 2});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
}

TEST(Request, StartsBehindAttentionInOneLayerAlone) {
  Request r = request();
  r.rows.start_z = zeros({2, 4, 3, 2});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);  // no start residual
  r.rows.tokens.clear();
  r.rows.start_residual = zeros({2, 4, 6});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);  // and on to the logits
  r.rows.unembeds = false;
  r.rows.end_layer = 1;
  EXPECT_NO_THROW(r.validate(small()));
  for (Site site : {Site::ln1_scale, Site::q, Site::pattern})
    EXPECT_FALSE(r.rows.reach(site, 0)) << hook_name(site, 0);
  for (Site site : {Site::z, Site::attn_out, Site::resid_post})
    EXPECT_TRUE(r.rows.reach(site, 0)) << hook_name(site, 0);
  r.plan = Plan({{.kind = EditKind::zero, .site = Site::q}});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.plan = Plan({{.kind = EditKind::zero, .site = Site::z}});
  EXPECT_NO_THROW(r.validate(small()));
  r.rows.start_z = zeros({2, 4, 2, 3});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.rows.start_z = zeros({2, 4, 3, 2});
  r.rows.end_layer = 2;
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.rows.end_layer = 1;
  r.rows.first_pos = 1;
  r.rows.base = {{zeros({2, 1, 3, 2}), zeros({2, 1, 3, 2})}};
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
}

TEST(Request, RefusesLogitsOfARunThatStopsEarly) {
  Request r = request();
  r.rows.end_layer = 1;
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.rows.unembeds = false;
  EXPECT_NO_THROW(r.validate(small()));
  r.rows.end_layer = 3;
  EXPECT_THROW(r.validate(small()), std::out_of_range);
}

TEST(Request, RefusesEditsAndSitesThatTheRunDoesNotReach) {
  Request r = request();
  r.rows.end_layer = 1;
  r.rows.unembeds = false;
  r.plan = Plan({{.kind = EditKind::zero, .site = Site::z, .layer = 1}});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.plan = Plan({{.kind = EditKind::zero, .site = Site::unembed_in}});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.plan = {};
  r.on_demand = {{Site::result, 1}};
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
  r.on_demand = {{Site::result, 0}};
  EXPECT_NO_THROW(r.validate(small()));
}

TEST(Request, RefusesAnEditThatNothingWouldRead) {
  Request r = request();
  r.plan = Plan({{.kind = EditKind::zero, .site = Site::q_input},
                 {.kind = EditKind::scale, .site = Site::ln1_scale, .factor = 2}});
  EXPECT_THROW(r.validate(small()), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
