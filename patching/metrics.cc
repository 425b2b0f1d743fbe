// The declared metrics.
#include "patching/metrics.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <set>
#include <stdexcept>
#include <string>

#include "lens/loss.h"

namespace lenscpp {
namespace {

using nlohmann::json;

std::int64_t position(std::int64_t pos, std::int64_t n_pos) {
  if (pos >= -n_pos && pos < n_pos) return pos < 0 ? pos + n_pos : pos;
  throw std::out_of_range("[metric] pos " + std::to_string(pos) +
                          " out of range: the prompts have " + std::to_string(n_pos) +
                          " positions (0.." + std::to_string(n_pos - 1) + ")");
}

// The logits of one prompt at one position.
std::vector<double> row_of(const Array& logits, std::int64_t prompt, std::int64_t pos) {
  std::vector<double> row(static_cast<std::size_t>(logits.size(2)));
  logits.widen((prompt * logits.size(1) + position(pos, logits.size(1))) * logits.size(2), row);
  return row;
}

void to_log_probs(std::vector<double>& row) {
  double max = *std::ranges::max_element(row), sum = 0;
  for (double x : row) sum += std::exp(x - max);
  double log_sum = max + std::log(sum);
  for (double& x : row) x -= log_sum;
}

// The entry of a prompt's token.
double at(const std::vector<double>& row, const TokenIds& tokens, std::int64_t prompt) {
  const auto& ids = tokens.ids();
  std::int64_t id = ids[ids.size() == 1 ? 0 : static_cast<std::size_t>(prompt)];
  auto vocab = static_cast<std::int64_t>(row.size());
  if (id < 0 || id >= vocab)
    throw std::out_of_range("[metric] token " + std::to_string(id) +
                            " out of range: the vocabulary has " + std::to_string(vocab) +
                            " tokens (0.." + std::to_string(vocab - 1) + ")");
  return row[static_cast<std::size_t>(id)];
}

void check_number(const TokenIds& tokens, const Array& logits) {
  std::size_t n = tokens.ids().size();
  if (n != 1 && static_cast<std::int64_t>(n) != logits.size(0))
    throw std::invalid_argument("[metric] " + std::to_string(n) + " tokens for " +
                                std::to_string(logits.size(0)) +
                                " prompts; allowed: one, or one a prompt");
}

// One value a prompt: of(its row of logits, prompt).
template <class Of>
std::vector<double> of_rows(const Array& logits, std::int64_t pos, const Of& of) {
  std::vector<double> values;
  for (std::int64_t prompt = 0; prompt < logits.size(0); ++prompt)
    values.push_back(of(row_of(logits, prompt, pos), prompt));
  return values;
}

}  // namespace

std::vector<double> LogitDiff::operator()(const Array& logits) const {
  check_number(answer, logits);
  check_number(wrong, logits);
  return of_rows(logits, pos, [&](const std::vector<double>& row, std::int64_t prompt) {
    return at(row, answer, prompt) - at(row, wrong, prompt);
  });
}
json LogitDiff::description() const {
  return {{"metric", "logit_diff"}, {"answer", answer.ids()}, {"wrong", wrong.ids()}, {"pos", pos}};
}
Reads LogitDiff::reads() const {
  std::set<std::int64_t> both(answer.ids().begin(), answer.ids().end());
  both.insert(wrong.ids().begin(), wrong.ids().end());
  return {.pos = pos, .tokens = {both.begin(), both.end()}};
}
LogitDiff LogitDiff::of_read() const {
  std::vector<std::int64_t> tokens = reads().tokens;
  auto columns = [&](const TokenIds& wanted) {
    std::vector<std::int64_t> found;
    for (std::int64_t id : wanted.ids())
      found.push_back(std::ranges::lower_bound(tokens, id) - tokens.begin());
    return TokenIds(std::move(found));
  };
  return {columns(answer), columns(wrong), 0};
}

std::vector<double> LogProb::operator()(const Array& logits) const {
  check_number(token, logits);
  return of_rows(logits, pos, [&](std::vector<double> row, std::int64_t prompt) {
    to_log_probs(row);
    return at(row, token, prompt);
  });
}
json LogProb::description() const {
  return {{"metric", "log_prob"}, {"token", token.ids()}, {"pos", pos}};
}
Reads LogProb::reads() const { return {.pos = pos}; }
LogProb LogProb::of_read() const { return {token, 0}; }

std::vector<double> Prob::operator()(const Array& logits) const {
  std::vector<double> values = LogProb{token, pos}(logits);
  for (double& x : values) x = std::exp(x);
  return values;
}
json Prob::description() const {
  return {{"metric", "prob"}, {"token", token.ids()}, {"pos", pos}};
}
Reads Prob::reads() const { return {.pos = pos}; }
Prob Prob::of_read() const { return {token, 0}; }

std::vector<double> ProbDiff::operator()(const Array& logits) const {
  auto sum = [&](const std::vector<double>& log_probs, const auto& lists, std::int64_t prompt) {
    if (lists.size() != 1 && std::ssize(lists) != logits.size(0))
      throw std::invalid_argument("[metric] " + std::to_string(lists.size()) +
                                  " lists of tokens for " + std::to_string(logits.size(0)) +
                                  " prompts; allowed: one, or one a prompt");
    double total = 0;
    for (std::int64_t id : lists[lists.size() == 1 ? 0 : static_cast<std::size_t>(prompt)])
      total += std::exp(at(log_probs, id, prompt));
    return total;
  };
  return of_rows(logits, pos, [&](std::vector<double> row, std::int64_t prompt) {
    to_log_probs(row);
    return sum(row, answers, prompt) - sum(row, wrong, prompt);
  });
}
json ProbDiff::description() const {
  return {{"metric", "prob_diff"}, {"answer", answers}, {"wrong", wrong}, {"pos", pos}};
}
Reads ProbDiff::reads() const { return {.pos = pos}; }
ProbDiff ProbDiff::of_read() const { return {answers, wrong, 0}; }

std::vector<double> KL::operator()(const Array& logits) const {
  if (reference.rank() != 3 || reference.size(2) != logits.size(2) ||
      (reference.size(0) != 1 && reference.size(0) != logits.size(0)))
    throw std::invalid_argument(
        "[metric] KL: reference logits " + lenscpp::to_string(reference.shape()) + " for logits " +
        lenscpp::to_string(logits.shape()) + "; allowed: [1 or " + std::to_string(logits.size(0)) +
        ", pos, " + std::to_string(logits.size(2)) + "]");
  return of_rows(logits, pos, [&](std::vector<double> row, std::int64_t prompt) {
    std::vector<double> wanted = row_of(reference, reference.size(0) == 1 ? 0 : prompt, pos);
    to_log_probs(row);
    to_log_probs(wanted);
    double nats = 0;
    for (std::size_t i = 0; i < row.size(); ++i) nats += std::exp(wanted[i]) * (wanted[i] - row[i]);
    return nats;
  });
}
json KL::description() const {
  return {{"metric", "kl"}, {"reference", reference.digest()}, {"pos", pos}};
}
Reads KL::reads() const { return {.pos = pos}; }
KL KL::of_read() const {
  std::vector<double> rows;
  for (std::int64_t prompt = 0; prompt < reference.size(0); ++prompt)
    std::ranges::copy(row_of(reference, prompt, pos), std::back_inserter(rows));
  Shape shape{reference.size(0), 1, reference.size(2)};
  return {Array::of(std::span<const double>(rows), shape), 0};
}

std::vector<double> Loss::operator()(const Array& logits) const {
  Array losses = next_token_loss(logits.to(DType::f64), tokens);
  std::vector<double> values;
  for (std::int64_t prompt = 0; prompt < losses.size(0); ++prompt)
    values.push_back(mean_of(losses.rows(prompt, prompt + 1))[0]);
  return values;
}
json Loss::description() const { return {{"metric", "loss"}, {"tokens", tokens}}; }

std::vector<double> Metric::values(const Array& logits) const {
  if (logits.rank() != 3 || logits.empty())
    throw std::invalid_argument("[metric] logits are [batch, pos, d_vocab]; found: " +
                                to_string(logits.shape()));
  std::vector<double> values = values_(logits);
  if (values.size() != 1 && static_cast<std::int64_t>(values.size()) != logits.size(0))
    throw std::invalid_argument("[metric] the function returned " + std::to_string(values.size()) +
                                " values for " + std::to_string(logits.size(0)) +
                                " prompts; allowed: one, or one a prompt");
  return values;
}

std::vector<double> Metric::values_of_read(const Array& logits) const {
  return of_read_ ? of_read_(logits) : values(logits);
}

double Metric::mean(const Array& logits) const {
  std::vector<double> all = values(logits);
  double sum = 0;
  for (double x : all) sum += x;
  return sum / static_cast<double>(all.size());
}

}  // namespace lenscpp
