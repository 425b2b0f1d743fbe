// lenscpp compare: one prompt on several devices, side by side.
#include "lens/compare.h"

#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/shipped_models.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp compare tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to" --answer " Mary" --wrong " John" --inject stale@attn.hook_z
  lenscpp compare tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to" --answer " Mary" --wrong " John" --devices cpu,simulated --inject S1:transposed=1@blocks.1.hook_attn_out
  lenscpp compare tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to" --answer " Mary" --wrong " John" --devices cpu,cuda
  lenscpp compare path/to/gpt2 --prompt "The Eiffel Tower is in" --answer " Paris" --wrong " Rome" --dtypes float32,bfloat16

A row is a device in a dtype: the probabilities of both tokens after the prompt, the difference of their logits, the
most likely token, how often the answer beats the wrong name over the indirect-object prompts that ship, and the
verdict. Numbers of a refused run are shown beside INVALID, and nowhere else. Exit status 3 when a run was refused,
4 when a device is missing or failed.
)";

struct Options : CommonOptions {
  std::string prompt, answer, wrong;
  std::vector<std::string> devices = {"cpu"}, dtypes = {"float32"};
  std::int64_t n_prompts = 100;
};

std::vector<ChoicePrompt> first_prompts(std::int64_t n) {
  if (n == 0) return {};
  auto prompts = read_choice_prompts(resolve_model("tiny-ioi") / "prompts.jsonl");
  if (n < static_cast<std::int64_t>(prompts.size())) prompts.resize(static_cast<std::size_t>(n));
  return prompts;
}

std::string signed_number(double x) { return (x >= 0 ? "+" : "") + fixed(x, 3); }

std::string where(const CompareRow& row) {
  return row.device + " " + std::string(name_of(row.dtype)) +
         (row.fault.empty() ? "" : " with " + row.fault);
}

std::string share(const ChoiceAccuracy& a) {
  if (a.asked == 0) return "-";
  return percent(static_cast<double>(a.right) / static_cast<double>(a.asked)) + " of " +
         std::to_string(a.asked);
}

std::string table(const HookedTransformer& model, const std::vector<CompareRow>& rows,
                  const Options& o) {
  Table t({{""},
           {"P(" + quoted_token(o.answer) + ")", true},
           {"P(" + quoted_token(o.wrong) + ")", true},
           {"logit difference", true},
           {"top-1"},
           {"IOI accuracy", true},
           {"verdict"}});
  for (const CompareRow& row : rows) {
    if (!row.error.empty()) {
      t.add({where(row), "-", "-", "-", "-", "-", row.error});
      continue;
    }
    t.add({where(row), fixed(row.p_answer, 4), fixed(row.p_wrong, 4),
           signed_number(row.logit_difference), quoted_token(token_text(model, row.top)),
           share(row.accuracy), with_coloured_status(name_of(row.verdict.status))});
  }
  return t.str();
}

ExitStatus worst_of(const std::vector<CompareRow>& rows) {
  ExitStatus status = ExitStatus::done;
  for (const CompareRow& row : rows) {
    if (!row.error.empty()) return ExitStatus::device;
    if (row.verdict.status != Status::verified || row.accuracy.refused > 0)
      status = ExitStatus::refused;
  }
  return status;
}

ExitStatus compare(const Options& o) {
  std::vector<DType> dtypes;
  for (const std::string& name : o.dtypes) dtypes.push_back(dtype_from_name(name));
  HookedTransformer model = load(o);
  CompareOptions options{
      .devices = o.devices, .dtypes = dtypes, .prompts = first_prompts(o.n_prompts), .faults = {}};
  for (const std::string& text : o.inject) options.faults.push_back(parse_fault(text, o.seed));
  Tokens prompt = model.to_tokens(o.prompt);
  std::vector<CompareRow> rows;
  {
    Progress progress("running on " + std::to_string(o.devices.size()) + " devices");
    rows = lenscpp::compare(model, prompt, model.to_single_token(o.answer),
                            model.to_single_token(o.wrong), options);
  }
  ExitStatus status = worst_of(rows);
  if (o.json) {
    ordered_json list = ordered_json::array();
    for (const CompareRow& row : rows) list.emplace_back(to_json(row, model));
    print_json({{"command", "compare"},
                {"exit_status", static_cast<int>(status)},
                {"model", model.name()},
                {"prompt", o.prompt},
                {"tokens", tokens_to_json(model, prompt)},
                {"answer", o.answer},
                {"wrong", o.wrong},
                {"rows", list}});
    return status;
  }
  print(styled(model.name(), Style::bold) + ": " + quoted_token(o.prompt) + "\n\n" +
        table(model, rows, o) + "\n");
  for (const CompareRow& row : rows)
    if (row.error.empty())
      print(where(row) + ": " + with_coloured_status(row.verdict.summary()) + "\n");
  return status;
}

}  // namespace

Action add_compare(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("compare", "One prompt on several devices, side by side");
  add_input_options(command, *o, o->prompt);
  command.add_option("--answer", o->answer, "The right continuation, one token")
      ->required()
      ->type_name("TOKEN")
      ->group("Input");
  command.add_option("--wrong", o->wrong, "The one it competes with")
      ->required()
      ->type_name("TOKEN")
      ->group("Input");
  command.add_option("--devices", o->devices, "Where to run, separated by commas: cpu,mps")
      ->delimiter(',')
      ->type_name("NAMES")
      ->group("Running")
      ->capture_default_str();
  command.add_option("--dtypes", o->dtypes, "In which dtypes, separated by commas")
      ->delimiter(',')
      ->type_name("NAMES")
      ->group("Running")
      ->capture_default_str();
  command
      .add_option("--prompts", o->n_prompts,
                  "Over how many of the shipped prompts accuracy is measured; 0: none")
      ->type_name("N")
      ->group("Input")
      ->capture_default_str()
      ->check(whole_number(0, kAnyNumber));
  add_common_options(command, *o);
  add_checking_options(command, *o);
  // Every run is checked, on the devices and in the dtypes listed above.
  for (const char* name : {"--device", "--dtype", "--verify"})
    command.remove_option(command.get_option(name));
  command.footer(kFooter);
  return [o] { return compare(*o); };
}

}  // namespace lenscpp::command
