// A run whose products round their operands: refused as float32, verified as declared.
#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <gtest/gtest.h>

#include "hooks/transformer/torch_array.h"
#include "lens/hooked_transformer.h"

namespace lenscpp {
namespace {

std::filesystem::path tiny_ioi() {
  return std::filesystem::path(LENSCPP_SOURCE_DIR) / "python/lenscpp/models/tiny-ioi";
}
constexpr const char* kPrompt = "When John and Mary went to the store, John gave the bag to";

HookedTransformer model(MatmulPrecision precision) {
  return HookedTransformer::from_pretrained(tiny_ioi(), {.matmul_precision = precision});
}

// To `bits` significant bits, to nearest (Veltkamp).
at::Tensor rounded(const at::Tensor& x, int bits) {
  at::Tensor wide = x.to(at::kDouble), scaled = wide * (std::ldexp(1.0, 53 - bits) + 1);
  return (scaled - (scaled - wide)).to(x.scalar_type());
}

// The product before a layer's activation, as a device that rounds operands makes it.
Interference rounding_operands(const HookedTransformer& model, int bits) {
  auto input = std::make_shared<at::Tensor>();
  return [&model, bits, input](const TensorId& id, const at::Tensor& x) {
    if (id.site == Site::ln2_normalized || id.site == Site::ln2_out) *input = x;
    if (id.site != Site::mlp_pre) return x;
    const LayerWeights& w = model.weights().layers[static_cast<std::size_t>(id.layer)];
    at::Tensor rows = input->reshape({-1, model.config().d_model});
    return at::addmm(alias(w.b_in), rounded(rows, bits), rounded(alias(w.W_in), bits))
        .view(x.sizes());
  };
}

Verdict verdict_of(const HookedTransformer& model, const Interference& interference) {
  try {
    return model.run_with_cache(model.to_tokens(kPrompt), {.interference = interference}).verdict();
  } catch (const VerificationFailed& e) {
    return e.verdict();
  }
}

TEST(MatmulPrecision, Tf32ThatNobodyDeclaredIsRefusedWithTheLineThatTurnsItOff) {
  HookedTransformer ieee = model(MatmulPrecision::ieee);
  Verdict verdict = verdict_of(ieee, rounding_operands(ieee, 11));
  ASSERT_EQ(verdict.status, Status::invalid);
  EXPECT_EQ(verdict.first_failure()->name, "blocks.0.mlp.hook_pre");
  EXPECT_EQ(verdict.first_failure()->hint.substr(0, kTf32Hint.size()), kTf32Hint);
  EXPECT_NE(verdict.summary().find("torch.backends.cuda.matmul.allow_tf32 = False"),
            std::string::npos)
      << verdict.summary();
}

TEST(MatmulPrecision, TheSameRunPassesUnderItsWiderBoundWhereItIsDeclared) {
  HookedTransformer tf32 = model(MatmulPrecision::tf32);
  Tokens tokens = tf32.to_tokens(kPrompt);
  VerifiedCache cache = tf32.run_with_cache(tokens, {.interference = rounding_operands(tf32, 11)});
  EXPECT_EQ(cache.record().matmul_precision, MatmulPrecision::tf32);
  EXPECT_EQ(cache.verdict().status, Status::verified);
  std::map<std::string, Array> recorded;
  for (const auto& entry : cache.activations().entries()) recorded[entry.name] = entry.value;
  EXPECT_EQ(tf32.verify_recorded(tokens, recorded).verdict().status, Status::verified);
  EXPECT_THROW(model(MatmulPrecision::ieee).verify_recorded(tokens, recorded), VerificationFailed);
}

TEST(MatmulPrecision, ADeclarationLetsNothingElseThrough) {
  HookedTransformer tf32 = model(MatmulPrecision::tf32);
  Verdict coarse = verdict_of(tf32, rounding_operands(tf32, 8));
  ASSERT_EQ(coarse.status, Status::invalid);
  EXPECT_EQ(coarse.first_failure()->name, "blocks.0.mlp.hook_pre");
  for (Site site : {Site::pattern, Site::resid_mid, Site::mlp_post, Site::ln_final_normalized}) {
    Verdict rounded_result = verdict_of(tf32, [&](const TensorId& id, const at::Tensor& x) {
      return id.site == site && id.layer == 0 ? rounded(x, 11) : x;
    });
    ASSERT_EQ(rounded_result.status, Status::invalid) << info(site).name;
    EXPECT_EQ(rounded_result.first_failure()->id.site, site);
  }
}

TEST(MatmulPrecision, IsOfFloat32Alone) {
  EXPECT_THROW(HookedTransformer::from_pretrained(
                   tiny_ioi(), {.dtype = DType::bf16, .matmul_precision = MatmulPrecision::tf32}),
               std::invalid_argument);
}

}  // namespace
}  // namespace lenscpp
