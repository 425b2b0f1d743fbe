// Limits and memory against a plan.
#include "verify/device/preflight.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace lenscpp {
namespace {

constexpr std::int64_t kTile = 16;  // products with fewer rows or columns take another kernel

std::int64_t measured(Measure measure, const PlannedTensor& t) {
  switch (measure) {
    case Measure::bytes:
      return t.bytes();
    case Measure::elements:
      return t.elements();
    case Measure::dimension:
      return t.shape.empty() ? 0 : *std::ranges::max_element(t.shape);
    case Measure::rank:
      return static_cast<std::int64_t>(t.shape.size());
    case Measure::table:
      return t.weight == "embed.W_E" || t.weight == "pos_embed.W_pos" ? t.elements() : 0;
    case Measure::terms:
    case Measure::product_batch:
    case Measure::columns:
      return 0;
  }
  throw std::logic_error("[preflight] not a Measure");
}

std::int64_t measured(Measure measure, const PlannedProduct& p) {
  if (measure == Measure::terms) return p.rows >= kTile && p.columns >= kTile ? p.terms : 0;
  if (measure == Measure::product_batch) return p.batch;
  return measure == Measure::columns ? p.columns : 0;
}

// Calls `beyond(limit, found)` for each limit that the tensor or product is beyond.
template <class Planned, class Beyond>
void hold(const Planned& planned, const DeviceLimits& limits, const Beyond& beyond) {
  for (const Limit& limit : limits.limits)
    if (std::int64_t found = measured(limit.measure, planned); !(found <= limit.most))
      beyond(limit, found);
}

// Everything of a run, on the device or not.
template <class VisitTensor, class VisitProduct>
void visit(const Weights& weights, const Request& request, const VisitTensor& tensor,
           const VisitProduct& product) {
  tensor(planned_mask(weights, request));
  for (const PlannedLink& link : plan_links(weights, request)) {
    for (const PlannedTensor& part : link.parts) tensor(part);
    tensor(link.output);
    for (const PlannedProduct& p : link.products) product(p);
  }
}

Violation violation_of(const PlannedTensor& t, const Request& request, const Limit& limit,
                       std::int64_t found) {
  return {.what = name_of(t, request),
          .shape = t.shape,
          .type = std::string(t.type.name),
          .found = found,
          .bytes = t.bytes(),
          .limit = limit};
}

bool fits(const Weights& weights, const Request& request, const DeviceLimits& limits) {
  bool all = true;
  auto beyond = [&](const Limit&, std::int64_t) { all = false; };
  visit(
      weights, request,
      [&](const PlannedTensor& t) {
        if (t.role != Role::host) hold(t, limits, beyond);
      },
      [&](const PlannedProduct& p) { hold(p, limits, beyond); });
  return all;
}

// The largest value up to `most` for which `holds`, which holds up to some value and not beyond.
template <class Holds>
std::int64_t largest(std::int64_t most, const Holds& holds) {
  if (most < 1) return 0;
  if (holds(most)) return most;
  std::int64_t good = 0, bad = most;
  while (bad - good > 1) {
    std::int64_t middle = good + (bad - good) / 2;
    (holds(middle) ? good : bad) = middle;
  }
  return good;
}

// A request as far as sizes depend on it.
Request sizes_of(const Request& request) {
  Request sizes = request;
  sizes.rows.tokens.clear();
  sizes.rows.positions.clear();
  return sizes;
}

bool one_token_fits(const Weights& weights, const Request& request, const DeviceLimits& limits) {
  Request one = sizes_of(request);
  one.rows.batch = one.rows.pos = 1;
  return fits(weights, one, limits);
}

std::string prompts(std::int64_t count) {
  return std::to_string(count) + (count == 1 ? " prompt" : " prompts");
}

// "; what fits: 20 prompts of 1024 tokens, or 22 of 950".
struct WhatFits {
  std::int64_t largest_batch, longest_prompt;
  bool one_token;
};
std::string in_words(const WhatFits& fits, std::int64_t batch, std::int64_t pos) {
  auto [most, longest, one_token] = fits;
  if (most == 0 && longest == 0)
    return one_token ? "; what fits: fewer prompts and shorter ones at once"
                     : "; not even one token fits: use the CPU";
  std::string text;
  if (most > 0) text = prompts(most) + " of " + std::to_string(pos) + " tokens";
  if (longest > 0)
    text += (text.empty() ? "" : ", or ") + prompts(batch) + " of " + std::to_string(longest);
  return "; what fits: " + text;
}

}  // namespace

std::string to_string(const Violation& v) {
  std::string size =
      v.bytes > 0 ? fmt::format(" of {}, {} ({} bytes)", v.type, size_in_words(v.bytes), v.bytes)
                  : "";
  std::string measured = v.limit.measure == Measure::bytes
                             ? ""
                             : fmt::format(", {} {}", name_of(v.limit.measure), v.found);
  std::string bug =
      v.limit.source.empty()
          ? ""
          : fmt::format(": beyond it this version of PyTorch computes wrong numbers ({})",
                        v.limit.source);
  return fmt::format("{} {}{}{}: limit \"{}\"{}", v.what, to_string(v.shape), size, measured,
                     v.limit.name, bug);
}

std::vector<Violation> weight_violations(const Weights& weights, const DeviceLimits& limits) {
  std::vector<Violation> found;
  for (const PlannedTensor& t : planned_weights(weights))
    hold(t, limits, [&](const Limit& limit, std::int64_t value) {
      found.push_back(violation_of(t, {}, limit, value));
    });
  return found;
}

std::vector<Violation> run_violations(const Weights& weights, const Request& request,
                                      const DeviceLimits& limits) {
  std::vector<Violation> found;
  if (limits.limits.empty()) return found;
  visit(
      weights, request,
      [&](const PlannedTensor& t) {
        if (t.role == Role::host) return;
        hold(t, limits, [&](const Limit& limit, std::int64_t value) {
          found.push_back(violation_of(t, request, limit, value));
        });
      },
      [&](const PlannedProduct& p) {
        hold(p, limits, [&](const Limit& limit, std::int64_t value) {
          found.push_back({.what = request.name_of(p.id) + " (product)",
                           .shape = {p.batch, p.rows, p.terms, p.columns},
                           .type = {},
                           .found = value,
                           .bytes = 0,
                           .limit = limit});
        });
      });
  return found;
}

std::int64_t largest_batch(const Weights& weights, const Request& request,
                           const DeviceLimits& limits) {
  Request sizes = sizes_of(request);
  return largest(request.rows.batch, [&](std::int64_t batch) {
    sizes.rows.batch = batch;
    return fits(weights, sizes, limits);
  });
}

std::int64_t longest_prompt(const Weights& weights, const Request& request,
                            const DeviceLimits& limits) {
  Request sizes = sizes_of(request);
  return largest(request.rows.pos, [&](std::int64_t pos) {
    sizes.rows.pos = pos;
    return fits(weights, sizes, limits);
  });
}

void require_weights_fit(const Weights& weights, const DeviceLimits& limits) {
  auto found = weight_violations(weights, limits);
  if (!found.empty())
    throw DeviceError("[preflight] " + limits.device +
                      " cannot hold this model: " + to_string(found[0]) + "; use the CPU");
}

void require_run_fits(const Weights& weights, const Request& request, const DeviceLimits& limits) {
  auto found = run_violations(weights, request, limits);
  if (found.empty()) return;
  const Rows& rows = request.rows;
  WhatFits fits{.largest_batch = largest_batch(weights, request, limits),
                .longest_prompt = longest_prompt(weights, request, limits),
                .one_token = one_token_fits(weights, request, limits)};
  throw DeviceError("[preflight] " + prompts(rows.batch) + " of " + std::to_string(rows.pos) +
                    " tokens on " + limits.device + ": " + to_string(found[0]) +
                    in_words(fits, rows.batch, rows.pos));
}

void require_memory(const std::string& what, std::int64_t needed,
                    const std::optional<AvailableMemory>& available) {
  if (!available) return;
  std::int64_t margin = margin_of(*available);
  if (sum_of(needed, margin) <= available->bytes) return;
  throw DeviceError(
      fmt::format("[preflight] {} needs {} ({} bytes) at its peak, and {} stay with the system; "
                  "there are {} ({})",
                  what, size_in_words(needed), needed, size_in_words(margin),
                  size_in_words(available->bytes), available->from));
}

// ---- asking without running ----

std::int64_t Preflight::host_bytes() const {
  return std::max(load.host(), sum_of(load.stays, run.host()));
}
std::int64_t Preflight::device_bytes() const { return sum_of(load.device(), run.device()); }

bool Preflight::memory_fits() const {
  auto fit = [](std::int64_t needed, const std::optional<AvailableMemory>& available) {
    return !available || sum_of(needed, margin_of(*available)) <= available->bytes;
  };
  return fit(host_bytes(), host) && fit(device_bytes(), device_memory);
}

const PlannedTensor* Preflight::largest() const {
  auto it = std::ranges::max_element(tensors, {}, [](const auto& t) { return t.second.bytes(); });
  return it == tensors.end() ? nullptr : &it->second;
}

Preflight preflight(const Config& config, const Request& request, const PreflightQuestion& q) {
  Config processed = config;
  if (applicable(q.load.processing, processed).fold_ln) processed.norm = folded(processed.norm);
  Weights weights = outline(processed, q.load.dtype);
  Preflight p{.model = q.model,
              .device = q.device,
              .dtype = q.load.dtype,
              .batch = request.rows.batch,
              .pos = request.rows.pos,
              .limits = q.limits,
              .tensors = {},
              .dtype_refused = q.dtype_refused,
              .violations = weight_violations(weights, q.limits),
              .largest_batch = largest_batch(weights, request, q.limits),
              .longest_prompt = longest_prompt(weights, request, q.limits),
              .one_token_fits = one_token_fits(weights, request, q.limits),
              .load = plan_load(config, q.load),
              .run = plan_run(weights, request, q.use),
              .host = q.host,
              .device_memory = q.device_memory};
  std::ranges::move(run_violations(weights, request, q.limits), std::back_inserter(p.violations));
  auto add = [&](const PlannedTensor& t) { p.tensors.emplace_back(name_of(t, request), t); };
  for (const PlannedTensor& t : planned_weights(weights)) add(t);
  visit(weights, request, add, [](const PlannedProduct&) {});
  return p;
}

namespace {

nlohmann::json to_json(const Limit& limit) {
  return {{"name", limit.name},
          {"measure", name_of(limit.measure)},
          {"most", limit.most},
          {"source", limit.source}};
}

nlohmann::json to_json(const MemoryPlan& plan) {
  nlohmann::json items = nlohmann::json::array();
  for (const MemoryPlan::Item& item : plan.items)
    items.push_back(
        {{"what", item.what}, {"host_bytes", item.host}, {"device_bytes", item.device}});
  return {{"host_bytes", plan.host()},
          {"device_bytes", plan.device()},
          {"mapped_bytes", plan.mapped},
          {"staying_bytes", plan.stays},
          {"items", items}};
}

nlohmann::json to_json(const std::optional<AvailableMemory>& available) {
  if (!available) return nullptr;
  return {{"bytes", available->bytes},
          {"margin_bytes", margin_of(*available)},
          {"from", available->from}};
}

std::string memory_in_words(const std::string& what, const MemoryPlan& plan) {
  std::string text = what + ": " + size_in_words(plan.host()) + " of the host's memory";
  if (plan.device() > 0) text += ", " + size_in_words(plan.device()) + " of the device's";
  std::string items;
  for (const MemoryPlan::Item& item : plan.items)
    if (std::int64_t bytes = sum_of(item.host, item.device); bytes > 0)
      items += (items.empty() ? "" : ", ") + item.what + " " + size_in_words(bytes);
  return text + (items.empty() ? "" : " (" + items + ")") + "\n";
}

std::string available_in_words(const std::string& what,
                               const std::optional<AvailableMemory>& available) {
  if (!available) return what + ": unknown\n";
  return fmt::format("{}: {} ({}), of which {} stay with the system\n", what,
                     size_in_words(available->bytes), available->from,
                     size_in_words(margin_of(*available)));
}

}  // namespace

nlohmann::json to_json(const Preflight& p) {
  nlohmann::json tensors = nlohmann::json::array(), violations = tensors, limits = tensors;
  for (const auto& [name, t] : p.tensors)
    tensors.push_back({{"name", name},
                       {"role", name_of(t.role)},
                       {"shape", t.shape},
                       {"dtype", t.type.name},
                       {"elements", t.elements()},
                       {"bytes", t.bytes()}});
  for (const Violation& v : p.violations)
    violations.push_back({{"what", v.what},
                          {"shape", v.shape},
                          {"dtype", v.type},
                          {"found", v.found},
                          {"limit", to_json(v.limit)},
                          {"message", to_string(v)}});
  for (const Limit& limit : p.limits.limits) limits.push_back(to_json(limit));
  return {{"model", p.model},
          {"device", p.device},
          {"dtype", name_of(p.dtype)},
          {"batch", p.batch},
          {"length", p.pos},
          {"fits", p.fits()},
          {"dtype_refused", p.dtype_refused ? nlohmann::json(*p.dtype_refused) : nlohmann::json()},
          {"violations", violations},
          {"largest_batch", p.largest_batch},
          {"longest_prompt", p.longest_prompt},
          {"load", to_json(p.load)},
          {"run", to_json(p.run)},
          {"host_memory", to_json(p.host)},
          {"device_memory", to_json(p.device_memory)},
          {"limits", limits},
          {"tensors", tensors}};
}

std::string in_words(const Preflight& p) {
  std::string text =
      fmt::format("{}: {} of {} tokens in {} on {}: {}\n", p.model, prompts(p.batch), p.pos,
                  name_of(p.dtype), p.device, p.fits() ? "fits" : "does not fit");
  if (p.dtype_refused) text += "refused: " + *p.dtype_refused + "\n";
  constexpr std::size_t kShown = 8;
  for (std::size_t i = 0; i < std::min(kShown, p.violations.size()); ++i)
    text += "beyond: " + to_string(p.violations[i]) + "\n";
  if (p.violations.size() > kShown)
    text += fmt::format("and {} more\n", p.violations.size() - kShown);
  if (p.largest_batch < p.batch || p.longest_prompt < p.pos)
    text += in_words(WhatFits{p.largest_batch, p.longest_prompt, p.one_token_fits}, p.batch, p.pos)
                .substr(2) +
            "\n";
  if (const PlannedTensor* t = p.largest()) {
    auto it =
        std::ranges::find_if(p.tensors, [t](const auto& entry) { return &entry.second == t; });
    text += fmt::format("the largest of {} tensors: {} {} of {}, {}\n", p.tensors.size(), it->first,
                        to_string(t->shape), t->type.name, size_in_words(t->bytes()));
  }
  if (p.limits.limits.empty() && p.device.substr(0, p.device.find(':')) != "cpu")
    text += "no limits known of " + p.device + "\n";
  if (p.load.items.empty())
    text += "the model is loaded\n";
  else
    text += memory_in_words("loading, at its peak", p.load);
  text += memory_in_words("the run, on top of the loaded model", p.run);
  text += available_in_words("available on the host", p.host);
  if (p.device_bytes() > 0) text += available_in_words("available on the device", p.device_memory);
  if (!p.memory_fits())
    text += "not enough memory: the host needs " + size_in_words(p.host_bytes()) +
            " for weights and run" +
            (p.device_bytes() > 0 ? ", the device " + size_in_words(p.device_bytes()) : "") + "\n";
  return text;
}

}  // namespace lenscpp
