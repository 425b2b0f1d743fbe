// Side by side: the same weights, the same tokens, another device.
#include "lens/compare.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>

#include "hooks/checkpoint/json.h"
#include "lens/fault_injection.h"

namespace lenscpp {
namespace {

constexpr std::size_t kLargestFile = std::size_t{64} << 20;
constexpr std::int64_t kRowsAtOnce = 32;

// Logits at the last position of one prompt, in float64.
std::vector<double> last_logits(const Array& logits, std::int64_t prompt) {
  std::int64_t pos = logits.size(1), vocab = logits.size(2);
  std::vector<double> row(static_cast<std::size_t>(vocab));
  logits.widen(((prompt + 1) * pos - 1) * vocab, row);
  return row;
}

double probability(const std::vector<double>& logits, std::int64_t token) {
  double largest = *std::ranges::max_element(logits), sum = 0;
  for (double x : logits) sum += std::exp(x - largest);
  return std::exp(logits[static_cast<std::size_t>(token)] - largest) / sum;
}

struct Outcome {
  Array logits;
  Verdict verdict;
};

// What was computed, refused or not: here alone the one is set beside the other.
Outcome outcome_of(const HookedTransformer& model, const Tokens& tokens,
                   const InjectedFaults& injected) {
  RunOptions options{.verify = VerifyMode::exact,
                     .names = std::vector<std::string>{},
                     .interference = injected.interference(),
                     .device_faults = injected.device_faults()};
  try {
    VerifiedCache cache = model.run_with_cache(tokens, options);
    return {cache.output(), cache.verdict()};
  } catch (const VerificationFailed& e) {
    const auto& output = e.unverified_cache().activations().output();
    if (output.value.empty())
      throw std::runtime_error("the run left no logits: " + e.verdict().summary());
    return {output.value, e.verdict()};
  }
}

// Prompts of one length, to be run together.
struct Batch {
  Tokens tokens;
  std::vector<std::pair<std::int64_t, std::int64_t>> choices;  // answer, wrong
};

std::vector<Batch> batches_of(const HookedTransformer& model,
                              const std::vector<ChoicePrompt>& prompts, std::int64_t& left_out) {
  std::map<std::int64_t, std::vector<Batch>> by_length;
  for (const ChoicePrompt& prompt : prompts) {
    auto answer = model.tokenizer().encode(prompt.answer),
         wrong = model.tokenizer().encode(prompt.wrong);
    // A tokenizer may know more tokens than the model.
    auto one = [&](const std::vector<std::int64_t>& ids) {
      return ids.size() == 1 && ids[0] < model.config().d_vocab;
    };
    if (!one(answer) || !one(wrong)) {
      left_out += 1;
      continue;
    }
    Tokens tokens = model.to_tokens(prompt.text);
    auto& batches = by_length[tokens.pos];
    if (batches.empty() || batches.back().tokens.batch == kRowsAtOnce)
      batches.push_back({.tokens = {.batch = 0, .pos = tokens.pos, .ids = {}}, .choices = {}});
    Batch& batch = batches.back();
    batch.tokens.batch += 1;
    batch.tokens.ids.insert(batch.tokens.ids.end(), tokens.ids.begin(), tokens.ids.end());
    batch.choices.emplace_back(answer[0], wrong[0]);
  }
  std::vector<Batch> all;
  for (auto& [length, batches] : by_length)
    all.insert(all.end(), std::make_move_iterator(batches.begin()),
               std::make_move_iterator(batches.end()));
  return all;
}

ChoiceAccuracy accuracy_of(const HookedTransformer& model, const std::vector<ChoicePrompt>& prompts,
                           const InjectedFaults& injected) {
  ChoiceAccuracy accuracy;
  for (const Batch& batch : batches_of(model, prompts, accuracy.left_out)) {
    Outcome outcome = outcome_of(model, batch.tokens, injected);
    accuracy.asked += batch.tokens.batch;
    if (outcome.verdict.status != Status::verified) accuracy.refused += batch.tokens.batch;
    for (std::int64_t b = 0; b < batch.tokens.batch; ++b) {
      auto logits = last_logits(outcome.logits, b);
      auto [answer, wrong] = batch.choices[static_cast<std::size_t>(b)];
      accuracy.right +=
          logits[static_cast<std::size_t>(answer)] > logits[static_cast<std::size_t>(wrong)];
    }
  }
  return accuracy;
}

std::string in_words(const std::vector<FaultSpec>& faults) {
  std::string words;
  for (const FaultSpec& fault : faults) {
    words += (words.empty() ? "" : ", ") + fault.name;
    if (fault.hook) words += " at " + *fault.hook;
  }
  return words;
}

// Those that can be there: inside of a device they are only in the simulated one.
std::vector<FaultSpec> faults_on(const std::string& device, std::vector<FaultSpec> faults) {
  if (!device.starts_with("simulated"))
    std::erase_if(faults, [](const FaultSpec& fault) { return is_device_fault(fault.name); });
  return faults;
}

void fill(CompareRow& row, const HookedTransformer& model, const Tokens& prompt,
          std::pair<std::int64_t, std::int64_t> choice, const CompareOptions& options,
          const std::vector<FaultSpec>& faults) {
  InjectedFaults injected(faults, model.config());
  Outcome outcome = outcome_of(model, prompt, injected);
  auto logits = last_logits(outcome.logits, 0);
  row.p_answer = probability(logits, choice.first);
  row.p_wrong = probability(logits, choice.second);
  row.logit_difference = logits[static_cast<std::size_t>(choice.first)] -
                         logits[static_cast<std::size_t>(choice.second)];
  row.top = std::ranges::max_element(logits) - logits.begin();
  row.verdict = std::move(outcome.verdict);
  row.accuracy = accuracy_of(model, options.prompts, injected);
}

}  // namespace

std::vector<ChoicePrompt> read_choice_prompts(const std::filesystem::path& file) {
  std::istringstream lines(read_text(file, kLargestFile));
  std::vector<ChoicePrompt> prompts;
  std::string line;
  for (std::int64_t number = 1; std::getline(lines, line); ++number) {
    std::string origin = file.string() + ", line " + std::to_string(number);
    auto json = parse_json(line, origin);
    auto text = [&](const char* key) {
      if (!json.is_object() || !json.contains(key) || !json[key].is_string())
        throw std::invalid_argument("[prompts] " + origin + ": no text under \"" + key +
                                    "\"; needed: clean, answer, wrong");
      return json[key].get<std::string>();
    };
    prompts.push_back({text("clean"), text("answer"), text("wrong")});
  }
  return prompts;
}

std::vector<CompareRow> compare(const HookedTransformer& model, const Tokens& prompt,
                                std::int64_t answer, std::int64_t wrong,
                                const CompareOptions& options) {
  if (options.devices.empty() || prompt.batch != 1)
    throw std::invalid_argument("[compare] needed: one prompt and at least one device; found: " +
                                std::to_string(prompt.batch) + " prompts, " +
                                std::to_string(options.devices.size()) + " devices");
  if (Head head = model.config().head; head != Head::unembedding)
    throw std::invalid_argument(
        "[compare] devices are compared by the next token, which this model does not predict (its "
        "head: " +
        std::string(name_of(head)) + ")");
  for (std::int64_t token : {answer, wrong})
    if (token < 0 || token >= model.config().d_vocab)
      throw std::out_of_range("[compare] token " + std::to_string(token) +
                              " out of range: the vocabulary has " +
                              std::to_string(model.config().d_vocab));
  bool inside = std::ranges::any_of(
      options.faults, [](const FaultSpec& fault) { return is_device_fault(fault.name); });
  if (inside && std::ranges::none_of(options.devices, [](const std::string& device) {
        return device.starts_with("simulated");
      }))
    throw std::invalid_argument(
        "[compare] a fault inside the device needs the device \"simulated\" among those compared");
  InjectedFaults(options.faults, model.config());  // refuses what does not fit before anything runs
  auto dtypes = options.dtypes.empty() ? std::vector{model.options().dtype} : options.dtypes;
  std::vector<CompareRow> rows;
  for (DType dtype : dtypes)
    for (const std::string& device : options.devices)
      for (bool faulty : {false, true}) {
        auto faults = faulty ? faults_on(device, options.faults) : std::vector<FaultSpec>{};
        if (faulty && faults.empty()) continue;
        CompareRow row{.device = device, .dtype = dtype, .fault = in_words(faults), .error = {}};
        try {
          fill(row, model.moved(device, dtype), prompt, {answer, wrong}, options, faults);
        } catch (const DeviceError& e) {
          row.error = e.what();
        } catch (const c10::Error& e) {
          row.error = "[device] \"" + device + "\" failed: " + e.what_without_backtrace();
        } catch (const std::runtime_error& e) {
          row.error = e.what();
        }
        rows.push_back(std::move(row));
      }
  return rows;
}

nlohmann::json to_json(const CompareRow& row, const HookedTransformer& model) {
  nlohmann::json json{{"device", row.device}, {"dtype", name_of(row.dtype)}, {"fault", row.fault}};
  if (!row.error.empty()) {
    json["error"] = row.error;
    return json;
  }
  json.update({{"p_answer", row.p_answer},
               {"p_wrong", row.p_wrong},
               {"logit_difference", row.logit_difference},
               {"top", row.top},
               {"accuracy",
                {{"right", row.accuracy.right},
                 {"asked", row.accuracy.asked},
                 {"refused", row.accuracy.refused},
                 {"left_out", row.accuracy.left_out}}},
               {"status", name_of(row.verdict.status)},
               {"verdict", to_json(row.verdict)}});
  if (model.has_tokenizer() && model.tokenizer().contains(row.top))
    json["top_text"] = model.tokenizer().token(row.top);
  return json;
}

}  // namespace lenscpp
