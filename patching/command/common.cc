// Shared by the commands: from options to a model, from a run to words and JSON.
#include "patching/command/common.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <system_error>

#include "hooks/build_info.h"
#include "hooks/checkpoint/safetensors.h"
#include "hooks/nearest.h"
#include "patching/command/shipped_models.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace fs = std::filesystem;
using nlohmann::ordered_json;
namespace {

constexpr std::string_view kSuffix = ".safetensors";
constexpr std::int64_t kMostThreads = 4096;

std::string fault_names() {
  std::string names;
  for (const FaultInfo& fault : fault_catalogue()) names += (names.empty() ? "" : ", ") + std::string(fault.name);
  return names;
}

double number_of(std::string_view text, const std::string& whole) {
  double value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    throw std::invalid_argument("[--inject] " + in_quotes(whole) + ": " + in_quotes(text) + " is not a number");
  return value;
}

}  // namespace

void add_common_options(CLI::App& command, CommonOptions& o) {
  command.add_option("--device", o.device, "Where to run: cpu, cuda, cuda:1, mps; never chosen unasked")->group("Running")->capture_default_str();
  command.add_option("--dtype", o.dtype, "float32, float64, bfloat16 or float16")->group("Running")->capture_default_str();
  command.add_option("--threads", o.threads, "CPU threads; without it, all cores")->group("Running")->check(CLI::Range(std::int64_t{1}, kMostThreads))->type_name("N");
  command.add_option("--seed", o.seed, "Of everything drawn at random (here: the faults); recorded")->group("Running")->capture_default_str()->type_name("N");
  command.add_flag("--no-processing", o.no_processing, "Weights as in the checkpoint: nothing folded, nothing centred")->group("Running");
  command.add_flag("--json", o.json, "One JSON document on standard output and nothing else")->group("Output");
}

void add_checking_options(CLI::App& command, CommonOptions& o) {
  command.add_option("--verify", o.verify, "exact: every activation is compared with float64; off: nothing is")->group("Checking")->capture_default_str();
  command.add_option("--inject", o.inject,
                     "A fault, for trying out the refusal: NAME[:key=value,...]@HOOK,\n"
                     "as nan@blocks.0.attn.hook_q or head:head=2@attn.hook_z (every layer).\n"
                     "Names: " + fault_names())
      ->group("Checking")->type_name("FAULT")->allow_extra_args(false);
}

VerifyMode verify_mode(const CommonOptions& options) { return verify_mode_from_name(options.verify); }

Site lens_site(const std::string& name) {
  constexpr std::pair<std::string_view, Site> kSites[] = {{"resid_pre", Site::resid_pre}, {"resid_mid", Site::resid_mid},
                                                          {"resid_post", Site::resid_post}, {"attn_out", Site::attn_out},
                                                          {"mlp_out", Site::mlp_out}};
  for (auto [known, site] : kSites)
    if (known == name) return site;
  throw std::invalid_argument("[--site] " + in_quotes(name) + " is no site of the logit lens; allowed: resid_pre, resid_mid, resid_post, attn_out, mlp_out");
}

HookedTransformer load(const CommonOptions& o) {
  LoadOptions options{.device = o.device, .dtype = dtype_from_name(o.dtype), .verify = verify_mode(o)};
  if (options.dtype == DType::i64) throw std::invalid_argument("[--dtype] a model cannot be int64; allowed: float32, float64, bfloat16, float16");
  if (o.no_processing) options.processing = Processing::none();
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

void on_device(const CommonOptions& options, const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& e) {
    std::string what = e.what_without_backtrace();
    what = what.substr(0, what.find('\n'));
    throw Failure(options.device == "cpu" ? ExitStatus::other : ExitStatus::device, "[device] \"" + options.device + "\" failed: " + what);
  }
}

VerifiedCache run_checked(const CommonOptions& options, const HookedTransformer& model, const Tokens& tokens, const RunOptions& run) {
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
      throw std::invalid_argument("[--inject] " + in_quotes(text) + ": " + in_quotes(pair) + " is no key=value; needed: NAME[:key=value,...]@HOOK");
    spec.parameters[std::string(pair.substr(0, equals))] = number_of(pair.substr(equals + 1), text);
    rest.remove_prefix(std::min(pair.size() + 1, rest.size()));
  }
  fault_info(spec.name);
  return spec;
}

Faults::Faults(const CommonOptions& options, const Config& config) {
  std::vector<FaultSpec> specs;
  for (const std::string& text : options.inject) specs.push_back(parse_fault(text, options.seed));
  if (!specs.empty()) injector_ = std::make_shared<FaultInjector>(std::move(specs), config);
}

std::string Faults::in_words() const {
  if (!injector_) return "";
  std::string words;
  for (const auto& f : injector_->log())
    words += (words.empty() ? "" : "; ") + f.fault + " at " + to_string(f.id) + " changed " + std::to_string(f.changed) + " elements";
  return words.empty() ? "nothing was changed" : words;
}

ordered_json Faults::to_json() const {
  ordered_json list = ordered_json::array();
  if (injector_)
    for (const auto& f : injector_->log()) list.push_back({{"fault", f.fault}, {"name", to_string(f.id)}, {"changed", f.changed}});
  return list;
}

std::string token_text(const HookedTransformer& model, std::int64_t id) {
  return model.tokenizer().contains(id) ? model.tokenizer().token(id) : "<id " + std::to_string(id) + ">";
}

std::string tokens_in_words(const HookedTransformer& model, const Tokens& tokens) {
  constexpr std::size_t kAtEitherEnd = 16;
  std::size_t n = tokens.ids.size();
  std::string words = std::to_string(n) + (n == 1 ? " token:" : " tokens:");
  for (std::size_t i = 0; i < n; ++i) {
    if (n > 2 * kAtEitherEnd && i == kAtEitherEnd) {
      words += " ...";
      i = n - kAtEitherEnd;
    }
    words += " " + quoted_token(token_text(model, tokens.ids[i]));
  }
  return words;
}

std::string model_in_words(const HookedTransformer& model) {
  return model.name() + " on " + model.options().device + " in " + std::string(name_of(model.options().dtype));
}

ordered_json tokens_to_json(const HookedTransformer& model, const Tokens& tokens) {
  ordered_json list = ordered_json::array();
  for (std::int64_t id : tokens.ids) list.push_back({{"token", id}, {"text", token_text(model, id)}});
  return list;
}

ordered_json to_json(const HookedTransformer& model, const std::vector<RankedToken>& top) {
  ordered_json list = ordered_json::array();
  for (const RankedToken& t : top)
    list.push_back({{"token", t.token}, {"text", token_text(model, t.token)}, {"logit", t.logit}, {"probability", t.probability}});
  return list;
}

nlohmann::json record_to_json(const RunRecord& record, const CommonOptions& options) {
  nlohmann::json json = to_json(record);
  json["seed"] = options.seed;
  return json;
}

LogitLens as_lens(const Array& logits) {
  return {{"output"}, logits.reshaped({1, logits.size(0), logits.size(1), logits.size(2)}), Site::unembed_out, true};
}

std::string lens_table(const HookedTransformer& model, const LogitLens& lens, std::int64_t followed, std::int64_t k) {
  std::string name = quoted_token(token_text(model, followed));
  std::vector<Table::Column> columns = {{"layer"}, {"rank of " + name, true}, {"P(" + name + ")", true}};
  for (std::int64_t i = 1; i <= k; ++i) {
    columns.push_back({std::to_string(i) + "."});
    columns.push_back({"", true});
  }
  Table table(columns);
  Array rank = lens.rank(followed), probs = lens.probs();
  std::int64_t n_pos = lens.logits().size(2), vocab = lens.logits().size(3);
  for (std::int64_t l = 0; l < lens.logits().size(0); ++l) {
    std::int64_t row = l * n_pos + n_pos - 1;
    std::vector<std::string> cells = {lens.labels()[l], std::to_string(static_cast<std::int64_t>(rank[row])), percent(probs[row * vocab + followed])};
    for (const RankedToken& t : lens.top_k(l, 0, -1, k)) {
      cells.push_back(quoted_token(token_text(model, t.token)));
      cells.push_back(percent(t.probability));
    }
    table.add(std::move(cells));
  }
  return table.str();
}

ordered_json lens_to_json(const HookedTransformer& model, const LogitLens& lens, std::int64_t followed, std::int64_t k) {
  Array rank = lens.rank(followed), probs = lens.probs(), entropy = lens.entropy();
  std::int64_t n_pos = lens.logits().size(2), vocab = lens.logits().size(3);
  ordered_json layers = ordered_json::array();
  for (std::int64_t l = 0; l < lens.logits().size(0); ++l) {
    std::int64_t row = l * n_pos + n_pos - 1;
    layers.push_back({{"label", lens.labels()[l]},
                      {"rank", static_cast<std::int64_t>(rank[row])},
                      {"probability", probs[row * vocab + followed]},
                      {"entropy_nats", entropy[row]},
                      {"top", to_json(model, lens.top_k(l, 0, -1, k))}});
  }
  return layers;
}

fs::path checked_output(const std::string& text) {
  fs::path path = text;
  if (path.extension() != kSuffix)
    throw std::invalid_argument("[--out] " + in_quotes(text) + ": the suffix says how a run is saved; allowed: " + std::string(kSuffix));
  if (fs::is_directory(path)) throw std::invalid_argument("[--out] " + in_quotes(text) + " is a folder; needed: a file");
  fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (!fs::is_directory(folder)) throw std::invalid_argument("[--out] " + in_quotes(text) + ": there is no folder " + in_quotes(folder.string()));
  if (::access(folder.c_str(), W_OK) != 0)
    throw std::invalid_argument("[--out] " + in_quotes(text) + ": cannot write into " + in_quotes(folder.string()) + ": " + std::generic_category().message(errno));
  return path;
}

std::uintmax_t save(const fs::path& path, const std::map<std::string, Array>& activations, const Tokens& tokens, const ordered_json& document) {
  std::map<std::string, Array> tensors = activations;
  tensors["tokens"] = Array::of(tokens.ids, {tokens.batch, tokens.pos});
  std::map<std::string, std::string> metadata = {{"lenscpp.version", lenscpp_version()}};
  for (const auto& [key, value] : document.items())
    metadata["lenscpp." + key] = value.is_string() ? value.get<std::string>() : value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  Progress progress("saving " + path.string());
  Uninterrupted until_renamed;
  write_safetensors(path, tensors, metadata);
  return fs::file_size(path);
}

std::map<std::string, Array> activations_of(const VerifiedCache& cache) {
  std::map<std::string, Array> all;
  for (const auto& entry : cache.activations().entries()) all[entry.name] = cache[entry.name];
  return all;
}

std::map<std::string, Array> activations_of(const UnverifiedCache& cache) {
  std::map<std::string, Array> all;
  for (const auto& entry : cache.activations().entries()) all[entry.name] = entry.value;
  return all;
}

void print_json(const ordered_json& document) {
  print(document.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace lenscpp::command
