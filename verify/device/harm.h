// Whether a fault did harm, judged without the checker: a faulted run beside the clean one, and
// beside what honest runs of the same model in other summation orders differ by. Nothing of
// verify/reference or of the verifier takes part.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/sink.h"

namespace lenscpp {

/// Beyond so many times what honest summation orders differ by, a difference is harm.
inline constexpr double kHarmful = 4;

/// harmless: every bit of every tensor is the clean run's. harmful: some tensor, or the logit
/// difference, is further from the clean run than kHarmful times the honest difference there.
enum class Harm : std::uint8_t { harmless, between, harmful };
std::string_view name_of(Harm harm);  // "harmless", "between", "harmful"

/// What became of a run.
struct Judgement {
  Harm harm = Harm::harmless;
  /// The largest difference from the clean run over the honest difference of that tensor. Infinite
  /// where honest runs are equal to the bit, where one of the two is not finite, or where a tensor
  /// has another shape.
  double times = 0;
  std::string worst = {};              // where that is: a hook name or "logit difference"
  std::optional<TensorId> first = {};  // in execution order, the first tensor with another bit
  double change = 0;                   // largest difference there,
  double relative = 0;                 // over that tensor's largest magnitude in the clean run
};

/// Knows one run and how far honest runs of it are from each other.
class HarmJudge {
 public:
  /// `clean`: all tensors of a run, in execution order. The metric is the logit difference of the
  /// two likeliest tokens after each prompt, where the run has logits.
  explicit HarmJudge(const Recording& clean);

  /// Another honest run of the same prompts, its axes in the same order. Throws
  /// std::invalid_argument when it has other tensors.
  void add_honest(std::vector<std::pair<TensorId, Array>> run);
  /// The largest difference between any two honest runs, in execution order; clean one included.
  const std::vector<double>& spread() const { return spread_; }
  double metric_spread() const { return metric_spread_; }
  Judgement judge(const Recording& run) const;

 private:
  using Run = std::vector<std::pair<TensorId, Array>>;
  std::vector<double> metric_of(const Run& run) const;

  std::vector<Run> honest_;                                       // the clean run first
  std::vector<std::pair<std::int64_t, std::int64_t>> likeliest_;  // two tokens a prompt
  std::vector<double> spread_;
  double metric_spread_ = 0;
};

/// The largest difference between two tensors. Infinite where a shape or dtype differs, and where
/// one of two elements is not finite (or both are, but not the same); NaN equals NaN.
double largest_difference(const Array& a, const Array& b);

}  // namespace lenscpp
