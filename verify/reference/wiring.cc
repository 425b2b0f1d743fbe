// The reference's wiring: a transformer as a list of links. Reads like the forward pass.
#include "verify/reference/wiring.h"

#include <algorithm>
#include <stdexcept>

#include "verify/reference/positions.h"

namespace lenscpp {
namespace {

// Appends links; each method returns the tensor that later links read: the output after its edits
// and callbacks.
class Graph {
 public:
  Graph(const Request& request) : request_(request) {}

  TensorId given(TensorId out, Array values) {
    return append({.op = Op::given, .output = out, .given = std::move(values)});
  }
  TensorId gather(TensorId out, const Array& table, const std::vector<std::int64_t>& ids) {
    Matrix rows{.storage = table, .in = table.size(0), .out = table.size(1)};
    auto count = static_cast<std::int64_t>(ids.size());
    return append({.op = Op::gather,
                   .output = out,
                   .weight = rows,
                   .given = Array::of(std::span<const std::int64_t>(ids), {count})});
  }
  TensorId add(TensorId out, TensorId a, TensorId b) {
    return append({.op = Op::add, .output = out, .inputs = {a, b}});
  }
  TensorId add(TensorId out, TensorId a, TensorId b, TensorId c) {
    return append({.op = Op::add, .output = out, .inputs = {a, b, c}});
  }
  TensorId multiply(TensorId out, TensorId a, TensorId b) {
    return append({.op = Op::multiply, .output = out, .inputs = {a, b}});
  }
  TensorId table(TensorId out, Array values, std::int64_t largest_argument) {
    return append({.op = Op::table,
                   .output = out,
                   .given = std::move(values),
                   .scalar = static_cast<double>(largest_argument)});
  }
  TensorId distances(TensorId out, Array slopes) {
    return append({.op = Op::distances,
                   .output = out,
                   .given = std::move(slopes),
                   .first_query = first_query(out)});
  }
  TensorId turn(TensorId out, TensorId in, TensorId cos, TensorId sin, RotaryPairs pairs) {
    return append({.op = Op::turn, .output = out, .inputs = {in, cos, sin}, .pairs = pairs});
  }
  TensorId softcap(TensorId out, TensorId in, double cap) {
    return append({.op = Op::softcap, .output = out, .inputs = {in}, .scalar = cap});
  }
  TensorId copy(TensorId out, TensorId in) {
    return append({.op = Op::copy, .output = out, .inputs = {in}});
  }
  TensorId concat(TensorId out, Array base, TensorId in) {
    return append({.op = Op::concat, .output = out, .inputs = {in}, .given = std::move(base)});
  }
  TensorId enter(TensorId out, TensorId in, Array residual) {
    return append({.op = Op::enter, .output = out, .inputs = {in}, .given = std::move(residual)});
  }
  TensorId select(TensorId out, TensorId in, std::int64_t position) {
    return append({.op = Op::select, .output = out, .inputs = {in}, .position = position});
  }
  TensorId select_first(TensorId out, TensorId in) {
    return append({.op = Op::select, .output = out, .inputs = {in}, .spans = request_.rows.spans});
  }
  TensorId linear(TensorId out, TensorId in, const Matrix& weight, const Vector& bias) {
    return append(
        {.op = Op::linear, .output = out, .inputs = {in}, .weight = weight, .bias = bias});
  }
  TensorId head_linear(TensorId out, TensorId in, const Matrix& weight, const Vector& bias) {
    return append(
        {.op = Op::head_linear, .output = out, .inputs = {in}, .weight = weight, .bias = bias});
  }
  TensorId scores(TensorId out, TensorId q, TensorId k, double divisor,
                  std::optional<std::int64_t> window, bool causal) {
    return append({.op = Op::scores,
                   .output = out,
                   .inputs = {q, k},
                   .scalar = divisor,
                   .window = window,
                   .causal = causal,
                   .spans = request_.rows.spans,
                   .first_query = first_query(out)});
  }
  // The position among the keys of the first query in the last axes of `out`.
  std::int64_t first_query(TensorId out) const {
    const Rows& rows = request_.rows;
    return rows.first_pos + (rows.reads_one(out.site, out.layer) ? *rows.read_pos : 0);
  }
  TensorId softmax(TensorId out, TensorId in) {
    return append({.op = Op::softmax, .output = out, .inputs = {in}});
  }
  TensorId mix(TensorId out, TensorId pattern, TensorId values) {
    return append({.op = Op::mix, .output = out, .inputs = {pattern, values}});
  }
  TensorId head_result(TensorId out, TensorId z, const Matrix& weight) {
    return append({.op = Op::head_result, .output = out, .inputs = {z}, .weight = weight});
  }
  TensorId sum_heads(TensorId out, TensorId results, const Vector& bias) {
    return append({.op = Op::sum_heads, .output = out, .inputs = {results}, .bias = bias});
  }
  TensorId activation(TensorId out, TensorId in, Activation kind) {
    return append({.op = Op::activation, .output = out, .inputs = {in}, .activation = kind});
  }

  TensorId choose(TensorId out, TensorId in) {
    return append({.op = Op::choose, .output = out, .inputs = {in}});
  }
  TensorId share(TensorId out, TensorId in, std::int64_t chosen) {
    return append({.op = Op::share, .output = out, .inputs = {in}, .chosen = chosen});
  }

  // A norm in the steps that have names: scale, normalized and, unless folded, the affine output.
  struct Norm {
    TensorId scale, normalized, out;
    const Array &weight, &bias;
    const Config& config;
  };
  TensorId norm(const Norm& n, TensorId x) {
    bool centres = n.config.norms_centre();
    TensorId scale = append({.op = Op::norm_scale,
                             .output = n.scale,
                             .inputs = {x},
                             .scalar = n.config.norm_eps,
                             .centres = centres});
    TensorId normalized = append(
        {.op = Op::normalize, .output = n.normalized, .inputs = {x, scale}, .centres = centres});
    if (n.weight.empty()) return normalized;
    std::int64_t d = n.weight.numel();
    Link affine{.op = Op::affine,
                .output = n.out,
                .inputs = {normalized},
                .weight = Matrix{.storage = n.weight, .in = 1, .out = d},
                .offset = n.config.norm_adds_one ? 1.0 : 0.0};
    if (!n.bias.empty()) affine.bias = Vector{.storage = n.bias, .size = d};
    return append(std::move(affine));
  }

  std::vector<Link> take() && { return std::move(links_); }

 private:
  TensorId append(Link link) {
    TensorId out = link.output;
    links_.push_back(std::move(link));
    for (const Edit* edit : request_.plan.at(out.site, out.layer)) {
      TensorId before = out;
      out.stage += 1;
      links_.push_back({.op = Op::edit, .output = out, .inputs = {before}, .edit = *edit});
    }
    for (const Callback* callback : request_.callbacks_at(out.site, out.layer)) {
      TensorId before = out;
      out.stage += 1;
      links_.push_back(
          {.op = Op::callback, .output = out, .inputs = {before}, .callback = *callback});
    }
    return out;
  }

  const Request& request_;
  std::vector<Link> links_;
};

Vector whole(const Array& bias) { return {.storage = bias, .size = bias.numel()}; }

class Block {
 public:
  Block(Graph& g, const Weights& weights, const Request& request, std::int64_t layer)
      : g(g), w(weights), request(request), l(layer), layer(weights.layers[layer]) {}

  TensorId run(TensorId x) {
    TensorId attn_out = attention(x);
    switch (w.config.topology) {
      case Topology::sequential: {
        TensorId mid = summed(Site::mid_ln_scale, Site::mid_ln_normalized, Site::mid_ln_out,
                              layer.ln1_w, layer.ln1_b, g.add(at(Site::resid_mid), x, attn_out));
        TensorId mlp_out = mlp(mid);
        return summed(Site::post_ln_scale, Site::post_ln_normalized, Site::normalized_resid_post,
                      layer.ln2_w, layer.ln2_b, g.add(at(Site::resid_post), mid, mlp_out));
      }
      case Topology::parallel: {
        TensorId mlp_out = mlp(x);
        return g.add(at(Site::resid_post), x, attn_out, mlp_out);
      }
    }
    throw std::logic_error("[wiring] not a Topology");
  }

 private:
  TensorId at(Site site) const { return {site, l}; }

  // Leaves in x the rows that go on: in the last layer perhaps one a prompt.
  TensorId attention(TensorId& x) {
    const std::optional<Array>& start_z = request.rows.start_z;
    TensorId z = start_z ? g.given(at(Site::z), *start_z) : attend(x);
    TensorId out = at(normed_behind() ? Site::attn_sum : Site::attn_out);
    return behind(Site::ln1_post_scale, Site::ln1_post_normalized, Site::attn_out, layer.ln1_post_w,
                  heads_summed(out, z));
  }

  TensorId attend(TensorId& x) {
    auto [q, k, v] = positioned(request.splits_qkv(l) ? split_qkv(x) : qkv(x));
    TensorId keys = k, values = v;
    if (request.rows.first_pos > 0) {
      const BaseKeysValues& base = request.rows.base[l - request.rows.first_layer];
      keys = g.concat(at(Site::keys), base.keys, k);
      values = g.concat(at(Site::values), base.values, v);
    }
    if (request.rows.reads_one(Site::queries, l)) {
      q = g.select(at(Site::queries), q, *request.rows.read_pos);
      x = g.select(at(Site::attn_resid), x, *request.rows.read_pos);
    }
    TensorId pattern = g.softmax(at(Site::pattern), scores(q, keys));
    return g.mix(at(Site::z), pattern, values);
  }

  TensorId heads_summed(TensorId out, TensorId z) {
    if (!request.computes(Site::result, l)) return g.linear(out, z, w.W_O(l), whole(layer.b_O));
    TensorId result = g.head_result(at(Site::result), z, w.W_O(l));
    // Results that nobody touches are for looking at; the stream is fed by the fused product.
    return request.touches(Site::result, l) ? g.sum_heads(out, result, whole(layer.b_O))
                                            : g.linear(out, z, w.W_O(l), whole(layer.b_O));
  }

  TensorId scores(TensorId q, TensorId keys) {
    const Config& c = w.config;
    bool last = !c.scores_softcap && c.positions != PositionKind::alibi;
    TensorId raw = g.scores(at(last ? Site::attn_scores : Site::raw_scores), q, keys,
                            c.attn_divisor(l), c.window_of(l), c.causal);
    if (c.scores_softcap) return g.softcap(at(Site::attn_scores), raw, *c.scores_softcap);
    if (last) return raw;
    TensorId out = at(Site::position_bias);
    return g.add(at(Site::attn_scores), raw, g.distances(out, alibi_slopes(c.n_heads)));
  }

  bool normed_behind() const { return returns_normed(w.config.norm_placement); }
  // The norm of what attention or MLP returns, where there is one.
  TensorId behind(Site scale, Site normalized, Site out, const Array& weight, TensorId x) {
    if (!normed_behind()) return x;
    return g.norm({at(scale), at(normalized), at(out), weight, no_bias_, w.config}, x);
  }

  struct QKV {
    TensorId q, k, v;
  };
  QKV qkv(TensorId x) {
    for (Site site : {Site::attn_in, Site::q_input, Site::k_input, Site::v_input})
      if (request.computes(site, l)) g.copy(at(site), x);
    TensorId n =
        before(Site::ln1_scale, Site::ln1_normalized, Site::ln1_out, layer.ln1_w, layer.ln1_b, x);
    return {g.linear(at(Site::q), n, w.W_Q(l), w.b_Q(l)),
            g.linear(at(Site::k), n, w.W_K(l), w.b_K(l)),
            g.linear(at(Site::v), n, w.W_V(l), w.b_V(l))};
  }
  // Inputs of their own for queries, keys and values, one a head: each is normed by itself.
  QKV split_qkv(TensorId x) {
    TensorId in = request.computes(Site::attn_in, l) ? g.copy(at(Site::attn_in), x) : x;
    TensorId q_in = g.copy(at(Site::q_input), in);
    TensorId kv_in = w.config.n_kv_heads == w.config.n_heads ? in : x;
    TensorId k_in = g.copy(at(Site::k_input), kv_in);
    TensorId v_in = g.copy(at(Site::v_input), kv_in);
    auto norm = [&](Site scale, Site normalized, Site out, TensorId input) {
      return before(scale, normalized, out, layer.ln1_w, layer.ln1_b, input);
    };
    norm(Site::ln1_scale, Site::ln1_normalized, Site::ln1_out, x);  // for looking at
    TensorId qn = norm(Site::q_scale, Site::q_normalized, Site::q_ln_out, q_in);
    TensorId kn = norm(Site::k_scale, Site::k_normalized, Site::k_ln_out, k_in);
    TensorId vn = norm(Site::v_scale, Site::v_normalized, Site::v_ln_out, v_in);
    return {g.head_linear(at(Site::q), qn, w.W_Q(l), w.b_Q(l)),
            g.head_linear(at(Site::k), kn, w.W_K(l), w.b_K(l)),
            g.head_linear(at(Site::v), vn, w.W_V(l), w.b_V(l))};
  }

  // The norm of the residual stream, where it is normed itself.
  TensorId summed(Site scale, Site normalized, Site out, const Array& weight, const Array& bias,
                  TensorId x) {
    if (w.config.norm_placement != NormPlacement::sum) return x;
    return g.norm({at(scale), at(normalized), at(out), weight, bias, w.config}, x);
  }
  // The norm of what attention or MLP reads, where there is one.
  TensorId before(Site scale, Site normalized, Site out, const Array& weight, const Array& bias,
                  TensorId x) {
    if (!reads_normed(w.config.norm_placement)) return x;
    return g.norm({at(scale), at(normalized), at(out), weight, bias, w.config}, x);
  }

  // Queries and keys normed and turned, where the model does that.
  QKV positioned(QKV in) {
    const Config& c = w.config;
    if (c.qk_norm != QkNorm::none) {
      in.q = g.norm({at(Site::q_norm_scale), at(Site::q_norm_normalized), at(Site::q_norm_out),
                     layer.q_norm_w, no_bias_, c},
                    in.q);
      in.k = g.norm({at(Site::k_norm_scale), at(Site::k_norm_normalized), at(Site::k_norm_out),
                     layer.k_norm_w, no_bias_, c},
                    in.k);
    }
    if (!c.rotary) return in;
    bool windowed = c.turns_by_windowed_rope(l);
    TensorId cos{windowed ? Site::windowed_cos : Site::rotary_cos},
        sin{windowed ? Site::windowed_sin : Site::rotary_sin};
    in.q = g.turn(at(Site::rot_q), in.q, cos, sin, c.rotary->pairs);
    in.k = g.turn(at(Site::rot_k), in.k, cos, sin, c.rotary->pairs);
    return in;
  }

  TensorId mlp(TensorId x) {
    TensorId in = request.computes(Site::mlp_in, l) ? g.copy(at(Site::mlp_in), x) : x;
    TensorId n =
        before(Site::ln2_scale, Site::ln2_normalized, Site::ln2_out, layer.ln2_w, layer.ln2_b, in);
    TensorId post = w.config.experts ? experts(n) : w.config.gated_mlp ? gated(n) : plain(n);
    TensorId out = at(normed_behind() ? Site::mlp_sum : Site::mlp_out);
    return behind(Site::ln2_post_scale, Site::ln2_post_normalized, Site::mlp_out, layer.ln2_post_w,
                  g.linear(out, post, w.W_out(l), whole(layer.b_out)));
  }
  TensorId plain(TensorId n) {
    TensorId pre = g.linear(at(Site::mlp_pre), n, w.W_in(l), whole(layer.b_in));
    return g.activation(at(Site::mlp_post), pre, w.config.activation);
  }
  TensorId gated(TensorId n) {
    TensorId pre = g.linear(at(Site::mlp_pre), n, w.W_gate(l), whole(layer.b_gate));
    TensorId linear = g.linear(at(Site::mlp_pre_linear), n, w.W_in(l), whole(layer.b_in));
    TensorId act = g.activation(at(Site::mlp_act), pre, w.config.activation);
    return g.multiply(at(Site::mlp_post), act, linear);
  }

  // Each of them for every token: those that a token did not choose have no share in the sum.
  TensorId experts(TensorId n) {
    TensorId logits = g.linear(at(Site::router_logits), n, w.W_router(l), whole(layer.b_router));
    TensorId weights = g.softmax(at(Site::expert_weights), logits);
    g.choose(at(Site::expert_indices), weights);  // for looking at
    TensorId shares = g.share(at(Site::expert_shares), weights, w.config.experts->per_token);
    TensorId gate = g.linear(at(Site::expert_gate), n, w.W_gate(l), whole(layer.b_gate));
    TensorId pre = g.linear(at(Site::expert_pre), n, w.W_in(l), whole(layer.b_in));
    TensorId act = g.activation(at(Site::expert_act), gate, w.config.activation);
    TensorId post = g.multiply(at(Site::expert_post), act, pre);
    return g.multiply(at(Site::expert_mixed), post, shares);
  }

  Graph& g;
  const Weights& w;
  const Request& request;
  std::int64_t l;
  const LayerWeights& layer;
  const Array no_bias_ = {};
};

// What the positions of this run turn queries and keys by.
void turns_of_positions(Graph& g, const Config& c, const Rows& rows) {
  if (!c.rotary || !rows.reach(Site::rotary_cos, 0)) return;
  std::int64_t apart = rows.extents().apart;
  auto positions =
      std::span(rows.positions)
          .subspan(0, std::min(rows.positions.size(), static_cast<std::size_t>(apart * rows.pos)));
  // Where only sizes are asked for, rows have no positions.
  bool sizes_alone = positions.empty();
  std::int64_t largest = sizes_alone ? 0 : *std::ranges::max_element(positions);
  Shape shape{apart, rows.pos, c.rotary->dimensions / 2};
  auto add = [&](Site cos, Site sin, const Rope& rope) {
    Turns tables = sizes_alone ? Turns{Array::wrap(nullptr, shape, DType::f64, nullptr),
                                       Array::wrap(nullptr, shape, DType::f64, nullptr)}
                               : turns(*c.rotary, rope, positions, rows.pos);
    g.table({cos}, tables.cos.reshaped(shape), largest);
    g.table({sin}, tables.sin.reshaped(shape), largest);
  };
  add(Site::rotary_cos, Site::rotary_sin, c.rotary->rope);
  if (c.rotary->windowed_rope)
    add(Site::windowed_cos, Site::windowed_sin, *c.rotary->windowed_rope);
}

TensorId token_types(Graph& g, const Weights& w, const Rows& rows) {
  std::vector<std::int64_t> types = rows.token_types;
  types.resize(static_cast<std::size_t>(rows.batch * rows.pos));  // none given: all of kind 0
  return g.gather({Site::token_type_embed}, w.W_type, types);
}

TensorId embed(Graph& g, const Weights& w, const Request& request) {
  const Rows& rows = request.rows;
  if (request.computes(Site::tokens, 0))
    g.given({Site::tokens},
            Array::of(std::span<const std::int64_t>(rows.tokens), {rows.batch, rows.pos}));
  const Config& c = w.config;
  TensorId x = g.gather({Site::embed}, w.W_E, rows.tokens);
  if (c.positions == PositionKind::learned) {
    TensorId sum{c.embed_norm ? Site::embed_sum : Site::resid_pre, 0};
    TensorId position = g.gather({Site::pos_embed}, w.W_pos, rows.positions);
    x = c.n_token_types == 0 ? g.add(sum, x, position)
                             : g.add(sum, x, position, token_types(g, w, rows));
  }
  if (c.embed_norm)
    return g.norm({{Site::embed_ln_scale},
                   {Site::embed_ln_normalized},
                   {Site::resid_pre, 0},
                   w.embed_ln_w,
                   w.embed_ln_b,
                   c},
                  x);
  return c.positions == PositionKind::learned ? x : g.copy({Site::resid_pre, 0}, x);
}

// The unembedding of a few tokens.
std::pair<Matrix, Vector> columns_of(const Weights& w, const std::vector<std::int64_t>& tokens) {
  Matrix all = w.unembedding();
  auto n = static_cast<std::int64_t>(tokens.size());
  MutableArray columns({n, all.in}, all.storage.dtype()), bias({n}, w.b_U.dtype());
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t k = 0; k < all.in; ++k)
      columns.set(
          i * all.in + k,
          all.storage[all.outputs_are_rows ? tokens[i] * all.in + k : k * all.out + tokens[i]]);
    bias.set(i, w.b_U[tokens[i]]);
  }
  return {
      Matrix{
          .storage = std::move(columns).freeze(), .in = all.in, .out = n, .outputs_are_rows = true},
      Vector{.storage = std::move(bias).freeze(), .size = n}};
}

// The final norm, whose output is a hook point of its own, folded or not, and logits of tokens.
void unembed(Graph& g, const Weights& w, const Rows& rows, TensorId x) {
  TensorId n = g.norm({{Site::ln_final_scale},
                       {Site::ln_final_normalized},
                       {Site::unembed_in},
                       w.ln_final_w,
                       w.ln_final_b,
                       w.config},
                      x);
  if (w.ln_final_w.empty()) n = g.copy({Site::unembed_in}, n);
  auto [weight, bias] = rows.read_tokens.empty() ? std::pair{w.unembedding(), whole(w.b_U)}
                                                 : columns_of(w, rows.read_tokens);
  TensorId out = g.linear({Site::unembed_out}, n, weight, bias);
  if (w.config.logits_softcap) g.softcap({Site::logits}, out, *w.config.logits_softcap);
}

void head(Graph& g, const Weights& w, const Rows& rows, TensorId x) {
  const Config& c = w.config;
  Matrix dense{.storage = w.W_head, .in = c.d_model, .out = c.d_model};
  auto pooled = [&] {
    TensorId first = g.select_first({Site::pooler_in}, x);
    TensorId pre = g.linear({Site::pooler_pre}, first, dense, whole(w.b_head));
    return g.activation({Site::pooler_out}, pre, c.head_activation);
  };
  switch (c.head) {
    case Head::unembedding:
      return unembed(g, w, rows, x);
    case Head::masked_lm: {
      TensorId pre = g.linear({Site::mlm_pre}, x, dense, whole(w.b_head));
      return unembed(g, w, rows, g.activation({Site::mlm_post}, pre, c.head_activation));
    }
    case Head::none:
      return;
    case Head::pooled:
      pooled();
      return;
    case Head::classifier:
      g.linear({Site::class_logits}, pooled(),
               {.storage = w.W_class, .in = c.d_model, .out = c.n_labels}, whole(w.b_class));
      return;
  }
  throw std::logic_error("[wiring] not a Head");
}

}  // namespace

std::string_view name_of(Op op) {
  switch (op) {
    case Op::given:
      return "given";
    case Op::gather:
      return "gather";
    case Op::table:
      return "table";
    case Op::distances:
      return "distances";
    case Op::add:
      return "add";
    case Op::multiply:
      return "multiply";
    case Op::turn:
      return "turn";
    case Op::softcap:
      return "softcap";
    case Op::copy:
      return "copy";
    case Op::concat:
      return "concat";
    case Op::enter:
      return "enter";
    case Op::select:
      return "select";
    case Op::norm_scale:
      return "norm_scale";
    case Op::normalize:
      return "normalize";
    case Op::affine:
      return "affine";
    case Op::linear:
      return "linear";
    case Op::head_linear:
      return "head_linear";
    case Op::scores:
      return "scores";
    case Op::softmax:
      return "softmax";
    case Op::mix:
      return "mix";
    case Op::head_result:
      return "head_result";
    case Op::sum_heads:
      return "sum_heads";
    case Op::activation:
      return "activation";
    case Op::choose:
      return "choose";
    case Op::share:
      return "share";
    case Op::edit:
      return "edit";
    case Op::callback:
      return "callback";
  }
  throw std::logic_error("[wiring] not an Op");
}

std::vector<Link> wire(const Weights& w, const Request& request) {
  const Rows& rows = request.rows;
  Graph g(request);
  TensorId x = rows.start_residual
                   ? g.given({Site::resid_pre, rows.first_layer}, *rows.start_residual)
                   : embed(g, w, request);
  turns_of_positions(g, w.config, rows);
  for (std::int64_t l = rows.first_layer; l < rows.end_layer; ++l) {
    if (l > rows.first_layer) {
      Array entering = rows.entering.empty() ? Array() : rows.entering[l - rows.first_layer - 1];
      x = entering.empty() ? g.copy({Site::resid_pre, l}, x)
                           : g.enter({Site::resid_pre, l}, x, entering);
    }
    x = Block(g, w, request, l).run(x);
  }
  if (rows.unembeds) head(g, w, rows, x);
  return std::move(g).take();
}

}  // namespace lenscpp
