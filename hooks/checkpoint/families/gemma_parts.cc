// Parts of Gemma configs.
#include "hooks/checkpoint/families/gemma_parts.h"

#include <cmath>

#include "hooks/checkpoint/json.h"

namespace lenscpp {
namespace {

std::optional<double> cap(Fields& fields, const char* name, std::optional<double> absent,
                          const nlohmann::json& document) {
  if (!document.contains(name)) return absent;  // null says that there is none
  auto found = fields.number({name});
  if (found && !(*found > 0))
    fields.refuse(name, "is " + show(*found) + ", a number above 0 or null is allowed");
  return found;
}

}  // namespace

void read_gemma_parts(Fields& fields, Config& config) {
  config.norm_eps = fields.small_number({"rms_norm_eps"}, 1e-6);
  config.norm = NormKind::rms_norm;
  config.norm_adds_one = true;
  config.topology = Topology::sequential;
  config.gated_mlp = true;
  config.embed_scale = std::sqrt(static_cast<double>(config.d_model));
  bool attention_bias = fields.flag({"attention_bias"}, false);
  config.biases = {.qkv = attention_bias, .attn_out = attention_bias, .mlp = false};
  config.tied_unembedding = fields.flag({"tie_word_embeddings"}, true);
  fields.refuse_if_set("use_bidirectional_attention", "only causal attention is supported");
}

void read_gemma2_parts(Fields& fields, Config& config, const nlohmann::json& document,
                       const GemmaSoftcaps& absent) {
  config.norm_placement = NormPlacement::around;
  config.activation = read_activation(fields, {"hidden_activation"}, "gelu_pytorch_tanh");
  config.scores_divisor = std::sqrt(static_cast<double>(
      fields.optional_dimension({"query_pre_attn_scalar"}, kWidest).value_or(256)));
  config.scores_softcap = cap(fields, "attn_logit_softcapping", absent.scores, document);
  config.logits_softcap = cap(fields, "final_logit_softcapping", absent.logits, document);
  config.window = fields.optional_dimension({"sliding_window"}, kLongestContext);
  if (!config.window && !document.contains("sliding_window")) config.window = 4096;
}

}  // namespace lenscpp
