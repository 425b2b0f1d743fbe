// Fields and tensors that decoders have in common.
#include "hooks/checkpoint/families/decoder.h"

#include <array>
#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "hooks/checkpoint/json.h"
#include "hooks/checkpoint/quantized.h"
#include "hooks/nearest.h"

namespace lenscpp {
namespace {

struct ActivationName {
  std::string_view name;
  Activation kind;
};

// transformers' ACT2FN. gelu_fast writes sqrt(2/pi) with 10 digits: 4e-12 relative, no float32 is
// moved.
constexpr std::array<ActivationName, 10> kActivations{{{"gelu_new", Activation::gelu_tanh},
                                                       {"gelu_pytorch_tanh", Activation::gelu_tanh},
                                                       {"gelu_python_tanh", Activation::gelu_tanh},
                                                       {"gelu_accurate", Activation::gelu_tanh},
                                                       {"gelu_fast", Activation::gelu_tanh},
                                                       {"gelu", Activation::gelu_erf},
                                                       {"gelu_python", Activation::gelu_erf},
                                                       {"relu", Activation::relu},
                                                       {"silu", Activation::silu},
                                                       {"swish", Activation::silu}}};

// A classifier's folder has these very tensors, but its logits are not those of a language model. A
// bare trunk is unembedded with its embedding, as the language model's from_pretrained would do.
void check_architecture(Fields& fields, const std::string& language_model,
                        const std::string& trunk) {
  for (const std::string& name : fields.texts({"architectures"}))
    if (name != language_model && name != trunk)
      fields.refuse("architectures",
                    "names " + in_quotes(name) + "; allowed: " + language_model + ", " + trunk +
                        ". To look at its trunk as a language model, save it as one: " +
                        language_model + ".from_pretrained(folder).save_pretrained(other_folder)");
}

void name_neutral_fields(Fields& fields) {
  fields.neutral({
      "model_type",
      "transformers_version",
      "transformers.js_config",
      "name_or_path",
      "_name_or_path",
      "_commit_hash",
      // training
      "attn_pdrop",
      "attention_dropout",
      "hidden_dropout",
      "embed_dropout",
      "resid_dropout",
      "classifier_dropout",
      "dropout",
      "layerdrop",
      "init_std",
      "pretraining_tp",
      "embd_pdrop",
      "resid_pdrop",
      "initializer_range",
      "gradient_checkpointing",
      "use_bfloat16",
      "torchscript",
      "finetuning_task",
      "problem_type",
      "tf_legacy_loss",
      // heads of other architectures
      "summary_type",
      "summary_use_proj",
      "summary_activation",
      "summary_proj_to_labels",
      "summary_first_dropout",
      "num_labels",
      "_num_labels",
      "id2label",
      "label2id",
      "n_special",
      "predict_special_tokens",
      // tokens and generation
      "bos_token_id",
      "eos_token_id",
      "pad_token_id",
      "sep_token_id",
      "unk_token_id",
      "cls_token_id",
      "mask_token_id",
      "decoder_start_token_id",
      "tokenizer_class",
      "prefix",
      "task_specific_params",
      "max_length",
      "min_length",
      "do_sample",
      "early_stopping",
      "num_beams",
      "num_beam_groups",
      "diversity_penalty",
      "temperature",
      "top_k",
      "top_p",
      "typical_p",
      "repetition_penalty",
      "length_penalty",
      "no_repeat_ngram_size",
      "encoder_no_repeat_ngram_size",
      "bad_words_ids",
      "num_return_sequences",
      "output_scores",
      "return_dict_in_generate",
      "forced_bos_token_id",
      "forced_eos_token_id",
      "remove_invalid_values",
      "exponential_decay_length_penalty",
      "suppress_tokens",
      "begin_suppress_tokens",
      // how it is run and what is returned; the feed-forward chunks give the same numbers
      "use_cache",
      "cache_implementation",
      "output_attentions",
      "output_hidden_states",
      "output_past",
      "return_dict",
      "use_return_dict",
      "chunk_size_feed_forward",
      "is_decoder",
      "attn_implementation",
      "_attn_implementation",
      "_attn_implementation_autoset",
      "_attn_implementation_internal",
      // ties an encoder to a decoder; there is one of them here
      "tie_encoder_decoder",
      "cross_attention_hidden_size",
      // the order of scaling and rounding in mixed precision; the same real numbers
      "reorder_and_upcast_attn",
  });
}

}  // namespace

void begin_decoder(Fields& fields, const nlohmann::json& document, const char* language_model,
                   const char* trunk) {
  check_architecture(fields, language_model, trunk);
  begin_transformer(fields, document, language_model);
}

void begin_transformer(Fields& fields, const nlohmann::json& document, const char* architecture) {
  for (const char* name : {"quantization_config", "compression_config"})
    if (auto found = document.find(name); found != document.end())
      fields.refuse_if_set(
          name, "method: " + quantization_method(*found) + "; " + std::string(kDequantize));
  fields.refuse_if_set("auto_map",
                       std::string("a model that brings its own code may compute anything; save it "
                                   "as a ") +
                           architecture);
  fields.refuse_if_set("pruned_heads", "pruned heads are not supported; allowed: none");
  fields.refuse_if_set("add_cross_attention", "cross-attention is not supported; allowed: false");
  fields.refuse_if_set("is_encoder_decoder",
                       "models of two stacks are not supported; allowed: false");
  name_neutral_fields(fields);
}

Activation read_activation(Fields& fields, Fields::Names spellings, const char* absent) {
  std::string found = fields.text(spellings).value_or(absent);
  std::string allowed;
  for (const ActivationName& known : kActivations) {
    if (known.name == found) return known.kind;
    allowed += (allowed.empty() ? "" : ", ") + std::string(known.name);
  }
  fields.refuse(*spellings.begin(), "is " + in_quotes(found) + "; allowed: " + allowed);
}

DType read_stored_dtype(Fields& fields) {
  std::string found = fields.text({"dtype", "torch_dtype"}).value_or("float32");
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    if (found == name_of(dtype)) return dtype;
  fields.refuse("dtype",
                "is " + in_quotes(found) + "; allowed: float32, float64, bfloat16, float16");
}

void read_heads(Fields& fields, Config& config, std::optional<std::int64_t> absent_kv_heads) {
  config.n_heads = fields.dimension({"num_attention_heads"}, kWidest);
  config.d_model = fields.dimension({"hidden_size"}, kWidest);
  config.n_kv_heads =
      fields.optional_dimension({"num_key_value_heads"}, kWidest)
          .value_or(fields.has("num_key_value_heads") ? config.n_heads
                                                      : absent_kv_heads.value_or(config.n_heads));
  if (config.n_heads % config.n_kv_heads != 0)
    fields.refuse("num_key_value_heads",
                  (fields.has("num_key_value_heads") ? "is " : "is absent, which means ") +
                      std::to_string(config.n_kv_heads) + ", a divisor of num_attention_heads, " +
                      std::to_string(config.n_heads) + ", is allowed");
  auto d_head = fields.optional_dimension({"head_dim"}, kWidest);
  config.d_head = d_head ? *d_head : head_of(fields, config, "hidden_size");
}

std::int64_t head_of(const Fields& fields, const Config& config, const char* field) {
  if (config.d_model % config.n_heads != 0)
    fields.refuse(field, "is " + std::to_string(config.d_model) +
                             ", a multiple of the number of heads, " +
                             std::to_string(config.n_heads) + ", is allowed");
  return config.d_model / config.n_heads;
}

void read_sizes(Fields& fields, Config& config) {
  config.n_layers = fields.dimension({"num_hidden_layers"}, kMostLayers);
  config.d_mlp = fields.dimension({"intermediate_size"}, 4 * kWidest);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx = fields.dimension({"max_position_embeddings"}, kLongestContext);
}

namespace {

double positive(Fields& fields, const char* name, std::optional<double> absent = {}) {
  auto found = fields.number({name});
  if (!found && absent) return *absent;
  if (!found || !(*found > 0))
    fields.refuse(name, found ? "is " + show(*found) + ", a number above 0 is allowed"
                              : "is missing, a number above 0 is required");
  return *found;
}

// yarn's factor of cosines and sines: as given, or from how far the context is stretched.
double attention_factor(Fields& fields, double factor) {
  auto magnitude = [factor](double scale) {
    return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1;
  };
  auto given = fields.number({"attention_factor"}), scale = fields.number({"mscale"}),
       all = fields.number({"mscale_all_dim"});
  if (given) return *given;
  if (scale && all && *scale != 0 && *all != 0) return magnitude(*scale) / magnitude(*all);
  return magnitude(1);
}

RopeScaling read_scaling(Fields& fields) {
  std::string found = fields.text({"rope_type", "type"}).value_or("default");
  if (found == "default") return RopeScaling::none;
  for (RopeScaling kind :
       {RopeScaling::linear, RopeScaling::dynamic, RopeScaling::llama3, RopeScaling::yarn})
    if (found == name_of(kind)) return kind;
  fields.refuse("rope_type",
                "is " + in_quotes(found) + "; allowed: default, linear, dynamic, llama3, yarn");
}

std::int64_t rounded_down(double share, std::int64_t of) {
  return static_cast<std::int64_t>(share * static_cast<double>(of));
}

}  // namespace

Rope read_rope(const nlohmann::json* parameters, const std::string& origin, double base,
               std::int64_t context) {
  Rope rope{.base = base};
  if (parameters == nullptr) return rope;
  Fields fields(*parameters, origin + ": rope_parameters");
  rope.base = positive(fields, "rope_theta", base);
  rope.scaling = read_scaling(fields);
  fields.neutral({"partial_rotary_factor"});  // read by read_rotary
  if (rope.scaling != RopeScaling::none) rope.factor = positive(fields, "factor");
  auto trained = fields.optional_dimension({"original_max_position_embeddings"}, kLongestContext);
  switch (rope.scaling) {
    case RopeScaling::none:
    case RopeScaling::linear:
      break;
    case RopeScaling::dynamic:
      rope.trained_context = context;
      break;
    case RopeScaling::llama3:
      rope.trained_context = trained.value_or(context);
      rope.low_freq = positive(fields, "low_freq_factor");
      rope.high_freq = positive(fields, "high_freq_factor");
      if (!(rope.low_freq < rope.high_freq))
        fields.refuse("low_freq_factor", "must be below high_freq_factor");
      break;
    case RopeScaling::yarn:
      rope.trained_context = trained.value_or(context);
      rope.beta_fast = positive(fields, "beta_fast", 32);
      rope.beta_slow = positive(fields, "beta_slow", 1);
      rope.truncates = fields.flag({"truncate"}, true);
      rope.attention_factor = attention_factor(fields, rope.factor);
      break;
  }
  fields.finish();
  return rope;
}

void read_rotary(Fields& fields, Config& config, const RotaryDefaults& absent) {
  double base = fields.number({"rope_theta", "rotary_emb_base"}).value_or(absent.base);
  auto share = fields.number({"partial_rotary_factor", "rotary_pct"});
  const nlohmann::json* parameters = fields.object({"rope_parameters", "rope_scaling"});
  if (parameters != nullptr && parameters->contains("partial_rotary_factor"))
    share = Fields(*parameters, fields.origin()).number({"partial_rotary_factor"});
  std::int64_t dimensions = rounded_down(share.value_or(absent.share), config.d_head);
  if (dimensions < 2 || dimensions > config.d_head || dimensions % 2 != 0 || !(base > 0))
    fields.refuse(
        "partial_rotary_factor",
        "turns " + std::to_string(dimensions) + " of the " + std::to_string(config.d_head) +
            " dimensions of a head; an even number of them is allowed, and a base above 0");
  Rope rope = read_rope(parameters, fields.origin(), base, config.n_ctx);
  config.positions = PositionKind::rotary;
  config.rotary = Rotary{.dimensions = dimensions, .pairs = RotaryPairs::halves, .rope = rope};
  // Beyond the trained context the angles are stretched: that far they are meant to reach.
  if (rope.scaling == RopeScaling::dynamic && rope.factor > 1)
    config.n_ctx = std::min(kLongestContext, rounded_down(rope.factor, config.n_ctx));
}

void read_experts(Fields& fields, Config& config) {
  constexpr std::int64_t kMost = 1 << 12;
  Experts experts{
      .count = fields.optional_dimension({"num_local_experts", "num_experts"}, kMost).value_or(8),
      .per_token = fields.optional_dimension({"num_experts_per_tok"}, kMost).value_or(2)};
  if (experts.per_token > experts.count)
    fields.refuse("num_experts_per_tok", "is " + std::to_string(experts.per_token) +
                                             "; there are " + std::to_string(experts.count) +
                                             " experts");
  config.experts = experts;
}

void read_layer_types(Fields& fields, Config& config) {
  std::vector<std::string> types = fields.texts({"layer_types"});
  if (types.empty()) return;
  if (std::ssize(types) != config.n_layers)
    fields.refuse("layer_types", "names " + std::to_string(types.size()) + " layers; there are " +
                                     std::to_string(config.n_layers));
  config.windowed_layers.clear();
  for (const std::string& type : types) {
    bool windowed = type == "sliding_attention";
    if (!windowed && type != "full_attention")
      fields.refuse("layer_types",
                    "names " + in_quotes(type) + "; allowed: full_attention, sliding_attention");
    if (windowed && !config.window)
      fields.refuse("layer_types", "names sliding_attention, but there is no sliding_window");
    config.windowed_layers.push_back(windowed);
  }
}

// ---- tensors ----

namespace {

// A tile at a time: reading along rows and writing along columns otherwise misses every cache line.
template <class T>
void transpose_into(const Array& matrix, T* to, std::int64_t stride) {
  constexpr std::int64_t kTile = 32;
  const T* from = reinterpret_cast<const T*>(matrix.bytes());
  std::int64_t rows = matrix.size(0), columns = matrix.size(1);
  for (std::int64_t r = 0; r < rows; r += kTile)
    for (std::int64_t c = 0; c < columns; c += kTile)
      for (std::int64_t j = c; j < std::min(c + kTile, columns); ++j)
        for (std::int64_t i = r; i < std::min(r + kTile, rows); ++i)
          to[j * stride + i] = from[i * columns + j];
}

}  // namespace

Array transposed(const std::vector<Array>& matrices) {
  std::int64_t in = matrices.at(0).size(1), out = 0;
  for (const Array& m : matrices) out += m.size(0);
  MutableArray result({in, out}, matrices[0].dtype());
  std::int64_t first = 0;
  for (const Array& m : matrices) {
    switch (size_of(m.dtype())) {
      case 2:
        transpose_into(m, result.data<std::uint16_t>() + first, out);
        break;
      case 4:
        transpose_into(m, result.data<std::uint32_t>() + first, out);
        break;
      case 8:
        transpose_into(m, result.data<std::uint64_t>() + first, out);
        break;
      default:
        throw std::logic_error("[weights] elements of another size");
    }
    first += m.size(0);
  }
  return std::move(result).freeze();
}

Array rows_in_order(const Array& array, const std::vector<std::int64_t>& order) {
  Shape shape = array.shape();
  shape[0] = std::ssize(order);
  MutableArray result(shape, array.dtype());
  std::size_t row = array.nbytes() / static_cast<std::size_t>(array.size(0));
  for (std::size_t i = 0; i < order.size(); ++i)
    std::memcpy(result.bytes() + i * row, array.bytes() + static_cast<std::size_t>(order[i]) * row,
                row);
  return std::move(result).freeze();
}

Array joined(const std::vector<Array>& arrays) {
  std::int64_t size = 0;
  for (const Array& a : arrays) size += a.numel();
  MutableArray result({size}, arrays.at(0).dtype());
  std::byte* to = result.bytes();
  for (const Array& a : arrays) {
    std::memcpy(to, a.bytes(), a.nbytes());
    to += a.nbytes();
  }
  return std::move(result).freeze();
}

Array zeros(Shape shape, DType dtype) { return MutableArray(std::move(shape), dtype).freeze(); }

Array take_linear(TensorSource& tensors, const std::string& name, std::int64_t in,
                  std::int64_t out) {
  return transposed({tensors.take(name + ".weight", {out, in})});
}

Array take_bias(TensorSource& tensors, const std::string& name, std::int64_t size, bool there) {
  return there ? tensors.take(name + ".bias", {size}) : zeros({size}, tensors.dtype());
}

void take_attention(LayerWeights& layer, TensorSource& tensors, const Config& c,
                    const AttentionNames& names) {
  std::int64_t q = c.n_heads * c.d_head, kv = c.n_kv_heads * c.d_head;
  layer.W_QKV = transposed({tensors.take(names.q + ".weight", {q, c.d_model}),
                            tensors.take(names.k + ".weight", {kv, c.d_model}),
                            tensors.take(names.v + ".weight", {kv, c.d_model})});
  layer.b_QKV = joined({take_bias(tensors, names.q, q, c.biases.qkv),
                        take_bias(tensors, names.k, kv, c.biases.qkv),
                        take_bias(tensors, names.v, kv, c.biases.qkv)});
  layer.W_O = take_linear(tensors, names.out, q, c.d_model);
  layer.b_O = take_bias(tensors, names.out, c.d_model, c.biases.attn_out);
}

void take_grouped_attention(LayerWeights& layer, TensorSource& tensors, const Config& c,
                            const std::string& qkv, const std::string& out) {
  std::int64_t group = c.n_heads / c.n_kv_heads, rows = (c.n_heads + 2 * c.n_kv_heads) * c.d_head;
  std::vector<std::int64_t> order;
  auto add = [&](std::int64_t kv_head, std::int64_t place) {
    for (std::int64_t i = 0; i < c.d_head; ++i)
      order.push_back((kv_head * (group + 2) + place) * c.d_head + i);
  };
  for (std::int64_t h = 0; h < c.n_heads; ++h) add(h / group, h % group);
  for (std::int64_t h = 0; h < c.n_kv_heads; ++h) add(h, group);
  for (std::int64_t h = 0; h < c.n_kv_heads; ++h) add(h, group + 1);
  layer.W_QKV =
      transposed({rows_in_order(tensors.take(qkv + ".weight", {rows, c.d_model}), order)});
  layer.b_QKV = rows_in_order(take_bias(tensors, qkv, rows, c.biases.qkv), order);
  layer.W_O = take_linear(tensors, out, c.n_heads * c.d_head, c.d_model);
  layer.b_O = take_bias(tensors, out, c.d_model, c.biases.attn_out);
}

void take_layer_norm(Array& weight, Array& bias, TensorSource& tensors, const std::string& name,
                     std::int64_t size) {
  weight = tensors.take(name + ".weight", {size});
  bias = tensors.take(name + ".bias", {size});
}

void take_mlp(LayerWeights& layer, TensorSource& tensors, const Config& c, const std::string& in,
              const std::string& out) {
  layer.W_in = take_linear(tensors, in, c.d_model, c.d_mlp);
  layer.b_in = take_bias(tensors, in, c.d_mlp, c.biases.mlp);
  layer.W_out = take_linear(tensors, out, c.d_mlp, c.d_model);
  layer.b_out = take_bias(tensors, out, c.d_model, c.biases.mlp);
}

void take_unembedding(Weights& weights, TensorSource& tensors, const std::string& head,
                      const std::string& embedding) {
  const Config& c = weights.config;
  take_unembedding_matrix(weights, tensors, head, embedding);
  weights.b_U = take_bias(tensors, head, c.d_vocab, c.biases.unembedding);
}

void take_unembedding_matrix(Weights& weights, TensorSource& tensors, const std::string& head,
                             const std::string& embedding) {
  const Config& c = weights.config;
  const Shape shape{c.d_vocab, c.d_model};
  const std::string name = head + ".weight";
  if (!c.tied_unembedding) {
    weights.W_U = tensors.take(name, shape);
  } else {
    for (const std::string& tied : {name, embedding})
      if (tensors.adapted(tied))
        throw std::invalid_argument(
            "[adapter] changes " + in_quotes(tied) +
            ", but config.json ties unembedding and embedding: it is not said which is meant. "
            "Merge it with peft, untie them (tie_word_embeddings false) and load what it saves");
    weights.W_U = c.embed_scale == 1 ? weights.W_E : tensors.take(embedding, shape);
    if (tensors.has(name)) require_tied(tensors, name, embedding, shape);
  }
}

void require_tied(TensorSource& tensors, const std::string& name, const std::string& to,
                  const Shape& shape) {
  Array stored = tensors.take_as_stored(name, shape), tied = tensors.take_as_stored(to, shape);
  if (stored.dtype() != tied.dtype() ||
      std::memcmp(stored.bytes(), tied.bytes(), stored.nbytes()) != 0)
    throw std::invalid_argument(
        "[weights] " + tensors.origin(name) + ": " + in_quotes(name) + " differs from " +
        in_quotes(to) +
        ", but config.json ties them; drop it, or set tie_word_embeddings to false");
}

}  // namespace lenscpp
