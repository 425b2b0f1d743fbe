// Parts of a residual stream, read from verified activations.
#include "lens/residual_parts.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace lenscpp {
namespace {

// How many positions a cache holds: pos_slice may have kept fewer than were run.
std::int64_t kept_positions(const VerifiedCache& cache) {
  for (const auto& entry : cache.activations().entries()) {
    auto axes = info(entry.id.site).axes;
    if (axes.size() > 1 && axes[1] == Axis::pos) return entry.value.size(1);
  }
  return cache.record().pos;
}

// [1, d] in float64.
Mat row(const Array& array) {
  Mat values(1, array.numel());
  array.widen(0, {values.data(), static_cast<std::size_t>(array.numel())});
  return values;
}

}  // namespace

std::vector<std::int64_t> chosen(std::string_view where, std::string_view what,
                                 const Choice& choice, std::int64_t extent) {
  std::vector<std::int64_t> indices;
  if (choice.indices)
    indices = *choice.indices;
  else
    for (std::int64_t i = 0; i < extent; ++i) indices.push_back(i);
  std::string named = "[" + std::string(where) + "] " + std::string(what);
  for (std::int64_t& index : indices) {
    if (index < -extent || index >= extent)
      throw std::out_of_range(named + " " + std::to_string(index) + " out of range: there are " +
                              std::to_string(extent) + " (0.." + std::to_string(extent - 1) + ")");
    if (index < 0) index += extent;
  }
  if (indices.empty()) throw std::invalid_argument(named + ": none was chosen");
  if (choice.collapses && indices.size() != 1)
    throw std::invalid_argument(named + ": " + std::to_string(indices.size()) +
                                " were chosen; allowed: one, where the axis is dropped");
  return indices;
}

ResidualParts::ResidualParts(const VerifiedCache& cache, std::string where, const Choice& pos)
    : cache_(cache),
      where_(std::move(where)),
      extent_(kept_positions(cache)),
      collapses_(pos.collapses),
      pos_(chosen(where_, "position", pos, extent_)) {
  if (pos.indices) check_padding();
}

// A position that is asked for by name is a token in every prompt, not padding.
void ResidualParts::check_padding() const {
  const RunRecord& record = cache_.record();
  for (std::size_t b = 0; b < record.spans.size(); ++b)
    for (std::int64_t chosen : pos_) {
      std::int64_t p =
          record.kept_pos.empty() ? chosen : record.kept_pos[static_cast<std::size_t>(chosen)];
      if (p < record.spans[b].begin || p >= record.spans[b].end)
        throw std::invalid_argument("[" + where_ + "] position " + std::to_string(p) +
                                    " of prompt " + std::to_string(b) +
                                    " is padding; pad on the other side (padding_side)");
    }
}

void require_additive(const Config& config, const std::string& where) {
  if (config.norm_placement == NormPlacement::sum)
    throw std::invalid_argument(
        "[" + where + "] the residual stream of this model is normed behind " +
        "every sum: what is in it is no sum of contributions, and no earlier "
        "one can be unembedded");
}

void require_additive_parts(const Config& config, const std::string& where) {
  require_additive(config, where);
  if (returns_normed(config.norm_placement))
    throw std::invalid_argument(
        "[" + where +
        "] what attention and MLP return is normed before it "
        "is added: it is no sum of heads or neurons. attn_out and mlp_out are parts of "
        "the residual stream");
}

Shape ResidualParts::shape(const Shape& last) const {
  Shape shape{batch()};
  if (!collapses_) shape.push_back(static_cast<std::int64_t>(pos_.size()));
  shape.insert(shape.end(), last.begin(), last.end());
  return shape;
}

std::int64_t ResidualParts::up_to(std::optional<std::int64_t> layer, bool mlp_input) const {
  std::int64_t n = config().n_layers, found = layer.value_or(n);
  if (found == -1) found = n;
  if (found < 0 || found > n)
    throw std::out_of_range("[" + where_ + "] layer " + std::to_string(found) +
                            " out of range: allowed are 0.." + std::to_string(n) + ", of which " +
                            std::to_string(n) + " (as -1) is the unembedding");
  if (mlp_input && found == n)
    throw std::invalid_argument("[" + where_ + "] mlp_input: layer " + std::to_string(n) +
                                " is the unembedding, which has no MLP; allowed: 0.." +
                                std::to_string(n - 1));
  return found;
}

const Array& ResidualParts::activation(Site site, std::int64_t layer) const {
  std::string name = hook_name(site, layer);
  if (cache_.activations().find(name) == nullptr)
    throw std::invalid_argument(
        "[" + where_ + "] needs " + name + ", which this run of layers " +
        std::to_string(cache_.record().first_layer) + ".." +
        std::to_string(cache_.record().end_layer - 1) +
        " did not keep: name it in names_filter, or leave names_filter and stop_at_layer out");
  return cache_[name];
}

Mat ResidualParts::rows_of(Site site, std::int64_t layer) const {
  const Array& x = activation(site, layer);
  if (x.rank() < 3 || x.size(0) != batch() || x.size(1) != extent_)
    throw std::invalid_argument("[" + where_ + "] an activation of shape " + to_string(x.shape()) +
                                "; needed: [" + std::to_string(batch()) + ", " +
                                std::to_string(extent_) + ", ...]");
  std::int64_t size = x.numel() / (batch() * extent_);
  Mat rows(this->rows(), size);
  Index r = 0;
  for (std::int64_t b = 0; b < batch(); ++b)
    for (std::int64_t p : pos_)
      x.widen((b * extent_ + p) * size, {rows.row(r++).data(), static_cast<std::size_t>(size)});
  return rows;
}

std::vector<Part> ResidualParts::embeddings() const {
  if (config().embed_norm) return {{"embed", [this] { return rows_of(Site::resid_pre); }}};
  std::vector<Part> parts{{"embed", [this] { return rows_of(Site::embed); }}};
  if (config().positions == PositionKind::learned)
    parts.push_back({"pos_embed", [this] { return rows_of(Site::pos_embed); }});
  return parts;
}
Part ResidualParts::attn_out(std::int64_t layer) const {
  return {std::to_string(layer) + "_attn_out",
          [=, this] { return rows_of(Site::attn_out, layer); }};
}
Part ResidualParts::mlp_out(std::int64_t layer) const {
  return {std::to_string(layer) + "_mlp_out", [=, this] { return rows_of(Site::mlp_out, layer); }};
}

bool ResidualParts::edited(Site site, std::int64_t layer) const {
  std::string name = hook_name(site, layer);
  const RunRecord& record = cache_.record();
  return std::ranges::count(record.hooks, name, &HookCall::name) > 0 ||
         std::ranges::any_of(record.plan,
                             [&](const auto& edit) { return edit.value("name", "") == name; });
}

std::vector<Part> ResidualParts::heads(std::int64_t layer) const {
  bool from_results = edited(Site::result, layer);
  auto source = std::make_shared<const Mat>(rows_of(from_results ? Site::result : Site::z, layer));
  std::vector<Part> parts;
  for (std::int64_t h = 0; h < config().n_heads; ++h)
    parts.push_back({"L" + std::to_string(layer) + "H" + std::to_string(h), [=, this]() -> Mat {
                       std::int64_t d_head = config().d_head, d_model = config().d_model;
                       if (from_results) return source->middleCols(h * d_model, d_model);
                       return source->middleCols(h * d_head, d_head) *
                              weight_block(weights().W_O(layer), h * d_head, d_head, 0, d_model);
                     }});
  return parts;
}

Part ResidualParts::bias(std::string label, const std::vector<Array>& biases) const {
  Mat sum = Mat::Zero(1, config().d_model);
  for (const Array& bias : biases) sum += row(bias);
  return {std::move(label), [=, this]() -> Mat { return sum.replicate(rows(), 1); }};
}

std::vector<Part> ResidualParts::neurons(std::int64_t layer,
                                         const std::vector<std::int64_t>& which) const {
  if (config().experts)
    throw std::invalid_argument(
        "[" + where_ +
        "] neurons of experts are not taken apart: what one adds is mlp.hook_expert_post times its "
        "expert's share times its row of W_out; mlp_out has all of them (expand_neurons=False)");
  auto post = std::make_shared<const Mat>(rows_of(Site::mlp_post, layer));
  std::vector<Part> parts;
  for (std::int64_t n : which)
    parts.push_back({"L" + std::to_string(layer) + "N" + std::to_string(n), [=, this]() -> Mat {
                       return post->col(n) *
                              weight_block(weights().W_out(layer), n, 1, 0, config().d_model);
                     }});
  return parts;
}

Eigen::VectorXd ResidualParts::norm_scale(std::int64_t layer, bool mlp_input) const {
  if (layer == config().n_layers) return rows_of(Site::ln_final_scale).col(0);
  return rows_of(mlp_input ? Site::ln2_scale : Site::ln1_scale, layer).col(0);
}

Mat centred(Mat x, NormKind kind) {
  switch (kind) {
    case NormKind::layer_norm:
    case NormKind::layer_norm_pre:
      x.colwise() -= x.rowwise().mean().eval();
      return x;
    case NormKind::rms_norm:
    case NormKind::rms_norm_pre:
      return x;
  }
  throw std::logic_error("[lens] a norm of no known kind");
}

Mat through_final_norm(Mat x, const Weights& weights) {
  x = centred(std::move(x), weights.config.norm);
  Eigen::VectorXd scale =
      (x.rowwise().squaredNorm().array() / static_cast<double>(x.cols()) + weights.config.norm_eps)
          .sqrt();
  x.array().colwise() /= scale.array();
  if (weights.ln_final_w.empty()) return x;
  double offset = weights.config.norm_adds_one ? 1 : 0;
  x.array().rowwise() *= row(weights.ln_final_w).row(0).array() + offset;
  if (!weights.ln_final_b.empty()) x.rowwise() += row(weights.ln_final_b).row(0);
  return x;
}

}  // namespace lenscpp
