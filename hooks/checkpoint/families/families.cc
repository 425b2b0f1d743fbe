// The table of families.
#include <array>
#include <stdexcept>

#include "hooks/checkpoint/families/family.h"
#include "hooks/checkpoint/families/table.h"
#include "hooks/nearest.h"

namespace lenscpp {

std::span<const Family> families() {
  static const std::array<Family, 21> kFamilies{{
      {"bert", bert_config, bert_weights},
      {"bloom", bloom_config, bloom_weights},
      {"distilbert", distilbert_config, distilbert_weights},
      {"falcon", falcon_config, falcon_weights},
      {"gemma", gemma_config, gemma_weights},
      {"gemma2", gemma2_config, gemma2_weights},
      {"gemma3_text", gemma3_config, gemma3_weights},
      {"gpt2", gpt2_config, gpt2_weights, true},
      {"gpt_neo", gpt_neo_config, gpt_neo_weights},
      {"gpt_neox", gpt_neox_config, gpt_neox_weights},
      {"gptj", gptj_config, gptj_weights},
      {"llama", llama_config, llama_weights},
      {"mistral", mistral_config, mistral_weights},
      {"mixtral", mixtral_config, mixtral_weights},
      {"olmo2", olmo2_config, olmo2_weights},
      {"opt", opt_config, opt_weights},
      {"phi", phi_config, phi_weights},
      {"phi3", phi3_config, phi3_weights},
      {"qwen2", qwen2_config, qwen2_weights},
      {"qwen3", qwen3_config, qwen3_weights},
      {"stablelm", stablelm_config, stablelm_weights},
  }};
  return kFamilies;
}

const Family& family(std::string_view model_type, const std::string& origin) {
  std::string allowed;
  for (const Family& candidate : families()) {
    if (candidate.model_type == model_type) return candidate;
    allowed += (allowed.empty() ? "" : ", ") + in_quotes(candidate.model_type);
  }
  throw std::invalid_argument("[config] " + origin + ": model_type " + in_quotes(model_type) +
                              " is not known; allowed: " + allowed);
}

}  // namespace lenscpp
