// Shared by the commands: from options to a model and its faults.
#include "patching/command/common.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <charconv>
#include <system_error>

#include "hooks/nearest.h"
#include "patching/command/shipped_models.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace fs = std::filesystem;
using nlohmann::ordered_json;
namespace {

constexpr std::int64_t kMostThreads = 4096;

// In lines of a help text.
std::string fault_names() {
  constexpr std::size_t kWidth = 76;
  std::string names, line;
  for (const FaultInfo& fault : fault_catalogue()) {
    if (line.size() + fault.name.size() > kWidth) {
      names += line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + std::string(fault.name);
  }
  names += line + "\nand inside the device, with --device simulated:\n";
  line.clear();
  for (const DeviceFaultInfo& fault : device_fault_catalogue()) {
    if (line.size() + fault.id.size() > kWidth) {
      names += line + "\n";
      line.clear();
    }
    line += (line.empty() ? "" : " ") + std::string(fault.id);
  }
  return names + line;
}

double number_of(std::string_view text, const std::string& whole) {
  double value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw std::invalid_argument("[--inject] " + in_quotes(whole) + ": " + in_quotes(text) +
                                " is not a number");
  return value;
}

}  // namespace

CLI::Validator whole_number(std::int64_t least, std::int64_t most) {
  std::string allowed = "a whole number";
  if (least != -kAnyNumber)
    allowed += " from " + std::to_string(least) +
               (most == kAnyNumber ? " on" : " to " + std::to_string(most));
  return CLI::Validator(
      [=](const std::string& text) {
        std::int64_t value = 0;
        auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
        bool good = error == std::errc() && end == text.data() + text.size() && value >= least &&
                    value <= most;
        return good ? std::string() : in_quotes(text) + " found; allowed: " + allowed;
      },
      "");
}

void add_model_option(CLI::App& command, CommonOptions& o) {
  command
      .add_option("MODEL", o.model,
                  "A Hugging Face folder, or the name of a model that ships: tiny-ioi")
      ->required()
      ->type_name("");
}

void add_input_options(CLI::App& command, CommonOptions& o, std::string& prompt) {
  add_model_option(command, o);
  command
      .add_option("--prompt", prompt,
                  "The text to run, with the special tokens that the model is given: a bos token "
                  "before it,\nwhere the tokenizer has one; an encoder's on both sides")
      ->required()
      ->type_name("TEXT")
      ->group("Input");
}

void add_common_options(CLI::App& command, CommonOptions& o) {
  command
      .add_option("--device", o.device,
                  "Where to run: cpu, cuda, cuda:1, mps; never chosen unasked")
      ->type_name("NAME")
      ->group("Running")
      ->capture_default_str();
  command.add_option("--dtype", o.dtype, "float32, float64, bfloat16 or float16")
      ->type_name("NAME")
      ->group("Running")
      ->capture_default_str();
  command.add_option("--threads", o.threads, "CPU threads; 0: as many as there are cores")
      ->group("Running")
      ->type_name("N")
      ->capture_default_str()
      ->check(whole_number(0, kMostThreads));
  command
      .add_option("--seed", o.seed, "Of everything drawn at random (here: the faults); recorded")
      ->group("Running")
      ->capture_default_str()
      ->type_name("N")
      ->check(whole_number(0, kAnyNumber));
  command
      .add_flag("--no-processing", o.no_processing,
                "Weights as in the checkpoint: nothing folded, nothing centred")
      ->group("Running");
  command
      .add_option(
          "--adapter", o.adapter,
          "A LoRA or DoRA in peft's format, merged into the weights and checked:\nthe folder "
          "of its adapter_config.json")
      ->type_name("DIR")
      ->group("Running");
  command
      .add_option("--matmul-precision", o.matmul_precision,
                  "ieee, or tf32: operands of float32 products may be rounded\nto 11 bits, and the "
                  "bounds of products allow just that")
      ->type_name("NAME")
      ->group("Running")
      ->capture_default_str();
  command
      .add_flag("--no-fallback", o.no_fallback,
                "Refuse operators that run on the CPU because the device has none")
      ->group("Running");
  command.add_flag("--json", o.json, "One JSON document on standard output and nothing else")
      ->group("Output");
}

void add_checking_options(CLI::App& command, CommonOptions& o) {
  command
      .add_option("--verify", o.verify,
                  "exact: every activation is compared with float64; checksum: products\nby random "
                  "projections of every row, all else as in exact; off: nothing is")
      ->type_name("MODE")
      ->group("Checking")
      ->capture_default_str();
  command
      .add_option("--inject", o.inject,
                  "A fault, for trying out the refusal: NAME[:key=value,...]@HOOK,\n"
                  "as nan@blocks.0.attn.hook_q or head:head=2@attn.hook_z (every layer).\n"
                  "May be given more than once. The faults:\n" +
                      fault_names())
      ->group("Checking")
      ->type_name("FAULT")
      ->allow_extra_args(false);
}

VerifyMode verify_mode(const CommonOptions& options) {
  return verify_mode_from_name(options.verify);
}

Site lens_site(const std::string& name) {
  constexpr std::pair<std::string_view, Site> kSites[] = {{"resid_pre", Site::resid_pre},
                                                          {"resid_mid", Site::resid_mid},
                                                          {"resid_post", Site::resid_post},
                                                          {"attn_out", Site::attn_out},
                                                          {"mlp_out", Site::mlp_out}};
  for (auto [known, site] : kSites)
    if (known == name) return site;
  throw std::invalid_argument("[--site] " + in_quotes(name) +
                              " is no site of the logit lens; allowed: resid_pre, resid_mid, "
                              "resid_post, attn_out, mlp_out");
}

HookedTransformer load(const CommonOptions& o) {
  LoadOptions options{.device = o.device,
                      .dtype = dtype_from_name(o.dtype),
                      .verify = verify_mode(o),
                      .matmul_precision = matmul_precision_from_name(o.matmul_precision),
                      .allow_fallback = !o.no_fallback};
  if (options.dtype == DType::i64)
    throw std::invalid_argument(
        "[--dtype] a model cannot be int64; allowed: float32, float64, bfloat16, float16");
  if (o.no_processing) options.processing = Processing::none();
  if (o.adapter) options.adapter = *o.adapter;
  fs::path folder = resolve_model(o.model);
  if (o.threads > 0) at::set_num_threads(static_cast<int>(o.threads));
  Progress progress("loading " + folder.filename().string());
  std::optional<HookedTransformer> model;
  try {
    on_device(o, [&] { model.emplace(HookedTransformer::from_pretrained(folder, options)); });
  } catch (const std::system_error& e) {
    throw Failure(ExitStatus::usage, e.what());
  } catch (const Failure&) {
    throw;
  } catch (const DeviceError&) {
    throw;
  } catch (const std::runtime_error& e) {
    throw Failure(ExitStatus::refused, e.what());
  }
  return std::move(*model);
}

void from_disk(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::system_error& e) {
    throw Failure(ExitStatus::usage, e.what());
  }
}

void on_device(const CommonOptions& options, const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& e) {
    std::string what = e.what_without_backtrace();
    what = what.substr(0, what.find('\n'));
    throw Failure(options.device == "cpu" ? ExitStatus::other : ExitStatus::device,
                  "[device] \"" + options.device + "\" failed: " + what);
  }
}

VerifiedCache run_checked(const CommonOptions& options, const HookedTransformer& model,
                          const Tokens& tokens, const RunOptions& run) {
  Progress progress("running and checking");
  std::optional<VerifiedCache> cache;
  on_device(options, [&] { cache.emplace(model.run_with_cache(tokens, run)); });
  return std::move(*cache);
}

FaultSpec parse_fault(const std::string& text, std::uint64_t seed) {
  FaultSpec spec{.seed = seed};
  std::string_view rest = text;
  if (auto at = rest.rfind('@'); at != rest.npos) {
    spec.hook = std::string(rest.substr(at + 1));
    rest = rest.substr(0, at);
  }
  auto colon = std::min(rest.find(':'), rest.size());
  spec.name = rest.substr(0, colon);
  rest.remove_prefix(std::min(colon + 1, rest.size()));
  while (!rest.empty()) {
    std::string_view pair = rest.substr(0, rest.find(','));
    auto equals = pair.find('=');
    if (equals == pair.npos)
      throw std::invalid_argument("[--inject] " + in_quotes(text) + ": " + in_quotes(pair) +
                                  " is no key=value; needed: NAME[:key=value,...]@HOOK");
    spec.parameters[std::string(pair.substr(0, equals))] = number_of(pair.substr(equals + 1), text);
    rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
  }
  if (!is_device_fault(spec.name)) fault_info(spec.name);
  return spec;
}

Faults::Faults(const CommonOptions& options, const Config& config) {
  std::vector<FaultSpec> specs;
  for (const std::string& text : options.inject) specs.push_back(parse_fault(text, options.seed));
  faults_ = InjectedFaults(specs, config);
}

std::string Faults::in_words(Status status) const {
  if (faults_.empty()) return "";
  std::string words;
  for (const auto& f : faults_.log({}))
    words += (words.empty() ? "" : "; ") + f.fault + (f.op.empty() ? "" : " in " + f.op) + " at " +
             f.name + " changed " + std::to_string(f.changed) + " elements";
  bool seen = words.empty() || status != Status::verified;
  return "injected: " + (words.empty() ? "nothing was changed" : words) +
         (seen ? "" : "; within the bounds of rounding, so not refused") + "\n";
}

ordered_json Faults::to_json() const {
  ordered_json list = ordered_json::array();
  for (const auto& f : faults_.log({})) {
    list.push_back({{"fault", f.fault}, {"name", f.name}, {"changed", f.changed}});
    if (!f.op.empty()) list.back()["op"] = f.op;
  }
  return list;
}

}  // namespace lenscpp::command
