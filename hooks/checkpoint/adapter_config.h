// What peft's adapter_config.json says of a LoRA, as far as merging it needs it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lenscpp {

/// Which biases an adapter was trained with: peft's `bias`.
enum class AdapterBias { none, all, lora_only };

/// Names of modules: the ones listed and all that end with one of them behind a dot, or (peft's
/// spelling as one string) those that a regular expression matches whole.
struct ModuleNames {
  std::vector<std::string> listed = {};
  std::optional<std::string> pattern = {};
  bool empty() const { return listed.empty() && !pattern; }
};

/// LoraConfig of peft. Patterns stand in the order of the file: the first that matches counts.
struct AdapterConfig {
  std::int64_t rank;
  double alpha;
  std::vector<std::pair<std::string, double>> rank_pattern = {}, alpha_pattern = {};
  bool rank_stabilized = false;  // alpha / sqrt(rank), arXiv 2312.03732; else alpha / rank
  bool dora = false;             // arXiv 2402.09353
  bool fan_in_fan_out = false;
  AdapterBias bias = AdapterBias::none;
  ModuleNames targets, excluded = {};
  std::vector<std::string> saved = {};            // modules whose weights are replaced
  std::vector<std::int64_t> layers = {};          // empty: all
  std::vector<std::string> layers_patterns = {};  // what stands before a layer's number; empty: any

  /// Whether peft puts a LoRA on a module of this name: its check_target_module_exists.
  bool targets_module(const std::string& name) const;
  /// Whether `name` is a module of `saved`, or inside one.
  bool saves(const std::string& name) const;
  /// Rank and alpha of a module: its get_pattern_key.
  double rank_of(const std::string& name) const;
  double alpha_of(const std::string& name) const;
};

/// Reads adapter_config.json; `origin` is named in errors. Throws std::invalid_argument for another
/// peft_type, every field that changes numbers and is not understood, an initialisation that
/// changes the model's own weights, and regular expressions beyond what Python and C++ read alike.
AdapterConfig parse_adapter_config(std::string_view text, const std::string& origin);

}  // namespace lenscpp
