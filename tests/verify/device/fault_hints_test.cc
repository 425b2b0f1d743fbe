// What the verdict says of each fault of the table: its hint is the right sort, to the letter.
#include <gtest/gtest.h>

#include <cmath>

#include "verify/device/faults.h"
#include "verify/reference/exact.h"

namespace lenscpp {
namespace {

Config small() {
  return {.family = "gpt2",
          .n_layers = 2,
          .n_heads = 4,
          .n_kv_heads = 4,
          .d_model = 8,
          .d_head = 8,
          .d_mlp = 5,
          .d_vocab = 11,
          .n_ctx = 8,
          .norm_eps = 1e-5,
          .norm = NormKind::layer_norm,
          .activation = Activation::relu,
          .positions = PositionKind::learned,
          .topology = Topology::sequential,
          .scale_attn_by_inverse_layer = false,
          .tied_unembedding = true,
          .stored_dtype = DType::f32};
}

Array random(const Shape& shape, DType dtype, std::uint64_t seed) {
  std::mt19937_64 generator(seed);
  MutableArray x(shape, dtype);
  for (std::int64_t i = 0; i < x.numel(); ++i)
    x.set(i, static_cast<double>(generator() >> 11) * 0x1p-52 - 1);
  return std::move(x).freeze();
}

// A sum of two tensors at `z` [batch, pos, head, d_head], or scores [batch, head, query, key].
struct Case {
  Link link;
  std::vector<Array> inputs;
  Shape output;
};
Case sum(DType dtype) {
  Shape shape{2, 6, 4, 8};
  return {.link = {.op = Op::add, .output = {Site::z}, .inputs = {{Site::q}, {Site::k}}},
          .inputs = {random(shape, dtype, 1), random(shape, dtype, 2)},
          .output = shape};
}
Case scores(DType dtype) {
  Shape shape{2, 6, 4, 8};
  return {.link = {.op = Op::scores,
                   .output = {Site::attn_scores},
                   .inputs = {{Site::q}, {Site::k}},
                   .scalar = 2},
          .inputs = {random(shape, dtype, 1), random(shape, dtype, 2)},
          .output = {2, 4, 6, 6}};
}

std::string hint_of(const Case& c, const FaultSpec& spec, DType dtype) {
  Array clean = compute(c.link, c.inputs, c.output, serial_for).to(dtype);
  Contract contract = contract_of(c.link.output.site, dtype);
  EXPECT_TRUE(check_exact(c.link, c.inputs, clean, contract, serial_for).passed());
  Array faulted = FaultInjector({spec}, small())(c.link.output, clean);
  Point point = check_exact(c.link, c.inputs, faulted, contract, serial_for);
  EXPECT_FALSE(point.passed()) << spec.name;
  return point.hint;
}

struct Expected {
  FaultSpec spec;
  const char* hint;
};

class FaultHints : public testing::TestWithParam<DType> {};
INSTANTIATE_TEST_SUITE_P(All, FaultHints,
                         testing::Values(DType::f32, DType::f64, DType::bf16, DType::f16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

TEST_P(FaultHints, SayWhatHappened) {
  double element = 1 * 192 + 3 * 32 + 2 * 8 + 5;
  for (const Expected& e : {
           Expected{{.name = "one_element", .parameters = {{"index", element}}},
                    "one element: batch 1, pos 3, head 2, d_head 5"},
           {{.name = "sign", .parameters = {{"index", element}}},
            "one element: batch 1, pos 3, head 2, d_head 5"},
           {{.name = "nan", .parameters = {{"index", element}}},
            "one element, not finite: batch 1, pos 3, head 2, d_head 5"},
           {{.name = "inf", .parameters = {{"index", element}}},
            "one element, not finite: batch 1, pos 3, head 2, d_head 5"},
           {{.name = "row", .parameters = {{"batch", 1}, {"pos", 3}}}, "zeros: batch 1, pos 3"},
           {{.name = "row", .parameters = {{"batch", 1}, {"pos", 3}, {"garbage", 1}}},
            "unrelated values: batch 1, pos 3"},
           {{.name = "head", .parameters = {{"head", 2}}}, "zeros: head 2"},
           {{.name = "head", .parameters = {{"head", 2}, {"garbage", 1}}},
            "unrelated values: head 2"},
           {{.name = "head", .parameters = {{"head", 2}, {"delta", 0.3}}}, "head 2"},
           {{.name = "swap_heads", .parameters = {{"a", 2}, {"b", 1}}}, "heads 1 and 2 swapped"},
           {{.name = "tile", .parameters = {{"row", 24 + 4 * 2}, {"column", 3}, {"width", 3}}},
            "zeros: batch 1, pos 2, d_head 3 to 5"},
           {{.name = "zero_from", .parameters = {{"pos", 2}}}, "zeros: pos from 2 on"},
           {{.name = "shift_rows"}, "rows shifted by 1"},
           {{.name = "shift_rows", .parameters = {{"by", -2}}}, "rows shifted by -2"},
           {{.name = "stale"}, "rows shifted by 1"},
       })
    EXPECT_EQ(hint_of(sum(GetParam()), e.spec, GetParam()), e.hint) << e.spec.name;
}

TEST_P(FaultHints, StaleValuesAreUnrelatedOnes) {
  Case c = sum(GetParam());
  Array clean = compute(c.link, c.inputs, c.output, serial_for).to(GetParam());
  FaultInjector injector({{.name = "stale", .layer = 1}}, small());
  injector({Site::z, 0}, random(c.output, GetParam(), 5));
  Array faulted = injector({Site::z, 1}, clean);
  Point point =
      check_exact(c.link, c.inputs, faulted, contract_of(Site::z, GetParam()), serial_for);
  EXPECT_EQ(point.hint, "unrelated values");
}

TEST_P(FaultHints, ScalesAreNamedByTheirFactor) {
  std::string hint =
      hint_of(sum(GetParam()), {.name = "scale", .parameters = {{"factor", 1.25}}}, GetParam());
  double factor = 0;
  ASSERT_EQ(std::sscanf(hint.c_str(), "scaled by %lf", &factor), 1) << hint;
  EXPECT_NEAR(factor, 1.25, 2e-3);
  if (GetParam() == DType::f32 || GetParam() == DType::f64) {
    EXPECT_EQ(hint_of(sum(GetParam()), {.name = "scale"}, GetParam()), "scaled by 1.01");
  }
}

TEST(FaultHintsOfPrecision, NameTheBits) {
  for (DType dtype : {DType::f32, DType::f64}) {
    EXPECT_EQ(hint_of(sum(dtype), {.name = "round_bits", .parameters = {{"bits", 11}}}, dtype),
              "precision about tf32 or float16 (11 bits)");
    EXPECT_EQ(hint_of(sum(dtype), {.name = "round_bits", .parameters = {{"bits", 8}}}, dtype),
              "precision about bfloat16 (8 bits)");
    EXPECT_EQ(hint_of(sum(dtype), {.name = "round_bits", .parameters = {{"bits", 18}}}, dtype),
              "a precision below the declared one");
  }
  EXPECT_EQ(
      hint_of(sum(DType::bf16), {.name = "round_bits", .parameters = {{"bits", 6}}}, DType::bf16),
      "precision below bfloat16");
  EXPECT_EQ(
      hint_of(sum(DType::f16), {.name = "round_bits", .parameters = {{"bits", 8}}}, DType::f16)
          .substr(0, 33),
      "precision about bfloat16 (8 bits)");
}

TEST_P(FaultHints, MasksSayWhichWayTheyAreOff) {
  for (const Expected& e : {
           Expected{{.name = "mask_off_by_one"},
                    "mask: keys of the future are visible: query 0 to 4, key from 1 on"},
           {{.name = "mask_off_by_one", .parameters = {{"by", -1}}},
            "mask: keys are hidden: query from 1 on, key from 1 on"},
           {{.name = "mask_group"},
            "mask: keys of the future are visible: query (4 of 6), key (4 of 6)"},
           {{.name = "row", .parameters = {{"batch", 1}, {"pos", 3}}}, "zeros: batch 1, query 3"},
           {{.name = "nan", .parameters = {{"index", 1}}},
            "one element, not finite: batch 0, head 0, query 0, key 1"},
           {{.name = "inf", .parameters = {{"index", 1}}},
            "one element, not finite: batch 0, head 0, query 0, key 1"},
           {{.name = "swap_heads", .parameters = {{"a", 2}, {"b", 1}}}, "heads 1 and 2 swapped"},
       })
    EXPECT_EQ(hint_of(scores(GetParam()), e.spec, GetParam()), e.hint) << e.spec.name;
}

}  // namespace
}  // namespace lenscpp
