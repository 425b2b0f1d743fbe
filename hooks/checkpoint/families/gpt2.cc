// GPT-2 as transformers' configuration_gpt2.py and modeling_gpt2.py define it.
#include "hooks/checkpoint/families/gpt2.h"

#include <array>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "hooks/checkpoint/fields.h"
#include "hooks/checkpoint/quantized.h"
#include "hooks/nearest.h"

namespace lenscpp {
namespace {

// Beyond these a config.json is wrong; below them no product of two dimensions overflows.
constexpr std::int64_t kMostLayers = 10'000;
constexpr std::int64_t kWidest = 1 << 20;
constexpr std::int64_t kLargestVocabulary = 1 << 28;
constexpr std::int64_t kLongestContext = 1 << 28;

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

Activation activation(Fields& fields) {
  std::string found = fields.text({"activation_function"}).value_or("gelu_new");
  std::string allowed;
  for (const ActivationName& known : kActivations) {
    if (known.name == found) return known.kind;
    allowed += (allowed.empty() ? "" : ", ") + std::string(known.name);
  }
  fields.refuse("activation_function", "is " + in_quotes(found) + "; allowed: " + allowed);
}

DType stored_dtype(Fields& fields) {
  std::string found = fields.text({"dtype", "torch_dtype"}).value_or("float32");
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    if (found == name_of(dtype)) return dtype;
  fields.refuse("dtype",
                "is " + in_quotes(found) + "; allowed: float32, float64, bfloat16, float16");
}

// A classifier's folder has these very tensors, but its logits are not those of a language model. A
// bare GPT2Model is unembedded with its embedding, as GPT2LMHeadModel.from_pretrained would do.
void check_architecture(Fields& fields) {
  for (const std::string& name : fields.texts({"architectures"}))
    if (name != "GPT2LMHeadModel" && name != "GPT2Model")
      fields.refuse("architectures",
                    "names " + in_quotes(name) +
                        "; allowed: GPT2LMHeadModel, GPT2Model. To look at its trunk as a language "
                        "model, save it as one: "
                        "GPT2LMHeadModel.from_pretrained(folder).save_pretrained(other_folder)");
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

Config gpt2_config(const nlohmann::json& document, const std::string& origin) {
  Fields fields(document, origin);
  check_architecture(fields);
  for (const char* name : {"quantization_config", "compression_config"})
    if (auto found = document.find(name); found != document.end())
      fields.refuse_if_set(
          name, "method: " + quantization_method(*found) + "; " + std::string(kDequantize));
  fields.refuse_if_set("auto_map",
                       "a model that brings its own code may compute anything; save it "
                       "as a GPT2LMHeadModel");
  fields.refuse_if_set("pruned_heads", "pruned heads are not supported; allowed: none");
  fields.refuse_if_set("add_cross_attention", "cross-attention is not supported; allowed: false");
  fields.refuse_if_set("is_encoder_decoder", "only decoders are supported; allowed: false");
  name_neutral_fields(fields);

  Config config{};
  config.family = "gpt2";
  config.n_layers = fields.dimension({"n_layer", "num_hidden_layers"}, kMostLayers);
  config.n_heads = fields.dimension({"n_head", "num_attention_heads"}, kWidest);
  config.n_kv_heads = config.n_heads;
  config.d_model = fields.dimension({"n_embd", "hidden_size"}, kWidest);
  if (config.d_model % config.n_heads != 0)
    fields.refuse("n_embd", "is " + std::to_string(config.d_model) + ", a multiple of n_head, " +
                                std::to_string(config.n_heads) + ", is allowed");
  config.d_head = config.d_model / config.n_heads;
  config.d_mlp = fields.optional_dimension({"n_inner"}, 4 * kWidest).value_or(4 * config.d_model);
  config.d_vocab = fields.dimension({"vocab_size"}, kLargestVocabulary);
  config.n_ctx =
      fields.dimension({"n_positions", "max_position_embeddings", "n_ctx"}, kLongestContext);
  config.norm_eps = fields.small_number({"layer_norm_epsilon"}, 1e-5);
  config.norm = NormKind::layer_norm;
  config.activation = activation(fields);
  config.positions = PositionKind::learned;
  config.topology = Topology::sequential;
  config.scale_attn_by_sqrt_d_head = fields.flag({"scale_attn_weights"}, true);
  config.scale_attn_by_inverse_layer = fields.flag({"scale_attn_by_inverse_layer_idx"}, false);
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, true);
  config.stored_dtype = stored_dtype(fields);
  fields.finish();
  return config;
}

Weights gpt2_weights(const Config& config, TensorSource& tensors) {
  const std::int64_t d_model = config.d_model, d_mlp = config.d_mlp;
  // GPT2Model's own files have bare names; GPT2LMHeadModel's hang below "transformer.".
  const std::string prefix = tensors.has("wte.weight") ? "" : "transformer.";
  auto take = [&](const std::string& name, const Shape& shape) {
    return tensors.take(prefix + name, shape);
  };

  Weights weights{};
  weights.config = config;
  weights.dtype = tensors.dtype();
  weights.W_E = take("wte.weight", {config.d_vocab, d_model});
  weights.W_pos = take("wpe.weight", {config.n_ctx, d_model});
  for (std::int64_t l = 0; l < config.n_layers; ++l) {
    const std::string h = "h." + std::to_string(l) + ".";
    LayerWeights layer;
    layer.ln1_w = take(h + "ln_1.weight", {d_model});
    layer.ln1_b = take(h + "ln_1.bias", {d_model});
    layer.W_QKV = take(h + "attn.c_attn.weight", {d_model, 3 * d_model});
    layer.b_QKV = take(h + "attn.c_attn.bias", {3 * d_model});
    layer.W_O = take(h + "attn.c_proj.weight", {d_model, d_model});
    layer.b_O = take(h + "attn.c_proj.bias", {d_model});
    layer.ln2_w = take(h + "ln_2.weight", {d_model});
    layer.ln2_b = take(h + "ln_2.bias", {d_model});
    layer.W_in = take(h + "mlp.c_fc.weight", {d_model, d_mlp});
    layer.b_in = take(h + "mlp.c_fc.bias", {d_mlp});
    layer.W_out = take(h + "mlp.c_proj.weight", {d_mlp, d_model});
    layer.b_out = take(h + "mlp.c_proj.bias", {d_model});
    weights.layers.push_back(std::move(layer));
    // Old files store the causal mask and the number put where it is off; both are always the same.
    tensors.ignore(prefix + h + "attn.bias");
    tensors.ignore(prefix + h + "attn.masked_bias");
  }
  weights.ln_final_w = take("ln_f.weight", {d_model});
  weights.ln_final_b = take("ln_f.bias", {d_model});

  const std::string head = "lm_head.weight";
  if (!config.tied_unembedding) {
    weights.W_U = tensors.take(head, {config.d_vocab, d_model});
  } else {
    weights.W_U = weights.W_E;
    if (tensors.has(head)) {
      Array stored = tensors.take_as_stored(head, {config.d_vocab, d_model});
      Array embedding = tensors.take_as_stored(prefix + "wte.weight", {config.d_vocab, d_model});
      if (stored.dtype() != embedding.dtype() ||
          std::memcmp(stored.bytes(), embedding.bytes(), stored.nbytes()) != 0)
        throw std::invalid_argument(
            "[weights] " + tensors.origin(head) + ": \"lm_head.weight\" differs from " +
            in_quotes(prefix + "wte.weight") +
            ", but config.json ties them; drop it, or set tie_word_embeddings to false");
    }
  }
  weights.b_U = MutableArray({config.d_vocab}, tensors.dtype()).freeze();
  return weights;
}

}  // namespace lenscpp
