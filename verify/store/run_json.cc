// Configs, records and verdicts from JSON.
#include "verify/store/run_json.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "verify/store/sealed_file.h"

namespace lenscpp {

using nlohmann::json;

namespace {

// The value of an enumeration whose name this is. name_of throws past the last one.
template <class Kind>
Kind kind_from(const json& name) {
  for (int i = 0;; ++i)
    if (name_of(static_cast<Kind>(i)) == name) return static_cast<Kind>(i);
}

// JSON has no infinities: verdict.cc writes them as text.
double number_from(const json& value) {
  if (value.is_number()) return value.get<double>();
  if (value == "inf") return std::numeric_limits<double>::infinity();
  if (value == "-inf") return -std::numeric_limits<double>::infinity();
  if (value == "nan") return std::numeric_limits<double>::quiet_NaN();
  throw std::invalid_argument("a number is " + value.dump());
}

// Of two sites that no model has both of one name may be shared: then the later one is "second".
bool is_second(Site site) {
  auto before = all_sites().first(static_cast<std::size_t>(site));
  return std::ranges::find(before, info(site).name, &SiteInfo::name) != before.end();
}

Site site_from(const json& j) {
  json name = j.at("site");
  if (name == "logits") name = "unembed.logits";  // in files of before
  for (const SiteInfo& row : all_sites())
    if (row.name == name && is_second(row.site) == j.value("second", false)) return row.site;
  throw std::invalid_argument("no site is called " + name.dump());
}

}  // namespace

namespace {

Rope rope_from(const json& j) {
  return {.base = j.at("base"),
          .scaling = kind_from<RopeScaling>(j.at("scaling")),
          .factor = j.at("factor"),
          .trained_context = j.at("trained_context"),
          .low_freq = j.at("low_freq"),
          .high_freq = j.at("high_freq"),
          .beta_fast = j.at("beta_fast"),
          .beta_slow = j.at("beta_slow"),
          .truncates = j.at("truncates"),
          .attention_factor = j.at("attention_factor")};
}

// What config.cc writes only where a model has it.
void add_optional_parts(Config& c, const json& j) {
  if (j.contains("norm_placement"))
    c.norm_placement = kind_from<NormPlacement>(j.at("norm_placement"));
  if (j.contains("qk_norm")) c.qk_norm = kind_from<QkNorm>(j.at("qk_norm"));
  c.norm_adds_one = j.value("norm_adds_one", false);
  c.embed_norm = j.value("embed_norm", false);
  c.gated_mlp = j.value("gated_mlp", false);
  if (j.contains("experts"))
    c.experts = Experts{j.at("experts").at("count"), j.at("experts").at("per_token")};
  if (j.contains("biases")) {
    const json& b = j.at("biases");
    c.biases = {b.at("qkv"), b.at("attn_out"), b.at("mlp"), b.at("unembedding")};
  }
  c.embed_scale = j.value("embed_scale", 1.0);
  if (j.contains("scores_divisor")) c.scores_divisor = j.at("scores_divisor").get<double>();
  if (j.contains("scores_softcap")) c.scores_softcap = j.at("scores_softcap").get<double>();
  if (j.contains("logits_softcap")) c.logits_softcap = j.at("logits_softcap").get<double>();
  if (j.contains("window")) c.window = j.at("window").get<std::int64_t>();
  if (j.contains("windowed_layers"))
    c.windowed_layers = j.at("windowed_layers").get<std::vector<bool>>();
  c.causal = j.value("causal", true);
  c.n_token_types = j.value("n_token_types", std::int64_t{0});
  c.n_labels = j.value("n_labels", std::int64_t{0});
  if (j.contains("head")) {
    c.head = kind_from<Head>(j.at("head"));
    c.head_activation = kind_from<Activation>(j.at("head_activation"));
  }
  if (!j.contains("rotary")) return;
  const json& r = j.at("rotary");
  c.rotary = Rotary{.dimensions = r.at("dimensions"),
                    .pairs = kind_from<RotaryPairs>(r.at("pairs")),
                    .rope = rope_from(r.at("rope"))};
  if (r.contains("windowed_rope")) c.rotary->windowed_rope = rope_from(r.at("windowed_rope"));
}

}  // namespace

Config config_from_json(const json& j) {
  Config config{.family = j.at("family"),
                .n_layers = j.at("n_layers"),
                .n_heads = j.at("n_heads"),
                .n_kv_heads = j.at("n_kv_heads"),
                .d_model = j.at("d_model"),
                .d_head = j.at("d_head"),
                .d_mlp = j.at("d_mlp"),
                .d_vocab = j.at("d_vocab"),
                .n_ctx = j.at("n_ctx"),
                .norm_eps = j.at("norm_eps"),
                .norm = kind_from<NormKind>(j.at("norm")),
                .activation = kind_from<Activation>(j.at("activation")),
                .positions = kind_from<PositionKind>(j.at("positions")),
                .topology = kind_from<Topology>(j.at("topology")),
                .scale_attn_by_sqrt_d_head = j.at("scale_attn_by_sqrt_d_head"),
                .scale_attn_by_inverse_layer = j.at("scale_attn_by_inverse_layer"),
                .tied_unembedding = j.at("tied_unembedding"),
                .stored_dtype = dtype_from_name(j.at("stored_dtype").get<std::string>())};
  add_optional_parts(config, j);
  return config;
}

RunRecord run_record_from_json(const json& j) {
  RunRecord r;
  j.at("model").get_to(r.model);
  j.at("model_digest").get_to(r.model_digest);
  j.at("tokenizer_digest").get_to(r.tokenizer_digest);
  j.at("batch").get_to(r.batch);
  j.at("pos").get_to(r.pos);
  j.at("tokens").get_to(r.tokens);
  j.at("first_layer").get_to(r.first_layer);
  j.at("end_layer").get_to(r.end_layer);
  if (j.contains("split")) j.at("split").get_to(r.split);  // files of before have none
  for (const json& span : j.value("spans", json::array()))
    r.spans.push_back({span.at(0).get<std::int64_t>(), span.at(1).get<std::int64_t>()});
  r.token_types = j.value("token_types", std::vector<std::int64_t>{});
  r.kept_pos = j.value("kept_pos", std::vector<std::int64_t>{});
  r.plan = j.at("plan");
  for (const json& call : j.at("hooks"))
    r.hooks.push_back({.name = call.at("name"),
                       .function = call.at("function"),
                       .before = call.at("before"),
                       .after = call.at("after"),
                       .changed = call.at("changed")});
  r.processing = j.at("processing");
  j.at("adapter").get_to(r.adapter);
  j.at("device").get_to(r.device);
  j.at("device_name").get_to(r.device_name);
  j.at("dtype").get_to(r.dtype);
  r.matmul_precision = matmul_precision_from_name(j.value("matmul_precision", std::string("ieee")));
  j.at("ambient").get_to(r.ambient);
  j.at("libraries").get_to(r.libraries);
  j.at("build_commit").get_to(r.build_commit);
  j.at("build_dirty").get_to(r.build_dirty);
  j.at("threads").get_to(r.threads);
  if (!j.at("seed").is_null()) r.seed = j.at("seed").get<std::uint64_t>();
  j.at("fallbacks").get_to(r.fallbacks);
  j.at("mode").get_to(r.mode);
  j.at("coverage").get_to(r.coverage);
  j.at("time").get_to(r.time);
  return r;
}

json id_to_json(const TensorId& id) {
  json j{{"site", info(id.site).name}, {"layer", id.layer}, {"stage", id.stage}};
  if (is_second(id.site)) j["second"] = true;
  return j;
}

TensorId id_from_json(const json& j) {
  return {.site = site_from(j), .layer = j.at("layer"), .stage = j.at("stage")};
}

json point_to_json(const Point& point) {
  json j = to_json(point);
  j["id"] = id_to_json(point.id);
  j["shape"] = point.shape;
  j["worst_flat_index"] = point.worst_index;
  return j;
}

Point point_from_json(const json& j) {
  return {.id = id_from_json(j.at("id")),
          .op = kind_from<Op>(j.at("op")),
          .compared = j.at("compared"),
          .projected = j.value("projected", std::int64_t{0}),  // absent from files of before
          .failed = j.at("failed"),
          .worst_ratio = number_from(j.at("worst_ratio")),
          .rms_ratio = number_from(j.at("rms_ratio")),
          .worst_index = j.at("worst_flat_index"),
          .device_value = number_from(j.at("device_value")),
          .reference_value = number_from(j.at("reference_value")),
          .shape = j.at("shape").get<Shape>(),
          .residual = j.contains("residual") ? number_from(j.at("residual")) : 0,
          .why = j.at("why"),
          .hint = j.at("hint"),
          .name = j.at("name")};
}

json verdict_to_json(const Verdict& verdict) {
  json j = to_json(verdict);
  j.erase("points");
  j.erase("first_failure");
  return j;
}

Verdict verdict_from_json(const json& j) {
  Verdict verdict{.status = status_from_name(j.at("status").get<std::string>()),
                  .mode = verify_mode_from_name(j.at("mode").get<std::string>()),
                  .coverage = j.at("coverage"),
                  .seconds = j.at("seconds"),
                  .widest_gap = j.at("widest_gap"),
                  .recomputed = j.at("recomputed").get<std::vector<std::string>>(),
                  .advice = j.value("advice", std::string()),
                  .fallbacks = j.value("fallbacks", std::vector<std::string>{})};
  if (j.at("drift").is_null()) return verdict;
  verdict.drift.emplace();
  for (const json& row : j.at("drift"))
    verdict.drift->points.push_back({.name = row.at("name"),
                                     .max_abs = number_from(row.at("max_abs")),
                                     .relative = number_from(row.at("relative"))});
  return verdict;
}

}  // namespace lenscpp
