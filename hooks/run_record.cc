// RunRecord as JSON.
#include "hooks/run_record.h"

namespace lenscpp {

nlohmann::json to_json(const HookCall& call) {
  return {{"name", call.name},
          {"function", call.function},
          {"before", call.before},
          {"after", call.after},
          {"changed", call.changed}};
}

nlohmann::json to_json(const RunRecord& r) {
  nlohmann::json hooks = nlohmann::json::array();
  for (const HookCall& call : r.hooks) hooks.push_back(to_json(call));
  nlohmann::json json{{"model", r.model},
                      {"model_digest", r.model_digest},
                      {"tokenizer_digest", r.tokenizer_digest},
                      {"batch", r.batch},
                      {"pos", r.pos},
                      {"tokens", r.tokens},
                      {"first_layer", r.first_layer},
                      {"end_layer", r.end_layer},
                      {"split", r.split},
                      {"plan", r.plan},
                      {"hooks", hooks},
                      {"processing", r.processing},
                      {"adapter", r.adapter},
                      {"device", r.device},
                      {"device_name", r.device_name},
                      {"matmul_precision", name_of(r.matmul_precision)},
                      {"dtype", r.dtype},
                      {"ambient", r.ambient},
                      {"libraries", r.libraries},
                      {"build_commit", r.build_commit},
                      {"build_dirty", r.build_dirty},
                      {"threads", r.threads},
                      {"seed", nullptr},
                      {"fallbacks", r.fallbacks},
                      {"mode", r.mode},
                      {"coverage", r.coverage},
                      {"time", r.time}};
  if (r.seed) json["seed"] = *r.seed;
  for (const Span& span : r.spans) json["spans"].push_back({span.begin, span.end});
  if (!r.token_types.empty()) json["token_types"] = r.token_types;
  if (!r.kept_pos.empty()) json["kept_pos"] = r.kept_pos;
  return json;
}

}  // namespace lenscpp
