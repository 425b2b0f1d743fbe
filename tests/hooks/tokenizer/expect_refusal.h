// What every refusal of this folder has in common.
#pragma once

#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace lenscpp::testing {

/// Expects std::invalid_argument whose message has every one of `parts`.
template <class Action>
void expect_refusal(const Action& action, const std::vector<std::string>& parts) {
  try {
    action();
    ADD_FAILURE() << "nothing was refused; expected: " << ::testing::PrintToString(parts);
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    EXPECT_TRUE(message.starts_with("[tokenizer] ")) << message;
    for (const std::string& part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << part << "\n  is not in\n" << message;
  }
}

}  // namespace lenscpp::testing
