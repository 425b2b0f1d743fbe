// lenscpp demo: the main job on the model that ships, and the refusal that everything here is for.
#include <algorithm>

#include "patching/command/common.h"
#include "patching/command/heat_map.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"
#include "patching/grid_file.h"

namespace lenscpp::command {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr const char* kModel = "tiny-ioi";
constexpr const char* kPrompt = "When John and Mary went to the store, John gave the bag to";
constexpr const char* kCorrupted = "When John and Mary went to the store, Mary gave the bag to";
constexpr const char* kAnswer = " Mary";
constexpr const char* kWrong = " John";
constexpr const char* kRun = "run.h5";
constexpr const char* kPage = "patches.html";
constexpr std::int64_t kTop = 3;

constexpr const char* kFooter = R"(Examples:
  lenscpp demo
  lenscpp demo --dtype bfloat16 --out demo        # saves the run, both grids and a page of pictures
  lenscpp demo --device cuda

Ends with status 0 when the run was verified, the right name won, the faulty run was refused at the right place,
and the same change, declared as an edit, was verified.
)";

struct Options : CommonOptions {
  std::string out;
};

// What a run says about the two names, at its last position.
struct Answer {
  double p_answer, p_wrong, logit_difference;
  std::int64_t top;  // the most likely token
};

// A head of one layer.
struct Head {
  std::int64_t layer, head;
  std::string name() const {
    return "head " + std::to_string(head) + " of " + hook_name(Site::z, layer);
  }
};

// How the faulty run went.
struct Refusal {
  std::string message;
  bool at_the_fault;  // the first failing point is where the fault is
  Answer unchecked;   // what nobody may read, and would have, without the check
  nlohmann::json verdict;
};

class Demo {
 public:
  explicit Demo(const Options& o)
      : o_(o),
        model_(load(o)),
        answer_(model_.to_single_token(kAnswer)),
        wrong_(model_.to_single_token(kWrong)),
        tokens_(model_.to_tokens(kPrompt)) {}

  ExitStatus run();

 private:
  VerifiedCache check();
  Answer look(const VerifiedCache& cache);
  std::vector<GridResult> patch(const VerifiedCache& cache);
  void save_if_asked(const VerifiedCache& cache, const std::vector<GridResult>& grids);
  void inject(const Head& head);
  void declare(const Head& head);
  ExitStatus conclude();

  Answer answer_of(const Array& logits) const;
  VerifiedCache without(const Head& head) const;
  Head most_needed_head(double logit_difference) const;
  std::optional<Refusal> with_fault(const Head& head) const;
  ordered_json to_json(const Answer& a) const;
  std::string in_words(const Answer& a) const;
  void say(const std::string& text) const {
    if (!o_.json) print(text);
  }
  void title(const std::string& text) const { say(styled(text, Style::bold) + "\n"); }

  const Options& o_;
  HookedTransformer model_;
  std::int64_t answer_, wrong_;
  Tokens tokens_;
  ordered_json document_{{"command", "demo"}};
  std::vector<std::string> shortcomings_;  // what was not as it should be
};

Answer Demo::answer_of(const Array& logits) const {
  auto top = as_lens(logits).top_k(0, 0, -1, model_.config().d_vocab);
  auto of = [&](std::int64_t token) { return *std::ranges::find(top, token, &RankedToken::token); };
  return {.p_answer = of(answer_).probability,
          .p_wrong = of(wrong_).probability,
          .logit_difference = of(answer_).logit - of(wrong_).logit,
          .top = top[0].token};
}

// Zeroed as a declared edit: a verified run like any other.
VerifiedCache Demo::without(const Head& head) const {
  Plan plan({Edit{
      .kind = EditKind::zero, .site = Site::z, .layer = head.layer, .where = {.head = head.head}}});
  return model_.run_with_cache(tokens_, {.names = std::vector<std::string>{}, .plan = plan});
}

// The head without which the two names are told apart least.
Head Demo::most_needed_head(double logit_difference) const {
  Progress progress("looking for the head that matters most");
  Head most{0, 0};
  double least = logit_difference;
  for (std::int64_t l = 0; l < model_.config().n_layers; ++l)
    for (std::int64_t h = 0; h < model_.config().n_heads; ++h) {
      double without_it = answer_of(without({l, h}).output()).logit_difference;
      if (without_it >= least) continue;
      least = without_it;
      most = {l, h};
    }
  return most;
}

// The same zeroes, written by nobody's wish: nothing if that goes through.
std::optional<Refusal> Demo::with_fault(const Head& head) const {
  std::string hook = hook_name(Site::z, head.layer);
  FaultSpec fault{
      .name = "head", .parameters = {{"head", static_cast<double>(head.head)}}, .hook = hook};
  auto injector = std::make_shared<FaultInjector>(std::vector<FaultSpec>{fault}, model_.config());
  RunOptions run{.names = std::vector<std::string>{}, .interference = interference_of(injector)};
  try {
    model_.run_with_cache(tokens_, run);
    return {};
  } catch (const VerificationFailed& e) {
    const Point* first = e.verdict().first_failure();
    return Refusal{.message = e.what(),
                   .at_the_fault = first != nullptr && to_string(first->id) == hook,
                   .unchecked = answer_of(e.unverified_cache().activations().output().value),
                   .verdict = lenscpp::to_json(e.verdict())};
  }
}

ordered_json Demo::to_json(const Answer& a) const {
  return {{"p_answer", a.p_answer},
          {"p_wrong", a.p_wrong},
          {"logit_difference", a.logit_difference},
          {"top", token_text(model_, a.top)}};
}

std::string Demo::in_words(const Answer& a) const {
  return "P(" + quoted_token(kAnswer) + ") " + percent(a.p_answer) + ", P(" + quoted_token(kWrong) +
         ") " + percent(a.p_wrong) + ", logit difference " + (a.logit_difference >= 0 ? "+" : "") +
         fixed(a.logit_difference, 2);
}

VerifiedCache Demo::check() {
  title("1  A run, checked");
  say(model_in_words(model_) + "\n" + tokens_in_words(model_, tokens_) + "\n\n");
  VerifiedCache cache = run_checked(o_, model_, tokens_, {});
  say(points_table(cache.verdict()) + with_coloured_status(cache.verdict().summary()) + "\n\n");
  document_.update({{"status", name_of(cache.verdict().status)},
                    {"prompt", kPrompt},
                    {"tokens", tokens_to_json(model_, tokens_)},
                    {"verdict", lenscpp::to_json(cache.verdict())},
                    {"record", record_to_json(cache.record(), o_)}});
  return cache;
}

Answer Demo::look(const VerifiedCache& cache) {
  Answer clean = answer_of(cache.output());
  title("2  What it says");
  say(in_words(clean) + "\n\n");
  LogitLens lens = logit_lens(cache);
  title("3  The logit lens: when does the model know?");
  say(lens_table(model_, lens, answer_, kTop) + "\n");
  document_.update({{"answer", kAnswer},
                    {"wrong", kWrong},
                    {"clean", to_json(clean)},
                    {"layers", lens_to_json(model_, lens, answer_, kTop)}});
  if (clean.top != answer_)
    shortcomings_.push_back("the model's first choice is " +
                            quoted_token(token_text(model_, clean.top)) + ", not " +
                            quoted_token(kAnswer));
  return clean;
}

// What carries the answer: two grids of patches, each of them a verified run.
std::vector<GridResult> Demo::patch(const VerifiedCache& cache) {
  title("4  Activation patching: what carries the answer?");
  say("clean      " + tokens_in_words(model_, tokens_) + "\ncorrupted  " +
      tokens_in_words(model_, model_.to_tokens(kCorrupted)) + "\n\n");
  std::vector<GridResult> grids;
  ordered_json list = ordered_json::array();
  for (const auto& [site, over] : {std::pair{Site::resid_pre, std::vector{Axis::layer, Axis::pos}},
                                   {Site::z, {Axis::layer, Axis::head}}}) {
    Progress progress("patching " + short_name(site));
    grids.push_back(patch_grid(model_, cache, model_.to_tokens(kCorrupted),
                               {.site = site, .over = over}, LogitDiff{answer_, wrong_}));
    list.push_back(grid_to_json(grids.back()));
  }
  for (const GridResult& grid : grids) {
    say(styled(grid_in_words(grid), Style::bold) + "\n");
    for (const HeatMap& map : heat_maps(grid)) say(heat_map_text(map) + "\n");
    say(with_coloured_status(grid.verdict().summary()) + "\n\n");
  }
  document_["grids"] = list;
  return grids;
}

void Demo::save_if_asked(const VerifiedCache& cache, const std::vector<GridResult>& grids) {
  document_["saved"] = ordered_json::array();
  if (o_.out.empty()) return;
  fs::path folder = o_.out;
  auto saved = [&](const fs::path& file) {
    say("saved " + bytes_in_words(fs::file_size(file)) + ": " + file.string() + "\n");
    document_["saved"].push_back(file.string());
  };
  save_sealed(folder / kRun, cache, model_, {{"prompt", kPrompt}});
  saved(folder / kRun);
  for (const GridResult& grid : grids) {
    fs::path file = folder / (short_name(grid.site()) + ".h5");
    save_grid(file, grid);
    saved(file);
  }
  write_page(folder / kPage, grids,
             {std::string("clean: ") + kPrompt, std::string("corrupted: ") + kCorrupted});
  saved(folder / kPage);
  say("\n");
}

void Demo::inject(const Head& head) {
  std::optional<Refusal> refusal = with_fault(head);
  title("5  The same run on a device that silently zeroes " + head.name());
  document_["fault"] = {{"injected", head.name() + " zeroed"}, {"refused", refusal.has_value()}};
  if (!refusal)
    return shortcomings_.push_back("the run with " + head.name() + " zeroed was not refused");
  say("Unchecked it would have said: " + in_words(refusal->unchecked) + "; no error, no NaN.\n\n" +
      with_coloured_status(refusal->message) +
      "\n\nRefused by itself: no analysis can be given these numbers.\n\n");
  document_["fault"].update({{"message", refusal->message},
                             {"unchecked", to_json(refusal->unchecked)},
                             {"verdict", refusal->verdict}});
  if (!refusal->at_the_fault)
    shortcomings_.push_back("the first point of the refusal is not where the fault is");
}

void Demo::declare(const Head& head) {
  VerifiedCache cache = without(head);
  Answer answer = answer_of(cache.output());
  title("6  The same change, declared as an edit");
  say(in_words(answer) + "\n" + with_coloured_status(cache.verdict().summary()) + "\n\n");
  document_["declared"] = {{"status", name_of(cache.verdict().status)},
                           {"answer", to_json(answer)}};
}

ExitStatus Demo::conclude() {
  ExitStatus status = shortcomings_.empty() ? ExitStatus::done : ExitStatus::other;
  document_.update({{"exit_status", static_cast<int>(status)}, {"shortcomings", shortcomings_}});
  if (o_.json) print_json(document_);
  for (const std::string& what : shortcomings_) complain("[demo] " + what);
  if (shortcomings_.empty()) say("All as it should be.\n");
  return status;
}

ExitStatus Demo::run() {
  VerifiedCache cache = check();
  Answer clean = look(cache);
  on_device(o_, [&] {
    save_if_asked(cache, patch(cache));
    Head head = most_needed_head(clean.logit_difference);
    inject(head);
    declare(head);
  });
  return conclude();
}

// Made, if need be, before any work is done.
void prepare_folder(const std::string& folder) {
  if (folder.empty()) return;
  std::error_code error;
  fs::create_directories(folder, error);
  if (error)
    throw std::invalid_argument("[--out] the folder \"" + folder +
                                "\" cannot be made: " + error.message());
  checked_output((fs::path(folder) / kRun).string());
}

}  // namespace

Action add_demo(CLI::App& program) {
  auto o = std::make_shared<Options>();
  o->model = kModel;
  o->threads = 1;  // so small a model gains nothing from more
  CLI::App& command = *program.add_subcommand(
      "demo", "The whole job on the model that ships, and a faulty run refused");
  command.add_option("--out", o->out, "A folder for what is saved; without it, nothing is")
      ->type_name("DIR")
      ->group("Output");
  add_common_options(command, *o);
  command.footer(kFooter);
  return [o] {
    prepare_folder(o->out);
    return Demo(*o).run();
  };
}

}  // namespace lenscpp::command
