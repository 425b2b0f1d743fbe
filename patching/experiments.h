// Experiments as data: a pair of prompts, two answers, and what to patch between the prompts. Read
// from JSON Lines; turned into tokens for a model, or rejected with a reason.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "lens/hooked_transformer.h"
#include "patching/metrics.h"
#include "patching/patch_grid.h"

namespace lenscpp {

/// A prompt: a text, or the token ids of one (as they are: no beginning-of-text token is added).
using Prompt = std::variant<std::string, std::vector<std::int64_t>>;
/// Text that is one token, or its id.
using AnswerToken = std::variant<std::string, std::int64_t>;

/// What is patched: a site by name ("resid_pre", "head_z") and the axes of its grid. No axes:
/// positions of what has no heads, else heads, as `lenscpp patch` chooses.
struct PatchedSite {
  std::string site;
  std::vector<std::string> over = {};
};

/// A position with a name that it shares with other experiments: {"S2", 10}, negative from the end.
struct NamedPosition {
  std::string name;
  std::int64_t pos;
};

/// One pair of prompts of equal length.
struct Experiment {
  std::string id;  // each once
  Prompt clean, corrupted;
  std::vector<AnswerToken> answer, wrong;  // one of each; several with the metric prob_diff
  std::vector<PatchedSite> sites = {};     // none: the batch's
  /// Which positions are patched; unset: all.
  std::optional<std::vector<NamedPosition>> positions = {};
  /// Experiments of one template are not independent of each other: statistics take such a cluster
  /// as one. Empty: each experiment by itself.
  std::string cluster = {};
  /// "logit_diff", "prob_diff", "prob" or "log_prob"; empty: logit_diff, of several answers
  /// prob_diff.
  std::string metric = {};
};

/// {"id", "clean", "corrupted", "answer", "wrong", "sites", "positions", "template", "metric"}, as
/// in the README of patching/. Throws std::invalid_argument naming `where`, the key and what is
/// allowed, for anything that is missing, unknown or of another type.
Experiment experiment_from_json(const nlohmann::json& json, const std::string& where);
nlohmann::json to_json(const Experiment& experiment);
/// Of a JSON Lines file, empty lines left out; an experiment without an id is "line N". Throws
/// std::invalid_argument naming the line, also for an id that is there twice and a file without
/// experiments; std::system_error when it cannot be read.
std::vector<Experiment> read_experiments(const std::filesystem::path& path);
/// Writes such a file, by renaming a complete one. Throws std::system_error.
void write_experiments(const std::filesystem::path& path,
                       const std::vector<Experiment>& experiments);

/// Why an experiment is not run, or not counted.
enum class Reason : std::uint8_t {
  unequal_lengths,  // clean and corrupted are not of as many tokens
  too_long,         // for the model
  not_one_token,    // an answer
  same_answers,     // answer and wrong are the same token
  clean_wrong,      // the clean run prefers the wrong answer
  too_close         // |clean - corrupted| is below the least difference
};
std::string_view name_of(Reason reason);  // "unequal_lengths", ...
struct Rejection {
  std::string id;
  Reason reason;
  std::string what;  // in words
};
nlohmann::json to_json(const Rejection& rejection);

/// A site of a grid with its axes.
struct GridSite {
  Site site;
  std::vector<Axis> over;
  /// "resid_pre_by_layer_pos": what it is called in files.
  std::string key() const;
};

/// An experiment as tokens of a model.
struct Tokenized {
  std::string id, cluster;
  std::int64_t index = 0;  // among the experiments of its batch; not part of what it is
  std::vector<std::int64_t> clean, corrupted, answer, wrong;
  std::vector<GridSite> sites;
  std::optional<std::vector<NamedPosition>> positions;  // from the start
  std::string metric;
};
nlohmann::json to_json(const Tokenized& experiment);

/// Which sites are patched where an experiment does not say, and how its text becomes tokens.
struct TokenizeOptions {
  std::vector<PatchedSite> sites = {{"resid_pre"}, {"head_z"}};
  std::optional<bool> prepend_bos = {};  // unset: the model's default
};
/// Throws std::invalid_argument naming the experiment for what no model could run: unknown sites,
/// axes, metrics, positions out of range, ids out of range, an empty prompt.
std::variant<Tokenized, Rejection> tokenize(const HookedTransformer& model,
                                            const Experiment& experiment,
                                            const TokenizeOptions& options = {});

/// The axes of a site where nobody says which: positions of what has no heads, else heads.
std::vector<Axis> usual_axes(Site site);

}  // namespace lenscpp
