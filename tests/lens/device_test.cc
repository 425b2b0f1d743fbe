// Devices by name, and the one warning.
#include "lens/device.h"

#include <gtest/gtest.h>

#include <cstdlib>

#include "verify/verified_cache.h"

namespace lenscpp {
namespace {

TEST(Device, IsFoundByName) {
  EXPECT_EQ(named_device("cpu"), c10::Device(c10::DeviceType::CPU));
  EXPECT_EQ(named_device("cuda:1"), c10::Device(c10::DeviceType::CUDA, 1));
  EXPECT_THROW(named_device("nonsense"), DeviceError);
  EXPECT_THROW(named_device("meta"), DeviceError);
}

TEST(Device, SimulatedIsThatNameAlone) {
  EXPECT_TRUE(is_simulated("simulated"));
  EXPECT_TRUE(is_simulated("simulated:0"));
  EXPECT_FALSE(is_simulated("simulated2"));
  EXPECT_FALSE(is_simulated("cpu"));
}

TEST(Device, ApplesIsWarnedOfOnceUnlessSilenced) {
  setenv("LENSCPP_ALLOW_MPS", "1", 1);
  EXPECT_EQ(device_warning_once("mps"), std::nullopt);
  setenv("LENSCPP_ALLOW_MPS", "0", 1);
  EXPECT_EQ(device_warning_once("cuda"), std::nullopt);
  auto said = device_warning_once("mps:0");
  ASSERT_TRUE(said);
  EXPECT_NE(said->find("LENSCPP_ALLOW_MPS=1 silences this warning, never the verification"),
            std::string::npos);
  EXPECT_EQ(device_warning_once("mps"), std::nullopt);
  unsetenv("LENSCPP_ALLOW_MPS");
}

}  // namespace
}  // namespace lenscpp
