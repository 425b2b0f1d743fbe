// Fallbacks are noticed in each of the two ways by itself, and nothing is left behind.
#include "hooks/transformer/fallbacks.h"

#include <ATen/Functions.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <thread>

namespace lenscpp {
namespace {

using Names = std::vector<std::string>;

constexpr const char* kMps =
    "The operator 'aten::gelu.out' is not currently supported on the MPS backend and will fall "
    "back to run on the CPU. This may have performance implications.";
constexpr const char* kView =
    "The operator aten::unfold appears to be a view operator, but it has no implementation for the "
    "backend \"privateuseone:0\". View operators don't support falling back to run on the CPU, "
    "since the tensor's storage cannot be shared across devices.";

// What an operator without a kernel does on a device: it copies its operands to the CPU.
void operator_that_falls_back(const char* name) {
  RECORD_FUNCTION(name, c10::ArrayRef<const c10::IValue>{});
  at::Tensor x = at::ones({2});
  at::_to_cpu({x});
}

class Heard : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }
  Names messages;
};

TEST(FallbackIn, NamesTheOperatorWithoutItsOverload) {
  EXPECT_EQ(fallback_in(kMps), "aten::gelu");
  EXPECT_EQ(fallback_in(kView), "aten::unfold (a copy instead of a view)");
  EXPECT_EQ(fallback_in("something will fall back to run on the CPU"),
            "an operator that the warning does not name");
}

TEST(FallbackIn, LeavesOtherWarningsAlone) {
  EXPECT_EQ(fallback_in("The operator 'aten::gelu' is slow"), std::nullopt);
  EXPECT_EQ(fallback_in("x appears to be a view operator"), std::nullopt);
  EXPECT_EQ(fallback_in(""), std::nullopt);
}

TEST(FallbackWatch, SeesACopyToTheCpuInsideOfAnOperator) {
  FallbackWatch watch;
  operator_that_falls_back("aten::gelu");
  operator_that_falls_back("aten::erf");
  operator_that_falls_back("aten::gelu");
  EXPECT_EQ(watch.operators(), (Names{"aten::gelu", "aten::erf"}));
}

TEST(FallbackWatch, SeesPyTorchsWarningEveryTime) {
  for (int run = 0; run < 2; ++run) {
    FallbackWatch watch;
    TORCH_WARN_ONCE(kMps);
    TORCH_WARN(kView);
    EXPECT_EQ(watch.operators(), (Names{"aten::gelu", "aten::unfold (a copy instead of a view)"}));
  }
}

TEST(FallbackWatch, CountsOneOperatorOnceWhicheverWayItWasSeen) {
  FallbackWatch watch;
  operator_that_falls_back("aten::gelu");
  TORCH_WARN(kMps);
  EXPECT_EQ(watch.operators(), Names{"aten::gelu"});
}

TEST(FallbackWatch, OrdinaryWorkIsNone) {
  FallbackWatch watch;
  at::Tensor x = at::ones({4, 4});
  at::addmm(x, x, x).to(at::kDouble).to(at::kCPU).contiguous();
  at::_to_cpu({x});  // of the caller's own, inside of nothing
  EXPECT_EQ(watch.operators(), Names{});
}

TEST(FallbackWatch, HandsOtherWarningsOnAndLeavesEverythingAsItWas) {
  Heard heard;
  c10::WarningHandler* first = c10::WarningUtils::get_warning_handler();
  c10::WarningUtils::set_warning_handler(&heard);
  bool always = c10::WarningUtils::get_warnAlways();
  {
    FallbackWatch watch;
    EXPECT_TRUE(c10::WarningUtils::get_warnAlways());
    for (int i = 0; i < 3; ++i) TORCH_WARN("another thing");
    TORCH_WARN(kMps);
    EXPECT_EQ(watch.operators(), Names{"aten::gelu"});
  }
  EXPECT_EQ(heard.messages, Names{"another thing"});
  EXPECT_EQ(c10::WarningUtils::get_warning_handler(), &heard);
  EXPECT_EQ(c10::WarningUtils::get_warnAlways(), always);
  TORCH_WARN(kMps);
  EXPECT_EQ(heard.messages.size(), 2u);
  c10::WarningUtils::set_warning_handler(first);
}

TEST(FallbackWatch, WatchesItsOwnThreadAndMayBeNested) {
  FallbackWatch outer;
  {
    FallbackWatch inner;
    operator_that_falls_back("aten::erf");
    EXPECT_EQ(inner.operators(), Names{"aten::erf"});
  }
  operator_that_falls_back("aten::tanh");
  std::thread([] {
    FallbackWatch other;
    operator_that_falls_back("aten::gelu");
    EXPECT_EQ(other.operators(), Names{"aten::gelu"});
  }).join();
  EXPECT_EQ(outer.operators(), Names{"aten::tanh"});
  EXPECT_TRUE(c10::WarningUtils::get_warnAlways());
}

}  // namespace
}  // namespace lenscpp
