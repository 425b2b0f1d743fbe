// The device pass. Reads like the paper: one line a hook point.
#include "hooks/transformer/transformer.h"

#include <ATen/ops/_softmax.h>
#include <ATen/ops/add.h>
#include <ATen/ops/addcmul.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/baddbmm.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/div.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gather.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/masked_fill.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/native_layer_norm.h>
#include <ATen/ops/reciprocal.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/repeat_interleave.h>
#include <ATen/ops/scatter.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/sqrt.h>
#include <ATen/ops/square.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/tanh.h>
#include <ATen/ops/tril.h>
#include <ATen/ops/triu.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <stdexcept>

#include "hooks/transformer/ambient.h"
#include "hooks/transformer/fallbacks.h"
#include "hooks/transformer/positions.h"
#include "hooks/transformer/torch_array.h"

namespace lenscpp {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

at::Tensor placed(const Array& array, c10::Device device) {
  if (array.rank() == 0) return {};
  return device.is_cpu() ? alias(array) : upload(array, device);
}

at::Tensor activate(Activation kind, const at::Tensor& x) {
  switch (kind) {
    case Activation::gelu_tanh:
      return at::gelu(x, "tanh");
    case Activation::gelu_erf:
      return at::gelu(x, "none");
    case Activation::relu:
      return at::relu(x);
    case Activation::silu:
      return at::silu(x);
    case Activation::tanh:
      return at::tanh(x);
  }
  throw std::logic_error("[transformer] not an Activation");
}

}  // namespace

// One run: the request's extents and inputs on the device, and the forward pass itself.
class Pass {
 public:
  Pass(const Transformer& model, Tap& tap)
      : m(model),
        tap(tap),
        c(model.weights_->config),
        rows(tap.request().rows),
        batch(rows.batch),
        pos(rows.pos),
        key(rows.first_pos + rows.pos),
        tokens(batch * pos),
        dtype(to_scalar_type(model.weights_->dtype)),
        wide(to_scalar_type(accumulate_type(model.weights_->dtype))),
        mask(mask_of({})) {
    if (c.window) windowed_mask = mask_of(c.window);
  }

  at::Tensor run() {
    at::Tensor x = rows.start_residual ? tap(Site::resid_pre, rows.first_layer,
                                             upload(*rows.start_residual, m.device_))
                                       : embed();  // [batch, pos, d_model]
    turn_by_positions();
    for (l = rows.first_layer; l < rows.end_layer; ++l) {
      if (l > rows.first_layer) x = tap(Site::resid_pre, l, with_entering(x));
      switch (c.topology) {
        case Topology::sequential: {
          const DeviceLayer& w = m.layers_[l];
          at::Tensor attn_out = attention(x);
          x = summed({Site::mid_ln_scale, Site::mid_ln_normalized, Site::mid_ln_out},
                     Site::resid_mid, w.ln1_w, w.ln1_b, at::add(x, attn_out));
          at::Tensor mlp_out = mlp(x);
          x = summed({Site::post_ln_scale, Site::post_ln_normalized, Site::normalized_resid_post},
                     Site::resid_post, w.ln2_w, w.ln2_b, at::add(x, mlp_out));
          break;
        }
        case Topology::parallel: {
          at::Tensor attn_out = attention(x), mlp_out = mlp(x);
          at::Tensor sum = at::add(at::add(x.to(wide), attn_out), mlp_out);
          x = tap(Site::resid_post, l, sum.to(dtype));
          break;
        }
      }
    }
    return rows.unembeds ? head(x) : x;
  }

 private:
  // [prompt, 1, query, key]: 0 where a query sees a key, -inf elsewhere. Of one prompt where there
  // is no padding. Made on the host.
  at::Tensor mask_of(std::optional<std::int64_t> window) {
    at::Tensor hidden = at::full({pos, key}, kHidden, at::dtype(dtype));
    at::Tensor added = c.causal ? at::triu(hidden, rows.first_pos + 1) : at::zeros_like(hidden);
    if (window) added = at::add(added, at::tril(hidden, rows.first_pos - *window));
    if (rows.spans.empty()) return added.view({1, 1, pos, key}).to(m.device_);
    std::vector<at::Tensor> prompts;
    for (const Span& span : rows.spans) {
      at::Tensor padding = at::zeros({1, key}, at::dtype(dtype));
      padding.narrow(1, 0, span.begin).fill_(kHidden);
      padding.narrow(1, span.end, key - span.end).fill_(kHidden);
      prompts.push_back(at::add(added, padding));
    }
    return at::stack(prompts).unsqueeze(1).to(m.device_);
  }
  // What some prompts have, for the whole batch: they serve it in turn, over and over.
  at::Tensor in_turn(const at::Tensor& of_prompts) const {
    std::int64_t n = of_prompts.size(0);
    return n == 1 ? of_prompts : of_prompts.repeat({batch / n, 1, 1, 1});
  }

  struct Turning {
    at::Tensor cos, sin;  // [prompt, pos, 1, pair]
  };
  // Of one prompt where there is no padding: Rows::validate has seen that all stand where it does.
  void turn_by_positions() {
    if (!c.rotary || !rows.reach(Site::rotary_cos, 0)) return;
    std::int64_t apart = std::max<std::int64_t>(1, std::ssize(rows.spans));
    auto place = [&](Site cos, Site sin, const Rope& rope) {
      std::vector<at::Tensor> x, y;  // a prompt each: dynamic angles follow its own length
      for (auto at = rows.positions.begin(); std::ssize(x) < apart; at += pos) {
        TurnTables tables = turn_tables(*c.rotary, rope, {at, at + pos}, to_dtype(wide));
        x.push_back(alias(tables.cos));
        y.push_back(alias(tables.sin));
      }
      at::Tensor cosines = tap(cos, 0, at::stack(x).to(m.device_)),
                 sines = tap(sin, 0, at::stack(y).to(m.device_));
      return Turning{cosines.unsqueeze(2), sines.unsqueeze(2)};
    };
    turning = place(Site::rotary_cos, Site::rotary_sin, c.rotary->rope);
    if (c.rotary->windowed_rope)
      windowed_turning = place(Site::windowed_cos, Site::windowed_sin, *c.rotary->windowed_rope);
  }

  at::Tensor embed() {
    if (tap.computes(Site::tokens, 0)) tap(Site::tokens, 0, ids(rows.tokens).view({batch, pos}));
    at::Tensor x = tap(Site::embed, 0, lookup(m.W_E_, rows.tokens));  // [batch, pos, d_model]
    switch (c.positions) {
      case PositionKind::learned:
        x = with_learned(x);
        if (c.embed_norm) x = tap(Site::embed_sum, 0, x);
        break;
      case PositionKind::rotary:
      case PositionKind::alibi:
        break;
    }
    return c.embed_norm ? norm({Site::embed_ln_scale, Site::embed_ln_normalized, Site::resid_pre},
                               m.embed_ln_w_, m.embed_ln_b_, x)
                        : tap(Site::resid_pre, 0, x);
  }

  // The embedding, plus that of the position, plus that of the kind of token.
  at::Tensor with_learned(const at::Tensor& x) {
    at::Tensor position = tap(Site::pos_embed, 0, lookup(m.W_pos_, rows.positions));
    if (c.n_token_types == 0) return at::add(x, position);
    std::vector<std::int64_t> types = rows.token_types;
    types.resize(static_cast<std::size_t>(tokens));  // all of kind 0 where none are given
    at::Tensor type = tap(Site::token_type_embed, 0, lookup(m.W_type_, types));
    return at::add(at::add(x.to(wide), position), type).to(dtype);
  }

  // The residual at the next layer: of the prompts already there, then of those that enter.
  at::Tensor with_entering(const at::Tensor& x) {
    Array entering = rows.entering.empty() ? Array() : rows.entering[l - rows.first_layer - 1];
    if (entering.empty()) return x;
    batch += entering.size(0);
    tokens = batch * pos;
    return at::cat({x, upload(entering, m.device_)}, 0);
  }

  // From here on only the position that is read goes on.
  at::Tensor position_read(const at::Tensor& x) {
    return x.narrow(1, *rows.read_pos, 1).contiguous();
  }

  // Leaves in x the rows that go on: in the last layer perhaps one a prompt.
  at::Tensor attention(at::Tensor& x) {
    const DeviceLayer& w = m.layers_[l];
    at::Tensor z = rows.start_z ? upload(*rows.start_z, m.device_) : attend(x);
    z = tap(Site::z, l, z);  // [batch, pos, head, d_head]
    at::Tensor result =
        tap.computes(Site::result, l) ? tap(Site::result, l, head_results(z)) : at::Tensor();
    // Summed in the accumulation dtype and rounded once, as the fused product is.
    at::Tensor out = tap.touches(Site::result, l)
                         ? at::add(at::sum(result, 2, false, wide), w.b_O).to(dtype)
                         : linear(z, w.W_O, w.b_O);
    return behind({Site::ln1_post_scale, Site::ln1_post_normalized, Site::attn_out}, Site::attn_sum,
                  w.ln1_post_w, out.view({batch, pos, c.d_model}));
  }

  at::Tensor attend(at::Tensor& x) {
    auto [q, k, v] = positioned(tap.request().splits_qkv(l) ? split_qkv(x) : fused_qkv(x));
    if (rows.first_pos > 0) {
      const BaseKeysValues& base = rows.base[l - rows.first_layer];
      k = tap(Site::keys, l, behind(base.keys, k));  // [batch, key, kv_head, d_head]
      v = tap(Site::values, l, behind(base.values, v));
    }
    at::Tensor seen = c.window_of(l) ? windowed_mask : mask;
    if (rows.reads_one(Site::queries, l)) {
      q = tap(Site::queries, l, position_read(q));
      x = tap(Site::attn_resid, l, position_read(x));
      seen = seen.narrow(2, *rows.read_pos, 1);
      pos = 1;
      tokens = batch;
    }
    at::Tensor added = in_turn(seen);
    at::Tensor scores = at::baddbmm(
        added.expand({batch, c.n_heads, pos, key}).reshape({batch * c.n_heads, pos, key}),
        by_head(q), by_head(k).transpose(1, 2), 1,
        1 / c.attn_divisor(l));  // [batch * head, query, key]
    scores = capped_and_biased(scores.view({batch, c.n_heads, pos, key}), added);
    at::Tensor pattern = tap(Site::pattern, l, attended(scores));
    at::Tensor z = at::bmm(pattern.view({batch * c.n_heads, pos, key}), by_head(v));
    return z.view({batch, c.n_heads, pos, c.d_head})
        .transpose(1, 2)
        .contiguous();  // [batch, pos, head, d_head]
  }

  // What sees nothing, because of padding or of what was done to its scores, attends to nothing, as
  // in TransformerLens.
  at::Tensor attended(const at::Tensor& scores) {
    at::Tensor pattern = at::_softmax(scores, -1, false);
    if (rows.spans.empty() && !tap.touches(Site::attn_scores, l)) return pattern;
    return at::masked_fill(pattern, at::eq(at::amax(scores, {-1}, true), kHidden), 0);
  }

  at::Tensor capped_and_biased(const at::Tensor& scores, const at::Tensor& mask_added) {
    bool biased = c.positions == PositionKind::alibi;
    if (!c.scores_softcap && !biased) return tap(Site::attn_scores, l, scores);
    at::Tensor raw = tap(Site::raw_scores, l, scores);
    if (c.scores_softcap)
      return tap(Site::attn_scores, l, at::add(softcap(raw, *c.scores_softcap), mask_added));
    // Beyond the first computed position, and behind what is left out where one position is read.
    std::int64_t first =
        rows.first_pos + (tap.request().rows.reads_one(Site::attn_scores, l) ? *rows.read_pos : 0);
    if (!bias.defined() || bias.size(1) != pos)  // the same in every layer
      bias = upload(alibi_table(c.n_heads, pos, key, first, m.weights_->dtype), m.device_);
    return tap(Site::attn_scores, l, at::add(raw, tap(Site::position_bias, l, bias)));
  }

  // c tanh(x / c), rounded once.
  at::Tensor softcap(const at::Tensor& x, double cap) {
    return at::mul(at::tanh(at::div(x.to(wide), cap)), cap).to(dtype);
  }

  // The norm of what attention or MLP returns, where the model has one.
  struct NormSites;
  at::Tensor behind(const NormSites& sites, Site sum, const at::Tensor& weight,
                    const at::Tensor& x) {
    if (!returns_normed(c.norm_placement)) return tap(sites.out, l, x);
    return norm(sites, weight, {}, tap(sum, l, x));
  }

  // The residual with what was added to it, normed where the model does that.
  at::Tensor summed(const NormSites& sites, Site sum, const at::Tensor& weight,
                    const at::Tensor& bias, const at::Tensor& x) {
    at::Tensor out = tap(sum, l, x);
    return c.norm_placement == NormPlacement::sum ? norm(sites, weight, bias, out) : out;
  }

  // Keys or values of the base run, each of its prompts as often as it has copies, then those of
  // this run.
  at::Tensor behind(const Array& base, const at::Tensor& here) {
    std::int64_t prompts = base.size(0), copies = batch / prompts, heads = c.n_kv_heads;
    at::Tensor earlier = upload(base, m.device_)
                             .unsqueeze(0)
                             .expand({copies, prompts, rows.first_pos, heads, c.d_head});
    at::Tensor all = at::cat({earlier, here.view({copies, prompts, pos, heads, c.d_head})}, 2);
    return all.view({batch, key, heads, c.d_head});
  }

  struct QKV {
    at::Tensor q, k, v;  // [batch, pos, head or kv_head, d_head]
  };

  QKV fused_qkv(const at::Tensor& x) {
    const DeviceLayer& w = m.layers_[l];
    if (tap.computes(Site::attn_in, l)) tap(Site::attn_in, l, over_heads(x, c.n_heads));
    if (tap.computes(Site::q_input, l)) tap(Site::q_input, l, over_heads(x, c.n_heads));
    if (tap.computes(Site::k_input, l)) tap(Site::k_input, l, over_heads(x, c.n_kv_heads));
    if (tap.computes(Site::v_input, l)) tap(Site::v_input, l, over_heads(x, c.n_kv_heads));
    at::Tensor n =
        before({Site::ln1_scale, Site::ln1_normalized, Site::ln1_out}, w.ln1_w, w.ln1_b, x);
    at::Tensor qkv = linear(n, w.W_QKV, w.b_QKV);  // [batch * pos, (head + 2 kv_head) d_head]
    auto part = [&](Site site, std::int64_t first, std::int64_t heads) {
      at::Tensor columns = qkv.narrow(1, first * c.d_head, heads * c.d_head).contiguous();
      return tap(site, l, columns.view({batch, pos, heads, c.d_head}));
    };
    at::Tensor q = part(Site::q, 0, c.n_heads);
    at::Tensor k = part(Site::k, c.n_heads, c.n_kv_heads);
    at::Tensor v = part(Site::v, c.n_heads + c.n_kv_heads, c.n_kv_heads);
    return {q, k, v};
  }

  // Inputs of their own for queries, keys and values, one a head, because one of them is edited.
  QKV split_qkv(const at::Tensor& x) {
    const DeviceLayer& w = m.layers_[l];
    at::Tensor in =
        tap.computes(Site::attn_in, l) ? tap(Site::attn_in, l, over_heads(x, c.n_heads)) : x;
    at::Tensor q_in =
        tap(Site::q_input, l, over_heads(in, c.n_heads));  // [batch, pos, head, d_model]
    // A grouped model's attn_in is for looking at: Request::validate lets nobody change it.
    const at::Tensor& kv_in = c.n_kv_heads == c.n_heads ? in : x;
    at::Tensor k_in = tap(Site::k_input, l, over_heads(kv_in, c.n_kv_heads));
    at::Tensor v_in = tap(Site::v_input, l, over_heads(kv_in, c.n_kv_heads));
    before({Site::ln1_scale, Site::ln1_normalized, Site::ln1_out}, w.ln1_w, w.ln1_b,
           x);  // for looking at
    at::Tensor qn =
        before({Site::q_scale, Site::q_normalized, Site::q_ln_out}, w.ln1_w, w.ln1_b, q_in);
    at::Tensor kn =
        before({Site::k_scale, Site::k_normalized, Site::k_ln_out}, w.ln1_w, w.ln1_b, k_in);
    at::Tensor vn =
        before({Site::v_scale, Site::v_normalized, Site::v_ln_out}, w.ln1_w, w.ln1_b, v_in);
    auto per_head = [&](Site site, const at::Tensor& n, std::int64_t first, std::int64_t heads) {
      at::Tensor columns =
          w.W_QKV.plain().narrow(1, first * c.d_head, heads * c.d_head).contiguous();
      at::Tensor weight = columns.view({c.d_model, heads, c.d_head}).transpose(0, 1).contiguous();
      at::Tensor bias =
          w.b_QKV.narrow(0, first * c.d_head, heads * c.d_head).view({heads, 1, c.d_head});
      at::Tensor in_heads = n.view({tokens, heads, c.d_model}).transpose(0, 1).contiguous();
      at::Tensor out = at::baddbmm(bias.expand({heads, tokens, c.d_head}), in_heads, weight);
      return tap(site, l, out.transpose(0, 1).contiguous().view({batch, pos, heads, c.d_head}));
    };
    at::Tensor q = per_head(Site::q, qn, 0, c.n_heads);
    at::Tensor k = per_head(Site::k, kn, c.n_heads, c.n_kv_heads);
    at::Tensor v = per_head(Site::v, vn, c.n_heads + c.n_kv_heads, c.n_kv_heads);
    return {q, k, v};
  }

  // Queries and keys normed and turned, where the model does that.
  QKV positioned(QKV in) {
    const DeviceLayer& w = m.layers_[l];
    if (c.qk_norm != QkNorm::none) {
      in.q = norm({Site::q_norm_scale, Site::q_norm_normalized, Site::q_norm_out}, w.q_norm_w, {},
                  in.q);
      in.k = norm({Site::k_norm_scale, Site::k_norm_normalized, Site::k_norm_out}, w.k_norm_w, {},
                  in.k);
    }
    if (!c.rotary) return in;
    const Turning& by = c.turns_by_windowed_rope(l) ? windowed_turning : turning;
    in.q = tap(Site::rot_q, l, turned(in.q, by));
    in.k = tap(Site::rot_k, l, turned(in.k, by));
    return in;
  }

  // Each pair (x, y) of elements becomes (x cos - y sin, y cos + x sin), rounded once.
  at::Tensor turned(const at::Tensor& heads, const Turning& by) {
    std::int64_t dimensions = c.rotary->dimensions, pairs = dimensions / 2;
    at::Tensor in = heads.narrow(3, 0, dimensions).to(wide).contiguous(), x, y, out;
    at::Tensor cos = in_turn(by.cos), sin = in_turn(by.sin);
    auto turn = [&] {
      x = x.contiguous(), y = y.contiguous();
      at::Tensor first = at::sub(at::mul(x, cos), at::mul(y, sin)),
                 second = at::add(at::mul(y, cos), at::mul(x, sin));
      x = first, y = second;
    };
    switch (c.rotary->pairs) {
      case RotaryPairs::halves:
        x = in.narrow(3, 0, pairs), y = in.narrow(3, pairs, pairs);
        turn();
        out = at::cat({x, y}, 3);
        break;
      case RotaryPairs::adjacent:
        in = in.view({batch, pos, -1, pairs, 2});
        x = in.select(4, 0), y = in.select(4, 1);
        turn();
        out = at::stack({x, y}, 4).view({batch, pos, -1, dimensions});
        break;
    }
    out = out.to(dtype);
    if (dimensions == c.d_head) return out;
    return at::cat({out, heads.narrow(3, dimensions, c.d_head - dimensions)}, 3);
  }

  at::Tensor mlp(const at::Tensor& x) {
    const DeviceLayer& w = m.layers_[l];
    at::Tensor in = tap.computes(Site::mlp_in, l) ? tap(Site::mlp_in, l, x) : x;
    at::Tensor n =
        before({Site::ln2_scale, Site::ln2_normalized, Site::ln2_out}, w.ln2_w, w.ln2_b, in);
    at::Tensor post = c.experts     ? experts(n)
                      : c.gated_mlp ? gated(n)
                                    : plain(n);  // [batch, pos, (expert,) d_mlp]
    return behind({Site::ln2_post_scale, Site::ln2_post_normalized, Site::mlp_out}, Site::mlp_sum,
                  w.ln2_post_w, linear(post, w.W_out, w.b_out).view({batch, pos, c.d_model}));
  }

  at::Tensor plain(const at::Tensor& n) {
    const DeviceLayer& w = m.layers_[l];
    at::Tensor pre = tap(Site::mlp_pre, l, linear(n, w.W_in, w.b_in).view({batch, pos, c.d_mlp}));
    return tap(Site::mlp_post, l, activate(c.activation, pre));
  }

  at::Tensor gated(const at::Tensor& n) {
    const DeviceLayer& w = m.layers_[l];
    auto neurons = [&](Site site, const LinearWeight& weight, const at::Tensor& bias) {
      return tap(site, l, linear(n, weight, bias).view({batch, pos, c.d_mlp}));
    };
    at::Tensor pre = neurons(Site::mlp_pre, w.W_gate, w.b_gate);
    at::Tensor up = neurons(Site::mlp_pre_linear, w.W_in, w.b_in);
    at::Tensor act = tap(Site::mlp_act, l, activate(c.activation, pre));
    return tap(Site::mlp_post, l, at::mul(act, up));
  }

  // Every expert for every token, times its share, which is 0 where it was not chosen: what follows
  // is one product over the neurons of all of them.
  at::Tensor experts(const at::Tensor& n) {
    const DeviceLayer& w = m.layers_[l];
    at::Tensor shares = expert_shares(n);  // [batch, pos, expert]
    auto neurons = [&](Site site, const LinearWeight& weight, const at::Tensor& bias) {
      return tap(site, l, linear(n, weight, bias).view({batch, pos, c.experts->count, c.d_mlp}));
    };
    at::Tensor gate = neurons(Site::expert_gate, w.W_gate, w.b_gate);
    at::Tensor pre = neurons(Site::expert_pre, w.W_in, w.b_in);
    at::Tensor act = tap(Site::expert_act, l, activate(c.activation, gate));
    at::Tensor post = tap(Site::expert_post, l, at::mul(act, pre));
    at::Tensor share = shares.unsqueeze(3), mixed = at::mul(post, share);
    // In the dtype that ends at 65504: nothing of what was not chosen, be it infinite.
    if (dtype == at::kHalf) mixed = at::masked_fill(mixed, at::eq(share, 0), 0);
    return tap(Site::expert_mixed, l, mixed);
  }

  // The probabilities of the likeliest experts over their sum; of equal ones the first is chosen.
  at::Tensor expert_shares(const at::Tensor& n) {
    const DeviceLayer& w = m.layers_[l];
    at::Tensor logits = tap(Site::router_logits, l,
                            linear(n, w.W_router, w.b_router).view({batch, pos, c.experts->count}));
    at::Tensor p = tap(Site::expert_weights, l, at::_softmax(logits.to(wide), -1, false));
    at::Tensor order = std::get<1>(at::sort(p, /*stable=*/true, -1, /*descending=*/true));
    at::Tensor chosen = order.narrow(2, 0, c.experts->per_token).contiguous();
    tap(Site::expert_indices, l, chosen);  // for looking at
    at::Tensor likeliest = at::gather(p, 2, chosen);
    at::Tensor shares = at::div(likeliest, at::sum(likeliest, 2, true));  // [batch, pos, choice]
    return tap(Site::expert_shares, l, at::scatter(at::zeros_like(p), 2, chosen, shares).to(dtype));
  }

  // What the head makes of the last residual.
  at::Tensor head(const at::Tensor& x) {
    l = 0;  // what follows has no layer
    switch (c.head) {
      case Head::unembedding:
        return unembed(x);
      case Head::masked_lm: {
        at::Tensor pre = linear(x, m.W_head_, m.b_head_).view({batch, pos, c.d_model});
        pre = tap(Site::mlm_pre, 0, pre);
        return unembed(tap(Site::mlm_post, 0, activate(c.head_activation, pre)));
      }
      case Head::none:
        return x;
      case Head::pooled:
        pool(x);
        return x;
      case Head::classifier:
        return tap(Site::class_logits, 0, linear(pool(x), m.W_class_, m.b_class_));
    }
    throw std::logic_error("[transformer] not a Head");
  }

  // A dense layer of each prompt's first token: [batch, d_model].
  at::Tensor pool(const at::Tensor& x) {
    std::vector<std::int64_t> firsts;
    for (std::int64_t b = 0; b < batch; ++b) firsts.push_back(b * pos + rows.span_of(b).begin);
    at::Tensor first = at::index_select(x.view({tokens, c.d_model}), 0, ids(firsts));
    first = tap(Site::pooler_in, 0, first);
    at::Tensor pre = tap(Site::pooler_pre, 0, linear(first, m.W_head_, m.b_head_));
    return tap(Site::pooler_out, 0, activate(c.head_activation, pre));
  }

  at::Tensor unembed(const at::Tensor& x) {
    at::Tensor n = norm({Site::ln_final_scale, Site::ln_final_normalized, Site::unembed_in},
                        m.ln_final_w_, m.ln_final_b_, x);
    if (!m.ln_final_w_.defined()) n = tap(Site::unembed_in, 0, n);
    at::Tensor logits = rows.read_tokens.empty() ? linear(n, m.W_U_, m.b_U_) : some_logits(n);
    logits = tap(Site::unembed_out, 0, logits.view({batch, pos, -1}));
    return c.logits_softcap ? tap(Site::logits, 0, softcap(logits, *c.logits_softcap)) : logits;
  }

  at::Tensor some_logits(const at::Tensor& n) {
    auto wanted = static_cast<std::int64_t>(rows.read_tokens.size());
    at::Tensor which =
        upload(Array::of(std::span<const std::int64_t>(rows.read_tokens), {wanted}), m.device_);
    at::Tensor weight = at::index_select(m.W_U_.plain(), 0, which);  // [token, d_model]
    return at::addmm(at::index_select(m.b_U_, 0, which), n.view({tokens, c.d_model}), weight.t());
  }

  struct NormSites {
    Site scale, normalized, out;
  };
  // The norm of what attention or MLP reads, where the model has one.
  at::Tensor before(const NormSites& sites, const at::Tensor& weight, const at::Tensor& bias,
                    const at::Tensor& x) {
    return reads_normed(c.norm_placement) ? norm(sites, weight, bias, x) : x;
  }
  // In the accumulation dtype; a changed scale is the one that is used.
  at::Tensor norm(const NormSites& sites, const at::Tensor& weight, const at::Tensor& bias,
                  const at::Tensor& x) {
    at::Tensor n = c.norms_centre() ? layer_norm(sites, x) : rms_norm(sites, x, weight);
    if (!weight.defined()) return n;
    at::Tensor w = weight.numel() == n.size(-1) ? weight : weight.view({n.size(2), n.size(3)});
    return tap(sites.out, l,
               bias.defined()    ? at::addcmul(bias, n, w)
               : c.norm_adds_one ? at::addcmul(n, n, w)
                                 : at::mul(n, w));
  }
  // Over the last axis.
  at::Tensor layer_norm(const NormSites& sites, const at::Tensor& x) {
    at::Tensor in = x.to(wide);
    auto [normed, mean, inverse] = at::native_layer_norm(in, {c.d_model}, {}, {}, c.norm_eps);
    at::Tensor scale = tap(sites.scale, l, at::reciprocal(inverse));  // [..., 1]
    if (tap.changed(sites.scale, l)) normed = at::div(at::sub(in, mean), scale);
    return tap(sites.normalized, l, normed.to(dtype));
  }
  // Over the last axis, or over all heads where `weight` is of all of them.
  at::Tensor rms_norm(const NormSites& sites, const at::Tensor& x, const at::Tensor& weight) {
    at::Tensor in = x.to(wide);
    bool whole = weight.defined() && weight.numel() != x.size(-1);
    at::Tensor over = whole ? in.view({batch, pos, 1, weight.numel()}) : in;
    at::Tensor mean_square = at::mean(at::square(over), at::IntArrayRef{-1}, true);
    at::Tensor scale = tap(sites.scale, l, at::sqrt(at::add(mean_square, c.norm_eps)));
    return tap(sites.normalized, l, at::div(in, scale).to(dtype));
  }

  at::Tensor linear(const at::Tensor& x, const LinearWeight& weight, const at::Tensor& bias) {
    return weight(x.view({-1, weight.in()}), bias);  // [batch * pos, out]
  }

  // z_h W_O,h for every head, without the bias.
  at::Tensor head_results(const at::Tensor& z) {
    at::Tensor in_heads = z.view({tokens, c.n_heads, c.d_head}).transpose(0, 1).contiguous();
    at::Tensor result =
        at::bmm(in_heads, m.layers_[l].W_O.plain().view({c.n_heads, c.d_head, c.d_model}));
    return result.transpose(0, 1).contiguous().view({batch, pos, c.n_heads, c.d_model});
  }

  // [batch, n, kv_head or head, d_head] -> [batch * head, n, d_head]
  at::Tensor by_head(const at::Tensor& x) {
    at::Tensor all =
        x.size(2) == c.n_heads ? x : at::repeat_interleave(x, c.n_heads / x.size(2), 2);
    return all.transpose(1, 2).contiguous().view({batch * c.n_heads, x.size(1), c.d_head});
  }
  // A copy a head, unless there is one already.
  at::Tensor over_heads(const at::Tensor& x, std::int64_t heads) {
    return x.dim() == 4 ? x : x.unsqueeze(2).expand({batch, pos, heads, c.d_model}).contiguous();
  }
  at::Tensor ids(const std::vector<std::int64_t>& values) {
    return upload(Array::of(std::span<const std::int64_t>(values), {std::ssize(values)}),
                  m.device_);
  }
  at::Tensor lookup(const at::Tensor& table, const std::vector<std::int64_t>& rows_wanted) {
    return at::index_select(table, 0, ids(rows_wanted)).view({batch, pos, c.d_model});
  }

  const Transformer& m;
  Tap& tap;
  const Config& c;
  const Rows& rows;
  std::int64_t batch, pos, key, tokens, l = 0;
  c10::ScalarType dtype, wide;
  at::Tensor mask, windowed_mask, bias;
  Turning turning, windowed_turning;
};

Transformer::Transformer(std::shared_ptr<const Weights> weights, c10::Device device,
                         MatmulPrecision precision)
    : weights_(std::move(weights)), device_(device), precision_(precision) {
  const Weights& w = *weights_;
  auto place = [&](const Array& array) { return placed(array, device_); };
  W_E_ = place(w.W_E);
  W_pos_ = place(w.W_pos);
  W_type_ = place(w.W_type);
  embed_ln_w_ = place(w.embed_ln_w);
  embed_ln_b_ = place(w.embed_ln_b);
  ln_final_w_ = place(w.ln_final_w);
  ln_final_b_ = place(w.ln_final_b);
  auto dense = [&](const Array& weight) {
    return weight.rank() == 0 ? LinearWeight() : LinearWeight(place(weight));
  };
  W_head_ = dense(w.W_head);
  b_head_ = place(w.b_head);
  W_class_ = dense(w.W_class);
  b_class_ = place(w.b_class);
  if (unembeds(w.config.head)) W_U_ = LinearWeight(place(w.W_U), /*outputs_are_rows=*/true);
  b_U_ = place(w.b_U);
  for (const LayerWeights& layer : w.layers)
    layers_.push_back({.ln1_w = place(layer.ln1_w),
                       .ln1_b = place(layer.ln1_b),
                       .b_QKV = place(layer.b_QKV),
                       .q_norm_w = place(layer.q_norm_w),
                       .k_norm_w = place(layer.k_norm_w),
                       .b_O = place(layer.b_O),
                       .ln1_post_w = place(layer.ln1_post_w),
                       .ln2_w = place(layer.ln2_w),
                       .ln2_b = place(layer.ln2_b),
                       .b_router = place(layer.b_router),
                       .b_gate = place(layer.b_gate),
                       .b_in = place(layer.b_in),
                       .b_out = place(layer.b_out),
                       .ln2_post_w = place(layer.ln2_post_w),
                       .W_QKV = LinearWeight(place(layer.W_QKV)),
                       .W_O = LinearWeight(place(layer.W_O)),
                       .W_router = dense(layer.W_router),
                       .W_gate = dense(layer.W_gate),
                       .W_in = LinearWeight(place(layer.W_in)),
                       .W_out = LinearWeight(place(layer.W_out))});
}

PassResult Transformer::run(const Request& request, Sink* sink,
                            const Interference& interference) const {
  request.validate(weights_->config);
  auto require_dtype = [this](const Array& given, const char* what) {
    if (given.dtype() != weights_->dtype)
      throw std::invalid_argument(std::string("[run] ") + what + " of " +
                                  std::string(name_of(given.dtype())) + "; the model is " +
                                  std::string(name_of(weights_->dtype)));
  };
  if (request.rows.start_residual) require_dtype(*request.rows.start_residual, "a start residual");
  if (request.rows.start_z) require_dtype(*request.rows.start_z, "a start z");
  for (const BaseKeysValues& base : request.rows.base) {
    require_dtype(base.keys, "base keys");
    require_dtype(base.values, "base values");
  }
  Tap tap(request, sink, interference);  // before the guard: callbacks see the caller's torch
  AmbientGuard ambient(device_, precision_);
  std::optional<FallbackWatch> watch;
  if (!device_.is_cpu()) watch.emplace();
  at::Tensor output = Pass(*this, tap).run();
  return {.output = output,
          .ambient = ambient.flags(),
          .hooks = tap.calls(),
          .fallbacks = watch ? watch->operators() : std::vector<std::string>{}};
}

}  // namespace lenscpp
