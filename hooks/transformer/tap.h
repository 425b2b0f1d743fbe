// The tap: every tensor of a run passes through it, is edited as the plan says, handed to the
// callbacks there, and to the sink as a host snapshot.
#pragma once

#include <ATen/ThreadLocalState.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <set>
#include <utility>
#include <vector>

#include "hooks/rows.h"
#include "hooks/run_record.h"
#include "hooks/sink.h"

namespace lenscpp {

/// Changes a tensor before anybody sees it: how faults are injected. Returns its argument untouched
/// for sites that it leaves alone; must not write in place.
using Interference = std::function<at::Tensor(const TensorId&, const at::Tensor&)>;

/// One run's tap. Callbacks run in the state of torch (gradients, modes, autocast) in which the
/// tap was made.
class Tap {
 public:
  /// `sink` may be null: nothing is recorded then.
  Tap(const Request& request, Sink* sink, const Interference& interference)
      : request_(request), sink_(sink), interference_(interference) {}

  /// What later operations read: `x` after interference, edits and callbacks, each stage recorded.
  /// Throws what a callback throws, and std::invalid_argument for what it may not return.
  at::Tensor operator()(Site site, std::int64_t layer, const at::Tensor& x);
  bool computes(Site site, std::int64_t layer) const { return request_.computes(site, layer); }
  bool touches(Site site, std::int64_t layer) const { return request_.touches(site, layer); }
  /// Whether the plan edits the site, or a callback did change it in this run.
  bool changed(Site site, std::int64_t layer) const {
    return request_.plan.touches(site, layer) || changed_.contains({site, layer});
  }
  const Request& request() const { return request_; }
  const std::vector<HookCall>& calls() const { return calls_; }

 private:
  // A tensor as later operations read it, and the host copy that the sink was given, if any.
  struct Recorded {
    at::Tensor value;
    Array host;
  };
  Recorded recorded(const TensorId& id, const at::Tensor& x) const;
  at::Tensor call(const Callback& callback, const TensorId& id, const Recorded& now);

  const Request& request_;
  Sink* sink_;
  const Interference& interference_;
  at::ThreadLocalState callers_;
  std::vector<HookCall> calls_;
  std::set<std::pair<Site, std::int64_t>> changed_;
};

}  // namespace lenscpp
