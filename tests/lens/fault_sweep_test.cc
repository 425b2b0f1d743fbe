// Every fault of the table at every link of a run: what changes a tensor beyond its bounds is
// refused and named first; what stays below them is not seen, and is listed with its size.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <iomanip>
#include <iostream>
#include <limits>
#include <set>
#include <sstream>

#include "hooks/transformer/torch_array.h"
#include "lens/fault_injection.h"
#include "lens/hooked_transformer.h"
#include "tests/golden_cases.h"
#include "verify/reference/wiring.h"

namespace lenscpp {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// One request, run cleanly once: what is faulted, and how much each element may be off.
struct CleanRun {
  std::shared_ptr<const Weights> weights;
  Request request;
  Transformer pass;
  std::vector<Link> links;
  std::map<TensorId, Array> clean = {};

  CleanRun(std::shared_ptr<const Weights> w, Request r)
      : weights(std::move(w)),
        request(std::move(r)),
        pass(weights, at::kCPU),
        links(wire(*weights, request)) {
    Recorder recorder;
    pass.run(request, &recorder);
    clean = recorder.tensors();
    Verifier verifier(weights, request, {.dtype = weights->dtype});
    for (const Link& link : links) verifier.take(link.output, clean.at(link.output));
    EXPECT_NO_THROW(std::move(verifier).finish({})) << "without a fault";
  }
};

// A link, what it should be, and the tolerance of each element.
struct Target {
  const Link* link;
  Array clean, reference, tolerance;

  Target(const CleanRun& s, const Link& l) : link(&l), clean(s.clean.at(l.output)) {
    std::vector<Array> inputs;
    for (const TensorId& id : l.inputs) inputs.push_back(s.clean.at(id));
    reference = compute(l, inputs, clean.shape(), serial_for);
    tolerance = tolerances(l, inputs, clean.shape(), contract_of(l.output.site, s.weights->dtype));
  }
  bool usable(std::int64_t i) const { return std::isfinite(clean[i]); }
  // Error over tolerance of the worst element: computed here anew, not by the code under test.
  double size_of(const Array& value) const {
    double worst = 0;
    for (std::int64_t i = 0; i < value.numel(); ++i) {
      if (value[i] == reference[i]) continue;
      double error = std::abs(value[i] - reference[i]);
      worst = std::max(worst,
                       std::isfinite(error) && tolerance[i] > 0 ? error / tolerance[i] : kInfinity);
    }
    return worst;
  }
  double least_tolerance() const {
    return extreme([](double a, double b) { return std::min(a, b); }, false);
  }
  double most_tolerance() const {
    return extreme([](double a, double b) { return std::max(a, b); }, false);
  }
  // The factor - 1 that takes one element just to its tolerance.
  double least_relative() const {
    return extreme([](double a, double b) { return std::min(a, b); }, true);
  }

 private:
  template <class Pick>
  double extreme(const Pick& pick, bool relative) const {
    std::optional<double> found;
    for (std::int64_t i = 0; i < clean.numel(); ++i) {
      if (!usable(i) || (relative && clean[i] == 0)) continue;
      double t = relative ? tolerance[i] / std::abs(clean[i]) : tolerance[i];
      found = found ? pick(*found, t) : t;
    }
    return found.value_or(0);
  }
};

struct Outcome {
  bool fired = false, refused = false, named = false, by_rms = false;
  double size = 0;
  std::string hint = {}, first = {};
};

Outcome inject(const CleanRun& s, const Target& t, FaultSpec spec) {
  TensorId id = t.link->output;
  spec.hook = hook_name(id.site, id.layer);
  spec.stage = id.stage;
  auto injector = std::make_shared<FaultInjector>(std::vector{spec}, s.weights->config);
  Interference fault = interference_of(injector);
  Array faulted;
  Interference watch = [&](const TensorId& at, const at::Tensor& x) {
    at::Tensor y = fault(at, x);
    if (at == id) faulted = snapshot(y);
    return y;
  };
  Verifier verifier(s.weights, s.request, {.dtype = s.weights->dtype});
  s.pass.run(s.request, &verifier, watch);
  Outcome o{.fired = injector->fired() > 0, .size = t.size_of(faulted)};
  try {
    VerifiedCache cache = std::move(verifier).finish({});
  } catch (const VerificationFailed& e) {
    const Point* first = e.verdict().first_failure();
    o.refused = true;
    o.first = first != nullptr ? to_string(first->id) : "nothing";
    o.named = first != nullptr && first->id == id;
    o.by_rms = o.named && first->failed == 0;
    o.hint = first != nullptr ? first->hint : "";
  }
  return o;
}

// Faults at one link: sized from its tolerances at 8 times and at 0.4 times the bound, and as large
// as they come.
std::vector<FaultSpec> faults_for(const Target& t) {
  std::vector<FaultSpec> specs;
  bool ids = t.clean.dtype() == DType::i64;
  auto add = [&](const char* name, std::map<std::string, double> parameters = {}) {
    if (fault_info(name).applies(t.link->output.site))
      specs.push_back({.name = name, .parameters = std::move(parameters), .seed = specs.size()});
  };
  double u = unit_roundoff(t.clean.dtype() == DType::i64 ? DType::f64 : t.clean.dtype());
  // Where nothing is allowed, the next number but one is a fault.
  auto sized = [&](double times, double tolerance, double value) {
    return ids ? 1 : tolerance > 0 ? times * tolerance : 4 * u * std::max(value, 0x1p-10);
  };
  std::int64_t n = t.clean.numel();
  for (std::int64_t i : {std::int64_t{0}, n / 3, n - 1}) {
    while (!t.usable(i)) i = (i + 1) % n;
    double size = sized(8, t.tolerance[i], std::abs(t.clean[i]));
    add("one_element", {{"index", static_cast<double>(i)}, {"delta", size}});
    add("one_element", {{"index", static_cast<double>(i)}, {"delta", -1.1 * size}});
    if (t.tolerance[i] > 0)
      add("one_element", {{"index", static_cast<double>(i)},
                          {"delta", t.reference[i] + 0.4 * t.tolerance[i] - t.clean[i]}});
  }
  for (const char* region : {"row", "head", "tile"}) {
    add(region);
    add(region, {{"garbage", 1}});
    add(region, {{"delta", sized(8, t.most_tolerance(), 1)}});
    if (t.least_tolerance() > 0) add(region, {{"delta", 0.3 * t.least_tolerance()}});
  }
  add("scale", {{"factor", 1 + (t.least_relative() > 0 ? 8 * t.least_relative() : 4 * u)}});
  if (t.least_relative() > 0) add("scale", {{"factor", 1 + 0.3 * t.least_relative()}});
  add("scale");
  add("one_element");
  add("sign");
  add("nan");
  add("inf");
  add("inf", {{"sign", -1}});
  add("zero_from");
  add("shift_rows");
  add("shift_rows", {{"by", -1}});
  add("swap_heads");
  add("stale");
  add("round_bits");
  add("round_bits", {{"bits", 8}});
  // Some of the last bits lost: within the bounds of sums, beyond those of what is exactly
  // specified.
  if (!ids) add("round_bits", {{"bits", -std::log2(u) - 2}});
  add("mask_off_by_one");
  add("mask_off_by_one", {{"by", -1}});
  add("mask_group");
  add("mask_ignored");
  add("bit_flip", {{"bit", 0}});
  add("bit_flip", {{"bit", static_cast<double>(8 * size_of(t.clean.dtype()) - 2)}});
  add("poison");
  add("poison", {{"value", 1e-40}});
  add("nan_above");
  add("flush_small");
  add("uniform_row");
  add("swap_prompts");
  return specs;
}

std::string describe(const FaultSpec& spec) {
  std::ostringstream text;
  text << spec.name;
  for (const auto& [name, value] : spec.parameters) text << " " << name << "=" << value;
  return text.str();
}

// Whether a hint says the right sort of thing about a fault that fired alone. Where only one
// element is beyond its bound, "one element" is all that can be said.
bool hint_fits(const FaultSpec& spec, double size, const std::string& hint) {
  auto has = [&](const char* text) { return hint.find(text) != std::string::npos; };
  bool one = has("one element");
  bool delta = spec.parameters.contains("delta"), garbage = spec.parameters.contains("garbage");
  if (spec.name == "one_element" || spec.name == "sign") return one;
  if (spec.name == "bit_flip") return one || has("mask");
  if (spec.name == "inf" && has("mask: keys are hidden"))
    return spec.parameters.contains("sign");  // what -inf means there
  if (spec.name == "nan" || spec.name == "inf") return one && has("not finite");
  if (spec.name.starts_with("mask_")) return has("mask");
  if (one) return true;
  if (spec.name == "row") return has("pos") || has("query") || has("key") || has("batch") || delta;
  if (spec.name == "head")
    return has("head") || has("zeros") || delta || garbage;  // of one head: "zeros"
  if (spec.name == "zero_from") return has("zeros");
  if (spec.name == "swap_heads") return has("swapped");
  if (spec.name == "shift_rows") return has("rows shifted");
  if (spec.name == "scale") return has("scaled by") || has("precision");
  if (spec.name == "round_bits") return has("precision") || size < 2;  // a few elements, barely
  return !hint.empty();
}

struct Tally {
  std::int64_t fired = 0, same = 0, refused = 0, named = 0, by_rms = 0, below = 0, hints = 0;
  double largest_below = 0;
};
using Table = std::map<std::pair<std::string, DType>, Tally>;

// Every fault of every link for which `wanted` holds.
void sweep(const CleanRun& s, const std::function<bool(const Link&)>& wanted, Table& table) {
  DType dtype = s.weights->dtype;
  for (const Link& link : s.links) {
    if (!wanted(link)) continue;
    Target t(s, link);
    for (const FaultSpec& spec : faults_for(t)) {
      Outcome o = inject(s, t, spec);
      Tally& tally = table[{spec.name, dtype}];
      std::string what =
          to_string(link.output) + " " + std::string(name_of(dtype)) + ": " + describe(spec);
      if (!o.fired) {
        tally.same += 1;
        EXPECT_FALSE(o.refused) << what << " changed nothing, yet " << o.first << " was refused";
        continue;
      }
      tally.fired += 1;
      if (o.refused) {
        tally.refused += 1;
        tally.named += o.named;
        tally.by_rms += o.by_rms;
        EXPECT_TRUE(o.named) << what << ": named " << o.first << " instead";
        // The hints of masks know causality alone, those of moved rows positions.
        bool unknown = (spec.name.starts_with("mask_") && !s.request.rows.spans.empty()) ||
                       (spec.name == "shift_rows" && link.output.site >= Site::pooler_in &&
                        link.output.site <= Site::class_logits);
        bool fits = o.by_rms || unknown || hint_fits(spec, o.size, o.hint);
        tally.hints += fits;
        EXPECT_TRUE(fits) << what << ", " << o.size << " times the bound: hint \"" << o.hint
                          << "\"";
      }
      if (o.size > 1) {
        EXPECT_TRUE(o.refused) << what << ": " << o.size << " times the bound, not refused";
      } else {
        tally.below += 1;
        tally.largest_below = std::max(tally.largest_below, o.size);
        EXPECT_TRUE(!o.refused || o.by_rms)
            << what << ": " << o.size << " times the bound, refused at " << o.first;
      }
    }
  }
}

void print(const Table& table) {
  std::cout << std::left << std::setw(16) << "fault" << std::setw(10) << "dtype" << std::right;
  for (const char* column :
       {"same bits", "fired", "refused", "named", "hint fits", "rms alone", "not seen", "largest"})
    std::cout << std::setw(11) << column;
  std::cout << "\n";
  for (const auto& [key, t] : table) {
    std::cout << std::left << std::setw(16) << key.first << std::setw(10) << name_of(key.second)
              << std::right;
    for (std::int64_t n :
         {t.same, t.fired, t.refused, t.named, t.hints, t.by_rms, t.below - t.by_rms})
      std::cout << std::setw(11) << n;
    std::cout << std::setw(11) << std::setprecision(3) << t.largest_below << "\n";
  }
}

std::shared_ptr<const Weights> weights_of(const std::string& name, DType dtype, bool processed) {
  Weights raw = load_weights(golden::folder(name), dtype == DType::f64 ? DType::f64 : DType::f32);
  return std::make_shared<const Weights>(cast(processed ? process(raw, {}) : raw, dtype));
}

Array tokens_of(const std::string& name) {
  return SafetensorsFile::open(golden::folder(name) / "hf.safetensors").tensor("tokens.0");
}

Request clean_request(const Config& config, const Array& tokens) {
  Request request{.rows = Rows::from_tokens(golden::ids(tokens), tokens.size(0), config),
                  .plan = {},
                  .on_demand = {}};
  for (const SiteInfo& row : all_sites())
    if (row.presence == Presence::on_demand)
      for (std::int64_t l = 0; l < (row.per_layer ? config.n_layers : 1); ++l)
        request.on_demand.insert({row.site, l});
  return request;
}

Request plain_request(const Weights& w) {
  return {.rows = Rows::from_tokens(golden::ids(tokens_of("flags")), 2, w.config),
          .plan = {},
          .on_demand = {}};
}

Array ramp(Site site, const CleanRun& s) {
  MutableArray x(shape_of(site, s.weights->config, s.request.rows.extents()),
                 stored_dtype(site, s.weights->dtype));
  for (std::int64_t i = 0; i < x.numel(); ++i) x.set(i, std::cos(static_cast<double>(i)));
  return std::move(x).freeze();
}

class FaultSweep : public testing::TestWithParam<std::tuple<DType, bool>> {
 protected:
  // One thread: twenty thousand tiny runs spend all their time waking others where processors are
  // busy.
  static void SetUpTestSuite() { at::set_num_threads(1); }
  static void TearDownTestSuite() {
    at::set_num_threads(threads);
    print(table);
  }
  inline static int threads = at::get_num_threads();
  inline static Table table = {};  // of all tests together

  DType dtype() const { return std::get<0>(GetParam()); }
  std::shared_ptr<const Weights> weights(const std::string& name) const {
    return weights_of(name, dtype(), std::get<1>(GetParam()));
  }
};
INSTANTIATE_TEST_SUITE_P(All, FaultSweep,
                         testing::Combine(testing::Values(DType::f32, DType::f64, DType::bf16,
                                                          DType::f16),
                                          testing::Bool()),
                         [](const auto& param) {
                           return std::string(name_of(std::get<0>(param.param))) +
                                  (std::get<1>(param.param) ? "_processed" : "_raw");
                         });

TEST_P(FaultSweep, EveryFaultAtEveryHookPointIsRefusedAndNamedFirst) {
  auto w = weights("flags");
  sweep(
      CleanRun(w, clean_request(w->config, tokens_of("flags"))), [](const Link&) { return true; },
      table);
}

// What another checkpoint has: one layer, one head and SiLU; ReLU, which is exact, and an
// unembedding of its own.
TEST_P(FaultSweep, EveryFaultOfOtherActivationsIsRefusedAndNamedFirst) {
  auto silu = weights("one_layer_one_head"), relu = weights("untied");
  sweep(
      CleanRun(silu, clean_request(silu->config, tokens_of("one_layer_one_head"))),
      [](const Link&) { return true; }, table);
  sweep(
      CleanRun(relu, clean_request(relu->config, tokens_of("untied"))),
      [](const Link& link) {
        return link.op == Op::activation || link.output.site == Site::unembed_out;
      },
      table);
}

// A router, its choices and the experts that they mix.
TEST_P(FaultSweep, EveryFaultOfExpertsIsRefusedAndNamedFirst) {
  auto folder = golden::family_folder("mixtral_window");
  auto [type, processed] = GetParam();
  Weights raw = load_weights(folder, type == DType::f64 ? DType::f64 : DType::f32);
  auto w = std::make_shared<const Weights>(cast(processed ? process(raw, {}) : raw, type));
  Array tokens = SafetensorsFile::open(folder / "hf.safetensors").tensor("tokens.0");
  auto of_experts = [](const Link& link) {
    return link.output.layer == 1 && link.output.site >= Site::router_logits &&
           link.output.site <= Site::mlp_out;
  };
  CleanRun plain(w, {.rows = Rows::from_tokens(golden::ids(tokens), tokens.size(0), w->config),
                     .plan = {},
                     .on_demand = {}});
  EXPECT_EQ(std::ranges::count_if(plain.links, of_experts), 10);
  sweep(plain, of_experts, table);
}

// Inputs of their own for queries, keys and values; results summed over heads; every kind of edit.
TEST_P(FaultSweep, EveryFaultOfEditedRunsIsRefusedAndNamedFirst) {
  auto w = weights("flags");
  CleanRun plain(w, plain_request(*w));
  Request request = plain.request;
  request.plan = Plan({{.kind = EditKind::zero, .site = Site::q_input, .where = {.head = 1}},
                       {.kind = EditKind::patch,
                        .site = Site::z,
                        .where = {.head = 2},
                        .source = ramp(Site::z, plain)},
                       {.kind = EditKind::scale,
                        .site = Site::result,
                        .layer = 1,
                        .where = {.head = 0},
                        .factor = 0.5},
                       {.kind = EditKind::mean,
                        .site = Site::mlp_post,
                        .layer = 1,
                        .where = {.pos = std::vector<std::int64_t>{1, 3}}},
                       {.kind = EditKind::add,
                        .site = Site::resid_mid,
                        .source = ramp(Site::resid_mid, plain),
                        .factor = 2},
                       {.kind = EditKind::scale, .site = Site::ln2_scale, .factor = 1.5},
                       {.kind = EditKind::scale, .site = Site::ln2_scale, .factor = 0.5}});
  CleanRun edited(w, request);
  std::set<TensorId> known;
  for (const Link& link : plain.links) known.insert(link.output);
  sweep(
      edited,
      [&](const Link& link) {
        return !known.contains(link.output) || link.op == Op::sum_heads ||
               link.op == Op::head_linear;
      },
      table);
}

// Padding on both sides, kinds of tokens, everything seen both ways, norms of the sums, and heads.
TEST_P(FaultSweep, EveryFaultOfAPaddedEncoderIsRefusedAndNamedFirst) {
  auto [type, processed] = GetParam();
  if (processed) return;  // nothing is folded
  for (const char* name : {"bert_classifier", "bert_masked_lm", "distilbert_classifier"}) {
    Weights loaded =
        load_weights(golden::encoder_folder(name), type == DType::f64 ? DType::f64 : DType::f32);
    auto w = std::make_shared<const Weights>(cast(loaded, type));
    Rows rows = Rows::from_tokens({5, 1, 2, 3, 9, 8, 7, 5}, 2, w->config, {{1, 4}, {0, 3}});
    if (w->config.n_token_types > 0) rows.token_types = {0, 0, 1, 1, 0, 1, 0, 0};
    sweep(
        CleanRun(w, {.rows = std::move(rows), .plan = {}, .on_demand = {}}),
        [](const Link&) { return true; }, table);
  }
}

// Prompts that stand at positions of their own: angles, windows, softcaps and ALiBi.
TEST_P(FaultSweep, EveryFaultOfPaddedAttentionIsRefusedAndNamedFirst) {
  auto [type, processed] = GetParam();
  for (const char* name : {"gemma2_grouped", "bloom_alibi"}) {
    Weights raw =
        load_weights(golden::family_folder(name), type == DType::f64 ? DType::f64 : DType::f32);
    auto w = std::make_shared<const Weights>(cast(processed ? process(raw, {}) : raw, type));
    Rows rows = Rows::from_tokens({5, 1, 2, 3, 4, 9, 8, 7, 5, 6}, 2, w->config, {{2, 5}, {0, 4}});
    sweep(
        CleanRun(w, {.rows = std::move(rows), .plan = {}, .on_demand = {}}),
        [](const Link& link) {
          return link.op == Op::table || link.op == Op::turn || link.op == Op::scores ||
                 link.op == Op::softcap || link.op == Op::distances || link.op == Op::softmax ||
                 link.op == Op::mix || link.output.site == Site::attn_scores;
        },
        table);
  }
}

// Positions [from, to) of [batch, pos, ...].
Array positions(const Array& x, std::int64_t from, std::int64_t to) {
  std::int64_t pos = x.size(1), inner = x.numel() / x.size(0) / pos;
  Shape shape = x.shape();
  shape[1] = to - from;
  MutableArray result(shape, x.dtype());
  for (std::int64_t b = 0; b < x.size(0); ++b)
    for (std::int64_t i = 0; i < (to - from) * inner; ++i)
      result.set(b * (to - from) * inner + i, x[(b * pos + from) * inner + i]);
  return std::move(result).freeze();
}

// A run that continues another: keys and values of earlier positions are uploaded, and so is a
// residual.
TEST_P(FaultSweep, EveryFaultOfAContinuedRunIsRefusedAndNamedFirst) {
  auto w = weights("flags");
  CleanRun whole(w, plain_request(*w));
  const Config& c = w->config;
  std::int64_t pos = whole.request.rows.pos, first = 2;
  Request request{
      .rows = {.batch = 2,
               .pos = pos - first,
               .tokens = {},
               .positions = {},
               .first_layer = 1,
               .end_layer = c.n_layers,
               .start_residual = positions(whole.clean.at({Site::resid_pre, 1}), first, pos),
               .first_pos = first},
      .plan = {},
      .on_demand = {}};
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t p = first; p < pos; ++p) request.rows.positions.push_back(p);
  request.rows.base.push_back({.keys = positions(whole.clean.at({Site::k, 1}), 0, first),
                               .values = positions(whole.clean.at({Site::v, 1}), 0, first)});
  request.validate(c);
  CleanRun continued(w, request);
  sweep(
      continued,
      [](const Link& link) {
        return link.op == Op::given || link.op == Op::concat || link.op == Op::scores ||
               link.op == Op::softmax || link.op == Op::mix;
      },
      table);
}

// As a sweep runs its patches: prompts enter at a later layer behind shared base keys and values,
// are patched in pieces, and only one position and a few logits are read.
TEST_P(FaultSweep, EveryFaultOfASweepsRunIsRefusedAndNamedFirst) {
  auto w = weights("flags");
  CleanRun whole(w, plain_request(*w));
  const Config& c = w->config;
  std::int64_t pos = whole.request.rows.pos, first = 1;
  auto prompts = [&](Site site, std::int64_t layer, std::int64_t from, std::int64_t to) {
    return positions(whole.clean.at({site, layer}), from, to);
  };
  std::int64_t end = c.n_layers, computed = pos - first;
  ASSERT_GE(end, 2);
  Rows rows{.batch = 2,
            .pos = computed,
            .tokens = {},
            .positions = {},
            .first_layer = end - 2,
            .end_layer = end,
            .start_residual = prompts(Site::resid_pre, end - 2, first, pos),
            .first_pos = first,
            .entering = {prompts(Site::resid_pre, end - 1, first, pos)},
            .read_pos = computed - 2,
            .read_tokens = {1, 2, 3, 5, 8, 13, 21, 30}};
  for (std::int64_t b = 0; b < 2; ++b)
    for (std::int64_t p = first; p < pos; ++p) rows.positions.push_back(p);
  for (std::int64_t l = end - 2; l < end; ++l)
    rows.base.push_back(
        {.keys = prompts(Site::k, l, 0, first), .values = prompts(Site::v, l, 0, first)});
  Edit patch{.kind = EditKind::patch, .site = Site::resid_pre, .layer = end - 1};
  for (std::int64_t b = 1; b < 4; b += 2) {
    MutableArray values({c.d_model}, w->dtype);
    for (std::int64_t i = 0; i < c.d_model; ++i)
      values.set(i, std::sin(static_cast<double>(i + b)));
    patch.pieces.push_back({.where = {.batch = b, .pos = std::vector<std::int64_t>{0}},
                            .values = std::move(values).freeze()});
  }
  Request request{.rows = std::move(rows), .plan = Plan({patch}), .on_demand = {}};
  request.validate(c);
  CleanRun swept(w, request);
  EXPECT_EQ(swept.clean.at({Site::unembed_out}).shape(), (Shape{4, 1, 8}));
  EXPECT_EQ(swept.clean.at({Site::attn_scores, end - 1}).shape(), (Shape{4, c.n_heads, 1, pos}));
  EXPECT_EQ(swept.clean.at({Site::attn_scores, end - 2}).shape(),
            (Shape{2, c.n_heads, computed, pos}));
  sweep(
      swept,
      [](const Link& link) {
        return link.op == Op::enter || link.op == Op::select || link.op == Op::concat ||
               link.op == Op::edit || link.op == Op::scores ||
               link.output.site == Site::unembed_out;
      },
      table);
}

// As a sweep carries patches to the end of their layer: from z on, whatever the rows are of.
TEST_P(FaultSweep, EveryFaultOfARunOfRowsIsRefusedAndNamedFirst) {
  auto w = weights("flags");
  CleanRun whole(w, plain_request(*w));
  const Config& c = w->config;
  std::int64_t layer = c.n_layers - 1;
  const Rows& all = whole.request.rows;
  Edit patch{.kind = EditKind::patch, .site = Site::z, .layer = layer};
  for (std::int64_t b = 0; b < 2; ++b) {
    MutableArray values({c.d_head}, w->dtype);
    for (std::int64_t i = 0; i < c.d_head; ++i) values.set(i, std::sin(static_cast<double>(i + b)));
    patch.pieces.push_back({.where = {.batch = b, .head = b, .pos = std::vector<std::int64_t>{0}},
                            .values = std::move(values).freeze()});
  }
  Request request{.rows = {.batch = 2,
                           .pos = all.pos,
                           .tokens = {},
                           .positions = all.positions,
                           .first_layer = layer,
                           .end_layer = layer + 1,
                           .unembeds = false,
                           .start_residual = whole.clean.at({Site::resid_pre, layer}),
                           .start_z = whole.clean.at({Site::z, layer})},
                  .plan = Plan({patch}),
                  .on_demand = {}};
  request.validate(c);
  CleanRun rows(w, request);
  EXPECT_EQ(rows.clean.at({Site::z, layer, 1}).shape(), (Shape{2, all.pos, c.n_heads, c.d_head}));
  EXPECT_FALSE(rows.clean.contains({Site::pattern, layer}));
  sweep(
      rows, [](const Link&) { return true; }, table);
}

// As users meet it: through RunOptions of a model from a folder.
TEST(FaultInjection, AModelRefusesAFaultedRunAndRunsCleanlyAfterwards) {
  HookedTransformer model = HookedTransformer::from_pretrained(golden::folder("three_layers"));
  Array ids = tokens_of("three_layers");
  Tokens tokens = model.tokens_of(golden::ids(ids), ids.size(0));
  auto injector = std::make_shared<FaultInjector>(
      std::vector<FaultSpec>{{.name = "mask_group", .parameters = {{"group", 4}}, .layer = -1}},
      model.config());
  RunOptions options;
  options.interference = interference_of(injector);
  try {
    model.run_with_cache(tokens, options);
    ADD_FAILURE() << "not refused";
  } catch (const VerificationFailed& e) {
    EXPECT_EQ(to_string(e.verdict().first_failure()->id), "blocks.2.attn.hook_attn_scores");
    EXPECT_NE(std::string(e.what()).find("mask: keys of the future are visible"), std::string::npos)
        << e.what();
    for (const Point& p : e.verdict().points)
      EXPECT_EQ(p.passed(), p.id != e.verdict().first_failure()->id)
          << to_string(p.id) << ": what reads a wrong tensor correctly is not wrong itself";
  }
  EXPECT_EQ(injector->fired_names(), std::vector<std::string>{"blocks.2.attn.hook_attn_scores"});
  EXPECT_THROW(model.forward(tokens, options), VerificationFailed);
  EXPECT_EQ(model.run_with_cache(tokens).verdict().status, Status::verified);
}

TEST(FaultInjection, TensorsThatNoFaultChangesAreHandedOnAsTheyAre) {
  Config config = HookedTransformer::from_pretrained(golden::folder("flags")).config();
  at::Tensor x = own_copy(Array::of(std::vector<float>{1, 2, 3, 4}, {1, 2, 2}));
  for (FaultSpec spec : {FaultSpec{.name = "one_element", .hook = "hook_attn_out"},
                         FaultSpec{.name = "scale", .parameters = {{"factor", 1}}}}) {
    Interference none = interference_of(std::make_shared<FaultInjector>(std::vector{spec}, config));
    EXPECT_TRUE(none({Site::resid_pre, 0}, x).is_same(x)) << spec.name;
  }
  Interference scale = interference_of(
      std::make_shared<FaultInjector>(std::vector<FaultSpec>{{.name = "scale"}}, config));
  at::Tensor y = scale({Site::resid_pre, 0}, x);
  EXPECT_FALSE(y.is_same(x));
  EXPECT_EQ(snapshot(x)[3], 4) << "the tensor itself is not written to";
  EXPECT_EQ(snapshot(y)[3], static_cast<float>(4 * 1.01));
  EXPECT_EQ(y.scalar_type(), x.scalar_type());
}

}  // namespace
}  // namespace lenscpp
