// Taps, the device's reading of a plan's edits, and calls of callbacks.
#include "hooks/transformer/tap.h"

#include <ATen/ops/add.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <stdexcept>

#include "hooks/transformer/torch_array.h"

namespace lenscpp {
namespace {

// True at the elements that an edit touches, built on the host.
at::Tensor mask_of(const std::vector<std::int64_t>& indices, const at::Tensor& x) {
  at::Tensor mask = at::zeros_like(x, x.options().dtype(at::kBool).device(at::kCPU));
  bool* at = mask.mutable_data_ptr<bool>();
  for (std::int64_t i : indices) at[i] = true;
  return mask.to(x.device());
}

// The edit's values at the elements that it touches, zero elsewhere, rounded once to the dtype of
// x.
at::Tensor values_of(const Edit& edit, const std::vector<std::int64_t>& indices,
                     const at::Tensor& x) {
  Shape shape(x.sizes().begin(), x.sizes().end());
  MutableArray values(shape, to_dtype(x.scalar_type()));
  double factor = edit.kind == EditKind::add ? edit.factor : 1.0;
  std::vector<double> brought = source_values(edit, shape, indices);
  for (std::size_t i = 0; i < indices.size(); ++i) values.set(indices[i], factor * brought[i]);
  return upload(std::move(values).freeze(), x.device());
}

// Means over batch, and over position where the second axis is one, broadcast back to x.
at::Tensor mean_of(const Edit& edit, const at::Tensor& x) {
  std::vector<std::int64_t> dims{0};
  if (info(edit.site).axes[1] == Axis::pos) dims.push_back(1);
  at::Tensor from = edit.source.empty()
                        ? x.to(to_scalar_type(accumulate_type(to_dtype(x.scalar_type()))))
                        : alias(edit.source).to(at::kDouble);
  return at::mean(from, dims, /*keepdim=*/true)
      .to(x.scalar_type())
      .to(x.device())
      .expand_as(x)
      .contiguous();
}

// Out of place and over whole contiguous tensors: an in-place write through a strided view is the
// most common way in which a device silently does nothing.
at::Tensor apply(const Edit& edit, const at::Tensor& x) {
  Shape shape(x.sizes().begin(), x.sizes().end());
  auto indices = touched(edit, shape);
  at::Tensor mask = mask_of(indices, x);
  switch (edit.kind) {
    case EditKind::zero:
      return at::where(mask, at::zeros_like(x), x);
    case EditKind::patch:
      return at::where(mask, values_of(edit, indices, x), x);
    case EditKind::mean:
      return at::where(mask, mean_of(edit, x), x);
    case EditKind::add:
      return at::where(mask, at::add(x, values_of(edit, indices, x)), x);
    case EditKind::scale:
      return at::where(mask, at::mul(x, edit.factor), x);
  }
  throw std::logic_error("[tap] not an EditKind");
}

}  // namespace

at::Tensor Tap::operator()(Site site, std::int64_t layer, const at::Tensor& x) {
  TensorId id{site, layer};
  Recorded now = recorded(id, x);
  for (const Edit* edit : request_.plan.at(site, layer)) {
    id.stage += 1;
    now = recorded(id, apply(*edit, now.value));
  }
  for (const Callback* callback : request_.callbacks_at(site, layer)) {
    id.stage += 1;
    now = recorded(id, call(*callback, id, now));
  }
  return now.value;
}

// Interference comes first: what is recorded is what later operations read.
Tap::Recorded Tap::recorded(const TensorId& id, const at::Tensor& x) const {
  Recorded now{.value = interference_ ? interference_(id, x) : x, .host = {}};
  if (sink_ == nullptr) return now;
  now.host = snapshot(now.value);
  sink_->take(id, now.host);
  return now;
}

// A callback is handed the very copy that was checked: a second one could differ.
at::Tensor Tap::call(const Callback& callback, const TensorId& id, const Recorded& now) {
  const at::Tensor& x = now.value;
  Array before = sink_ != nullptr ? now.host : snapshot(x);
  std::string digest = before.digest();
  std::optional<Array> returned;
  {
    at::ThreadLocalStateGuard callers(callers_);
    returned = callback.call(id, before);
  }
  bool changed = returned && !identical(*returned, before);
  if (changed) check_returned(callback, before, *returned);
  const Array& after = changed ? *returned : before;
  if (changed) changed_.insert({id.site, id.layer});
  calls_.push_back({.name = hook_name(id.site, id.layer),
                    .function = callback.name,
                    .before = digest,
                    .after = changed ? after.digest() : digest,
                    .changed = changed});
  if (sink_ != nullptr) sink_->take_returned(id, after);
  return changed ? upload(after, x.device()) : x;
}

}  // namespace lenscpp
