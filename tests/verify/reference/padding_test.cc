// What padding changes in single operations: which keys a query sees, what one gets that sees none,
// and whose angles turn it.
#include <gtest/gtest.h>

#include "tests/verify/reference/link_builder.h"
#include "verify/reference/spans.h"

namespace lenscpp {
namespace {

using testing_links::random_array;

constexpr double kInf = std::numeric_limits<double>::infinity();

// Two prompts, in turn, of four.
struct PaddedScores {
  static constexpr std::int64_t kBatch = 4, kHeads = 2, kQueries = 5, kKeys = 7, kHead = 3;
  Array q = random_array({kBatch, kQueries, kHeads, kHead}, DType::f64, 1);
  Array k = random_array({kBatch, kKeys, kHeads, kHead}, DType::f64, 2);
  Shape shape{kBatch, kHeads, kQueries, kKeys};
  Link link{.op = Op::scores,
            .output = {Site::attn_scores},
            .inputs = {{Site::q}, {Site::keys}},
            .scalar = 2,
            .spans = {{3, 7}, {0, 4}},
            .first_query = 2};

  // By the definition, key by key.
  bool sees(std::int64_t prompt, std::int64_t query, std::int64_t key) const {
    const Span& span = link.spans[static_cast<std::size_t>(prompt % 2)];
    bool seen = key >= span.begin && key < span.end;
    if (link.causal) seen = seen && key <= query + link.first_query;
    if (link.window) seen = seen && key > query + link.first_query - *link.window;
    return seen;
  }
  Array expected() const {
    MutableArray scores(shape, DType::f64);
    for (std::int64_t i = 0; i < scores.numel(); ++i) {
      std::int64_t key = i % kKeys, query = i / kKeys % kQueries,
                   head = i / kKeys / kQueries % kHeads, prompt = i / kKeys / kQueries / kHeads;
      double sum = 0;
      for (std::int64_t d = 0; d < kHead; ++d)
        sum += q[((prompt * kQueries + query) * kHeads + head) * kHead + d] *
               k[((prompt * kKeys + key) * kHeads + head) * kHead + d];
      scores.set(i, sees(prompt, query, key) ? sum / link.scalar : -kInf);
    }
    return std::move(scores).freeze();
  }
  Point check(const Array& scores) const {
    return check_exact(link, {q, k}, scores, contract_of(Site::attn_scores, DType::f64),
                       serial_for);
  }
  static Array with(const Array& scores, std::int64_t i, double value) {
    MutableArray changed(scores);
    changed.set(i, value);
    return std::move(changed).freeze();
  }
};

TEST(PaddedOps, ScoresHidePaddingOfEachPrompt) {
  PaddedScores p;
  for (bool causal : {true, false})
    for (std::optional<std::int64_t> window : {std::optional<std::int64_t>(), {3}, {1}}) {
      p.link.causal = causal;
      p.link.window = window;
      Array expected = p.expected();
      EXPECT_TRUE(p.check(expected).passed()) << causal << window.value_or(0);
      for (std::int64_t i = 0; i < expected.numel(); ++i)  // hidden or shown, one at a time
        EXPECT_FALSE(p.check(p.with(expected, i, expected[i] == -kInf ? 0.5 : -kInf)).passed())
            << causal << window.value_or(0) << " at " << i;
    }
}

TEST(PaddedOps, ErrorsOfKeysReachOnlyTheQueriesThatSeeThem) {
  PaddedScores p;
  MutableArray errors(p.k.shape(), DType::f64);
  for (std::int64_t i = 0; i < errors.numel(); ++i) errors.set(i, 1e-3);
  Array reached = propagate(p.link, {p.q, p.k}, {{}, std::move(errors).freeze()}, p.shape);
  Array scores = p.expected();
  for (std::int64_t i = 0; i < scores.numel(); ++i)
    EXPECT_EQ(reached[i] > 0, scores[i] != -kInf) << i;
}

TEST(PaddedOps, AQueryThatSeesNothingAttendsToNothing) {
  Array scores = Array::of(std::vector<double>{-kInf, -kInf, -kInf, -kInf, 0, 0}, {1, 1, 2, 3});
  Link link{.op = Op::softmax, .output = {Site::pattern}, .inputs = {{Site::attn_scores}}};
  Contract contract = contract_of(Site::pattern, DType::f64);
  auto check = [&](std::vector<double> pattern) {
    return check_exact(link, {scores}, Array::of(pattern, {1, 1, 2, 3}), contract, serial_for);
  };
  EXPECT_TRUE(check({0, 0, 0, 0, 0.5, 0.5}).passed());
  EXPECT_FALSE(check({1. / 3, 1. / 3, 1. / 3, 0, 0.5, 0.5}).passed());
  EXPECT_FALSE(check({0, std::nan(""), 0, 0, 0.5, 0.5}).passed());
  Array errors = Array::of(std::vector<double>(6, 1e-6), {1, 1, 2, 3});
  Array reached = propagate(link, {scores}, {errors}, {1, 1, 2, 3});
  for (std::int64_t i : {0, 1, 2}) EXPECT_EQ(reached[i], 0);
}

TEST(PaddedOps, PromptsAreTurnedByTheirOwnAnglesInTurn) {
  Array x = random_array({4, 3, 1, 2}, DType::f64, 3);
  Array cos = random_array({2, 3, 1}, DType::f64, 4), sin = random_array({2, 3, 1}, DType::f64, 5);
  Link link{.op = Op::turn,
            .output = {Site::rot_q},
            .inputs = {{Site::q}, {Site::rotary_cos}, {Site::rotary_sin}}};
  auto turned = [&](std::int64_t apart) {
    MutableArray out({4, 3, 1, 2}, DType::f64);
    for (std::int64_t row = 0; row < 12; ++row) {
      std::int64_t at = (row / 3 % apart) * 3 + row % 3;
      double a = x[2 * row], b = x[2 * row + 1];
      out.set(2 * row, a * cos[at] - b * sin[at]);
      out.set(2 * row + 1, b * cos[at] + a * sin[at]);
    }
    return std::move(out).freeze();
  };
  Contract contract = contract_of(Site::rot_q, DType::f64);
  EXPECT_TRUE(check_exact(link, {x, cos, sin}, turned(2), contract, serial_for).passed());
  EXPECT_FALSE(check_exact(link, {x, cos, sin}, turned(1), contract, serial_for).passed());
  EXPECT_THROW(check_exact(link, {x, random_array({3, 3, 1}, DType::f64, 6), sin}, turned(2),
                           contract, serial_for),
               std::invalid_argument);
}

TEST(PaddedOps, ThePoolerReadsTheFirstTokenOfEachPrompt) {
  Array x = random_array({2, 4, 3}, DType::f64, 7);
  Link link{.op = Op::select,
            .output = {Site::pooler_in},
            .inputs = {{Site::normalized_resid_post, 2}},
            .spans = {{2, 4}, {0, 1}}};
  auto rows = [&](std::int64_t a, std::int64_t b) {
    MutableArray out({2, 3}, DType::f64);
    for (std::int64_t i = 0; i < 3; ++i) {
      out.set(i, x[a * 3 + i]);
      out.set(3 + i, x[(4 + b) * 3 + i]);
    }
    return std::move(out).freeze();
  };
  Contract contract = contract_of(Site::pooler_in, DType::f64);
  EXPECT_TRUE(check_exact(link, {x}, rows(2, 0), contract, serial_for).passed());
  EXPECT_FALSE(check_exact(link, {x}, rows(0, 0), contract, serial_for).passed());
}

TEST(PaddedOps, TanhIsHeldToItsBound) {
  Array x = random_array({5, 7}, DType::f32, 8, 2);
  Link link{.op = Op::activation,
            .output = {Site::pooler_out},
            .inputs = {{Site::pooler_pre}},
            .activation = Activation::tanh};
  Contract contract = contract_of(Site::pooler_out, DType::f32);
  MutableArray honest(x.shape(), DType::f32), wrong(x.shape(), DType::f32);
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    honest.set(i, std::tanh(static_cast<float>(x[i])));
    wrong.set(i, std::tanh(x[i]) * (1 + 2e-6));
  }
  EXPECT_TRUE(check_exact(link, {x}, std::move(honest).freeze(), contract, serial_for).passed());
  EXPECT_FALSE(check_exact(link, {x}, std::move(wrong).freeze(), contract, serial_for).passed());
}

}  // namespace
}  // namespace lenscpp
