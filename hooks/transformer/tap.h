// The tap: every tensor of a run passes through it, is edited as the plan says, and is handed to
// the sink as a host snapshot.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "hooks/rows.h"
#include "hooks/sink.h"

namespace lenscpp {

/// Changes a tensor before anybody sees it: how faults are injected. Returns its argument untouched
/// for sites that it leaves alone; must not write in place.
using Interference = std::function<at::Tensor(const TensorId&, const at::Tensor&)>;

/// One run's tap.
class Tap {
 public:
  /// `sink` may be null: nothing is recorded then.
  Tap(const Request& request, Sink* sink, const Interference& interference)
      : request_(request), sink_(sink), interference_(interference) {}

  /// What later operations read: `x` after interference and edits, each stage recorded.
  at::Tensor operator()(Site site, std::int64_t layer, const at::Tensor& x) const;
  bool computes(Site site, std::int64_t layer) const { return request_.computes(site, layer); }
  bool edits(Site site, std::int64_t layer) const { return request_.plan.touches(site, layer); }
  const Request& request() const { return request_; }

 private:
  void record(const TensorId& id, const at::Tensor& x) const;

  const Request& request_;
  Sink* sink_;
  const Interference& interference_;
};

}  // namespace lenscpp
