// LoraConfig of peft 0.21 (tuners/lora/config.py) and its rules for names (tuners_utils.py,
// utils/other.py).
#include "hooks/checkpoint/adapter_config.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <nlohmann/json.hpp>
#include <regex>
#include <stdexcept>

#include "hooks/checkpoint/fields.h"
#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"

namespace lenscpp {
namespace {

using nlohmann::json;

constexpr std::int64_t kLargestRank = 1 << 20;
constexpr std::size_t kLongestPattern = 1000;
constexpr int kMostGroups = 50;

// Only what means the same in Python's re and in ECMAScript, so that no name is matched otherwise.
void require_common(const std::string& pattern, const Fields& fields, const char* field) {
  auto refuse = [&](const std::string& what) {
    fields.refuse(field, "holds the regular expression " + in_quotes(pattern) + " with " + what +
                             "; allowed: letters, . [...] ( ) (?: ) | * + ? {m,n} ^ $ \\d \\w "
                             "\\. and such; or list the modules by name");
  };
  if (pattern.size() > kLongestPattern) refuse(std::to_string(pattern.size()) + " characters");
  if (std::ranges::count(pattern, '(') > kMostGroups) refuse("too many groups");
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    std::string_view rest = std::string_view(pattern).substr(i);
    if (rest[0] == '\\') {
      char next = rest.size() > 1 ? rest[1] : 'Z';
      if (std::isalnum(static_cast<unsigned char>(next)) && next != 'd' && next != 'w')
        refuse("\\" + std::string(1, next));
      ++i;
    } else if (rest.starts_with("(?") && !rest.starts_with("(?:")) {
      refuse(std::string(rest.substr(0, 3)));
    } else if (rest.starts_with("[[") || rest.starts_with("[]") || rest.starts_with("[^]")) {
      refuse("a bracket inside [...]");
    }
  }
  try {
    std::regex(pattern, std::regex::ECMAScript);
  } catch (const std::regex_error& e) {
    refuse(std::string("an error: ") + e.what());
  }
}

bool matches(const std::string& name, const std::string& pattern) {
  return std::regex_match(name, std::regex(pattern, std::regex::ECMAScript));
}

bool names_module(const ModuleNames& names, const std::string& module) {
  if (names.pattern) return matches(module, *names.pattern);
  return std::ranges::any_of(names.listed, [&](const std::string& listed) {
    return module == listed || module.ends_with("." + listed);
  });
}

// A list of texts, or one text.
std::vector<std::string> one_or_more(Fields& fields, const json& document, const char* name) {
  auto found = document.find(name);
  if (found != document.end() && found->is_string()) return {fields.text({name}).value()};
  return fields.texts({name});
}

ModuleNames read_names(Fields& fields, const json& document, const char* name) {
  auto found = document.find(name);
  if (found == document.end() || !found->is_string()) return {.listed = fields.texts({name})};
  std::string pattern = fields.text({name}).value();
  if (pattern == "all-linear")
    fields.refuse(name,
                  "is \"all-linear\", which peft replaces by names when it trains; allowed: "
                  "names of modules, or a regular expression");
  require_common(pattern, fields, name);
  return {.listed = {}, .pattern = pattern};
}

AdapterBias read_bias(Fields& fields) {
  std::string found = fields.text({"bias"}).value_or("none");
  if (found == "none") return AdapterBias::none;
  if (found == "all") return AdapterBias::all;
  if (found == "lora_only") return AdapterBias::lora_only;
  fields.refuse("bias", "is " + in_quotes(found) + "; allowed: none, all, lora_only");
}

double positive_number(Fields& fields, const char* name, const json& value) {
  double number = value.is_number() ? value.get<double>() : NAN;
  if (!(number > 0) || !std::isfinite(number))
    fields.refuse(name, "holds " + show(value) + ", numbers above 0 are allowed");
  return number;
}

// peft walks a pattern's entries in the order of the file, which a sorted map would lose.
std::vector<std::pair<std::string, double>> read_pattern(Fields& fields, std::string_view text,
                                                         const char* name) {
  std::vector<std::pair<std::string, double>> pattern;
  if (fields.object({name}) == nullptr) return pattern;
  auto ordered = nlohmann::ordered_json::parse(text);
  for (const auto& [key, value] : ordered.at(name).items()) {
    require_common(key, fields, name);
    pattern.emplace_back(key, positive_number(fields, name, json(value)));
  }
  return pattern;
}

std::vector<std::int64_t> read_layers(Fields& fields, const json& document) {
  const char* name = "layers_to_transform";
  fields.neutral({name});
  auto found = document.find(name);
  if (found == document.end() || found->is_null()) return {};
  std::vector<std::int64_t> layers;
  for (const json& layer : found->is_array() ? *found : json::array({*found})) {
    if (!layer.is_number_integer() || layer.get<std::int64_t>() < 0)
      fields.refuse(name, "holds " + show(layer) + ", numbers of layers from 0 are allowed");
    layers.push_back(layer.get<std::int64_t>());
  }
  return layers;
}

// pissa, olora, corda, loftq and lora_ga take a part of the model's own weights into the LoRA.
void refuse_initialisations(Fields& fields, const json& document) {
  const char* name = "init_lora_weights";
  fields.neutral({name});
  auto found = document.find(name);
  if (found == document.end() || found->is_null() || found->is_boolean()) return;
  for (const char* harmless : {"gaussian", "eva", "orthogonal"})
    if (*found == harmless) return;
  fields.refuse(name, "is " + show(*found) +
                          ", which changes the model's own weights; allowed: true, false, "
                          "\"gaussian\", \"eva\", \"orthogonal\". Save it as a plain LoRA: "
                          "save_pretrained(folder, path_initial_model_for_weight_conversion=...)");
}

void refuse_unsupported(Fields& fields, const json& document) {
  refuse_initialisations(fields, document);
  std::string task = fields.text({"task_type"}).value_or("CAUSAL_LM");
  if (task != "CAUSAL_LM" && task != "FEATURE_EXTRACTION")
    fields.refuse("task_type", "is " + in_quotes(task) +
                                   ", an adapter of another kind of model; allowed: CAUSAL_LM, "
                                   "FEATURE_EXTRACTION");
  for (const char* name :
       {"alora_invocation_tokens", "arrow_config", "corda_config", "ensure_weight_tying",
        "kasa_config", "layer_replication", "loftq_config", "lora_bias", "lora_ga_config",
        "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices",
        "use_bdlora", "use_qalora", "velora_config"})
    fields.refuse_if_set(name, "this kind of LoRA is not merged; allowed: null, or absent");
  fields.neutral({"auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
                  "peft_version", "lora_dropout", "runtime_config", "megatron_core", "eva_config",
                  "qalora_group_size", "merge_weights"});
}

// The number of the layer that a module stands in: the first number behind a name, which `patterns`
// may restrict.
std::optional<std::int64_t> layer_number(const std::string& module,
                                         const std::vector<std::string>& patterns) {
  auto search = [&](const std::string& start) -> std::optional<std::int64_t> {
    std::smatch found;
    std::regex pattern(start + "\\.(\\d{1,9})\\..*", std::regex::ECMAScript);
    if (!std::regex_match(module, found, pattern)) return {};
    return std::stoll(found[found.size() - 1].str());
  };
  if (patterns.empty()) return search(".*?\\.[^.]*");
  for (const std::string& pattern : patterns)
    if (auto layer = search("(?:|.*?\\.)(?:" + pattern + ")")) return layer;
  return {};
}

double by_pattern(const std::vector<std::pair<std::string, double>>& patterns,
                  const std::string& module, double otherwise) {
  for (const auto& [pattern, value] : patterns)
    if (matches(module, "(.*\\.)?(" + pattern + ")")) return value;
  return otherwise;
}

}  // namespace

bool AdapterConfig::saves(const std::string& name) const {
  return std::ranges::any_of(saved, [&](const std::string& module) {
    return ("." + name + ".").find("." + module + ".") != std::string::npos;
  });
}

bool AdapterConfig::targets_module(const std::string& name) const {
  if (names_module(excluded, name) || saves(name) || !names_module(targets, name)) return false;
  // peft looks at the layer only where a list, and not by its whole name, found the module.
  if (layers.empty() || targets.pattern || std::ranges::count(targets.listed, name) != 0)
    return true;
  auto layer = layer_number(name, layers_patterns);
  return layer && std::ranges::count(layers, *layer) != 0;
}

double AdapterConfig::rank_of(const std::string& name) const {
  return by_pattern(rank_pattern, name, static_cast<double>(rank));
}
double AdapterConfig::alpha_of(const std::string& name) const {
  return by_pattern(alpha_pattern, name, alpha);
}

AdapterConfig parse_adapter_config(std::string_view text, const std::string& origin) {
  json document = parse_json(text, "[adapter] " + origin);
  Fields fields(document, origin);
  std::string type = fields.text({"peft_type"}).value_or("absent");
  if (type != "LORA")
    fields.refuse("peft_type", "is " + in_quotes(type) +
                                   "; allowed: LORA (with use_dora for DoRA). Others: merge them "
                                   "with peft (merge_and_unload) and load what it saves");
  refuse_unsupported(fields, document);
  AdapterConfig config{.rank = fields.dimension({"r"}, kLargestRank),
                       .alpha = fields.number({"lora_alpha"}).value_or(8),
                       .rank_pattern = read_pattern(fields, text, "rank_pattern"),
                       .alpha_pattern = read_pattern(fields, text, "alpha_pattern"),
                       .rank_stabilized = fields.flag({"use_rslora"}, false),
                       .dora = fields.flag({"use_dora"}, false),
                       .fan_in_fan_out = fields.flag({"fan_in_fan_out"}, false),
                       .bias = read_bias(fields),
                       .targets = read_names(fields, document, "target_modules"),
                       .excluded = read_names(fields, document, "exclude_modules"),
                       .saved = fields.texts({"modules_to_save"}),
                       .layers = read_layers(fields, document),
                       .layers_patterns = one_or_more(fields, document, "layers_pattern")};
  for (const std::string& pattern : config.layers_patterns)
    require_common(pattern, fields, "layers_pattern");
  if (config.targets.empty())
    fields.refuse("target_modules", "names no module; at least one is needed");
  fields.finish();
  return config;
}

}  // namespace lenscpp
