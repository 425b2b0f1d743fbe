// The streaming verifier.
#include "verify/verifier.h"

#include <algorithm>
#include <chrono>
#include <cmath>

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
  std::int64_t extent = shape[d], outer = 1, inner = static_cast<std::int64_t>(size_of(value.dtype()));
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

}  // namespace

Verifier::Verifier(std::shared_ptr<const Weights> weights, const Request& request, VerifierOptions options)
    : weights_(std::move(weights)), request_(request), options_(std::move(options)), links_(wire(*weights_, request_)) {
  for (const Link& link : links_)
    for (const TensorId& input : link.inputs) readers_[input] += 1;
}

Shape Verifier::shape_of_link(const Link& link) const {
  return shape_of(link.output.site, weights_->config, request_.rows.extents());
}

void Verifier::take(const TensorId& id, const Array& value) {
  auto start = std::chrono::steady_clock::now();
  auto it = std::find_if(links_.begin() + static_cast<std::ptrdiff_t>(next_), links_.end(),
                         [&](const Link& link) { return link.output == id; });
  if (it == links_.end()) {
    points_.push_back({.id = id, .op = Op::given, .why = "computed where the reference expects no such tensor"});
  } else {
    skip_to(static_cast<std::size_t>(it - links_.begin()));
    check(*it, value);
    if (options_.drift) follow_in_float64(*it, value);
    retire_inputs(*it);
    next_ += 1;
  }
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Links that the device passed over: each is a failure of its own.
void Verifier::skip_to(std::size_t link) {
  for (; next_ < link; ++next_)
    points_.push_back({.id = links_[next_].output, .op = links_[next_].op, .why = "never computed"});
}

void Verifier::check(const Link& link, const Array& value) {
  Contract contract = contract_of(link.output.site, options_.dtype);
  Shape shape = shape_of_link(link);
  Point point{.id = link.output, .op = link.op, .shape = shape};
  DType stored = link.output.site == Site::tokens ? DType::i64 : contract.stored;
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
    point.why = "has shape " + to_string(value.shape()) + " of " + std::string(name_of(value.dtype())) +
                " instead of " + to_string(shape) + " of " + std::string(name_of(stored));
  if (point.why.empty()) point = check_exact(link, inputs, value, contract, options_.parallel);
  points_.push_back(std::move(point));

  if (auto readers = readers_.find(link.output); readers != readers_.end())
    live_[link.output] = {value, readers->second, !shaped};
  auto stages = static_cast<std::int64_t>(request_.plan.at(link.output.site, link.output.layer).size());
  if (link.output.stage == stages && shaped) keep(link.output, value);
}

void Verifier::follow_in_float64(const Link& link, const Array& value) {
  std::vector<Array> inputs;
  for (const TensorId& input : link.inputs) inputs.push_back(exact_.at(input));
  Array exact = compute(link, inputs, shape_of_link(link), options_.parallel);
  drift_.points.push_back(drift_row(to_string(link.output), value, exact));
  if (readers_.contains(link.output)) exact_[link.output] = exact;
}

void Verifier::retire_inputs(const Link& link) {
  for (const TensorId& input : link.inputs)
    if (auto live = live_.find(input); live != live_.end() && --live->second.readers == 0) {
      live_.erase(live);
      exact_.erase(input);
    }
}

void Verifier::keep(const TensorId& id, const Array& value) {
  if (info(id.site).presence == Presence::internal || !options_.keep || !options_.keep(id.site, id.layer)) return;
  kept_.add(id, options_.pos_slice ? sliced(value, id.site, *options_.pos_slice) : value);
}

VerifiedCache Verifier::finish(RunRecord record) && {
  skip_to(links_.size());
  Verdict verdict{.status = Status::verified, .mode = VerifyMode::exact, .points = std::move(points_), .seconds = seconds_};
  if (options_.drift) verdict.drift = std::move(drift_);
  std::int64_t total = 0;
  for (const Link& link : links_) total += numel(shape_of_link(link));
  verdict.coverage = total > 0 ? static_cast<double>(verdict.n_compared()) / static_cast<double>(total) : 0;
  if (verdict.first_failure() != nullptr || verdict.n_compared() != total || total == 0) verdict.status = Status::invalid;
  record.mode = name_of(verdict.mode);
  record.coverage = verdict.coverage;
  if (verdict.status != Status::verified)
    throw VerificationFailed(UnverifiedCache(weights_, std::move(kept_), std::move(record), std::move(verdict)));
  return VerifiedCache({weights_, std::move(kept_), std::move(record), std::move(verdict)});
}

}  // namespace lenscpp
