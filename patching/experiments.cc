// Experiments: JSON to and fro, and to tokens.
#include "patching/experiments.h"

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <map>
#include <set>
#include <stdexcept>
#include <system_error>

#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"
#include "verify/store/write_file.h"

namespace lenscpp {

using nlohmann::json;

namespace {

const std::vector<std::string> kKeys = {"id",    "clean",     "corrupted", "answer", "wrong",
                                        "sites", "positions", "template",  "metric"};
const std::vector<std::string> kMetrics = {"logit_diff", "prob_diff", "prob", "log_prob"};

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

bool is_number(std::string_view text) {
  if (text.starts_with('-')) text.remove_prefix(1);
  return !text.empty() && text.find_first_not_of("0123456789") == text.npos;
}

// The value of one key, with errors that name the place.
class Field {
 public:
  Field(const std::string& where, std::string key, const json& value)
      : where_(where), key_(std::move(key)), value_(value) {}

  [[noreturn]] void refuse(const std::string& needed) const {
    throw std::invalid_argument("[experiments] " + where_ + ": " + in_quotes(key_) + " is " +
                                show(value_) + "; needed: " + needed);
  }
  std::string text() const {
    if (!value_.is_string()) refuse("a text");
    return value_.get<std::string>();
  }
  std::int64_t integer(const json& one) const {
    if (!one.is_number_integer() ||
        (one.is_number_unsigned() && one.get<std::uint64_t>() > std::uint64_t{INT64_MAX}))
      refuse("whole numbers");
    return one.get<std::int64_t>();
  }
  std::string name() const {
    if (value_.is_number_integer()) return value_.dump();
    if (!value_.is_string() || value_.get<std::string>().empty()) refuse("a text or a number");
    return value_.get<std::string>();
  }
  Prompt prompt() const {
    if (value_.is_string()) return value_.get<std::string>();
    if (!value_.is_array() || value_.empty()) refuse("a text, or a list of token ids");
    std::vector<std::int64_t> ids;
    for (const json& one : value_) ids.push_back(integer(one));
    return ids;
  }
  std::vector<AnswerToken> tokens() const {
    std::vector<AnswerToken> result;
    for (const json& one : value_.is_array() ? value_ : json::array({value_})) {
      if (one.is_string())
        result.emplace_back(one.get<std::string>());
      else if (one.is_number_integer())
        result.emplace_back(integer(one));
      else
        refuse("a text that is one token, a token id, or a list of them");
    }
    if (result.empty()) refuse("at least one token");
    return result;
  }
  std::vector<PatchedSite> sites() const {
    std::vector<PatchedSite> result;
    if (!value_.is_array() || value_.empty()) refuse("a list of sites, such as [\"resid_pre\"]");
    for (const json& one : value_) {
      if (one.is_string()) {
        result.push_back({one.get<std::string>()});
        continue;
      }
      bool known = one.is_object() && one.size() == 2 && one.contains("site") &&
                   one.contains("over") && one["site"].is_string() && one["over"].is_array();
      if (!known || !std::ranges::all_of(one["over"], [](const json& a) { return a.is_string(); }))
        refuse("sites by name, or as {\"site\": \"z\", \"over\": [\"layer\", \"head\", \"pos\"]}");
      result.push_back({one["site"], one["over"]});
    }
    return result;
  }
  std::optional<std::vector<NamedPosition>> positions() const {
    if (value_ == "all") return {};
    std::vector<NamedPosition> result;
    if (value_.is_array())
      for (const json& one : value_) result.push_back({one.dump(), integer(one)});
    else if (value_.is_object())
      for (const auto& [name, one] : value_.items()) result.push_back({name, integer(one)});
    if (result.empty()) refuse("\"all\", [3, -1] or {\"S2\": 10, \"END\": -1}");
    // A name that is a number would be averaged with that position of other experiments.
    for (const NamedPosition& p : result)
      if (p.name.empty() || (is_number(p.name) && p.name != std::to_string(p.pos)))
        refuse("names of positions that are no numbers; found " + in_quotes(p.name));
    return result;
  }
  std::string one_of(const std::vector<std::string>& allowed) const {
    if (!value_.is_string() ||
        std::ranges::find(allowed, value_.get<std::string>()) == allowed.end())
      refuse("one of " + joined(allowed));
    return value_.get<std::string>();
  }

 private:
  const std::string& where_;
  std::string key_;
  const json& value_;
};

json tokens_to_json(const std::vector<AnswerToken>& tokens) {
  json list = json::array();
  for (const AnswerToken& token : tokens)
    std::visit([&](const auto& value) { list.push_back(value); }, token);
  return list.size() == 1 ? list[0] : list;
}

json positions_to_json(const std::optional<std::vector<NamedPosition>>& positions) {
  if (!positions) return "all";
  // A list where names say nothing: an object has no order.
  bool plain = std::ranges::all_of(
      *positions, [](const NamedPosition& p) { return p.name == std::to_string(p.pos); });
  json result = plain ? json::array() : json::object();
  for (const NamedPosition& p : *positions)
    if (plain)
      result.push_back(p.pos);
    else
      result[p.name] = p.pos;
  return result;
}

}  // namespace

Experiment experiment_from_json(const json& object, const std::string& where) {
  if (!object.is_object())
    throw std::invalid_argument("[experiments] " + where + " is no JSON object; needed: {" +
                                joined(kKeys) + "}");
  for (const auto& [key, value] : object.items())
    if (std::ranges::find(kKeys, key) == kKeys.end())
      throw std::invalid_argument("[experiments] " + where + " has the unknown key " +
                                  in_quotes(key) + "; allowed: " + joined(kKeys));
  for (const char* key : {"clean", "corrupted", "answer", "wrong"})
    if (!object.contains(key))
      throw std::invalid_argument("[experiments] " + where + " has no " + in_quotes(key));
  auto field = [&](const char* key) { return Field(where, key, object.at(key)); };
  Experiment e{.id = object.contains("id") ? field("id").name() : where,
               .clean = field("clean").prompt(),
               .corrupted = field("corrupted").prompt(),
               .answer = field("answer").tokens(),
               .wrong = field("wrong").tokens()};
  if (object.contains("sites")) e.sites = field("sites").sites();
  if (object.contains("positions")) e.positions = field("positions").positions();
  if (object.contains("template")) e.cluster = field("template").name();
  if (object.contains("metric")) e.metric = field("metric").one_of(kMetrics);
  return e;
}

json to_json(const Experiment& e) {
  auto prompt = [](const Prompt& p) {
    return std::visit([](const auto& value) { return json(value); }, p);
  };
  json object{{"id", e.id},
              {"clean", prompt(e.clean)},
              {"corrupted", prompt(e.corrupted)},
              {"answer", tokens_to_json(e.answer)},
              {"wrong", tokens_to_json(e.wrong)}};
  for (const PatchedSite& site : e.sites)
    object["sites"].push_back(site.over.empty() ? json(site.site)
                                                : json{{"site", site.site}, {"over", site.over}});
  if (e.positions) object["positions"] = positions_to_json(e.positions);
  if (!e.cluster.empty()) object["template"] = e.cluster;
  if (!e.metric.empty()) object["metric"] = e.metric;
  return object;
}

std::vector<Experiment> read_experiments(const std::filesystem::path& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path))
    throw std::system_error(errno != 0 ? errno : EISDIR, std::generic_category(),
                            "[experiments] " + path.string());
  std::vector<Experiment> experiments;
  std::map<std::string, std::int64_t> seen;
  std::string line;
  for (std::int64_t number = 1; std::getline(file, line); ++number) {
    if (line.find_first_not_of(" \t\r") == line.npos) continue;
    std::string where = "line " + std::to_string(number);
    json object = parse_json(line, "[experiments] " + path.string() + ", " + where);
    try {
      experiments.push_back(experiment_from_json(object, where));
    } catch (const std::invalid_argument& e) {
      throw std::invalid_argument(std::string(e.what()) + " (" + path.string() + ")");
    }
    auto [first, added] = seen.emplace(experiments.back().id, number);
    if (!added)
      throw std::invalid_argument("[experiments] " + path.string() + ", " + where + ": the id " +
                                  in_quotes(first->first) + " is that of line " +
                                  std::to_string(first->second) + "; needed: each id once");
  }
  if (file.bad())
    throw std::system_error(errno, std::generic_category(), "[experiments] " + path.string());
  if (experiments.empty())
    throw std::invalid_argument("[experiments] " + path.string() + " holds no experiment");
  return experiments;
}

void write_experiments(const std::filesystem::path& path,
                       const std::vector<Experiment>& experiments) {
  std::string text;
  for (const Experiment& e : experiments)
    text += to_json(e).dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
  write_file(path, text);
}

std::string_view name_of(Reason reason) {
  switch (reason) {
    case Reason::unequal_lengths:
      return "unequal_lengths";
    case Reason::too_long:
      return "too_long";
    case Reason::not_one_token:
      return "not_one_token";
    case Reason::same_answers:
      return "same_answers";
    case Reason::clean_wrong:
      return "clean_wrong";
    case Reason::too_close:
      return "too_close";
  }
  throw std::logic_error("[experiments] not a Reason");
}

json to_json(const Rejection& r) {
  return {{"id", r.id}, {"reason", name_of(r.reason)}, {"what", r.what}};
}

std::string GridSite::key() const {
  std::string text = short_name(site) + "_by";
  for (Axis axis : over) text += "_" + std::string(name_of(axis));
  return text;
}

json to_json(const Tokenized& e) {
  json sites = json::array();
  for (const GridSite& site : e.sites) sites.push_back(site.key());
  json positions = e.positions ? json::array() : json("all");
  for (const NamedPosition& p : e.positions.value_or(std::vector<NamedPosition>()))
    positions.push_back({p.name, p.pos});
  return {{"id", e.id},         {"template", e.cluster},
          {"clean", e.clean},   {"corrupted", e.corrupted},
          {"answer", e.answer}, {"wrong", e.wrong},
          {"sites", sites},     {"positions", std::move(positions)},
          {"metric", e.metric}};
}

std::vector<Axis> usual_axes(Site site) {
  auto all = grid_axes(site);
  std::vector<Axis> axes;
  for (Axis axis : all)
    if (axis == Axis::layer || axis == Axis::head || axis == Axis::kv_head) axes.push_back(axis);
  return axes.empty() || axes.back() == Axis::layer ? all : axes;
}

namespace {

// One experiment on its way to tokens.
class Tokenizing {
 public:
  Tokenizing(const HookedTransformer& model, const Experiment& e, const TokenizeOptions& options)
      : model_(model), e_(e), options_(options) {}

  std::variant<Tokenized, Rejection> run() const {
    if (Head head = model_.config().head; head != Head::unembedding)
      throw std::invalid_argument(
          "[experiments] an experiment asks for the token after its prompt, which this model does "
          "not predict (its head: " +
          std::string(lenscpp::name_of(head)) + "); patch_grid takes other metrics");
    Tokenized t{.id = e_.id,
                .cluster = e_.cluster,
                .index = 0,
                .clean = prompt("clean", e_.clean),
                .corrupted = prompt("corrupted", e_.corrupted),
                .answer = {},
                .wrong = {},
                .sites = sites(),
                .positions = {},
                .metric = metric()};
    if (t.clean.size() != t.corrupted.size())
      return rejected(Reason::unequal_lengths,
                      "the clean prompt has " + std::to_string(t.clean.size()) +
                          " tokens, the corrupted one " + std::to_string(t.corrupted.size()));
    if (std::ssize(t.clean) > model_.config().n_ctx)
      return rejected(Reason::too_long, std::to_string(t.clean.size()) +
                                            " tokens; the model has room for " +
                                            std::to_string(model_.config().n_ctx));
    t.positions = positions(std::ssize(t.clean));
    for (auto [tokens, ids] : {std::pair(&e_.answer, &t.answer), {&e_.wrong, &t.wrong}})
      for (const AnswerToken& token : *tokens)
        if (auto problem = add(token, *ids)) return *problem;
    for (const auto* ids : {&t.answer, &t.wrong})
      if (std::set(ids->begin(), ids->end()).size() != ids->size())
        refuse("the same token is given twice as an answer, or as a wrong one");
    for (std::int64_t id : t.answer)
      if (std::ranges::find(t.wrong, id) != t.wrong.end())
        return rejected(Reason::same_answers,
                        "an answer and a wrong one are the same token, " + in_quotes(text_of(id)));
    return t;
  }

 private:
  [[noreturn]] void refuse(const std::string& what) const {
    throw std::invalid_argument("[experiments] " + in_quotes(e_.id) + ": " + what);
  }
  Rejection rejected(Reason reason, std::string what) const {
    return {e_.id, reason, std::move(what)};
  }

  std::string text_of(std::int64_t id) const {
    return model_.has_tokenizer() && model_.tokenizer().contains(id) ? model_.tokenizer().token(id)
                                                                     : std::to_string(id);
  }

  void check_id(std::int64_t id) const {
    if (id < 0 || id >= model_.config().d_vocab)
      refuse("there is no token " + std::to_string(id) + "; the model has " +
             std::to_string(model_.config().d_vocab));
  }

  std::vector<std::int64_t> prompt(const std::string& which, const Prompt& prompt) const {
    std::vector<std::int64_t> ids;
    if (const auto* given = std::get_if<std::vector<std::int64_t>>(&prompt))
      ids = *given;
    else
      try {
        ids = model_.to_tokens(std::get<std::string>(prompt), options_.prepend_bos).ids;
      } catch (const std::invalid_argument& e) {
        refuse("the " + which + " prompt: " + e.what());
      }
    for (std::int64_t id : ids) check_id(id);
    if (ids.empty()) refuse("the " + which + " prompt has no tokens");
    return ids;
  }

  std::optional<Rejection> add(const AnswerToken& token, std::vector<std::int64_t>& ids) const {
    if (const auto* id = std::get_if<std::int64_t>(&token)) {
      check_id(*id);
      ids.push_back(*id);
      return {};
    }
    try {
      ids.push_back(model_.to_single_token(std::get<std::string>(token)));
      return {};
    } catch (const std::invalid_argument& e) {
      if (!model_.has_tokenizer()) throw;
      return rejected(Reason::not_one_token, e.what());
    }
  }

  std::vector<GridSite> sites() const {
    std::vector<GridSite> result;
    if (e_.sites.empty() && options_.sites.empty()) refuse("no site to patch is named");
    for (const PatchedSite& one : e_.sites.empty() ? options_.sites : e_.sites) try {
        if (one.site.empty()) refuse("the name of a site is empty");
        Site site = grid_site(one.site, model_.config());
        GridSite grid{site, usual_axes(site)};
        if (!one.over.empty()) grid.over.clear();
        for (const std::string& axis : one.over) grid.over.push_back(grid_axis(site, axis));
        check_grid(site, grid.over, model_.config());
        for (const GridSite& other : result)
          if (other.key() == grid.key()) refuse("the site " + in_quotes(one.site) + " twice");
        result.push_back(std::move(grid));
      } catch (const std::invalid_argument& e) {
        refuse(e.what());
      }
    return result;
  }

  std::optional<std::vector<NamedPosition>> positions(std::int64_t n) const {
    if (!e_.positions) return {};
    auto result = *e_.positions;
    for (NamedPosition& p : result) {
      std::int64_t from_start = p.pos < 0 ? p.pos + n : p.pos;
      // -1 and 14 of 15 tokens are one place, and get one name.
      if (p.name == std::to_string(p.pos)) p.name = std::to_string(from_start);
      if (from_start < 0 || from_start >= n)
        refuse("position " + std::to_string(p.pos) + " out of range: the prompts have " +
               std::to_string(n) + " tokens");
      p.pos = from_start;
    }
    // In the order of the text, however they were given: an object has none.
    std::ranges::stable_sort(result, {}, &NamedPosition::pos);
    std::set<std::string> names;
    for (const NamedPosition& p : result)
      if (!names.insert(p.name).second) refuse("two positions are called " + in_quotes(p.name));
    for (std::size_t i = 1; i < result.size(); ++i)
      if (result[i].pos == result[i - 1].pos)
        refuse("the positions " + in_quotes(result[i - 1].name) + " and " +
               in_quotes(result[i].name) + " are the same token");
    return result;
  }

  std::string metric() const {
    bool several = e_.answer.size() > 1 || e_.wrong.size() > 1;
    std::string name = e_.metric.empty() ? (several ? "prob_diff" : "logit_diff") : e_.metric;
    if (std::ranges::find(kMetrics, name) == kMetrics.end())
      refuse("the metric " + in_quotes(name) + "; allowed: " + joined(kMetrics));
    if (several && name != "prob_diff")
      refuse("several answers need the metric prob_diff; found: " + name);
    return name;
  }

  const HookedTransformer& model_;
  const Experiment& e_;
  const TokenizeOptions& options_;
};

}  // namespace

std::variant<Tokenized, Rejection> tokenize(const HookedTransformer& model,
                                            const Experiment& experiment,
                                            const TokenizeOptions& options) {
  return Tokenizing(model, experiment, options).run();
}

}  // namespace lenscpp
