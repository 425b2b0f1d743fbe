// Edits: what they touch, what they read, and what is refused.
#include "hooks/plan.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace lenscpp {
namespace {

std::string describe(const Edit& edit) {
  return std::string(name_of(edit.kind)) + " at " + hook_name(edit.site, edit.layer);
}

[[noreturn]] void refuse(const Edit& edit, const std::string& why) {
  throw std::invalid_argument("[plan] " + describe(edit) + ": " + why);
}

// The position of one of `axes` among the axes of the edit's site.
std::optional<std::size_t> axis_of(Site site, std::initializer_list<Axis> axes) {
  auto all = info(site).axes;
  for (std::size_t i = 0; i < all.size(); ++i)
    if (std::ranges::find(axes, all[i]) != axes.end()) return i;
  return {};
}

void check_index(const Edit& edit, std::string_view what, std::int64_t index, std::int64_t extent) {
  if (index >= -extent && index < extent) return;
  throw std::out_of_range("[plan] " + describe(edit) + ": " + std::string(what) + " " +
                          std::to_string(index) + " out of range: there are " +
                          std::to_string(extent) + " (0.." + std::to_string(extent - 1) + ")");
}

// Indices of one axis that an edit selects: one, a list, or all.
std::vector<std::int64_t> selected(std::int64_t extent, const std::vector<std::int64_t>* list) {
  std::vector<std::int64_t> indices;
  if (list == nullptr) {
    for (std::int64_t i = 0; i < extent; ++i) indices.push_back(i);
  } else {
    for (std::int64_t i : *list) indices.push_back(i < 0 ? i + extent : i);
    std::ranges::sort(indices);
    indices.erase(std::ranges::unique(indices).begin(), indices.end());
  }
  return indices;
}

void check_selection(const Edit& edit, const Selection& where, const Shape& shape) {
  auto check = [&](std::string_view what, const std::optional<std::int64_t>& index,
                   std::initializer_list<Axis> axes) {
    if (!index) return;
    auto axis = axis_of(edit.site, axes);
    if (!axis) refuse(edit, "the site has no " + std::string(what) + " axis");
    check_index(edit, what, *index, shape[*axis]);
  };
  check("batch", where.batch, {Axis::batch});
  check("head", where.head, {Axis::head, Axis::kv_head});
  check("key", where.key, {Axis::key});
  if (!where.pos) return;
  if (where.pos->empty()) refuse(edit, "pos is empty: nothing would be edited");
  for (std::int64_t p : *where.pos) check("pos", p, {Axis::pos, Axis::query});
}

void check_finite(const Edit& edit, const Array& source) {
  bool masks = edit.site == Site::attn_scores;
  for (std::int64_t i = 0; i < source.numel(); ++i)
    if (double x = source[i]; !std::isfinite(x) && !(masks && x < 0))
      refuse(edit, "the source is not finite at element " + std::to_string(i));
}

// Row-major: the indices of each axis are added to what the axes before it selected.
std::vector<std::int64_t> touched_by(const Selection& where, Site site, const Shape& shape) {
  auto axes = info(site).axes;
  std::vector<std::int64_t> flat{0};
  for (std::size_t d = 0; d < axes.size(); ++d) {
    std::vector<std::int64_t> one;
    const std::vector<std::int64_t>* list = nullptr;
    auto pick = [&](const std::optional<std::int64_t>& index) {
      if (index) one = {*index}, list = &one;
    };
    if (axes[d] == Axis::batch) pick(where.batch);
    if (axes[d] == Axis::head || axes[d] == Axis::kv_head) pick(where.head);
    if (axes[d] == Axis::key) pick(where.key);
    if ((axes[d] == Axis::pos || axes[d] == Axis::query) && where.pos) list = &*where.pos;
    auto indices = selected(shape[d], list);
    std::vector<std::int64_t> next;
    next.reserve(flat.size() * indices.size());
    for (std::int64_t base : flat)
      for (std::int64_t i : indices) next.push_back(base * shape[d] + i);
    flat = std::move(next);
  }
  return flat;
}

void check_pieces(const Edit& edit, const Shape& shape) {
  if (edit.kind != EditKind::patch) refuse(edit, "only a patch is made of pieces");
  if (edit.where != Selection{} || edit.source.rank() != 0)
    refuse(edit, "pieces bring their own places and values: no where, no source");
  std::int64_t before = -1;
  for (const Piece& piece : edit.pieces) {
    check_selection(edit, piece.where, shape);
    if (!piece.where.batch || *piece.where.batch <= before)
      refuse(edit, "each piece names a prompt after the one before");
    before = *piece.where.batch;
    auto wanted = static_cast<std::int64_t>(touched_by(piece.where, edit.site, shape).size());
    if (piece.values.shape() != Shape{wanted} || piece.values.dtype() == DType::i64)
      refuse(edit, "the piece of prompt " + std::to_string(before) + " has values of shape " +
                       to_string(piece.values.shape()) + "; needed: " + to_string({wanted}));
  }
}

void check_source(const Edit& edit, const Shape& shape) {
  bool needs = edit.kind == EditKind::patch || edit.kind == EditKind::add;
  if (edit.source.rank() == 0) {
    if (needs) refuse(edit, "needs a source");
    return;
  }
  if (!needs && edit.kind != EditKind::mean) refuse(edit, "takes no source");
  Shape found = edit.source.shape();
  if (edit.source.dtype() == DType::i64) refuse(edit, "the source holds int64");
  Shape wanted = shape;
  if (edit.kind == EditKind::add && found == Shape{shape.back()}) return;
  if (edit.kind == EditKind::mean && found.size() == shape.size()) {
    wanted[0] = found[0];
    if (axis_of(edit.site, {Axis::pos})) wanted[1] = found[1];
    if (found == wanted && numel(found) > 0) return;
  }
  Shape one = shape;
  one[0] = 1;
  if (found != shape && found != one)
    refuse(edit,
           "the source has shape " + to_string(found) + "; allowed: " + to_string(shape) +
               (shape == one ? "" : " or " + to_string(one)) +
               (edit.kind == EditKind::add ? " or [" + std::to_string(shape.back()) + "]" : ""));
}

}  // namespace

std::string_view name_of(EditKind kind) {
  switch (kind) {
    case EditKind::patch:
      return "patch";
    case EditKind::zero:
      return "zero";
    case EditKind::mean:
      return "mean";
    case EditKind::add:
      return "add";
    case EditKind::scale:
      return "scale";
  }
  throw std::logic_error("[plan] not an EditKind");
}

std::vector<const Edit*> Plan::at(Site site, std::int64_t layer) const {
  std::vector<const Edit*> found;
  for (const Edit& edit : edits_)
    if (edit.site == site && edit.layer == layer) found.push_back(&edit);
  return found;
}

void validate(const Edit& edit, const Config& config, const Extents& extents) {
  const SiteInfo& row = info(edit.site);
  if (row.presence == Presence::internal || row.stored == Stored::ids || !exists(edit.site, config))
    refuse(edit, "this site cannot be edited");
  std::int64_t layers = row.per_layer ? config.n_layers : 1;
  if (edit.layer < 0 || edit.layer >= layers)
    throw std::out_of_range("[plan] " + describe(edit) + ": layer out of range: the model has " +
                            std::to_string(layers) + " (0.." + std::to_string(layers - 1) + ")");
  Shape shape = shape_of(edit.site, config, extents);
  check_selection(edit, edit.where, shape);
  if (edit.kind == EditKind::mean && edit.site == Site::attn_scores)
    refuse(edit, "masked scores have no mean; use pattern");
  if (edit.pieces.empty())
    check_source(edit, shape);
  else
    check_pieces(edit, shape);
  if (edit.kind == EditKind::scale && edit.site == Site::attn_scores && !(edit.factor > 0))
    refuse(edit, "masked scores are -inf, which only a positive factor leaves as they are");
  bool nothing = edit.kind == EditKind::zero || (edit.kind == EditKind::scale && edit.factor == 0);
  if (nothing && edit.site == Site::expert_weights)
    refuse(edit, "of weights that are all zero no expert has a share; edit hook_mlp_out instead");
  check_finite(edit, edit.source);
  for (const Piece& piece : edit.pieces) check_finite(edit, piece.values);
  if (!(std::abs(edit.factor) <= 1e30)) refuse(edit, "factor is not a finite number below 1e30");
}

void Plan::validate(const Config& config, const Extents& extents) const {
  for (const Edit& edit : edits_) lenscpp::validate(edit, config, extents);
}

namespace {

void describe_place(nlohmann::json& item, const Selection& where, const Array& source) {
  if (where.batch) item["batch"] = *where.batch;
  if (where.head) item["head"] = *where.head;
  if (where.pos) item["pos"] = *where.pos;
  if (where.key) item["key"] = *where.key;
  if (source.rank() > 0) item["source"] = {{"shape", source.shape()}, {"xxh3", source.digest()}};
}

}  // namespace

nlohmann::json to_json(const Plan& plan) {
  nlohmann::json list = nlohmann::json::array();
  for (const Edit& edit : plan.edits()) {
    nlohmann::json item{{"edit", name_of(edit.kind)}, {"name", hook_name(edit.site, edit.layer)}};
    describe_place(item, edit.where, edit.source);
    for (const Piece& piece : edit.pieces) {
      item["pieces"].emplace_back();
      describe_place(item["pieces"].back(), piece.where, piece.values);
    }
    if (edit.kind == EditKind::add || edit.kind == EditKind::scale) item["factor"] = edit.factor;
    list.push_back(std::move(item));
  }
  return list;
}

std::vector<std::int64_t> touched(const Edit& edit, const Shape& shape) {
  if (edit.pieces.empty()) return touched_by(edit.where, edit.site, shape);
  std::vector<std::int64_t> all;
  for (const Piece& piece : edit.pieces)
    std::ranges::copy(touched_by(piece.where, edit.site, shape), std::back_inserter(all));
  return all;
}

std::vector<double> source_values(const Edit& edit, const Shape& shape,
                                  const std::vector<std::int64_t>& touched) {
  std::vector<double> values;
  values.reserve(touched.size());
  for (const Piece& piece : edit.pieces)
    std::ranges::copy(piece.values.to_doubles(), std::back_inserter(values));
  if (!edit.pieces.empty()) return values;
  // A vector serves every row, a source of one prompt every prompt of the batch.
  std::int64_t period = edit.source.rank() == 1 ? shape.back() : edit.source.numel();
  for (std::int64_t i : touched) values.push_back(edit.source[i % period]);
  return values;
}

}  // namespace lenscpp
