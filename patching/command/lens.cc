// lenscpp lens: what each layer would predict, from verified activations.
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp lens tiny-ioi --prompt "When John and Mary went to the store, John gave the bag to"
  lenscpp lens tiny-ioi --prompt "When John and Mary went to" --site attn_out --top 3 --pos -2
  lenscpp lens path/to/gpt2 --prompt "The Eiffel Tower is in" --json | jq '.layers[].rank'

A row is a layer: the rank (0 is the most likely) and the probability there of what the model predicts in the
end, and the most likely tokens. Only verified activations are read: --verify off is refused with status 3.
)";

struct Options : CommonOptions {
  std::string prompt, site = "resid_pre";
  std::int64_t top = 5, pos = -1;
  bool no_ln = false;
};

std::int64_t position(std::int64_t pos, std::int64_t n_pos) {
  if (pos >= -n_pos && pos < n_pos) return pos < 0 ? pos + n_pos : pos;
  throw std::out_of_range("[--pos] " + std::to_string(pos) + " out of range: the prompt has " +
                          std::to_string(n_pos) + " tokens (0.." + std::to_string(n_pos - 1) +
                          ", or -" + std::to_string(n_pos) + "..-1 from the end)");
}

// What the lens reads: its site in every layer, the final residual and the run's own final scale.
bool reads(const std::string& name, Site site, std::int64_t n_layers) {
  return name.ends_with("." + std::string(info(site).name)) ||
         name == hook_name(Site::resid_post, n_layers - 1) ||
         name == hook_name(Site::ln_final_scale, 0);
}

std::string heading(const HookedTransformer& model, const Tokens& tokens, const Options& o,
                    std::int64_t pos) {
  return model_in_words(model) + "\n" + tokens_in_words(model, tokens) + "\n\n" + "logit lens of " +
         o.site + (o.no_ln ? " without the final norm" : "") + " at position " +
         std::to_string(pos) + " of 0.." + std::to_string(tokens.pos - 1) + ", " +
         quoted_token(token_text(model, tokens.ids[pos])) + "\n\n";
}

ExitStatus lens(const Options& o) {
  Site site = lens_site(o.site);
  if (verify_mode(o) == VerifyMode::off)
    throw NotVerified(
        "[--verify] off: the logit lens reads verified activations only; leave --verify away, or "
        "set it to exact");
  HookedTransformer model = load(o);
  Tokens tokens = model.to_tokens(o.prompt);
  std::int64_t pos = position(o.pos, tokens.pos);
  if (o.top > model.config().d_vocab)
    throw std::out_of_range("[--top] " + std::to_string(o.top) +
                            " out of range: the vocabulary has " +
                            std::to_string(model.config().d_vocab) + " tokens");
  Faults faults(o, model.config());
  VerifiedCache cache = run_checked(
      o, model, tokens,
      {.filter =
           [&](const std::string& name) { return reads(name, site, model.config().n_layers); },
       .pos_slice = std::vector<std::int64_t>{pos},
       .interference = faults.interference(),
       .device_faults = faults.device_faults()});
  LogitLens table = logit_lens(cache, {.site = site, .apply_ln = !o.no_ln});
  auto prediction = as_lens(cache.output()).top_k(0, 0, pos, 1);
  std::int64_t final_token = prediction.at(0).token;
  if (o.json) {
    print_json({{"command", "lens"},
                {"exit_status", 0},
                {"status", name_of(cache.verdict().status)},
                {"prompt", o.prompt},
                {"tokens", tokens_to_json(model, tokens)},
                {"site", o.site},
                {"apply_ln", !o.no_ln},
                {"pos", pos},
                {"prediction", to_json(model, prediction).at(0)},
                {"layers", lens_to_json(model, table, final_token, o.top)},
                {"verdict", to_json(cache.verdict())},
                {"record", record_to_json(cache.record(), o)},
                {"injected", faults.to_json()}});
    return ExitStatus::done;
  }
  print(heading(model, tokens, o, pos) + lens_table(model, table, final_token, o.top) + "\n" +
        with_coloured_status(cache.verdict().summary()) + "\n" +
        faults.in_words(cache.verdict().status));
  return ExitStatus::done;
}

}  // namespace

Action add_lens(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command =
      *program.add_subcommand("lens", "The logit lens: what each layer would predict");
  add_input_options(command, *o, o->prompt);
  command.add_option("--pos", o->pos, "Which position to read; negative from the end")
      ->type_name("N")
      ->group("Input")
      ->capture_default_str()
      ->check(whole_number(-kAnyNumber, kAnyNumber));
  command.add_option("--site", o->site, "resid_pre, resid_mid, resid_post, attn_out or mlp_out")
      ->type_name("SITE")
      ->group("Input")
      ->capture_default_str();
  command.add_flag("--no-ln", o->no_ln, "Unembed without the final norm")->group("Input");
  command.add_option("--top", o->top, "How many tokens a layer")
      ->type_name("N")
      ->group("Output")
      ->capture_default_str()
      ->check(whole_number(1, kAnyNumber));
  add_common_options(command, *o);
  add_checking_options(command, *o);
  command.footer(kFooter);
  return [o] { return lens(*o); };
}

}  // namespace lenscpp::command
