// lenscpp batch: many patching experiments into a folder that survives whatever ends the program.
#include <charconv>
#include <chrono>
#include <csignal>

#include "hooks/nearest.h"
#include "patching/batch_folder.h"
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/shards_in_words.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp task ioi tiny-ioi --n 200 --out ioi.jsonl
  lenscpp batch ioi.jsonl --model tiny-ioi --out ioi
  lenscpp batch ioi.jsonl --model tiny-ioi --out ioi --resume
  lenscpp batch ioi.jsonl --model tiny-ioi --out ioi --shard 2/8
  lenscpp merge ioi

EXPERIMENTS: JSON Lines, one object a line: {"clean": "...", "corrupted": "...", "answer": " Mary", "wrong": " John"}, and
as wished "id", "sites" (["resid_pre", {"site": "z", "over": ["layer", "head", "pos"]}]), "positions" ("all", [3, -1] or
{"S2": 10, "END": -1}), "template" (experiments that are not independent), "metric" (logit_diff, prob_diff, prob, log_prob).

A shard is a file of like experiments, named by what it depends on: --resume runs exactly those that are missing, and
programs that share a folder share its shards (--resume, or --shard, on each). SIGINT and SIGTERM end it after the running shard (status 130, 143); a
shard that is refused goes to OUT/refused (status 3), and is run again by --resume.
)";

struct Options : CommonOptions {
  std::string experiments, out, shard = "1/1", sites = "resid_pre,head_z", direction = "denoise";
  bool resume = false, keep_wrong = false;
  std::int64_t block = BatchOptions().block;
  double least_difference = BatchOptions().least_difference;
};

ShardShare share_of(const std::string& text) {
  std::int64_t index = 0, count = 0;
  const char* end = text.data() + text.size();
  auto first = std::from_chars(text.data(), end, index);
  bool good = first.ec == std::errc() && first.ptr != end && *first.ptr == '/';
  if (good) {
    auto second = std::from_chars(first.ptr + 1, end, count);
    good = second.ec == std::errc() && second.ptr == end;
  }
  if (!good || index < 1 || index > count)
    throw std::invalid_argument("[--shard] " + in_quotes(text) +
                                "; allowed: I/N with I from 1 to N, such as 2/8");
  return {index, count};
}

// One line, a few times a second.
class ProgressLine {
 public:
  void operator()(const BatchProgress& p) {
    auto now = std::chrono::steady_clock::now();
    if (line_ && now - last_ < std::chrono::milliseconds(200)) return;
    last_ = now;
    line_.reset();
    line_.emplace(progress_in_words(p) +
                  (StopWhenAsked::asked() != 0 ? "; stopping after this shard" : ""));
  }
  void wipe() { line_.reset(); }

 private:
  std::optional<Progress> line_;
  std::chrono::steady_clock::time_point last_;
};

ExitStatus status_of(const BatchReport& report) {
  if (report.refused > 0) return ExitStatus::refused;
  if (report.failed > 0) return ExitStatus::other;
  if (report.stopped)
    return StopWhenAsked::asked() == SIGTERM ? ExitStatus::terminated : ExitStatus::interrupted;
  return ExitStatus::done;
}

std::string next_step(const BatchReport& report, const Options& o) {
  if (report.stopped || report.refused > 0 || report.failed > 0)
    return "to go on: the same command with --resume\n";
  if (report.elsewhere > 0 || o.shard != "1/1")
    return "when all shares are done: lenscpp merge " + o.out + "\n";
  return "to read it: lenscpp merge " + o.out + "\n";
}

void report_to_people(const BatchReport& report, const Options& o) {
  std::string text = report.summary() + "\n";
  if (report.patches > 0)
    text += std::to_string(report.patches) + " patches in " + fixed(report.seconds, 1) + " s, " +
            fixed(static_cast<double>(report.patches) / report.seconds, 0) + " a second" +
            (report.seconds_checking > 0
                 ? "; " + percent(report.seconds_checking / report.seconds) + " of it checking\n"
                 : ", " + styled("UNVERIFIED", Style::doubtful) + "\n");
  for (const std::string& line : report.damaged)
    text += styled("set aside and run anew: ", Style::doubtful) + line + "\n";
  for (const std::string& line : report.refusals)
    text += styled("INVALID", Style::bad) + " " + line + "\n";
  for (const std::string& line : report.failures)
    text += styled("failed", Style::bad) + " " + line + "\n";
  print(text + next_step(report, o));
}

ExitStatus run(const Options& o) {
  ShardShare share = share_of(o.shard);
  std::vector<Experiment> experiments;
  from_disk([&] { experiments = read_experiments(o.experiments); });
  HookedTransformer model = load(o);
  Faults faults(o, model.config());
  BatchOptions options{.tokenize = {},
                       .direction = direction_from_name(o.direction),
                       .verify = verify_mode(o),
                       .block = o.block,
                       .least_difference = o.least_difference,
                       .keep_wrong = o.keep_wrong,
                       .interference = faults.interference(),
                       .injected = o.inject,
                       .device_faults = faults.device_faults()};
  options.tokenize.sites.clear();
  for (const std::string& site : CLI::detail::split(o.sites, ','))
    options.tokenize.sites.push_back({site});
  ProgressLine progress;
  StopWhenAsked asked;
  std::optional<BatchReport> report;
  on_device(o, [&] {
    report = run_experiments(model, experiments, options,
                             {.folder = o.out,
                              .resume = o.resume,
                              .share = share,
                              .progress = [&](const BatchProgress& p) { progress(p); },
                              .stop = [] { return StopWhenAsked::asked() != 0; }});
  });
  progress.wipe();
  ExitStatus status = status_of(*report);
  if (o.json) {
    ordered_json document{{"command", "batch"}, {"exit_status", static_cast<int>(status)}};
    document.update(to_json(*report));
    document["folder"] = o.out;
    document["injected"] = faults.to_json();
    print_json(document);
  } else {
    report_to_people(*report, o);
    print(faults.in_words(report->refused > 0 ? Status::invalid : Status::verified));
  }
  if (status == ExitStatus::refused)
    complain(std::to_string(report->refused) + " shards were INVALID and are kept apart in " +
             (fs::path(o.out) / "refused").string());
  return status;
}

}  // namespace

Action add_batch(CLI::App& program) {
  auto o = std::make_shared<Options>();
  o->verify = "checksum";
  CLI::App& command = *program.add_subcommand(
      "batch", "Many patching experiments, into a folder that can be resumed and merged");
  command.add_option("EXPERIMENTS", o->experiments, "A file of experiments, JSON Lines")
      ->required()
      ->type_name("");
  command.add_option("--model", o->model, "A Hugging Face folder, or the name of one that ships")
      ->required()
      ->type_name("MODEL")
      ->group("Input");
  command.add_option("--out", o->out, "A folder, which is made")
      ->required()
      ->type_name("DIR")
      ->group("Output");
  command.add_flag("--resume", o->resume, "Go on with the batch in the folder, if any")
      ->group("Running");
  command.add_option("--shard", o->shard, "Only part I of N of the shards")
      ->type_name("I/N")
      ->group("Running")
      ->capture_default_str();
  command
      .add_option("--site", o->sites,
                  "What is patched where an experiment does not say: layers and heads,\nor layers "
                  "and positions of what has no heads")
      ->type_name("SITES")
      ->group("Input")
      ->capture_default_str();
  command
      .add_option("--direction", o->direction,
                  "denoise: clean into corrupted; noise: corrupted into clean")
      ->type_name("WORD")
      ->group("Input")
      ->capture_default_str();
  command.add_option("--block", o->block, "Experiments in a shard, at most")
      ->type_name("N")
      ->group("Running")
      ->capture_default_str()
      ->check(whole_number(1, kAnyNumber));
  command
      .add_option("--least-difference", o->least_difference,
                  "Pairs whose |clean - corrupted| is below it are rejected")
      ->type_name("X")
      ->group("Input")
      ->capture_default_str();
  command
      .add_flag("--keep-wrong", o->keep_wrong,
                "Keep pairs whose clean run prefers the wrong answer")
      ->group("Input");
  add_common_options(command, *o);
  add_checking_options(command, *o);
  command.footer(kFooter);
  return [o] { return run(*o); };
}

}  // namespace lenscpp::command
