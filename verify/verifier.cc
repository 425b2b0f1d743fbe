// The streaming verifier.
#include "verify/verifier.h"

#include <algorithm>
#include <chrono>
#include <cmath>

#include "verify/advice.h"
#include "verify/reference/spans.h"
#include "verify/reference/wiring.h"

namespace lenscpp {
namespace {

// Positions `keep` of the axis `pos` or `query`, copied out.
Array sliced(const Array& value, Site site, const std::vector<std::int64_t>& keep) {
  auto axes = info(site).axes;
  auto axis = std::ranges::find_if(axes, [](Axis a) { return a == Axis::pos || a == Axis::query; });
  if (axis == axes.end()) return value;
  auto d = static_cast<std::size_t>(axis - axes.begin());
  Shape shape = value.shape();
  std::int64_t extent = shape[d], outer = 1,
               inner = static_cast<std::int64_t>(size_of(value.dtype()));
  for (std::size_t i = 0; i < d; ++i) outer *= shape[i];
  for (std::size_t i = d + 1; i < shape.size(); ++i) inner *= shape[i];
  shape[d] = static_cast<std::int64_t>(keep.size());
  MutableArray result(shape, value.dtype());
  std::byte* to = result.bytes();
  for (std::int64_t o = 0; o < outer; ++o)
    for (std::int64_t p : keep) {
      std::copy_n(value.bytes() + (o * extent + p) * inner, inner, to);
      to += inner;
    }
  return std::move(result).freeze();
}

Drift::Row drift_row(const std::string& name, const Array& value, const Array& exact) {
  Drift::Row row{.name = name, .max_abs = 0, .relative = 0};
  double error = 0, norm = 0;
  for (std::int64_t i = 0; i < value.numel(); ++i) {
    double e = exact[i];
    if (std::isinf(e)) continue;
    double d = std::abs(value[i] - e);
    if (!(d <= row.max_abs)) row.max_abs = d;
    error += d * d;
    norm += e * e;
  }
  row.relative = norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
  return row;
}

// What a callback changed, in float64; what it left alone goes on as the float64 run has it, so
// that looking at a tensor does not forget the drift before it.
Array where_changed(const Array& before, const Array& after, const Array& exact) {
  MutableArray result(exact);
  for (std::int64_t i = 0; i < after.numel(); ++i)
    if (after[i] != before[i]) result.set(i, after[i]);
  return std::move(result).freeze();
}

}  // namespace

Verifier::Verifier(std::shared_ptr<const Weights> weights, const Request& request,
                   VerifierOptions options)
    : weights_(std::move(weights)),
      request_(request),
      options_(std::move(options)),
      links_(wire(*weights_, request_)) {
  for (const Link& link : links_)
    for (const TensorId& input : link.inputs) readers_[input] += 1;
}

Shape Verifier::shape_of_link(const Link& link) const {
  return shape_of(link.output.site, weights_->config,
                  request_.rows.extents(link.output.site, link.output.layer));
}

void Verifier::report(Point point) {
  point.name = request_.name_of(point.id);
  points_.push_back(std::move(point));
}

void Verifier::take_returned(const TensorId& id, const Array& value) {
  for (Link& link : links_)
    if (link.op == Op::callback && link.output == id) link.given = value;
}

void Verifier::take(const TensorId& id, const Array& value) {
  auto start = std::chrono::steady_clock::now();
  auto it = std::find_if(links_.begin() + static_cast<std::ptrdiff_t>(next_), links_.end(),
                         [&](const Link& link) { return link.output == id; });
  if (it == links_.end()) {
    report(
        {.id = id, .op = Op::given, .why = "computed where the reference expects no such tensor"});
  } else {
    skip_to(static_cast<std::size_t>(it - links_.begin()));
    check(*it, value);
    if (options_.drift) follow_in_float64(*it, value);
    retire_inputs(*it);
    if (it->op == Op::callback) it->given = {};
    next_ += 1;
  }
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Links that the device passed over: each is a failure of its own.
void Verifier::skip_to(std::size_t link) {
  for (; next_ < link; ++next_)
    report({.id = links_[next_].output, .op = links_[next_].op, .why = "never computed"});
}

void Verifier::check(const Link& link, const Array& value) {
  Contract contract = contract_of(link.output.site, options_.dtype, options_.matmul_precision);
  Shape shape = shape_of_link(link);
  std::string digest = value.digest();  // before the check: what is written later shows
  Point point{.id = link.output, .op = link.op, .shape = shape};
  DType stored = contract.stored;
  std::vector<Array> inputs;
  for (const TensorId& input : link.inputs) {
    auto live = live_.find(input);
    if (live == live_.end() || live->second.failed)
      point.why = "reads " + to_string(input) + ", which was not computed as it should";
    else
      inputs.push_back(live->second.value);
  }
  bool shaped = value.shape() == shape && value.dtype() == stored;
  if (!shaped)
    point.why = "has shape " + to_string(value.shape()) + " of " +
                std::string(name_of(value.dtype())) + " instead of " + to_string(shape) + " of " +
                std::string(name_of(stored));
  if (link.op == Op::callback && (link.given.shape() != shape || link.given.dtype() != stored))
    point.why = "is what a hook returned, but nobody told what that was";
  if (point.why.empty())
    point = options_.projections ? check_checksum(link, inputs, value, contract,
                                                  *options_.projections, options_.parallel)
                                 : check_exact(link, inputs, value, contract, options_.parallel);
  // Bit by bit: among equal numbers only the signs of zeros can differ.
  if (link.op == Op::callback && point.passed()) {
    for (std::int64_t i = 0; i < value.numel(); ++i)
      point.failed += std::signbit(value[i]) != std::signbit(link.given[i]);
    if (point.failed > 0) point.why = "has zeros of another sign than what the hook returned";
  }
  report(std::move(point));

  if (auto readers = readers_.find(link.output); readers != readers_.end())
    live_[link.output] = {value, digest, readers->second, !shaped};
  if (link.output.stage == request_.stages(link.output.site, link.output.layer) && shaped)
    keep(link.output, value, digest);
  if (link.output == request_.output(weights_->config) && shaped)
    kept_.set_output(link.output, value, digest);
}

void Verifier::follow_in_float64(const Link& link, const Array& value) {
  std::vector<Array> inputs;
  for (const TensorId& input : link.inputs) {
    auto known = exact_.find(input);
    if (known == exact_.end()) return;  // behind a tensor that the device never computed
    inputs.push_back(known->second);
  }
  Array exact;
  if (link.op == Op::callback) {
    const Array& before = live_.at(link.inputs[0]).value;
    if (before.shape() != shape_of_link(link) || link.given.shape() != before.shape()) return;
    exact = where_changed(before, link.given, inputs[0]);
  } else {
    exact = compute(link, inputs, shape_of_link(link), options_.parallel);
  }
  drift_.points.push_back(drift_row(request_.name_of(link.output), value, exact));
  if (readers_.contains(link.output)) exact_[link.output] = exact;
}

void Verifier::retire_inputs(const Link& link) {
  for (const TensorId& input : link.inputs)
    if (auto live = live_.find(input); live != live_.end() && --live->second.readers == 0) {
      // The device read this very memory until now: had it changed, both sides would have read on.
      if (live->second.value.digest() != live->second.digest)
        report({.id = input, .op = link.op, .why = "was overwritten after it was checked"});
      live_.erase(live);
      exact_.erase(input);
    }
}

void Verifier::keep(const TensorId& id, const Array& value, const std::string& digest) {
  if (info(id.site).presence == Presence::internal || !options_.keep ||
      !options_.keep(id.site, id.layer))
    return;
  if (!options_.pos_slice) return kept_.add(id, value, digest);
  Array part = sliced(value, id.site, *options_.pos_slice);
  kept_.add(id, part, part.digest());
}

VerifiedCache Verifier::finish(RunRecord record) && {
  skip_to(links_.size());
  if (options_.pos_slice) record.kept_pos = *options_.pos_slice;
  Verdict verdict{.status = Status::verified,
                  .mode = options_.projections ? VerifyMode::checksum : VerifyMode::exact,
                  .points = std::move(points_),
                  .seconds = seconds_,
                  .fallbacks = record.fallbacks};
  if (options_.drift) verdict.drift = std::move(drift_);
  std::int64_t total = 0;
  for (const Link& link : links_) total += numel(shape_of_link(link));
  verdict.coverage =
      total > 0 ? static_cast<double>(verdict.n_compared()) / static_cast<double>(total) : 0;
  if (verdict.first_failure() != nullptr || verdict.n_compared() + verdict.n_projected() != total ||
      total == 0)
    verdict.status = Status::invalid;
  if (verdict.first_failure() != nullptr)
    verdict.advice = advice_for(*verdict.first_failure(), record);
  record.mode = name_of(verdict.mode);
  if (options_.projections) record.seed = options_.projections->seed();
  record.coverage = verdict.coverage;
  if (verdict.status != Status::verified)
    throw VerificationFailed(
        UnverifiedCache(weights_, std::move(kept_), std::move(record), std::move(verdict)));
  return VerifiedCache({weights_, std::move(kept_), std::move(record), std::move(verdict)});
}

namespace {

// What is known of a tensor of a recorded run: its value, and how far the recorder's may be from
// it.
struct Known {
  Array value;
  Array error;  // empty for what was recorded: that is the value
};

Array sum(const Array& a, const Array& b) {
  if (a.empty()) return b;
  MutableArray result(a.shape(), DType::f64);
  for (std::int64_t i = 0; i < a.numel(); ++i) result.set(i, a[i] + b[i]);
  return std::move(result).freeze();
}

// How far what was not recorded may have moved a tensor, as a share of its size (root mean
// squares). Throws where that is so far that the comparison would mean nothing.
double gap_before(const Link& link, const Array& reached, const std::vector<Array>& inputs,
                  const std::vector<Array>& errors) {
  if (reached.empty()) return 0;
  Array exact = compute(link, inputs, reached.shape(), serial_for);
  double widening = 0, size = 0;
  for (std::int64_t i = 0; i < reached.numel(); ++i) {
    widening += reached[i] * reached[i];
    if (std::isfinite(exact[i])) size += exact[i] * exact[i];
  }
  double share = std::sqrt(widening / size);
  if (share <= kWidestGap) return share;
  std::string missing;
  for (std::size_t k = 0; k < errors.size(); ++k)
    if (!errors[k].empty()) missing += (missing.empty() ? "" : ", ") + to_string(link.inputs[k]);
  throw std::invalid_argument(
      "[verify] " + to_string(link.output) +
      " cannot be checked from what was recorded: the roundings in between may reach " +
      std::to_string(100 * share) + " % of it (allowed: " + std::to_string(100 * kWidestGap) +
      " %); record more of what it is made from, such as " + missing);
}

std::map<TensorId, Array> by_id(const Weights& weights, Request& request,
                                const std::map<std::string, Array>& recorded, DType dtype) {
  std::map<TensorId, Array> tensors;
  for (const auto& [name, value] : recorded) {
    TensorId id = find_hook(name, {}, {}, weights.config);
    Shape shape = shape_of(id.site, weights.config, request.rows.extents(id.site, id.layer));
    DType stored = stored_dtype(id.site, dtype);
    if (value.shape() != shape || value.dtype() != stored)
      throw std::invalid_argument(
          "[verify] " + name + " is " + std::string(name_of(value.dtype())) + " " +
          to_string(value.shape()) + "; needed for these tokens: " + std::string(name_of(stored)) +
          " " + to_string(shape));
    if (!request.rows.reach(id.site, id.layer))
      throw std::invalid_argument("[verify] " + name +
                                  " is not part of a run that ends before layer " +
                                  std::to_string(request.rows.end_layer));
    if (info(id.site).presence == Presence::on_demand)
      request.on_demand.insert({id.site, id.layer});
    if (!tensors.emplace(id, value).second)
      throw std::invalid_argument("[verify] " + hook_name(id.site, id.layer) +
                                  " is recorded twice, as " + name + " and otherwise");
  }
  if (tensors.empty())
    throw std::invalid_argument("[verify] nothing was recorded: there is nothing to check");
  return tensors;
}

}  // namespace

VerifiedCache Verifier::check_recorded(std::shared_ptr<const Weights> weights, Request request,
                                       const std::map<std::string, Array>& recorded,
                                       RunRecord record, const RecordedOptions& options) {
  auto start = std::chrono::steady_clock::now();
  if (!request.plan.empty() || !request.callbacks.empty())
    throw std::invalid_argument(
        "[verify] a recorded run with edits or hooks cannot be checked: record the clean run");
  auto tensors = by_id(*weights, request, recorded, options.dtype);
  request.validate(weights->config);
  Verdict verdict{.status = Status::verified, .mode = VerifyMode::exact};
  Activations kept;
  std::map<TensorId, Known> known;
  std::int64_t total = 0;
  auto links = wire(*weights, request);
  for (const Link& link : links) {
    Shape shape = shape_of(link.output.site, weights->config,
                           request.rows.extents(link.output.site, link.output.layer));
    Contract contract = contract_of(link.output.site, options.dtype, options.matmul_precision);
    total += numel(shape);
    std::vector<Array> inputs, errors;
    for (const TensorId& input : link.inputs) {
      inputs.push_back(known.at(input).value);
      errors.push_back(known.at(input).error);
    }
    Array reached =
        propagate(link, inputs, errors, shape);  // by the roundings of what was not recorded
    if (auto found = tensors.find(link.output); found != tensors.end()) {
      verdict.widest_gap = std::max(verdict.widest_gap, gap_before(link, reached, inputs, errors));
      std::string digest = found->second.digest();
      verdict.points.push_back(
          check_exact(link, inputs, found->second, contract, options.parallel, reached));
      known[link.output] = {found->second, {}};
      kept.add(link.output, found->second, digest);
      if (link.output == request.output(weights->config))
        kept.set_output(link.output, found->second, digest);
    } else {
      verdict.recomputed.push_back(to_string(link.output));
      Array own = tolerances(link, inputs, shape, contract);
      known[link.output] = {compute(link, inputs, shape, options.parallel), sum(reached, own)};
    }
  }
  verdict.coverage = static_cast<double>(verdict.n_compared()) / static_cast<double>(total);
  verdict.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  if (verdict.first_failure() != nullptr || verdict.n_compared() == 0)
    verdict.status = Status::invalid;
  record.mode = name_of(verdict.mode);
  record.coverage = verdict.coverage;
  if (verdict.status != Status::verified)
    throw VerificationFailed(
        UnverifiedCache(weights, std::move(kept), std::move(record), std::move(verdict)));
  return VerifiedCache({weights, std::move(kept), std::move(record), std::move(verdict)});
}

VerifiedCache verify_recorded(std::shared_ptr<const Weights> weights, const Request& request,
                              const std::map<std::string, Array>& recorded, RunRecord record,
                              const RecordedOptions& options) {
  return Verifier::check_recorded(std::move(weights), request, recorded, std::move(record),
                                  options);
}

}  // namespace lenscpp
