// lenscpp patch: grids of patches, drawn in the terminal and as a page.

#include "hooks/nearest.h"
#include "patching/command/common.h"
#include "patching/command/heat_map.h"
#include "patching/command/report.h"
#include "patching/command/terminal.h"
#include "patching/grid_file.h"

namespace lenscpp::command {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

constexpr std::size_t kMostMaps = 24;  // in the terminal

constexpr const char* kFooter = R"(Examples:
  lenscpp patch tiny-ioi --clean "When John and Mary went to the store, John gave the bag to" --corrupted "When John and Mary went to the store, Mary gave the bag to" --answer " Mary" --wrong " John"
  lenscpp patch tiny-ioi --clean "When John and Mary went to the store, John gave the bag to" --corrupted "When John and Mary went to the store, Mary gave the bag to" --answer " Mary" --wrong " John" --site resid_pre,head_z,mlp_out --html patches.html --out grid.h5
  lenscpp patch tiny-ioi --clean "When John and Mary went to the store, John gave the bag to" --corrupted "When John and Mary went to the store, Mary gave the bag to" --answer " Mary" --wrong " John" --site pattern --over layer,head,query --direction noise --json

Each cell is a run of the corrupted prompt into which one activation of the clean run was written (--direction noise:
the reverse), and the logit difference of --answer and --wrong at its last position: 0 as in the corrupted run, 1 as in
the clean one. Every such run is verified. One that is refused loses its cells, which are marked; the status is then 3.
)";

struct Options : CommonOptions {
  std::string clean, corrupted, answer, wrong, site = "resid_pre", over, direction = "denoise",
                                               html, out;
  std::int64_t cells = 0, inject_run = -1;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t at = 0; at <= text.size();) {
    std::size_t comma = std::min(text.find(',', at), text.size());
    parts.push_back(text.substr(at, comma - at));
    at = comma + 1;
  }
  return parts;
}

fs::path checked_page(const std::string& text) {
  fs::path path = text;
  fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (path.extension() != ".html" || fs::is_directory(path) || !fs::is_directory(folder))
    throw std::invalid_argument("[--html] " + in_quotes(text) +
                                "; needed: a file FILE.html in a folder that exists");
  return path;
}

class Patching {
 public:
  explicit Patching(const Options& o)
      : o_(o),
        direction_(direction_from_name(o.direction)),
        model_(load(o)),
        metric_{model_.to_single_token(o.answer), model_.to_single_token(o.wrong)},
        faults_(o, model_.config()) {
    if (o.answer == o.wrong)
      throw std::invalid_argument("[patch] --answer and --wrong are the same token, \"" + o.answer +
                                  "\": their difference is 0 whatever is patched");
    for (const std::string& name : split(o.site))
      sites_.push_back(grid_site(name, model_.config()));
    for (Site site : sites_) over_.push_back(axes_of(site));
  }

  ExitStatus run();

 private:
  std::vector<Axis> axes_of(Site site) const;
  VerifiedCache base(const std::string& prompt) const;
  Interference interference() const;
  GridResult sweep(std::size_t i, const VerifiedCache& clean, const VerifiedCache& corrupted) const;
  void show(const GridResult& grid) const;
  ordered_json save_if_asked(const std::vector<GridResult>& grids) const;

  const Options& o_;
  Direction direction_;
  HookedTransformer model_;
  LogitDiff metric_;
  Faults faults_;
  std::vector<Site> sites_;
  std::vector<std::vector<Axis>> over_;  // of each
};

// Without --over: positions of what has no heads, else heads.
std::vector<Axis> Patching::axes_of(Site site) const {
  std::vector<Axis> axes;
  if (!o_.over.empty()) {
    for (const std::string& name : split(o_.over)) axes.push_back(grid_axis(site, name));
    return axes;
  }
  auto all = grid_axes(site);
  for (Axis axis : all)
    if (axis == Axis::layer || axis == Axis::head || axis == Axis::kv_head) axes.push_back(axis);
  if (axes.empty() || axes.back() == Axis::layer) axes = all;
  return axes;
}

Interference Patching::interference() const {
  Interference inner = faults_.interference();
  if (faults_.device_faults() && o_.inject_run >= 0)
    throw std::invalid_argument(
        "[--inject-run] a fault inside the device is in every run of a grid, or in one call: "
        "NAME:call=N");
  if (!inner || o_.inject_run < 0) return inner;
  struct Counter {
    std::int64_t run = 0;
    bool ended = false;  // logits are the last tensor of each
  };
  return [inner, now = std::make_shared<Counter>(), wanted = o_.inject_run](const TensorId& id,
                                                                            const at::Tensor& x) {
    bool logits = id.site >= Site::unembed_out;
    if (now->ended && !logits) ++now->run;
    now->ended = logits;
    return now->run == wanted ? inner(id, x) : x;
  };
}

VerifiedCache Patching::base(const std::string& prompt) const {
  std::vector<std::string> names;
  for (Site site : sites_)
    for (const std::string& name : PatchRuns::needed(site, model_.config())) names.push_back(name);
  return run_checked(o_, model_, model_.to_tokens(prompt),
                     {.verify = VerifyMode::exact,
                      .names = names,
                      .interference = o_.inject_run < 0 ? faults_.interference() : Interference(),
                      .device_faults = faults_.device_faults()});
}

GridResult Patching::sweep(std::size_t i, const VerifiedCache& clean,
                           const VerifiedCache& corrupted) const {
  std::optional<Progress> progress;
  GridOptions options{.site = sites_[i],
                      .over = over_[i],
                      .direction = direction_,
                      .verify = verify_mode(o_),
                      .interference = interference(),
                      .device_faults = faults_.device_faults(),
                      .progress = [&](std::int64_t done, std::int64_t cells) {
                        progress.emplace("patching " + short_name(sites_[i]) + ": " +
                                         std::to_string(done) + " of " + std::to_string(cells));
                      }};
  if (o_.cells > 0) options.max_cells = o_.cells;
  std::optional<GridResult> grid;
  on_device(o_, [&] { grid = patch_grid(model_, clean, corrupted, options, metric_); });
  return std::move(*grid);
}

void Patching::show(const GridResult& grid) const {
  if (o_.json) return;
  std::string text = styled(grid_in_words(grid), Style::bold) + "\n";
  auto maps = heat_maps(grid);
  for (std::size_t i = 0; i < std::min(maps.size(), kMostMaps); ++i)
    text += heat_map_text(maps[i]) + "\n";
  if (maps.size() > kMostMaps)
    text += std::to_string(maps.size() - kMostMaps) + " of " + std::to_string(maps.size()) +
            " maps are not shown; --html and --json have them all\n\n";
  print(text + with_coloured_status(grid.verdict().summary()) + "\n\n");
}

// One file a grid: with several sites, each has its name before the suffix.
ordered_json Patching::save_if_asked(const std::vector<GridResult>& grids) const {
  ordered_json saved = ordered_json::array();
  if (o_.out.empty()) return saved;
  for (const GridResult& grid : grids) {
    fs::path path = o_.out;
    if (grids.size() > 1)
      path.replace_filename(path.stem().string() + "-" + short_name(grid.site()) +
                            path.extension().string());
    Uninterrupted until_renamed;
    save_grid(path, grid);
    saved.push_back(path.string());
    if (!o_.json) print("saved: " + path.string() + "\n");
  }
  return saved;
}

ExitStatus Patching::run() {
  VerifiedCache clean = base(o_.clean), corrupted = base(o_.corrupted);
  if (!o_.json) {
    print(model_in_words(model_) + "\n");
    for (const auto& [which, prompt] :
         {std::pair("clean     ", o_.clean), {"corrupted ", o_.corrupted}})
      print(which + tokens_in_words(model_, model_.to_tokens(prompt)) + "\n");
    print("\n");
  }
  std::vector<GridResult> grids;
  ordered_json list = ordered_json::array();
  for (std::size_t i = 0; i < sites_.size(); ++i) try {
      grids.push_back(sweep(i, clean, corrupted));
      show(grids.back());
      list.push_back(grid_to_json(grids.back()));
    } catch (const GridFailed& e) {
      show(e.partial());
      if (!o_.json) print(faults_.in_words(Status::invalid));
      for (const auto& [option, path] : {std::pair("[--html]", o_.html), {"[--out]", o_.out}})
        if (!path.empty()) complain(std::string(option) + " nothing was written to " + path);
      throw;
    }
  if (!o_.html.empty()) {
    write_page(
        o_.html, grids,
        {"clean: " + o_.clean, "corrupted: " + o_.corrupted,
         "logit difference of " + quoted_token(o_.answer) + " and " + quoted_token(o_.wrong)});
    if (!o_.json) print("written: " + o_.html + "\n");
  }
  ordered_json saved = save_if_asked(grids);
  Status status = grids[0].verdict().status;
  if (!o_.json) print(faults_.in_words(status));
  if (o_.json)
    print_json({{"command", "patch"},
                {"exit_status", 0},
                {"status", name_of(status)},
                {"clean", {{"prompt", o_.clean}, {"record", record_to_json(clean.record(), o_)}}},
                {"corrupted",
                 {{"prompt", o_.corrupted}, {"record", record_to_json(corrupted.record(), o_)}}},
                {"answer", o_.answer},
                {"wrong", o_.wrong},
                {"grids", list},
                {"saved", saved},
                {"html", o_.html.empty() ? ordered_json() : ordered_json(o_.html)},
                {"injected", faults_.to_json()}});
  return ExitStatus::done;
}

}  // namespace

Action add_patch(CLI::App& program) {
  auto o = std::make_shared<Options>();
  o->verify = "checksum";  // of the patched runs; the two prompts' own are checked exactly
  CLI::App& command =
      *program.add_subcommand("patch", "Activation patching: what causes what, as grids in colour");
  auto text = [&](const char* name, std::string& value, const char* what,
                  const char* type = "TEXT") {
    return command.add_option(name, value, what)->type_name(type)->group("Input");
  };
  add_model_option(command, *o);
  text("--clean", o->clean, "The prompt with the answer that is asked for")->required();
  text("--corrupted", o->corrupted, "The same in as many tokens, with another answer")->required();
  text("--answer", o->answer, "The token that answers the clean prompt, as \" Mary\"", "TOKEN")
      ->required();
  text("--wrong", o->wrong, "The token that answers the corrupted one", "TOKEN")->required();
  text("--site", o->site,
       "What is patched, a grid each: resid_pre, resid_mid, resid_post, attn_out,\nmlp_out, "
       "head_z, head_q, head_k, head_v, pattern, ...",
       "SITES")
      ->capture_default_str();
  text("--over", o->over,
       "Axes, as layer,pos or layer,head,query,key; without it layers and heads,\nor layers and "
       "positions of what has no heads",
       "AXES");
  text("--direction", o->direction, "denoise: clean into corrupted; noise: corrupted into clean",
       "WORD")
      ->capture_default_str();
  command
      .add_option("--out", o->out,
                  "Save the grids: FILE.h5; with several sites FILE-SITE.h5 for each")
      ->type_name("FILE")
      ->group("Output");
  command.add_option("--html", o->html, "Also as a page of its own: FILE.html")
      ->type_name("FILE")
      ->group("Output");
  command
      .add_option("--cells-per-run", o->cells,
                  "Patches that share a run, at most; 0: as many as fit")
      ->type_name("N")
      ->group("Running")
      ->capture_default_str()
      ->check(whole_number(0, kAnyNumber));
  add_common_options(command, *o);
  add_checking_options(command, *o);
  command
      .add_option(
          "--inject-run", o->inject_run,
          "Only in this run of the patches, counted from 0 for each grid (the\nlast one runs "
          "two cells again, as a whole); without it in "
          "every run, those of the two prompts included")
      ->type_name("N")
      ->group("Checking")
      ->check(whole_number(0, kAnyNumber));
  command.footer(kFooter);
  return [o] {
    verify_mode(*o);
    if (!o->html.empty()) checked_page(o->html);
    if (!o->out.empty()) checked_output(o->out, {".h5"});
    return Patching(*o).run();
  };
}

}  // namespace lenscpp::command
