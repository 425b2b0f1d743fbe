// Where the tensors of a run go: the forward pass calls a tap, the tap feeds a sink.
#pragma once

#include <map>
#include <utility>
#include <vector>

#include "hooks/array.h"
#include "hooks/hook_point.h"

namespace lenscpp {

/// Receives every tensor of a run in execution order, as a host snapshot that nothing writes to.
class Sink {
 public:
  virtual ~Sink() = default;
  virtual void take(const TensorId& id, const Array& value) = 0;
  /// What a callback returned, before it is uploaded as the stage `id`, which is taken next.
  virtual void take_returned(const TensorId& /*id*/, const Array& /*value*/) {}
};

/// Keeps everything: the sink of tests and of runs that will be checked later, if at all.
class Recorder : public Sink {
 public:
  void take(const TensorId& id, const Array& value) override { tensors_[id] = value; }
  const std::map<TensorId, Array>& tensors() const { return tensors_; }

 private:
  std::map<TensorId, Array> tensors_;
};

/// Keeps everything in execution order.
class Recording : public Sink {
 public:
  void take(const TensorId& id, const Array& value) override { tensors_.emplace_back(id, value); }
  const std::vector<std::pair<TensorId, Array>>& tensors() const { return tensors_; }

 private:
  std::vector<std::pair<TensorId, Array>> tensors_;
};

/// Hands everything to one sink and then to another, the very same arrays to both.
class Tee : public Sink {
 public:
  Tee(Sink& first, Sink& second) : first_(first), second_(second) {}
  void take(const TensorId& id, const Array& value) override {
    first_.take(id, value);
    second_.take(id, value);
  }
  void take_returned(const TensorId& id, const Array& value) override {
    first_.take_returned(id, value);
    second_.take_returned(id, value);
  }

 private:
  Sink& first_;
  Sink& second_;
};

}  // namespace lenscpp
