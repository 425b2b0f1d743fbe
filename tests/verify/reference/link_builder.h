// Small links with data of their own, for tests of operations, bounds and checks.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "verify/reference/exact.h"

namespace lenscpp::testing_links {

inline Array random_array(Shape shape, DType dtype, std::uint64_t seed, double scale = 1,
                          double offset = 0) {
  std::mt19937_64 generator(seed);
  std::normal_distribution<double> normal(offset, scale);
  MutableArray a(std::move(shape), dtype);
  for (std::int64_t i = 0; i < a.numel(); ++i) a.set(i, normal(generator));
  return std::move(a).freeze();
}

/// An operation, its inputs, the shape of its output and a plain float32 implementation of it:
/// loops in the order of the formula, every intermediate a float. It stands for an honest device.
struct Case {
  std::string name;
  Link link;
  std::vector<Array> inputs;
  Shape output;
  std::function<std::vector<float>(const std::vector<Array>&)> honest;
};

inline const float* floats(const Array& a) { return a.as<float>().data(); }

inline Case linear_case() {
  constexpr std::int64_t rows = 5, in = 96, out = 40;
  Array w = random_array({in, out}, DType::f32, 1), b = random_array({out}, DType::f32, 2);
  Link link{.op = Op::linear,
            .output = {Site::mlp_pre},
            .inputs = {{Site::ln2_normalized}},
            .weight = Matrix{.storage = w, .in = in, .out = out},
            .bias = Vector{.storage = b, .size = out}};
  // A large offset makes partial sums large beside the result, so that rounding shows.
  return {"linear",
          link,
          {random_array({1, rows, in}, DType::f32, 3, 1, 4)},
          {1, rows, out},
          [=](const auto& x) {
            std::vector<float> y(rows * out);
            for (int r = 0; r < rows; ++r)
              for (int j = 0; j < out; ++j) {
                float sum = 0;
                for (int k = 0; k < in; ++k)
                  sum += floats(x[0])[r * in + k] * floats(w)[k * out + j];
                y[r * out + j] = sum + floats(b)[j];
              }
            return y;
          }};
}

/// W_Q of heads with inputs of their own.
inline Case head_linear_case() {
  constexpr std::int64_t pos = 4, heads = 3, in = 24, d = 8;
  Array w = random_array({in, heads * d}, DType::f32, 4),
        b = random_array({heads * d}, DType::f32, 5);
  Link link{.op = Op::head_linear,
            .output = {Site::q},
            .inputs = {{Site::q_ln_out}},
            .weight = Matrix{.storage = w, .in = in, .out = heads * d},
            .bias = Vector{.storage = b, .size = heads * d}};
  return {"head_linear",
          link,
          {random_array({1, pos, heads, in}, DType::f32, 6, 1, 3)},
          {1, pos, heads, d},
          [=](const auto& x) {
            std::vector<float> y(pos * heads * d);
            for (int p = 0; p < pos; ++p)
              for (int h = 0; h < heads; ++h)
                for (int j = 0; j < d; ++j) {
                  float sum = 0;
                  for (int k = 0; k < in; ++k)
                    sum += floats(x[0])[(p * heads + h) * in + k] *
                           floats(w)[k * heads * d + h * d + j];
                  y[(p * heads + h) * d + j] = sum + floats(b)[h * d + j];
                }
            return y;
          }};
}

inline Case head_result_case() {
  constexpr std::int64_t pos = 4, heads = 3, d = 8, out = 20;
  Array w = random_array({heads * d, out}, DType::f32, 7);
  Link link{.op = Op::head_result,
            .output = {Site::result},
            .inputs = {{Site::z}},
            .weight = Matrix{.storage = w, .in = heads * d, .out = out}};
  return {"head_result",
          link,
          {random_array({1, pos, heads, d}, DType::f32, 8, 1, 3)},
          {1, pos, heads, out},
          [=](const auto& x) {
            std::vector<float> y(pos * heads * out);
            for (int p = 0; p < pos; ++p)
              for (int h = 0; h < heads; ++h)
                for (int j = 0; j < out; ++j) {
                  float sum = 0;
                  for (int k = 0; k < d; ++k)
                    sum += floats(x[0])[(p * heads + h) * d + k] * floats(w)[(h * d + k) * out + j];
                  y[(p * heads + h) * out + j] = sum;
                }
            return y;
          }};
}

inline Case sum_heads_case() {
  constexpr std::int64_t pos = 6, heads = 12, d = 10;
  Array b = random_array({d}, DType::f32, 9);
  Link link{.op = Op::sum_heads,
            .output = {Site::attn_out},
            .inputs = {{Site::result}},
            .bias = Vector{.storage = b, .size = d}};
  return {"sum_heads",
          link,
          {random_array({1, pos, heads, d}, DType::f32, 10, 1, 5)},
          {1, pos, d},
          [=](const auto& x) {
            std::vector<float> y(pos * d);
            for (int p = 0; p < pos; ++p)
              for (int j = 0; j < d; ++j) {
                float sum = floats(b)[j];
                for (int h = 0; h < heads; ++h) sum += floats(x[0])[(p * heads + h) * d + j];
                y[p * d + j] = sum;
              }
            return y;
          }};
}

inline Case scores_case() {
  constexpr std::int64_t pos = 7, heads = 2, d = 12;
  const float divisor = std::sqrt(12.0f);
  Link link{.op = Op::scores,
            .output = {Site::attn_scores},
            .inputs = {{Site::q}, {Site::k}},
            .scalar = std::sqrt(12.0)};
  return {"scores",
          link,
          {random_array({1, pos, heads, d}, DType::f32, 11, 1, 3),
           random_array({1, pos, heads, d}, DType::f32, 12)},
          {1, heads, pos, pos},
          [=](const auto& x) {
            std::vector<float> y(heads * pos * pos, -std::numeric_limits<float>::infinity());
            for (int h = 0; h < heads; ++h)
              for (int i = 0; i < pos; ++i)
                for (int j = 0; j <= i; ++j) {
                  float sum = 0;
                  for (int k = 0; k < d; ++k)
                    sum += floats(x[0])[(i * heads + h) * d + k] *
                           floats(x[1])[(j * heads + h) * d + k];
                  y[(h * pos + i) * pos + j] = sum / divisor;
                }
            return y;
          }};
}

inline Case softmax_case() {
  constexpr std::int64_t pos = 9;
  MutableArray s(random_array({1, 1, pos, pos}, DType::f32, 13, 8));
  for (int i = 0; i < pos; ++i)
    for (int j = i + 1; j < pos; ++j) s.set(i * pos + j, -std::numeric_limits<double>::infinity());
  Link link{.op = Op::softmax, .output = {Site::pattern}, .inputs = {{Site::attn_scores}}};
  return {"softmax", link, {std::move(s).freeze()}, {1, 1, pos, pos}, [=](const auto& x) {
            std::vector<float> y(pos * pos, 0.0f);
            for (int i = 0; i < pos; ++i) {
              const float* row = floats(x[0]) + i * pos;
              float max = *std::max_element(row, row + pos), sum = 0;
              for (int j = 0; j <= i; ++j) sum += y[i * pos + j] = std::exp(row[j] - max);
              for (int j = 0; j <= i; ++j) y[i * pos + j] /= sum;
            }
            return y;
          }};
}

inline Case mix_case() {
  constexpr std::int64_t pos = 24, d = 6;
  MutableArray p({1, 1, pos, pos}, DType::f32);
  for (int i = 0; i < pos; ++i)
    for (int j = 0; j <= i; ++j) p.set(i * pos + j, 1.0 / (i + 1));
  Link link{.op = Op::mix, .output = {Site::z}, .inputs = {{Site::pattern}, {Site::v}}};
  return {"mix",
          link,
          {std::move(p).freeze(), random_array({1, pos, 1, d}, DType::f32, 14, 1, 2)},
          {1, pos, 1, d},
          [=](const auto& x) {
            std::vector<float> y(pos * d);
            for (int i = 0; i < pos; ++i)
              for (int k = 0; k < d; ++k) {
                float sum = 0;
                for (int j = 0; j < pos; ++j)
                  sum += floats(x[0])[i * pos + j] * floats(x[1])[j * d + k];
                y[i * d + k] = sum;
              }
            return y;
          }};
}

inline Case norm_scale_case() {
  constexpr std::int64_t pos = 40, d = 64;
  Link link{.op = Op::norm_scale,
            .output = {Site::ln1_scale},
            .inputs = {{Site::resid_pre}},
            .scalar = 1e-5};
  return {"norm_scale",
          link,
          {random_array({1, pos, d}, DType::f32, 15, 1, 8)},
          {1, pos, 1},
          [=](const auto& x) {
            std::vector<float> y(pos);
            for (int r = 0; r < pos; ++r) {
              const float* row = floats(x[0]) + r * d;
              float sum = 0, square = 0;
              for (int j = 0; j < d; ++j) sum += row[j];
              for (int j = 0; j < d; ++j) square += (row[j] - sum / d) * (row[j] - sum / d);
              y[r] = std::sqrt(square / d + 1e-5f);
            }
            return y;
          }};
}

inline Case normalize_case() {
  constexpr std::int64_t pos = 12, d = 48;
  Array x = random_array({1, pos, d}, DType::f32, 16, 1, 9);
  Link link{.op = Op::normalize,
            .output = {Site::ln1_normalized},
            .inputs = {{Site::resid_pre}, {Site::ln1_scale}}};
  return {"normalize",
          link,
          {x, Array::of(std::span<const float>(std::vector<float>(pos, 1.7f)), {1, pos, 1})},
          {1, pos, d},
          [=](const auto& in) {
            std::vector<float> y(pos * d);
            for (int r = 0; r < pos; ++r) {
              const float* row = floats(in[0]) + r * d;
              float sum = 0;
              for (int j = 0; j < d; ++j) sum += row[j];
              for (int j = 0; j < d; ++j) y[r * d + j] = (row[j] - sum / d) / floats(in[1])[r];
            }
            return y;
          }};
}

inline Case affine_case() {
  constexpr std::int64_t pos = 20, d = 32;
  Array w = random_array({d}, DType::f32, 17), b = random_array({d}, DType::f32, 18);
  Link link{.op = Op::affine,
            .output = {Site::ln1_out},
            .inputs = {{Site::ln1_normalized}},
            .weight = Matrix{.storage = w, .in = 1, .out = d},
            .bias = Vector{.storage = b, .size = d}};
  return {
      "affine", link, {random_array({1, pos, d}, DType::f32, 19)}, {1, pos, d}, [=](const auto& x) {
        std::vector<float> y(pos * d);
        for (int r = 0; r < pos; ++r)
          for (int j = 0; j < d; ++j) {
            float product = floats(x[0])[r * d + j] * floats(w)[j];
            y[r * d + j] = product + floats(b)[j];
          }
        return y;
      }};
}

inline Case activation_case(Activation kind, const std::string& name) {
  constexpr std::int64_t n = 600;
  std::vector<float> x(n);
  for (int i = 0; i < n; ++i) x[i] = -9.0f + 0.03f * static_cast<float>(i);
  Link link{.op = Op::activation,
            .output = {Site::mlp_post},
            .inputs = {{Site::mlp_pre}},
            .activation = kind};
  return {name,
          link,
          {Array::of(std::span<const float>(x), {1, 1, n})},
          {1, 1, n},
          [=](const auto& in) {
            std::vector<float> y(n);
            for (int i = 0; i < n; ++i) {
              float v = floats(in[0])[i];
              switch (kind) {
                case Activation::gelu_tanh:
                  y[i] = 0.5f * v * (1.0f + std::tanh(0.7978845608f * (v + 0.044715f * v * v * v)));
                  break;
                case Activation::gelu_erf:
                  y[i] = 0.5f * v * (1.0f + std::erf(v * 0.70710678f));
                  break;
                case Activation::relu:
                  y[i] = v > 0 ? v : 0;
                  break;
                case Activation::silu:
                  y[i] = v / (1.0f + std::exp(-v));
                  break;
                case Activation::tanh:
                  y[i] = std::tanh(v);
                  break;
              }
            }
            return y;
          }};
}

inline Case add_case() {
  constexpr std::int64_t n = 256;
  Link link{
      .op = Op::add, .output = {Site::resid_mid}, .inputs = {{Site::resid_pre}, {Site::attn_out}}};
  return {"add",
          link,
          {random_array({1, 1, n}, DType::f32, 20), random_array({1, 1, n}, DType::f32, 21)},
          {1, 1, n},
          [=](const auto& x) {
            std::vector<float> y(n);
            for (int i = 0; i < n; ++i) y[i] = floats(x[0])[i] + floats(x[1])[i];
            return y;
          }};
}

inline Case rms_scale_case() {
  constexpr std::int64_t pos = 40, d = 64;
  Link link{.op = Op::norm_scale,
            .output = {Site::ln1_scale},
            .inputs = {{Site::resid_pre}},
            .scalar = 1e-5,
            .centres = false};
  return {"rms_scale",
          link,
          {random_array({1, pos, d}, DType::f32, 22, 1, 8)},
          {1, pos, 1},
          [=](const auto& x) {
            std::vector<float> y(pos);
            for (int r = 0; r < pos; ++r) {
              float square = 0;
              for (int j = 0; j < d; ++j) {
                float e = floats(x[0])[r * d + j];
                square += e * e;
              }
              y[r] = std::sqrt(square / d + 1e-5f);
            }
            return y;
          }};
}

/// Of all heads together: one scale for [pos, heads, d].
inline Case rms_normalize_case() {
  constexpr std::int64_t pos = 12, heads = 3, d = 16;
  Link link{.op = Op::normalize,
            .output = {Site::q_norm_normalized},
            .inputs = {{Site::q}, {Site::q_norm_scale}},
            .centres = false};
  return {"rms_normalize",
          link,
          {random_array({1, pos, heads, d}, DType::f32, 23, 1, 9),
           Array::of(std::span<const float>(std::vector<float>(pos, 1.7f)), {1, pos, 1, 1})},
          {1, pos, heads, d},
          [=](const auto& in) {
            std::vector<float> y(pos * heads * d);
            for (int i = 0; i < pos * heads * d; ++i) {
              float inverse = 1 / floats(in[1])[i / (heads * d)];
              y[i] = floats(in[0])[i] * inverse;
            }
            return y;
          }};
}

/// x (1 + w), as x + x w.
inline Case one_plus_weight_case() {
  constexpr std::int64_t pos = 20, d = 32;
  Array w = random_array({d}, DType::f32, 24);
  Link link{.op = Op::affine,
            .output = {Site::ln1_out},
            .inputs = {{Site::ln1_normalized}},
            .weight = Matrix{.storage = w, .in = 1, .out = d},
            .offset = 1};
  return {"one_plus_weight",
          link,
          {random_array({1, pos, d}, DType::f32, 25)},
          {1, pos, d},
          [=](const auto& x) {
            std::vector<float> y(pos * d);
            for (int i = 0; i < pos * d; ++i) y[i] = floats(x[0])[i] * (1 + floats(w)[i % d]);
            return y;
          }};
}

/// Six of eight dimensions turned.
inline Case turn_case(RotaryPairs pairs, const std::string& name) {
  constexpr std::int64_t pos = 9, heads = 2, d = 8, turned = 3;
  Link link{.op = Op::turn,
            .output = {Site::rot_q},
            .inputs = {{Site::q}, {Site::rotary_cos}, {Site::rotary_sin}},
            .pairs = pairs};
  return {name,
          link,
          {random_array({2, pos, heads, d}, DType::f32, 26, 1, 3),
           random_array({1, pos, turned}, DType::f32, 27),
           random_array({1, pos, turned}, DType::f32, 28)},
          {2, pos, heads, d},
          [=](const auto& x) {
            std::vector<float> y(floats(x[0]), floats(x[0]) + 2 * pos * heads * d);
            bool halves = pairs == RotaryPairs::halves;
            for (int row = 0; row < 2 * pos * heads; ++row)
              for (int i = 0; i < turned; ++i) {
                int a = row * d + (halves ? i : 2 * i), b = a + (halves ? int(turned) : 1);
                float c = floats(x[1])[row / heads % pos * turned + i],
                      s = floats(x[2])[row / heads % pos * turned + i];
                float xc = floats(x[0])[a] * c, ys = floats(x[0])[b] * s;
                float yc = floats(x[0])[b] * c, xs = floats(x[0])[a] * s;
                y[a] = xc - ys;
                y[b] = yc + xs;
              }
            return y;
          }};
}

/// Keys that are masked stay so.
inline Case softcap_case() {
  constexpr std::int64_t pos = 24;
  MutableArray s(random_array({1, 1, pos, pos}, DType::f32, 29, 8));
  for (int i = 0; i < pos; ++i)
    for (int j = i + 1; j < pos; ++j) s.set(i * pos + j, -std::numeric_limits<double>::infinity());
  Link link{.op = Op::softcap,
            .output = {Site::attn_scores},
            .inputs = {{Site::raw_scores}},
            .scalar = 5};
  return {"softcap", link, {std::move(s).freeze()}, {1, 1, pos, pos}, [=](const auto& x) {
            std::vector<float> y(floats(x[0]), floats(x[0]) + pos * pos);
            for (float& e : y)
              if (std::isfinite(e)) e = 5.0f * std::tanh(e / 5.0f);
            return y;
          }};
}

inline Case multiply_case() {
  constexpr std::int64_t n = 256;
  Link link{.op = Op::multiply,
            .output = {Site::mlp_post},
            .inputs = {{Site::mlp_act}, {Site::mlp_pre_linear}}};
  return {"multiply",
          link,
          {random_array({1, 1, n}, DType::f32, 30), random_array({1, 1, n}, DType::f32, 31)},
          {1, 1, n},
          [=](const auto& x) {
            std::vector<float> y(n);
            for (int i = 0; i < n; ++i) y[i] = floats(x[0])[i] * floats(x[1])[i];
            return y;
          }};
}

/// A factor a row, as of an expert's neurons.
inline Case multiply_rows_case() {
  constexpr std::int64_t rows = 6 * 5, d = 9;
  Link link{.op = Op::multiply,
            .output = {Site::expert_mixed},
            .inputs = {{Site::expert_post}, {Site::expert_shares}}};
  return {"multiply_rows",
          link,
          {random_array({1, 6, 5, d}, DType::f32, 37), random_array({1, 6, 5}, DType::f32, 38)},
          {1, 6, 5, d},
          [=](const auto& x) {
            std::vector<float> y(rows * d);
            for (int i = 0; i < rows * d; ++i) y[i] = floats(x[0])[i] * floats(x[1])[i / d];
            return y;
          }};
}

/// Probabilities of experts: in the first row two are equal, in the second and third almost.
inline Array expert_probabilities(std::int64_t rows, std::int64_t experts) {
  MutableArray p({1, rows, experts}, DType::f32);
  Array x = random_array({rows, experts}, DType::f32, 39);
  for (std::int64_t r = 0; r < rows; ++r) {
    double sum = 0;
    for (std::int64_t j = 0; j < experts; ++j) sum += std::exp(x[r * experts + j]);
    for (std::int64_t j = 0; j < experts; ++j)
      p.set(r * experts + j, std::exp(x[r * experts + j]) / sum);
  }
  p.set(2, p.get(4));
  for (std::int64_t r : {std::int64_t{1}, std::int64_t{2}})
    for (std::int64_t j = 1; j < experts; ++j)
      p.set(r * experts + j, p.get(r * experts) * (1 + 1e-5 * static_cast<double>(j)));
  return std::move(p).freeze();
}
/// Elements of a row as they fall, of equals the first.
inline std::vector<int> falling_order(const float* row, int width) {
  std::vector<int> order(static_cast<std::size_t>(width));
  for (int j = 0; j < width; ++j) order[static_cast<std::size_t>(j)] = j;
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
  return order;
}

inline Case choose_case() {
  constexpr std::int64_t rows = 30, experts = 7, chosen = 3;
  Link link{.op = Op::choose, .output = {Site::expert_indices}, .inputs = {{Site::expert_weights}}};
  return {
      "choose", link, {expert_probabilities(rows, experts)}, {1, rows, chosen}, [=](const auto& x) {
        std::vector<float> y;
        for (int r = 0; r < rows; ++r) {
          auto order = falling_order(floats(x[0]) + r * experts, experts);
          y.insert(y.end(), order.begin(), order.begin() + chosen);
        }
        return y;
      }};
}

inline Case share_case() {
  constexpr std::int64_t rows = 200, experts = 7, chosen = 3;
  Link link{.op = Op::share,
            .output = {Site::expert_shares},
            .inputs = {{Site::expert_weights}},
            .chosen = chosen};
  return {
      "share", link, {expert_probabilities(rows, experts)}, {1, rows, experts}, [=](const auto& x) {
        std::vector<float> y(rows * experts, 0.0f);
        for (int r = 0; r < rows; ++r) {
          const float* p = floats(x[0]) + r * experts;
          auto order = falling_order(p, experts);
          float sum = 0;
          for (int i = 0; i < chosen; ++i) sum += p[order[i]];
          for (int i = 0; i < chosen; ++i) y[r * experts + order[i]] = p[order[i]] / sum;
        }
        return y;
      }};
}

/// The residual of a parallel block.
inline Case three_summands_case() {
  constexpr std::int64_t n = 600;
  Link link{.op = Op::add,
            .output = {Site::resid_post},
            .inputs = {{Site::resid_pre}, {Site::attn_out}, {Site::mlp_out}}};
  return {"three_summands",
          link,
          {random_array({1, 1, n}, DType::f32, 32, 4), random_array({1, 1, n}, DType::f32, 33, 4),
           random_array({1, 1, n}, DType::f32, 34)},
          {1, 1, n},
          [=](const auto& x) {
            std::vector<float> y(n);
            for (int i = 0; i < n; ++i) {
              float sum = floats(x[0])[i] + floats(x[1])[i];
              y[i] = sum + floats(x[2])[i];
            }
            return y;
          }};
}

/// Three keys a query, the second query standing at key 2.
inline Case windowed_scores_case() {
  constexpr std::int64_t queries = 6, keys = 7, heads = 2, d = 12;
  const float divisor = std::sqrt(12.0f);
  Link link{.op = Op::scores,
            .output = {Site::attn_scores},
            .inputs = {{Site::rot_q}, {Site::rot_k}},
            .scalar = std::sqrt(12.0),
            .window = 3,
            .first_query = 1};
  return {"windowed_scores",
          link,
          {random_array({1, queries, heads, d}, DType::f32, 35, 1, 3),
           random_array({1, keys, heads, d}, DType::f32, 36)},
          {1, heads, queries, keys},
          [=](const auto& x) {
            std::vector<float> y(heads * queries * keys, -std::numeric_limits<float>::infinity());
            for (int h = 0; h < heads; ++h)
              for (int i = 0; i < queries; ++i)
                for (int j = std::max(0, i - 1); j <= i + 1; ++j) {
                  float sum = 0;
                  for (int k = 0; k < d; ++k)
                    sum += floats(x[0])[(i * heads + h) * d + k] *
                           floats(x[1])[(j * heads + h) * d + k];
                  y[(h * queries + i) * keys + j] = sum / divisor;
                }
            return y;
          }};
}

/// ALiBi of three heads, the first query standing at key 2.
inline Case distances_case() {
  constexpr std::int64_t heads = 3, queries = 4, keys = 6, first = 2;
  const std::vector<double> slopes{0.0625, 0.00390625, 0.3};
  Link link{.op = Op::distances,
            .output = {Site::position_bias},
            .inputs = {},
            .given = Array::of(std::span<const double>(slopes), {heads}),
            .first_query = first};
  return {"distances", link, {}, {heads, queries, keys}, [=](const auto&) {
            std::vector<float> y(heads * queries * keys);
            for (int h = 0; h < heads; ++h)
              for (int i = 0; i < queries; ++i)
                for (int j = 0; j <= i + first; ++j)
                  y[(h * queries + i) * keys + j] = static_cast<float>(slopes[h] * (j - i - first));
            return y;
          }};
}

/// Whether `rounds` operations may differ from float64 at all beyond the store's rounding.
struct Named {
  Case test;
  bool needs_slack;
};
inline std::vector<Named> all_cases() {
  return {{linear_case(), true},
          {head_linear_case(), true},
          {head_result_case(), true},
          {sum_heads_case(), true},
          {scores_case(), true},
          {softmax_case(), true},
          {mix_case(), true},
          {norm_scale_case(), true},
          {normalize_case(), true},
          {affine_case(), true},
          {activation_case(Activation::gelu_tanh, "gelu_tanh"), true},
          {activation_case(Activation::gelu_erf, "gelu_erf"), true},
          {activation_case(Activation::silu, "silu"), true},
          {activation_case(Activation::tanh, "tanh"), true},
          {activation_case(Activation::relu, "relu"), false},
          {add_case(), false},
          {rms_scale_case(), true},
          {rms_normalize_case(), true},
          {one_plus_weight_case(), true},
          {turn_case(RotaryPairs::halves, "turn_halves"), true},
          {turn_case(RotaryPairs::adjacent, "turn_adjacent"), true},
          {softcap_case(), true},
          {multiply_case(), false},
          {multiply_rows_case(), false},
          {choose_case(), false},
          {share_case(), true},
          {three_summands_case(), true},
          {windowed_scores_case(), true}};
}

inline Array honest_output(const Case& c) {
  auto values = c.honest(c.inputs);
  return Array::of(std::span<const float>(values), c.output);
}

}  // namespace lenscpp::testing_links
