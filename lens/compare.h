// One prompt on several devices and in several dtypes, side by side: what a researcher would have
// published from each, and whether the run was verified.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lens/hooked_transformer.h"
#include "verify/device/faults.h"

namespace lenscpp {

/// A prompt and the two tokens between which its continuation decides.
struct ChoicePrompt {
  std::string text, answer, wrong;
};

/// Reads JSON Lines whose objects hold "clean", "answer" and "wrong", as the prompts that ship with
/// tiny-ioi do. Throws std::invalid_argument naming the line, std::system_error.
std::vector<ChoicePrompt> read_choice_prompts(const std::filesystem::path& file);

/// What to compare.
struct CompareOptions {
  std::vector<std::string> devices = {"cpu"};
  std::vector<DType> dtypes = {};  // empty: the model's own
  /// Over which accuracy is measured. Those whose answers are not one token each are left out and
  /// counted.
  std::vector<ChoicePrompt> prompts = {};
  /// Not empty: after each device, the same device with these faults.
  std::vector<FaultSpec> faults = {};
};

/// How often the answer had a larger logit than the wrong token.
struct ChoiceAccuracy {
  std::int64_t right = 0, asked = 0, left_out = 0;
  std::int64_t refused = 0;  // asked in runs that were INVALID
};

/// One device. The numbers are read from its logits whether they were verified or not: this table
/// is where one may see what the verdict refuses.
struct CompareRow {
  std::string device;
  DType dtype;
  std::string fault;                 // in words; empty for the device as it is
  std::string error;                 // why nothing could be run; all below is empty then
  double p_answer = 0, p_wrong = 0;  // at the last position, of the first prompt
  double logit_difference = 0;       // answer - wrong
  std::int64_t top = 0;              // the most likely token
  ChoiceAccuracy accuracy = {};
  Verdict verdict = {};
};

/// Runs `prompt` (the last position counts) and the prompts of `options` on every device in every
/// dtype, the weights of `model` rounded to it; every run is verified exactly. A device that is
/// missing or fails gets a row that says why. Throws std::invalid_argument (no device, no tokens),
/// std::out_of_range (answer, wrong), what FaultInjector throws.
std::vector<CompareRow> compare(const HookedTransformer& model, const Tokens& prompt,
                                std::int64_t answer, std::int64_t wrong,
                                const CompareOptions& options = {});

/// "top_text" where `model` has a tokenizer that knows the token.
nlohmann::json to_json(const CompareRow& row, const HookedTransformer& model);

}  // namespace lenscpp
