// An honest device without torch: every link of a run computed in float64 from what was already
// recorded, rounded to the site's dtype. For tests of what the verifier does with a run.
#pragma once

#include <functional>
#include <map>
#include <memory>

#include "hooks/checkpoint/processing.h"
#include "hooks/sink.h"
#include "tests/golden_cases.h"
#include "verify/reference/wiring.h"
#include "verify/verifier.h"

namespace lenscpp::honest {

inline std::shared_ptr<const Weights> weights(const std::string& golden_case, DType dtype,
                                              const Processing& processing = Processing::none()) {
  return std::make_shared<const Weights>(
      process(load_weights(golden::folder(golden_case), dtype), processing));
}

inline Request request(const Weights& weights, std::int64_t batch = 2, std::int64_t pos = 6) {
  std::vector<std::int64_t> tokens;
  for (std::int64_t i = 0; i < batch * pos; ++i)
    tokens.push_back((i * 7 + 3) % weights.config.d_vocab);
  return {.rows = Rows::from_tokens(tokens, batch, weights.config)};
}

using Tamper = std::function<Array(const TensorId&, const Array&)>;

/// Feeds `sink` as a tap would. `tamper` may change a tensor before it is recorded and read on.
inline void run(const Weights& weights, const Request& request, Sink& sink,
                const Tamper& tamper = {}) {
  std::map<TensorId, Array> values;
  for (const Link& link : wire(weights, request)) {
    std::vector<Array> inputs;
    for (const TensorId& input : link.inputs) inputs.push_back(values.at(input));
    Shape shape = shape_of(link.output.site, weights.config, request.rows.extents());
    Array value;
    if (link.callback) {
      value = link.callback->call(link.output, inputs[0]).value_or(inputs[0]);
      sink.take_returned(link.output, value);
    } else {
      value = compute(link, inputs, shape, serial_for)
                  .to(stored_dtype(link.output.site, weights.dtype));
    }
    if (tamper) value = tamper(link.output, value);
    values[link.output] = value;
    sink.take(link.output, value);
  }
}

inline Array with(const Array& value, std::int64_t index, double element) {
  MutableArray changed(value);
  changed.set(index, element);
  return std::move(changed).freeze();
}

inline VerifierOptions keep_all(const Weights& weights) {
  return {.dtype = weights.dtype, .keep = [](Site, std::int64_t) { return true; }};
}

}  // namespace lenscpp::honest
