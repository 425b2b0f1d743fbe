// The tables of limits and dtypes: which rows stand in which version.
#include "verify/device/limits.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace lenscpp {
namespace {

std::int64_t most(const DeviceLimits& limits, Measure measure) {
  for (const Limit& limit : limits.limits)
    if (limit.measure == measure) return limit.most;
  return -1;
}

TEST(Limits, VersionsAreComparedByNumber) {
  EXPECT_EQ(version_from("2.13.0+cpu"), (Version{2, 13}));
  EXPECT_EQ(version_from("14.6.1"), (Version{14, 6}));
  EXPECT_LT((Version{2, 9}), (Version{2, 13}));
  EXPECT_EQ(to_string(Version{2, 13}), "2.13");
  for (const char* text : {"", "2", "2.", "x.1", "2.x"})
    EXPECT_THROW(version_from(text), std::invalid_argument) << text;
}

TEST(Limits, OfMpsAreApplesInEveryVersion) {
  for (Version torch : {Version{2, 0}, Version{2, 13}, Version{3, 0}}) {
    DeviceLimits limits = limits_of("mps", torch);
    EXPECT_EQ(limits.device, "mps");
    EXPECT_EQ(most(limits, Measure::bytes), 4294967295);
    EXPECT_EQ(most(limits, Measure::elements), 2147483647);
    EXPECT_EQ(most(limits, Measure::dimension), 2147483647);
    EXPECT_EQ(most(limits, Measure::rank), 16);
  }
}

struct Known {
  Measure measure;
  Version before, first, last;
  std::optional<Version> after;
};

TEST(Limits, AKnownBugStandsInItsVersionsAndInNoOther) {
  for (const Known& known :
       {Known{Measure::columns, {2, 0}, {2, 1}, {2, 2}, Version{2, 3}},
        Known{Measure::terms, {2, 6}, {2, 7}, {2, 14}, {}},
        Known{Measure::product_batch, {2, 11}, {2, 12}, {2, 14}, Version{2, 15}},
        Known{Measure::table, {2, 11}, {2, 12}, {2, 13}, Version{2, 14}}}) {
    EXPECT_EQ(most(limits_of("mps", known.before), known.measure), -1) << name_of(known.measure);
    EXPECT_GT(most(limits_of("mps", known.first), known.measure), 0) << name_of(known.measure);
    EXPECT_GT(most(limits_of("mps", known.last), known.measure), 0) << name_of(known.measure);
    if (known.after) {
      EXPECT_EQ(most(limits_of("mps", *known.after), known.measure), -1);
    }
  }
}

TEST(Limits, EveryKnownBugNamesItsIssue) {
  auto limits = known_limits("mps").limits;
  for (const Limit& limit : limits)
    EXPECT_EQ(limit.source.empty(), limit.first == Version{}) << limit.name;
  EXPECT_EQ(std::ranges::count_if(limits, [](const Limit& l) { return !l.source.empty(); }), 4);
}

TEST(Limits, OfOtherDevicesNoneAreKnown) {
  for (const char* kind : {"cpu", "cuda"})
    EXPECT_TRUE(limits_of(kind, {2, 13}).limits.empty()) << kind;
}

TEST(Limits, DtypesAreRefusedInPyTorchsWords) {
  Version sonoma{14, 0}, ventura{13, 7};
  EXPECT_EQ(why_not("mps", sonoma, "float64").value_or(""),
            "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
            "float64. Please use float32 instead.");
  EXPECT_EQ(why_not("mps", ventura, "bfloat16").value_or(""),
            "MPS BFloat16 is only supported on MacOS 14 or newer");
  EXPECT_FALSE(why_not("mps", sonoma, "bfloat16"));
  EXPECT_FALSE(why_not("mps", {}, "bfloat16"))
      << "of an unknown version nothing is held against it";
  EXPECT_TRUE(why_not("mps", sonoma, "complex128"));
  for (const char* dtype : {"float32", "float16", "int64"})
    EXPECT_FALSE(why_not("mps", ventura, dtype)) << dtype;
  for (const char* kind : {"cpu", "cuda"}) EXPECT_FALSE(why_not(kind, {}, "float64"));
}

}  // namespace
}  // namespace lenscpp
