// The logit lens against the model's own logits and against formulas by hand.
#include "lens/logit_lens.h"

#include <gtest/gtest.h>

#include <numeric>

#include "lens/hooked_transformer.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

struct LensRun {
  HookedTransformer model;
  VerifiedCache cache;
};
LensRun run(const std::string& name, bool processed, DType dtype = DType::f32) {
  auto model = HookedTransformer::from_pretrained(
      golden::folder(name),
      {.processing = processed ? Processing{} : Processing::none(), .dtype = dtype});
  SafetensorsFile hf = SafetensorsFile::open(golden::folder(name) / "hf.safetensors");
  Array tokens = hf.tensor("tokens.0");
  VerifiedCache cache = model.run_with_cache(model.tokens_of(golden::ids(tokens), tokens.size(0)));
  return {std::move(model), std::move(cache)};
}

class Lens : public testing::TestWithParam<std::tuple<std::string, bool>> {
 protected:
  LensRun r = run(std::get<0>(GetParam()), std::get<1>(GetParam()));
};

Array last_row(const LogitLens& lens) {
  std::int64_t layers = lens.logits().size(0);
  Array row = lens.logits().rows(layers - 1, layers);
  return row.reshaped({row.size(1), row.size(2), row.size(3)});
}

TEST_P(Lens, AtTheLastResidualIsTheModelsOwnPrediction) {
  for (Site site : {Site::resid_pre, Site::resid_post})
    EXPECT_LT(golden::normalized_error(last_row(logit_lens(r.cache, {.site = site})),
                                       r.cache["unembed.hook_out"]),
              1e-6);
}

TEST_P(Lens, LabelsEveryLayer) {
  std::int64_t n = r.model.config().n_layers;
  LogitLens pre = logit_lens(r.cache), mid = logit_lens(r.cache, {.site = Site::resid_mid});
  ASSERT_EQ(static_cast<std::int64_t>(pre.labels().size()), n + 1);
  EXPECT_EQ(pre.labels().front(), "0_pre");
  EXPECT_EQ(pre.labels().back(), "final_post");
  EXPECT_EQ(static_cast<std::int64_t>(mid.labels().size()), n);
  EXPECT_EQ(mid.labels().front(), "0_mid");
  EXPECT_EQ(pre.logits().shape(),
            (Shape{n + 1, r.cache.record().batch, r.cache.record().pos, r.model.config().d_vocab}));
}

// embed + pos_embed + all contributions = the final residual, and the lens on contributions is
// linear.
TEST_P(Lens, ContributionsAddUpToThePrediction) {
  LogitLens attn = logit_lens(r.cache, {.site = Site::attn_out}),
            mlp = logit_lens(r.cache, {.site = Site::mlp_out});
  LogitLens all = logit_lens(r.cache, {.site = Site::resid_post, .apply_ln = true});
  const Array& logits = r.cache["unembed.hook_out"];
  // Differences between two tokens carry no bias of the final norm or of the vocabulary where both
  // are folded to zero mean; so the test takes a model without them: what remains is what the
  // embeddings give.
  std::int64_t vocab = logits.size(-1), rows = logits.numel() / vocab, n = attn.logits().size(0);
  std::vector<double> sum(static_cast<std::size_t>(rows * vocab), 0.0);
  for (std::int64_t i = 0; i < rows * vocab; ++i)
    for (std::int64_t l = 0; l < n; ++l)
      sum[i] += attn.logits()[l * rows * vocab + i] + mlp.logits()[l * rows * vocab + i];
  // Embeddings' share, by the same linear map written out by hand.
  const Weights& w = r.model.weights();
  const Array &embed = r.cache["hook_embed"], &pos = r.cache["hook_pos_embed"],
              &scale = r.cache["ln_final.hook_scale"];
  std::int64_t d = w.config.d_model;
  double worst = 0, size = 0;
  for (std::int64_t row = 0; row < rows; ++row) {
    double mean = 0;
    for (std::int64_t j = 0; j < d; ++j)
      mean += (embed[row * d + j] + pos[row * d + j]) / static_cast<double>(d);
    for (std::int64_t v = 0; v < vocab; ++v) {
      double share = w.b_U[v];
      for (std::int64_t j = 0; j < d; ++j) {
        double centred = (embed[row * d + j] + pos[row * d + j] - mean) / scale[row];
        double gamma = w.ln_final_w.empty() ? 1 : w.ln_final_w[j],
               beta = w.ln_final_w.empty() ? 0 : w.ln_final_b[j];
        share += (centred * gamma + beta) * w.W_U[v * d + j];
      }
      worst = std::max(worst, std::abs(sum[row * vocab + v] + share - logits[row * vocab + v]));
      size = std::max(size, std::abs(logits[row * vocab + v]));
    }
  }
  EXPECT_LT(worst, 1e-5 * size);
}

TEST_P(Lens, ProbabilitiesRanksEntropiesAndTopTokensAgree) {
  LogitLens lens = logit_lens(r.cache);
  Array probs = lens.probs(), entropy = lens.entropy();
  std::int64_t vocab = lens.logits().size(-1);
  for (std::int64_t row = 0; row < probs.numel() / vocab; ++row) {
    double sum = 0, nats = 0;
    for (std::int64_t v = 0; v < vocab; ++v) {
      sum += probs[row * vocab + v];
      if (probs[row * vocab + v] > 0)
        nats -= probs[row * vocab + v] * std::log(probs[row * vocab + v]);
    }
    ASSERT_NEAR(sum, 1, 1e-5);
    ASSERT_NEAR(entropy[row], nats, 1e-4);
  }
  auto top = lens.top_k(-1, 0, -1, 3);
  std::int64_t row =
      ((lens.logits().size(0) - 1) * lens.logits().size(1) + 0) * lens.logits().size(2) +
      lens.logits().size(2) - 1;
  for (std::int64_t k = 0; k < 3; ++k) {
    EXPECT_EQ(lens.rank(top[k].token)[row], k);
    EXPECT_NEAR(top[k].probability, probs[row * vocab + top[k].token], 1e-6);
  }
}

INSTANTIATE_TEST_SUITE_P(Golden, Lens,
                         testing::Combine(testing::Values("three_layers", "untied", "odd_heads"),
                                          testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param) +
                                  (std::get<1>(info.param) ? "_processed" : "_raw");
                         });

TEST(LogitLensTest, RefusesWhatItCannotRead) {
  LensRun r = run("flags", true);
  EXPECT_THROW(logit_lens(r.cache, {.site = Site::z}), std::invalid_argument);
  LogitLens lens = logit_lens(r.cache);
  EXPECT_THROW(lens.rank(100000), std::out_of_range);
  EXPECT_THROW(lens.top_k(99, 0, 0, 1), std::out_of_range);
  EXPECT_THROW(lens.top_k(0, 0, 0, 0), std::out_of_range);
  VerifiedCache partial = r.model.run_with_cache(
      r.model.tokens_of({1, 2}, 1), {.names = std::vector<std::string>{"blocks.0.hook_resid_pre"}});
  try {
    logit_lens(partial);
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("blocks.1.hook_resid_pre"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace lenscpp
