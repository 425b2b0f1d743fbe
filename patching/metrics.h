// What a run is scored by: one number a prompt, in float64 on the host, from logits that were
// verified.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "hooks/array.h"

namespace lenscpp {

/// One token for every prompt, or one a prompt.
class TokenIds {
 public:
  TokenIds(std::int64_t one) : ids_{one} {}
  TokenIds(std::vector<std::int64_t> one_a_prompt) : ids_(std::move(one_a_prompt)) {}
  const std::vector<std::int64_t>& ids() const { return ids_; }

 private:
  std::vector<std::int64_t> ids_;
};

/// logit[answer] - logit[wrong] at a position, negative from the end.
struct LogitDiff {
  TokenIds answer, wrong;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
};

/// The probability of a token.
struct Prob {
  TokenIds token;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
};

/// Its logarithm, in nats.
struct LogProb {
  TokenIds token;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
};

/// KL(reference || run) of the predictions at a position, in nats. `reference`: logits
/// [batch, pos, d_vocab], or of one prompt, which then serves every prompt.
struct KL {
  Array reference;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
};

/// The mean over positions of -log p(next token), in nats. `tokens`: [batch * pos].
struct Loss {
  std::vector<std::int64_t> tokens;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
};

/// Any of these, or any function of logits [batch, pos, d_vocab] that returns one value a prompt or
/// one for them all. Those above throw std::out_of_range (token, pos) or std::invalid_argument
/// (shapes, a number of tokens that is neither one nor one a prompt).
class Metric {
 public:
  template <class F>
  requires(!std::same_as<std::remove_cvref_t<F>, Metric> &&
           std::is_invocable_r_v<std::vector<double>, const F&, const Array&>) Metric(F values) {
    if constexpr (requires { values.description(); })
      description_ = values.description();
    else
      description_ = {{"metric", "function"}};
    values_ = std::move(values);
  }
  Metric(std::function<std::vector<double>(const Array&)> values, nlohmann::json description)
      : values_(std::move(values)), description_(std::move(description)) {}

  /// Throws std::invalid_argument when the logits are not [batch, pos, d_vocab], or a function
  /// returned neither one value nor one a prompt.
  std::vector<double> values(const Array& logits) const;
  /// Their mean: what a cell of a grid holds.
  double mean(const Array& logits) const;
  /// {"metric": "logit_diff", "answer": [...], ...}; {"metric": "function"} for any other.
  const nlohmann::json& description() const { return description_; }

 private:
  std::function<std::vector<double>(const Array&)> values_;
  nlohmann::json description_;
};

}  // namespace lenscpp
