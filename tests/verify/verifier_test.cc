// What the verifier makes of a run: verified, refused and why, kept and dropped.
#include "verify/verifier.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "tests/verify/honest_run.h"

namespace lenscpp {
namespace {

using honest::Tamper;

struct Outcome {
  std::optional<VerifiedCache> cache;
  Verdict verdict;
  std::size_t kept = 0;
};

Outcome check(const std::shared_ptr<const Weights>& weights, const Request& request,
              const Tamper& tamper = {}, std::optional<VerifierOptions> options = {}) {
  Verifier verifier(weights, request, options.value_or(honest::keep_all(*weights)));
  honest::run(*weights, request, verifier, tamper);
  try {
    VerifiedCache cache = std::move(verifier).finish({});
    return {cache, cache.verdict(), cache.activations().entries().size()};
  } catch (const VerificationFailed& e) {
    return {{}, e.verdict(), e.unverified_cache().activations().entries().size()};
  }
}

// Every cached tensor of a case, its links' names, in order.
std::vector<TensorId> ids_of(const Weights& weights, const Request& request) {
  std::vector<TensorId> ids;
  for (const Link& link : wire(weights, request)) ids.push_back(link.output);
  return ids;
}

class VerifierOf : public testing::TestWithParam<std::tuple<std::string, DType, bool>> {
 protected:
  std::shared_ptr<const Weights> weights =
      honest::weights(std::get<0>(GetParam()), std::get<1>(GetParam()),
                      std::get<2>(GetParam()) ? Processing{} : Processing::none());
  Request request = honest::request(*weights, 2, std::min<std::int64_t>(6, weights->config.n_ctx));
};

TEST_P(VerifierOf, AcceptsAnHonestRunAndKeepsEveryPublicTensor) {
  Outcome outcome = check(weights, request);
  ASSERT_TRUE(outcome.cache) << outcome.verdict.summary();
  EXPECT_EQ(outcome.verdict.status, Status::verified);
  EXPECT_EQ(outcome.verdict.coverage, 1);
  EXPECT_EQ(outcome.kept, hook_names(weights->config).size());
  std::int64_t elements = 0;
  for (const TensorId& id : ids_of(*weights, request))
    elements += numel(shape_of(id.site, weights->config, request.rows.extents()));
  EXPECT_EQ(outcome.verdict.n_compared(), elements);
}

TEST_P(VerifierOf, NamesTheFirstWrongTensorWhereverItIs) {
  for (const TensorId& wrong : ids_of(*weights, request)) {
    Outcome outcome = check(weights, request, [&](const TensorId& id, const Array& value) {
      return id == wrong ? honest::with(value, value.numel() - 1, 77) : value;
    });
    ASSERT_FALSE(outcome.cache) << to_string(wrong);
    EXPECT_EQ(outcome.verdict.first_failure()->id, wrong) << outcome.verdict.summary();
    EXPECT_NE(outcome.verdict.first_failure()->hint, "");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Golden, VerifierOf,
    testing::Combine(testing::Values("three_layers", "one_layer_one_head", "flags"),
                     testing::Values(DType::f32, DType::f64, DType::bf16, DType::f16),
                     testing::Bool()),
    [](const auto& info) {
      return std::get<0>(info.param) + "_" + std::string(name_of(std::get<1>(info.param))) +
             (std::get<2>(info.param) ? "_processed" : "_raw");
    });

class VerifierTest : public testing::Test {
 protected:
  std::shared_ptr<const Weights> weights = honest::weights("three_layers", DType::f32);
  Request request = honest::request(*weights);

  // A run of which the sink sees only what `filter` lets through, possibly replaced.
  Verdict filtered(
      const std::function<std::optional<Array>(const TensorId&, const Array&)>& filter) {
    struct Filter : Sink {
      Verifier* to;
      std::function<std::optional<Array>(const TensorId&, const Array&)> filter;
      void take(const TensorId& id, const Array& value) override {
        if (auto passed = filter(id, value)) to->take(id, *passed);
      }
    } sink;
    Verifier verifier(weights, request, honest::keep_all(*weights));
    sink.to = &verifier;
    sink.filter = filter;
    honest::run(*weights, request, sink);
    try {
      std::move(verifier).finish({});
      return {.status = Status::verified};
    } catch (const VerificationFailed& e) {
      return e.verdict();
    }
  }
};

TEST_F(VerifierTest, RefusesARunInWhichATensorWasNeverComputed) {
  for (const TensorId& missing : ids_of(*weights, request)) {
    Verdict verdict = filtered([&](const TensorId& id, const Array& value) -> std::optional<Array> {
      if (id == missing) return std::nullopt;
      return value;
    });
    ASSERT_EQ(verdict.status, Status::invalid) << to_string(missing);
    EXPECT_EQ(verdict.first_failure()->id, missing);
    EXPECT_EQ(verdict.first_failure()->why, "never computed");
  }
}

TEST_F(VerifierTest, RefusesARunOfWhichNothingArrived) {
  Verdict verdict = filtered([](const TensorId&, const Array&) { return std::nullopt; });
  EXPECT_EQ(verdict.status, Status::invalid);
  EXPECT_EQ(verdict.n_compared(), 0);
}

TEST_F(VerifierTest, RefusesAnotherShapeOrDtype) {
  TensorId q{Site::q, 1};
  for (bool dtype : {false, true}) {
    Verdict verdict = filtered([&](const TensorId& id, const Array& value) -> std::optional<Array> {
      if (!(id == q)) return value;
      return dtype ? value.to(DType::f64) : value.reshaped({1, 2, value.numel() / 2});
    });
    ASSERT_EQ(verdict.status, Status::invalid);
    EXPECT_EQ(verdict.first_failure()->id, q);
    EXPECT_NE(verdict.first_failure()->why.find("has shape"), std::string::npos)
        << verdict.first_failure()->why;
  }
}

TEST_F(VerifierTest, RefusesATensorThatTheModelDoesNotHave) {
  Verifier verifier(weights, request, honest::keep_all(*weights));
  honest::run(*weights, request, verifier);
  verifier.take({Site::q, 1}, Array());
  EXPECT_THROW(std::move(verifier).finish({}), VerificationFailed);
}

TEST_F(VerifierTest, RefusesTensorsInAnotherOrder) {
  std::optional<Array> held;
  Verdict verdict = filtered([&](const TensorId& id, const Array& value) -> std::optional<Array> {
    if (id == TensorId{Site::q, 0}) {
      held = value;
      return std::nullopt;
    }
    return value;
  });
  EXPECT_EQ(verdict.first_failure()->id, (TensorId{Site::q, 0}));
}

// The second link reads what the first recorded, so a wrong tensor that propagates fails once.
TEST_F(VerifierTest, AWrongTensorThatIsReadOnFailsOnce) {
  TensorId wrong{Site::mlp_pre, 1};
  Outcome outcome = check(weights, request, [&](const TensorId& id, const Array& value) {
    return id == wrong ? honest::with(value, 5, 3) : value;
  });
  auto failures =
      std::ranges::count_if(outcome.verdict.points, [](const Point& p) { return !p.passed(); });
  EXPECT_EQ(failures, 1);
}

TEST_F(VerifierTest, KeepsOnlyWhatIsAskedForAndChecksEverything) {
  VerifierOptions options{.dtype = DType::f32, .keep = [](Site site, std::int64_t layer) {
                            return site == Site::z && layer == 1;
                          }};
  Outcome outcome = check(weights, request, {}, options);
  EXPECT_EQ(outcome.kept, 1u);
  EXPECT_EQ(outcome.verdict.coverage, 1);
  EXPECT_EQ(outcome.cache->activations().entries()[0].name, "blocks.1.attn.hook_z");
  EXPECT_EQ(outcome.cache->output().shape(), (Shape{2, 6, 257}));
}

TEST_F(VerifierTest, KeepsOnlyThePositionsThatAreAskedFor) {
  Recorder all;
  honest::run(*weights, request, all);
  VerifierOptions options = honest::keep_all(*weights);
  options.pos_slice = std::vector<std::int64_t>{4, 1};
  Outcome outcome = check(weights, request, {}, options);
  for (TensorId id : {TensorId{Site::resid_pre, 2}, {Site::z, 0}, {Site::pattern, 1}}) {
    const Array& part = (*outcome.cache)[hook_name(id.site, id.layer)];
    const Array& full = all.tensors().at(id);
    int axis = id.site == Site::pattern ? 2 : 1;
    EXPECT_EQ(part.size(axis), 2);
    std::int64_t inner = 1;
    for (int d = axis + 1; d < full.rank(); ++d) inner *= full.size(d);
    EXPECT_EQ(part[0], full[4 * inner]) << to_string(id);
    EXPECT_EQ(part[inner], full[1 * inner]) << to_string(id);
  }
}

TEST_F(VerifierTest, HoldsNoMoreTensorsForADeeperModel) {
  auto most_alive = [](std::int64_t layers) {
    Weights deep = *honest::weights("three_layers", DType::f32);
    LayerWeights one = deep.layers[0];
    deep.layers.assign(static_cast<std::size_t>(layers), one);
    deep.config.n_layers = layers;
    auto weights = std::make_shared<const Weights>(deep);
    Request request = honest::request(*weights);
    Verifier verifier(weights, request, {.dtype = DType::f32});
    struct Watch : Sink {
      Verifier* to;
      std::vector<std::weak_ptr<const void>> owners;
      std::size_t most = 0;
      void take(const TensorId& id, const Array& value) override {
        to->take(id, value);
        owners.push_back(value.owner());
        std::erase_if(owners, [](const auto& owner) { return owner.expired(); });
        most = std::max(most, owners.size());
      }
    } watch;
    watch.to = &verifier;
    // Like honest::run, but dropping what no later link reads, as a device does.
    std::map<TensorId, Array> live;
    std::map<TensorId, int> readers;
    auto links = wire(*weights, request);
    for (const Link& link : links)
      for (const TensorId& input : link.inputs) readers[input] += 1;
    for (const Link& link : links) {
      std::vector<Array> inputs;
      for (const TensorId& input : link.inputs) inputs.push_back(live.at(input));
      Array value =
          compute(link, inputs, shape_of(link.output.site, weights->config, request.rows.extents()),
                  serial_for)
              .to(DType::f32);
      for (const TensorId& input : link.inputs)
        if (--readers[input] == 0) live.erase(input);
      if (readers.contains(link.output)) live[link.output] = value;
      inputs.clear();
      watch.take(link.output, value);
    }
    std::move(verifier).finish({});
    return watch.most;
  };
  EXPECT_EQ(most_alive(3), most_alive(24));
}

TEST_F(VerifierTest, ReportsTheDriftOfTheWholeRun) {
  VerifierOptions options = honest::keep_all(*weights);
  options.drift = true;
  Outcome outcome = check(weights, request, {}, options);
  ASSERT_TRUE(outcome.verdict.drift);
  auto& rows = outcome.verdict.drift->points;
  ASSERT_EQ(rows.size(), outcome.verdict.points.size());
  EXPECT_EQ(rows.front().max_abs, 0);  // an embedding is gathered, not computed
  EXPECT_GT(rows.back().relative, 0);
  EXPECT_LT(rows.back().relative, 1e-5);
}

TEST_F(VerifierTest, ChecksEditsOfEveryKindAndSeesEachOneLeftOut) {
  Recorder source;
  honest::run(*weights, honest::request(*weights, 1), source);
  Array z = source.tensors().at({Site::z, 1}),
        vector = Array::of(std::span<const float>(std::vector<float>(36, 0.5f)), {36});
  std::vector<Edit> edits{
      {.kind = EditKind::patch,
       .site = Site::z,
       .layer = 1,
       .where = {.head = 2, .pos = std::vector<std::int64_t>{3}},
       .source = z},
      {.kind = EditKind::zero, .site = Site::mlp_out, .layer = 0, .where = {.batch = 1}},
      {.kind = EditKind::mean, .site = Site::attn_out, .layer = 2},
      {.kind = EditKind::mean, .site = Site::z, .layer = 0, .where = {.head = 0}, .source = z},
      {.kind = EditKind::add,
       .site = Site::resid_post,
       .layer = 1,
       .where = {.pos = std::vector<std::int64_t>{-1}},
       .source = vector,
       .factor = 1.5},
      {.kind = EditKind::scale, .site = Site::resid_pre, .layer = 2, .factor = 0.3},
      {.kind = EditKind::zero, .site = Site::pattern, .layer = 1, .where = {.head = 0, .key = 0}},
      {.kind = EditKind::scale, .site = Site::ln1_scale, .layer = 1, .factor = 1.1},
      {.kind = EditKind::add,
       .site = Site::q_input,
       .layer = 2,
       .where = {.head = 1},
       .source = vector},
      {.kind = EditKind::zero, .site = Site::result, .layer = 0, .where = {.head = 1}},
      {.kind = EditKind::scale, .site = Site::mlp_in, .layer = 2, .factor = 2}};
  for (const Edit& edit : edits) {
    request.plan = Plan(
        {edit, {.kind = EditKind::scale, .site = edit.site, .layer = edit.layer, .factor = 0.7}});
    request.validate(weights->config);
    Outcome outcome = check(weights, request);
    EXPECT_TRUE(outcome.cache) << to_json(request.plan).dump() << outcome.verdict.summary();
    // The device forgets the edit: what follows it is the value before.
    std::optional<Array> before;
    Outcome forgotten = check(weights, request, [&](const TensorId& id, const Array& value) {
      if (id == TensorId{edit.site, edit.layer, 0}) before = value;
      return id == TensorId{edit.site, edit.layer, 1} ? *before : value;
    });
    ASSERT_FALSE(forgotten.cache) << to_json(request.plan).dump();
    EXPECT_EQ(forgotten.verdict.first_failure()->id, (TensorId{edit.site, edit.layer, 1}));
  }
}

TEST_F(VerifierTest, SeesAnEditThatTouchesMoreThanItWasToldTo) {
  request.plan = Plan({{.kind = EditKind::zero,
                        .site = Site::z,
                        .layer = 1,
                        .where = {.head = 1, .pos = std::vector<std::int64_t>{2}}}});
  Outcome outcome = check(weights, request, [&](const TensorId& id, const Array& value) {
    return id == TensorId{Site::z, 1, 1} ? honest::with(value, 0, 0) : value;
  });
  ASSERT_FALSE(outcome.cache);
  EXPECT_EQ(outcome.verdict.first_failure()->failed, 1);
  EXPECT_EQ(outcome.verdict.first_failure()->worst_index, 0);
}

TEST_F(VerifierTest, ACacheRefusesBytesThatWereChangedBehindItsBack) {
  std::optional<Array> victim;
  Outcome outcome = check(weights, request, [&](const TensorId& id, const Array& value) {
    if (id == TensorId{Site::mlp_post, 1}) victim = value;
    return value;
  });
  const Array& before = (*outcome.cache)["blocks.1.mlp.hook_post"];
  EXPECT_EQ(before.bytes(), victim->bytes());  // the very buffer that was verified
  const_cast<std::byte*>(victim->bytes())[9] ^= std::byte{1};
  EXPECT_THROW((*outcome.cache)["blocks.1.mlp.hook_post"], NotVerified);
  EXPECT_NO_THROW((*outcome.cache)["blocks.1.mlp.hook_pre"]);
}

TEST_F(VerifierTest, UnknownNamesAreRefusedWithTheNearest) {
  Outcome outcome = check(weights, request);
  try {
    (*outcome.cache)["blocks.1.attn.hook_zz"];
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("blocks.1.attn.hook_z"), std::string::npos) << e.what();
  }
}

// Recorded elsewhere.

class Recorded : public testing::Test {
 protected:
  std::shared_ptr<const Weights> weights = honest::weights("three_layers", DType::f32);
  Request request = honest::request(*weights);
  std::map<std::string, Array> all;

  void SetUp() override {
    Recorder recorder;
    honest::run(*weights, request, recorder);
    for (const auto& [id, value] : recorder.tensors())
      if (info(id.site).presence != Presence::internal) all[hook_name(id.site, id.layer)] = value;
  }
  Verdict verdict_of(const std::map<std::string, Array>& recorded) {
    try {
      return verify_recorded(weights, request, recorded, {}, {.dtype = DType::f32}).verdict();
    } catch (const VerificationFailed& e) {
      return e.verdict();
    }
  }
  std::map<std::string, Array> only(std::initializer_list<std::string_view> endings) {
    std::map<std::string, Array> some;
    for (const auto& [name, value] : all)
      for (std::string_view ending : endings)
        if (name.ends_with(ending)) some[name] = value;
    return some;
  }
};

TEST_F(Recorded, ACompleteRecordIsVerified) {
  Verdict verdict = verdict_of(all);
  EXPECT_EQ(verdict.status, Status::verified) << verdict.summary();
  EXPECT_EQ(verdict.points.size(), all.size());
  EXPECT_EQ(verdict.recomputed.size(),
            6u);  // ln1.out and ln2.out of three layers have no public name
}

TEST_F(Recorded, GapsAreSpannedAndListed) {
  auto some = only({"resid_pre", "attn_out", "unembed.hook_out"});
  Verdict verdict = verdict_of(some);
  EXPECT_EQ(verdict.status, Status::verified) << verdict.summary();
  EXPECT_EQ(verdict.points.size(), some.size());
  EXPECT_LT(verdict.coverage, 0.5);
  EXPECT_TRUE(std::ranges::find(verdict.recomputed, "blocks.0.attn.hook_pattern") !=
              verdict.recomputed.end());
}

TEST_F(Recorded, AnErrorBehindAGapIsStillSeen) {
  auto some = only({"resid_pre", "attn_out", "unembed.hook_out"});
  Array& out = some.at("blocks.1.hook_attn_out");
  out = honest::with(out, 40, out[40] + 0.01);
  Verdict verdict = verdict_of(some);
  EXPECT_EQ(verdict.status, Status::invalid);
  EXPECT_EQ(to_string(verdict.first_failure()->id), "blocks.1.hook_attn_out");
}

TEST_F(Recorded, OnlyAGapWidensABoundAndByHowMuchIsSaid) {
  Verdict full = verdict_of(all),
          gaps = verdict_of(only({"resid_pre", "attn_out", "unembed.hook_out"}));
  EXPECT_GT(gaps.widest_gap, full.widest_gap);
  EXPECT_LE(gaps.widest_gap, kWidestGap);
  EXPECT_LT(full.widest_gap, 1e-5);  // the affine outputs of norms, which have no public name
}

TEST_F(Recorded, AGapTooWideToCheckAnythingIsRefusedSayingWhatToRecord) {
  try {
    verdict_of(only({"resid_pre"}));
    FAIL();
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find("record more"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("blocks.0.hook_resid_post"), std::string::npos)
        << e.what();
  }
}

// Numbers that nothing leads to must not pass because a gap's bound allows everything.
TEST(RecordedIn, NoDtypeIsGarbageBehindAGapVerified) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
    auto weights = honest::weights("three_layers", dtype);
    Request request = honest::request(*weights);
    Recorder recorder;
    honest::run(*weights, request, recorder);
    for (std::int64_t layer : {0, 1, 2}) {
      MutableArray garbage(recorder.tensors().at({Site::resid_post, layer}));
      for (std::int64_t i = 0; i < garbage.numel(); ++i)
        garbage.set(i, 100.0 * ((i * 7919) % 13) - 600);
      std::map<std::string, Array> recorded;
      for (std::int64_t l = 0; l < layer; ++l)
        recorded[hook_name(Site::resid_post, l)] = recorder.tensors().at({Site::resid_post, l});
      recorded[hook_name(Site::resid_post, layer)] = std::move(garbage).freeze();
      EXPECT_THROW(verify_recorded(weights, request, recorded, {}, {.dtype = dtype}),
                   std::exception)
          << name_of(dtype) << " " << layer;
    }
  }
}

TEST_F(VerifierTest, ABufferThatIsOverwrittenBetweenItsCheckAndItsUseIsNoticed) {
  // The device's memory is the recorded memory, so what follows is computed from the changed values
  // too.
  std::optional<Array> victim;
  Outcome outcome = check(
      weights, request,
      [&](const TensorId& id, const Array& value) {
        if (id == TensorId{Site::mlp_pre, 1}) victim = Array(value);
        if (id == TensorId{Site::mlp_post, 1}) {
          // Computed and checked from the clean values; overwritten before its reader retires it.
          auto* first = reinterpret_cast<float*>(const_cast<std::byte*>(victim->bytes()));
          first[0] = -20;  // GELU of it is as good as zero
          return honest::with(value, 0, 0.5f * -20 * (1 + std::tanh(-1e3f)));
        }
        return value;
      },
      VerifierOptions{.dtype = DType::f32});
  ASSERT_FALSE(outcome.cache);
  bool named = std::ranges::any_of(outcome.verdict.points, [](const Point& p) {
    return p.id == TensorId{Site::mlp_pre, 1} && p.why == "was overwritten after it was checked";
  });
  EXPECT_TRUE(named) << outcome.verdict.summary();
}

TEST_F(Recorded, BadRecordsAreRefusedByName) {
  EXPECT_THROW(verdict_of({}), std::invalid_argument);
  EXPECT_THROW(verdict_of({{"blocks.1.attn.hook_qq", all.begin()->second}}), std::invalid_argument);
  EXPECT_THROW(verdict_of({{"blocks.9.attn.hook_q", all.begin()->second}}), std::out_of_range);
  auto wrong = all;
  wrong.at("blocks.0.attn.hook_q") = wrong.at("blocks.0.hook_attn_out");
  EXPECT_THROW(verdict_of(wrong), std::invalid_argument);
  wrong = all;
  wrong.at("blocks.0.attn.hook_q") = wrong.at("blocks.0.attn.hook_q").to(DType::f64);
  EXPECT_THROW(verdict_of(wrong), std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
