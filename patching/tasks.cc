#include "patching/tasks.h"

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <set>
#include <stdexcept>

#include "hooks/nearest.h"

namespace lenscpp {
namespace {

using Ids = std::vector<std::int64_t>;

[[noreturn]] void refuse(const std::string& what) {
  throw std::invalid_argument("[tasks] " + what);
}

// Of std::mt19937_64, whose numbers the standard fixes; its distributions are not fixed.
class Choice {
 public:
  explicit Choice(std::uint64_t seed) : engine_(seed) {}
  std::size_t below(std::size_t n) { return static_cast<std::size_t>(engine_() % n); }
  template <class List>
  const auto& of(const List& list) {
    return list[below(std::size(list))];
  }

 private:
  std::mt19937_64 engine_;
};

std::string numbered(const std::string& name, std::int64_t i) {
  std::string digits = std::to_string(i);
  return name + "-" + std::string(6 - std::min<std::size_t>(6, digits.size()), '0') + digits;
}

void require_some(const TaskOptions& o) {
  if (o.n < 1) refuse("n " + std::to_string(o.n) + "; allowed: 1 experiment and more");
}

// Where two token lists of equal length differ, if in one place.
std::optional<std::int64_t> one_difference(const Ids& a, const Ids& b) {
  if (a.size() != b.size()) return {};
  std::optional<std::int64_t> place;
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i] == b[i]) continue;
    if (place) return {};
    place = static_cast<std::int64_t>(i);
  }
  return place;
}

// ---- indirect object identification ----

constexpr std::array kTemplates = {
    "When {1} and {2} went to the {place}, {S} gave the {object} to",
    "After {1} and {2} left the {place}, {S} handed a {object} to",
    "While {1} and {2} were at the {place}, {S} passed the {object} to",
    "Then, {1} and {2} found a {object} at the {place}. Soon {S} gave it to",
    "Friends {1} and {2} met at the {place}, and {S} showed the {object} to",
    "Yesterday {1} and {2} worked at the {place}, and {S} sent a {object} to",
    "As soon as {1} and {2} came to the {place}, {S} offered the {object} to",
    "Last summer {1} and {2} visited the {place}, where {S} sold a {object} to",
    "In the morning {1} and {2} walked to the {place}. Later {S} brought the {object} to",
    "Before {1} and {2} went home from the {place}, {S} threw the {object} to",
    "The day {1} and {2} saw the {place}, {S} wanted to give a {object} to",
    "Because {1} and {2} were late for the {place}, {S} quickly lent the {object} to",
    "Today {1} and {2} are at the {place}, and {S} decided to give the {object} to",
    "At the {place} the teacher saw {1} and {2}, and then {S} gave a {object} to",
    "Once {1} and {2} were in the {place}, {S} took the {object} and gave it to",
};
constexpr std::array kPlaces = {"store",   "school",   "park",    "garden",
                                "station", "hospital", "library", "market"};
constexpr std::array kObjects = {"ring",   "drink", "computer", "book",
                                 "letter", "key",   "lamp",     "ticket"};
constexpr std::array kNames = {
    "Mary",   "John",   "Tom",   "James",  "Dan",    "Martin", "Amy",    "Scott",  "Lauren",
    "Tim",    "Robert", "Jack",  "Emily",  "Sarah",  "David",  "Peter",  "Anna",   "Paul",
    "Lisa",   "Kevin",  "Laura", "Brian",  "Susan",  "Steven", "Karen",  "George", "Linda",
    "Edward", "Nancy",  "Helen", "Frank",  "Alice",  "Henry",  "Julia",  "Simon",  "Rachel",
    "Daniel", "Emma",   "Adam",  "Olivia", "Ryan",   "Jason",  "Megan",  "Eric",   "Diana",
    "Carl",   "Ruth",   "Oscar", "Victor", "Philip", "Roger",  "Andrew", "Arthur", "Charles"};

void replace(std::string& text, std::string_view slot, std::string_view with) {
  for (auto at = text.find(slot); at != text.npos; at = text.find(slot, at + with.size()))
    text.replace(at, slot.size(), with);
}

// A template with everything but names.
struct Sentence {
  std::string text;
  std::string with(const std::string& first, const std::string& second,
                   const std::string& subject) const {
    std::string filled = text;
    replace(filled, "{1}", first);
    replace(filled, "{2}", second);
    replace(filled, "{S}", subject);
    return filled;
  }
};

void require_next_tokens(const HookedTransformer& model) {
  if (Head head = model.config().head; head != Head::unembedding)
    refuse("the tasks ask for the next token, which this model does not predict (its head: " +
           std::string(name_of(head)) + ")");
}

class Ioi {
 public:
  Ioi(const HookedTransformer& model, const TaskOptions& o)
      : model_(model), o_(o), choice_(o.seed) {
    require_some(o);
    if (o.corruption != "flipped" && o.corruption != "abc")
      refuse("corruption " + in_quotes(o.corruption) + "; allowed: flipped, abc");
    std::vector<std::string> all = o.names;
    if (all.empty()) all.assign(kNames.begin(), kNames.end());
    auto without = std::ssize(ids("So and"));
    for (const std::string& name : all) {
      auto tokens = std::ssize(ids("So " + name + " and")) - without;
      if (tokens == 1)
        names_.push_back(name);
      else
        task_.dropped.push_back("names: " + name + " (" + std::to_string(tokens) + " tokens)");
    }
    std::ranges::sort(names_);
    names_.erase(std::ranges::unique(names_).begin(), names_.end());
    if (names_.size() < 5)
      refuse("ioi needs five names that are one token each; this tokenizer has " +
             std::to_string(names_.size()) + " of " + std::to_string(all.size()));
  }

  Task run() {
    task_.name = "ioi";
    for (std::int64_t i = 0; i < o_.n; ++i) task_.experiments.push_back(one(i));
    return std::move(task_);
  }

 private:
  Ids ids(const std::string& text) const { return model_.to_tokens(text).ids; }

  // As a text where that is one: people read these files.
  AnswerToken token_of(const std::string& name, std::int64_t id) const {
    for (const std::string& text : {" " + name, name})
      if (model_.tokenizer().encode(text) == Ids{id}) return text;
    return id;
  }

  std::vector<std::string> five_names() {
    std::vector<std::string> chosen;
    while (chosen.size() < 5) {
      const std::string& name = choice_.of(names_);
      if (std::ranges::find(chosen, name) == chosen.end()) chosen.push_back(name);
    }
    return chosen;
  }

  Experiment one(std::int64_t i) {
    std::size_t number = static_cast<std::size_t>(i / 2) % kTemplates.size();
    bool subject_first = i % 2 == 0;  // BABA; else ABBA
    Sentence sentence{kTemplates[number]};
    replace(sentence.text, "{place}", choice_.of(kPlaces));
    replace(sentence.text, "{object}", choice_.of(kObjects));
    auto names = five_names();
    const std::string &io = names[0], &s = names[1], &other = names[2];
    const std::string &first = subject_first ? s : io, &second = subject_first ? io : s;
    std::string clean = sentence.with(first, second, s);
    std::string corrupted = o_.corruption == "flipped"
                                ? sentence.with(first, second, io)
                                : sentence.with(names[2], names[3], names[4]);
    Ids clean_ids = ids(clean);
    auto place = [&](const std::string& changed) {
      auto found = one_difference(clean_ids, ids(changed));
      if (!found) refuse("another name changes more than one token of " + in_quotes(clean));
      return *found;
    };
    std::int64_t at_first = place(sentence.with(other, second, s)),
                 at_second = place(sentence.with(first, other, s)),
                 s2 = place(sentence.with(first, second, other));
    std::int64_t s1 = subject_first ? at_first : at_second,
                 io_pos = subject_first ? at_second : at_first;
    return {.id = numbered("ioi", i) + (subject_first ? "-BABA" : "-ABBA"),
            .clean = clean,
            .corrupted = corrupted,
            .answer = {token_of(io, clean_ids[static_cast<std::size_t>(io_pos)])},
            .wrong = {token_of(s, clean_ids[static_cast<std::size_t>(s2)])},
            .positions = std::vector<NamedPosition>{{"IO", io_pos},
                                                    {"S1", s1},
                                                    {"S1+1", s1 + 1},
                                                    {"S2", s2},
                                                    {"END", std::ssize(clean_ids) - 1}},
            .cluster = "template " + std::to_string(number)};
  }

  const HookedTransformer& model_;
  const TaskOptions& o_;
  Choice choice_;
  std::vector<std::string> names_;
  Task task_;
};

// ---- greater-than ----

constexpr std::array kNouns = {"war",     "siege",    "voyage", "drought", "trial",
                               "journey", "festival", "famine", "project", "strike"};

std::string two_digits(std::int64_t n) { return (n < 10 ? "0" : "") + std::to_string(n); }

std::string year_prompt(const std::string& noun, std::int64_t century, std::int64_t year) {
  return "The " + noun + " lasted from the year " + two_digits(century) + two_digits(year) +
         " to the year " + two_digits(century);
}

// A century's two-digit endings as tokens, where years split after the century.
class Century {
 public:
  Century(const HookedTransformer& model, std::int64_t number) : number_(number) {
    auto ids = [&](const std::string& text) { return model.to_tokens(text).ids; };
    Ids prompt = ids(year_prompt("war", number, 50)), other = ids(year_prompt("war", number, 51));
    auto place = one_difference(prompt, other);
    if (!place || *place == 0) return;
    place_ = *place;
    for (std::int64_t year = 0; year < 100; ++year) {
      Ids longer = ids(year_prompt("war", number, 50) + two_digits(year));
      if (longer.size() != prompt.size() + 1 ||
          !std::equal(prompt.begin(), prompt.end(), longer.begin()))
        continue;
      Ids in_place = ids(year_prompt("war", number, year));
      if (in_place.size() == prompt.size() &&
          in_place[static_cast<std::size_t>(place_)] == longer.back())
        endings_[year] = longer.back();
    }
  }
  std::int64_t number() const { return number_; }
  const std::map<std::int64_t, std::int64_t>& endings() const { return endings_; }
  bool usable() const { return endings_.contains(1) && endings_.size() >= 20; }

 private:
  std::int64_t number_, place_ = 0;
  std::map<std::int64_t, std::int64_t> endings_;  // year -> token
};

// ---- induction ----

// Tokens that a text can hold: no special ones.
Ids ordinary_tokens(const HookedTransformer& model) {
  Ids tokens;
  for (std::int64_t id = 0; id < model.config().d_vocab; ++id)
    if (!model.has_tokenizer() ||
        (model.tokenizer().contains(id) && !model.tokenizer().is_special(id)))
      tokens.push_back(id);
  return tokens;
}

}  // namespace

Task ioi_task(const HookedTransformer& model, const TaskOptions& options) {
  require_next_tokens(model);
  return Ioi(model, options).run();
}

Task greater_than_task(const HookedTransformer& model, const TaskOptions& o) {
  require_next_tokens(model);
  require_some(o);
  Task task{.name = "greater_than"};
  std::vector<Century> centuries;
  for (std::int64_t number = 11; number <= 18; ++number) {
    Century century(model, number);
    if (century.usable())
      centuries.push_back(std::move(century));
    else
      task.dropped.push_back("centuries: " + std::to_string(number) + " (" +
                             std::to_string(century.endings().size()) +
                             " of its years are the century and one token)");
  }
  if (centuries.empty())
    refuse(
        "greater_than needs years that are two tokens, the century and the rest; this "
        "tokenizer has none");
  Choice choice(o.seed);
  for (std::int64_t i = 0; i < o.n; ++i) {
    const Century& century = choice.of(centuries);
    const std::string noun = kNouns[choice.below(kNouns.size())];
    Ids years;  // with something below and above
    for (const auto& [year, token] : century.endings())
      if (year > 1 && year < century.endings().rbegin()->first) years.push_back(year);
    std::int64_t year = choice.of(years);
    Experiment e{.id = numbered("greater_than", i),
                 .clean = year_prompt(noun, century.number(), year),
                 .corrupted = year_prompt(noun, century.number(), 1),
                 .answer = {},
                 .wrong = {},
                 .cluster = noun};
    for (const auto& [other, token] : century.endings())
      (other > year ? e.answer : e.wrong).emplace_back(token);
    Ids clean = model.to_tokens(std::get<std::string>(e.clean)).ids;
    auto place = one_difference(clean, model.to_tokens(std::get<std::string>(e.corrupted)).ids);
    if (!place)
      refuse("the year changes more than one token of " +
             in_quotes(std::get<std::string>(e.clean)));
    e.positions = {{"XX", *place - 1}, {"YY", *place}, {"END", std::ssize(clean) - 1}};
    task.experiments.push_back(std::move(e));
  }
  return task;
}

Task induction_task(const HookedTransformer& model, const TaskOptions& o) {
  require_next_tokens(model);
  require_some(o);
  if (o.length < 4)
    refuse("length " + std::to_string(o.length) + "; allowed: 4 random tokens and more");
  Ids start, ordinary = ordinary_tokens(model);
  if (model.has_tokenizer() && model.options().default_prepend_bos.value_or(true))
    if (auto bos = model.tokenizer().bos_token_id()) start.push_back(*bos);
  std::int64_t again = o.length / 2, first = std::ssize(start), all = first + o.length + again;
  if (all > model.config().n_ctx)
    refuse("induction of " + std::to_string(o.length) + " random tokens takes " +
           std::to_string(all) + "; the model has room for " +
           std::to_string(model.config().n_ctx));
  if (std::ssize(ordinary) < 2 * o.length)
    refuse("induction of " + std::to_string(o.length) + " random tokens needs twice as many; " +
           "the model has " + std::to_string(ordinary.size()) + " ordinary ones");
  Task task{.name = "induction"};
  Choice choice(o.seed);
  for (std::int64_t i = 0; i < o.n; ++i) {
    std::vector<std::int64_t> random;
    std::set<std::int64_t> used;
    while (std::ssize(random) <= o.length)  // one more: what follows in the corrupted prompt
      if (auto id = choice.of(ordinary); used.insert(id).second) random.push_back(id);
    Ids clean = start;
    clean.insert(clean.end(), random.begin(), random.begin() + o.length);
    clean.insert(clean.end(), random.begin(), random.begin() + again);
    Ids corrupted = clean;
    corrupted[static_cast<std::size_t>(first + again)] = random.back();
    task.experiments.push_back(
        {.id = numbered("induction", i),
         .clean = clean,
         .corrupted = corrupted,
         .answer = {random[static_cast<std::size_t>(again)]},
         .wrong = {random.back()},
         .positions = std::vector<NamedPosition>{
             {"PREV", first + again - 1}, {"FOLLOWED", first + again}, {"END", all - 1}}});
  }
  return task;
}

Task task_named(const std::string& name, const HookedTransformer& model,
                const TaskOptions& options) {
  if (name == "ioi") return ioi_task(model, options);
  if (name == "greater_than") return greater_than_task(model, options);
  if (name == "induction") return induction_task(model, options);
  refuse("no task " + in_quotes(name) + "; allowed: ioi, greater_than, induction");
}

}  // namespace lenscpp
