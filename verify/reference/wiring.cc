// The reference's wiring: a transformer as a list of links. Reads like the forward pass.
#include "verify/reference/wiring.h"

#include <stdexcept>

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
  TensorId linear(TensorId out, TensorId in, const Matrix& weight, const Vector& bias) {
    return append(
        {.op = Op::linear, .output = out, .inputs = {in}, .weight = weight, .bias = bias});
  }
  TensorId head_linear(TensorId out, TensorId in, const Matrix& weight, const Vector& bias) {
    return append(
        {.op = Op::head_linear, .output = out, .inputs = {in}, .weight = weight, .bias = bias});
  }
  TensorId scores(TensorId out, TensorId q, TensorId k, double divisor) {
    const Rows& rows = request_.rows;
    std::int64_t skipped = rows.reads_one(out.site, out.layer) ? *rows.read_pos : 0;
    return append({.op = Op::scores,
                   .output = out,
                   .inputs = {q, k},
                   .scalar = divisor,
                   .first_query = rows.first_pos + skipped});
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

  // LayerNorm in the steps that have names: scale, normalized and, unless folded, the affine
  // output.
  struct Norm {
    TensorId scale, normalized, out;
    const Array &weight, &bias;
    double eps;
  };
  TensorId norm(const Norm& n, TensorId x) {
    TensorId scale =
        append({.op = Op::norm_scale, .output = n.scale, .inputs = {x}, .scalar = n.eps});
    TensorId normalized =
        append({.op = Op::normalize, .output = n.normalized, .inputs = {x, scale}});
    if (n.weight.empty()) return normalized;
    std::int64_t d = n.weight.numel();
    return append({.op = Op::affine,
                   .output = n.out,
                   .inputs = {normalized},
                   .weight = Matrix{.storage = n.weight, .in = 1, .out = d},
                   .bias = Vector{.storage = n.bias, .size = d}});
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

class Block {
 public:
  Block(Graph& g, const Weights& weights, const Request& request, std::int64_t layer)
      : g(g), w(weights), request(request), l(layer), layer(weights.layers[layer]) {}

  TensorId run(TensorId x) {
    TensorId attn_out = attention(x);
    TensorId mid = g.add(at(Site::resid_mid), x, attn_out);
    TensorId mlp_out = mlp(mid);
    return g.add(at(Site::resid_post), mid, mlp_out);
  }

 private:
  TensorId at(Site site) const { return {site, l}; }

  // Leaves in x the rows that go on: in the last layer perhaps one a prompt.
  TensorId attention(TensorId& x) {
    const std::optional<Array>& start_z = request.rows.start_z;
    TensorId z = start_z ? g.given(at(Site::z), *start_z) : attend(x);
    if (!request.computes(Site::result, l))
      return g.linear(at(Site::attn_out), z, w.W_O(l), whole(layer.b_O));
    TensorId result = g.head_result(at(Site::result), z, w.W_O(l));
    // Results that nobody touches are for looking at; the stream is fed by the fused product.
    return request.touches(Site::result, l)
               ? g.sum_heads(at(Site::attn_out), result, whole(layer.b_O))
               : g.linear(at(Site::attn_out), z, w.W_O(l), whole(layer.b_O));
  }

  TensorId attend(TensorId& x) {
    auto [q, k, v] = request.splits_qkv(l) ? split_qkv(x) : qkv(x);
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
    TensorId scores = g.scores(at(Site::attn_scores), q, keys, w.config.attn_divisor(l));
    TensorId pattern = g.softmax(at(Site::pattern), scores);
    return g.mix(at(Site::z), pattern, values);
  }

  struct QKV {
    TensorId q, k, v;
  };
  QKV qkv(TensorId x) {
    for (Site site : {Site::attn_in, Site::q_input, Site::k_input, Site::v_input})
      if (request.computes(site, l)) g.copy(at(site), x);
    TensorId n = g.norm({at(Site::ln1_scale), at(Site::ln1_normalized), at(Site::ln1_out),
                         layer.ln1_w, layer.ln1_b, w.config.norm_eps},
                        x);
    return {g.linear(at(Site::q), n, w.W_Q(l), w.b_Q(l)),
            g.linear(at(Site::k), n, w.W_K(l), w.b_K(l)),
            g.linear(at(Site::v), n, w.W_V(l), w.b_V(l))};
  }
  // Inputs of their own for queries, keys and values, one a head: each is normed by itself.
  QKV split_qkv(TensorId x) {
    TensorId in = request.computes(Site::attn_in, l) ? g.copy(at(Site::attn_in), x) : x;
    TensorId q_in = g.copy(at(Site::q_input), in);
    TensorId k_in = g.copy(at(Site::k_input), in);
    TensorId v_in = g.copy(at(Site::v_input), in);
    auto norm = [&](Site scale, Site normalized, Site out, TensorId input) {
      return g.norm(
          {at(scale), at(normalized), at(out), layer.ln1_w, layer.ln1_b, w.config.norm_eps}, input);
    };
    norm(Site::ln1_scale, Site::ln1_normalized, Site::ln1_out, x);  // for looking at
    TensorId qn = norm(Site::q_scale, Site::q_normalized, Site::q_ln_out, q_in);
    TensorId kn = norm(Site::k_scale, Site::k_normalized, Site::k_ln_out, k_in);
    TensorId vn = norm(Site::v_scale, Site::v_normalized, Site::v_ln_out, v_in);
    return {g.head_linear(at(Site::q), qn, w.W_Q(l), w.b_Q(l)),
            g.head_linear(at(Site::k), kn, w.W_K(l), w.b_K(l)),
            g.head_linear(at(Site::v), vn, w.W_V(l), w.b_V(l))};
  }

  TensorId mlp(TensorId x) {
    TensorId in = request.computes(Site::mlp_in, l) ? g.copy(at(Site::mlp_in), x) : x;
    TensorId n = g.norm({at(Site::ln2_scale), at(Site::ln2_normalized), at(Site::ln2_out),
                         layer.ln2_w, layer.ln2_b, w.config.norm_eps},
                        in);
    TensorId pre = g.linear(at(Site::mlp_pre), n, w.W_in(l), whole(layer.b_in));
    TensorId post = g.activation(at(Site::mlp_post), pre, w.config.activation);
    return g.linear(at(Site::mlp_out), post, w.W_out(l), whole(layer.b_out));
  }

  static Vector whole(const Array& bias) { return {.storage = bias, .size = bias.numel()}; }

  Graph& g;
  const Weights& w;
  const Request& request;
  std::int64_t l;
  const LayerWeights& layer;
};

TensorId embed(Graph& g, const Weights& w, const Request& request) {
  const Rows& rows = request.rows;
  if (request.computes(Site::tokens, 0))
    g.given({Site::tokens},
            Array::of(std::span<const std::int64_t>(rows.tokens), {rows.batch, rows.pos}));
  TensorId embed = g.gather({Site::embed}, w.W_E, rows.tokens);
  switch (w.config.positions) {
    case PositionKind::learned: {
      TensorId pos_embed = g.gather({Site::pos_embed}, w.W_pos, rows.positions);
      return g.add({Site::resid_pre, 0}, embed, pos_embed);
    }
  }
  throw std::logic_error("[wiring] not a PositionKind");
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

}  // namespace

std::string_view name_of(Op op) {
  switch (op) {
    case Op::given:
      return "given";
    case Op::gather:
      return "gather";
    case Op::add:
      return "add";
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
  for (std::int64_t l = rows.first_layer; l < rows.end_layer; ++l) {
    if (l > rows.first_layer) {
      Array entering = rows.entering.empty() ? Array() : rows.entering[l - rows.first_layer - 1];
      x = entering.empty() ? g.copy({Site::resid_pre, l}, x)
                           : g.enter({Site::resid_pre, l}, x, entering);
    }
    switch (w.config.topology) {
      case Topology::sequential:
        x = Block(g, w, request, l).run(x);
        break;
    }
  }
  if (!rows.unembeds) return std::move(g).take();
  // The final norm's output is a hook point of its own, folded or not.
  TensorId n = g.norm({{Site::ln_final_scale},
                       {Site::ln_final_normalized},
                       {Site::unembed_in},
                       w.ln_final_w,
                       w.ln_final_b,
                       w.config.norm_eps},
                      x);
  if (w.ln_final_w.empty()) n = g.copy({Site::unembed_in}, n);
  if (!rows.read_tokens.empty()) {
    auto [weight, bias] = columns_of(w, rows.read_tokens);
    g.linear({Site::unembed_out}, n, weight, bias);
  } else {
    g.linear({Site::unembed_out}, n, w.unembedding(), {.storage = w.b_U, .size = w.b_U.numel()});
  }
  return std::move(g).take();
}

}  // namespace lenscpp
