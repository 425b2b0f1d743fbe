// Parts of a run, and putting them together.
#include "lens/split_run.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <utility>

#include "hooks/transformer/torch_array.h"
#include "verify/device/preflight.h"

namespace lenscpp {
namespace {

// Keeps the tensors in execution order, so that they can be handed on in it.
class InOrder : public Sink {
 public:
  void take(const TensorId& id, const Array& value) override { tensors.emplace_back(id, value); }
  std::vector<std::pair<TensorId, Array>> tensors;
};

// One after another along the first axis, the batch.
Array concatenated(const std::vector<Array>& parts) {
  Shape shape = parts.at(0).shape();
  shape.at(0) = 0;
  for (const Array& part : parts) shape[0] += part.size(0);
  MutableArray whole(shape, parts[0].dtype());
  std::byte* to = whole.bytes();
  for (const Array& part : parts) to = std::copy_n(part.bytes(), part.nbytes(), to);
  return std::move(whole).freeze();
}

// What every part computes for itself alone: without a batch axis, or with one for padding only.
bool is_shared(Site site, bool padded) {
  Axis first = info(site).axes[0];
  return first != Axis::batch && !(first == Axis::apart && padded);
}

// What should be equal in all parts: NaN where it is not, so that its check fails.
Array shared(const std::vector<Array>& parts) {
  MutableArray one(parts[0]);
  for (const Array& part : parts)
    for (std::int64_t i = 0; i < part.numel(); ++i)
      if (part[i] != parts[0][i]) one.set(i, std::numeric_limits<double>::quiet_NaN());
  return std::move(one).freeze();
}

// Hands on what the parts recorded and lets go of it.
void hand_on(std::vector<InOrder>& parts, bool padded, Sink& sink) {
  for (std::size_t i = 0; i < parts[0].tensors.size(); ++i) {
    TensorId id = parts[0].tensors[i].first;
    std::vector<Array> values;
    for (InOrder& part : parts) {
      if (i >= part.tensors.size() || part.tensors[i].first != id)
        throw std::logic_error("[split] the parts of a run computed different tensors");
      values.push_back(std::exchange(part.tensors[i].second, {}));
    }
    sink.take(id, is_shared(id.site, padded) ? shared(values) : concatenated(values));
  }
}

std::string why_whole(const Request& request) {
  const Rows& rows = request.rows;
  if (!rows.entering.empty()) return "some prompts enter at later layers";
  if (!rows.spans.empty() && std::ssize(rows.spans) != rows.batch)
    return "its prompts take turns in their padding";
  if (!rows.base.empty() && rows.base[0].keys.size(0) != rows.batch)
    return "its prompts share their base keys and values";
  if (!request.callbacks.empty())
    return "hook " + describe(request.callbacks[0]) + " sees all prompts at once";
  for (const Edit& edit : request.plan.edits())
    if (edit.kind == EditKind::mean && edit.source.rank() == 0)
      return "the mean at " + hook_name(edit.site, edit.layer) +
             " is taken over all prompts of the run";
  return "";
}

Edit part_of(const Edit& edit, std::int64_t batch, std::int64_t first, std::int64_t count) {
  Edit part = edit;
  // Of another part: nothing changes, at the same stage.
  const Edit nothing{
      .kind = EditKind::scale, .site = edit.site, .layer = edit.layer, .where = {.batch = 0}};
  if (!edit.pieces.empty()) {
    std::erase_if(part.pieces, [&](const Piece& piece) {
      return *piece.where.batch < first || *piece.where.batch >= first + count;
    });
    for (Piece& piece : part.pieces) *piece.where.batch -= first;
    return part.pieces.empty() ? nothing : part;
  }
  if (edit.where.batch) {
    std::int64_t index = *edit.where.batch + (*edit.where.batch < 0 ? batch : 0) - first;
    if (index < 0 || index >= count) return nothing;
    part.where.batch = index;
  }
  // A vector serves every prompt, as does a source of one prompt; means bring their own prompts.
  if (edit.kind != EditKind::mean && edit.source.rank() > 1 && edit.source.size(0) == batch)
    part.source = edit.source.rows(first, first + count);
  return part;
}

}  // namespace

std::vector<std::int64_t> parts_of(const Weights& weights, const Request& request,
                                   const DeviceLimits& limits) {
  auto violations = run_violations(weights, request, limits);
  if (violations.empty()) return {};
  std::int64_t batch = request.rows.batch, most = largest_batch(weights, request, limits);
  if (most == 0) require_run_fits(weights, request, limits);  // throws
  if (std::string why = why_whole(request); !why.empty())
    throw DeviceError("[preflight] " + to_string(violations[0]) +
                      "; the batch cannot be split, since " + why +
                      "; what fits: " + std::to_string(most) +
                      (most == 1 ? " prompt at a time" : " prompts at a time"));
  std::vector<std::int64_t> parts(static_cast<std::size_t>(batch / most), most);
  if (batch % most > 0) parts.push_back(batch % most);
  return parts;
}

Request part_of(const Request& request, std::int64_t first, std::int64_t count) {
  const Rows& rows = request.rows;
  Request part = request;
  auto cut = [&](std::vector<std::int64_t>& ids) {
    if (!ids.empty())
      ids = {ids.begin() + first * rows.pos, ids.begin() + (first + count) * rows.pos};
  };
  part.rows.batch = count;
  part.rows.spans.clear();
  cut(part.rows.tokens);
  cut(part.rows.positions);
  cut(part.rows.token_types);
  for (std::int64_t b = first; b < first + count && !rows.spans.empty(); ++b)
    part.rows.spans.push_back(rows.span_of(b));
  if (rows.start_residual)
    part.rows.start_residual = rows.start_residual->rows(first, first + count);
  if (rows.start_z) part.rows.start_z = rows.start_z->rows(first, first + count);
  for (BaseKeysValues& base : part.rows.base)
    base = {base.keys.rows(first, first + count), base.values.rows(first, first + count)};
  std::vector<Edit> edits;
  for (const Edit& edit : request.plan.edits())
    edits.push_back(part_of(edit, rows.batch, first, count));
  part.plan = Plan(std::move(edits));
  return part;
}

namespace {

// Everything that a part leaves beside its tensors: an operator that fell back in any part fell
// back in the run, and one run has one ambient state.
void add_part(PassResult& whole, const PassResult& part, bool first) {
  if (first) whole.ambient = part.ambient;
  for (const auto& [flag, value] : part.ambient)
    if (auto before = whole.ambient.find(flag);
        before == whole.ambient.end() || before->second != value)
      throw std::runtime_error("[split] torch's state changed between two parts of a run: " + flag +
                               " is " + value);
  if (part.ambient.size() != whole.ambient.size())
    throw std::runtime_error("[split] torch's state changed between two parts of a run");
  whole.hooks.insert(whole.hooks.end(), part.hooks.begin(), part.hooks.end());
  for (const std::string& op : part.fallbacks)
    if (std::ranges::find(whole.fallbacks, op) == whole.fallbacks.end())
      whole.fallbacks.push_back(op);
}

}  // namespace

PassResult run_in_parts(const Request& request, const std::vector<std::int64_t>& parts, Sink* sink,
                        const RunPart& run) {
  PassResult result;
  std::vector<InOrder> recorded(parts.size());
  std::vector<Array> outputs;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    Request part = part_of(request, first, parts[i]);
    PassResult passed = run(part, sink == nullptr ? nullptr : &recorded[i]);
    outputs.push_back(snapshot(passed.output));
    add_part(result, passed, i == 0);
    first += parts[i];
  }
  if (sink != nullptr) hand_on(recorded, !request.rows.spans.empty(), *sink);
  result.output = alias(concatenated(outputs));
  return result;
}

}  // namespace lenscpp
