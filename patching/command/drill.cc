// lenscpp drill: every fault at every site. Was it harmful, was it refused, was it found?
#include "lens/drill.h"

#include <fstream>
#include <system_error>

#include "hooks/nearest.h"
#include "patching/command/common.h"
#include "patching/command/heat_map.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::int64_t kRunsAProgress = 20;

constexpr const char* kFooter = R"(Examples:
  lenscpp drill tiny-ioi --sample 6 --lengths 1,15
  lenscpp drill tiny-ioi --faults mask_group,round_bits:bits=8 --dtypes float32 --lengths 15
  lenscpp drill tiny-ioi --sites attn.hook_z,hook_attn_out --layers 0 --dtypes bfloat16 --lengths 15 --batches 1 --out drill
  lenscpp drill path/to/gpt2 --device cuda --lengths 1,48 --out drill

A run a fault, site, dtype and shape. A fault is harmful when it takes any element of any tensor further from the clean
run than 4 times the widest range that the clean run and 32 verified runs in other summation orders span at any one
element of that tensor (no less than 4 units in the element's last place), or the logit difference of the two likeliest
tokens further than 4 times its own range; harmless when no bit of the run differs; the rest lies between. The checker's
opinion of the faulted run has no part in that. "named right": the verdict's first failure is the first tensor of the
run that differs. Exit status 3 when a harmful fault was not refused, or a run without any difference was; 2 when no
fault did harm, so that nothing was shown.
)";

struct Options : CommonOptions {
  std::vector<std::string> faults, sites, dtypes = {"float32", "bfloat16", "float16"};
  std::vector<std::int64_t> layers, lengths, batches = {1, 2};
  std::int64_t sample = 0;  // 0: all
  std::string out;
};

// A piece that only goes on with the parameters of the one before belongs to it.
std::vector<FaultSpec> faults_of(const Options& o) {
  std::vector<std::string> texts;
  for (const std::string& piece : o.faults) {
    bool goes_on = !texts.empty() && piece.find('=') < piece.find(':');
    if (goes_on)
      texts.back() += "," + piece;
    else
      texts.push_back(piece);
  }
  std::vector<FaultSpec> faults;
  for (const std::string& text : texts) faults.push_back(parse_fault(text, o.seed));
  return faults;
}

HeatMap heat_map(const DrillReport& report) {
  DrillMap map = report.map();
  return {.title = "share of the harmful runs that was refused",
          .row_title = "fault",
          .column_title = "site",
          .row_labels = map.faults,
          .column_labels = map.sites,
          .values = map.refused,
          .reach = 1,
          .blank = "·",
          .blank_means = "never harmful"};
}

void write(const fs::path& path, const std::string& text) {
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  if (!file)
    throw std::system_error(errno, std::generic_category(),
                            "[--out] " + in_quotes(path.string()) + " cannot be written");
}

void save(const fs::path& folder, const DrillReport& report, const ordered_json& document) {
  std::string title = "Fault drill: " + report.model + " on " + report.device;
  write(folder / "drill.json",
        document.dump(1, ' ', false, ordered_json::error_handler_t::replace) + "\n");
  write(folder / "drill.txt", report.table());
  write(folder / "drill.html", html_page(title, "<p>" + escaped_html(report.summary()) + "</p>\n" +
                                                    heat_map_html(heat_map(report)) + "<pre>" +
                                                    escaped_html(report.table()) + "</pre>\n"));
}

// Made, if need be, before any work is done.
void prepare_folder(const std::string& folder) {
  if (folder.empty()) return;
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw std::invalid_argument("[--out] the folder " + in_quotes(folder) +
                                " cannot be made: " + error.message());
  checked_output((fs::path(folder) / "drill.json").string(), {".json"});
}

DrillReport run(const Options& o, const HookedTransformer& model) {
  DrillOptions options{.faults = faults_of(o),
                       .sites = o.sites,
                       .layers = o.layers,
                       .verify = verify_mode(o),
                       .dtypes = {},
                       .batches = o.batches,
                       .lengths = o.lengths,
                       .seed = o.seed};
  for (const std::string& name : o.dtypes) options.dtypes.push_back(dtype_from_name(name));
  if (o.sample > 0) options.sample = o.sample;
  std::optional<Progress> progress;
  std::int64_t shown = 0;
  options.progress = [&](std::int64_t done, std::int64_t all) {
    if (done % kRunsAProgress != 1 || done == shown) return;
    shown = done;
    progress.reset();
    progress.emplace("drill: run " + std::to_string(done) + " of about " + std::to_string(all));
  };
  DrillReport report;
  on_device(o, [&] { report = lenscpp::drill(model, options); });
  return report;
}

// A drill in which nothing was harmful says nothing about the checker: that is not success.
ExitStatus status_of(const DrillReport& report) {
  if (!report.missed().empty() || report.false_alarms() > 0) return ExitStatus::refused;
  return report.total().harmful > 0 ? ExitStatus::done : ExitStatus::usage;
}

ExitStatus drill(const Options& o) {
  prepare_folder(o.out);
  DrillReport report = run(o, load(o));
  ExitStatus status = status_of(report);
  ordered_json document{{"command", "drill"}, {"exit_status", static_cast<int>(status)}};
  document.update(ordered_json(to_json(report)));
  if (!o.out.empty()) save(o.out, report, document);
  if (o.json)
    print_json(document);
  else
    print(report.table());
  return status;
}

}  // namespace

Action add_drill(CLI::App& program) {
  auto o = std::make_shared<Options>();
  o->threads = 1;  // so small runs gain nothing from more
  CLI::App& command =
      *program.add_subcommand("drill", "Every fault at every site: harmful, refused, located?");
  add_model_option(command, *o);
  auto list = [&](const char* name, auto& values, const char* what, const char* type,
                  const char* group) {
    return command.add_option(name, values, what)
        ->delimiter(',')
        ->type_name(type)
        ->group(group)
        ->allow_extra_args(false);
  };
  list("--faults", o->faults, "As --inject takes them, without a hook; without it, all", "FAULTS",
       "Drill");
  list("--sites", o->sites, "Hook points with or without their layer; on-demand ones too", "NAMES",
       "Drill");
  list("--layers", o->layers, "Only in these layers; negative from the end", "LAYERS", "Drill");
  list("--lengths", o->lengths, "Tokens a prompt; without it 1, 15 and as many as the model takes",
       "LENGTHS", "Drill");
  list("--batches", o->batches, "Prompts a run", "SIZES", "Drill")->capture_default_str();
  list("--dtypes", o->dtypes, "In which dtypes", "NAMES", "Running")->capture_default_str();
  command
      .add_option("--sample", o->sample,
                  "So many runs of each fault, spread over dtypes and shapes; 0: all")
      ->type_name("N")
      ->group("Drill")
      ->capture_default_str()
      ->check(whole_number(0, kAnyNumber));
  command.add_option("--out", o->out, "A folder for drill.json, drill.html and drill.txt")
      ->type_name("DIR")
      ->group("Output");
  add_common_options(command, *o);
  command.add_option("--verify", o->verify, "How runs are checked: exact or checksum")
      ->type_name("MODE")
      ->group("Running")
      ->capture_default_str();
  command.remove_option(command.get_option("--dtype"));  // those listed above
  command.footer(kFooter);
  return [o] { return drill(*o); };
}

}  // namespace lenscpp::command
