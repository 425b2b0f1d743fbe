// The lenscpp program: picks the command, and turns every exception into one line and an exit
// status.
#include <torch/version.h>

#include <new>

#include "hooks/build_info.h"
#include "hooks/nearest.h"
#include "patching/command/common.h"
#include "patching/command/heat_map.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp demo
  lenscpp run tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to" --out run.h5
  lenscpp show run.h5
  lenscpp lens tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to"
  lenscpp patch tiny-ioi --clean "When John and Mary went to the store, John gave the bag to" --corrupted "When John and Mary went to the store, Mary gave the bag to" --answer " Mary" --wrong " John"
  lenscpp batch ioi.jsonl --model tiny-ioi --out ioi
  lenscpp doctor --device cuda
  lenscpp lens --help

Exit status: 0 done and verified, 2 bad usage or input, 3 refused (INVALID or not verified), 4 the device is
missing, failed or not to be used, or what is asked of it does not fit, 1 anything else. LENSCPP_MODELS: folders to look for models in. NO_COLOR: plain text.
)";

std::string version() {
  return "lenscpp " + std::string(lenscpp_version()) + " (commit " +
         std::string(build_commit()).substr(0, 12) + (build_dirty() ? ", changed" : "") +
         ", torch " TORCH_VERSION ")";
}

// How a command ended, when not well.
struct Ending {
  ExitStatus status;
  std::string message;
  ordered_json details = {};  // verdict and record of an INVALID run
};

Ending refused(const VerificationFailed& e) {
  ordered_json details{{"status", name_of(e.verdict().status)},
                       {"verdict", to_json(e.verdict())},
                       {"record", to_json(e.record())}};
  if (const auto* grid = dynamic_cast<const GridFailed*>(&e))
    details["partial"] = grid_to_json(grid->partial());
  return {ExitStatus::refused, e.what(), details};
}

// Every exception that can leave a command. Classes of the standard library mean bad input, as in
// the headers that throw them.
Ending ending_of(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const Failure& e) {
    return {e.status(), e.what()};
  } catch (const VerificationFailed& e) {
    return refused(e);
  } catch (const NotVerified& e) {
    return {ExitStatus::refused, e.what()};
  } catch (const DeviceError& e) {
    return {ExitStatus::device, e.what()};
  } catch (const std::invalid_argument& e) {
    return {ExitStatus::usage, e.what()};
  } catch (const std::out_of_range& e) {
    return {ExitStatus::usage, e.what()};
  } catch (const std::bad_alloc&) {
    return {ExitStatus::other, "[memory] there is not enough of it for this run"};
  } catch (const std::exception& e) {
    return {ExitStatus::other, e.what()};
  } catch (...) {
    return {ExitStatus::other, "an exception of an unknown kind"};
  }
}

std::vector<std::string> option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

// A word that no option and no argument took explains more than the requirement that it left unmet.
std::string usage_message(const CLI::App& program, const CLI::ParseError& error) {
  const CLI::App* chosen =
      program.get_subcommands().empty() ? nullptr : program.get_subcommands().front();
  const CLI::App& where = chosen == nullptr ? program : *chosen;
  std::string see =
      "; see lenscpp " + (chosen == nullptr ? "" : chosen->get_name() + " ") + "--help";
  std::vector<std::string> words = program.remaining(true);
  if (words.empty()) return error.what() + see;
  std::string word = words.front().substr(0, words.front().find('='));
  if (!program.remaining(false).empty() && word.starts_with('-'))
    return "no option " + in_quotes(word) + " before a command; options stand after it: lenscpp " +
           (chosen == nullptr ? "COMMAND" : chosen->get_name()) + " " + in_quotes(word) + see;
  if (word.starts_with('-'))
    return "no option " + in_quotes(word) +
           "; nearest: " + nearest_names(word, option_names(where)) + see;
  if (chosen != nullptr)
    return "unexpected argument " + in_quotes(word) + " (a prompt of several words needs quotes)" +
           see;
  std::string commands;
  for (const CLI::App* command : program.get_subcommands(nullptr))
    commands += (commands.empty() ? "" : ", ") + command->get_name();
  return "no command " + in_quotes(word) + "; allowed: " + commands + see;
}

// CLI11's own, without its double empty lines.
std::string help_of(const CLI::App& program) {
  std::string text = program.help();
  for (auto at = text.find("\n\n\n"); at != text.npos; at = text.find("\n\n\n", at))
    text.erase(at, 1);
  return text.substr(0, text.find_last_not_of('\n') + 1) + "\n";
}

struct Command {
  CLI::App* app;
  Action action;
};

int end(const std::string& command, const Ending& ending, bool json) {
  int status = static_cast<int>(ending.status);
  complain(ending.message);
  if (json) {
    ordered_json document{{"command", command.empty() ? ordered_json() : ordered_json(command)},
                          {"exit_status", status},
                          {"error", ending.message}};
    if (!ending.details.is_null()) document.update(ending.details);
    print_json(document);
  }
  return status;
}

int run_program(int argc, char** argv) {
  bool json = std::any_of(argv, argv + argc,
                          [](const char* word) { return std::string_view(word) == "--json"; });
  std::string name;
  try {
    CLI::App program(
        "lenscpp: a transformer whose every activation is checked against an independent "
        "computation.",
        "lenscpp");
    program.set_version_flag("--version", version(), "Version, commit and torch");
    program.set_help_flag("-h,--help", "This text");
    program.get_formatter()->column_width(26);
    program.option_defaults()->always_capture_default(false);
    program.footer(kFooter);
    program.require_subcommand(0, 1);
    std::vector<Command> commands;
    for (auto add : {add_demo, add_run, add_lens, add_patch, add_task, add_batch, add_merge,
                     add_compare, add_verify, add_show, add_preflight, add_doctor, add_drill}) {
      Action action = add(program);
      commands.push_back({program.get_subcommands(nullptr).back(), action});
    }
    try {
      program.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
      print(help_of(program));
      return 0;
    } catch (const CLI::CallForVersion& e) {
      print(version() + "\n");
      return 0;
    } catch (const CLI::ParseError& e) {
      return end("", {ExitStatus::usage, usage_message(program, e)}, json);
    }
    for (const Command& command : commands)
      if (command.app->parsed()) {
        name = command.app->get_name();
        return static_cast<int>(command.action());
      }
    if (argc == 1 && !json) print(help_of(program));
    return end("",
               {ExitStatus::usage,
                "a command is needed: demo, run, lens, compare, patch, task, batch, merge, verify, "
                "show, doctor, preflight or drill; see "
                "lenscpp --help"},
               json);
  } catch (...) {
    Ending ending = ending_of(std::current_exception());
    return end(name, ending, json);
  }
}

}  // namespace
}  // namespace lenscpp::command

int main(int argc, char** argv) {
  lenscpp::command::prepare_signals();
  try {
    return lenscpp::command::run_program(argc, argv);
  } catch (const std::exception& e) {  // standard output itself is gone
    lenscpp::command::complain(e.what());
  }
  return 1;
}
