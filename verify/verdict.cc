// Verdicts in words and as JSON.
#include "verify/verdict.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace lenscpp {
namespace {

std::string multi_index(std::int64_t flat, const Shape& shape) {
  std::vector<std::int64_t> index(shape.size());
  for (std::size_t d = shape.size(); d-- > 0;) {
    index[d] = shape[d] == 0 ? 0 : flat % shape[d];
    flat = shape[d] == 0 ? 0 : flat / shape[d];
  }
  return to_string(index);
}

std::string describe(const Point& p) {
  if (!p.why.empty()) return fmt::format("{} ({}): {}", to_string(p), name_of(p.op), p.why);
  if (p.failed == 0)
    return fmt::format(
        "{} ({}): rounding errors are {:.3g} times what the dtype makes (limit {}){}", to_string(p),
        name_of(p.op), p.rms_ratio, kRmsLimit, p.hint.empty() ? "" : ": " + p.hint);
  return fmt::format(
      "{} ({}): {} of {} elements beyond their bound, the worst {:.3g} times it, at {} "
      "(device {:.6g}, reference {:.6g}){}",
      to_string(p), name_of(p.op), p.failed, p.compared, p.worst_ratio,
      multi_index(p.worst_index, p.shape), p.device_value, p.reference_value,
      p.hint.empty() ? "" : ": " + p.hint);
}

std::string fallen_back(const std::vector<std::string>& operators) {
  if (operators.empty()) return "";
  std::string names;
  for (const std::string& op : operators) names += (names.empty() ? "" : ", ") + op;
  return "; on the CPU instead of the device ran: " + names;
}

// JSON has no infinities; a ratio over a zero tolerance is one.
nlohmann::json number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

// Points of one site over all layers, as one line of the table.
struct Row {
  std::string name;
  Op op;
  std::int64_t points = 0, compared = 0, projected = 0, failed = 0;
  double worst = 0, rms = 0;
};

std::vector<Row> rows_by_site(const std::vector<Point>& points) {
  std::vector<Row> rows;
  std::map<std::string, std::size_t> index;
  for (const Point& p : points) {
    std::string name = info(p.id.site).per_layer ? "blocks.*." + std::string(info(p.id.site).name)
                                                 : std::string(info(p.id.site).name);
    if (p.id.stage > 0) name += p.op == Op::callback ? " (hooked)" : " (edited)";
    auto [it, added] = index.try_emplace(name, rows.size());
    if (added) rows.push_back({.name = name, .op = p.op});
    Row& row = rows[it->second];
    row.points += 1;
    row.compared += p.compared;
    row.projected += p.projected;
    row.failed += p.passed() ? 0 : std::max<std::int64_t>(1, p.failed);
    row.worst = std::max(row.worst, p.worst_ratio);
    row.rms = std::max(row.rms, p.rms_ratio);
  }
  return rows;
}

}  // namespace

std::string_view name_of(Status status) {
  switch (status) {
    case Status::verified:
      return "VERIFIED";
    case Status::invalid:
      return "INVALID";
    case Status::unverified:
      return "UNVERIFIED";
  }
  throw std::logic_error("[verdict] not a Status");
}

std::string_view name_of(VerifyMode mode) {
  switch (mode) {
    case VerifyMode::exact:
      return "exact";
    case VerifyMode::checksum:
      return "checksum";
    case VerifyMode::off:
      return "off";
  }
  throw std::logic_error("[verdict] not a VerifyMode");
}

VerifyMode verify_mode_from_name(std::string_view name) {
  for (VerifyMode mode : {VerifyMode::exact, VerifyMode::checksum, VerifyMode::off})
    if (name_of(mode) == name) return mode;
  throw std::invalid_argument("[verify] \"" + std::string(name) +
                              "\" is not a mode; allowed: exact, checksum, off");
}

const Point* Verdict::first_failure() const {
  auto it = std::ranges::find_if(points, [](const Point& p) { return !p.passed(); });
  return it == points.end() ? nullptr : &*it;
}

std::int64_t Verdict::n_compared() const {
  std::int64_t n = 0;
  for (const Point& p : points) n += p.compared;
  return n;
}

std::int64_t Verdict::n_projected() const {
  std::int64_t n = 0;
  for (const Point& p : points) n += p.projected;
  return n;
}

std::string Verdict::summary() const {
  switch (status) {
    case Status::verified:
      return fmt::format(
          "VERIFIED: {} elements at {} points compared with float64, all within their bounds{}{}{}",
          n_compared(), points.size(),
          n_projected() > 0
              ? fmt::format("; {} more only by random projections of their rows", n_projected())
              : "",
          recomputed.empty() ? "" : fmt::format("; {} points were not recorded", recomputed.size()),
          fallen_back(fallbacks));
    case Status::invalid: {
      const Point* first = first_failure();
      return "INVALID: " +
             (first == nullptr ? std::string("nothing was compared") : describe(*first)) +
             ". These activations are not the model's: do not use them; " +
             (advice.empty() ? "see what another device or dtype gives" : advice) +
             fallen_back(fallbacks) + ".";
    }
    case Status::unverified:
      return "UNVERIFIED: nothing was checked, so nothing may be concluded";
  }
  throw std::logic_error("[verdict] not a Status");
}

std::string Verdict::table() const {
  auto rows = rows_by_site(points);
  std::size_t width = 5;
  for (const Row& row : rows) width = std::max(width, row.name.size());
  std::string text;
  // A column of its own only where checksums stood in for comparisons.
  auto projected = [&](const auto& cell) {
    return mode == VerifyMode::checksum ? fmt::format(" {:>11}", cell) : "";
  };
  if (!rows.empty())
    text =
        fmt::format("{:<{}}  {:<11} {:>6} {:>11}{} {:>7} {:>12} {:>9}\n", "point", width, "op",
                    "points", "compared", projected("by checksum"), "failed", "error/bound", "rms");
  for (const Row& row : rows)
    text += fmt::format("{:<{}}  {:<11} {:>6} {:>11}{} {:>7} {:>12.3g} {:>9}\n", row.name, width,
                        name_of(row.op), row.points, row.compared, projected(row.projected),
                        row.failed, row.worst, row.rms > 0 ? fmt::format("{:.3g}", row.rms) : "-");
  return text + summary();
}

nlohmann::json to_json(const Point& p) {
  return {{"name", to_string(p)},
          {"op", name_of(p.op)},
          {"compared", p.compared},
          {"projected", p.projected},
          {"failed", p.failed},
          {"passed", p.passed()},
          {"worst_ratio", number(p.worst_ratio)},
          {"rms_ratio", number(p.rms_ratio)},
          {"residual", number(p.residual)},
          {"worst_index", multi_index(p.worst_index, p.shape)},
          {"device_value", number(p.device_value)},
          {"reference_value", number(p.reference_value)},
          {"why", p.why},
          {"hint", p.hint}};
}

nlohmann::json to_json(const Verdict& v) {
  nlohmann::json points = nlohmann::json::array();
  for (const Point& p : v.points) points.push_back(to_json(p));
  nlohmann::json drift;
  if (v.drift) {
    drift = nlohmann::json::array();
    for (const Drift::Row& row : v.drift->points)
      drift.push_back({{"name", row.name},
                       {"max_abs", number(row.max_abs)},
                       {"relative", number(row.relative)}});
  }
  const Point* first = v.first_failure();
  return {{"status", name_of(v.status)},
          {"mode", name_of(v.mode)},
          {"points", points},
          {"first_failure", first == nullptr ? nlohmann::json() : to_json(*first)},
          {"n_compared", v.n_compared()},
          {"n_projected", v.n_projected()},
          {"coverage", v.coverage},
          {"seconds", v.seconds},
          {"drift", drift},
          {"recomputed", v.recomputed},
          {"fallbacks", v.fallbacks},
          {"advice", v.advice},
          {"widest_gap", v.widest_gap},
          {"summary", v.summary()}};
}

}  // namespace lenscpp
