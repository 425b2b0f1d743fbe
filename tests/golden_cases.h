// The golden checkpoints of tests/golden/gpt2, for tests that go through them all.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "hooks/array.h"
#include "hooks/checkpoint/processing.h"
#include "hooks/checkpoint/safetensors.h"
#include "hooks/checkpoint/weights.h"
#include "hooks/rows.h"

namespace lenscpp::golden {

inline std::filesystem::path folder(const std::string& name) {
  return std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/gpt2" / name;
}

inline std::vector<std::string> folders_in(const std::filesystem::path& top) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(top))
    if (entry.is_directory()) names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}
inline std::vector<std::string> case_names() { return folders_in(folder("")); }

/// Checkpoints of tests/golden/families.
inline std::filesystem::path family_folder(const std::string& name) {
  return std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/families" / name;
}
inline std::vector<std::string> family_names() { return folders_in(family_folder("")); }

/// Checkpoints of tests/golden/encoders; the pretrained one there is no checkpoint.
inline std::filesystem::path encoder_folder(const std::string& name) {
  return std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/encoders" / name;
}
inline std::vector<std::string> encoder_names() {
  auto names = folders_in(encoder_folder(""));
  std::erase(names, "minilm");
  return names;
}

inline std::vector<std::int64_t> ids(const Array& tokens) {
  auto values = tokens.as<std::int64_t>();
  return {values.begin(), values.end()};
}

/// Largest absolute difference over the largest absolute expected value.
inline double normalized_error(const Array& found, const Array& expected) {
  double error = 0, scale = 0;
  for (std::int64_t i = 0; i < expected.numel(); ++i) {
    if (std::isinf(expected[i]) && found[i] == expected[i]) continue;
    double difference = std::abs(found[i] - expected[i]);
    if (!(difference <= error)) error = difference;
    scale = std::max(scale, std::abs(expected[i]));
  }
  return scale > 0 ? error / scale : error;
}

}  // namespace lenscpp::golden
