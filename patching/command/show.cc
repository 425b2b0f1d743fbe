// lenscpp show: what is in a saved file, and whether it may be used.
#include <algorithm>
#include <limits>

#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/shards_in_words.h"
#include "patching/command/terminal.h"
#include "verify/store/sealed_file.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kWorstPoints = 5;
constexpr const char* kFooter = R"(Examples:
  lenscpp show run.h5
  lenscpp show run.h5 --json
  lenscpp show ioi
  lenscpp show ioi/merged.h5

A file, or the folder of a batch, of which the shards are checked and counted. Every value is read and compared with its digest. Exit status 3: the file may not be used, and which object says so.
)";

struct Options {
  std::string file;
  bool json = false;
};

// One file, and what became of the attempt to open it as one that may be used.
class Shown {
 public:
  explicit Shown(const std::string& path) : file_(opened(path)) {}
  ExitStatus report(const Options& o) const;

 private:
  SealedFile opened(const std::string& path);
  void describe(const SealedFile& file);
  ordered_json to_json() const;
  std::string in_words() const;
  std::string run_in_words() const;

  std::string refusal_;                // empty: it may be used
  std::string batch_words_;            // of a merged batch that may be used
  nlohmann::ordered_json statistics_;  // of it
  nlohmann::json run_;  // of a run that can be read: {record, remarks, verdict, strings, points}
  std::string run_words_;
  SealedFile file_;
};

// What a shard says of itself.
std::string shard_in_words(const nlohmann::json& shard) {
  const nlohmann::json &verdict = shard.at("verdict"), &from = shard.at("provenance");
  std::string text = "shard " + shard.at("name").get<std::string>().substr(0, 12);
  if (from.contains("model"))
    text += ", " + from.at("model").get<std::string>() + " on " +
            from.at("device").get<std::string>() + " in " + from.at("dtype").get<std::string>();
  text += "\n" + verdict.at("status").get<std::string>() + ": " + verdict.at("cells").dump() +
          " patches in " + verdict.at("runs").dump() + " runs, " + verdict.at("n_compared").dump() +
          " elements compared\n";
  if (auto failure = verdict.at("first_failure").get<std::string>(); !failure.empty())
    text += failure + "\n";
  return text;
}

SealedFile Shown::opened(const std::string& path) {
  try {
    SealedFile file = SealedFile::open(path);
    file.verify_all();
    describe(file);
    if (file.kind() == FileKind::batch) {
      MergedFile merged = MergedFile::open(path);
      batch_words_ = merged_in_words(merged);
      statistics_ = merged_to_json(merged);
    }
    return file;
  } catch (const NotVerified& refused) {
    refusal_ = refused.what();
  }
  SealedFile file = SealedFile::open_unverified(path);
  try {
    describe(file);
  } catch (const std::exception&) {  // damaged: its objects can be listed at least
    run_ = nullptr;
  }
  return file;
}

void Shown::describe(const SealedFile& file) {
  if (file.kind() == FileKind::shard) run_words_ = shard_in_words(file.document("/shard"));
  if (file.kind() != FileKind::run) return;
  nlohmann::json run = file.document("/run");
  run_["record"] = run.at("record");
  run_["remarks"] = run.at("remarks");
  run_["verdict"] = file.document("/verdict");
  run_["strings"] = nlohmann::json::array();
  if (file.has("/prompts/strings")) run_["strings"] = file.document("/prompts/strings");
  std::vector<nlohmann::json> points;
  for (const auto& [name, entry] : file.entries())
    if (name.starts_with("/verify/"))
      for (const nlohmann::json& point : file.document(name)) points.push_back(point);
  auto ratio = [](const nlohmann::json& point) {
    const nlohmann::json& worst = point.at("worst_ratio");  // text where it is not finite
    return worst.is_number() ? worst.get<double>() : std::numeric_limits<double>::infinity();
  };
  std::ranges::stable_sort(points, std::greater<>(), ratio);
  run_["points"] = points;
  run_words_ = run_in_words();
}

// Paths without "/act/", and what they hold.
std::vector<std::pair<std::string, SealedFile::Entry>> arrays_of(const SealedFile& file) {
  std::vector<std::pair<std::string, SealedFile::Entry>> arrays;
  for (const auto& [name, entry] : file.entries())
    if (entry.dtype) arrays.emplace_back(name.substr(name.starts_with("/act/") ? 5 : 1), entry);
  return arrays;
}

ordered_json Shown::to_json() const {
  bool usable = refusal_.empty();
  ordered_json document{
      {"command", "show"},
      {"exit_status", static_cast<int>(usable ? ExitStatus::done : ExitStatus::refused)},
      {"kind", name_of(file_.kind())},
      {"status", name_of(file_.status())},
      {"usable", usable}};
  if (!usable) document["error"] = refusal_;
  document["arrays"] = ordered_json::array();
  for (const auto& [name, entry] : arrays_of(file_))
    document["arrays"].push_back(
        {{"name", name}, {"dtype", name_of(*entry.dtype)}, {"shape", entry.shape}});
  if (!run_.is_null()) document.update(run_);
  if (file_.kind() == FileKind::run || !usable) return document;
  if (file_.kind() == FileKind::batch) {
    document.update(statistics_);
    return document;
  }
  for (const auto& [name, entry] : file_.entries())
    if (!entry.dtype) document["documents"][name.substr(1)] = file_.document(name);
  return document;
}

std::string Shown::run_in_words() const {
  const nlohmann::json& record = run_.at("record");
  std::string text =
      record.at("model").get<std::string>() + " on " + record.at("device").get<std::string>() +
      " in " + record.at("dtype").get<std::string>() + ", " + record.at("batch").dump() + " x " +
      record.at("pos").dump() + " tokens, " + record.at("time").get<std::string>() + "\n";
  if (!run_.at("strings").empty()) {
    text += "tokens:";
    for (const nlohmann::json& string : run_.at("strings"))
      text += " " + quoted_token(string.get<std::string>());
    text += "\n";
  }
  text += (refusal_.empty() ? "" : "it says of itself: ") +
          run_.at("verdict").at("summary").get<std::string>() + "\n";
  Table table(
      {{"worst points"}, {"op"}, {"compared", true}, {"failed", true}, {"error/bound", true}});
  for (std::size_t i = 0; i < std::min(kWorstPoints, run_.at("points").size()); ++i) {
    const nlohmann::json& point = run_.at("points")[i];
    const nlohmann::json& worst = point.at("worst_ratio");
    table.add({point.at("name"), point.at("op"), point.at("compared").dump(),
               point.at("failed").dump(),
               worst.is_number() ? fixed(worst, 3) : worst.get<std::string>()});
  }
  return text + (run_.at("points").empty() ? "" : "\n" + table.str());
}

std::string Shown::in_words() const {
  std::string status(name_of(file_.status()));
  std::string text =
      styled(file_.origin(), Style::bold) + ": a " + std::string(name_of(file_.kind())) + ", " +
      (refusal_.empty() ? with_coloured_status(status) + "; the root digest and those of all " +
                              std::to_string(file_.entries().size()) + " objects match\n"
                        : styled("refused", Style::bad) + "\n");
  text += run_words_;
  Table table({{"array"}, {"dtype"}, {"shape"}});
  for (const auto& [name, entry] : arrays_of(file_))
    table.add({name, std::string(name_of(*entry.dtype)), to_string(entry.shape)});
  text += "\n" + table.str();
  if (!batch_words_.empty()) return text + "\n" + batch_words_;
  if (file_.kind() == FileKind::run || !refusal_.empty()) return text;
  text += "\n";
  for (const auto& [name, entry] : file_.entries())
    if (!entry.dtype) text += name.substr(1) + ": " + show(file_.document(name)) + "\n";
  return text;
}

ExitStatus Shown::report(const Options& o) const {
  if (o.json)
    print_json(to_json());
  else
    print(in_words());
  if (refusal_.empty()) return ExitStatus::done;
  complain(refusal_);
  return ExitStatus::refused;
}

}  // namespace

Action add_show(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("show", "What is in a saved file, and whether it may be used");
  command
      .add_option("FILE", o->file,
                  "A file that lenscpp saved: run.h5, grid.h5, merged.h5; or the folder of a batch")
      ->required()
      ->type_name("");
  command.add_flag("--json", o->json, "One JSON document on standard output and nothing else")
      ->group("Output");
  command.footer(kFooter);
  return [o] {
    if (std::filesystem::is_directory(o->file)) {
      ordered_json counts = folder_to_json(o->file);
      bool good = counts.at("refused") == 0 && counts.at("damaged").empty();
      ExitStatus status = good ? ExitStatus::done : ExitStatus::refused;
      ordered_json document{
          {"command", "show"}, {"exit_status", static_cast<int>(status)}, {"kind", "folder"}};
      document.update(counts);
      if (o->json)
        print_json(document);
      else
        print(folder_in_words(o->file, counts));
      return status;
    }
    std::optional<Shown> shown;
    from_disk([&] { shown.emplace(o->file); });
    return shown->report(*o);
  };
}

}  // namespace lenscpp::command
