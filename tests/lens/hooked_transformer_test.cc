// The facade: honest runs are verified in every dtype, edits are applied and checked, bad calls
// refused.
#include "lens/hooked_transformer.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <random>

#include "lens/fault_injection.h"
#include "lens/logit_lens.h"
#include "tests/golden_cases.h"

namespace lenscpp {
namespace {

std::filesystem::path tiny_ioi() {
  return std::filesystem::path(LENSCPP_SOURCE_DIR) / "python/lenscpp/models/tiny-ioi";
}

const HookedTransformer& tiny(DType dtype = DType::f32) {
  static std::map<DType, HookedTransformer> models;
  auto found = models.find(dtype);
  if (found == models.end())
    found = models.emplace(dtype, HookedTransformer::from_pretrained(tiny_ioi(), {.dtype = dtype}))
                .first;
  return found->second;
}

constexpr const char* kPrompt = "When John and Mary went to the store, John gave the bag to";

Tokens random_tokens(const Config& config, std::int64_t batch, std::int64_t pos,
                     std::mt19937_64& random) {
  Tokens tokens{.batch = batch, .pos = pos};
  for (std::int64_t i = 0; i < batch * pos; ++i)
    tokens.ids.push_back(
        static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(config.d_vocab)));
  return tokens;
}

TEST(HookedTransformer, CompletesTheIndirectObject) {
  VerifiedCache cache = tiny().run_with_cache(tiny().to_tokens(kPrompt));
  LogitLens lens = logit_lens(cache, {.site = Site::resid_post});
  auto top = lens.top_k(-1, 0, -1, 1);
  EXPECT_EQ(tiny().tokenizer().token(top[0].token), " Mary");
  EXPECT_GT(top[0].probability, 0.9);
  EXPECT_EQ(cache.record().tokens, tiny().to_tokens(kPrompt).ids);
  EXPECT_EQ(cache.record().model_digest, tiny().digest());
}

// `LENSCPP_CLEAN_RUNS=1000` is the full size; the default is what every test run does.
class CleanRuns : public testing::TestWithParam<VerifyMode> {};

TEST_P(CleanRuns, AreNeitherRefusedNorDoubted) {
  const char* asked = std::getenv("LENSCPP_CLEAN_RUNS");
  int runs = asked != nullptr ? std::atoi(asked) : 24;
  ASSERT_GE(runs, 16) << "LENSCPP_CLEAN_RUNS";
  int threads_before = at::get_num_threads();
  std::mt19937_64 random(20240601);
  struct Seen {
    std::int64_t compared = 0, projected = 0;
    double worst = 0, residual = 0;
  };
  std::map<DType, Seen> seen;
  for (int i = 0; i < runs; ++i) {
    DType dtype = std::array{DType::f32, DType::f64, DType::bf16, DType::f16}[i % 4];
    at::set_num_threads(1 + i / 4 % 2);
    const HookedTransformer& model = tiny(dtype);
    Tokens tokens = random_tokens(model.config(), 1 + static_cast<std::int64_t>(random() % 4),
                                  1 + static_cast<std::int64_t>(random() % 60), random);
    std::string which = "run " + std::to_string(i) + " in " + std::string(name_of(dtype)) + ", [" +
                        std::to_string(tokens.batch) + ", " + std::to_string(tokens.pos) + "]";
    try {
      Verdict verdict =
          model.run_with_cache(tokens, {.verify = GetParam(), .names = std::vector<std::string>{}})
              .verdict();
      Seen& s = seen[dtype];
      s.compared += verdict.n_compared();
      s.projected += verdict.n_projected();
      for (const Point& p : verdict.points) {
        s.worst = std::max(s.worst, p.worst_ratio);
        s.residual = std::max(s.residual, p.residual);
        // What projections doubt is compared exactly, and has no residual.
        EXPECT_EQ(p.residual > 0, p.op == Op::linear && GetParam() == VerifyMode::checksum)
            << which << " at " << to_string(p);
      }
    } catch (const VerificationFailed& e) {
      FAIL() << which << ": " << e.what();
    }
  }
  at::set_num_threads(threads_before);
  for (const auto& [dtype, s] : seen)
    std::cout << runs / 4 << " runs in " << name_of(dtype) << ": " << s.compared
              << " elements compared and " << s.projected << " by checksums, worst error / bound "
              << s.worst << ", worst residual / limit " << s.residual << "\n";
}
INSTANTIATE_TEST_SUITE_P(HookedTransformer, CleanRuns,
                         testing::Values(VerifyMode::exact, VerifyMode::checksum),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST(HookedTransformer, VerifiesByChecksumsWhenAskedTo) {
  Tokens tokens = tiny().to_tokens(kPrompt);
  VerifiedCache exact = tiny().run_with_cache(tokens),
                cache = tiny().run_with_cache(tokens, {.verify = VerifyMode::checksum});
  const Verdict& verdict = cache.verdict();
  EXPECT_EQ(verdict.mode, VerifyMode::checksum);
  EXPECT_EQ(cache.record().mode, "checksum");
  EXPECT_EQ(cache.record().seed, Projections::secret_seed());
  EXPECT_EQ(verdict.n_compared() + verdict.n_projected(), exact.verdict().n_compared());
  EXPECT_GT(verdict.n_projected(), verdict.n_compared() / 10);
  EXPECT_LT(verdict.coverage, 1);
  EXPECT_EQ(exact.record().seed, std::nullopt);
}

TEST(HookedTransformer, NamesAFaultByElementInChecksumModeToo) {
  Tokens tokens = tiny().to_tokens(kPrompt);
  for (std::string hook : {"blocks.1.hook_attn_out", "blocks.2.mlp.hook_pre", "unembed.hook_out",
                           "blocks.0.attn.hook_pattern", "blocks.3.attn.hook_q"}) {
    auto injector = std::make_shared<FaultInjector>(
        std::vector<FaultSpec>{
            {.name = "one_element", .parameters = {{"index", 77}}, .hook = hook}},
        tiny().config());
    RunOptions options{.verify = VerifyMode::checksum, .interference = interference_of(injector)};
    try {
      tiny().run_with_cache(tokens, options);
      ADD_FAILURE() << hook;
    } catch (const VerificationFailed& e) {
      const Point* first = e.verdict().first_failure();
      EXPECT_EQ(to_string(*first), hook);
      EXPECT_EQ(first->failed, 1);
      EXPECT_EQ(first->worst_index, 77);
      EXPECT_EQ(first->projected, 0);
    }
  }
}

class InDtype : public testing::TestWithParam<DType> {};

TEST_P(InDtype, EditsOfEveryKindAreAppliedAndVerified) {
  const HookedTransformer& model = tiny(GetParam());
  std::mt19937_64 random(3);
  Tokens tokens = random_tokens(model.config(), 2, 9, random),
         other = random_tokens(model.config(), 2, 9, random);
  VerifiedCache source = model.run_with_cache(other), clean = model.run_with_cache(tokens);
  std::vector<std::int64_t> pos{2, 5};
  for (std::string name :
       {"blocks.1.hook_resid_pre", "blocks.2.attn.hook_z", "blocks.0.attn.hook_pattern",
        "blocks.3.mlp.hook_post", "blocks.1.ln1.hook_scale", "blocks.2.ln2.hook_normalized",
        "ln_final.hook_scale", "hook_embed", "hook_pos_embed", "blocks.1.attn.hook_q",
        "blocks.1.attn.hook_k", "blocks.1.attn.hook_v", "blocks.1.attn.hook_attn_scores",
        "blocks.2.hook_attn_out", "blocks.2.hook_mlp_out", "blocks.3.hook_resid_post",
        "unembed.hook_in", "unembed.hook_out"}) {
    TensorId id = find_hook(name, {}, {}, model.config());
    bool scores = id.site == Site::attn_scores, scale = info(id.site).stored == Stored::accumulate;
    for (EditKind kind :
         {EditKind::patch, EditKind::zero, EditKind::mean, EditKind::add, EditKind::scale}) {
      if (scores && (kind == EditKind::mean || kind == EditKind::scale))
        continue;                                     // scaled -inf is -inf; the mean is refused
      if (scale && kind == EditKind::zero) continue;  // a division by zero is no activation
      Edit edit{.kind = kind,
                .site = id.site,
                .layer = id.layer,
                .where = {.pos = pos},
                .factor = kind == EditKind::scale ? 0.7 : 1.0};
      if (kind == EditKind::patch || kind == EditKind::add) edit.source = source[name];
      if (scores && kind == EditKind::add)
        edit.source = MutableArray(source[name].shape(), DType::f32).freeze();
      VerifiedCache edited = model.run_with_cache(
          tokens, {.plan = Plan({edit})});  // throws when it is not what was asked for
      if (kind == EditKind::patch) {
        const Array &found = edited[name], &from = source[name], &before = clean[name];
        auto inside = touched(edit, found.shape());
        std::size_t next = 0;
        for (std::int64_t i = 0; i < found.numel(); ++i) {
          bool patched = next < inside.size() && inside[next] == i;
          if (patched) ++next;
          // Elsewhere the same arithmetic ran on the same inputs, up to the edit's own site.
          ASSERT_EQ(found[i], patched ? from[i] : before[i]) << name << " " << i;
        }
      }
    }
  }
}

TEST_P(InDtype, InputsOfTheirOwnForQueriesKeysAndValuesAreVerified) {
  const HookedTransformer& model = tiny(GetParam());
  std::mt19937_64 random(4);
  Tokens tokens = random_tokens(model.config(), 2, 7, random);
  std::vector<std::string> names{
      "blocks.1.hook_attn_in", "blocks.1.hook_q_input",     "blocks.1.hook_k_input",
      "blocks.1.hook_v_input", "blocks.1.attn.hook_result", "blocks.1.hook_mlp_in",
      "hook_tokens",           "blocks.1.attn.hook_q"};
  VerifiedCache asked = model.run_with_cache(tokens, {.names = names});
  EXPECT_EQ(asked.activations().entries().size(), names.size());
  for (Site site :
       {Site::attn_in, Site::q_input, Site::k_input, Site::v_input, Site::result, Site::mlp_in}) {
    Edit edit{.kind = EditKind::scale, .site = site, .layer = 1, .factor = 0.5};
    if (site != Site::mlp_in) edit.where.head = 2;
    EXPECT_NO_THROW(model.run_with_cache(tokens, {.plan = Plan({edit})})) << hook_name(site, 1);
  }
}

TEST_P(InDtype, DriftStaysNearTheDtypesRoundoff) {
  const HookedTransformer& model = tiny(GetParam());
  Verdict verdict = model.run_with_cache(model.to_tokens(kPrompt), {.drift = true}).verdict();
  ASSERT_TRUE(verdict.drift);
  EXPECT_GT(verdict.drift->points.back().relative, 0);
  EXPECT_LT(verdict.drift->points.back().relative, 30 * unit_roundoff(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(HookedTransformer, InDtype,
                         testing::Values(DType::f32, DType::f64, DType::bf16, DType::f16),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST(HookedTransformer, IsTheSameInsideAnyAmbientState) {
  Tokens tokens = tiny().to_tokens(kPrompt);
  std::string expected = tiny().forward(tokens).digest();
  {
    at::autocast::set_autocast_enabled(at::kCPU, true);
    EXPECT_EQ(tiny().forward(tokens).digest(), expected) << "autocast";
    EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCPU));
    at::autocast::set_autocast_enabled(at::kCPU, false);
  }
  {
    c10::set_default_dtype(caffe2::TypeMeta::Make<double>());
    EXPECT_EQ(tiny().forward(tokens).digest(), expected) << "default dtype";
    EXPECT_EQ(c10::get_default_dtype(), caffe2::TypeMeta::Make<double>());
    c10::set_default_dtype(caffe2::TypeMeta::Make<float>());
  }
  {
    c10::InferenceMode guard;
    EXPECT_EQ(tiny().forward(tokens).digest(), expected) << "inference mode";
  }
  {
    at::Context& context = at::globalContext();
    context.setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL,
                                at::Float32Precision::BF16);
    EXPECT_EQ(tiny().forward(tokens).digest(), expected) << "float32 products in bfloat16";
    EXPECT_EQ(context.float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL),
              at::Float32Precision::BF16);
    context.setFloat32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL,
                                at::Float32Precision::IEEE);
  }
  EXPECT_TRUE(c10::GradMode::is_enabled());
}

TEST(HookedTransformer, StopsWhereItIsAskedTo) {
  Tokens tokens = tiny().to_tokens(kPrompt);
  VerifiedCache full = tiny().run_with_cache(tokens);
  for (std::int64_t stop = 0; stop <= tiny().config().n_layers; ++stop) {
    Array residual = tiny().forward(tokens, {.stop_at_layer = stop});
    std::string name = stop < tiny().config().n_layers ? hook_name(Site::resid_pre, stop)
                                                       : hook_name(Site::resid_post, stop - 1);
    if (stop == tiny().config().n_layers) {
      EXPECT_EQ(residual.digest(), full[name].digest());
    } else {
      EXPECT_EQ(residual.digest(), full[name].digest()) << stop;
    }
  }
  EXPECT_THROW(
      tiny().run_with_cache(tokens, {.names = std::vector<std::string>{"blocks.3.hook_resid_pre"},
                                     .stop_at_layer = 2}),
      std::invalid_argument);
  EXPECT_THROW(tiny().forward(tokens, {.stop_at_layer = 5}), std::out_of_range);
}

TEST(HookedTransformer, ReadsNoSwitchedOffRun) {
  Tokens tokens = tiny().to_tokens(kPrompt);
  EXPECT_THROW(tiny().run_with_cache(tokens, {.verify = VerifyMode::off}), std::invalid_argument);
  UnverifiedCache raw = tiny().run_unverified(tokens);
  EXPECT_EQ(raw.verdict().status, Status::unverified);
  EXPECT_EQ(raw.activations().output().value.digest(), tiny().forward(tokens).digest());
}

TEST(HookedTransformer, RefusesBadCallsByName) {
  auto says = [](const auto& call, const std::string& text) {
    try {
      call();
      ADD_FAILURE() << "no exception: " << text;
    } catch (const std::exception& e) {
      EXPECT_NE(std::string(e.what()).find(text), std::string::npos) << e.what();
    }
  };
  const HookedTransformer& m = tiny();
  says([&] { m.to_tokens_of_pairs({{"a", "b"}}); }, "this one is causal");
  says([&] { m.padded({{1, 2}, {}}); }, "a prompt of no tokens");
  says([&] { m.to_tokens("", false); }, "empty prompt");
  says([&] { m.to_single_token(" Mary John"); }, "2 tokens, not one: \" Mary\", \" John\"");
  says([&] { m.tokens_of({1, 2, 999999}, 1); }, "token 999999 at prompt 0, position 2");
  says(
      [&] {
        m.run_with_cache(m.to_tokens("a"),
                         {.names = std::vector<std::string>{"blocks.0.attn.hook_qs"}});
      },
      "nearest");
  says(
      [&] {
        m.run_with_cache(m.to_tokens("a"), {.filter = [](const std::string&) { return false; }});
      },
      "matches no hook point");
  says([&] { m.run_with_cache(m.to_tokens("a"), {.pos_slice = std::vector<std::int64_t>{9}}); },
       "pos_slice");
  says([&] { HookedTransformer::from_pretrained(tiny_ioi(), {.device = "nonsense"}); }, "nonsense");
  says([&] { HookedTransformer::from_pretrained(tiny_ioi(), {.device = "cuda:7"}); }, "[device]");
  says([&] { HookedTransformer::from_pretrained(tiny_ioi(), {.first_n_layers = 9}); },
       "has 4 layers");
  says([&] { HookedTransformer::from_pretrained("no/such/folder"); }, "no/such/folder");
  EXPECT_THROW(HookedTransformer::from_pretrained(tiny_ioi(), {.device = "cuda:7"}), DeviceError);
}

TEST(HookedTransformer, LoadsOnlyTheFirstLayersWhenAskedTo) {
  HookedTransformer two = HookedTransformer::from_pretrained(tiny_ioi(), {.first_n_layers = 2});
  EXPECT_EQ(two.config().n_layers, 2);
  Tokens tokens = two.to_tokens(kPrompt);
  EXPECT_EQ(two.run_with_cache(tokens)["blocks.1.hook_resid_post"].digest(),
            tiny().run_with_cache(tokens)["blocks.1.hook_resid_post"].digest());
}

}  // namespace
}  // namespace lenscpp
