// One link of the computation: an operation, the recorded tensors and weights that it reads, and
// the tensor that it makes. A list of links in execution order is all that any checker knows of a
// model.
#pragma once

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

#include "hooks/callback.h"
#include "hooks/checkpoint/weights.h"
#include "hooks/hook_point.h"
#include "hooks/plan.h"
#include "hooks/prompts.h"

namespace lenscpp {

enum class Op : std::uint8_t {
  given,        // uploaded from the host: a start residual, base keys or values, token ids
  gather,       // rows of a table
  table,        // what follows from positions alone, uploaded: cosines and sines of angles
  distances,    // ALiBi, uploaded: minus a slope a head times how far a key lies behind
  add,          // the sum of two or three tensors, the second perhaps the same for all prompts
  multiply,     // the product of two tensors, element by element; the second perhaps one a row
  copy,         // the same values under another name, perhaps repeated over heads
  concat,       // base keys or values, then those computed here
  enter,        // prompts that enter, behind those already there
  select,       // one position, or the first token of each prompt
  norm_scale,   // sqrt(mean((x - mean x)^2) + eps), of RMSNorm without the mean
  normalize,    // (x - mean x) / scale, of RMSNorm without the mean
  affine,       // x * (weight + offset) + bias
  turn,         // rotary positions: pairs of elements turned by an angle
  linear,       // x W + b
  head_linear,  // per head: x_h W_h + b_h, from inputs of its own
  scores,       // q k / divisor of the keys that a query sees, -inf elsewhere
  softcap,      // c tanh(x / c), -inf staying what it is
  softmax,      // over keys; zero where all of them are masked
  mix,          // pattern times values
  head_result,  // per head: z_h W_O,h
  sum_heads,    // sum over heads of results, plus bias
  activation,   // elementwise
  choose,       // which are the largest of a row, in falling order, of equals the first
  share,        // those over their sum, 0 elsewhere
  edit,         // one edit of the plan
  callback,     // what a function returned: the values come with the run
};
std::string_view name_of(Op op);

/// One link. Which of the optional parts are set follows from `op`.
struct Link {
  Op op;
  TensorId output;
  std::vector<TensorId> inputs = {};
  std::optional<Matrix> weight =
      {};  // linear, head_linear, head_result, gather (the table), affine ([1, d])
  std::optional<Vector> bias = {};
  Array given = {};   // given, callback, enter, table: the values; gather: row indices; concat: the
                      // base; distances: slopes
  double scalar = 0;  // norm_scale: eps; scores: divisor; softcap: c; table: the largest argument
  double offset = 0;  // affine: added to the weight
  bool centres = true;                      // norm_scale, normalize: LayerNorm, not RMSNorm
  RotaryPairs pairs = RotaryPairs::halves;  // turn: which elements
  std::optional<std::int64_t> window = {};  // scores: keys that a query sees
  bool causal = true;                       // scores: no key behind the query is seen
  std::vector<Span> spans = {};  // scores: keys that are no padding; select: whose first is meant
  std::int64_t first_query = 0;  // scores, distances: the position of query 0 among the keys
  std::int64_t position = 0;     // select: which, without spans
  std::int64_t chosen = 0;       // share: how many
  Activation activation = Activation::relu;
  std::optional<Edit> edit = {};
  std::optional<Callback> callback = {};

  /// The keys that a query of a prompt sees, of so many; none where begin is end. Of scores.
  Span seen(std::int64_t prompt, std::int64_t query, std::int64_t keys) const {
    Span s = spans.empty() ? Span{0, keys} : spans[static_cast<std::size_t>(prompt) % spans.size()];
    std::int64_t behind = query + first_query + 1;
    if (causal) s.end = std::min(s.end, behind);
    if (window) s.begin = std::max(s.begin, behind - *window);
    return {std::min(s.begin, s.end), s.end};
  }
  /// The position that select takes of a prompt.
  std::int64_t selected(std::int64_t prompt) const {
    return spans.empty() ? position : spans[static_cast<std::size_t>(prompt) % spans.size()].begin;
  }
};

}  // namespace lenscpp
