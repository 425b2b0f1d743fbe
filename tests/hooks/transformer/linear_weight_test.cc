// Products with a re-ordered weight are the products that they stand for.
#include "hooks/transformer/linear_weight.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/item.h>
#include <ATen/ops/max.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sub.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace lenscpp {
namespace {

at::Tensor random(at::IntArrayRef sizes, c10::ScalarType type = at::kFloat) {
  return at::randn(sizes, at::dtype(type));
}

TEST(LinearWeight, MultipliesAsFloat64DoesAtEveryLengthAndInEitherLayout) {
  c10::InferenceMode inference;
  for (bool transposed : {false, true}) {
    at::Tensor given = transposed ? random({800, 640}) : random({640, 800}), b = random({800});
    at::Tensor w = transposed ? given.t() : given;
    LinearWeight weight(given, transposed);
    ASSERT_EQ(weight.in(), 640);
    for (std::int64_t rows : {1, 2, 15, 64, 257}) {
      at::Tensor x = random({rows, 640}), y = weight(x, b);
      ASSERT_EQ(y.sizes(), (std::vector<std::int64_t>{rows, 800}));
      ASSERT_TRUE(y.is_contiguous());
      at::Tensor exact = at::addmm(b.to(at::kDouble), x.to(at::kDouble), w.to(at::kDouble));
      // 640 roundings that walk at random: 6 sqrt(K) u times the root of the sum of squares.
      double bound = 6 * 640 * 0x1p-24;
      at::Tensor worst = at::max(at::abs(at::sub(y.to(at::kDouble), exact)));
      EXPECT_LE(worst.item<double>(), 6 * bound);
    }
  }
}

TEST(LinearWeight, IsOnePathForOneWeight) {
  c10::InferenceMode inference;
  at::Tensor x = random({33, 512}), b = random({1024});
  LinearWeight weight(random({512, 1024}));
  at::Tensor first = weight(x, b), second = weight(x, b);
  EXPECT_TRUE(at::equal(first, second)) << "the first product makes the copy that the second reads";
}

TEST(LinearWeight, MakesItsCopyOnceForAllThreads) {
  at::Tensor x = random({7, 512}), b = random({1024});
  LinearWeight weight(random({512, 1024}));
  std::vector<at::Tensor> results(4);
  std::vector<std::thread> threads;
  for (at::Tensor& result : results)
    threads.emplace_back([&] {
      c10::InferenceMode inference;
      result = weight(x, b);
    });
  for (std::thread& thread : threads) thread.join();
  for (const at::Tensor& result : results) EXPECT_TRUE(at::equal(result, results[0]));
}

TEST(LinearWeight, LeavesOtherTypesAndSmallWeightsToAddmm) {
  c10::InferenceMode inference;
  for (auto [type, size] : {std::pair{at::kDouble, 600}, {at::kBFloat16, 600}, {at::kFloat, 100}}) {
    at::Tensor x = random({5, size}, type), w = random({size, size}, type),
               b = random({size}, type);
    EXPECT_TRUE(at::equal(LinearWeight(w)(x, b), at::addmm(b, x, w)));
  }
}

}  // namespace
}  // namespace lenscpp
