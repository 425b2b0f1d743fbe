// Counting, and saying it.
#include "verify/device/drill.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "verify/device/device_faults.h"

namespace lenscpp {
namespace {

constexpr std::size_t kUnseenShown = 12, kLongestHint = 40;

std::string without_numbers(const std::string& text) {
  std::string result;
  for (char c : text) {
    bool digit = std::isdigit(static_cast<unsigned char>(c)) != 0;
    if (!digit)
      result += c;
    else if (result.empty() || result.back() != '#')
      result += '#';
  }
  return result;
}

std::string percent_of(std::int64_t part, std::int64_t whole) {
  if (whole == 0) return "-";
  // Never rounded up to all of them.
  double share = std::floor(1000 * static_cast<double>(part) / static_cast<double>(whole)) / 10;
  return part == whole ? "100 %" : fmt::format("{:.1f} %", share);
}

std::string times_in_words(double times) {
  return std::isfinite(times) ? fmt::format("{:.3g}", times) : "inf";
}

void count(DrillRow& row, const DrillRun& run) {
  row.runs += 1;
  row.fired += run.fired();
  row.threw += run.ended();
  if (!run.fired() || run.ended()) return;
  row.harmful += run.harmful();
  row.between += run.judgement.harm == Harm::between;
  row.harmless += run.judgement.harm == Harm::harmless;
  row.refused += run.refused;
  row.harmful_refused += run.refused && run.harmful();
  row.named += run.named_right();
}

std::string aligned(const std::vector<std::vector<std::string>>& lines, std::size_t left) {
  std::vector<std::size_t> widths;
  for (const auto& line : lines) {
    widths.resize(std::max(widths.size(), line.size()));
    for (std::size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
  }
  std::string text;
  for (const auto& line : lines) {
    std::string row;
    for (std::size_t c = 0; c < line.size(); ++c)
      row += (c == 0 ? "" : "  ") + (c < left || c + 1 == widths.size()
                                         ? fmt::format("{:<{}}", line[c], widths[c])
                                         : fmt::format("{:>{}}", line[c], widths[c]));
    text += row.substr(0, row.find_last_not_of(' ') + 1) + "\n";
  }
  return text;
}

// "S1 ignores_weight_strides:transposed=1": the catalogue's id and what it is called.
std::string titled(const std::string& fault) {
  std::string id = fault.substr(0, fault.find(':'));
  if (!is_device_fault(id)) return fault;
  return id + " " + std::string(device_fault_info(id).name) + fault.substr(id.size());
}

std::vector<std::string> cells(const DrillRow& row) {
  std::string hint = row.hint;
  if (hint.size() > kLongestHint) hint = hint.substr(0, kLongestHint - 3) + "...";
  return {titled(row.fault),
          fmt::format("{}", row.runs),
          fmt::format("{}", row.fired),
          fmt::format("{}", row.harmful),
          fmt::format("{}", row.between),
          fmt::format("{}", row.harmless),
          fmt::format("{}", row.refused),
          percent_of(row.harmful_refused, row.harmful),
          percent_of(row.named, row.refused),
          hint};
}

std::string in_words(const DrillRun& run) {
  const Judgement& j = run.judgement;
  return fmt::format(
      "{} at {}, {}, {} x {}: {}; changed by {:.2g} of the tensor's largest, {} "
      "times what honest runs differ by ({}), {}",
      titled(run.fault), to_string(run.place), name_of(run.dtype), run.batch, run.pos,
      name_of(j.harm), j.relative, times_in_words(j.times), j.worst,
      run.projected ? "not compared exactly (checksum)"
                    : fmt::format("{:.2g} of the bound", run.of_bound));
}

}  // namespace

bool DrillRun::named_right() const {
  return refused && judgement.first.has_value() && named == to_string(*judgement.first);
}

std::vector<DrillRow> DrillReport::rows() const {
  std::vector<DrillRow> rows;
  std::map<std::string, std::size_t> index;
  std::vector<std::map<std::string, std::int64_t>> hints;
  for (const DrillRun& run : runs) {
    auto [found, added] = index.try_emplace(run.fault, rows.size());
    if (added) {
      rows.push_back({.fault = run.fault, .in_device = run.in_device});
      hints.emplace_back();
    }
    count(rows[found->second], run);
    if (!run.hint.empty()) hints[found->second][without_numbers(run.hint)] += 1;
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    auto most = std::ranges::max_element(hints[i], {}, [](const auto& h) { return h.second; });
    if (most != hints[i].end()) rows[i].hint = most->first;
  }
  return rows;
}

DrillRow DrillReport::total() const {
  DrillRow total{.fault = "all"};
  for (const DrillRun& run : runs) count(total, run);
  return total;
}

DrillMap DrillReport::map() const {
  DrillMap map;
  for (const DrillRow& row : rows()) map.faults.push_back(row.fault);
  std::vector<Site> sites;
  for (const SiteInfo& row : all_sites())
    if (std::ranges::any_of(runs, [&](const DrillRun& r) { return r.place.site == row.site; })) {
      sites.push_back(row.site);
      map.sites.emplace_back(row.name);
    }
  std::vector<std::int64_t> harmful(map.faults.size() * sites.size()), refused(harmful.size());
  for (const DrillRun& run : runs) {
    if (!run.fired() || !run.harmful()) continue;
    auto row =
        static_cast<std::size_t>(std::ranges::find(map.faults, run.fault) - map.faults.begin());
    auto column =
        static_cast<std::size_t>(std::ranges::find(sites, run.place.site) - sites.begin());
    harmful[row * sites.size() + column] += 1;
    refused[row * sites.size() + column] += run.refused;
  }
  for (std::size_t i = 0; i < harmful.size(); ++i)
    map.refused.push_back(harmful[i] == 0
                              ? std::numeric_limits<double>::quiet_NaN()
                              : static_cast<double>(refused[i]) / static_cast<double>(harmful[i]));
  return map;
}

std::vector<const DrillRun*> DrillReport::missed() const {
  std::vector<const DrillRun*> missed;
  for (const DrillRun& run : runs)
    if (run.harmful() && !run.refused) missed.push_back(&run);
  return missed;
}

std::vector<const DrillRun*> DrillReport::unseen() const {
  std::vector<const DrillRun*> unseen;
  for (const DrillRun& run : runs)
    if (!run.ended() && run.judgement.harm != Harm::harmless && !run.refused)
      unseen.push_back(&run);
  std::ranges::stable_sort(unseen, std::ranges::greater(),
                           [](const DrillRun* run) { return run->judgement.times; });
  return unseen;
}

std::int64_t DrillReport::false_alarms() const {
  return std::ranges::count_if(runs, [](const DrillRun& run) {
    return run.refused && run.judgement.harm == Harm::harmless;
  });
}

std::string DrillReport::summary() const {
  DrillRow all = total();
  std::string text = fmt::format(
      "{} runs, in {} of which a fault fired: {} harmful, {} between, {} harmless. {} refused: {} "
      "of the harmful ones; the first wrong tensor named in {} of them.",
      all.runs, all.fired, all.harmful, all.between, all.harmless, all.refused,
      percent_of(all.harmful_refused, all.harmful), percent_of(all.named, all.refused));
  if (all.threw > 0) text += fmt::format(" {} ended with an error of the device.", all.threw);
  if (false_alarms() > 0)
    text += fmt::format(" {} REFUSED WITHOUT ANY DIFFERENCE.", false_alarms());
  if (all.harmful == 0) text += " No fault did harm: nothing was shown.";
  return text;
}

std::string DrillReport::table() const {
  std::vector<std::vector<std::string>> lines{{"fault", "runs", "fired", "harmful", "between",
                                               "harmless", "refused", "of harmful", "named right",
                                               "hint"}};
  for (const DrillRow& row : rows())
    if (row.fired > 0) lines.push_back(cells(row));
  lines.push_back(cells(total()));
  std::string text = aligned(lines, 1) + "\n";
  auto list = [&](const std::string& title, const std::vector<const DrillRun*>& found) {
    if (found.empty()) return;
    text += title + ":\n";
    for (std::size_t i = 0; i < std::min(found.size(), kUnseenShown); ++i)
      text += "  " + in_words(*found[i]) + "\n";
    if (found.size() > kUnseenShown)
      text += fmt::format("  and {} more\n", found.size() - kUnseenShown);
  };
  list("HARMFUL AND NOT REFUSED", missed());
  list("Changed the run and not refused", unseen());
  if (!never_fired.empty()) text += "Never fired, or not run:\n";
  for (const auto& [fault, why] : never_fired) text += "  " + titled(fault) + ": " + why + "\n";
  return text + summary() + "\n";
}

namespace {

// JSON has no infinities.
nlohmann::json number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

nlohmann::json to_json(const DrillRow& row) {
  return {{"fault", row.fault},
          {"in_device", row.in_device},
          {"runs", row.runs},
          {"fired", row.fired},
          {"harmful", row.harmful},
          {"between", row.between},
          {"harmless", row.harmless},
          {"refused", row.refused},
          {"hint", row.hint},
          {"threw", row.threw},
          {"harmful_refused", row.harmful_refused},
          {"named", row.named}};
}

}  // namespace

nlohmann::json to_json(const DrillRun& run) {
  const Judgement& j = run.judgement;
  return {{"fault", run.fault},
          {"in_device", run.in_device},
          {"place", to_string(run.place)},
          {"site", info(run.place.site).name},
          {"dtype", name_of(run.dtype)},
          {"batch", run.batch},
          {"pos", run.pos},
          {"changed", run.changed},
          {"fired_at", run.fired_at},
          {"harm", run.ended() ? "ended" : name_of(j.harm)},
          {"times", run.ended() ? nlohmann::json() : number(j.times)},
          {"worst", j.worst},
          {"first_changed", j.first ? nlohmann::json(to_string(*j.first)) : nlohmann::json()},
          {"relative", run.ended() ? nlohmann::json() : number(j.relative)},
          {"refused", run.refused},
          {"error", run.error},
          {"named", run.named},
          {"named_right", run.named_right()},
          {"hint", run.hint},
          {"of_bound", run.ended() || run.projected ? nlohmann::json() : number(run.of_bound)}};
}

nlohmann::json to_json(const DrillSetting& setting) {
  return {{"device", setting.device}, {"dtype", name_of(setting.dtype)},  {"batch", setting.batch},
          {"pos", setting.pos},       {"spread", number(setting.spread)}, {"where", setting.where}};
}

nlohmann::json to_json(const DrillReport& report) {
  nlohmann::json rows = nlohmann::json::array(), runs = rows, never = rows, shares = rows,
                 settings = rows;
  for (const DrillRow& row : report.rows()) rows.push_back(to_json(row));
  for (const DrillRun& run : report.runs) runs.push_back(to_json(run));
  for (const DrillSetting& setting : report.settings) settings.push_back(to_json(setting));
  for (const auto& [fault, why] : report.never_fired)
    never.push_back({{"fault", fault}, {"why", why}});
  DrillMap map = report.map();
  for (double share : map.refused)
    shares.push_back(std::isnan(share) ? nlohmann::json() : nlohmann::json(share));
  return {{"model", report.model},
          {"device", report.device},
          {"seed", report.seed},
          {"honest_runs", report.honest_runs},
          {"seconds", report.seconds},
          {"summary", report.summary()},
          {"total", to_json(report.total())},
          {"missed", report.missed().size()},
          {"false_alarms", report.false_alarms()},
          {"settings", settings},
          {"rows", rows},
          {"never_fired", never},
          {"map", {{"faults", map.faults}, {"sites", map.sites}, {"refused", shares}}},
          {"runs", runs}};
}

}  // namespace lenscpp
