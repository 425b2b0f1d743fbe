// Runs with callbacks: what the verifier makes of a value that no reference predicts.
#include <gtest/gtest.h>

#include "tests/verify/honest_run.h"
#include "verify/reference/end_to_end.h"

namespace lenscpp {
namespace {

using honest::Tamper;

struct Outcome {
  std::optional<VerifiedCache> cache;
  Verdict verdict;
};

Outcome check(const std::shared_ptr<const Weights>& weights, const Request& request,
              const Tamper& tamper = {}, bool drift = false) {
  VerifierOptions options = honest::keep_all(*weights);
  options.drift = drift;
  Verifier verifier(weights, request, options);
  honest::run(*weights, request, verifier, tamper);
  try {
    VerifiedCache cache = std::move(verifier).finish({});
    return {cache, cache.verdict()};
  } catch (const VerificationFailed& e) {
    return {{}, e.verdict()};
  }
}

Callback look(Site site, std::int64_t layer) {
  return {
      .site = site, .layer = layer, .name = "look", .call = [](auto...) { return std::nullopt; }};
}

Callback fill(Site site, std::int64_t layer, double value) {
  return {.site = site,
          .layer = layer,
          .name = "fill",
          .call = [value](const TensorId&, const Array& before) {
            MutableArray filled(before.shape(), before.dtype());
            for (std::int64_t i = 0; i < filled.numel(); ++i) filled.set(i, value + 0.25 * (i % 3));
            return std::move(filled).freeze();
          }};
}

class Callbacks : public testing::Test {
 protected:
  std::shared_ptr<const Weights> weights = honest::weights("three_layers", DType::f32);
  Request request = honest::request(*weights);
  const TensorId computed{Site::z, 1, 0}, returned{Site::z, 1, 1};
};

TEST_F(Callbacks, AreVerifiedAtEverySiteThatCanBeChanged) {
  for (const SiteInfo& row : all_sites()) {
    if (row.presence == Presence::internal || row.stored == Stored::ids) continue;
    request.callbacks = {fill(row.site, row.per_layer ? 1 : 0, 0.5)};
    if (!exists(row.site, weights->config) || !request.rows.reach(row.site, row.per_layer ? 1 : 0))
      continue;
    request.validate(weights->config);
    Outcome outcome = check(weights, request);
    EXPECT_TRUE(outcome.cache) << row.name << ": " << outcome.verdict.summary();
  }
}

TEST_F(Callbacks, LeaveInTheCacheWhatLaterLinksRead) {
  request.callbacks = {fill(Site::z, 1, 2)};
  Outcome outcome = check(weights, request);
  ASSERT_TRUE(outcome.cache) << outcome.verdict.summary();
  EXPECT_EQ((*outcome.cache)["blocks.1.attn.hook_z"][4], 2.25);
  EXPECT_EQ(outcome.verdict.coverage, 1);
  auto stage = std::ranges::find_if(outcome.verdict.points,
                                    [&](const Point& p) { return p.id == returned; });
  ASSERT_NE(stage, outcome.verdict.points.end());
  EXPECT_EQ(stage->op, Op::callback);
  EXPECT_EQ(to_string(*stage), "blocks.1.attn.hook_z (hook 1: fill)");
  EXPECT_EQ(stage->compared, (*outcome.cache)["blocks.1.attn.hook_z"].numel());
}

TEST_F(Callbacks, AFaultBeforeAtOrAfterOneIsNamedAtItsStage) {
  request.callbacks = {fill(Site::z, 1, 2)};
  for (TensorId wrong : {computed, returned, TensorId{Site::attn_out, 1}}) {
    Outcome outcome = check(weights, request, [&](const TensorId& id, const Array& value) {
      return id == wrong ? honest::with(value, 7, value[7] + 0.1) : value;
    });
    ASSERT_FALSE(outcome.cache) << to_string(wrong);
    EXPECT_EQ(outcome.verdict.first_failure()->id, wrong) << outcome.verdict.summary();
    EXPECT_EQ(outcome.verdict.first_failure()->failed, 1);
  }
}

// One unit in the last place is within every bound of a computed value.
TEST_F(Callbacks, AReturnedValueIsComparedBitByBit) {
  request.callbacks = {fill(Site::z, 1, 0)};
  for (float nearly : {-0.0f, std::nextafter(0.25f, 1.0f)}) {
    Outcome outcome = check(weights, request, [&](const TensorId& id, const Array& value) {
      return id == returned ? honest::with(value, nearly == 0 ? 0 : 1, nearly) : value;
    });
    ASSERT_FALSE(outcome.cache) << nearly;
    EXPECT_EQ(outcome.verdict.first_failure()->id, returned);
    EXPECT_EQ(outcome.verdict.first_failure()->failed, 1);
  }
}

TEST_F(Callbacks, AValueOfWhichNobodyToldWhatWasReturnedIsRefused) {
  request.callbacks = {look(Site::z, 1)};
  struct Silent : Sink {
    Verifier* to;
    void take(const TensorId& id, const Array& value) override { to->take(id, value); }
  } silent;
  Verifier verifier(weights, request, honest::keep_all(*weights));
  silent.to = &verifier;
  honest::run(*weights, request, silent);
  try {
    std::move(verifier).finish({});
    FAIL();
  } catch (const VerificationFailed& e) {
    EXPECT_EQ(e.verdict().first_failure()->id, returned);
    EXPECT_NE(std::string(e.what()).find("nobody told"), std::string::npos) << e.what();
  }
}

TEST_F(Callbacks, ThatNeverRanAreRefused) {
  Request without = request;
  request.callbacks = {look(Site::z, 1)};
  Verifier verifier(weights, request, honest::keep_all(*weights));
  honest::run(*weights, without, verifier);
  try {
    std::move(verifier).finish({});
    FAIL();
  } catch (const VerificationFailed& e) {
    EXPECT_NE(std::string(e.what()).find("blocks.1.attn.hook_z (hook 1: look)"), std::string::npos)
        << e.what();
    EXPECT_EQ(e.verdict().first_failure()->why, "never computed");
  }
}

TEST_F(Callbacks, AnotherShapeIsRefusedAtItsStage) {
  request.callbacks = {fill(Site::z, 1, 1)};
  struct Reshaping : Sink {
    Verifier* to;
    TensorId wrong;
    void take(const TensorId& id, const Array& value) override {
      to->take(id, id == wrong ? value.reshaped({1, value.numel()}) : value);
    }
    void take_returned(const TensorId& id, const Array& value) override {
      to->take_returned(id, value);
    }
  } reshaping;
  for (TensorId wrong : {computed, returned}) {
    VerifierOptions options = honest::keep_all(*weights);
    options.drift = true;
    Verifier verifier(weights, request, options);
    reshaping.to = &verifier;
    reshaping.wrong = wrong;
    honest::run(*weights, request, reshaping);
    try {
      std::move(verifier).finish({});
      FAIL();
    } catch (const VerificationFailed& e) {
      EXPECT_EQ(e.verdict().first_failure()->id, wrong) << e.what();
    }
  }
}

TEST_F(Callbacks, DriftTakesWhatTheyChangedAndKeepsWhatTheyLeft) {
  auto at = [&](const Verdict& verdict, const std::string& name) {
    for (const Drift::Row& row : verdict.drift->points)
      if (row.name == name) return row.max_abs;
    ADD_FAILURE() << name;
    return -1.0;
  };
  request.callbacks = {look(Site::resid_post, 1)};
  Verdict looked = check(weights, request, {}, true).verdict;
  double before = at(looked, "blocks.1.hook_resid_post");
  EXPECT_GT(before, 0);
  EXPECT_EQ(at(looked, "blocks.1.hook_resid_post (hook 1: look)"), before);
  request.callbacks = {fill(Site::resid_post, 1, 1)};
  Verdict filled = check(weights, request, {}, true).verdict;
  EXPECT_EQ(at(filled, "blocks.1.hook_resid_post (hook 1: fill)"), 0);
  EXPECT_EQ(at(filled, "blocks.2.hook_resid_pre"), 0);
}

TEST_F(Callbacks, HaveNoFloat64RunAndNoPlaceInARecordedRun) {
  request.callbacks = {look(Site::z, 1)};
  EXPECT_THROW(run_in_float64(*weights, request, serial_for), std::invalid_argument);
  Recorder recorder;
  honest::run(*weights, request, recorder);
  std::map<std::string, Array> recorded;
  for (const auto& [id, value] : recorder.tensors())
    if (info(id.site).presence != Presence::internal)
      recorded[hook_name(id.site, id.layer)] = value;
  try {
    verify_recorded(weights, request, recorded, {}, {.dtype = DType::f32});
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("edits or hooks"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace lenscpp
