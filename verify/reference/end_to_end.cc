// The float64 run.
#include "verify/reference/end_to_end.h"

#include <map>
#include <stdexcept>

#include "verify/reference/exact.h"
#include "verify/reference/wiring.h"

namespace lenscpp {

Array run_in_float64(const Weights& weights, const Request& request, const ParallelFor& parallel) {
  if (!request.callbacks.empty())
    throw std::invalid_argument("[reference] hook " + describe(request.callbacks[0]) +
                                " returns what only its run knows: there is no float64 run of it");
  auto links = wire(weights, request);
  std::map<TensorId, std::int64_t> readers;
  for (const Link& link : links)
    for (const TensorId& input : link.inputs) readers[input] += 1;
  std::map<TensorId, Array> live;
  const TensorId wanted = request.output(weights.config);
  Array output, value;
  for (const Link& link : links) {
    std::vector<Array> inputs;
    for (const TensorId& input : link.inputs) inputs.push_back(live.at(input));
    value = compute(link, inputs,
                    shape_of(link.output.site, weights.config,
                             request.rows.extents(link.output.site, link.output.layer)),
                    parallel);
    if (readers.contains(link.output)) live[link.output] = value;
    if (link.output == wanted) output = value;
    for (const TensorId& input : link.inputs)
      if (--readers[input] == 0) live.erase(input);
  }
  return output;
}

}  // namespace lenscpp
