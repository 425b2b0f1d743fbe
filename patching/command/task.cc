// lenscpp task: experiments of a standard task, for a model's tokenizer.
#include "hooks/nearest.h"
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"
#include "patching/tasks.h"

namespace lenscpp::command {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp task ioi tiny-ioi --n 200 --out ioi.jsonl
  lenscpp task ioi tiny-ioi --n 200 --corruption abc --out abc.jsonl
  lenscpp task induction tiny-ioi --n 50 --length 12 --out induction.jsonl

ioi: "When John and Mary went to the store, John gave the bag to"; 15 templates, both orders of the names.
greater_than: "The war lasted from the year 1741 to the year 17"; for tokenizers that split years after the century.
induction: random tokens twice. Positions have names, so that experiments of different templates can be averaged.
)";

struct Options : CommonOptions {
  std::string task, out;
  TaskOptions of_task;
};

ExitStatus run(const Options& o) {
  fs::path out = checked_output(o.out, {".jsonl"});
  HookedTransformer model = load(o);
  TaskOptions options = o.of_task;
  options.seed = o.seed;
  Task task = task_named(o.task, model, options);
  write_experiments(out, task.experiments);
  if (o.json) {
    print_json({{"command", "task"},
                {"exit_status", 0},
                {"task", task.name},
                {"experiments", task.experiments.size()},
                {"dropped", task.dropped},
                {"saved", out.string()}});
    return ExitStatus::done;
  }
  const Experiment& first = task.experiments[0];
  auto shown = [&](const Prompt& prompt) {
    if (const auto* text = std::get_if<std::string>(&prompt)) return in_quotes(*text);
    return in_quotes(model.to_string(std::get<std::vector<std::int64_t>>(prompt)));
  };
  std::string text = "saved: " + out.string() + ", " + std::to_string(task.experiments.size()) +
                     " experiments\nthe first: " + shown(first.clean) +
                     "\ncorrupted: " + shown(first.corrupted) + "\n";
  if (!task.dropped.empty()) {
    text += "left out, as they are not one token of this tokenizer:\n";
    for (const std::string& word : task.dropped) text += "  " + word + "\n";
  }
  print(text);
  return ExitStatus::done;
}

}  // namespace

Action add_task(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("task", "Experiments of a standard task, for `lenscpp batch`");
  command.add_option("TASK", o->task, "ioi, greater_than or induction")->required()->type_name("");
  add_model_option(command, *o);
  command.add_option("--out", o->out, "A file of experiments: FILE.jsonl")
      ->required()
      ->type_name("FILE")
      ->group("Output");
  command.add_option("--n", o->of_task.n, "How many experiments")
      ->type_name("N")
      ->group("Task")
      ->capture_default_str()
      ->check(whole_number(1, kAnyNumber));
  command
      .add_option(
          "--corruption", o->of_task.corruption,
          "Of ioi: flipped (the second clause has the other name) or abc (three fresh names)")
      ->type_name("WORD")
      ->group("Task")
      ->capture_default_str();
  command.add_option("--names", o->of_task.names, "Of ioi: in place of the built-in names")
      ->type_name("NAME")
      ->group("Task")
      ->delimiter(',');
  command
      .add_option("--length", o->of_task.length, "Of induction: random tokens before they repeat")
      ->type_name("N")
      ->group("Task")
      ->capture_default_str()
      ->check(whole_number(4, kAnyNumber));
  add_common_options(command, *o);
  command.footer(kFooter);
  return [o] { return run(*o); };
}

}  // namespace lenscpp::command
