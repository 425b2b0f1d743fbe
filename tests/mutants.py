"""Switches off every comparison, every term of a bound and every edit, one at a time, and demands a red test.

Each mutant is a change of a few characters in a copy of the sources (build/mutants/source). The copy is built and
the C++ tests are run; a mutant that no test notices survives, and the script fails. Also run by `make mutants`.

    python3 tests/mutants.py [--only TEXT] [--list]
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
SOURCE = WORK / "source"
BUILD = WORK / "build"

CHECKSUM = "verify/reference/checksum.cc"
BOUNDS, EXACT, OPS = "verify/reference/bounds.cc", "verify/reference/exact.cc", "verify/reference/ops.cc"
MULTIPLY, ERFC = "verify/reference/multiply.cc", "verify/reference/erfc.cc"
WIRING, VERIFIER, CACHE = "verify/reference/wiring.cc", "verify/verifier.cc", "verify/verified_cache.cc"
SEALED, RUN_FILE = "verify/store/sealed_file.cc", "verify/store/run_file.cc"
CALLBACK, POSITIONS = "hooks/callback.cc", "verify/reference/positions.cc"
WRITER, BATCH, FOLDER = "verify/store/sealed_writer.cc", "patching/batch.cc", "patching/batch_folder.cc"
SHARD, MERGED, STATISTICS = "patching/shard_file.cc", "patching/merged_file.cc", "patching/statistics.cc"
TAP, CHECK, SPANS = "hooks/transformer/tap.cc", "verify/processing_check.cc", "verify/reference/spans.cc"
GRID, SWEEP = "patching/patch_grid.cc", "patching/sweep.cc"
LIMITS, PREFLIGHT, MEMORY = "verify/device/limits.cc", "verify/device/preflight.cc", "verify/device/memory_plan.cc"
SPLIT, QUANTIZED = "lens/split_run.cc", "hooks/checkpoint/quantized.cc"
HARM, REORDERING, DRILL = "verify/device/harm.cc", "verify/device/reordering.cc", "verify/device/drill.cc"
DOCTOR = "verify/device/doctor.cc"
DEVICE, FAULT_TABLE = "verify/device/device_faults.cc", "verify/device/device_fault_table.cc"
ADAPTERS, ADAPTER_CONFIG = "hooks/checkpoint/adapters.cc", "hooks/checkpoint/adapter_config.cc"
ADAPTER_CHECK, WEIGHTS = "verify/adapter_check.cc", "hooks/checkpoint/weights.cc"
LINK, PASS = "verify/reference/link.h", "hooks/transformer/transformer.cc"
ROWS, PROMPTS = "hooks/rows.cc", "hooks/prompts.cc"
ATTRIBUTION, PARTS = "lens/attribution.cc", "lens/residual_parts.cc"
PASS, DEVICE_POSITIONS = "hooks/transformer/transformer.cc", "hooks/transformer/positions.cc"
FAMILIES = "hooks/checkpoint/families/"
CONFIG, DECODER, LAYOUT = "hooks/checkpoint/config.cc", FAMILIES + "decoder.cc", FAMILIES + "layout.cc"
GEMMA, GEMMA_PARTS = FAMILIES + "gemma.cc", FAMILIES + "gemma_parts.cc"
# The tests of all families: the reference beside transformers' numbers, and the device pass beside the reference.
GOLDEN, BESIDE = "*Families.*:*FamilyConfigs.*", "*FamilyRuns.*"

# (file, what stands there, what stands there instead, what is switched off). The text must occur exactly once,
# however it is broken into lines. A fifth entry names the tests that must notice; without it, any.
MUTANTS = [
    # adapters
    (ADAPTER_CHECK, "if (!(std::abs(m_.result[at] - expected) <= bound(m_, expected, slack)))", "if (false)", "merged weights"),
    (ADAPTER_CHECK, "if (!(std::abs(m_.result[at] - expected) <= bound(m_, expected, slack)))", "if (std::abs(m_.result[at] - expected) > bound(m_, expected, slack))", "a NaN among merged weights"),
    (ADAPTER_CHECK, "if (!(std::abs(m.result[i] - m.replacement[i]) <= bound(m, m.replacement[i], 0)))", "if (false)", "replaced weights"),
    (ADAPTER_CHECK, "factor = m_.magnitude[first + o] / norm;", "", "DoRA's magnitudes"),
    (ADAPTER_CHECK, "scale_(m.rank_stabilized ? m.alpha / std::sqrt(m.rank) : m.alpha / m.rank)", "scale_(m.alpha / m.rank)", "rank-stabilized scaling in the check"),
    (ADAPTER_CHECK, "m.result.shape() != shape || m.result.empty()", "false", "the shape of merged weights"),
    (ADAPTERS, "m.alpha / (m.rank_stabilized ? std::sqrt(m.rank) : m.rank)", "m.alpha / m.rank", "rank-stabilized scaling"),
    (ADAPTERS, "adapter.config().fan_in_fan_out != in_out", "false", "fan_in_fan_out of another kind of model"),
    (ADAPTERS, "if (shape(key) != needed)", "if (false)", "an adapter of other shapes"),
    (ADAPTERS, "if (!bias && !config.saves(module))", "if (false)", "tensors that are left over"),
    (ADAPTERS, "require_targets();", "", "modules that the file holds nothing for"),
    (ADAPTERS, "require_biases();", "", "biases that were trained and are missing"),
    (ADAPTERS, "!(static_cast<double>(a[0]) == rank)", "false", "a rank that the config does not say"),
    (ADAPTER_CONFIG, "if (layers.empty() || targets.pattern ||", "if (true ||", "layers_to_transform"),
    (ADAPTER_CONFIG, "\"(.*\\\\.)?(\" + pattern + \")\"", "pattern", "patterns match the end of a name"),
    (WEIGHTS, "if (!merged_.contains(name) && !left_out(name))", "if (false)", "a change that nobody reads"),
    (WEIGHTS, "return std::stoll(part) >= *loading_.first_n_layers;", "return true;", "unknown tensors beside left-out layers"),
    # preflight
    (PREFLIGHT, "!(found <= limit.most)", "false", "limits of devices"),
    (PREFLIGHT, "!(found <= limit.most)", "!(found < limit.most)", "a limit is inclusive"),
    (PREFLIGHT, "p.rows >= kTile && p.columns >= kTile ? p.terms : 0", "p.terms", "products of few rows"),
    (PREFLIGHT, "if (sum_of(needed, margin) <= available->bytes) return;", "return;", "memory of loads and runs"),
    (PREFLIGHT, "if (sum_of(needed, margin) <= available->bytes) return;", "if (needed <= available->bytes) return;", "margin for the system"),
    (PREFLIGHT, "sum_of(load.stays, run.host())", "run.host()", "the weights are there when a run begins"),
    (PREFLIGHT, "return one_token ?", "return false ?", "one token alone"),
    (PREFLIGHT, "if (holds(most)) return most;", "", "what was asked for fits"),
    (MEMORY, "if (!use_.recorded) return 0;", "", "what nobody takes is not kept"),
    (MEMORY, "bool rounded = load.dtype != load.loaded->dtype;", "bool rounded = false;", "a loaded model in another dtype"),
    (DOCTOR, "if (longest < 1 || failed <= longest) return {};", "if (longest < 1) return {};", "a length that was verified and then failed"),
    (DOCTOR, "result_.advice == Advice::use_cpu && device_ == \"cpu\"", "false", "a refused CPU"),
    (SPLIT, "if (std::ranges::find(whole.fallbacks, op) == whole.fallbacks.end())", "if (whole.fallbacks.empty())", "fallbacks of later parts"),
    (SPLIT, "before == whole.ambient.end() || before->second != value", "false", "torch's state between parts"),
    (LIMITS, "(!limit.last || torch <= *limit.last)", "true", "the last version with a known bug"),
    (LIMITS, "torch >= limit.first &&", "", "the first version with a known bug"),
    (LIMITS, "os && *os < Version{14, 0}", "false", "bfloat16 needs macOS 14"),
    (MEMORY, "std::max(available.bytes / 20, 64 * kMiB)", "available.bytes / 20", "the least margin"),
    (MEMORY, "!least || bytes < least->bytes", "!least", "the least of what says how much memory there is"),
    (SPLIT, "(*edit.where.batch < 0 ? batch : 0) - first", "(*edit.where.batch < 0 ? batch : 0)", "edits of one prompt in parts"),
    (SPLIT, "part.source = edit.source.rows(first, first + count);", "part.source = edit.source.rows(0, count);", "sources of parts"),
    (SPLIT, "if (edit.kind == EditKind::mean && edit.source.rank() == 0)", "if (false)", "means over the batch are not split"),
    (QUANTIZED, "if (tensor.ends_with(trace.ending)) return std::string(trace.method);", "", "names of quantized tensors"),
    # checksums
    (CHECKSUM, "factor * factor * (x_square_w + b_square)", "100 * factor * factor * (x_square_w + b_square)", "tightness of the residuals' sigma"),
    (CHECKSUM, "c.u_s * c.u_s * y_square + c.u_a * c.u_a * device", "c.u_a * c.u_a * device", "the store's rounding in sigma"),
    (CHECKSUM, "!residuals.clean() || point.failed > 0", "point.failed > 0", "what residuals doubt"),
    (CHECKSUM, "!residuals.clean() || point.failed > 0", "!residuals.clean()", "what the sample doubts"),
    (CHECKSUM, "y.projected[r][k] - x.projected[r][k] - biases[h].projected[k]", "y.projected[r][0] - x.projected[r][0] - biases[h].projected[0]", "three of the four projections"),
    (CHECKSUM, "sample{0, (rows - 1) / kTileRows * kTileRows, rows - 1}", "sample{0}", "last rows of the sample"),
    ("verify/reference/checksum.h", "rows > 0 && worst <= 1", "worst <= 1", "nothing was projected"),
    ("verify/reference/checksum.h", "rms <= residual_rms_limit(rows)", "true", "rms of the residuals"),
    ("verify/reference/exact.h", "&& residual <= 1", "", "residuals of a point"),
    # terms of the bounds
    (BOUNDS, "c.reference * c.u_s * std::abs(reference) * (1 + 0x1p-20)", "0", "rounding of the store"),
    (BOUNDS, " * (1 + 0x1p-20)", "", "second-order term of the store's rounding"),
    (BOUNDS, "(1 + 0x1p-20) + slack + c.eta", "(1 + 0x1p-20) + c.eta", "slack"),
    (BOUNDS, "slack + c.eta", "slack", "absolute floor"),
    (BOUNDS, "return slack == kExact ? 0 : allowed;", "return allowed;", "exactness of exact operations"),
    (BOUNDS, "model == DType::f64 ? 2.0 : 1.0", "1.0", "the reference's own rounding in float64"),
    (BOUNDS, "stored == DType::f16 ? 0x1p-25 : smallest_normal(stored)", "smallest_normal(stored)", "subnormals of float16"),
    (BOUNDS, "stored == DType::bf16 || stored == DType::f16", "false", "narrow stores"),
    (BOUNDS, "(6 * rms + 2 * std::abs(y))", "(2 * std::abs(y))", "random walk of products"),
    (BOUNDS, "(6 * rms + 2 * std::abs(y))", "(60 * rms + 2 * std::abs(y))", "tightness of the products' random walk"),
    (BOUNDS, "(6 * rms + 2 * std::abs(y))", "(6 * rms)", "coherent sums in products"),
    (BOUNDS, "(6 * rms + 2 * std::abs(y))", "(6 * rms + 20 * std::abs(y))", "tightness of coherent products"),
    (BOUNDS, "return 2 * static_cast<double>(terms) * c.u_a * magnitude;", "return 0 * magnitude;", "slack of narrow products"),
    (BOUNDS, "return 2 * static_cast<double>(terms) * c.u_a * magnitude;", "return 20 * static_cast<double>(terms) * c.u_a * magnitude;", "tightness of narrow products"),
    (BOUNDS, "(10 * rms + 2 * std::abs(score))", "(2 * std::abs(score))", "random walk of scores"),
    (BOUNDS, "(10 * rms + 2 * std::abs(score))", "(100 * rms + 2 * std::abs(score))", "tightness of the scores' random walk"),
    (BOUNDS, "(10 * rms + 2 * std::abs(score))", "(10 * rms)", "coherent sums in scores"),
    (BOUNDS, "(c.narrow ? 2 : c.reference) * static_cast<double>(terms)", "10 * (c.narrow ? 2 : c.reference) * static_cast<double>(terms)", "tightness of pattern V"),
    (BOUNDS, "double norm_scale_slack(const Contract& c, double magnitude) { return c.reference * 8 *", "double norm_scale_slack(const Contract& c, double magnitude) { return c.reference * 80 *", "tightness of a norm's scale"),
    (BOUNDS, "double normalize_slack(const Contract& c, double magnitude) { return c.reference * 8 *", "double normalize_slack(const Contract& c, double magnitude) { return c.reference * 80 *", "tightness of normalized"),
    (BOUNDS, "16 * c.u_a * p * (2 + below_max)", "160 * c.u_a * p * (2 + below_max)", "tightness of softmax"),
    (BOUNDS, "double gelu_slack(const Contract& c, double x) { return c.reference * 8 *", "double gelu_slack(const Contract& c, double x) { return c.reference * 80 *", "tightness of GELU"),
    (BOUNDS, "c.u_a * c.u_a * (walk / 6", "c.u_a * c.u_a * (100 * walk / 6", "tightness of the RMS test's random walk"),
    ("verify/reference/bounds.h", "kRmsLimit = 8", "kRmsLimit = 800", "size of the RMS limit"),
    (BOUNDS, "(c.narrow ? 2 : c.reference) * static_cast<double>(terms) * c.u_a * magnitude", "0 * magnitude", "slack of pattern V"),
    (BOUNDS, "double norm_scale_slack(const Contract& c, double magnitude) { return c.reference * 8 *", "double norm_scale_slack(const Contract& c, double magnitude) { return 0 *", "slack of a norm's scale"),
    (BOUNDS, "double normalize_slack(const Contract& c, double magnitude) { return c.reference * 8 *", "double normalize_slack(const Contract& c, double magnitude) { return 0 *", "slack of normalized"),
    (BOUNDS, "return c.reference * 2 * c.u_a * std::abs(product);", "return 0 * product;", "slack of affine"),
    (BOUNDS, "16 * c.u_a * p * (2 + below_max)", "0", "slack of softmax"),
    (BOUNDS, "(2 + below_max)", "2", "the exponent's argument in softmax"),
    (BOUNDS, " + 0x1p-122", "", "floor of softmax"),
    (BOUNDS, "double gelu_slack(const Contract& c, double x) { return c.reference * 8 *", "double gelu_slack(const Contract& c, double x) { return 0 *", "slack of GELU"),
    (BOUNDS, "c.u_a * (8 * std::abs(x) + std::abs(x * y))", "c.u_a * (0 * std::abs(x) + std::abs(x * y))", "slack of SiLU"),
    (BOUNDS, "return c.reference * static_cast<double>(terms) * c.u_a * magnitude;", "return 0 * magnitude;", "slack of sums"),
    (BOUNDS, "return c.reference * 2 * c.u_a * std::abs(y);", "return 0 * y;", "slack of scaling"),
    (BOUNDS, "(2 * c.u_x + c.u_x * c.u_x) * magnitude", "0 * magnitude", "slack of declared TF32"),
    (BOUNDS, "(2 * c.u_x + c.u_x * c.u_x) * magnitude", "(80 * c.u_x) * magnitude", "tightness of declared TF32"),
    (BOUNDS, "c.u_x > 0 ? square / 9 : 0", "c.u_x > 0 ? square * 9 : 0", "eight bits in a run declared TF32"),
    (BOUNDS, "c.u_x > 0 ? square / 9 : 0", "0", "the RMS test of declared TF32"),
    (BOUNDS, "model == DType::f32 && precision == MatmulPrecision::tf32", "true", "TF32 that nobody declared"),
    (BOUNDS, "model == DType::f32 && precision == MatmulPrecision::tf32", "precision == MatmulPrecision::tf32", "declared TF32 of other dtypes"),
    (BOUNDS, "return c.reference * 3 * c.u_a * magnitude;", "return 0 * magnitude;", "slack of rotary positions"),
    (BOUNDS, "return c.reference * 3 * c.u_a * magnitude;", "return c.reference * 30 * c.u_a * magnitude;", "tightness of rotary positions"),
    (BOUNDS, "c.u_a * (8 * std::abs(y) + 2 * std::abs(x))", "0 * (x + y)", "slack of softcaps"),
    (BOUNDS, "c.u_a * (8 * std::abs(y) + 2 * std::abs(x))", "c.u_a * (80 * std::abs(y) + 20 * std::abs(x))", "tightness of softcaps"),
    (OPS, "e.slack = e.value.cwiseAbs() * 0x1p-50;", "e.slack = e.value.cwiseAbs().array() * 0x1p-50 + 0x1p-50;", "distances of nothing are exact"),
    # kinds of the reference: each wrong switch is caught by transformers' numbers
    (OPS, "apart_(link.pairs == RotaryPairs::halves ? pairs_ : 1)", "apart_(1)", "halves of rotary heads"),
    (OPS, "first = x * c - y * s;", "first = x * c + y * s;", "the sense of rotary positions"),
    (OPS, "for (double& w : w_) w += link.offset;", "", "norms that add one to their weight"),
    (LINK, "std::max(s.begin, behind - *window)", "std::max(s.begin, behind - *window - 1)", "a window that is one too wide"),
    (OPS, "double mean = centres_ ? x.mean() : 0, mean_abs = centres_ ? x.abs().mean() : 0; e.value(r, 0)", "double mean = x.mean(), mean_abs = x.abs().mean(); e.value(r, 0)", "RMSNorm's scale does not centre"),
    (WIRING, "if (c.scores_softcap) return g.softcap(at(Site::attn_scores), raw, *c.scores_softcap);", "if (c.scores_softcap) return g.copy(at(Site::attn_scores), raw);", "softcap of scores"),
    (WIRING, "if (w.config.logits_softcap) g.softcap({Site::logits}, out, *w.config.logits_softcap);", "if (w.config.logits_softcap) g.copy({Site::logits}, out);", "softcap of logits"),
    (WIRING, "bool windowed = c.turns_by_windowed_rope(l);", "bool windowed = false;", "angles of layers with a window"),
    (POSITIONS, "if (turned > rope.high_freq) return frequency;", "", "short wavelengths of llama3"),
    (POSITIONS, "std::cos(angle) * rope.attention_factor", "std::cos(angle)", "yarn's attention factor"),
    (POSITIONS, "static_cast<double>(h - power) + 0.5", "static_cast<double>(h - power) + 1", "ALiBi of heads beyond a power of two"),
    # families, the reference alone: transformers' numbers are not reproduced
    (WIRING, "g.scores(at(last ? Site::attn_scores : Site::raw_scores), q, keys, c.attn_divisor(l), c.window_of(l), c.causal)", "g.scores(at(last ? Site::attn_scores : Site::raw_scores), q, keys, c.attn_divisor(l), c.window, c.causal)", "families: layers without a window", GOLDEN),
    (WIRING, "c.attn_divisor(l), c.window_of(l)", "c.scores_divisor ? 1.0 : c.attn_divisor(l), c.window_of(l)", "families: the divisor of scores in the reference", GOLDEN),
    (WIRING, "if (c.qk_norm != QkNorm::none) {", "if (false) {", "families: norms of queries and keys in the reference", GOLDEN),
    (WIRING, "case Topology::parallel: { TensorId mlp_out = mlp(x);", "case Topology::parallel: { TensorId mlp_out = mlp(g.add(at(Site::resid_mid), x, attn_out));", "families: the parallel MLP in the reference", GOLDEN),
    (WIRING, "if (c.embed_norm) return g.norm({{Site::embed_ln_scale}", "if (false) return g.norm({{Site::embed_ln_scale}", "families: the embedding's norm in the reference", GOLDEN),
    (WIRING, "g.multiply(at(Site::mlp_post), act, linear)", "g.multiply(at(Site::mlp_post), pre, linear)", "families: the gate's activation in the reference", GOLDEN),
    (WIRING, "if (!normed_behind()) return x; return g.norm", "if (!normed_behind()) return x; if (true) return g.copy(at(out), x); return g.norm", "families: norms behind attention and MLP in the reference", GOLDEN),
    (POSITIONS, "double ramp = yarn_ramp(static_cast<double>(pair), rope, rotary.dimensions);", "double ramp = 1;", "families: yarn's ramp in the reference", GOLDEN),
    (POSITIONS, "std::pow(stretched, n / (n - 2))", "stretched", "families: the base of dynamic angles in the reference", GOLDEN),
    (OPS, "(in + 0.044715 * in.cube())", "in", "families: the cube in GELU's tanh in the reference", GOLDEN),
    # families, the device alone: honest runs are refused
    (PASS, "x = in.narrow(3, 0, pairs), y = in.narrow(3, pairs, pairs);", "x = in.narrow(3, pairs, pairs), y = in.narrow(3, 0, pairs);", "families: halves of rotary heads on the device", BESIDE),
    (PASS, "x = in.select(4, 0), y = in.select(4, 1);", "x = in.select(4, 1), y = in.select(4, 0);", "families: adjacent pairs on the device", BESIDE),
    (PASS, "at::sqrt(at::add(mean_square, c.norm_eps))", "at::sqrt(mean_square)", "families: epsilon of RMSNorm on the device", BESIDE),
    (PASS, "in, {c.d_model}, {}, {}, c.norm_eps)", "in, {c.d_model}, {}, {}, 1e-12)", "families: epsilon of LayerNorm on the device", BESIDE),
    (PASS, 'return at::gelu(x, "tanh");', 'return at::gelu(x, "none");', "families: GELU's tanh on the device", BESIDE),
    (PASS, 'return at::gelu(x, "none");', 'return at::gelu(x, "tanh");', "families: GELU's error function on the device", BESIDE),
    (PASS, ": c.norm_adds_one ? at::addcmul(n, n, w)", ": false ? at::addcmul(n, n, w)", "families: norms that add one on the device", BESIDE),
    (PASS, "at::tril(hidden, rows.first_pos - *window)", "at::tril(hidden, rows.first_pos - *window - 1)", "families: a window one too wide on the device", BESIDE),
    (PASS, "c.window_of(l) ? windowed_mask : mask", "c.window ? windowed_mask : mask", "families: layers without a window on the device", BESIDE),
    (PASS, "at::add(softcap(raw, *c.scores_softcap), mask_added)", "raw", "families: softcap of scores on the device", BESIDE),
    (PASS, "tap(Site::logits, 0, softcap(logits, *c.logits_softcap))", "tap(Site::logits, 0, logits)", "families: softcap of logits on the device", BESIDE),
    (PASS, "if (c.qk_norm != QkNorm::none) {", "if (false) {", "families: norms of queries and keys on the device", BESIDE),
    (PASS, "at::Tensor attn_out = attention(x), mlp_out = mlp(x);", "at::Tensor attn_out = attention(x), mlp_out = mlp(at::add(x, attn_out));", "families: the parallel MLP on the device", BESIDE),
    (PASS, "1 / c.attn_divisor(l)", "1 / std::sqrt(static_cast<double>(c.d_head))", "families: the divisor of scores on the device", BESIDE),
    (PASS, "c.turns_by_windowed_rope(l) ? windowed_turning : turning", "turning", "families: angles of layers with a window on the device", BESIDE),
    (PASS, "at::add(raw, tap(Site::position_bias, l, bias))", "raw", "families: ALiBi on the device", BESIDE),
    (DEVICE_POSITIONS, "4 * (2 * (h - n) + 1)", "4 * (2 * (h - n) + 2)", "families: slopes beyond a power of two on the device", BESIDE),
    (DEVICE_POSITIONS, "if (wavelength < context / rope.high_freq) continue;", "", "families: short wavelengths of llama3 on the device", BESIDE),
    (DEVICE_POSITIONS, "frequencies[i] *= (1 - extrapolated) / rope.factor + extrapolated;", "frequencies[i] /= rope.factor;", "families: yarn's ramp on the device", BESIDE),
    (DEVICE_POSITIONS, "rope.attention_factor * std::cos(", "std::cos(", "families: yarn's attention factor on the device", BESIDE),
    (DEVICE_POSITIONS, "d / (d - 2)", "1.0", "families: the base of dynamic angles on the device", BESIDE),
    # families, the config that both passes read: they agree, and transformers does not
    (CONFIG, "divisor = scores_divisor.value_or(divisor);", "", "families: query_pre_attn_scalar in both", GOLDEN),
    (CONFIG, "return rotary && rotary->windowed_rope && window_of(layer);", "return false;", "families: angles of layers with a window in both", GOLDEN),
    (CONFIG, "l < windowed_layers.size() && windowed_layers[l] ? window", "l < windowed_layers.size() ? window", "families: which layers have a window, in both", GOLDEN),
    (FAMILIES + "gptj.cc", ".pairs = RotaryPairs::adjacent", ".pairs = RotaryPairs::halves", "families: adjacent pairs in both", GOLDEN),
    (DECODER, ".pairs = RotaryPairs::halves", ".pairs = RotaryPairs::adjacent", "families: halves in both", GOLDEN),
    (DECODER, "{\"gelu_new\", Activation::gelu_tanh}", "{\"gelu_new\", Activation::gelu_erf}", "families: GELU's tanh in both", GOLDEN),
    (DECODER, "{\"gelu\", Activation::gelu_erf}", "{\"gelu\", Activation::gelu_tanh}", "families: GELU's error function in both", GOLDEN),
    (GEMMA, "if (config.activation == Activation::gelu_erf) config.activation = Activation::gelu_tanh;", "", "families: what Gemma's hidden_act gelu means, in both", GOLDEN),
    (DECODER, "rope.base = positive(fields, \"rope_theta\", base);", "positive(fields, \"rope_theta\", base);", "families: rope_theta of rope_parameters in both", GOLDEN),
    (DECODER, "fields.number({\"rope_theta\", \"rotary_emb_base\"}).value_or(absent.base)", "(fields.number({\"rope_theta\", \"rotary_emb_base\"}), absent.base)", "families: rope_theta beside the others, in both", GOLDEN),
    (DECODER, "rope.low_freq = positive(fields, \"low_freq_factor\");", "rope.low_freq = positive(fields, \"low_freq_factor\") / 2;", "families: llama3's low_freq_factor in both", GOLDEN),
    (DECODER, "case RopeScaling::llama3: rope.trained_context = trained.value_or(context);", "case RopeScaling::llama3: rope.trained_context = context;", "families: llama3's trained context in both", GOLDEN),
    (DECODER, "case RopeScaling::yarn: rope.trained_context = trained.value_or(context);", "case RopeScaling::yarn: rope.trained_context = context;", "families: yarn's trained context in both", GOLDEN),
    (DECODER, "rope.attention_factor = attention_factor(fields, rope.factor);", "attention_factor(fields, rope.factor);", "families: yarn's attention factor in both", GOLDEN),
    (DECODER, "rope.beta_slow = positive(fields, \"beta_slow\", 1);", "rope.beta_slow = 2 * positive(fields, \"beta_slow\", 1);", "families: yarn's beta_slow in both", GOLDEN),
    (GEMMA_PARTS, "config.norm_adds_one = true;", "", "families: Gemma's norms in both", GOLDEN),
    (GEMMA_PARTS, "config.embed_scale = std::sqrt(static_cast<double>(config.d_model));", "config.embed_scale = 1;", "families: Gemma's embedding in both", GOLDEN),
    (LAYOUT, "for (double& x : row) x *= constant.get(0);", "", "families: the scale of an embedding in both", GOLDEN),
    (GEMMA_PARTS, "config.scores_softcap = cap(", "cap(", "families: softcap of scores in both", GOLDEN),
    (GEMMA_PARTS, "config.logits_softcap = cap(", "cap(", "families: softcap of logits in both", GOLDEN),
    (FAMILIES + "gemma2.cc", "push_back(l % 2 == 0)", "push_back(l % 2 == 1)", "families: Gemma 2's windows in both", GOLDEN),
    (FAMILIES + "gemma3.cc", "push_back((l + 1) % pattern != 0)", "push_back(l % pattern != 0)", "families: Gemma 3's windows in both", GOLDEN),
    (FAMILIES + "gemma3.cc", "fields.number({\"rope_local_base_freq\"}).value_or(kWindowedBase)", "(fields.number({\"rope_local_base_freq\"}), kWindowedBase)", "families: Gemma 3's second base in both", GOLDEN),
    (FAMILIES + "qwen_windows.cc", "static_cast<double>(l) >= first", "static_cast<double>(l) > first", "families: Qwen's windows in both", GOLDEN),
    (FAMILIES + "qwen_windows.cc", "if (fields.flag({\"use_sliding_window\"}, false)) config.window = window;", "fields.flag({\"use_sliding_window\"}, false); config.window = window;", "families: use_sliding_window in both", GOLDEN),
    (FAMILIES + "gpt_neox.cc", "fields.flag({\"use_parallel_residual\"}, true) ?", "(fields.flag({\"use_parallel_residual\"}, true), true) ?", "families: use_parallel_residual in both", GOLDEN),
    (FAMILIES + "gpt_neo.cc", "config.scale_attn_by_sqrt_d_head = false;", "", "families: GPT-Neo's scores in both", GOLDEN),
    (FAMILIES + "gpt_neo.cc", "push_back(kind == \"local\")", "push_back(kind == \"global\")", "families: GPT-Neo's windows in both", GOLDEN),
    (FAMILIES + "bloom.cc", "config.embed_norm = true;", "", "families: BLOOM's norm of the embedding in both", GOLDEN),
    (FAMILIES + "mistral.cc", "if (!fields.has(\"sliding_window\")) config.window = 4096;", "", "families: a window that config.json does not name, in both", GOLDEN),
    (FAMILIES + "gptj.cc", "kTurnedWhereAbsent = 64;", "kTurnedWhereAbsent = 32;", "families: turned dimensions that config.json does not name, in both", GOLDEN),
    (FAMILIES + "gpt_neox.cc", "{.share = 0.25}", "{.share = 1}", "families: the turned share that config.json does not name, in both", GOLDEN),
    (FAMILIES + "opt.cc", "kFirstPosition = 2;", "kFirstPosition = 1;", "families: OPT's first position in both", GOLDEN),
    (FAMILIES + "llama.cc", "small_number({\"rms_norm_eps\"}, 1e-6)", "small_number({\"rms_norm_eps\"}, 1e-6) * 2", "families: epsilon of a config, in both", GOLDEN),
    # comparisons
    (EXACT, "if (std::isnan(device) || std::isnan(reference)) return kInfinity;", "if (std::isnan(device) || std::isnan(reference)) return 0;", "refusal of NaN"),
    (EXACT, "&& std::signbit(device) == std::signbit(reference) ? 1", "? 1", "sign of an overflow"),
    (EXACT, "return overflows && !std::isinf(reference)", "return !std::isinf(reference)", "refusal of infinity"),
    (EXACT, "if (std::isinf(reference)) return kInfinity;", "if (std::isinf(reference)) return 0;", "refusal of numbers where -inf must be"),
    (EXACT, "if (!(ratio <= 1)) {", "if (false) {", "the comparison itself"),
    (EXACT, "error[j] = e <= allowed ? e : kInfinity;", "error[j] = e < kInfinity ? e : 0;", "the comparison of rows"),
    (EXACT, "t_.failed += 1;", "", "counting of failures"),
    (EXACT, "failed += other.failed;", "", "failures found by another thread"),
    ("verify/reference/exact.h", "&& compared + projected == numel(shape)", "", "the count of compared elements"),
    (EXACT, "t_.error_square += square;", "", "the RMS test of what nothing is suspected of"),
    (EXACT, "t_.error_square += run_.error_square();", "", "the RMS test"),
    (EXACT, "run_.tolerance[j] += run_.widening[j];", "", "widening across gaps of a record"),
    ("verify/reference/exact.h", "compared > 0 && compared + projected == numel(shape)", "compared + projected == numel(shape)", "refusal of an empty comparison"),
    ("verify/reference/exact.h", "&& rms_ratio <= kRmsLimit", "", "the RMS limit"),
    # operations of the reference
    (LINK, "if (causal) s.end = std::min(s.end, behind);", "", "the causal mask"),
    (LINK, "behind = query + first_query + 1;", "behind = query + first_query + 2;", "a causal mask that is off by one"),
    (LINK, "Span s = spans.empty() ? Span{0, keys}", "Span s = true ? Span{0, keys}", "padding among the keys"),
    (LINK, ": spans[static_cast<std::size_t>(prompt) % spans.size()].begin;", ": position;", "the first token behind padding"),
    (OPS, "(b.offset / b.cols + r) / heads_ % (cos_.size(0) * cos_.size(1))", "(b.offset / b.cols + r) / heads_ % cos_.size(1)", "angles of prompts of their own"),
    (SPANS, "if (s.row(i).maxCoeff() == -std::numeric_limits<double>::infinity()) continue;", "", "gaps before queries that see nothing"),
    (PASS, "return at::masked_fill(pattern, at::eq(at::amax(scores, {-1}, true), kHidden), 0);", "return pattern;", "queries that see nothing, on the device"),
    (PASS, "padding.narrow(1, 0, span.begin).fill_(kHidden);", "", "padding before the tokens, on the device"),
    (PASS, "b * pos + rows.span_of(b).begin", "b * pos", "the first token behind padding, on the device"),
    (WIRING, ".spans = request_.rows.spans, .first_query", ".first_query", "padding in the wiring"),
    (WIRING, "if (w.config.norm_placement != NormPlacement::sum) return x;", "return x;", "norms of the sums"),
    (WIRING, "c.attn_divisor(l), c.window_of(l), c.causal)", "c.attn_divisor(l), c.window_of(l), true)", "attention both ways"),
    (WIRING, "types.resize(static_cast<std::size_t>(rows.batch * rows.pos));", "types.assign(static_cast<std::size_t>(rows.batch * rows.pos), 0);", "kinds of tokens"),
    (ROWS, "fit &= residual.rank() == 0 || residual.size(0) % prompts == 0;", "", "prompts that enter beside padding"),
    (ROWS, "if (!config.causal && first_pos > 0)", "if (false)", "positions left out where everything is seen"),
    (ROWS, "if (type < 0 || type >= config.n_token_types)", "if (false)", "kinds of tokens that there are not"),
    (PROMPTS, "again != row.end())", "again == row.end() + 1)", "holes in a mask"),
    (PROMPTS, "if (begin == row.end())", "if (false)", "prompts of padding alone"),
    (PARTS, "if (p < record.spans[b].begin || p >= record.spans[b].end)", "if (false)", "an analysis of padding"),
    (GRID, "pos < span.begin || pos >= span.end)", "false)", "a metric that reads padding"),
    (SPLIT, "if (part[i] != parts[0][i])", "if (false)", "a table that is wrong in a later part"),
    (ROWS, "if (edit.kind == EditKind::mean && edit.source.empty() && !rows.spans.empty())", "if (false)", "means over padding"),
    (OPS, "if (factors(r, 0) == 0)", "if (false)", "infinities of experts that were not chosen"),
    (SWEEP, "positions.push_back(position_in(span_of(b), p));", "positions.push_back(p);", "positions of padded rows behind attention"),
    (OPS, "if (row.hasNaN()) return row.size();", "", "a NaN among probabilities is chosen by nobody"),
    (OPS, "(row.head(j).array() == row[j]).count()", "0", "of equal experts the first is chosen"),
    (OPS, "place < b.cols) value(r, place)", "place <= b.cols - 1) value(r, 0)", "the order of the chosen"),
    (OPS, "counts[j] = place_in(x, j) < chosen_ ? 1 : 0;", "counts[j] = 1;", "how many experts are mixed"),
    (OPS, "e.value(r, j) = x[j] / sum;", "e.value(r, j) = x[j];", "shares of experts are over their sum"),
    (OPS, "x.cwiseAbs().dot(counts) / std::abs(sum)", "1", "cancellation in the sum of the chosen"),
    (OPS, "one_a_row_ || b_.shape() == rows", "one_a_row_ || true", "factors a row of another shape"),
    (BOUNDS, "(static_cast<double>(terms) * sizes + 2) * std::abs(quotient)", "0 * std::abs(quotient)", "slack of shares"),
    (BOUNDS, "(static_cast<double>(terms) * sizes + 2) * std::abs(quotient)", "20 * (static_cast<double>(terms) * sizes + 2) * std::abs(quotient)", "tightness of shares"),
    (SPANS, "unsure |= may_pass(x.row(r), e.row(r), order, i, chosen);", "", "errors that may change which experts are mixed"),
    (SPANS, "if (may_pass(x.row(r), e.row(r), order, i, i + 1))", "if (false)", "errors that may change the order of experts"),
    (SPANS, "counts[j] * (e(r, j) + y * e_sum) / (sum - e_sum)", "counts[j] * e(r, j) / sum", "errors of the sum of the chosen"),
    (SPANS, "(b + e_rows) + sizes.array().colwise() * e_rows", "b", "errors of a factor a row"),
    (OPS, "(x - mean).square().mean() + eps_", "(x - mean).square().mean()", "epsilon of the norm"),
    (OPS, "(x - mean) / scale", "x / scale", "centring of the norm"),
    (OPS, "e.value.leftCols(in.k.runs()) /= divisor_;", "", "the scores' divisor"),
    (OPS, "root[j] = least * squares(r, j) + added[j];", "root[j] = 4 * squares(r, j) + added[j];", "the lower bound of products' magnitudes"),
    (OPS, "row.abs() * by_value", "row.abs()", "Cauchy and Schwarz in the lower bound"),
    (OPS, "differ += !same;", "", "the comparison of copies"),
    (OPS, "same &= (x[i] & 0x7fff) <=", "same |= (x[i] & 0x7fff) <", "narrow NaN that was copied"),
    (OPS, "(weights.col(terms - 1) == 0).all()", "(weights.col(terms - 1) == 0).any()", "keys that only some queries look at"),
    (MULTIPLY, "square < kLeast ? 0 : square", "square", "squares below the normal floats"),
    (MULTIPLY, "1 - static_cast<double>(terms + 4) * 0x1p-23", "1", "roundings of the lower bound"),
    (ERFC, "x[i] < 0 ? left : right", "right", "erfc left of zero"),
    (OPS, "e.value.rowwise() += bias;", "", "biases"),
    (OPS, "case EditKind::zero: value = 0; return;", "case EditKind::zero: return;", "zero edits in the reference"),
    (OPS, "case EditKind::patch: value =", "case EditKind::patch: (void)", "patches in the reference"),
    (OPS, "value += round_to(c_.stored, edit_.factor * brought_[n]);", "", "added vectors in the reference"),
    (OPS, "value *= edit_.factor;", "", "scaling in the reference"),
    (OPS, "value = mean_[group];", "", "means in the reference"),
    (WIRING, "for (const Edit* edit : request_.plan.at(out.site, out.layer)) {", "for (const Edit* edit : std::vector<const Edit*>{}) {", "edits in the wiring"),
    (WIRING, "at(Site::resid_mid), x, attn_out", "at(Site::resid_mid), attn_out, attn_out", "the residual connection"),
    # edits on the device
    (TAP, "case EditKind::zero: return at::where(mask, at::zeros_like(x), x);", "case EditKind::zero: return x;", "zero edits on the device"),
    (TAP, "case EditKind::patch: return at::where(mask, values_of(edit, indices, x), x);", "case EditKind::patch: return x;", "patches on the device"),
    (TAP, "case EditKind::mean: return at::where(mask, mean_of(edit, x), x);", "case EditKind::mean: return x;", "means on the device"),
    (TAP, "case EditKind::add: return at::where(mask, at::add(x, values_of(edit, indices, x)), x);", "case EditKind::add: return x;", "added vectors on the device"),
    (TAP, "case EditKind::scale: return at::where(mask, at::mul(x, edit.factor), x);", "case EditKind::scale: return x;", "scaling on the device"),
    # what the verifier makes of it
    # callbacks
    (CALLBACK, "if (after.dtype() != before.dtype() || after.shape() != before.shape())", "if (false)", "shape and dtype of what a hook returns"),
    (CALLBACK, "if (std::isfinite(x) || (scores && std::isinf(x) && x < 0)) continue;", "continue;", "refusal of what is not finite from a hook"),
    (CALLBACK, "if (scores) check_each_query_sees_a_key(callback, after);", "", "refusal of a query without keys"),
    (CALLBACK, "(a.empty() || std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0)", "a.to_doubles() == b.to_doubles()", "comparison of bits"),
    (TAP, "if (changed) check_returned(callback, before, *returned);", "", "the check of what a hook returns"),
    (TAP, "return changed ? upload(after, x.device()) : x;", "return x;", "uploading what a hook returned"),
    (TAP, "if (sink_ != nullptr) sink_->take_returned(id, after);", "", "telling what a hook returned"),
    ("hooks/rows.cc", "if (!rows.reach(site, layer)) refuse(what +", "if (false) refuse(what +", "refusal of edits and hooks that are never reached"),
    (WIRING, "for (const Callback* callback : request_.callbacks_at(out.site, out.layer)) {", "for (const Callback* callback : std::vector<const Callback*>{}) {", "hooks in the wiring"),
    (VERIFIER, "point.failed += std::signbit(value[i]) != std::signbit(link.given[i]);", "", "the bits of what a hook returned"),
    (VERIFIER, "if (link.op == Op::callback && (link.given.shape() != shape || link.given.dtype() != stored))", "if (false)", "values of hooks of which nobody told"),
    (VERIFIER, "if (after[i] != before[i]) result.set(i, after[i]);", "result.set(i, after[i]);", "drift through what a hook left alone"),
    (VERIFIER, "if (!request.plan.empty() || !request.callbacks.empty())", "if (!request.plan.empty())", "refusal of recorded runs with hooks"),
    (VERIFIER, ".why = \"never computed\"", ".compared = 1", "tensors that were never computed"),
    (VERIFIER, "if (verdict.first_failure() != nullptr || verdict.n_compared() + verdict.n_projected() != total || total == 0) verdict.status = Status::invalid;", "", "the verdict of a run"),
    (VERIFIER, "if (verdict.first_failure() != nullptr || verdict.n_compared() == 0) verdict.status = Status::invalid;", "", "the verdict of a recorded run"),
    (VERIFIER, "bool shaped = value.shape() == shape && value.dtype() == stored;", "bool shaped = value.numel() == numel(shape);", "shape and dtype of a tensor"),
    (VERIFIER, "if (value.shape() != shape || value.dtype() != stored)\n", "if (false)\n", "shape and dtype of a recorded tensor"),
    (VERIFIER, " || !options_.keep || !options_.keep(id.site, id.layer)) return;", ") return;", "the filter"),
    (VERIFIER, "      live_.erase(live);\n", "", "dropping what nobody reads any more"),
    (CACHE, "if (entry.value.digest() != entry.digest)", "if (false)", "the digest of a cached buffer"),
    (CHECK, "if (!(d.nats <= limit))", "if (false)", "the check of processed weights"),
    (SPANS, "e.middleCols(h * in, in) * w.cwiseAbs()", "0 * e.middleCols(h * in, in) * w.cwiseAbs()", "size of the propagation through products"),
    (SPANS, "sum.row(r) += other.row(r % other.rows());", ";", "propagation of the second summand"),
    (SPANS, "return array_of(norm_scale(error_matrix(errors[0], in[0], d)), out);", "return {};", "propagation through a norm's scale"),
    (SPANS, "mean_e[r] + y(r, j) * e_s(r, 0)", "mean_e[r]", "propagation of a scale's error"),
    (SPANS, "(e(r, j) + mean_e[r] + y(r, j)", "(e(r, j) + y(r, j)", "propagation of a mean's error"),
    (SPANS, "w.cwiseAbs().asDiagonal()", "w.cwiseAbs().cwiseMin(0).asDiagonal()", "propagation through an affine map"),
    (SPANS, "aq * bk.transpose() + bq * (ak + bk).transpose()", "aq * bk.transpose()", "propagation of queries' errors"),
    (SPANS, "aq * bk.transpose() + bq * (ak + bk).transpose()", "bq * (ak + bk).transpose()", "propagation of keys' errors"),
    (SPANS, "std::expm1(e(i, j) + worst)", "std::expm1(e(i, j))", "propagation through a softmax's sum"),
    (SPANS, "(values + bv) + p.middleRows(first, out[1]) * bv", "(values + bv)", "propagation of values' errors"),
    (SPANS, "Mat e = e_p.middleRows(first, out[1]) * (values + bv) +", "Mat e =", "propagation of patterns' errors"),
    (SPANS, "lipschitz(link.activation) * e", "0 * e", "propagation through an activation"),
    (SPANS, "e.middleRows(r * heads, heads).colwise().sum()", "e.middleRows(r * heads, 1).colwise().sum()", "propagation through a sum of heads"),
    ("hooks/checkpoint/processing.cc", "if (first_not_finite(part)) finite = false;", "", "weights that processing made infinite"),
    ("hooks/checkpoint/processing.cc", "std::min(end * kColumns, width)", "std::min(end * kColumns, width - 1)", "the last column of the unembedding's mean"),
    ("verify/processing_check.cc", "if (((x - y - mean).abs() <= allowed * size).all()) continue;", "continue;", "rows of processed tables"),
    # grids
    (GRID, "if (!(std::abs(range) > least))", "if (false)", "refusal of a scale within rounding"),
    (GRID, "if (!std::isfinite(value)) refuse(\"the metric is \" + short_number(value) + \" \" + name_of_cell", "if (false) refuse(\"the metric is \" + short_number(value) + \" \" + name_of_cell", "refusal of a cell that is no number"),
    (GRID, "if (!std::isfinite(value)) refuse(\"the metric is \" + short_number(value) + \" for the \"", "if (false) refuse(\"the metric is \" + short_number(value) + \" for the \"", "refusal of a baseline that is no number"),
    (GRID, "for (const Patch& patch : group) verdict_.refused_cells.push_back(patch.cell);", "", "which cells were refused"),
    (GRID, "if (first_) throw GridFailed(*first_, std::move(grid));", "", "the refusal of a grid"),
    (GRID, "if (r.model_digest != model.digest() || r.dtype != name_of(model.options().dtype))", "if (false)", "runs of another model as sources"),
    (GRID, "if (!r.plan.empty() || !r.hooks.empty())", "if (false)", "edited runs as sources"),
    (GRID, "if (a.batch != b.batch || a.pos != b.pos)", "if (false)", "pairs of unequal lengths"),
    ("patching/grid_file.cc", "if (grid.verdict.status != Status::verified || !grid.verdict.refused_cells.empty() || grid.verdict.n_compared == 0 || !finite)", "if (false)", "the verdict of a saved grid"),
    ("patching/grid_file.cc", "if (grid.verdict.status != Status::invalid) grid.verdict.status = Status::unverified;", "", "the mark of a grid through the unverified door"),
    ("patching/grid_file.cc", "if (state.values.shape() != shape || state.values.dtype() != DType::f64 || shape.empty())", "if (false)", "the shape of saved values"),
    (GRID, "for (const std::string& name : grid_hooks(o_.site, model_.config())) source()[name];", "", "sources that changed during a sweep"),
    ("patching/metrics.cc", "if (id < 0 || id >= vocab)", "if (id >= vocab)", "negative tokens of a metric"),
    ("patching/metrics.cc", "if (values.size() != 1 && static_cast<std::int64_t>(values.size()) != logits.size(0))", "if (false)", "how many values a metric returned"),
    (GRID, "for (const std::string& name : PatchRuns::needed(o_.site, model_.config())) whole_base[name];", "", "a base run that changed during a sweep"),
    (GRID, "sample(patches, denoises() ? corrupted : clean);", "", "cells that are run again"),
    (SWEEP, "to.batch = row + b;", "to.batch = b;", "the row of a patch"),
    (SWEEP, "patch.first_pos = read ? *first :", "patch.first_pos = read ? *first + 1 :", "the first position that changes"),
    (SWEEP, "first == positions.end() || *first <= *read_pos_;", "true;", "patches behind the position that is read"),
    (SWEEP, "(only_read_position(patch.layer) && p != *read_pos_)", "false", "positions that the last layer does not compute"),
    (SWEEP, "std::ranges::stable_sort(group, {}, [this](const Patch& p) { return start_layer(p); });", "", "the order in which patches enter"),
    (SWEEP, "row * static_cast<std::size_t>(b * pos_ + first_pos), size", "row * static_cast<std::size_t>(b * pos_), size", "the positions of a residual"),
    (SWEEP, "to + row * static_cast<std::size_t>(positions[i] - first_pos)", "to + row * i", "where a carried row belongs"),
    (SWEEP, "patch.layer + 1 < model_.config().n_layers", "true", "the last layer runs in one part"),
    (SWEEP, "to.batch = row++;", "to.batch = row;", "the row of a patch that is carried"),
    (GRID, "if (values.digest() != digest)", "if (false)", "carried rows that changed during a sweep"),
    (GRID, "return in_two_parts(p) && p.carried.empty();", "return false;", "patches whose run of rows was refused"),
    ("hooks/rows.cc", "if (start_z) check_start_z(*this, config);", "", "refusal of a z that does not fit"),
    (SWEEP, "whole.bytes() + row * static_cast<std::size_t>(b * pos_ + first_pos)", "whole.bytes() + row * static_cast<std::size_t>(b * pos_)", "base logits before the computed ones"),
    (WIRING, "(rows.reads_one(out.site, out.layer) ? *rows.read_pos : 0)", "0", "the mask of the position that is read"),
    (OPS, "(prompt * in_.size(1) + link_.selected(prompt)) * cols_", "(prompt * in_.size(1)) * cols_", "the position that is read"),
    (OPS, "return {given_, at - in_.numel()};", "return {given_, 0};", "prompts that enter"),
    (OPS, "prompt % base_.size(0) * base + key", "key", "shared base keys"),
    (OPS, "return untouched &&", "return", "edited rows are compared"),
    (CHECKSUM, "part.op = Op::linear;", "", "samples of one head"),
    (CHECKSUM, "link.bias->storage[link.bias->first + first + i]", "link.bias->storage[first]", "the bias of columns that are kept"),
    (CHECKSUM, "auto& known = columns_[key_of(link, 1)];", "auto& known = columns_[Key{}];", "columns of each weight"),
    (CHECKSUM, "part.weight->first_output = link.weight->first_output + first;", "", "the columns that are sampled of many rows"),
    (CHECKSUM, "static_cast<std::uint32_t>(link.output.layer)};", "std::uint32_t{0}};", "random vectors of each layer"),
    # device faults
    (DEVICE, "!c.always() && !armed.info->triggers(c)", "false", "conditions of device faults"),
    (DEVICE, "only->second != met", "false", "the call of a device fault"),
    (DEVICE, "return id && id->stage == specs_[armed.spec].stage && armed.place->holds(*id);", "return true;", "the hook of a device fault"),
    (DEVICE, "if (armed.due && changed + armed.clobbered > 0)", "if (armed.due)", "faults that changed no bit"),
    (DEVICE, "call.op() == \"copy_to_host\" ? next_ - 1 : next_", "next_", "what a copy to the host copies"),
    (FAULT_TABLE, "p->k % 32 != 0 &&", "", "keys that are a multiple of 32"),
    (FAULT_TABLE, "return p && p->m >= 2 && p->n >= 2;", "return p.has_value();", "matrix times vector is exact"),
    ("lens/hooked_transformer.cc", "faults->passed(id);", "", "telling the device what comes next"),
    # files
    (SEALED, "if (open_->checked && sha256(text) != entry.sha256)", "if (false)", "the digest of a document"),
    (SEALED, "if (checked && digest_of(value) != digest)", "if (false)", "the digest of a saved array"),
    (SEALED, "if (text(kRootDigest) != sha256(digests))", "if (false)", "the root digest"),
    (SEALED, "if (table.at(\"status\") != text(kStatus))", "if (false)", "the status against the sealed one"),
    (SEALED, "if (file.status() != Status::verified)", "if (false)", "the status of a file"),
    (SEALED, "if (found == sets.end()) refuse(name + \" is missing\");", "if (found == sets.end()) continue;", "missing objects"),
    (SEALED, "if (found->second.dtype != entry.dtype || found->second.shape != entry.shape)", "if (false)", "dtype and shape of a saved array"),
    (SEALED, "if (!entries.contains(name) && !is_special(name))", "if (false)", "added objects"),
    (SEALED, "if (!groups.empty()) refuse(*groups.begin() + \" was added after the file was written\");", "", "added groups"),
    (SEALED, "if (!hard) refuse(name + \" is a link to another place, not a value\");", "", "links to other places"),
    (SEALED, "if (version < 1 || version > kFormatVersion)", "if (false)", "the version of the format"),
    (SEALED, "open_->check_digest(name, group, digest);", "", "the digest of a group of rows"),
    (WRITER, "if (rows_written != rows_shape[0])", "if (false)", "rows that are missing"),
    (FOLDER, "require_no_fewer(before, plan, folder_);", "", "experiments that vanish from a batch"),
    (FOLDER, "if (status != good && status != Status::invalid)", "if (false)", "the status of an adopted shard"),
    (BATCH, "if (!b_.options_.injected.empty())", "if (false)", "runs under injected faults"),
    (SHARD, "if (shard.name_ != path.stem().string())", "if (false)", "a shard under another's name"),
    (FOLDER, "check_identity(before.at(\"identity\"), batch.identity(), folder_);", "", "the options of a batch"),
    (FOLDER, "if (::flock(descriptor, LOCK_EX | LOCK_NB) != 0) {", "if (false) {", "claims of shards"),
    (FOLDER, "file.verify_all();\n    return file;", "return file;", "every byte of a shard that is there"),
    (BATCH, "!(preference_[i] > 0)", "false", "the clean run prefers the wrong answer"),
    (BATCH, "!(std::abs(clean - corrupted) >= b_.options_.least_difference)", "false", "pairs with too small a difference"),
    (BATCH, "shard_.status = Status::invalid;", "", "a refused run refuses its shard"),
    (MERGED, "file.verify_all();", "", "every byte of merged shards"),
    (STATISTICS, "std::sqrt(g / (g - 1) * squares)", "std::sqrt(squares)", "degrees of freedom of clusters"),
    (STATISTICS, "m_.direction == Direction::denoise ? m_.corrupted[row] : m_.clean[row]", "m_.corrupted[row]", "the base of the direction"),
    (STATISTICS, "q = std::min(q,", "q = std::min(1.0,", "q grows with p"),
    (WRITER, "if (temporary.empty()) return;", "return;", "removal of what was not finished"),
    (WRITER, "  remove_rubbish(target);\n", "", "removal of what killed saves left"),
    (RUN_FILE, "run.verdict.status != Status::verified ||", "", "the verdict of a saved run"),
    (RUN_FILE, "run.verdict.first_failure() != nullptr ||", "", "failing points of a saved run"),
    (RUN_FILE, "|| run.verdict.n_compared() == 0", "", "a saved run without evidence"),
    (RUN_FILE, "if (!model_ || model_->digest == record.model_digest) return;", "return;", "the digest of a saved run's model"),
    (RUN_FILE, "if (run.verdict.status != Status::invalid) run.verdict = Verdict{};", "", "the mark of what was loaded unverified"),
    # the drill
    (HARM, "if (!(times <= kHarmful)) j.harm = Harm::harmful;", "", "harm itself"),
    ("verify/device/harm.h", "kHarmful = 4", "kHarmful = 5", "the limit of harm"),
    ("verify/device/harm.h", "kHarmful = 4", "kHarmful = 3", "what is not yet harm"),
    (HARM, "if (x == y || (std::isnan(x) && std::isnan(y))) return 0;", "if (x == y || std::isnan(x) || std::isnan(y)) return 0;", "NaN as harm"),
    (HARM, "return std::isnan(d) ? kInfinity : d;", "return std::isfinite(d) ? d : 0;", "a changed mask as harm"),
    (HARM, "return allowed > 0 ? difference / allowed : kInfinity;", "return allowed > 0 ? difference / allowed : 0;", "harm where honest runs cannot differ"),
    (HARM, "return first_spread_.has_value() && i >= *first_spread_;", "return true;", "tensors that cannot differ"),
    (HARM, "double step = may_round ? unit_in_last_place(y[i], clean.dtype()) : 0;", "double step = 0;", "the honest unit in the last place"),
    (HARM, "std::max(spread, step)", "step", "the honest spread of a tensor"),
    (HARM, "low_[i] = smaller_or_larger(low_[i], run[i].second, false);", "", "honest runs below the clean one"),
    (HARM, "high_[i] = smaller_or_larger(high_[i], run[i].second, true);", "", "honest runs above the clean one"),
    (HARM, "if (there && same_bits(found[i].second, value)) continue;", "if (there) continue;", "comparison of a run with the clean one"),
    (HARM, "if (found.shape() != clean.shape() || found.dtype() != clean.dtype()) return kInfinity;", "if (found.numel() != clean.numel()) return kInfinity;", "shapes in the judgement of harm"),
    (HARM, "if (!std::ranges::equal(run, clean_, same_tensor))", "if (run.size() != clean_.size())", "honest runs of other tensors"),
    (HARM, "std::max(high_metric_[b] - low_metric_[b], before[b].step)", "1e30", "harm to the logit difference"),
    (HARM, "if (!std::isfinite(largest_difference(run[i].second, clean_[i].second)))", "if (false)", "honest runs that are not finite"),
    ("lens/drill.cc", "other.run_with_cache(tokens, options);", "other.run_unverified(tokens, options);", "the check of runs that define harm"),
    (DRILL, "if (!run.fired() || !run.harmful()) continue;", "if (!run.fired()) continue;", "the map is of harmful runs"),
    (DRILL, "if (!run.fired() || run.ended()) return;", "if (!run.fired()) return;", "runs that the device ended"),
    ("verify/device/faults.cc", "found->minimum && value < *found->minimum", "false", "least values of parameters"),
    (REORDERING, "case Axis::d_mlp: return gathered(value, value.rank() - 1, inverse(layers_.at(layer).mlp));", "case Axis::d_mlp: return value;", "neurons back in order"),
    (REORDERING, "heads_undone(of_values ? own.values : own.queries_keys, value)", "heads_undone(own.values, value)", "queries and keys back in order"),
    (DRILL, "return refused && judgement.first.has_value() && named == to_string(*judgement.first);", "return refused;", "whether the first wrong tensor was named"),
    (DRILL, "if (run.harmful() && !run.refused) missed.push_back(&run);", "", "harmful runs that were not refused"),
    (DRILL, "part == whole ? \"100 %\" : fmt::format(\"{:.1f} %\", share)", "fmt::format(\"{:.0f} %\", share + 0.1)", "a share that is not all of them"),
    # fallbacks and ambient state
    ("hooks/transformer/fallbacks.cc", "if (function.name() == kCopyToCpu && !current->running.empty() &&", "if (false &&", "copies to the CPU inside of operators"),
    ("hooks/transformer/fallbacks.cc", "if (auto op = fallback_in(warning.msg())) return note(std::move(*op));", "", "warnings of fallbacks"),
    ("hooks/transformer/fallbacks.cc", "if (!falls_back && !copies) return {};", "if (!falls_back) return {};", "views that become copies"),
    ("hooks/transformer/fallbacks.cc", "c10::WarningUtils::set_warnAlways(true);", "", "warnings that are said once a process"),
    ("hooks/transformer/ambient.cc", "tf32_users() == users() ?", "true ?", "the strictest of several precisions"),
    # the check-up
    (DOCTOR, "if (!(share >= kNativeWithCare))", "if (share < 0)", "too few native operators"),
    (DOCTOR, "else if (!(share >= kNativeEnough))", "else if (share < 0)", "few native operators"),
    (DOCTOR, "bool forgiven = !r.measured.contains(\"died\");", "bool forgiven = true;", "processes that died"),
    (DOCTOR, "if (!succeeded(results_, \"forward\") && result_.advice != Advice::use_cpu)", "if (false)", "a forward pass that was not verified"),
    (DOCTOR, "if (!succeeded(before, need))", "if (false)", "phases that cannot be asked"),
    (DOCTOR, "if (result_.advice == Advice::use_cpu) result_.settings.clear();", "", "settings of a device not to be used"),
    # attributions
    (ATTRIBUTION, "if (std::abs(total(r) - expected(r)) <= bound(r)) continue;", "continue;", "parts sum to the run's logits"),
    (ATTRIBUTION, "constexpr double kDeviations = 8;", "constexpr double kDeviations = 8000;", "tightness of the bound of attributions"),
    (ATTRIBUTION, "constexpr double kDeviations = 8;", "constexpr double kDeviations = 0;", "bound of attributions"),
    (ATTRIBUTION, "bias += difference * final_norm_row(w, w.ln_final_b, 0).transpose();", "", "the final norm's bias in attributions"),
    (ATTRIBUTION, "onto.array().rowwise() *= final_norm_weight(w).row(0).array();", "", "the final norm's weight in logit_attrs"),
    (ATTRIBUTION, "Shape(stack.shape().begin() + 1, stack.shape().end()) != needed", "false", "shape of a stack"),
    (PARTS, "bool from_results = edited(Site::result, layer);", "bool from_results = false;", "head results that were edited"),
    (PARTS, "choice.collapses && indices.size() != 1", "false", "one position where the axis is dropped"),
    (PARTS, "found < 0 || found > n", "false", "layers that a model has"),
    (PARTS, "mlp_input && found == n", "false", "no MLP after the last layer"),
    (PARTS, "x.colwise() -= x.rowwise().mean().eval();", "", "centring of parts"),
    (PARTS, "return cache_[name];", "return cache_.activations().find(name)->value;", "digest of a part"),
    ("lens/decomposition.cc", "rest -= x;", "", "remainders"),
]


def places(text):
    """A pattern that finds `text` whatever white space stands between its characters."""
    return re.compile(r"\s*".join(re.escape(c) for c in "".join(text.split())))


def run(command, **kwargs):
    return subprocess.run(command, capture_output=True, text=True, errors="replace", **kwargs)


def copy_sources():
    files = run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True).stdout.splitlines()
    for name in files:
        source, target = ROOT / name, SOURCE / name
        if not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_bytes() != source.read_bytes():
            shutil.copy(source, target)


# Torch-free first: it is quick to build and run, and most mutants die there.
PROGRAMS = (("lenscpp_tests_torchfree", "-*Tokenizer*:*Bpe*:*SplitPattern*:*Utf8*:*Json*:*Safetensors*"),
            ("lenscpp_tests", "-*FaultSweep*:*CleanRuns*"))


def red_test(tests=None):
    """What notices the sources as they stand: the first failing test (of `tests`), a failed build, or None."""
    for program, filtered in PROGRAMS:
        filtered = tests or filtered
        built = run(["cmake", "--build", str(BUILD), "-j", "2", "--target", program])
        if built.returncode:
            return "DOES NOT COMPILE: " + built.stdout[-2000:]
        result = run([str(BUILD / "bin" / program), f"--gtest_filter={filtered}", "--gtest_fail_fast"], timeout=1200)
        failed = [line for line in result.stdout.splitlines() if line.startswith("[  FAILED  ]")]
        if failed:
            return failed[0].removeprefix("[  FAILED  ]").strip()
        if result.returncode != 0:
            return f"{program} ended with {result.returncode}"
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose description holds this text")
    parser.add_argument("--list", action="store_true", help="print the mutants and check that their texts exist")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if arguments.only in m[3]]
    stale = [m for m in MUTANTS if len(places(m[1]).findall((ROOT / m[0]).read_text())) != 1]
    for file, text, _, what, *_ in stale:
        print(f"stale: {file}: {what}: {text!r} does not occur exactly once")
    if arguments.list or stale:
        for file, _, _, what, *_ in chosen:
            print(f"{file:32} {what}")
        return 1 if stale else 0

    copy_sources()
    configure = run(["cmake", "-S", str(SOURCE), "-B", str(BUILD), "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
                     "-DLENSCPP_BUILD_TESTS=ON", "-DLENSCPP_BUILD_PYTHON=OFF", f"-DLENSCPP_PYTHON={ROOT}/.venv/bin/python"])
    if configure.returncode:
        print(configure.stdout, configure.stderr)
        return 1
    red = red_test()
    if red:
        print(f"the tests are red without any mutant: {red}")
        return 1
    survivors = 0
    for file, text, replacement, what, *tests in chosen:
        start = time.time()
        original = (SOURCE / file).read_text()
        (SOURCE / file).write_text(places(text).sub(lambda _: replacement, original, count=1))
        red = red_test(*tests)
        (SOURCE / file).write_text(original)
        killed = red is not None and not red.startswith("DOES NOT COMPILE")
        survivors += not killed
        print(f"{what:45} {'killed by ' + red if killed else red or 'SURVIVED'} ({time.time() - start:.0f} s)", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants killed")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
