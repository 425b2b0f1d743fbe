// Weight processing against transformer-lens's own weights and against the formulas written out
// head by head. Tolerances are derived: a number carries the sum of the absolute values it was made
// of and how many roundings lie on the longest path to it, and |error| <= roundings * u * absolute
// sum (Higham 2002, lemma 3.1), once for whoever computed in that precision and once for our single
// rounding.
#include "hooks/checkpoint/processing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "hooks/checkpoint/safetensors.h"
#include "hooks/checkpoint/weights.h"
#include "tests/hooks/checkpoint/tiny_gpt2.h"

namespace lenscpp {
namespace {

const std::filesystem::path kGolden =
    std::filesystem::path(LENSCPP_SOURCE_DIR) / "tests/golden/gpt2";

struct Number {
  double value = 0, absolute = 0;
  double roundings = 0;
  Number() = default;
  explicit Number(double x) : value(x), absolute(std::abs(x)) {}
};
Number operator+(Number a, Number b) {
  Number c;
  c.value = a.value + b.value;
  c.absolute = a.absolute + b.absolute;
  c.roundings = std::max(a.roundings, b.roundings) + 1;
  return c;
}
Number operator*(Number a, Number b) {
  Number c;
  c.value = a.value * b.value;
  c.absolute = a.absolute * b.absolute;
  c.roundings = a.roundings + b.roundings + 1;
  return c;
}
Number operator-(Number a, Number b) { return a + Number(-1) * b; }

using Numbers = std::vector<Number>;
struct Table {  // row-major
  std::size_t rows, columns;
  Numbers entries;
  Number& at(std::size_t i, std::size_t j) { return entries[i * columns + j]; }
};

Numbers numbers(const Array& array) {
  Numbers result;
  for (double x : array.to_doubles()) result.emplace_back(x);
  return result;
}
Table table(const Array& array) {
  return {static_cast<std::size_t>(array.size(0)), static_cast<std::size_t>(array.size(1)),
          numbers(array)};
}
Number mean(const Numbers& values) {
  Number sum;
  for (const Number& x : values) sum = sum + x;
  return sum * Number(1.0 / static_cast<double>(values.size()));
}
void center(Numbers& values) {
  Number m = mean(values);
  for (Number& x : values) x = x - m;
}
void center_columns(Table& t) {  // each column loses its mean over the rows
  for (std::size_t j = 0; j < t.columns; ++j) {
    Numbers column;
    for (std::size_t i = 0; i < t.rows; ++i) column.push_back(t.at(i, j));
    center(column);
    for (std::size_t i = 0; i < t.rows; ++i) t.at(i, j) = column[i];
  }
}
void center_rows(Table& t) {
  for (std::size_t i = 0; i < t.rows; ++i) {
    Numbers row(t.entries.begin() + static_cast<std::ptrdiff_t>(i * t.columns),
                t.entries.begin() + static_cast<std::ptrdiff_t>((i + 1) * t.columns));
    center(row);
    for (std::size_t j = 0; j < t.columns; ++j) t.at(i, j) = row[j];
  }
}
void fold(const Numbers& w, const Numbers& b, Table& matrix, Numbers& bias) {
  for (std::size_t j = 0; j < matrix.columns; ++j)
    for (std::size_t m = 0; m < matrix.rows; ++m) bias[j] = bias[j] + b[m] * matrix.at(m, j);
  for (std::size_t m = 0; m < matrix.rows; ++m)
    for (std::size_t j = 0; j < matrix.columns; ++j) matrix.at(m, j) = matrix.at(m, j) * w[m];
  center_columns(matrix);
}

// spec/transformerlens_api.md 1.6, all four steps, under our names; W_U as [d_vocab, d_model].
std::map<std::string, Numbers> by_the_book(const Weights& w) {
  std::map<std::string, Numbers> out;
  const auto d_model = static_cast<std::size_t>(w.config.d_model);
  const auto d_vocab = static_cast<std::size_t>(w.config.d_vocab);
  for (std::size_t l = 0; l < w.layers.size(); ++l) {
    const LayerWeights& layer = w.layers[l];
    Table qkv = table(layer.W_QKV), in = table(layer.W_in), o = table(layer.W_O),
          w_out = table(layer.W_out);
    Numbers b_qkv = numbers(layer.b_QKV), b_in = numbers(layer.b_in);
    Numbers b_o = numbers(layer.b_O), b_out = numbers(layer.b_out);
    fold(numbers(layer.ln1_w), numbers(layer.ln1_b), qkv, b_qkv);
    fold(numbers(layer.ln2_w), numbers(layer.ln2_b), in, b_in);
    center_rows(o);
    center_rows(w_out);
    center(b_o);
    center(b_out);
    for (std::size_t j = 0; j < d_model; ++j)
      for (std::size_t r = 0; r < d_model; ++r)
        b_o[j] = b_o[j] + b_qkv[2 * d_model + r] * o.at(r, j);
    center(b_o);
    for (std::size_t r = 2 * d_model; r < 3 * d_model; ++r) b_qkv[r] = Number();
    const std::string block = "blocks." + std::to_string(l) + ".";
    out[block + "attn.W_QKV"] = qkv.entries;
    out[block + "attn.b_QKV"] = b_qkv;
    out[block + "attn.W_O"] = o.entries;
    out[block + "attn.b_O"] = b_o;
    out[block + "mlp.W_in"] = in.entries;
    out[block + "mlp.b_in"] = b_in;
    out[block + "mlp.W_out"] = w_out.entries;
    out[block + "mlp.b_out"] = b_out;
  }
  Table u = table(w.W_U), unembedding{d_model, d_vocab, Numbers(d_model * d_vocab)};
  for (std::size_t v = 0; v < d_vocab; ++v)
    for (std::size_t m = 0; m < d_model; ++m) unembedding.at(m, v) = u.at(v, m);
  Numbers b_u = numbers(w.b_U);
  fold(numbers(w.ln_final_w), numbers(w.ln_final_b), unembedding, b_u);
  center_rows(unembedding);  // over the vocabulary
  center(b_u);
  for (std::size_t v = 0; v < d_vocab; ++v)
    for (std::size_t m = 0; m < d_model; ++m) u.at(v, m) = unembedding.at(m, v);
  Table e = table(w.W_E), pos = table(w.W_pos);
  center_rows(e);
  center_rows(pos);
  out["unembed.W_U"] = u.entries;
  out["unembed.b_U"] = b_u;
  out["embed.W_E"] = e.entries;
  out["pos_embed.W_pos"] = pos.entries;
  return out;
}

double tolerance(const Number& x, double u) {
  return (x.roundings + 2) * u * x.absolute * (1 + 1e-3);  // 1e-3: terms of order u squared
}

std::vector<std::string> cases() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden))
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

// What transformer-lens calls our element `index` of `name`: its tensor and the place in it.
std::pair<std::string, std::size_t> place_in_tl(const std::string& name, std::size_t index,
                                                const Config& c) {
  const auto d_model = static_cast<std::size_t>(c.d_model),
             d_head = static_cast<std::size_t>(c.d_head);
  const auto d_vocab = static_cast<std::size_t>(c.d_vocab);
  std::string stem = name.substr(0, name.rfind("QKV") == name.npos ? name.size() : name.size() - 3);
  if (name.ends_with("W_QKV")) {
    std::size_t m = index / (3 * d_model), column = index % (3 * d_model);
    std::size_t head = column % d_model / d_head, i = column % d_head;
    return {stem + "QKV"[column / d_model], (head * d_model + m) * d_head + i};
  }
  if (name.ends_with("b_QKV")) return {stem + "QKV"[index / d_model], index % d_model};
  if (name == "unembed.W_U") return {name, index % d_model * d_vocab + index / d_model};
  return {name, index};
}

std::vector<std::string> cases_with_weights() {
  std::vector<std::string> names;
  for (const std::string& name : cases())
    if (std::filesystem::exists(kGolden / name / "tl_weights_processed.safetensors"))
      names.push_back(name);
  return names;
}

class EveryGoldenCase : public testing::TestWithParam<std::string> {};

TEST_P(EveryGoldenCase, IsProcessedByTheBookInFloat64) {
  Weights raw = load_weights(kGolden / GetParam(), DType::f64);
  auto expected = by_the_book(raw);
  Weights processed = process(raw, {});
  std::size_t compared = 0;
  processed.for_each([&](const std::string& name, const Array& array) {
    ASSERT_TRUE(expected.contains(name)) << name;
    const Numbers& numbers = expected.at(name);
    ASSERT_EQ(static_cast<std::size_t>(array.numel()), numbers.size()) << name;
    for (std::size_t i = 0; i < numbers.size(); ++i, ++compared) {
      double error = std::abs(array[static_cast<std::int64_t>(i)] - numbers[i].value);
      // Both sides are float64 here: the book's own roundings count once more.
      ASSERT_TRUE(error <= 2 * tolerance(numbers[i], 0x1p-53))
          << name << " " << i << " off by " << error;
    }
    expected.erase(name);
  });
  EXPECT_TRUE(expected.empty());
  EXPECT_GT(compared, 0u);
}

class TransformerLensWeights : public testing::TestWithParam<std::string> {};

TEST_P(TransformerLensWeights, EqualOursWithinFloat32Rounding) {
  SafetensorsFile tl =
      SafetensorsFile::open(kGolden / GetParam() / "tl_weights_processed.safetensors");
  Weights raw = load_weights(kGolden / GetParam(), DType::f32);
  auto expected = by_the_book(raw);
  Weights processed = process(raw, {});
  std::map<std::string, std::size_t> compared;
  double worst = 0, largest_error = 0;
  processed.for_each([&](const std::string& name, const Array& array) {
    for (std::int64_t i = 0; i < array.numel(); ++i) {
      auto [tl_name, place] = place_in_tl(name, static_cast<std::size_t>(i), raw.config);
      double error = std::abs(array[i] - tl.tensor(tl_name)[static_cast<std::int64_t>(place)]);
      double bound = tolerance(expected.at(name)[static_cast<std::size_t>(i)], 0x1p-24);
      ASSERT_TRUE(error <= bound) << name << " " << i << " off by " << error << ", allowed "
                                  << bound;
      ++compared[tl_name];
      largest_error = std::max(largest_error, error);
      if (bound > 0) worst = std::max(worst, error / bound);
    }
  });
  std::size_t total = 0;
  for (const auto& [name, info] : tl.tensors()) {
    EXPECT_EQ(static_cast<std::int64_t>(compared[name]), numel(info.shape)) << name;
    total += compared[name];
  }
  RecordProperty("compared", static_cast<int>(total));
  std::printf("%s: %zu weights, largest difference %.2g, at most %.2g of the bound\n",
              GetParam().c_str(), total, largest_error, worst);
}

INSTANTIATE_TEST_SUITE_P(Golden, TransformerLensWeights, testing::ValuesIn(cases_with_weights()),
                         [](const auto& info) { return info.param; });
INSTANTIATE_TEST_SUITE_P(Golden, EveryGoldenCase, testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param; });

// ---- what holds without a peer ----

Weights tiny(DType dtype) {
  Scratch scratch;
  TinyGpt2 model;
  model.write(scratch.path());
  return load_weights(scratch.path(), dtype);
}

// Largest mean over a row (of the last dimension), or over a column of a matrix.
double largest_row_mean(const Array& array) {
  std::vector<double> values = array.to_doubles();
  auto width = static_cast<std::size_t>(array.size(-1));
  double largest = 0;
  for (std::size_t begin = 0; begin < values.size(); begin += width) {
    double sum = 0;
    for (std::size_t j = 0; j < width; ++j) sum += values[begin + j];
    largest = std::max(largest, std::abs(sum / static_cast<double>(width)));
  }
  return largest;
}
double largest_column_mean(const Array& array) {
  auto rows = static_cast<std::size_t>(array.size(0)),
       width = static_cast<std::size_t>(array.size(1));
  std::vector<double> values = array.to_doubles();
  double largest = 0;
  for (std::size_t j = 0; j < width; ++j) {
    double sum = 0;
    for (std::size_t i = 0; i < rows; ++i) sum += values[i * width + j];
    largest = std::max(largest, std::abs(sum / static_cast<double>(rows)));
  }
  return largest;
}

TEST(Process, WhatIsCenteredHasMeanZero) {
  Weights w = process(tiny(DType::f32), {});
  double zero = 1e-6;
  for (const LayerWeights& layer : w.layers) {
    EXPECT_LT(largest_column_mean(layer.W_QKV), zero);  // over d_model, the inputs
    EXPECT_LT(largest_column_mean(layer.W_in), zero);
    EXPECT_LT(largest_row_mean(layer.W_O), zero);  // over d_model, the outputs
    EXPECT_LT(largest_row_mean(layer.W_out), zero);
    EXPECT_LT(largest_row_mean(layer.b_O), zero);
    EXPECT_LT(largest_row_mean(layer.b_out), zero);
  }
  EXPECT_LT(largest_row_mean(w.W_E), zero);
  EXPECT_LT(largest_row_mean(w.W_pos), zero);
  EXPECT_LT(largest_row_mean(w.W_U), zero);
  EXPECT_LT(largest_column_mean(w.W_U), zero);  // over the vocabulary
  EXPECT_LT(largest_row_mean(w.b_U), zero);
}

TEST(Process, ValueBiasesAreExactlyZeroAndTheOthersAreNot) {
  Weights w = process(tiny(DType::f32), {});
  for (std::int64_t l = 0; l < 2; ++l) {
    for (const Vector& bias : {w.b_Q(l), w.b_K(l)}) {
      double largest = 0;
      for (std::int64_t i = 0; i < bias.size; ++i)
        largest = std::max(largest, std::abs(bias.storage[bias.first + i]));
      EXPECT_GT(largest, 0.1);
    }
    Vector b_V = w.b_V(l);
    for (std::int64_t i = 0; i < b_V.size; ++i) EXPECT_EQ(b_V.storage[b_V.first + i], 0);
  }
}

TEST(Process, LeavesItsInputAsItWas) {
  Weights raw = tiny(DType::f32);
  std::string digest = raw.digest();
  Config config = raw.config;
  process(raw, {});
  EXPECT_EQ(raw.digest(), digest);
  EXPECT_EQ(raw.config, config);
  EXPECT_EQ(raw.W_E.bytes(), raw.W_U.bytes());
}

TEST(Process, FoldedNormsAreGoneAndTheConfigSaysSo) {
  Weights w = process(tiny(DType::f32), {});
  EXPECT_EQ(w.config.norm, NormKind::layer_norm_pre);
  EXPECT_EQ(w.ln_final_w.rank(), 0);
  EXPECT_TRUE(w.ln_final_b.empty());
  for (const LayerWeights& layer : w.layers)
    for (const Array& array : {layer.ln1_w, layer.ln1_b, layer.ln2_w, layer.ln2_b})
      EXPECT_EQ(array.rank(), 0);
  w.for_each([](const std::string& name, const Array&) {
    EXPECT_EQ(name.find("ln"), std::string::npos) << name;
  });
  EXPECT_NE(w.W_U.bytes(), w.W_E.bytes());
}

TEST(Process, NoStepsChangeNothingAndCopyNothing) {
  Weights raw = tiny(DType::f32);
  Weights same = process(raw, Processing::none());
  EXPECT_EQ(same.digest(), raw.digest());
  EXPECT_EQ(same.layers[0].W_QKV.bytes(), raw.layers[0].W_QKV.bytes());
  EXPECT_FALSE(Processing::none().any());
}

TEST(Process, EachStepTouchesItsOwnArraysOnly) {
  Weights raw = tiny(DType::f32);
  auto touched = [&](const Processing& steps) {
    std::map<std::string, std::string> before;
    raw.for_each(
        [&](const std::string& name, const Array& array) { before[name] = array.digest(); });
    std::string names;
    process(raw, steps).for_each([&](const std::string& name, const Array& array) {
      if (before.at(name) != array.digest() && name.find("blocks.1") == name.npos)
        names += name + " ";
    });
    return names;
  };
  Processing none = Processing::none(), steps = none;
  steps.fold_ln = true;
  EXPECT_EQ(
      touched(steps),
      "blocks.0.attn.W_QKV blocks.0.attn.b_QKV blocks.0.mlp.W_in blocks.0.mlp.b_in unembed.W_U "
      "unembed.b_U ");
  steps = none;
  steps.center_writing_weights = true;
  EXPECT_EQ(touched(steps),
            "embed.W_E pos_embed.W_pos blocks.0.attn.W_O blocks.0.attn.b_O blocks.0.mlp.W_out "
            "blocks.0.mlp.b_out ");
  steps = none;
  steps.center_unembed = true;
  EXPECT_EQ(touched(steps), "unembed.W_U ");  // b_U is zero as long as no norm was folded
  steps = none;
  steps.fold_value_biases = true;
  EXPECT_EQ(touched(steps), "blocks.0.attn.b_QKV blocks.0.attn.b_O ");
}

TEST(Process, RoundsOnceFromFloat64) {
  Weights raw = tiny(DType::f32);
  Weights exact = process(cast(raw, DType::f64), {});
  Weights once = process(raw, {});
  EXPECT_EQ(cast(exact, DType::f32).digest(), once.digest());
}

TEST(Process, ThreadsChangeNoBit) {
  // As many ranges as there can be, the last one first.
  ParallelFor apart = [](std::int64_t n, const auto& body) {
    for (std::int64_t i = n; i-- > 0;) body(i, i + 1);
  };
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    EXPECT_EQ(process(tiny(dtype), {}, apart).digest(), process(tiny(dtype), {}).digest());
}

TEST(Process, KeepsTheDtype) {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16})
    process(tiny(dtype), {}).for_each([&](const std::string& name, const Array& array) {
      EXPECT_EQ(array.dtype(), dtype) << name;
    });
}

TEST(Process, FoldingTwiceIsRefused) {
  Weights folded = process(tiny(DType::f32), {});
  expect_refused([&] { process(folded, {}); }, {"fold_ln", "layer_norm_pre", "layer_norm"});
  Processing rest;
  rest.fold_ln = false;
  EXPECT_NO_THROW(process(folded, rest));
}

TEST(Process, AResultThatOverflowsIsRefusedByName) {
  TinyGpt2 model;
  std::string name = "transformer.h.1.ln_2.weight";
  model.tensors[name] = changed(model.tensors[name], 3, 60000);
  name = "transformer.h.1.mlp.c_fc.weight";
  model.tensors[name] = changed(model.tensors[name], 31, 100);
  Scratch scratch;
  model.write(scratch.path());
  Weights raw = load_weights(scratch.path(), DType::f16);
  expect_refused([&] { process(raw, {}); }, {"blocks.1.mlp.W_in", "inf", "wider"});
}

TEST(Process, GroupedValuesGoToEveryHeadOfTheirGroup) {
  // 4 heads of 2 share 2 groups of values: b_V of group g reaches the rows of heads 2g and 2g + 1
  // of W_O.
  Weights w{};
  w.config = tiny(DType::f64).config;
  w.config.n_heads = 4, w.config.n_kv_heads = 2, w.config.d_head = 2, w.config.n_layers = 1;
  w.dtype = DType::f64;
  std::vector<double> bias(16), matrix(8 * 3);
  for (std::size_t i = 12; i < 16; ++i) bias[i] = static_cast<double>(i);  // values: 12 13 | 14 15
  for (std::size_t r = 0; r < 8; ++r)
    matrix[r * 3 + r % 3] = std::pow(10.0, static_cast<double>(r / 2));
  LayerWeights layer;
  layer.b_QKV = Array::of(bias, {16});
  layer.W_O = Array::of(matrix, {8, 3});
  layer.b_O = Array::of(std::vector<double>(3), {3});
  layer.b_in = layer.b_O;
  w.layers.push_back(layer);
  Processing steps = Processing::none();
  steps.fold_value_biases = true;
  // Rows 0..7 carry values 12 13 12 13 14 15 14 15, scaled 1 1 10 10 100 100 1000 1000, into column
  // r % 3.
  EXPECT_EQ(process(w, steps).layers[0].b_O.to_doubles(),
            (std::vector<double>{12 + 130 + 14000, 13 + 1400 + 15000, 120 + 1500}));
}

}  // namespace
}  // namespace lenscpp
