#include "patching/command/shards_in_words.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "patching/command/terminal.h"

namespace lenscpp::command {

namespace fs = std::filesystem;
using nlohmann::json;
using nlohmann::ordered_json;

namespace {

constexpr std::size_t kMostRows = 10;

// A name from a file, without what a terminal would obey.
std::string visible(const std::string& label) {
  std::string quoted = quoted_token(label);
  return quoted.substr(1, quoted.size() - 2);
}

// "layer 2, head 1" of a flat index.
std::string cell_name(const ShardFile::Grid& grid, std::int64_t cell) {
  std::string text;
  for (std::size_t a = grid.axes.size(); a-- > 0;) {
    const auto& labels = grid.axes[a].labels;
    auto n = std::ssize(labels);
    text = std::string(name_of(grid.axes[a].axis)) + " " +
           visible(labels[static_cast<std::size_t>(cell % n)]) + (text.empty() ? "" : ", ") + text;
    cell /= n;
  }
  return text;
}

std::string number(double value, int decimals = 3) {
  return std::isfinite(value) ? fixed(value, decimals) : "-";
}

std::string p_value(double q) { return q < 0.001 ? "< 0.001" : fixed(q, 3); }

std::string grid_table(const MergedFile& merged, const ShardFile::Grid& grid) {
  GridStatistics s = merged.statistics(grid.key);
  std::vector<std::int64_t> order(s.cells.size());
  std::iota(order.begin(), order.end(), 0);
  auto size = [&](std::int64_t c) {
    double mean = s.cells[static_cast<std::size_t>(c)].mean;
    return std::isnan(mean) ? -1 : std::abs(mean);
  };
  std::ranges::stable_sort(order, std::greater<>(), size);
  order.resize(std::min(order.size(), kMostRows));
  Table table({{grid.key},
               {"n", true},
               {"mean effect", true},
               {"± SE", true},
               {"ratio of means", true},
               {"95 %", true},
               {"same sign", true},
               {"q", true}});
  for (std::int64_t c : order) {
    const CellStatistics& cell = s.cells[static_cast<std::size_t>(c)];
    table.add({cell_name(grid, c), std::to_string(cell.n), number(cell.mean),
               number(cell.standard_error), number(cell.ratio_of_means),
               number(cell.ratio_low) + " to " + number(cell.ratio_high),
               std::isnan(cell.sign_consistency) ? "-" : percent(cell.sign_consistency),
               p_value(cell.q)});
  }
  return table.str() + std::to_string(s.significant) + " of " + std::to_string(s.cells.size()) +
         " cells differ from no effect (false discovery rate " +
         fixed(s.options.false_discovery_rate, 2) + ")" +
         (std::isnan(s.stability)
              ? "; one cluster: nothing can be said of its error\n"
              : "; the largest " + std::to_string(s.options.top) + " share " +
                    number(100 * s.stability, 0) + " % with those of resampled clusters\n");
}

std::string reasons_in_words(const json& reasons) {
  std::string text;
  for (const auto& [reason, n] : reasons.items())
    text += (text.empty() ? "" : ", ") + n.dump() + " " + reason;
  return text;
}

// {shards, finished, refused, missing} of a folder.
ordered_json counts_of(const fs::path& folder) {
  json plan = read_plan(folder);
  bool verified = plan.at("identity").at("verify") != name_of(VerifyMode::off);
  std::int64_t finished = 0, refused = 0, missing = 0;
  std::vector<std::string> damaged;
  for (const json& shard : plan.at("shards")) {
    auto name = shard.at("name").get<std::string>();
    if (fs::exists(shard_path(folder, name))) try {
        fs::path path = shard_path(folder, name);
        (verified ? ShardFile::open(path) : ShardFile::open_of_any_status(path)).verify_all();
        ++finished;
      } catch (const std::exception& e) {
        damaged.push_back(e.what());
      }
    else if (fs::exists(refused_path(folder, name)))
      ++refused;
    else
      ++missing;
  }
  auto shards = std::ssize(plan.at("shards"));
  return {{"experiments", plan.at("experiments")},
          {"shards", shards},
          {"finished", finished},
          {"refused", refused},
          {"missing", missing},
          {"damaged", damaged},
          {"identity", plan.at("identity")}};
}

}  // namespace

std::string duration_in_words(double seconds) {
  auto s = static_cast<std::int64_t>(std::llround(seconds));
  if (s < 60) return std::to_string(s) + " s";
  if (s < 3600) return std::to_string(s / 60) + " min";
  return std::to_string(s / 3600) + " h " + std::to_string(s % 3600 / 60) + " min";
}

std::string progress_in_words(const BatchProgress& p) {
  std::string text = "shard " + std::to_string(std::min(p.shards_done + 1, p.shards)) + " of " +
                     std::to_string(p.shards) + ": " + std::to_string(p.patches_done) + " of " +
                     std::to_string(p.patches) + " patches";
  if (p.patches_a_second > 0) text += ", " + fixed(p.patches_a_second, 0) + " a second";
  if (p.seconds_left) text += ", " + duration_in_words(*p.seconds_left) + " left";
  if (p.refused > 0) text += ", " + std::to_string(p.refused) + " refused";
  return text;
}

std::string merged_in_words(const MergedFile& merged) {
  const json &about = merged.about(), &verdict = about.at("verdict");
  std::string text = std::to_string(merged.n()) + " experiments, " +
                     about.at("identity").at("direction").get<std::string>() + "; " +
                     verdict.at("cells").dump() + " patches in " + verdict.at("runs").dump() +
                     " runs, " + verdict.at("n_compared").dump() + " elements compared and " +
                     verdict.at("n_projected").dump() + " more by checksums of their rows\n";
  if (!about.at("reasons").empty())
    text += "rejected: " + reasons_in_words(about.at("reasons")) + "\n";
  if (!about.at("missing").empty())
    text += styled(std::to_string(about.at("missing").size()) + " shards are missing",
                   Style::doubtful) +
            "\n";
  for (const ShardFile::Grid& grid : merged.grids()) text += "\n" + grid_table(merged, grid);
  return text;
}

ordered_json merged_to_json(const MergedFile& merged) {
  ordered_json document = merged.about();
  document.erase("provenance");
  for (const ShardFile::Grid& grid : merged.grids())
    document["statistics"][grid.key] = to_json(merged.statistics(grid.key));
  return document;
}

ordered_json folder_to_json(const fs::path& folder) { return counts_of(folder); }

std::string folder_in_words(const fs::path& folder, const ordered_json& c) {
  return styled(folder.string(), Style::bold) + ": a batch of " + c.at("experiments").dump() +
         " experiments; " + c.at("finished").dump() + " of " + c.at("shards").dump() +
         " shards there, " + c.at("refused").dump() + " refused, " + c.at("missing").dump() +
         " missing\n" +
         std::accumulate(c.at("damaged").begin(), c.at("damaged").end(), std::string(),
                         [](std::string text, const ordered_json& what) {
                           return std::move(text) + styled("damaged", Style::bad) + " " +
                                  what.get<std::string>() + "\n";
                         });
}

}  // namespace lenscpp::command
