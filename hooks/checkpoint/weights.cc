// Views of the weights, their names, and loading. What a family's tensors are called: families/.
#include "hooks/checkpoint/weights.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <utility>

#include "hooks/checkpoint/families/family.h"
#include "hooks/checkpoint/finite.h"
#include "hooks/checkpoint/loading.h"
#include "hooks/checkpoint/quantized.h"
#include "hooks/checkpoint/safetensors.h"
#include "hooks/nearest.h"

namespace lenscpp {
namespace {

const LayerWeights& layer_at(const Weights& weights, std::int64_t layer) {
  auto count = static_cast<std::int64_t>(weights.layers.size());
  if (layer < 0 || layer >= count)
    throw std::out_of_range("[weights] layer " + std::to_string(layer) +
                            " out of range: the model has " + std::to_string(count) +
                            " layers (0.." + std::to_string(count - 1) + ")");
  return weights.layers[static_cast<std::size_t>(layer)];
}

// Columns of queries, then keys, then values in W_QKV.
std::int64_t width_Q(const Config& c) { return c.n_heads * c.d_head; }
std::int64_t width_KV(const Config& c) { return c.n_kv_heads * c.d_head; }

std::string_view narrow_hint(DType dtype) {
  return dtype == DType::f16 ? "; float16 ends at 65504, load as bfloat16 or float32"
                             : "; load as a wider dtype";
}

// `array` in `dtype`, refused where the narrower type overflows.
Array rounded(const Array& array, DType dtype, const std::string& where) {
  Array result = array.to(dtype);
  if (dtype != array.dtype())
    require_finite(result, where + ", rounded to " + std::string(name_of(dtype)) + ",",
                   std::string(narrow_hint(dtype)));
  return result;
}

void require_floating(DType dtype) {
  if (dtype == DType::i64)
    throw std::invalid_argument(
        "[weights] dtype int64; allowed: float32, float64, bfloat16, float16");
}

void require_layers(std::int64_t n, const Config& config) {
  if (n < 1 || n > config.n_layers)
    throw std::out_of_range("[model] first_n_layers " + std::to_string(n) +
                            " out of range: the checkpoint has " + std::to_string(config.n_layers) +
                            " layers");
}

bool is_floating(const std::string& file_dtype) {
  return file_dtype == "F64" || file_dtype == "F32" || file_dtype == "F16" || file_dtype == "BF16";
}

// A config.json may have lost its quantization_config; the tensors still say it.
void refuse_quantized(const Checkpoint& checkpoint) {
  for (const std::string& name : checkpoint.names())
    if (auto method = quantization_of(name, checkpoint.info(name).dtype))
      throw std::invalid_argument("[weights] " + checkpoint.origin(name) + ": tensor " +
                                  in_quotes(name) + " of " + checkpoint.info(name).dtype +
                                  " is quantized (" + *method + "); " + std::string(kDequantize));
}

template <class WeightsT, class Visit>
void visit_all(WeightsT& w, const Visit& visit) {
  visit("embed.W_E", w.W_E);
  visit("pos_embed.W_pos", w.W_pos);
  visit("token_type_embed.W", w.W_type);
  visit("embed.ln.w", w.embed_ln_w);
  visit("embed.ln.b", w.embed_ln_b);
  for (std::size_t l = 0; l < w.layers.size(); ++l) {
    const std::string block = "blocks." + std::to_string(l) + ".";
    auto& layer = w.layers[l];
    visit(block + "ln1.w", layer.ln1_w);
    visit(block + "ln1.b", layer.ln1_b);
    visit(block + "attn.W_QKV", layer.W_QKV);
    visit(block + "attn.b_QKV", layer.b_QKV);
    visit(block + "attn.q_norm.w", layer.q_norm_w);
    visit(block + "attn.k_norm.w", layer.k_norm_w);
    visit(block + "attn.W_O", layer.W_O);
    visit(block + "attn.b_O", layer.b_O);
    visit(block + "ln1_post.w", layer.ln1_post_w);
    visit(block + "ln2.w", layer.ln2_w);
    visit(block + "ln2.b", layer.ln2_b);
    visit(block + "mlp.W_router", layer.W_router);
    visit(block + "mlp.b_router", layer.b_router);
    visit(block + "mlp.W_gate", layer.W_gate);
    visit(block + "mlp.b_gate", layer.b_gate);
    visit(block + "mlp.W_in", layer.W_in);
    visit(block + "mlp.b_in", layer.b_in);
    visit(block + "mlp.W_out", layer.W_out);
    visit(block + "mlp.b_out", layer.b_out);
    visit(block + "ln2_post.w", layer.ln2_post_w);
  }
  visit("head.W", w.W_head);
  visit("head.b", w.b_head);
  visit("classifier.W", w.W_class);
  visit("classifier.b", w.b_class);
  visit("ln_final.w", w.ln_final_w);
  visit("ln_final.b", w.ln_final_b);
  visit("unembed.W_U", w.W_U);
  visit("unembed.b_U", w.b_U);
}

}  // namespace

Matrix Weights::W_Q(std::int64_t layer) const {
  return {layer_at(*this, layer).W_QKV, config.d_model, width_Q(config), 0};
}
Matrix Weights::W_K(std::int64_t layer) const {
  return {layer_at(*this, layer).W_QKV, config.d_model, width_KV(config), width_Q(config)};
}
Matrix Weights::W_V(std::int64_t layer) const {
  return {layer_at(*this, layer).W_QKV, config.d_model, width_KV(config),
          width_Q(config) + width_KV(config)};
}
Vector Weights::b_Q(std::int64_t layer) const {
  return {layer_at(*this, layer).b_QKV, width_Q(config), 0};
}
Vector Weights::b_K(std::int64_t layer) const {
  return {layer_at(*this, layer).b_QKV, width_KV(config), width_Q(config)};
}
Vector Weights::b_V(std::int64_t layer) const {
  return {layer_at(*this, layer).b_QKV, width_KV(config), width_Q(config) + width_KV(config)};
}
Matrix Weights::W_O(std::int64_t layer) const {
  return {layer_at(*this, layer).W_O, width_Q(config), config.d_model};
}
Matrix Weights::W_router(std::int64_t layer) const {
  return {layer_at(*this, layer).W_router, config.d_model, config.experts.value().count};
}
Matrix Weights::W_gate(std::int64_t layer) const {
  return {layer_at(*this, layer).W_gate, config.d_model, config.n_neurons()};
}
Matrix Weights::W_in(std::int64_t layer) const {
  return {layer_at(*this, layer).W_in, config.d_model, config.n_neurons()};
}
Matrix Weights::W_out(std::int64_t layer) const {
  return {layer_at(*this, layer).W_out, config.n_neurons(), config.d_model};
}
Matrix Weights::unembedding() const { return {W_U, config.d_model, config.d_vocab, 0, true}; }

void Weights::for_each(const std::function<void(const std::string&, const Array&)>& visit) const {
  visit_all(*this, [&](const std::string& name, const Array& array) {
    if (array.rank() > 0) visit(name, array);  // folded norms are not there
  });
}

std::size_t Weights::nbytes() const {
  std::size_t total = 0;
  std::set<const std::byte*> counted;
  for_each([&](const std::string&, const Array& array) {
    if (counted.insert(array.bytes()).second) total += array.nbytes();
  });
  return total;
}

std::string Weights::digest() const {
  std::string text = to_json(config).dump() + "\n";
  std::map<std::tuple<const std::byte*, std::size_t, std::string>, std::string>
      known;  // tied: hashed once
  for_each([&](const std::string& name, const Array& array) {
    std::string& digest = known[{array.bytes(), array.nbytes(), to_string(array.shape())}];
    if (digest.empty()) digest = array.digest();
    text += name + " " + digest + "\n";
  });
  std::vector<std::int64_t> letters(text.begin(), text.end());
  return Array::of(letters, {static_cast<std::int64_t>(letters.size())}).digest();
}

Weights load_weights(const std::filesystem::path& folder, DType dtype) {
  return load_weights(folder, Loading{.dtype = dtype});
}

Weights load_weights(const std::filesystem::path& folder, const Loading& loading) {
  require_floating(loading.dtype);
  Config config = read_config(folder);
  if (auto n = loading.first_n_layers) {
    require_layers(*n, config);
    config.n_layers = *n;
  }
  const Family& kind = family(config.family, folder.string());
  Checkpoint checkpoint = Checkpoint::open(folder);
  refuse_quantized(checkpoint);
  std::optional<Merge> merge;
  if (loading.adapter != nullptr) merge.emplace(*loading.adapter, checkpoint, kind.stores_in_out);
  TensorSource tensors(checkpoint, loading, merge ? &*merge : nullptr);
  Weights weights = kind.weights(config, tensors);
  tensors.finish();
  weights.config.stored_dtype = tensors.widest_stored();
  return weights;
}

Weights outline(const Config& c, DType dtype) {
  auto of = [dtype](Shape shape) { return Array::wrap(nullptr, std::move(shape), dtype, nullptr); };
  auto where = [](bool there, Array array) { return there ? array : Array(); };
  bool behind = returns_normed(c.norm_placement), logits = unembeds(c.head),
       before = c.norm_placement != NormPlacement::after;  // or on the sum: two norms either way
  auto norm = [&] { return where(c.norms_affine(), of({c.d_model})); };
  auto bias = [&] { return where(c.norm == NormKind::layer_norm, of({c.d_model})); };
  auto qk_norm = [&](std::int64_t heads) {
    return where(c.qk_norm != QkNorm::none,
                 of({c.qk_norm == QkNorm::whole ? heads * c.d_head : c.d_head}));
  };
  Weights w{.config = c, .dtype = dtype};
  w.W_E = of({c.d_vocab, c.d_model});
  w.W_pos = where(c.positions == PositionKind::learned, of({c.n_ctx, c.d_model}));
  w.W_type = where(c.n_token_types > 0, of({c.n_token_types, c.d_model}));
  w.embed_ln_w = where(c.embed_norm, of({c.d_model}));
  w.embed_ln_b = where(c.embed_norm && c.norms_centre(), of({c.d_model}));
  std::int64_t qkv = width_Q(c) + 2 * width_KV(c), neurons = c.n_neurons(),
               experts = c.experts ? c.experts->count : 0;
  LayerWeights layer{.ln1_w = where(before, norm()),
                     .ln1_b = where(before, bias()),
                     .q_norm_w = qk_norm(c.n_heads),
                     .k_norm_w = qk_norm(c.n_kv_heads),
                     .ln1_post_w = where(behind, of({c.d_model})),
                     .W_QKV = of({c.d_model, qkv}),
                     .b_QKV = of({qkv}),
                     .W_O = of({width_Q(c), c.d_model}),
                     .b_O = of({c.d_model}),
                     .ln2_w = where(before, norm()),
                     .ln2_b = where(before, bias()),
                     .W_router = where(c.experts.has_value(), of({c.d_model, experts})),
                     .b_router = where(c.experts.has_value(), of({experts})),
                     .W_gate = where(c.gated_mlp, of({c.d_model, neurons})),
                     .b_gate = where(c.gated_mlp, of({neurons})),
                     .W_in = of({c.d_model, neurons}),
                     .b_in = of({neurons}),
                     .W_out = of({neurons, c.d_model}),
                     .b_out = of({c.d_model}),
                     .ln2_post_w = where(behind, of({c.d_model}))};
  w.layers.assign(static_cast<std::size_t>(c.n_layers), layer);
  bool dense = c.head != Head::unembedding && c.head != Head::none;
  w.W_head = where(dense, of({c.d_model, c.d_model}));
  w.b_head = where(dense, of({c.d_model}));
  w.W_class = where(c.n_labels > 0, of({c.d_model, c.n_labels}));
  w.b_class = where(c.n_labels > 0, of({c.n_labels}));
  w.ln_final_w = where(logits, norm());
  w.ln_final_b = where(logits, bias());
  w.W_U = where(logits, of({c.d_vocab, c.d_model}));
  w.b_U = where(logits, of({c.d_vocab}));
  return w;
}

Weights cast(const Weights& weights, DType dtype) {
  require_floating(dtype);
  Weights result = weights;
  result.dtype = dtype;
  std::map<std::pair<const std::byte*, Shape>, Array> done;  // what shares a buffer goes on sharing
  visit_all(result, [&](const std::string& name, Array& array) {
    if (array.rank() == 0) return;
    auto [place, inserted] = done.try_emplace({array.bytes(), array.shape()});
    if (inserted) place->second = rounded(array, dtype, "[weights] " + name);
    array = place->second;
  });
  return result;
}

// ---- TensorSource ----

const std::string& TensorSource::origin(const std::string& name) const {
  return has(name) ? checkpoint_.origin(name) : checkpoint_.origin();
}

Array TensorSource::checked(const std::string& name, const Shape& shape) {
  std::string where = "[weights] " + origin(name) + ": tensor " + in_quotes(name);
  if (!has(name)) {
    std::vector<std::string> names = checkpoint_.names();
    throw std::invalid_argument(where + " " + to_string(shape) + " is missing" +
                                (names.empty()
                                     ? "; there are no tensors"
                                     : "; the nearest names are " + nearest_names(name, names)));
  }
  const TensorInfo& info = checkpoint_.info(name);
  if (info.shape != shape)
    throw std::invalid_argument(where + " has shape " + to_string(info.shape) +
                                ", config.json makes it " + to_string(shape));
  if (!is_floating(info.dtype))
    throw std::invalid_argument(where + " is stored as " + info.dtype +
                                "; weights must be one of F64 F32 F16 BF16");
  taken_.push_back(name);
  Array stored = checkpoint_.tensor(name);
  require_finite(stored, where, "");
  return stored;
}

Array TensorSource::take_as_stored(const std::string& name, const Shape& shape) {
  return checked(name, shape);
}

Array TensorSource::take(const std::string& name, const Shape& shape) {
  Array stored = checked(name, shape);
  stored_.insert(stored.dtype());
  if (adapted(name)) {
    MergedTensor merged = merge_->merged(name, stored, dtype());
    merged_.insert(name);
    if (loading_.on_merged) loading_.on_merged(merged);
    return merged.result;
  }
  return rounded(stored, dtype(), "[weights] " + origin(name) + ": tensor " + in_quotes(name));
}

DType TensorSource::widest_stored() const {
  for (DType dtype : {DType::f64, DType::f32})
    if (stored_.contains(dtype)) return dtype;
  if (stored_.contains(DType::bf16) && stored_.contains(DType::f16)) return DType::f32;
  return stored_.contains(DType::f16) ? DType::f16 : DType::bf16;
}

// The layer of a tensor is the first number in its name.
bool TensorSource::left_out(const std::string& name) const {
  if (!loading_.first_n_layers) return false;
  for (std::size_t begin = 0, end; begin < name.size(); begin = end + 1) {
    end = std::min(name.find('.', begin), name.size());
    std::string part = name.substr(begin, end - begin);
    if (part.empty() || part.size() > 9 || part.find_first_not_of("0123456789") != part.npos)
      continue;
    return std::stoll(part) >= *loading_.first_n_layers;
  }
  return false;
}

void TensorSource::finish() const {
  constexpr std::size_t kShown = 5;
  std::set<std::string> taken(taken_.begin(), taken_.end());
  if (merge_ != nullptr)
    for (const std::string& name : merge_->changed())
      if (!merged_.contains(name) && !left_out(name))
        throw std::invalid_argument("[adapter] " + merge_->origin() + ": changes " +
                                    in_quotes(name) + ", which this model does not read");
  std::vector<std::string> extra;
  for (const std::string& name : checkpoint_.names())
    if (!taken.contains(name) && !left_out(name)) extra.push_back(name);
  if (extra.empty()) return;
  std::string shown;
  for (std::size_t i = 0; i < std::min(extra.size(), kShown); ++i)
    shown += (i == 0 ? "" : ", ") + in_quotes(extra[i]) + " " +
             to_string(checkpoint_.info(extra[i]).shape);
  throw std::invalid_argument(
      "[weights] " + checkpoint_.origin() + ": " + std::to_string(extra.size()) +
      (extra.size() == 1 ? " tensor" : " tensors") + " that this model has no place for: " + shown +
      (extra.size() > kShown ? ", ..." : "") + "; is config.json the one of these weights?");
}

}  // namespace lenscpp
