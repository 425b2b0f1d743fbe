// lenscpp run: run, verify, save.
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kPredictions = 5;
constexpr const char* kFooter = R"(Examples:
  lenscpp run tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to"
  lenscpp run path/to/gpt2 --prompt "The Eiffel Tower is in" --out run.h5 --dtype bfloat16
  lenscpp run tiny-ioi --prompt "John and Mary" --inject nan@blocks.0.attn.hook_q    # refused, status 3

What is saved: FILE.h5 with every activation, the tokens, record and verdict, and a digest of all of it; `lenscpp show`
and lens.load open it, h5py too. FILE.safetensors is an export for other programs, which nothing seals: activations
under their hook names, the token ids as "tokens", status, verdict and record in the metadata.
A run that is INVALID is never saved. With --verify off the activations are saved with the status UNVERIFIED.
)";

struct Options : CommonOptions {
  std::string prompt, out;
};

// One prompt through one model.
class Run {
 public:
  explicit Run(const Options& o)
      : o_(o), model_(load(o)), tokens_(model_.to_tokens(o.prompt)), faults_(o, model_.config()) {}

  ExitStatus checked();
  ExitStatus unchecked();

 private:
  RunOptions options() const;
  void describe(const Verdict& verdict, const RunRecord& record);
  template <class Cache>
  void save_if_asked(const Cache& cache);
  std::string heading() const {
    return model_in_words(model_) + "\n" + tokens_in_words(model_, tokens_) + "\n\n";
  }
  void report(const Verdict& verdict, const std::vector<RankedToken>& top) const;

  const Options& o_;
  HookedTransformer model_;
  Tokens tokens_;
  Faults faults_;
  ordered_json document_, saved_;  // what the file's metadata holds too; the file
};

// Nothing is kept that nobody will save.
RunOptions Run::options() const {
  RunOptions options{.interference = faults_.interference(),
                     .device_faults = faults_.device_faults()};
  if (o_.out.empty()) options.names = std::vector<std::string>{};
  return options;
}

void Run::describe(const Verdict& verdict, const RunRecord& record) {
  document_ = {{"status", name_of(verdict.status)},
               {"prompt", o_.prompt},
               {"verdict", to_json(verdict)},
               {"record", record_to_json(record, o_)},
               {"injected", faults_.to_json()}};
}

template <class Cache>
void Run::save_if_asked(const Cache& cache) {
  if (o_.out.empty()) return;
  bool sealed = std::filesystem::path(o_.out).extension() == ".h5";
  nlohmann::json remarks{
      {"prompt", o_.prompt}, {"seed", o_.seed}, {"injected", document_["injected"]}};
  saved_ = {{"path", o_.out},
            {"activations", cache.activations().entries().size()},
            {"bytes", sealed ? save_sealed(o_.out, cache, model_, std::move(remarks))
                             : save(o_.out, activations_of(cache), tokens_, document_)}};
}

void Run::report(const Verdict& verdict, const std::vector<RankedToken>& top) const {
  if (o_.json) {
    ordered_json json{{"command", "run"}, {"exit_status", 0}};
    json.update(document_);
    json["tokens"] = tokens_to_json(model_, tokens_);
    json["prediction"] = to_json(model_, top);
    json["saved"] = saved_;
    return print_json(json);
  }
  std::string text = heading() + points_table(verdict) + with_coloured_status(verdict.summary()) +
                     "\n" + faults_.in_words(verdict.status);
  if (!top.empty()) text += "next token:";
  for (const RankedToken& t : top)
    text += "  " + quoted_token(token_text(model_, t.token)) + " " + percent(t.probability);
  if (!top.empty()) text += "\n";
  if (!saved_.is_null())
    text += "saved " + saved_["activations"].dump() + " activations, " +
            bytes_in_words(saved_["bytes"].get<std::size_t>()) + ": " + o_.out + "\n";
  print(text);
}

ExitStatus Run::checked() {
  std::optional<VerifiedCache> cache;
  try {
    cache.emplace(run_checked(o_, model_, tokens_, options()));
  } catch (const VerificationFailed& e) {
    // Where it went wrong; what is wrong is said by the message that ends the program.
    if (!o_.json)
      print(heading() + points_table(e.verdict()) + faults_.in_words(e.verdict().status));
    if (!o_.out.empty()) complain("[--out] nothing was written to " + o_.out);
    throw;
  }
  describe(cache->verdict(), cache->record());
  save_if_asked(*cache);
  std::vector<RankedToken> top;
  if (model_.config().head == Head::unembedding)
    top = as_lens(cache->output()).top_k(0, 0, -1, std::min(kPredictions, model_.config().d_vocab));
  report(cache->verdict(), top);
  return ExitStatus::done;
}

// No word on what such a run predicts: that would be an analysis.
ExitStatus Run::unchecked() {
  std::optional<UnverifiedCache> cache;
  on_device(o_, [&] { cache.emplace(model_.run_unverified(tokens_, options())); });
  describe(cache->verdict(), cache->record());
  save_if_asked(*cache);
  report(cache->verdict(), {});
  return ExitStatus::done;
}

ExitStatus run(const Options& o) {
  VerifyMode mode = verify_mode(o);
  if (!o.out.empty()) checked_output(o.out);
  Run run(o);
  return mode == VerifyMode::off ? run.unchecked() : run.checked();
}

}  // namespace

Action add_run(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("run", "Run a prompt, check every activation, save them");
  add_input_options(command, *o, o->prompt);
  command
      .add_option("--out", o->out,
                  "Save the run: FILE.h5, sealed, or an export as FILE.safetensors;\nwithout it, "
                  "nothing is saved")
      ->type_name("FILE")
      ->group("Output");
  add_common_options(command, *o);
  add_checking_options(command, *o);
  command.footer(kFooter);
  return [o] { return run(*o); };
}

}  // namespace lenscpp::command
