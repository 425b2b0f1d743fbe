// Which rows a patch changes, and the requests that compute them.
#include "patching/sweep.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <numeric>

namespace lenscpp {
namespace {

// Products of fewer rows are slower than they could be: patches that begin a little later join
// them, at the price of computing rows that do not change.
constexpr std::int64_t kFewRows = 256;
// A product of so few columns is cheaper than finding out which tokens are asked for twice.
constexpr std::size_t kFewTokens = 64;

// The given elements, one after another.
Array elements(const Array& array, const std::vector<std::int64_t>& indices) {
  MutableArray found({static_cast<std::int64_t>(indices.size())}, array.dtype());
  std::size_t width = size_of(array.dtype());
  std::byte* to = found.bytes();
  for (std::int64_t i : indices) {
    std::memcpy(to, array.bytes() + static_cast<std::size_t>(i) * width, width);
    to += width;
  }
  return std::move(found).freeze();
}

// Where rows do not see each other until the next layer.
bool behind_attention(Site site) { return site >= Site::z && site <= Site::normalized_resid_post; }

// The given rows of [batch, pos, ...], as [row, 1, ...].
Array rows_of(const Array& of_base, const std::vector<std::int64_t>& rows) {
  Shape shape = of_base.shape();
  std::size_t size = of_base.nbytes() / static_cast<std::size_t>(shape[0] * shape[1]);
  shape[0] = static_cast<std::int64_t>(rows.size());
  shape[1] = 1;
  MutableArray result(shape, of_base.dtype());
  std::byte* to = result.bytes();
  for (std::int64_t row : rows)
    to = std::copy_n(of_base.bytes() + static_cast<std::size_t>(row) * size, size, to);
  return std::move(result).freeze();
}

std::vector<std::int64_t> touched_in(const Selection& where, Site site, const Shape& shape) {
  return touched({.kind = EditKind::patch, .site = site, .where = where}, shape);
}

}  // namespace

PatchRuns::PatchRuns(const HookedTransformer& model, Site site, const VerifiedCache& base,
                     std::vector<Array> sources, const Reads& reads, const Savings& savings)
    : model_(model),
      site_(site),
      base_(base),
      batch_(base.record().batch),
      pos_(base.record().pos),
      sources_(std::move(sources)),
      savings_(savings) {
  savings_.positions &= model.config().causal;  // else every position sees every other
  if (!savings.output || !reads.pos || site == Site::unembed_out) return;
  if (!unembeds(model.config().head)) return;
  read_pos_ = *reads.pos < 0 ? *reads.pos + pos_ : *reads.pos;
  if (reads.tokens.size() <= kFewTokens) read_tokens_ = reads.tokens;
}

std::vector<std::string> PatchRuns::needed(Site site, const Config& config) {
  std::vector<std::string> names;
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    for (Site one : {Site::resid_pre, keys_of(config), Site::v}) names.push_back(hook_name(one, l));
    if (info(site).per_layer) names.push_back(hook_name(site, l));
    if (behind_attention(site)) names.push_back(hook_name(Site::z, l));
  }
  if (!info(site).per_layer) names.push_back(hook_name(site, 0));
  std::ranges::sort(names);
  names.erase(std::ranges::unique(names).begin(), names.end());
  return names;
}

std::int64_t PatchRuns::start_layer(const Patch& patch) const {
  if (!savings_.layers) return 0;
  if (info(site_).per_layer) return in_two_parts(patch) ? patch.layer + 1 : patch.layer;
  return is_head(site_) ? model_.config().n_layers - 1 : 0;
}

// Whether a run computes the site in this layer for the position that is read alone.
bool PatchRuns::only_read_position(std::int64_t layer) const {
  if (!read_pos_) return false;
  return is_head(site_) || (site_ >= Site::queries && layer == model_.config().n_layers - 1);
}

// Those that a patch writes and its run computes, in increasing order.
std::vector<std::int64_t> PatchRuns::positions_of(const Patch& patch, std::int64_t from) const {
  std::vector<std::int64_t> all(static_cast<std::size_t>(pos_));
  std::iota(all.begin(), all.end(), 0);
  if (patch.where.pos) all = *patch.where.pos;
  std::erase_if(all, [&](std::int64_t p) {
    return p < from || (only_read_position(patch.layer) && p != *read_pos_);
  });
  return all;
}

// Keys or values of the positions before one: [batch, first_pos, ...].
Array PatchRuns::before(const Array& of_base, std::int64_t first_pos) const {
  Shape shape = of_base.shape();
  std::size_t prompt = of_base.nbytes() / static_cast<std::size_t>(batch_);
  std::size_t part = prompt / static_cast<std::size_t>(pos_) * static_cast<std::size_t>(first_pos);
  shape[1] = first_pos;
  MutableArray result(shape, of_base.dtype());
  for (std::int64_t b = 0; b < batch_; ++b)
    std::memcpy(result.bytes() + static_cast<std::size_t>(b) * part,
                of_base.bytes() + static_cast<std::size_t>(b) * prompt, part);
  return std::move(result).freeze();
}

// Bit by bit, in any prompt.
bool PatchRuns::differs(const Patch& patch, std::int64_t pos) const {
  const Array& source = sources_[static_cast<std::size_t>(patch.layer)];
  const Array& base = base_[hook_name(site_, patch.layer)];
  Selection where = patch.where;
  where.pos = std::vector<std::int64_t>{pos};
  std::size_t width = size_of(base.dtype());
  auto equal = [&](std::int64_t i) {
    auto at = static_cast<std::size_t>(i) * width;
    return std::memcmp(source.bytes() + at, base.bytes() + at, width) == 0;
  };
  return !std::ranges::all_of(touched_in(where, site_, base.shape()), equal);
}

bool PatchRuns::changes_anything(Patch& patch) const {
  auto positions = positions_of(patch, 0);
  if (positions.empty()) return false;
  auto first = std::ranges::find_if(positions, [&](std::int64_t p) { return differs(patch, p); });
  bool seen =
      !model_.config().causal || !read_pos_ || first == positions.end() || *first <= *read_pos_;
  bool read = first != positions.end() && seen;
  if (!read && savings_.equal) return false;
  if (savings_.positions)
    patch.first_pos = read ? *first : std::min(positions[0], read_pos_.value_or(pos_ - 1));
  return true;
}

std::vector<std::vector<Patch>> PatchRuns::grouped(
    std::vector<Patch> patches, const std::function<std::int64_t(std::int64_t)>& most) const {
  std::ranges::stable_sort(patches, {}, &Patch::first_pos);
  std::vector<std::vector<Patch>> groups;
  for (const Patch& patch : patches) {
    auto joins = [&](const std::vector<Patch>& group) {
      std::int64_t n = std::ssize(group), first = group[0].first_pos;
      bool few = n * batch_ * (pos_ - first) < kFewRows;
      return n < most(first) && (patch.first_pos == first || few);
    };
    if (groups.empty() || !joins(groups.back())) groups.emplace_back();
    groups.back().push_back(patch);
  }
  for (auto& group : groups)
    std::ranges::stable_sort(group, {}, [this](const Patch& p) { return start_layer(p); });
  return groups;
}

// The base's residual at a layer from a position on, once for each patch, with what the patch is
// carried on with: [patch * batch, pos - first_pos, d_model].
Array PatchRuns::residuals(std::span<const Patch> patches, std::int64_t layer,
                           std::int64_t first_pos) const {
  const Array& of_base = base_[hook_name(Site::resid_pre, layer)];
  std::size_t row = of_base.nbytes() / static_cast<std::size_t>(batch_ * pos_);
  MutableArray result({std::ssize(patches) * batch_, pos_ - first_pos, of_base.size(2)},
                      of_base.dtype());
  std::byte* to = result.bytes();
  std::size_t size = row * static_cast<std::size_t>(pos_ - first_pos);
  for (const Patch& patch : patches) {
    auto positions =
        patch.carried.empty() ? std::vector<std::int64_t>{} : positions_of(patch, patch.first_pos);
    for (std::int64_t b = 0; b < batch_; ++b, to += size) {
      std::memcpy(to, of_base.bytes() + row * static_cast<std::size_t>(b * pos_ + first_pos), size);
      for (std::size_t i = 0; i < positions.size(); ++i)
        std::memcpy(to + row * static_cast<std::size_t>(positions[i] - first_pos),
                    patch.carried.bytes() +
                        row * (i * static_cast<std::size_t>(batch_) + static_cast<std::size_t>(b)),
                    row);
    }
  }
  return std::move(result).freeze();
}

bool PatchRuns::in_two_parts(const Patch& patch) const {
  return savings_.layers && savings_.rows && behind_attention(site_) &&
         patch.layer + 1 < model_.config().n_layers;
}

// What a patch writes into its own rows, from `row` on: position by position, prompt by prompt.
std::vector<Piece> PatchRuns::pieces_of_rows(const Patch& patch, std::int64_t row) const {
  const Array& source = sources_[static_cast<std::size_t>(patch.layer)];
  Selection from = patch.where, to = patch.where;
  to.pos = {0};
  std::vector<Piece> result;
  for (std::int64_t p : positions_of(patch, patch.first_pos)) {
    from.pos = {p};
    for (std::int64_t b = 0; b < batch_; ++b) {
      Array prompt = source.rows(b, b + 1);
      to.batch = row++;
      result.push_back({to, elements(prompt, touched_in(from, site_, prompt.shape()))});
    }
  }
  return result;
}

Request PatchRuns::request_of_rows(std::span<const Patch> patches) const {
  std::int64_t layer = patches[0].layer;
  Edit edit{.kind = EditKind::patch, .site = site_, .layer = layer};
  std::vector<std::int64_t> rows, positions;
  for (const Patch& patch : patches) {
    std::ranges::move(pieces_of_rows(patch, std::ssize(rows)), std::back_inserter(edit.pieces));
    for (std::int64_t p : positions_of(patch, patch.first_pos))
      for (std::int64_t b = 0; b < batch_; ++b) {
        rows.push_back(b * pos_ + p);
        positions.push_back(position_in(span_of(b), p));
      }
  }
  return {.rows = {.batch = std::ssize(rows),
                   .pos = 1,
                   .tokens = {},
                   .positions = std::move(positions),
                   .first_layer = layer,
                   .end_layer = layer + 1,
                   .unembeds = false,
                   .start_residual = rows_of(base_[hook_name(Site::resid_pre, layer)], rows),
                   .start_z = rows_of(base_[hook_name(Site::z, layer)], rows)},
          .plan = Plan({std::move(edit)}),
          .on_demand = {}};
}

void PatchRuns::carry(std::span<Patch> patches, const Array& output) const {
  std::int64_t row = 0;
  for (Patch& patch : patches) {
    std::int64_t rows = std::ssize(positions_of(patch, patch.first_pos)) * batch_;
    patch.carried = output.rows(row, row + rows);
    row += rows;
  }
}

// Where the tokens of one of the base's prompts stand.
Span PatchRuns::span_of(std::int64_t prompt) const {
  const std::vector<Span>& spans = base_.record().spans;
  return spans.empty() ? Span{0, pos_} : spans[static_cast<std::size_t>(prompt)];
}

// What a patch writes into rows [row, row + batch) of a run from `first_pos` on, one piece a
// prompt.
std::vector<Piece> PatchRuns::pieces(const Patch& patch, std::int64_t row,
                                     std::int64_t first_pos) const {
  const Array& source = sources_[static_cast<std::size_t>(patch.layer)];
  bool alone = only_read_position(patch.layer);
  Selection from = patch.where, to = patch.where;
  from.pos = to.pos = positions_of(patch, patch.first_pos);
  for (std::int64_t& p : *to.pos) p = alone ? 0 : p - first_pos;
  std::vector<Piece> result;
  for (std::int64_t b = 0; b < batch_; ++b) {
    Array prompt = source.rows(b, b + 1);
    to.batch = row + b;
    result.push_back({to, elements(prompt, touched_in(from, site_, prompt.shape()))});
  }
  return result;
}

// One edit a layer, of all patches there that are not carried on. Prompts that have entered a layer
// are numbered from 0 on.
std::vector<Edit> PatchRuns::edits(std::span<const Patch> group, std::int64_t first_pos) const {
  std::vector<Edit> all;
  for (std::size_t i = 0; i < group.size(); ++i) {
    if (!group[i].carried.empty()) continue;
    if (all.empty() || all.back().layer != group[i].layer)
      all.push_back({.kind = EditKind::patch, .site = site_, .layer = group[i].layer});
    auto here = pieces(group[i], static_cast<std::int64_t>(i) * batch_, first_pos);
    std::ranges::move(here, std::back_inserter(all.back().pieces));
  }
  return all;
}

Request PatchRuns::request(std::span<const Patch> group) const {
  std::int64_t layers = model_.config().n_layers, first_layer = start_layer(group[0]);
  std::int64_t first_pos = std::ranges::min(group, {}, &Patch::first_pos).first_pos;
  auto enter_at = [&](std::int64_t layer) {  // stand together
    auto found = std::ranges::equal_range(group, layer, {},
                                          [this](const Patch& p) { return start_layer(p); });
    return std::span<const Patch>(found.begin(), found.end());
  };
  auto base = [&](Site site, std::int64_t layer) { return base_[hook_name(site, layer)]; };
  std::span<const Patch> first = enter_at(first_layer);
  std::int64_t computed = pos_ - first_pos;
  Rows rows{.batch = std::ssize(first) * batch_,
            .pos = computed,
            .tokens = {},
            .positions = {},
            .spans = base_.record().spans,
            .first_layer = first_layer,
            .end_layer = layers,
            .first_pos = first_pos};
  const std::vector<std::int64_t>&tokens = base_.record().tokens,
        &types = base_.record().token_types;
  for (std::int64_t row = 0; row < rows.batch; ++row) {
    Span span = span_of(row % batch_);
    for (std::int64_t p = first_pos; p < pos_; ++p) {
      rows.positions.push_back(position_in(span, p));
      if (!is_embedding(site_)) continue;
      auto at = static_cast<std::size_t>(row % batch_ * pos_ + p);
      rows.tokens.push_back(tokens[at]);
      if (!types.empty()) rows.token_types.push_back(types[at]);
    }
  }
  if (rows.tokens.empty()) rows.start_residual = residuals(first, first_layer, first_pos);
  for (std::int64_t l = first_layer; l < layers; ++l) {
    if (first_pos > 0)
      rows.base.push_back({before(base(keys_of(model_.config()), l), first_pos),
                           before(base(Site::v, l), first_pos)});
    if (auto here = enter_at(l); l > first_layer && !here.empty()) {
      rows.entering.resize(static_cast<std::size_t>(layers - first_layer - 1));
      rows.entering[static_cast<std::size_t>(l - first_layer - 1)] = residuals(here, l, first_pos);
    }
  }
  if (read_pos_) rows.read_pos = *read_pos_ - first_pos;
  rows.read_tokens = read_tokens_;
  return {.rows = std::move(rows), .plan = Plan(edits(group, first_pos)), .on_demand = {}};
}

Array PatchRuns::whole_logits(const Array& output, std::span<const Patch> group,
                              std::size_t i) const {
  if (base_.output().rank() == 2) {  // a classifier's
    auto row = static_cast<std::int64_t>(i) * batch_;
    return output.rows(row, row + batch_);
  }
  std::int64_t first_pos = std::ranges::min(group, {}, &Patch::first_pos).first_pos;
  MutableArray whole(base_.output());
  std::size_t row = base_.output().nbytes() / static_cast<std::size_t>(batch_ * pos_);
  auto computed = static_cast<std::size_t>(pos_ - first_pos);
  for (std::int64_t b = 0; b < batch_; ++b) {
    auto from = static_cast<std::size_t>(static_cast<std::int64_t>(i) * batch_ + b) * computed;
    std::memcpy(whole.bytes() + row * static_cast<std::size_t>(b * pos_ + first_pos),
                output.bytes() + row * from, row * computed);
  }
  return std::move(whole).freeze();
}

// The widest tensors that live at once, scores and patterns of all heads, and the logits.
std::size_t PatchRuns::bytes_of_patch(std::int64_t first_pos) const {
  const Config& c = model_.config();
  std::int64_t rows = pos_ - first_pos, logits_rows = read_pos_ ? 1 : rows,
               logits = read_tokens_.empty() ? c.d_vocab : std::ssize(read_tokens_);
  std::int64_t elements = rows * (3 * c.n_neurons() + 12 * c.d_model + 4 * c.n_heads * pos_) +
                          6 * pos_ * c.n_kv_heads * c.d_head + 2 * logits_rows * logits;
  return sizeof(float) * static_cast<std::size_t>(batch_ * elements);
}

std::size_t PatchRuns::bytes_of_rows(const Patch& patch) const {
  const Config& c = model_.config();
  std::int64_t elements =
      3 * c.n_neurons() + (12 + (site_ == Site::result ? 3 * c.n_heads : 0)) * c.d_model;
  std::int64_t rows = batch_ * std::ssize(positions_of(patch, patch.first_pos));
  return sizeof(float) * static_cast<std::size_t>(rows * elements);
}

std::size_t PatchRuns::bytes_carried(const Patch& patch) const {
  std::int64_t rows = batch_ * std::ssize(positions_of(patch, patch.first_pos));
  return sizeof(float) * static_cast<std::size_t>(rows * model_.config().d_model);
}

}  // namespace lenscpp
