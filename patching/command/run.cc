// lenscpp run: run, verify, save.
#include "patching/command/common.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kPredictions = 5;
constexpr const char* kFooter = R"(Examples:
  lenscpp run tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to"
  lenscpp run path/to/gpt2 --prompt "The Eiffel Tower is in" --out run.safetensors --dtype bfloat16
  lenscpp run tiny-ioi --prompt "John and Mary" --inject nan@blocks.0.attn.hook_q    # refused, status 3

What is saved: a safetensors file with every activation under its hook name and the token ids as "tokens";
its metadata holds lenscpp.status, lenscpp.verdict, lenscpp.record, lenscpp.prompt and lenscpp.injected, the structured ones as JSON.
A run that is INVALID is never saved. With --verify off the activations are saved with the status UNVERIFIED.
)";

struct Options : CommonOptions {
  std::string prompt, out;
};

struct Saved {
  std::string path;
  std::size_t activations = 0;
  std::uintmax_t n_bytes = 0;
};

// What file and JSON document say alike.
ordered_json description(const Options& o, Status status, const Verdict& verdict, const RunRecord& record, const Faults& faults) {
  return {{"status", name_of(status)}, {"prompt", o.prompt}, {"verdict", to_json(verdict)},
          {"record", record_to_json(record, o)}, {"injected", faults.to_json()}};
}

std::optional<Saved> saved(const Options& o, std::map<std::string, Array> activations, const Tokens& tokens, const ordered_json& document) {
  if (o.out.empty()) return {};
  std::uintmax_t n_bytes = save(o.out, activations, tokens, document);
  return Saved{o.out, activations.size(), n_bytes};
}

void report(const Options& o, const HookedTransformer& model, const Tokens& tokens, const Verdict& verdict,
            const std::vector<RankedToken>& top, const Faults& faults, const std::optional<Saved>& file, const ordered_json& document) {
  if (o.json) {
    ordered_json json{{"command", "run"}, {"exit_status", 0}};
    json.update(document);
    json["tokens"] = tokens_to_json(model, tokens);
    json["prediction"] = to_json(model, top);
    json["saved"] = file ? ordered_json{{"path", file->path}, {"activations", file->activations}, {"bytes", file->n_bytes}} : ordered_json();
    return print_json(json);
  }
  std::string table = verdict.table();
  auto summary = table.rfind('\n') + 1;  // npos + 1 is 0
  std::string text = styled(model_in_words(model), Style::bold) + "\n" + tokens_in_words(model, tokens) + "\n\n" +
                     table.substr(0, summary) + (summary == 0 ? "" : "\n") + with_coloured_status(table.substr(summary)) + "\n";
  if (faults.any()) text += "injected: " + faults.in_words() + (verdict.status == Status::verified ? "; within the bounds of rounding, so not refused" : "") + "\n";
  if (!top.empty()) {
    text += "next token:";
    for (const RankedToken& t : top) text += "  " + quoted_token(token_text(model, t.token)) + " " + percent(t.probability);
    text += "\n";
  }
  if (file) text += "saved " + std::to_string(file->activations) + " activations, " + bytes_in_words(file->n_bytes) + ": " + file->path + "\n";
  print(text);
}

ExitStatus run(const Options& o) {
  if (!o.out.empty()) checked_output(o.out);
  HookedTransformer model = load(o);
  Tokens tokens = model.to_tokens(o.prompt);
  Faults faults(o, model.config());
  RunOptions options{.interference = faults.interference()};
  if (o.out.empty()) options.names = std::vector<std::string>{};
  if (verify_mode(o) == VerifyMode::off) {
    std::optional<UnverifiedCache> cache;
    on_device(o, [&] { cache.emplace(model.run_unverified(tokens, options)); });
    ordered_json document = description(o, Status::unverified, cache->verdict(), cache->record(), faults);
    auto file = saved(o, activations_of(*cache), tokens, document);
    report(o, model, tokens, cache->verdict(), {}, faults, file, document);
    return ExitStatus::done;
  }
  VerifiedCache cache = run_checked(o, model, tokens, options);
  ordered_json document = description(o, cache.verdict().status, cache.verdict(), cache.record(), faults);
  auto file = saved(o, activations_of(cache), tokens, document);
  auto top = as_lens(cache.output()).top_k(0, 0, -1, std::min(kPredictions, model.config().d_vocab));
  report(o, model, tokens, cache.verdict(), top, faults, file, document);
  return ExitStatus::done;
}

}  // namespace

Action add_run(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand("run", "Run a prompt, check every activation, save them");
  command.add_option("MODEL", o->model, "A Hugging Face folder, or the name of a model that ships: tiny-ioi")->required()->type_name("");
  command.add_option("--prompt", o->prompt, "The text to run")->required()->type_name("TEXT")->group("Input");
  command.add_option("--out", o->out, "Save the activations: FILE.safetensors; without it, nothing is saved")->type_name("FILE")->group("Output");
  add_common_options(command, *o);
  add_checking_options(command, *o);
  command.footer(kFooter);
  return [o] { return run(*o); };
}

}  // namespace lenscpp::command
