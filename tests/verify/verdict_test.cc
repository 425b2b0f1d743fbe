// What a verdict says of operators that fell back, and what it advises.
#include "verify/verdict.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "verify/store/run_json.h"

namespace lenscpp {
namespace {

Verdict of(Status status, std::vector<std::string> fallbacks, const std::string& advice = "") {
  Point point{.id = {Site::embed}, .op = Op::gather, .compared = 4, .shape = {4}};
  point.failed = status == Status::invalid ? 1 : 0;
  return {.status = status,
          .mode = VerifyMode::exact,
          .points = {point},
          .advice = advice,
          .fallbacks = std::move(fallbacks)};
}

TEST(Verdict, NamesOperatorsThatFellBackInSummaryTableAndJson) {
  for (Status status : {Status::verified, Status::invalid}) {
    Verdict verdict = of(status, {"aten::gelu", "aten::erf"});
    std::string words = "on the CPU instead of the device ran: aten::gelu, aten::erf";
    EXPECT_NE(verdict.summary().find(words), std::string::npos) << verdict.summary();
    EXPECT_NE(verdict.table().find(words), std::string::npos);
    EXPECT_EQ(to_json(verdict)["fallbacks"], (nlohmann::json{"aten::gelu", "aten::erf"}));
    EXPECT_EQ(of(status, {}).summary().find("on the CPU"), std::string::npos);
  }
}

TEST(Verdict, AdvisesAnotherDeviceUnlessItKnowsBetter) {
  EXPECT_NE(of(Status::invalid, {}).summary().find("see what another device or dtype gives."),
            std::string::npos);
  std::string summary = of(Status::invalid, {}, "turn it off").summary();
  EXPECT_NE(summary.find("do not use them; turn it off."), std::string::npos) << summary;
  EXPECT_EQ(summary.find("another device"), std::string::npos);
}

TEST(Verdict, KeepsBothOnDisk) {
  Verdict read =
      verdict_from_json(verdict_to_json(of(Status::invalid, {"aten::gelu"}, "turn it off")));
  EXPECT_EQ(read.fallbacks, std::vector<std::string>{"aten::gelu"});
  EXPECT_EQ(read.advice, "turn it off");
}

}  // namespace
}  // namespace lenscpp
