// Rows and requests: what a run may be asked for.
#include "hooks/rows.h"

#include <algorithm>
#include <stdexcept>

namespace lenscpp {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("[run] " + what); }

void check_tokens(const std::vector<std::int64_t>& tokens, std::int64_t pos, const Config& config) {
  for (std::size_t i = 0; i < tokens.size(); ++i)
    if (tokens[i] < 0 || tokens[i] >= config.d_vocab)
      throw std::out_of_range("[run] token " + std::to_string(tokens[i]) + " at prompt " +
                              std::to_string(static_cast<std::int64_t>(i) / pos) + ", position " +
                              std::to_string(static_cast<std::int64_t>(i) % pos) +
                              " out of range: the vocabulary has " +
                              std::to_string(config.d_vocab) + " tokens (0.." +
                              std::to_string(config.d_vocab - 1) + ")");
}

void check_token_types(const std::vector<std::int64_t>& types, std::size_t count,
                       const Config& config) {
  if (types.empty()) return;
  if (config.n_token_types == 0) refuse("token types are given; this model has none");
  if (types.size() != count)
    refuse(std::to_string(types.size()) + " token types for " + std::to_string(count) + " rows");
  for (std::int64_t type : types)
    if (type < 0 || type >= config.n_token_types)
      throw std::out_of_range("[run] token type " + std::to_string(type) +
                              " out of range: the model has " +
                              std::to_string(config.n_token_types));
}

void check_spans(const Rows& rows) {
  std::int64_t keys = rows.first_pos + rows.pos, prompts = std::ssize(rows.spans);
  if (prompts == 0) return;
  for (const Span& span : rows.spans)
    if (span.begin < 0 || span.begin >= span.end || span.end > keys)
      refuse("tokens of a prompt stand at positions " + std::to_string(span.begin) + " to " +
             std::to_string(span.end) + " of " + std::to_string(keys));
  bool fit = rows.batch % prompts == 0;
  for (const Array& residual : rows.entering)
    fit &= residual.rank() == 0 || residual.size(0) % prompts == 0;
  if (!fit)
    refuse("spans of " + std::to_string(prompts) +
           " prompts do not divide those of the run, or those that enter it");
}

void check_entering(const Rows& rows, const Config& config) {
  std::int64_t later = rows.end_layer - rows.first_layer - 1;
  if (!rows.entering.empty() && std::ssize(rows.entering) != later)
    refuse("prompts enter at " + std::to_string(rows.entering.size()) + " layers; needed: " +
           std::to_string(later) + ", one entry for each layer after the first");
  std::int64_t together = rows.base.empty() ? 1 : rows.base[0].keys.size(0);
  for (const Array& residual : rows.entering) {
    if (residual.rank() == 0) continue;
    Shape shape{residual.size(0), rows.pos, config.d_model};
    if (residual.shape() != shape || shape[0] % together != 0)
      refuse("prompts enter with a residual of shape " + to_string(residual.shape()) +
             "; needed: " + to_string({together, rows.pos, config.d_model}) +
             ", or a multiple of those prompts");
  }
}

// Its head is a query's: of keys and values that several share, none says which it is.
void check_heads(const Request& request, const Config& config) {
  if (config.n_kv_heads == config.n_heads) return;
  for (std::int64_t layer = 0; layer < config.n_layers; ++layer)
    if (request.touches(Site::attn_in, layer))
      refuse(hook_name(Site::attn_in, layer) + " is changed, but it has a copy for each of " +
             std::to_string(config.n_heads) + " heads and keys and values have " +
             std::to_string(config.n_kv_heads) +
             ": change hook_q_input, hook_k_input or hook_v_input");
}

void check_start_z(const Rows& rows, const Config& config) {
  if (!rows.start_residual || rows.end_layer != rows.first_layer + 1 || rows.unembeds ||
      rows.first_pos != 0)
    refuse("a run that starts behind attention needs a residual beside z, and ends with its layer");
  Shape shape{rows.batch, rows.pos, config.n_heads, config.d_head};
  if (rows.start_z->shape() != shape)
    refuse("the z to start from has shape " + to_string(rows.start_z->shape()) +
           "; needed: " + to_string(shape));
}

}  // namespace

Rows Rows::from_tokens(std::vector<std::int64_t> tokens, std::int64_t batch, const Config& config,
                       std::vector<Span> spans) {
  if (batch < 1 || tokens.empty() || tokens.size() % static_cast<std::size_t>(batch) != 0)
    refuse(std::to_string(tokens.size()) + " tokens do not make " + std::to_string(batch) +
           " prompts of equal length; at least one token and one prompt are needed");
  Rows rows{.batch = batch,
            .pos = static_cast<std::int64_t>(tokens.size()) / batch,
            .tokens = std::move(tokens),
            .positions = {},
            .spans = std::move(spans),
            .end_layer = config.n_layers};
  for (std::int64_t i = 0; i < batch * rows.pos; ++i)
    rows.positions.push_back(position_in(rows.span_of(i / rows.pos), i % rows.pos));
  return rows;
}

Span Rows::span_of(std::int64_t prompt) const {
  if (spans.empty()) return {0, first_pos + pos};
  return spans[static_cast<std::size_t>(prompt) % spans.size()];
}

TensorId Rows::output(const Config& config) const {
  if (unembeds && (lenscpp::unembeds(config.head) || config.head == Head::classifier))
    return {logits_of(config)};
  if (first_layer == end_layer) return {Site::resid_pre, first_layer};
  return {block_output(config), end_layer - 1};
}

void Rows::validate(const Config& config) const {
  if (batch < 1 || pos < 1) refuse("a run needs at least one prompt and one position");
  auto count = static_cast<std::size_t>(batch * pos);
  if (positions.size() != count)
    refuse(std::to_string(positions.size()) + " positions for " + std::to_string(count) + " rows");
  for (std::int64_t p : positions)
    if (p < 0 || p >= config.n_ctx)
      throw std::out_of_range(
          "[run] position " + std::to_string(p) + " is beyond the model's context: n_ctx is " +
          std::to_string(config.n_ctx) + " (0.." + std::to_string(config.n_ctx - 1) + ")");
  check_spans(*this);
  std::size_t apart = static_cast<std::size_t>(pos) * std::max<std::size_t>(1, spans.size());
  if (config.positions != PositionKind::learned && !start_z)
    for (std::size_t i = apart; i < count; ++i)
      if (positions[i] != positions[i % apart])
        refuse("prompts stand at different positions, which are " +
               std::string(name_of(config.positions)) +
               " in this model; needed: the same in all, or spans of their own");
  if (!config.causal && first_pos > 0)
    refuse("positions before the first computed one see it in this model: none can be left out");
  check_token_types(token_types, count, config);
  if (first_layer < 0 || end_layer > config.n_layers || first_layer > end_layer)
    throw std::out_of_range("[run] layers " + std::to_string(first_layer) + " to " +
                            std::to_string(end_layer) + " of " + std::to_string(config.n_layers));
  if (unembeds && end_layer != config.n_layers)
    refuse("logits need all layers; this run ends before layer " + std::to_string(end_layer));
  if (start_residual) {
    if (start_residual->shape() != Shape{batch, pos, config.d_model})
      refuse("the start residual has shape " + to_string(start_residual->shape()) +
             "; needed: " + to_string({batch, pos, config.d_model}));
    if (!tokens.empty()) refuse("a run starts from tokens or from a residual, not from both");
  } else {
    if (first_layer != 0)
      refuse("a run from layer " + std::to_string(first_layer) + " needs a start residual");
    if (tokens.size() != count)
      refuse(std::to_string(tokens.size()) + " tokens for " + std::to_string(count) + " rows");
    check_tokens(tokens, pos, config);
  }
  if (start_z) check_start_z(*this, config);
  auto layers = static_cast<std::size_t>(end_layer - first_layer);
  if (base.size() != (first_pos == 0 ? 0 : layers) || first_pos < 0)
    refuse("keys and values of " + std::to_string(base.size()) + " layers before position " +
           std::to_string(first_pos) + "; needed: " + std::to_string(first_pos == 0 ? 0 : layers));
  for (const BaseKeysValues& kv : base) {
    Shape shape{kv.keys.rank() == 0 ? 0 : kv.keys.size(0), first_pos, config.n_kv_heads,
                config.d_head};
    if (kv.keys.shape() != shape || kv.values.shape() != shape || shape[0] == 0 ||
        batch % shape[0] != 0)
      refuse("base keys or values of shape " + to_string(kv.keys.shape()) + ", " +
             to_string(kv.values.shape()) +
             "; needed: " + to_string({batch, first_pos, config.n_kv_heads, config.d_head}) +
             ", or a number of prompts that divides the batch");
  }
  check_entering(*this, config);
  if (read_pos && (*read_pos < 0 || *read_pos >= pos))
    throw std::out_of_range("[run] read_pos " + std::to_string(*read_pos) + " of " +
                            std::to_string(pos) + " computed positions");
  if ((read_pos || !read_tokens.empty()) &&
      (!unembeds || first_layer == end_layer || !lenscpp::unembeds(config.head)))
    refuse("a run without layers or logits of tokens has no output to choose from");
  for (std::int64_t id : read_tokens)
    if (id < 0 || id >= config.d_vocab)
      throw std::out_of_range("[run] the logit of token " + std::to_string(id) +
                              " is asked for: the vocabulary has " +
                              std::to_string(config.d_vocab) + " tokens");
}

std::int64_t Rows::batch_at(std::int64_t layer) const {
  std::int64_t n = batch;
  for (std::int64_t l = first_layer + 1; l <= layer; ++l)
    if (auto i = static_cast<std::size_t>(l - first_layer - 1); i < entering.size())
      n += entering[i].rank() == 0 ? 0 : entering[i].size(0);
  return n;
}

bool Rows::reads_one(Site site, std::int64_t layer) const {
  if (!read_pos) return false;
  return is_head(site) || (layer == end_layer - 1 && site >= Site::queries);
}

Extents Rows::extents(Site site, std::int64_t layer) const {
  return {.batch = batch_at(info(site).per_layer ? layer
                            : is_head(site)      ? end_layer
                                                 : first_layer),
          .pos = reads_one(site, layer) ? 1 : pos,
          .key = first_pos + pos,
          .logits = std::ssize(read_tokens),
          .apart = std::max<std::int64_t>(1, std::ssize(spans))};
}

Extents Rows::extents() const {
  return {.batch = batch_at(end_layer),
          .pos = pos,
          .key = first_pos + pos,
          .logits = std::ssize(read_tokens),
          .apart = std::max<std::int64_t>(1, std::ssize(spans))};
}

bool Rows::reach(Site site, std::int64_t layer) const {
  if (is_embedding(site)) return !start_residual;
  if (is_table(site)) return first_layer < end_layer && !start_z;
  if (is_head(site)) return unembeds;
  if (start_z && site > Site::resid_pre && site < Site::z) return false;
  bool first_residual = site == Site::resid_pre && layer == first_layer && !unembeds;
  return layer >= first_layer && (layer < end_layer || first_residual);
}

void Request::validate(const Config& config) const {
  rows.validate(config);
  check_heads(*this, config);
  for (const auto& [site, layer] : on_demand)
    if (!rows.reach(site, layer))
      refuse(hook_name(site, layer) + " is asked for, but this run does not compute it");
  for (const Edit& edit : plan.edits()) {
    lenscpp::validate(edit, config, rows.extents(edit.site, edit.layer));
    if (edit.kind == EditKind::mean && edit.source.empty() && !rows.spans.empty())
      refuse("the mean at " + hook_name(edit.site, edit.layer) +
             " would be taken over padding as well: give a source to average");
    check_used(edit.site, edit.layer, "the plan edits " + hook_name(edit.site, edit.layer));
  }
  for (const Callback& callback : callbacks) {
    const SiteInfo& row = info(callback.site);
    std::int64_t layers = row.per_layer ? config.n_layers : 1;
    if (callback.layer < 0 || callback.layer >= layers)
      throw std::out_of_range("[hook] " + describe(callback) + ": layer out of range: there are " +
                              std::to_string(layers) + " (0.." + std::to_string(layers - 1) + ")");
    if (row.presence == Presence::internal || row.stored == Stored::ids ||
        !exists(callback.site, config) || !callback.call)
      throw std::invalid_argument("[hook] " + describe(callback) +
                                  ": needed: a function, at a site that can be changed");
    check_used(callback.site, callback.layer,
               "hook " + callback.name + " is at " + hook_name(callback.site, callback.layer));
  }
}

void Request::check_used(Site site, std::int64_t layer, const std::string& what) const {
  if (!rows.reach(site, layer)) refuse(what + ", which this run does not compute");
  if ((site == Site::ln1_scale || site == Site::ln1_normalized) && splits_qkv(layer))
    refuse(what +
           ", which nothing reads once the inputs of q, k or v are edited in the same layer");
}

TensorId Request::output(const Config& config) const {
  TensorId id = rows.output(config);
  id.stage = stages(id.site, id.layer);
  return id;
}

std::vector<const Callback*> Request::callbacks_at(Site site, std::int64_t layer) const {
  std::vector<const Callback*> found;
  for (const Callback& callback : callbacks)
    if (callback.site == site && callback.layer == layer) found.push_back(&callback);
  return found;
}

std::string Request::name_of(const TensorId& id) const {
  // Wraps around where an edit, or nothing, made the stage.
  auto hook = static_cast<std::size_t>(id.stage) - plan.at(id.site, id.layer).size();
  auto here = callbacks_at(id.site, id.layer);
  if (hook - 1 >= here.size()) return to_string(id);
  return hook_name(id.site, id.layer) + " (hook " + std::to_string(hook) + ": " +
         here[hook - 1]->name + ")";
}

}  // namespace lenscpp
