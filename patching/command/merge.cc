// lenscpp merge: the shards of a batch as one file, with statistics.
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/shards_in_words.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp merge ioi
  lenscpp merge ioi --out ioi.h5 --json
  lenscpp show ioi/merged.h5

Every value of every shard is checked. Effects are (patched - base) in units of the metric; "ratio of means" is 0 as in the
corrupted runs and 1 as in the clean ones; intervals are bootstrapped over templates (over experiments without any), q is
of a permutation test by the procedure of Benjamini and Hochberg.
)";

struct Options {
  std::string folder, out;
  bool json = false;
  MergeOptions merge;
};

ExitStatus run(const Options& o) {
  fs::path out = o.out.empty() ? fs::path(o.folder) / "merged.h5" : checked_output(o.out, {".h5"});
  merge_batch(o.folder, out, o.merge);
  // Of an unverified batch, too: its file says so.
  SealedFile sealed = SealedFile::open_unverified(out);
  bool verified = sealed.status() == Status::verified;
  MergedFile merged = verified ? MergedFile::open(out) : MergedFile::open_unverified(out);
  if (o.json) {
    ordered_json document{{"command", "merge"},
                          {"exit_status", 0},
                          {"status", name_of(sealed.status())},
                          {"saved", out.string()}};
    document.update(merged_to_json(merged));
    print_json(document);
  } else {
    print("saved: " + out.string() + ", " +
          with_coloured_status(std::string(name_of(sealed.status()))) + "\n" +
          merged_in_words(merged));
  }
  return ExitStatus::done;
}

}  // namespace

Action add_merge(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("merge", "The shards of a batch as one file, with statistics");
  command.add_option("DIR", o->folder, "The folder of a batch")->required()->type_name("");
  command.add_option("--out", o->out, "FILE.h5; without it DIR/merged.h5")
      ->type_name("FILE")
      ->group("Output");
  command.add_flag("--partial", o->merge.partial, "Also when shards are missing; the file says so")
      ->group("Output");
  auto& statistics = o->merge.statistics;
  command.add_option("--resamples", statistics.resamples, "Of the bootstrap")
      ->type_name("N")
      ->group("Statistics")
      ->capture_default_str()
      ->check(whole_number(0, kAnyNumber));
  command.add_option("--permutations", statistics.permutations, "Of the test")
      ->type_name("N")
      ->group("Statistics")
      ->capture_default_str()
      ->check(whole_number(1, kAnyNumber));
  command.add_option("--false-discovery-rate", statistics.false_discovery_rate, "Of the top cells")
      ->type_name("X")
      ->group("Statistics")
      ->capture_default_str();
  command.add_option("--seed", statistics.seed, "Of resamples and permutations")
      ->type_name("N")
      ->group("Statistics")
      ->capture_default_str()
      ->check(whole_number(0, kAnyNumber));
  command.add_flag("--json", o->json, "One JSON document on standard output and nothing else")
      ->group("Output");
  command.footer(kFooter);
  return [o] { return run(*o); };
}

}  // namespace lenscpp::command
