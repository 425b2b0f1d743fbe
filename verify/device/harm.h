// Whether a fault did harm, judged without the checker: a faulted run beside the clean one, and
// beside what honest runs of the same model in other summation orders differ by. Nothing of
// verify/reference or of the verifier takes part.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hooks/sink.h"

namespace lenscpp {

/// Beyond so many times what honest summation orders span in that tensor, a difference is harm.
inline constexpr double kHarmful = 4;

/// harmless: every bit of every tensor is the clean run's. harmful: some element of some tensor, or
/// the logit difference, is further from the clean run than kHarmful times the honest difference.
enum class Harm : std::uint8_t { harmless, between, harmful };
std::string_view name_of(Harm harm);  // "harmless", "between", "harmful"

/// What became of a run.
struct Judgement {
  Harm harm = Harm::harmless;
  /// The largest difference from the clean run over the honest one. Infinite where honest runs
  /// cannot differ, where one of the two is not finite, and where a tensor has another shape.
  double times = 0;
  std::string worst = {};              // where that is: a hook name or "logit difference"
  std::optional<TensorId> first = {};  // in execution order, the first tensor with another bit
  double relative = 0;  // the largest change there, over that tensor's largest magnitude
};

/// Knows one run and how far honest runs of it are from each other: for a tensor, the widest range
/// that they span at any one of its elements (so the allowance of an element of a tensor is that of
/// the tensor's least certain one); for an element no less than one unit in its last place, since
/// two orders may fall on both sides of a rounding boundary. What comes before the first tensor
/// that ever differs (embeddings) may not differ at all.
class HarmJudge {
 public:
  /// `clean`: all tensors of a run, in execution order. The metric is the logit difference of the
  /// two likeliest tokens after each prompt, where the run has logits.
  explicit HarmJudge(const Recording& clean);

  /// Another honest run of the same prompts, its axes in the same order. Throws
  /// std::invalid_argument when it has other tensors, or is not finite where the clean one is: that
  /// would allow anything there.
  void add_honest(const std::vector<std::pair<TensorId, Array>>& run);
  /// The largest difference between any two honest runs at any element of tensor `i`.
  double spread(std::size_t i) const;
  /// The largest spread over its tensor's largest magnitude, and where it is; 0 when none differ.
  std::pair<double, std::string> relative_spread() const;
  Judgement judge(const Recording& run) const;

 private:
  using Run = std::vector<std::pair<TensorId, Array>>;
  struct Choice {
    double difference, step;  // of the logits of two tokens; of their last places, added up
  };
  std::vector<Choice> metric_of(const Run& run) const;
  bool can_differ(std::size_t i) const;

  Run clean_;
  std::vector<Array> low_, high_;  // of each element over all honest runs, clean one included
  std::vector<std::pair<std::int64_t, std::int64_t>> likeliest_;  // two tokens a prompt
  std::vector<double> low_metric_, high_metric_;
  std::optional<std::size_t> first_spread_ = {};  // the first tensor that ever differs
};

/// The largest difference between two tensors. Infinite where a shape or dtype differs, and where
/// one of two elements is not finite (or both are, but not the same); NaN equals NaN.
double largest_difference(const Array& a, const Array& b);
/// One unit in the last place of `value` stored as `dtype`.
double unit_in_last_place(double value, DType dtype);

}  // namespace lenscpp
