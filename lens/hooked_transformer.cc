// Loading, tokens, and runs that are checked while they run.
#include "lens/hooked_transformer.h"

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <set>

#include "hooks/build_info.h"
#include "hooks/checkpoint/loading.h"
#include "hooks/transformer/torch_array.h"
#include "lens/device.h"
#include "lens/preflight.h"
#include "lens/split_run.h"
#include "lens/torch_parallel.h"
#include "verify/adapter_check.h"
#include "verify/device/simulated.h"
#include "verify/processing_check.h"
#include "verify/reference/wiring.h"

namespace lenscpp {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[model] " + what);
}

DeviceLimits limits_for(const LoadOptions& options) {
  return options.limits.value_or(limits_of_device(options.device));
}

void require_dtype(const std::string& device, DType dtype) {
  if (auto reason = dtype_refused(device, dtype))
    throw DeviceError("[preflight] " + std::string(name_of(dtype)) + " on " + device + ": " +
                      *reason);
}

// Before anything large is read: arithmetic over the config.
void require_loadable(const std::filesystem::path& folder, const LoadOptions& options) {
  Preflight p = preflight(folder, {.load = options, .pos = 1});
  require_memory("loading this model", p.load.host(), p.host);
  require_memory("this model on " + options.device, p.load.device(), p.device_memory);
}

// Asking the system takes longer than a small run.
bool worth_asking(const Config& config, const Request& request) {
  return rough_run_bytes(config, request, at::get_num_threads()) >= std::int64_t{1} << 30;
}

struct PlannedRun {
  const Weights& weights;
  const Request& request;
  PlannedUse use;
};
// `device`: empty for a run in parts, of which everything is there before the first check.
void require_memory_of(const PlannedRun& run, const std::string& device) {
  MemoryPlan plan = plan_run(run.weights, run.request, run.use);
  PlannedUse whole = run.use;
  whole.verified = false;
  std::int64_t parts = device.empty() ? plan_run(run.weights, run.request, whole).host() : 0;
  require_memory("this run", sum_of(plan.host(), parts), available_host_memory());
  if (!device.empty())
    require_memory("this run on " + device, plan.device(), available_device_memory(device));
}

// A device that is missing says so when the first weight is copied to it.
std::shared_ptr<const Transformer> place(std::shared_ptr<const Weights> weights,
                                         const LoadOptions& options) {
  require_dtype(options.device, weights->dtype);
  require_weights_fit(*weights, limits_for(options));
  if (options.matmul_precision == MatmulPrecision::tf32 && weights->dtype != DType::f32)
    refuse("matmul_precision tf32 is of float32 products; the model is " +
           std::string(name_of(weights->dtype)));
  try {
    return std::make_shared<const Transformer>(std::move(weights), named_device(options.device),
                                               options.matmul_precision);
  } catch (const c10::Error& e) {
    throw DeviceError("[device] \"" + options.device +
                      "\" cannot be used: " + e.what_without_backtrace());
  }
}

struct Prepared {
  std::shared_ptr<const Weights> weights;
  std::string adapter;
};
// Merged and processed in the precision of the checkpoint or better, checked, and only then rounded
// to the target. What has been used goes at once: of two copies at most one is needed later.
Prepared prepared(const std::filesystem::path& folder, const LoadOptions& options) {
  DType master = options.dtype == DType::f64 ? DType::f64 : DType::f32;
  if (!options.processing.any()) master = options.dtype;
  std::optional<Adapter> adapter;
  if (options.adapter) adapter = Adapter::open(*options.adapter);
  std::string id =
      adapter ? adapter->origin() + " (XXH3-128 " + adapter->digest() + ")" : std::string();
  Weights weights = load_weights(folder, Loading{.dtype = master,
                                                 .first_n_layers = options.first_n_layers,
                                                 .adapter = adapter ? &*adapter : nullptr,
                                                 .on_merged = [](const MergedTensor& merged) {
                                                   check_merged(merged, torch_parallel_for);
                                                 }});
  if (options.processing.any()) {
    Weights processed = process(weights, options.processing, torch_parallel_for);
    check_processing(weights, processed, torch_parallel_for);
    weights = std::move(processed);
  }
  if (options.dtype != master) weights = cast(weights, options.dtype);
  return {std::make_shared<const Weights>(std::move(weights)), std::move(id)};
}

// All rows of a run: from tokens, or from a residual.
Rows rows_of(const Tokens& tokens, const std::optional<Start>& start, const Config& config,
             DType dtype) {
  if (!start) return lenscpp::rows_of(tokens, config);
  const Array& x = start->residual;
  if (!tokens.ids.empty()) refuse("a run starts from tokens or from a residual, not from both");
  if (x.rank() != 3 || x.dtype() != dtype || x.size(2) != config.d_model)
    refuse("a run starts from a residual [batch, pos, " + std::to_string(config.d_model) + "] of " +
           std::string(name_of(dtype)) + "; found: " + to_string(x.shape()) + " of " +
           std::string(name_of(x.dtype())));
  std::int64_t layer = start->layer < 0 ? start->layer + config.n_layers : start->layer;
  if (layer < 0 || layer >= config.n_layers)
    throw std::out_of_range("[model] start_at_layer " + std::to_string(start->layer) +
                            " out of range: the model has " + std::to_string(config.n_layers) +
                            " layers");
  Rows rows{.batch = x.size(0),
            .pos = x.size(1),
            .tokens = {},
            .positions = {},
            .spans = tokens.spans,
            .first_layer = layer,
            .end_layer = config.n_layers};
  for (std::int64_t i = 0; i < rows.batch * rows.pos; ++i)
    rows.positions.push_back(position_in(rows.span_of(i / rows.pos), i % rows.pos));
  rows.start_residual = x;
  return rows;
}

// Not by fmt: the wheel carries headers of another version than the library that we link.
std::string now_utc() {
  std::time_t now = std::time(nullptr);
  std::tm parts{};
  gmtime_r(&now, &parts);
  std::array<char, 32> text{};
  std::strftime(text.data(), text.size(), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text.data();
}

std::optional<Tokenizer> tokenizer_for(const std::filesystem::path& folder,
                                       const LoadOptions& options) {
  if (options.tokenizer) return Tokenizer::from_file(*options.tokenizer);
  if (options.loaded_tokenizer) return options.loaded_tokenizer;
  const std::filesystem::path file = folder / "tokenizer.json";
  return std::filesystem::exists(file) ? std::optional(Tokenizer::from_file(file)) : std::nullopt;
}

}  // namespace

Tokens tokens_of(const RunRecord& record) {
  return {record.batch, record.pos, record.tokens, record.spans, record.token_types};
}

Rows rows_of(const Tokens& tokens, const Config& config) {
  Rows rows = Rows::from_tokens(tokens.ids, tokens.batch, config, tokens.spans);
  rows.token_types = tokens.types;
  return rows;
}

HookedTransformer HookedTransformer::from_pretrained(const std::filesystem::path& folder,
                                                     const LoadOptions& options) {
  named_device(options.device);
  require_dtype(options.device, options.dtype);
  require_loadable(folder, options);
  Prepared from = prepared(folder, options);
  HookedTransformer model(std::move(from.weights), tokenizer_for(folder, options), options);
  model.adapter_ = std::move(from.adapter);
  model.name_ = folder.filename().empty() ? folder.parent_path().filename().string()
                                          : folder.filename().string();
  return model;
}

HookedTransformer::HookedTransformer(std::shared_ptr<const Weights> weights,
                                     std::optional<Tokenizer> tokenizer, const LoadOptions& options)
    : pass_(place(weights, options)), tokenizer_(std::move(tokenizer)), options_(options) {
  options_.dtype = weights->dtype;
  digest_ = std::async(std::launch::async, [weights] { return weights->digest(); }).share();
}

HookedTransformer HookedTransformer::moved(const std::string& device, DType dtype) const {
  LoadOptions options = options_;
  options.device = device;
  auto weights = shared_weights();
  if (weights->dtype != dtype) weights = std::make_shared<const Weights>(cast(*weights, dtype));
  HookedTransformer model(std::move(weights), tokenizer_, options);
  model.name_ = name_;
  model.adapter_ = adapter_;
  return model;
}

const Tokenizer& HookedTransformer::tokenizer() const {
  if (!tokenizer_)
    refuse(
        "this model has no tokenizer: give token ids, or load it from a folder with a "
        "tokenizer.json");
  return *tokenizer_;
}

Tokens HookedTransformer::to_tokens(const std::string& text,
                                    std::optional<bool> prepend_bos) const {
  return to_tokens(std::vector<std::string>{text}, prepend_bos);
}

Tokens HookedTransformer::to_tokens(const std::vector<std::string>& texts,
                                    std::optional<bool> prepend_bos,
                                    std::optional<PaddingSide> side) const {
  std::vector<std::vector<std::int64_t>> rows;
  for (const std::string& text : texts) rows.push_back(ids_of(text, prepend_bos));
  return padded(rows, side);
}

Tokens HookedTransformer::to_tokens_of_pairs(
    const std::vector<std::pair<std::string, std::string>>& pairs,
    std::optional<PaddingSide> side) const {
  if (config().causal)
    refuse("pairs of texts are put together by models that see both ways; this one is causal");
  std::vector<std::vector<std::int64_t>> rows, types;
  for (const auto& [first, second] : pairs) {
    SpecialEncoding both = tokenizer().encode_with_special(first, second);
    rows.push_back(std::move(both.ids));
    types.push_back(std::move(both.type_ids));
  }
  Tokens tokens = padded(rows, side);
  if (config().n_token_types == 0) return tokens;
  tokens.types.resize(tokens.ids.size());
  for (std::size_t b = 0; b < types.size(); ++b) {
    std::int64_t begin = tokens.spans.empty() ? 0 : tokens.spans[b].begin;
    std::ranges::copy(types[b],
                      tokens.types.begin() + static_cast<std::int64_t>(b) * tokens.pos + begin);
  }
  return tokens;
}

std::vector<std::int64_t> HookedTransformer::ids_of(const std::string& text,
                                                    std::optional<bool> prepend_bos) const {
  const Tokenizer& t = tokenizer();
  std::vector<std::int64_t> ids;
  std::optional<bool> asked = prepend_bos ? prepend_bos : options_.default_prepend_bos;
  if (!config().causal && !asked) {
    ids = t.encode_with_special(text).ids;
  } else {
    bool bos = asked.value_or(t.bos_token_id().has_value());
    if (bos && !t.bos_token_id())
      refuse("prepend_bos is asked for, but the tokenizer has no bos token");
    if (bos) ids.push_back(*t.bos_token_id());
    std::ranges::copy(t.encode(text), std::back_inserter(ids));
  }
  if (ids.empty()) refuse("an empty prompt without a bos token has no positions");
  return ids;
}

Tokens HookedTransformer::padded(const std::vector<std::vector<std::int64_t>>& rows,
                                 std::optional<PaddingSide> side) const {
  if (rows.empty()) refuse("no prompt was given");
  Tokens tokens{.batch = std::ssize(rows)};
  for (const auto& row : rows) {
    if (row.empty()) refuse("a prompt of no tokens was given");
    tokens.pos = std::max(tokens.pos, std::ssize(row));
  }
  bool left = side.value_or(options_.default_padding_side) == PaddingSide::left, unequal = false;
  for (const auto& row : rows) {
    std::int64_t length = std::ssize(row), before = left ? tokens.pos - length : 0;
    tokens.ids.insert(tokens.ids.end(), static_cast<std::size_t>(before), pad_token());
    tokens.ids.insert(tokens.ids.end(), row.begin(), row.end());
    tokens.ids.resize(static_cast<std::size_t>(tokens.pos) * (tokens.spans.size() + 1),
                      pad_token());
    tokens.spans.push_back({before, before + length});
    unequal |= length != tokens.pos;
  }
  if (!unequal) tokens.spans.clear();
  return tokens;
}

std::int64_t HookedTransformer::pad_token() const {
  if (!tokenizer_) return 0;
  std::int64_t id = tokenizer_->pad_token_id().value_or(tokenizer_->eos_token_id().value_or(0));
  return id < config().d_vocab ? id : 0;  // some tokenizers have more tokens than their model
}

Tokens HookedTransformer::tokens_of(std::vector<std::int64_t> ids, std::int64_t batch) const {
  Rows rows = Rows::from_tokens(std::move(ids), batch, config());
  std::ranges::fill(rows.positions, 0);  // how far they reach a run sees, which knows the padding
  rows.validate(config());
  return {.batch = rows.batch, .pos = rows.pos, .ids = std::move(rows.tokens)};
}

std::string HookedTransformer::to_string(const std::vector<std::int64_t>& ids) const {
  return tokenizer().decode(ids);
}

std::vector<std::string> HookedTransformer::to_str_tokens(const std::string& text,
                                                          std::optional<bool> prepend_bos) const {
  std::vector<std::string> strings;
  for (std::int64_t id : to_tokens(text, prepend_bos).ids) strings.push_back(tokenizer().token(id));
  return strings;
}

std::int64_t HookedTransformer::to_single_token(const std::string& text) const {
  return single_token(tokenizer(), text);
}

std::int64_t single_token(const Tokenizer& tokenizer, const std::string& text) {
  auto ids = tokenizer.encode(text);
  if (ids.size() == 1) return ids[0];
  std::string parts;
  for (std::int64_t id : ids) parts += (parts.empty() ? "\"" : ", \"") + tokenizer.token(id) + "\"";
  refuse(
      "\"" + text + "\" is " + std::to_string(ids.size()) + " tokens, not one" +
      (parts.empty() ? "" : ": " + parts) +
      (!text.empty() && text[0] != ' ' ? " (words inside a text usually begin with a space)" : ""));
}

std::vector<TensorId> selected_hooks(const Config& config, const RunOptions& options) {
  std::vector<TensorId> hooks;
  if (options.names) {
    for (const std::string& name : *options.names) hooks.push_back(find_hook(name, {}, {}, config));
    return hooks;
  }
  for (const std::string& name : hook_names(config))
    if (!options.filter || options.filter(name)) hooks.push_back(find_hook(name, {}, {}, config));
  if (hooks.empty())
    refuse("the filter matches no hook point; names look like \"blocks.0.hook_resid_pre\"");
  return hooks;
}

Request HookedTransformer::request_for(const Tokens& tokens, const RunOptions& options) const {
  Request request{.rows = rows_of(tokens, options.start, config(), options_.dtype),
                  .plan = options.plan,
                  .on_demand = {},
                  .callbacks = options.callbacks};
  if (options.stop_at_layer) {
    std::int64_t stop = *options.stop_at_layer < 0 ? *options.stop_at_layer + config().n_layers
                                                   : *options.stop_at_layer;
    if (stop < 0 || stop > config().n_layers)
      throw std::out_of_range("[model] stop_at_layer " + std::to_string(*options.stop_at_layer) +
                              " out of range: the model has " + std::to_string(config().n_layers) +
                              " layers");
    request.rows.end_layer = stop;
    request.rows.unembeds = false;
  }
  if (options.names)
    for (const TensorId& id : selected_hooks(config(), options)) {
      if (!request.rows.reach(id.site, id.layer))
        refuse(hook_name(id.site, id.layer) + " is asked for, but a run that stops at layer " +
               std::to_string(request.rows.end_layer) + " does not compute it");
      if (info(id.site).presence == Presence::on_demand)
        request.on_demand.insert({id.site, id.layer});
    }
  if (options.pos_slice)
    for (std::int64_t p : *options.pos_slice)
      if (p < 0 || p >= request.rows.pos)
        throw std::out_of_range("[model] pos_slice: position " + std::to_string(p) + " of " +
                                std::to_string(request.rows.pos));
  request.validate(config());
  return request;
}

// The device is told which tensor comes next, so that a fault can be limited to one.
PassResult HookedTransformer::armed_pass(const Request& request, Sink* sink,
                                         const RunOptions& options) const {
  std::optional<Tee> both;
  if (options.watch != nullptr)
    sink = sink == nullptr ? options.watch : &both.emplace(*options.watch, *sink);
  auto faults = options.device_faults;
  if (!faults) return pass_->run(request, sink, options.interference);
  if (!is_simulated(options_.device))
    refuse("a fault inside the device needs the simulated device; this model is on \"" +
           options_.device + "\"");
  struct Armed {
    std::shared_ptr<DeviceFaults> faults;
    ~Armed() {
      simulated_device().arm(nullptr);
      faults->end();
    }
  } armed{faults};
  std::vector<TensorId> order;
  for (const Link& link : wire(weights(), request)) order.push_back(link.output);
  faults->begin(order);
  simulated_device().arm(faults);
  return pass_->run(request, sink, [&](const TensorId& id, const at::Tensor& x) {
    faults->passed(id);
    return options.interference ? options.interference(id, x) : x;
  });
}

PassResult HookedTransformer::pass(const Request& request, Sink* sink,
                                   const RunOptions& options) const {
  PassResult pass = armed_pass(request, sink, options);
  if (options_.allow_fallback || pass.fallbacks.empty()) return pass;
  std::string names;
  for (const std::string& op : pass.fallbacks) names += (names.empty() ? "" : ", ") + op;
  throw DeviceError("[device] \"" + options_.device + "\" ran on the CPU instead: " + names +
                    "; allowed with allow_fallback");
}

HookedTransformer::Computed HookedTransformer::compute(const Request& request, Sink* sink,
                                                       const RunOptions& options) const {
  auto parts = parts_of(weights(), request, limits_for(options_));
  if (sink != nullptr) require_room(request, options, !parts.empty());
  if (sink == nullptr && worth_asking(config(), request))  // nothing but the output is kept
    require_memory_of({weights(),
                       request,
                       {.on_host = pass_->device().is_cpu(),
                        .verified = false,
                        .recorded = false,
                        .threads = at::get_num_threads()}},
                      parts.empty() ? options_.device : "");
  if (parts.empty()) return {pass(request, sink, options), {}};
  auto run = [&](const Request& part, Sink* to) { return pass(part, to, options); };
  return {run_in_parts(request, parts, sink, run), parts};
}

void HookedTransformer::require_room(const Request& request, const RunOptions& options,
                                     bool in_parts) const {
  if (!worth_asking(config(), request)) return;
  std::set<std::pair<Site, std::int64_t>> kept;
  for (const TensorId& id : selected_hooks(config(), options)) kept.insert({id.site, id.layer});
  PlannedUse use{.on_host = pass_->device().is_cpu(),
                 .verified = options.verify.value_or(options_.verify) != VerifyMode::off,
                 .drift = options.drift,
                 .threads = at::get_num_threads(),
                 .keep =
                     [&](Site site, std::int64_t l) {
                       return kept.contains({site, l});
                     },
                 .kept_positions = {}};
  if (options.pos_slice) use.kept_positions = std::ssize(*options.pos_slice);
  require_memory_of({weights(), request, use}, in_parts ? "" : options_.device);
}

RunRecord HookedTransformer::record_for(const Request& request, const Computed& computed) const {
  const PassResult& pass = computed.pass;
  RunRecord record;
  record.model = name_;
  record.model_digest = digest();
  record.tokenizer_digest = tokenizer_ ? tokenizer_->source_bytes_hash() : "";
  record.batch = request.rows.batch;
  record.pos = request.rows.pos;
  record.tokens = request.rows.tokens;
  record.spans = request.rows.spans;
  record.token_types = request.rows.token_types;
  record.first_layer = request.rows.first_layer;
  record.end_layer = request.rows.end_layer;
  record.split = computed.split;
  record.plan = to_json(request.plan);
  record.hooks = pass.hooks;
  const Processing done = processing();
  record.processing = {{"fold_ln", done.fold_ln},
                       {"center_writing_weights", done.center_writing_weights},
                       {"center_unembed", done.center_unembed},
                       {"fold_value_biases", done.fold_value_biases}};
  record.adapter = adapter_;
  record.device = options_.device;
  record.device_name = is_simulated(options_.device)
                           ? "simulated: an accelerator in plain C++ that computes on the CPU"
                           : pass_->device().str();
  record.dtype = name_of(options_.dtype);
  record.matmul_precision = options_.matmul_precision;
  record.ambient = pass.ambient;
  record.fallbacks = pass.fallbacks;
  record.libraries = {{"torch", TORCH_VERSION}, {"lenscpp", lenscpp_version()}};
  record.build_commit = build_commit();
  record.build_dirty = build_dirty();
  record.threads = at::get_num_threads();
  record.time = now_utc();
  return record;
}

VerifiedCache HookedTransformer::run_with_cache(const Tokens& tokens,
                                                const RunOptions& options) const {
  return run_request(request_for(tokens, options), options);
}

bool HookedTransformer::fits(const Request& request) const {
  return run_violations(weights(), request, limits_for(options_)).empty();
}

VerifiedCache HookedTransformer::run_request(const Request& request,
                                             const RunOptions& options) const {
  VerifyMode mode = options.verify.value_or(options_.verify);
  if (mode == VerifyMode::off)
    refuse(
        "verification is off: nothing verified can be returned; use run_unverified, or verify = "
        "exact");
  std::set<std::pair<Site, std::int64_t>> wanted;
  for (const TensorId& id : selected_hooks(config(), options)) wanted.insert({id.site, id.layer});
  Verifier verifier(pass_->shared_weights(), request,
                    {.dtype = options_.dtype,
                     .keep =
                         [&](Site site, std::int64_t layer) {
                           return wanted.contains({site, layer});
                         },
                     .pos_slice = options.pos_slice,
                     .drift = options.drift,
                     .projections = mode == VerifyMode::checksum ? projections_ : nullptr,
                     .parallel = torch_parallel_for,
                     .matmul_precision = options_.matmul_precision});
  Computed computed = compute(request, &verifier, options);
  return std::move(verifier).finish(record_for(request, computed));
}

Array HookedTransformer::run_request_unverified(const Request& request,
                                                const RunOptions& options) const {
  return snapshot(compute(request, nullptr, options).pass.output);
}

Array HookedTransformer::forward(const Tokens& tokens, const RunOptions& options) const {
  if (options.verify.value_or(options_.verify) == VerifyMode::off)
    return run_request_unverified(request_for(tokens, options), options);
  RunOptions nothing_kept = options;
  nothing_kept.names = std::vector<std::string>{};
  return run_with_cache(tokens, nothing_kept).output();
}

UnverifiedCache HookedTransformer::run_unverified(const Tokens& tokens,
                                                  const RunOptions& options) const {
  Request request = request_for(tokens, options);
  Recorder recorder;
  Computed computed = compute(request, &recorder, options);
  Activations activations;
  for (const TensorId& id : selected_hooks(config(), options)) {
    auto found = recorder.tensors().find({id.site, id.layer, request.stages(id.site, id.layer)});
    if (found != recorder.tensors().end())
      activations.add(id, found->second, found->second.digest());
  }
  Array output = snapshot(computed.pass.output);
  std::string digest = output.digest();
  activations.set_output(request.rows.output(config()), std::move(output), std::move(digest));
  RunRecord record = record_for(request, computed);
  record.mode = name_of(VerifyMode::off);
  return UnverifiedCache(pass_->shared_weights(), std::move(activations), std::move(record),
                         Verdict{});
}

VerifiedCache HookedTransformer::verify_recorded(
    const Tokens& tokens, const std::map<std::string, Array>& recorded) const {
  Request request = request_for(tokens, {});
  return lenscpp::verify_recorded(pass_->shared_weights(), request, recorded,
                                  record_for(request, {}),
                                  {.dtype = options_.dtype,
                                   .parallel = torch_parallel_for,
                                   .matmul_precision = options_.matmul_precision});
}

}  // namespace lenscpp
