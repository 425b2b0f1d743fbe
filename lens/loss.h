// The loss of a language model: how surprised it is by the next token.
#pragma once

#include <cstdint>
#include <vector>

#include "hooks/array.h"
#include "hooks/prompts.h"

namespace lenscpp {

/// -log p(tokens[b, p + 1]) at each position p but the last, in nats: [batch, pos - 1], computed in
/// float64, stored as float64 for float64 logits and as float32 for narrower ones. `logits` are
/// [batch, pos, d_vocab], `tokens` [batch * pos]. Throws std::invalid_argument for shapes that do
/// not fit or a single position, std::out_of_range for a token outside the vocabulary. Where
/// padding would be read or predicted: 0, as TransformerLens has it.
Array next_token_loss(const Array& logits, const std::vector<std::int64_t>& tokens,
                      const std::vector<Span>& spans = {});
/// The mean over what predicts a token, a scalar of shape [] and of the same dtype.
Array mean_loss(const Array& losses, const std::vector<Span>& spans);
/// The mean of all elements, a scalar of shape [] and of the same dtype.
Array mean_of(const Array& values);

}  // namespace lenscpp
