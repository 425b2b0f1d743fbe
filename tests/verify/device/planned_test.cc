// Sizes of what a run makes, by hand. That the device pass makes nothing else:
// tests/lens/preflight_test.cc.
#include "verify/device/planned.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <set>

#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

Request request_of(const Config& config, std::int64_t batch, std::int64_t pos) {
  return {
      .rows = {
          .batch = batch, .pos = pos, .tokens = {}, .positions = {}, .end_layer = config.n_layers}};
}

const PlannedLink& at(const std::vector<PlannedLink>& links, TensorId id) {
  return *std::ranges::find_if(links, [&](const PlannedLink& l) { return l.output.id == id; });
}

std::int64_t part_bytes(const PlannedLink& link, std::string_view part) {
  for (const PlannedTensor& t : link.parts)
    if (t.part == part) return t.bytes();
  return -1;
}

class Planned : public testing::Test {
 protected:
  Weights weights = load_weights(golden::folder("three_layers"), DType::f32);
  const Config& c = weights.config;
};

TEST_F(Planned, AnOutlineHasTheShapesOfTheWeights) {
  for (DType dtype : {DType::f32, DType::bf16}) {
    Weights drawn = outline(c, dtype);
    std::map<std::string, Shape> expected, found;
    weights.for_each([&](const std::string& name, const Array& a) { expected[name] = a.shape(); });
    drawn.for_each([&](const std::string& name, const Array& a) {
      found[name] = a.shape();
      EXPECT_EQ(a.dtype(), dtype);
    });
    EXPECT_EQ(found, expected);
  }
  Config folded = c;
  folded.norm = NormKind::layer_norm_pre;
  outline(folded, DType::f32).for_each([](const std::string& name, const Array&) {
    EXPECT_FALSE(name.ends_with(".w") || name.ends_with(".b")) << name;
  });
}

TEST_F(Planned, AnOutlinePlansWhatTheWeightsPlan) {
  auto of = [&](const Weights& w) {
    std::vector<std::string> names;
    Request request = request_of(c, 2, 5);
    for (const PlannedLink& link : plan_links(w, request)) {
      names.push_back(name_of(link.output, request) + to_string(link.output.shape));
      for (const PlannedTensor& part : link.parts)
        names.push_back(name_of(part, request) + to_string(part.shape));
    }
    return names;
  };
  EXPECT_EQ(of(outline(c, DType::f32)), of(weights));
}

TEST_F(Planned, SizesFollowFromTheShape) {
  Request request = request_of(c, 2, 5);
  auto links = plan_links(outline(c, DType::bf16), request);
  const PlannedLink& q = at(links, {Site::q, 1});
  EXPECT_EQ(q.output.bytes(), 2 * 5 * c.n_heads * c.d_head * 2);
  EXPECT_EQ(part_bytes(q, "queries, keys and values"), 2 * 5 * 3 * c.d_model * 2);
  const PlannedLink& scale = at(links, {Site::ln1_scale, 0});
  EXPECT_EQ(scale.output.bytes(), 2 * 5 * 4) << "float32 in a bfloat16 model";
  EXPECT_EQ(part_bytes(scale, "input in float32"), 2 * 5 * c.d_model * 4);
  const PlannedLink& scores = at(links, {Site::attn_scores, 2});
  EXPECT_EQ(scores.output.shape, (Shape{2, c.n_heads, 5, 5}));
  ASSERT_EQ(scores.products.size(), 1u);
  EXPECT_EQ(scores.products[0].batch, 2 * c.n_heads);
  EXPECT_EQ(scores.products[0].terms, c.d_head);
  const PlannedLink& logits = links.back();
  EXPECT_EQ(logits.output.elements(), 2 * 5 * c.d_vocab);
  EXPECT_EQ(logits.products.at(0).columns, c.d_vocab);
  EXPECT_EQ(planned_mask(weights, request).shape, (Shape{5, 5}));
}

TEST_F(Planned, TheThreeProductsOfQueriesKeysAndValuesAreOne) {
  auto links = plan_links(weights, request_of(c, 1, 4));
  EXPECT_EQ(at(links, {Site::q, 0}).products.at(0).columns, 3 * c.d_model);
  EXPECT_TRUE(at(links, {Site::k, 0}).products.empty());
  EXPECT_TRUE(at(links, {Site::v, 0}).products.empty());
}

TEST_F(Planned, ATensorIsHeldUntilNothingReadsIt) {
  auto links = plan_links(weights, request_of(c, 1, 4));
  auto index = [&](TensorId id) { return static_cast<std::size_t>(&at(links, id) - links.data()); };
  EXPECT_EQ(at(links, {Site::q, 0}).last_reader, index({Site::attn_scores, 0}));
  EXPECT_EQ(at(links, {Site::q, 0}).last_use, index({Site::z, 0}));
  EXPECT_EQ(at(links, {Site::q, 0}).parts_until, index({Site::v, 0}));
  EXPECT_EQ(at(links, {Site::mlp_pre, 0}).last_use, index({Site::mlp_post, 0}));
  EXPECT_TRUE(at(links, {Site::resid_pre, 1}).same_memory);
  EXPECT_EQ(at(links, {Site::resid_post, 0}).last_use, index({Site::resid_mid, 1}))
      << "which goes on as resid_pre of the next layer";
}

TEST_F(Planned, EditsBringTheirMasksAndValues) {
  Array source = MutableArray({1, 4, c.d_model}, DType::f32).freeze();
  Request request = request_of(c, 3, 4);
  request.plan = Plan({{.kind = EditKind::patch,
                        .site = Site::resid_pre,
                        .layer = 1,
                        .where = {.batch = 1, .pos = std::vector<std::int64_t>{0, 2}},
                        .source = source},
                       {.kind = EditKind::zero, .site = Site::q_input, .layer = 2}});
  auto links = plan_links(weights, request);
  const PlannedLink& patched = at(links, {Site::resid_pre, 1, 1});
  EXPECT_EQ(part_bytes(patched, "mask of the edit"), 3 * 4 * c.d_model);
  EXPECT_EQ(part_bytes(patched, "values of the edit"), 3 * 4 * c.d_model * 4);
  EXPECT_EQ(part_bytes(patched, "indices of the edit"), 2 * c.d_model * 16);
  EXPECT_EQ(part_bytes(at(links, {Site::k, 2}), "inputs by head"), c.n_heads * 12 * c.d_model * 4);
}

TEST_F(Planned, SizesBeyondInt64StandAsTheLargest) {
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(product_of(std::int64_t{1} << 40, std::int64_t{1} << 40), most);
  EXPECT_EQ(sum_of(most, 1), most);
  EXPECT_EQ(sum_of(most - 1, 1), most);
  EXPECT_EQ(product_of(Shape{3, 4, 5}), 60);
  auto links = plan_links(outline(c, DType::f32), request_of(c, std::int64_t{1} << 60, 16));
  EXPECT_EQ(links.back().output.bytes(), most);
}

TEST(PlannedExperts, AllOfThemAreComputed) {
  Weights weights = load_weights(golden::family_folder("mixtral_window"), DType::bf16);
  const Config& c = weights.config;
  Request request = request_of(c, 2, 5);
  auto names = [](const Weights& w) {
    std::vector<std::string> all;
    w.for_each([&](const std::string& name, const Array& a) {
      all.push_back(name + to_string(a.shape()));
    });
    return all;
  };
  EXPECT_EQ(names(outline(c, DType::bf16)), names(weights));
  auto links = plan_links(outline(c, DType::bf16), request);
  const PlannedLink& gate = at(links, {Site::expert_gate, 1});
  EXPECT_EQ(gate.output.bytes(), 2 * 5 * 5 * c.d_mlp * 2);
  EXPECT_EQ(gate.products.at(0).columns, 5 * c.d_mlp);
  EXPECT_EQ(at(links, {Site::mlp_out, 1}).products.at(0).terms, 5 * c.d_mlp);
  EXPECT_EQ(at(links, {Site::router_logits, 1}).products.at(0).columns, 5);
  const PlannedLink& probabilities = at(links, {Site::expert_weights, 1});
  EXPECT_EQ(probabilities.output.bytes(), 2 * 5 * 5 * 4) << "float32 in a bfloat16 model";
  EXPECT_EQ(part_bytes(probabilities, "logits in float32"), 2 * 5 * 5 * 4);
  EXPECT_EQ(part_bytes(at(links, {Site::expert_indices, 1}), "order"), 2 * 5 * 5 * 8);
}

}  // namespace
}  // namespace lenscpp
