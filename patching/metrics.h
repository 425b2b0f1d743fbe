// What a run is scored by: one number a prompt, in float64 on the host, from logits that were
// verified.
#pragma once

#include <concepts>
#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
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

/// What a metric looks at: a run needs to compute no other logits.
struct Reads {
  std::optional<std::int64_t> pos = {};   // negative from the end; unset: all positions
  std::vector<std::int64_t> tokens = {};  // increasing; empty: all tokens
};

/// logit[answer] - logit[wrong] at a position, negative from the end.
struct LogitDiff {
  TokenIds answer, wrong;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
  Reads reads() const;
  LogitDiff of_read() const;  // the same, of logits that hold just what reads() lists
};

/// The probability of a token.
struct Prob {
  TokenIds token;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
  Reads reads() const;
  Prob of_read() const;  // the same, of logits that hold just what reads() lists
};

/// Its logarithm, in nats.
struct LogProb {
  TokenIds token;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
  Reads reads() const;
  LogProb of_read() const;  // the same, of logits that hold just what reads() lists
};

/// The sum of the probabilities of `answers` less that of `wrong`: of greater-than, for instance.
/// One list for every prompt, or one a prompt.
struct ProbDiff {
  std::vector<std::vector<std::int64_t>> answers, wrong;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
  Reads reads() const;
  ProbDiff of_read() const;  // the same, of logits that hold just what reads() lists
};

/// KL(reference || run) of the predictions at a position, in nats. `reference`: logits
/// [batch, pos, d_vocab], or of one prompt, which then serves every prompt.
struct KL {
  Array reference;
  std::int64_t pos = -1;
  std::vector<double> operator()(const Array& logits) const;
  nlohmann::json description() const;
  Reads reads() const;
  KL of_read() const;  // the same, of logits that hold just what reads() lists
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
    if constexpr (requires { values.reads(); }) {
      reads_ = values.reads();
      of_read_ = values.of_read();
    }
    values_ = std::move(values);
  }
  Metric(std::function<std::vector<double>(const Array&)> values, nlohmann::json description)
      : values_(std::move(values)), description_(std::move(description)) {}

  /// Throws std::invalid_argument when the logits are not [batch, pos, d_vocab], or a function
  /// returned neither one value nor one a prompt.
  std::vector<double> values(const Array& logits) const;
  /// Their mean: what a cell of a grid holds.
  double mean(const Array& logits) const;
  /// All logits, of a function whose insides nobody knows.
  const Reads& reads() const { return reads_; }
  /// values() of logits that hold just what reads() lists: [batch, 1, tokens] where it lists
  /// tokens.
  std::vector<double> values_of_read(const Array& logits) const;
  /// {"metric": "logit_diff", "answer": [...], ...}; {"metric": "function"} for any other.
  const nlohmann::json& description() const { return description_; }

 private:
  std::function<std::vector<double>(const Array&)> values_, of_read_ = {};
  nlohmann::json description_;
  Reads reads_ = {};
};

}  // namespace lenscpp
