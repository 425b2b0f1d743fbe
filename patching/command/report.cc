// From verdicts, lenses and caches to tables, documents and files.
#include "patching/command/report.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>

#include "hooks/build_info.h"
#include "hooks/checkpoint/safetensors.h"
#include "hooks/nearest.h"
#include "lens/saved_run.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace fs = std::filesystem;
using nlohmann::ordered_json;
std::string token_text(const HookedTransformer& model, std::int64_t id) {
  return model.tokenizer().contains(id) ? model.tokenizer().token(id)
                                        : "<id " + std::to_string(id) + ">";
}

std::string tokens_in_words(const HookedTransformer& model, const Tokens& tokens) {
  constexpr std::size_t kAtEitherEnd = 16;
  std::size_t n = tokens.ids.size();
  std::string words = std::to_string(n) + (n == 1 ? " token:" : " tokens:");
  for (std::size_t i = 0; i < n; ++i) {
    if (n > 2 * kAtEitherEnd && i == kAtEitherEnd) {
      words += " ...";
      i = n - kAtEitherEnd;
    }
    words += " " + quoted_token(token_text(model, tokens.ids[i]));
  }
  return words;
}

std::string model_in_words(const HookedTransformer& model) {
  return styled(model.name() + " on " + model.options().device + " in " +
                    std::string(name_of(model.options().dtype)),
                Style::bold);
}

ordered_json tokens_to_json(const HookedTransformer& model, const Tokens& tokens) {
  ordered_json list = ordered_json::array();
  for (std::int64_t id : tokens.ids)
    list.push_back({{"token", id}, {"text", token_text(model, id)}});
  return list;
}

ordered_json to_json(const HookedTransformer& model, const std::vector<RankedToken>& top) {
  ordered_json list = ordered_json::array();
  for (const RankedToken& t : top)
    list.push_back({{"token", t.token},
                    {"text", token_text(model, t.token)},
                    {"logit", t.logit},
                    {"probability", t.probability}});
  return list;
}

nlohmann::json record_to_json(const RunRecord& record, const CommonOptions& options) {
  nlohmann::json json = to_json(record);
  json["seed"] = options.seed;
  return json;
}

LogitLens as_lens(const Array& logits) {
  return {{"output"},
          logits.reshaped({1, logits.size(0), logits.size(1), logits.size(2)}),
          Site::unembed_out,
          true};
}

std::string points_table(const Verdict& verdict) {
  std::string table = verdict.table();
  std::size_t summary = table.size() - verdict.summary().size();
  return table.substr(0, summary) + (summary == 0 ? "" : "\n");
}

std::string lens_table(const HookedTransformer& model, const LogitLens& lens, std::int64_t followed,
                       std::int64_t k) {
  std::string name = quoted_token(token_text(model, followed));
  std::vector<Table::Column> columns = {
      {"layer"}, {"rank of " + name, true}, {"P(" + name + ")", true}};
  for (std::int64_t i = 1; i <= k; ++i) {
    columns.push_back({std::to_string(i) + "."});
    columns.push_back({"", true});
  }
  Table table(columns);
  Array rank = lens.rank(followed), probs = lens.probs();
  std::int64_t n_pos = lens.logits().size(2), vocab = lens.logits().size(3);
  for (std::int64_t l = 0; l < lens.logits().size(0); ++l) {
    std::int64_t row = l * n_pos + n_pos - 1;
    std::vector<std::string> cells = {lens.labels()[l],
                                      std::to_string(static_cast<std::int64_t>(rank[row])),
                                      percent(probs[row * vocab + followed])};
    for (const RankedToken& t : lens.top_k(l, 0, -1, k)) {
      cells.push_back(quoted_token(token_text(model, t.token)));
      cells.push_back(percent(t.probability));
    }
    table.add(std::move(cells));
  }
  return table.str();
}

ordered_json lens_to_json(const HookedTransformer& model, const LogitLens& lens,
                          std::int64_t followed, std::int64_t k) {
  Array rank = lens.rank(followed), probs = lens.probs(), entropy = lens.entropy();
  std::int64_t n_pos = lens.logits().size(2), vocab = lens.logits().size(3);
  ordered_json layers = ordered_json::array();
  for (std::int64_t l = 0; l < lens.logits().size(0); ++l) {
    std::int64_t row = l * n_pos + n_pos - 1;
    layers.push_back({{"label", lens.labels()[l]},
                      {"rank", static_cast<std::int64_t>(rank[row])},
                      {"probability", probs[row * vocab + followed]},
                      {"entropy_nats", entropy[row]},
                      {"top", to_json(model, lens.top_k(l, 0, -1, k))}});
  }
  return layers;
}

fs::path checked_output(const std::string& text, const std::vector<std::string>& suffixes) {
  fs::path path = text;
  if (std::ranges::find(suffixes, path.extension().string()) == suffixes.end()) {
    std::string allowed;
    for (const std::string& suffix : suffixes) allowed += (allowed.empty() ? "" : ", ") + suffix;
    throw std::invalid_argument("[--out] " + in_quotes(text) +
                                ": the suffix says how it is saved; allowed: " + allowed);
  }
  if (fs::is_directory(path))
    throw std::invalid_argument("[--out] " + in_quotes(text) + " is a folder; needed: a file");
  fs::path folder = path.has_parent_path() ? path.parent_path() : ".";
  if (!fs::is_directory(folder))
    throw std::invalid_argument("[--out] " + in_quotes(text) + ": there is no folder " +
                                in_quotes(folder.string()));
  if (::access(folder.c_str(), W_OK) != 0)
    throw std::invalid_argument("[--out] " + in_quotes(text) + ": cannot write into " +
                                in_quotes(folder.string()) + ": " +
                                std::generic_category().message(errno));
  return path;
}

std::uintmax_t save(const fs::path& path, const std::map<std::string, Array>& activations,
                    const Tokens& tokens, const ordered_json& document) {
  std::map<std::string, Array> tensors = activations;
  tensors["tokens"] = Array::of(tokens.ids, {tokens.batch, tokens.pos});
  std::map<std::string, std::string> metadata = {{"lenscpp.version", lenscpp_version()}};
  for (const auto& [key, value] : document.items())
    metadata["lenscpp." + key] =
        value.is_string() ? value.get<std::string>()
                          : value.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  Progress progress("saving " + path.string());
  Uninterrupted until_renamed;
  write_safetensors(path, tensors, metadata);
  return fs::file_size(path);
}

template <class Cache>
std::uintmax_t save_sealed(const fs::path& path, const Cache& cache, const HookedTransformer& model,
                           nlohmann::json remarks) {
  Progress progress("saving " + path.string());
  Uninterrupted until_renamed;
  save_run(path, cache,
           {.strings = token_strings(model.tokenizer(), cache.record().tokens),
            .remarks = std::move(remarks)});
  return fs::file_size(path);
}
template std::uintmax_t save_sealed(const fs::path&, const VerifiedCache&, const HookedTransformer&,
                                    nlohmann::json);
template std::uintmax_t save_sealed(const fs::path&, const UnverifiedCache&,
                                    const HookedTransformer&, nlohmann::json);

std::map<std::string, Array> activations_of(const VerifiedCache& cache) {
  std::map<std::string, Array> all;
  for (const auto& entry : cache.activations().entries()) all[entry.name] = cache[entry.name];
  return all;
}

std::map<std::string, Array> activations_of(const UnverifiedCache& cache) {
  std::map<std::string, Array> all;
  for (const auto& entry : cache.activations().entries()) all[entry.name] = entry.value;
  return all;
}

void print_json(const ordered_json& document) {
  print(document.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace lenscpp::command
