// Limits of the simulated device as JSON: how LENSCPP_SIMULATED is read. The device itself needs
// torch: tests/verify/device/simulated.
#include "verify/device/simulated.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace lenscpp {
namespace {

TEST(SimulatedLimits, AreTheSameAfterJson) {
  SimulatedLimits limits{.float64 = false,
                         .max_buffer_bytes = 4096,
                         .missing = {"gelu", "addmm"},
                         .fallback = false,
                         .aborts_at = "bmm",
                         .hangs_at = "mm",
                         .faults = {{.name = "Z7", .parameters = {{"id", 3}}, .seed = 5}}};
  SimulatedLimits back = simulated_limits_from_json(to_json(limits));
  EXPECT_EQ(to_json(back), to_json(limits));
  EXPECT_FALSE(back.float64);
  EXPECT_EQ(back.missing, limits.missing);
  ASSERT_EQ(back.faults.size(), 1u);
  EXPECT_EQ(back.faults[0].parameters.at("id"), 3);
}

TEST(SimulatedLimits, AreAllOffUnlessGiven) {
  EXPECT_EQ(to_json(simulated_limits_from_json(nlohmann::json::object())),
            to_json(SimulatedLimits{}));
}

struct Bad {
  const char *json, *says;
};
class WrongLimits : public testing::TestWithParam<Bad> {};

TEST_P(WrongLimits, AreRefusedByName) {
  try {
    simulated_limits_from_json(nlohmann::json::parse(GetParam().json));
    FAIL() << GetParam().json;
  } catch (const std::invalid_argument& e) {
    EXPECT_NE(std::string(e.what()).find(GetParam().says), std::string::npos) << e.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, WrongLimits,
    testing::Values(Bad{"[]", "needed: an object"}, Bad{R"({"float32": true})", "\"float64\""},
                    Bad{R"({"float64": 1})", "limits.float64: needed: true or false; found: 1"},
                    Bad{R"({"max_buffer_bytes": -1})", "negative"},
                    Bad{R"({"max_buffer_bytes": 1.5})", "a whole number of bytes"},
                    Bad{R"({"missing": "gelu"})", "needed: a list"},
                    Bad{R"({"missing": [3]})", "names of operators"},
                    Bad{R"({"faults": [{"name": "S0"}]})", "no fault of a device \"S0\""},
                    Bad{R"({"faults": [{"name": "S1", "hook": "z"}]})", "has no \"hook\""},
                    Bad{R"({"faults": [{"name": "S1", "parameters": {"call": "x"}}]})",
                        "parameters.call: needed: a number"}));

}  // namespace
}  // namespace lenscpp
