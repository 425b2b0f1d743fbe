// Which rows of which model a run computes. A full run from tokens is the special case; a restarted
// or position-limited one is the same code. What a row reads from elsewhere is an input, never
// implied.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "hooks/array.h"
#include "hooks/callback.h"
#include "hooks/plan.h"
#include "hooks/prompts.h"

namespace lenscpp {

/// Keys and values of the positions before the first computed one, from the run being continued.
/// Its prompts serve those of the batch in turn, over and over.
struct BaseKeysValues {
  Array keys, values;  // [prompts, first_pos, n_kv_heads, d_head]
};

/// The rows of a run.
struct Rows {
  std::int64_t batch, pos;              // prompts at first_layer, and positions computed of each
  std::vector<std::int64_t> tokens;     // [batch * pos], empty when starting from a residual
  std::vector<std::int64_t> positions;  // [batch * pos], each row's position, for its embedding
  /// [batch * pos], the kind of each token; empty: all of kind 0, and where there are none.
  std::vector<std::int64_t> token_types = {};
  /// Where the tokens of each prompt stand among its keys; they serve the prompts of the batch in
  /// turn, over and over. Empty: no padding.
  std::vector<Span> spans = {};
  std::int64_t first_layer = 0;
  std::int64_t end_layer = 0;                // exclusive
  bool unembeds = true;                      // the head; only after the last layer
  std::optional<Array> start_residual = {};  // [batch, pos, d_model]: resid_pre of first_layer
  /// [batch, pos, n_heads, d_head]: z of first_layer, the only one then, whose attention is not
  /// computed. Rows do not see each other behind it: each may stand for a prompt of its own.
  std::optional<Array> start_z = {};
  std::int64_t first_pos = 0;  // positions before it are read from base
  std::vector<BaseKeysValues> base =
      {};  // one a layer from first_layer on; empty when first_pos is 0
  /// Prompts that enter the run at a later layer, behind those already there: resid_pre of each
  /// layer after first_layer, [n, pos, d_model], empty where none enters.
  std::vector<Array> entering = {};
  /// The one computed position whose output is read (unset: all of them are): only its row goes on
  /// from the attention of the last layer.
  std::optional<std::int64_t> read_pos = {};
  std::vector<std::int64_t> read_tokens = {};  // compute logits of these only; empty: of all

  /// All positions of `batch` prompts of `pos` tokens, row-major, through all layers. Positions are
  /// counted from each prompt's first token.
  static Rows from_tokens(std::vector<std::int64_t> tokens, std::int64_t batch,
                          const Config& config, std::vector<Span> spans = {});
  /// Where the tokens of a prompt of the run stand.
  Span span_of(std::int64_t prompt) const;
  /// What a run returns: logits, or else what its last block does.
  TensorId output(const Config& config) const;
  /// Whether a run of these rows computes the site at all.
  bool reach(Site site, std::int64_t layer) const;
  /// Prompts that have entered by the layer; beyond the last one: all.
  std::int64_t batch_at(std::int64_t layer) const;
  /// Whether only the row of read_pos is computed there.
  bool reads_one(Site site, std::int64_t layer) const;
  /// Of the tensors of one hook point.
  Extents extents(Site site, std::int64_t layer) const;
  /// No hook point's are larger.
  Extents extents() const;
  /// Throws std::invalid_argument or std::out_of_range: tokens outside the vocabulary, positions
  /// beyond n_ctx, shapes that do not fit each other.
  void validate(const Config& config) const;
};

/// All that determines a run of given weights.
struct Request {
  Rows rows;
  Plan plan;
  /// On-demand sites to compute although no edit and no callback needs them.
  std::set<std::pair<Site, std::int64_t>> on_demand;
  std::vector<Callback> callbacks = {};  // in the order in which they are applied at their points

  /// What the run returns, after its edits and callbacks.
  TensorId output(const Config& config) const;
  std::vector<const Callback*> callbacks_at(Site site, std::int64_t layer) const;
  /// Whether later operations may read something else than what the model computed there.
  bool touches(Site site, std::int64_t layer) const { return stages(site, layer) > 0; }
  /// The stage that later operations read: edits come first, then callbacks.
  std::int64_t stages(Site site, std::int64_t layer) const {
    return static_cast<std::int64_t>(plan.at(site, layer).size() +
                                     callbacks_at(site, layer).size());
  }
  /// to_string(id), with the callback's name where one made it: "hook_embed (hook 1: steer)".
  std::string name_of(const TensorId& id) const;

  bool computes(Site site, std::int64_t layer) const {
    return on_demand.contains({site, layer}) || touches(site, layer);
  }
  /// Whether queries, keys and values read inputs of their own, because one of those is touched.
  bool splits_qkv(std::int64_t layer) const {
    return touches(Site::attn_in, layer) || touches(Site::q_input, layer) ||
           touches(Site::k_input, layer) || touches(Site::v_input, layer);
  }
  /// Throws std::invalid_argument or std::out_of_range: rows, edits and callbacks that do not fit
  /// the model, or that this run would never reach.
  void validate(const Config& config) const;

 private:
  void check_used(Site site, std::int64_t layer, const std::string& what) const;
};

}  // namespace lenscpp
