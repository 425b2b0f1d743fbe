// Cross entropy of the next token.
#include "lens/loss.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "lens/torch_parallel.h"

namespace lenscpp {
namespace {

// Whether a position and the one behind it hold tokens of the prompt.
bool predicts(const std::vector<Span>& spans, std::int64_t prompt, std::int64_t pos) {
  if (spans.empty()) return true;
  const Span& span = spans[static_cast<std::size_t>(prompt) % spans.size()];
  return pos >= span.begin && pos + 1 < span.end;
}

}  // namespace

Array next_token_loss(const Array& logits, const std::vector<std::int64_t>& tokens,
                      const std::vector<Span>& spans) {
  if (logits.rank() != 3 ||
      logits.size(0) * logits.size(1) != static_cast<std::int64_t>(tokens.size()))
    throw std::invalid_argument(
        "[loss] logits " + to_string(logits.shape()) + " and " + std::to_string(tokens.size()) +
        " tokens do not fit; needed: [batch, pos, d_vocab] and batch * pos");
  std::int64_t batch = logits.size(0), pos = logits.size(1), vocab = logits.size(2);
  if (pos < 2)
    throw std::invalid_argument("[loss] a prompt of one token has no next token to predict");
  for (std::int64_t token : tokens)
    if (token < 0 || token >= vocab)
      throw std::out_of_range("[loss] token " + std::to_string(token) +
                              " out of range: the vocabulary has " + std::to_string(vocab) +
                              " tokens");
  std::vector<double> losses(static_cast<std::size_t>(batch * (pos - 1)));
  torch_parallel_for(batch * (pos - 1), [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> row(static_cast<std::size_t>(vocab));
    for (std::int64_t i = begin; i < end; ++i) {
      std::int64_t prompt = i / (pos - 1), at = prompt * pos + i % (pos - 1);
      if (!predicts(spans, prompt, i % (pos - 1))) continue;
      logits.widen(at * vocab, row);
      double max = *std::ranges::max_element(row), sum = 0;
      for (double x : row) sum += std::exp(x - max);
      losses[static_cast<std::size_t>(i)] =
          max + std::log(sum) -
          row[static_cast<std::size_t>(tokens[static_cast<std::size_t>(at) + 1])];
    }
  });
  MutableArray result({batch, pos - 1}, accumulate_type(logits.dtype()));
  result.store(0, losses);
  return std::move(result).freeze();
}

Array mean_loss(const Array& losses, const std::vector<Span>& spans) {
  if (spans.empty()) return mean_of(losses);
  std::int64_t pairs = losses.size(1), count = 0;
  double sum = 0;
  for (std::int64_t b = 0; b < losses.size(0); ++b) {
    const Span& span = spans[static_cast<std::size_t>(b) % spans.size()];
    for (std::int64_t i = span.begin; i + 1 < span.end; ++i, ++count) sum += losses[b * pairs + i];
  }
  if (count == 0) throw std::invalid_argument("[loss] no prompt has a next token to predict");
  MutableArray mean(Shape{}, losses.dtype());
  mean.set(0, sum / static_cast<double>(count));
  return std::move(mean).freeze();
}

Array mean_of(const Array& values) {
  if (values.empty()) throw std::invalid_argument("[loss] the mean of nothing");
  double sum = 0;
  for (std::int64_t i = 0; i < values.numel(); ++i) sum += values[i];
  MutableArray mean(Shape{}, values.dtype());
  mean.set(0, sum / static_cast<double>(values.numel()));
  return std::move(mean).freeze();
}

}  // namespace lenscpp
