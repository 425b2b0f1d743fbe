// Harm, judged from tensors alone: where its thresholds lie, and what is harm whatever they are.
#include "verify/device/harm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lenscpp {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr TensorId kEmbed{Site::embed}, kQ{Site::q, 0}, kZ{Site::z, 0}, kLogits{Site::unembed_out};

Array tensor(const std::vector<double>& values, const Shape& shape, DType dtype = DType::f32) {
  return Array::of(std::span<const double>(values), shape).to(dtype);
}

// Embeddings, queries, what they were mixed to, logits of one prompt of two tokens.
struct Made {
  std::vector<double> embed{1, 2, 3, 4}, q{1, -2, 0.5, 8}, z{1, 1, 1, 1}, logits{0, 0, 0, 1, 3, 2};
  DType dtype = DType::f32;

  std::vector<std::pair<TensorId, Array>> tensors() const {
    return {{kEmbed, tensor(embed, {1, 2, 2}, dtype)},
            {kQ, tensor(q, {1, 2, 1, 2}, dtype)},
            {kZ, tensor(z, {1, 2, 1, 2}, dtype)},
            {kLogits, tensor(logits, {1, 2, 3}, dtype)}};
  }
  Recording recording() const {
    Recording recording;
    for (const auto& [id, value] : tensors()) recording.take(id, value);
    return recording;
  }
};

// Honest runs differ by 2^-10 at one query and by 2^-10 in all logits together.
HarmJudge judge_of(const Made& clean = {}) {
  HarmJudge judge(clean.recording());
  Made other = clean;
  other.q[3] += 0x1p-10;
  for (double& x : other.logits) x += 0x1p-10;
  judge.add_honest(other.tensors());
  return judge;
}

Judgement judged(const Made& faulted, const Made& clean = {}) {
  return judge_of(clean).judge(faulted.recording());
}

TEST(HarmJudge, EqualBitsAreHarmless) {
  Judgement j = judged({});
  EXPECT_EQ(j.harm, Harm::harmless);
  EXPECT_EQ(j.first, std::nullopt);
  EXPECT_EQ(j.times, 0);
}

TEST(HarmJudge, FourTimesTheHonestDifferenceIsTheLimit) {
  for (double sign : {1., -1.}) {
    Made at_limit, beyond;
    at_limit.q[1] += sign * 4 * 0x1p-10;
    beyond.q[1] += sign * 4.25 * 0x1p-10;
    EXPECT_EQ(judged(at_limit).harm, Harm::between);
    EXPECT_EQ(judged(at_limit).times, 4);
    Judgement j = judged(beyond);
    EXPECT_EQ(j.harm, Harm::harmful);
    EXPECT_EQ(j.times, 4.25);
    EXPECT_EQ(j.worst, "blocks.0.attn.hook_q");
    EXPECT_EQ(*j.first, kQ);
    EXPECT_EQ(j.relative, 4.25 * 0x1p-10 / 8);
  }
}

TEST(HarmJudge, MoreHonestRunsMeasureFromTheLowestToTheHighest) {
  HarmJudge judge = judge_of();
  EXPECT_EQ(judge.spread(0), 0);
  EXPECT_EQ(judge.spread(1), 0x1p-10);
  Made below;
  below.q[3] -= 0x1p-10;
  judge.add_honest(below.tensors());
  EXPECT_EQ(judge.spread(1), 0x1p-9);
  Made faulted;
  faulted.q[0] += 4 * 0x1p-9;
  EXPECT_EQ(judge.judge(faulted.recording()).harm, Harm::between);
}

TEST(HarmJudge, WhatCannotDifferMayNot) {
  Made faulted;
  faulted.embed[0] = std::nextafter(1.f, 2.f);
  Judgement j = judged(faulted);
  EXPECT_EQ(j.harm, Harm::harmful);
  EXPECT_EQ(j.times, kInfinity);
  EXPECT_EQ(j.worst, "hook_embed");
}

TEST(HarmJudge, BehindTheFirstDifferenceOneRoundingIsHonest) {
  for (DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    Made clean{.logits = {0, 0, 0, 1, 30, 2}, .dtype = dtype};
    clean.q[3] = 0;  // so that the honest difference is a number of every dtype
    double unit = unit_in_last_place(1, dtype);
    Made one_unit = clean, four = clean, five = clean;
    one_unit.z[2] += unit, four.z[2] += 4 * unit, five.z[2] += 5 * unit;
    EXPECT_EQ(judged(one_unit, clean).times, 1) << name_of(dtype);
    EXPECT_EQ(judged(four, clean).harm, Harm::between) << name_of(dtype);
    EXPECT_EQ(judged(five, clean).harm, Harm::harmful) << name_of(dtype);
    EXPECT_EQ(judged(five, clean).worst, "blocks.0.attn.hook_z");
  }
}

TEST(HarmJudge, WithoutAnyHonestDifferenceNothingMayDiffer) {
  HarmJudge judge(Made{}.recording());
  Made faulted;
  faulted.z[0] += unit_in_last_place(1, DType::f32);
  EXPECT_EQ(judge.judge(faulted.recording()).harm, Harm::harmful);
}

TEST(HarmJudge, WhatIsNotFiniteInOneOfTwoIsAlwaysHarm) {
  for (double wrong : {kNan, kInfinity, -kInfinity}) {
    Made faulted;
    faulted.q[2] = wrong;
    EXPECT_EQ(judged(faulted).harm, Harm::harmful) << wrong;
    EXPECT_EQ(judged(faulted).times, kInfinity) << wrong;
    Made clean = faulted;  // a mask: infinite in both is no difference
    if (!std::isnan(wrong)) {
      EXPECT_EQ(judged(faulted, clean).harm, Harm::harmless) << wrong;
      EXPECT_EQ(judged({}, clean).harm, Harm::harmful) << "the mask shows through";
      clean.q[2] = -wrong;
      EXPECT_EQ(judged(faulted, clean).harm, Harm::harmful) << "of the other sign";
    }
  }
}

TEST(HarmJudge, TheSignOfZeroIsADifferenceOfNoSize) {
  Made clean, faulted;
  clean.z[0] = 0, faulted.z[0] = -0.0;
  Judgement j = judged(faulted, clean);
  EXPECT_EQ(j.harm, Harm::between);
  EXPECT_EQ(j.times, 0);
  EXPECT_EQ(*j.first, kZ);
}

TEST(HarmJudge, MissingTensorsAndOtherShapesAreHarm) {
  Recording shorter, reshaped, retyped;
  auto tensors = Made{}.tensors();
  for (const auto& [id, value] : tensors) {
    bool z = id == kZ;
    if (!z) shorter.take(id, value);
    reshaped.take(id, z ? value.reshaped({2, 1, 1, 2}) : value);
    retyped.take(id, z ? value.to(DType::f64) : value);
  }
  for (const Recording& run : {shorter, reshaped, retyped}) {
    Judgement j = judge_of().judge(run);
    EXPECT_EQ(j.harm, Harm::harmful);
    EXPECT_EQ(*j.first, kZ);
    EXPECT_EQ(j.times, kInfinity);
  }
}

// Each logit is off by no more than honest ones are, but the two likeliest go apart.
TEST(HarmJudge, TheLogitDifferenceIsHeldToItsOwnHonestDifference) {
  Made together, apart;
  for (double& x : together.logits) x += 3 * 0x1p-10;
  EXPECT_EQ(judged(together).harm, Harm::between);
  apart.logits[4] += 3 * 0x1p-10;
  Judgement j = judged(apart);
  EXPECT_EQ(j.harm, Harm::harmful);
  EXPECT_EQ(j.worst, "logit difference");
  Made of_no_prompt_end;  // an earlier position, and the least likely token
  of_no_prompt_end.logits[1] += 3 * 0x1p-10;
  of_no_prompt_end.logits[3] -= 3 * 0x1p-10;
  EXPECT_EQ(judged(of_no_prompt_end).harm, Harm::between);
}

TEST(HarmJudge, RefusesHonestRunsOfOtherTensors) {
  HarmJudge judge = judge_of();
  auto tensors = Made{}.tensors();
  tensors.pop_back();
  EXPECT_THROW(judge.add_honest(tensors), std::invalid_argument);
  tensors.emplace_back(kLogits, tensor({1, 2}, {1, 1, 2}));
  EXPECT_THROW(judge.add_honest(tensors), std::invalid_argument);
}

// An honest run that overflowed would make every allowance of its tensor infinite.
TEST(HarmJudge, RefusesHonestRunsThatAreNotFiniteWhereTheCleanOneIs) {
  for (double wrong : {kNan, kInfinity}) {
    HarmJudge judge = judge_of();
    Made honest;
    honest.q[2] = wrong;
    EXPECT_THROW(judge.add_honest(honest.tensors()), std::invalid_argument) << wrong;
    EXPECT_LT(judge.spread(1), 1) << "nothing of it is kept";
    Made faulted;
    faulted.q[1] = kNan;
    EXPECT_EQ(judge.judge(faulted.recording()).harm, Harm::harmful) << wrong;
  }
  Made masked;
  masked.q[2] = -kInfinity;
  EXPECT_NO_THROW(judge_of(masked).add_honest(masked.tensors()));
}

TEST(HarmJudge, TellsTheWidestSpreadOverItsTensor) {
  auto [spread, where] = judge_of().relative_spread();
  EXPECT_EQ(spread, 0x1p-10 / 3) << "of the logits; of the queries it is 2^-10 / 8";
  EXPECT_EQ(where, to_string(kLogits));
  EXPECT_EQ(HarmJudge(Made{}.recording()).relative_spread().first, 0);
}

TEST(LargestDifference, IsOfTheWorstElement) {
  Array a = tensor({1, 2, 3, -kInfinity}, {4}), b = tensor({1, 2.5, 2.75, -kInfinity}, {4});
  EXPECT_EQ(largest_difference(a, b), 0.5);
  EXPECT_EQ(largest_difference(a, a), 0);
  EXPECT_EQ(largest_difference(tensor({kNan}, {1}), tensor({kNan}, {1})), 0);
  EXPECT_EQ(largest_difference(tensor({kNan}, {1}), tensor({1}, {1})), kInfinity);
  EXPECT_EQ(largest_difference(a, a.reshaped({2, 2})), kInfinity);
}

TEST(UnitInLastPlace, IsTheDistanceToTheNextNumber) {
  EXPECT_EQ(unit_in_last_place(1, DType::f32), 0x1p-23);
  EXPECT_EQ(unit_in_last_place(-1.99, DType::f32), 0x1p-23);
  EXPECT_EQ(unit_in_last_place(2, DType::f64), 0x1p-51);
  EXPECT_EQ(unit_in_last_place(1, DType::bf16), 0x1p-7);
  EXPECT_EQ(unit_in_last_place(1, DType::f16), 0x1p-10);
  EXPECT_EQ(unit_in_last_place(0, DType::f16), 0x1p-24);
  EXPECT_EQ(unit_in_last_place(kInfinity, DType::f32), 0);
}

}  // namespace
}  // namespace lenscpp
