// Honest runs of every family are verified, in every dtype, raw and processed, exactly and by
// checksums: device pass and reference agree on all checkpoints of tests/golden.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <random>

#include "hooks/checkpoint/families/family.h"
#include "lens/hooked_transformer.h"
#include "tests/golden_cases.h"
#include "tests/widened.h"

namespace lenscpp {
namespace {

std::vector<std::filesystem::path> checkpoints_of(const std::string& family) {
  std::vector<std::filesystem::path> all, own;
  for (const std::string& name : golden::case_names()) all.push_back(golden::folder(name));
  for (const std::string& name : golden::family_names()) all.push_back(golden::family_folder(name));
  for (const std::string& name : golden::encoder_names())
    all.push_back(golden::encoder_folder(name));
  for (const auto& folder : all)
    if (read_config(folder).family == family) own.push_back(folder);
  return own;
}

struct Model {
  std::string name;
  HookedTransformer run;
};

// Of each checkpoint, and of a wider model like it, the raw and the processed weights.
std::vector<Model> models_of(const std::string& family, DType dtype, std::mt19937_64& random) {
  std::vector<Model> models;
  for (const auto& folder : checkpoints_of(family)) {
    Weights wide = golden::widened(read_config(folder), random);
    for (const Processing& steps : {Processing::none(), Processing{}}) {
      LoadOptions options{.processing = steps, .dtype = dtype};
      models.push_back({folder.filename(), HookedTransformer::from_pretrained(folder, options)});
      Weights processed = steps.any() ? process(wide, steps) : wide;
      auto weights = std::make_shared<const Weights>(cast(processed, dtype));
      models.push_back({"the widened " + folder.filename().string(),
                        HookedTransformer(weights, std::nullopt, options)});
    }
  }
  return models;
}

Tokens random_tokens(const Config& config, std::mt19937_64& random) {
  auto below = [&random](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  std::int64_t batch = 1 + below(4), pos = 1 + below(std::min<std::int64_t>(config.n_ctx, 40));
  Tokens tokens{.batch = batch, .pos = pos};
  for (std::int64_t i = 0; i < batch * pos; ++i) {
    tokens.ids.push_back(below(config.d_vocab));
    if (config.n_token_types > 0) tokens.types.push_back(below(config.n_token_types));
  }
  for (std::int64_t b = 0; b < batch && batch % 2 == 0; ++b) {  // every other run is padded
    std::int64_t begin = below(pos);
    tokens.spans.push_back({begin, begin + 1 + below(pos - begin)});
  }
  return tokens;
}

bool is_projected(const Point& p) {
  std::int64_t rows = p.shape.size() == 2 ? p.shape[0] : p.shape[0] * p.shape[1];  // heads: prompts
  return p.op == Op::linear && numel(p.shape) / rows > golden::kFewOutputs;
}

class FamilyRuns : public testing::TestWithParam<std::tuple<std::string, DType>> {};

// `LENSCPP_FAMILY_RUNS=200` is the full size; the default is each model once, the wide ones by
// checksums.
TEST_P(FamilyRuns, AreNotRefusedWhenClean) {
  auto [family, dtype] = GetParam();
  int threads_before = at::get_num_threads();
  at::set_num_threads(1);
  std::mt19937_64 random(20241121);
  std::vector<Model> models = models_of(family, dtype, random);
  ASSERT_FALSE(models.empty()) << "no checkpoint of " << family << " in tests/golden";
  const char* asked = std::getenv("LENSCPP_FAMILY_RUNS");
  std::size_t runs =
      std::max<std::size_t>(models.size(), asked != nullptr ? std::strtoul(asked, {}, 10) : 0);
  std::int64_t compared = 0, projected = 0, products = 0, doubts = 0;
  double worst = 0, rms = 0, residual = 0;
  for (std::size_t i = 0; i < runs; ++i) {
    const auto& [name, model] = models[i % models.size()];
    VerifyMode mode = (i + i / models.size()) % 2 == 0 ? VerifyMode::exact : VerifyMode::checksum;
    Tokens tokens = random_tokens(model.config(), random);
    std::string which = "run " + std::to_string(i) + " of " + name + ", " +
                        std::string(name_of(mode)) + ", [" + std::to_string(tokens.batch) + ", " +
                        std::to_string(tokens.pos) + "]";
    try {
      Verdict verdict =
          model.run_with_cache(tokens, {.verify = mode, .names = std::vector<std::string>{}})
              .verdict();
      compared += verdict.n_compared();
      projected += verdict.n_projected();
      for (const Point& p : verdict.points) {
        worst = std::max(worst, p.worst_ratio);
        rms = std::max(rms, p.rms_ratio);
        residual = std::max(residual, p.residual);
        // What projections doubt is compared exactly, and has no residual. Queries that see the
        // same few tokens beside padding are equal, and so are their errors: of many rows as one
        // the test of their sum doubts some.
        bool tested = mode == VerifyMode::checksum && is_projected(p),
             doubted = tested && p.projected == 0 && !tokens.spans.empty();
        products += tested;
        doubts += doubted;
        EXPECT_EQ(p.residual > 0, tested && !doubted) << which << " at " << to_string(p);
      }
    } catch (const VerificationFailed& e) {
      ADD_FAILURE() << which << ": " << e.what();
    }
  }
  EXPECT_LE(50 * (doubts - 2), products)
      << "projections that doubt more than now and then save nothing";
  at::set_num_threads(threads_before);
  std::cout << family << " " << name_of(dtype) << ": " << runs << " runs, " << compared
            << " elements compared and " << projected << " by checksums, worst error / bound "
            << worst << ", worst rms / limit " << rms / kRmsLimit << ", worst residual / limit "
            << residual << "\n";
}

std::vector<std::string> family_types() {
  std::vector<std::string> types;
  for (const Family& family : families()) types.emplace_back(family.model_type);
  return types;
}

INSTANTIATE_TEST_SUITE_P(All, FamilyRuns,
                         testing::Combine(testing::ValuesIn(family_types()),
                                          testing::Values(DType::f32, DType::f64, DType::bf16,
                                                          DType::f16)),
                         [](const auto& info) {
                           return std::get<0>(info.param) + "_" +
                                  std::string(name_of(std::get<1>(info.param)));
                         });

}  // namespace
}  // namespace lenscpp
