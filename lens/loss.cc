// Cross entropy of the next token.
#include "lens/loss.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "lens/torch_parallel.h"

namespace lenscpp {

Array next_token_loss(const Array& logits, const std::vector<std::int64_t>& tokens) {
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
      std::int64_t at = i / (pos - 1) * pos + i % (pos - 1);
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

Array mean_of(const Array& values) {
  if (values.empty()) throw std::invalid_argument("[loss] the mean of nothing");
  double sum = 0;
  for (std::int64_t i = 0; i < values.numel(); ++i) sum += values[i];
  MutableArray mean(Shape{}, values.dtype());
  mean.set(0, sum / static_cast<double>(values.numel()));
  return std::move(mean).freeze();
}

}  // namespace lenscpp
