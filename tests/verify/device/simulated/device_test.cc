// The simulated device by itself: it computes what the CPU computes, imitates limits, and shows
// reads of memory that nobody wrote and writes outside of an allocation.
#include <ATen/Context.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "verify/device/simulated.h"

namespace lenscpp {
namespace {

c10::Device device() {
  simulated_device();
  return c10::Device("simulated");
}
at::Tensor numbers(at::IntArrayRef shape) {
  return at::arange(c10::multiply_integers(shape), at::kFloat).sin().view(shape);
}
bool same_bits(const at::Tensor& a, const at::Tensor& b) { return at::equal(a.cpu(), b.cpu()); }

// Limits for one test.
class With {
 public:
  explicit With(const SimulatedLimits& limits) : before_(*simulated_device().limits()) {
    simulated_device().set_limits(limits);
  }
  ~With() { simulated_device().set_limits(before_); }

 private:
  SimulatedLimits before_;
};

std::string message_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  }
  return "";
}

TEST(SimulatedDevice, HasANameAndIsTheAccelerator) {
  at::Tensor x = numbers({2, 3}).to(device());
  EXPECT_EQ(x.device().str(), "simulated:0");
  EXPECT_TRUE(x.device().is_privateuseone());
  EXPECT_TRUE(simulated_device_loaded());
  std::ostringstream text;
  text << x;
  EXPECT_NE(text.str().find("simulated"), std::string::npos);
}

// What a tensor of the device is asked to do, and what the CPU makes of the same.
TEST(SimulatedDevice, ComputesWhatTheCpuComputes) {
  at::Tensor a = numbers({4, 6}), b = numbers({6, 5}), bias = numbers({5}),
             ids = at::tensor({3, 1});
  using Tensors = std::vector<at::Tensor>;
  using Operator = std::function<at::Tensor(const Tensors&)>;
  std::map<std::string, Operator> operators{
      {"addmm", [](const Tensors& t) { return at::addmm(t[2], t[0], t[1]); }},
      {"transposed", [](const Tensors& t) { return at::mm(t[1].t(), t[0].t()); }},
      {"softmax", [](const Tensors& t) { return at::softmax(t[0], -1); }},
      {"gelu", [](const Tensors& t) { return at::gelu(t[0], "tanh"); }},
      {"layer norm", [](const Tensors& t) { return at::layer_norm(t[0], {6}); }},
      {"embedding", [](const Tensors& t) { return at::embedding(t[0], t[3]); }},
      {"linear", [](const Tensors& t) { return at::linear(t[0], t[1].t(), t[2]); }},
      {"einsum",
       [](const Tensors& t) {
         return at::einsum("ij,jk->ki", {t[0], t[1]});
       }},
      {"masked fill", [](const Tensors& t) { return t[0].masked_fill(t[0] > 0, 2.0); }},
      {"in place on a view",
       [](const Tensors& t) {
         at::Tensor x = t[0].clone();
         x.t().slice(0, 1, 4).add_(3).mul_(2);
         return x;
       }},
      {"cat",
       [](const Tensors& t) {
         return at::cat({t[0], t[1].t()}, 0);
       }},
      {"index", [](const Tensors& t) { return t[0].index({t[3]}); }},
      {"sum", [](const Tensors& t) { return t[0].sum(1).sqrt(); }},
      {"unfold", [](const Tensors& t) { return t[0].unfold(1, 3, 2).contiguous(); }},
      {"to bfloat16",
       [](const Tensors& t) { return at::mm(t[0].to(at::kBFloat16), t[1].to(at::kBFloat16)); }}};
  for (const auto& [name, compute] : operators) {
    Tensors host{a, b, bias, ids}, there;
    for (const at::Tensor& t : host) there.push_back(t.to(device()));
    at::Tensor result = compute(there);
    EXPECT_TRUE(result.device().is_privateuseone()) << name;
    EXPECT_TRUE(same_bits(result, compute(host))) << name;
  }
  at::Tensor x = numbers({1, 2, 2, 6}), y = x.to(device());  // fused on the CPU, not here
  EXPECT_TRUE(at::allclose(at::scaled_dot_product_attention(y, y, y).cpu(),
                           at::scaled_dot_product_attention(x, x, x), 1e-5, 1e-6));
  EXPECT_TRUE(simulated_device().violations().empty());
}

TEST(SimulatedDevice, GivesNumbersBackAndDifferentiates) {
  at::Tensor w = numbers({3, 3}).to(device()).requires_grad_();
  at::Tensor loss = at::layer_norm(at::mm(w, w), {3}).mul(at::gelu(w)).sum();
  loss.backward();
  at::Tensor v = numbers({3, 3}).requires_grad_();
  at::Tensor expected = at::layer_norm(at::mm(v, v), {3}).mul(at::gelu(v)).sum();
  expected.backward();
  EXPECT_EQ(loss.item<float>(), expected.item<float>());
  EXPECT_TRUE(at::allclose(w.grad().cpu(), v.grad(), 1e-5, 1e-6));
}

TEST(SimulatedDevice, RefusesTensorsOfAnotherDeviceButTakesNumbers) {
  at::Tensor x = numbers({2, 3}).to(device());
  EXPECT_NE(message_of([&] {
              at::add(x, numbers({2, 3}));
            }).find("Expected all tensors to be on the same device"),
            std::string::npos);
  EXPECT_NE(message_of([&] {
              at::mm(x, numbers({3, 2}));
            }).find("argument mat2"),
            std::string::npos);
  EXPECT_TRUE(same_bits(at::mul(x, at::scalar_tensor(2.0)), numbers({2, 3}) * 2));
}

TEST(SimulatedDevice, FreshMemoryIsNotANumber) {
  at::Tensor fresh = at::empty({5}, at::device(device()).dtype(at::kFloat));
  EXPECT_TRUE(at::isnan(fresh.cpu()).all().item<bool>());
  EXPECT_FALSE(at::isnan((fresh.zero_() + 1).cpu()).any().item<bool>());
}

TEST(SimulatedDevice, CanariesShowWritesOutsideOfABlock) {
  std::size_t before = simulated_device().violations().size();
  for (std::ptrdiff_t where : {std::ptrdiff_t{-4}, std::ptrdiff_t{40}}) {
    at::Tensor x = at::zeros({10}, at::device(device()).dtype(at::kFloat));
    auto* bytes = static_cast<unsigned char*>(x.mutable_data_ptr());
    unsigned char kept = bytes[where];
    bytes[where] = 7;
    auto violations = simulated_device().violations();
    ASSERT_EQ(violations.size(), before + 1);
    EXPECT_NE(violations.back().find(where < 0 ? "before" : "behind"), std::string::npos);
    EXPECT_NE(violations.back().find("40 bytes"), std::string::npos);
    bytes[where] = kept;  // so that the other tests of this process see a clean device
    EXPECT_EQ(simulated_device().violations().size(), before);
  }
}

TEST(SimulatedDevice, AFreedBlockWithABrokenCanaryIsRemembered) {
  // In a process of its own: what is remembered stays.
  EXPECT_EXIT(
      {
        {
          at::Tensor x = at::zeros({3}, at::device(device()).dtype(at::kFloat));
          static_cast<unsigned char*>(x.mutable_data_ptr())[12] = 1;
        }
        std::_Exit(simulated_device().violations().size() == 1 ? 7 : 1);
      },
      testing::ExitedWithCode(7), "");
}

TEST(SimulatedDevice, HasNoFloat64WhereItHasNone) {
  {
    device();
    With limits({.float64 = false});
    std::string text = message_of([] { numbers({2}).to(at::kDouble).to(device()); });
    EXPECT_EQ(text.substr(0, 100),
              "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
              "float64. Please us");
    EXPECT_THROW(numbers({2}).to(device()).to(at::kDouble), c10::TypeError);
    EXPECT_TRUE(same_bits(numbers({2}).to(device()), numbers({2})));
  }
  EXPECT_EQ(numbers({2}).to(device()).to(at::kDouble).scalar_type(), at::kDouble);
}

struct Heard : c10::WarningHandler {
  void process(const c10::Warning& warning) override { text += warning.msg() + "\n"; }
  std::string text;
};

TEST(SimulatedDevice, SendsMissingOperatorsThroughTheCpuWithPyTorchsWarning) {
  at::Tensor x = numbers({7}).to(device());
  With limits({.missing = {"gelu", "add"}});
  Heard heard;
  c10::WarningUtils::WarningHandlerGuard guard(&heard);
  EXPECT_TRUE(same_bits(at::gelu(x), at::gelu(numbers({7}))));
  EXPECT_TRUE(same_bits(x + x, numbers({7}) * 2));
  EXPECT_EQ(
      heard.text,
      "The operator 'aten::gelu' is not currently supported on the MPS backend and will fall "
      "back to run on the CPU. This may have performance implications.\n"
      "The operator 'aten::add.Tensor' is not currently supported on the MPS backend and will "
      "fall back to run on the CPU. This may have performance implications.\n");
  heard.text.clear();
  EXPECT_TRUE(same_bits(at::silu(x), at::silu(numbers({7}))));
  EXPECT_EQ(heard.text, "") << "silu is not missing";
}

TEST(SimulatedDevice, RefusesMissingOperatorsWithoutFallback) {
  at::Tensor x = numbers({7}).to(device());
  With limits({.missing = {"gelu"}, .fallback = false});
  EXPECT_THROW(at::gelu(x), c10::NotImplementedError);
  EXPECT_NE(message_of([&] {
              at::gelu(x);
            }).find("The operator 'aten::gelu' is not currently implemented for the MPS device."),
            std::string::npos);
}

TEST(SimulatedDevice, AbortsTheProcessAsApplesDoes) {
  at::Tensor x = numbers({7}).to(device());
  EXPECT_DEATH(
      {
        With limits({.max_buffer_bytes = 1024});
        at::empty({256}, at::device(device()).dtype(at::kFloat));
        std::fputs("what fits is given\n", stderr);
        at::empty({257}, at::device(device()).dtype(at::kFloat));
      },
      "what fits is given\n.*total bytes of NDArray > 2\\*\\*32");
  EXPECT_DEATH(
      {
        With limits({.aborts_at = "gelu"});
        at::silu(x);
        std::fputs("others run\n", stderr);
        at::gelu(x);
      },
      "others run\n.*gelu aborts");
}

TEST(SimulatedDevice, HangsWhereItIsTold) {
  at::Tensor x = numbers({7}).to(device());
  EXPECT_EXIT(
      {
        With limits({.hangs_at = "gelu"});
        at::silu(x);
        std::thread([] {
          std::this_thread::sleep_for(std::chrono::milliseconds(200));
          std::_Exit(9);
        }).detach();
        at::gelu(x);
        std::_Exit(0);
      },
      testing::ExitedWithCode(9), "");
}

TEST(SimulatedDevice, LimitsInHandStayAsTheyWere) {
  device();
  With limits({.missing = {"gelu"}});
  auto held = simulated_device().limits();
  simulated_device().set_limits({.missing = {"silu"}});
  simulated_device().set_limits({.missing = {"relu"}});
  EXPECT_EQ(held->missing, std::vector<std::string>{"gelu"});
  EXPECT_EQ(simulated_device().limits()->missing, std::vector<std::string>{"relu"});
}

TEST(SimulatedDevice, CountsCallsByLeafOperator) {
  at::Tensor x = numbers({2, 2}).to(device());
  auto count = [](const std::string& name) {
    for (const auto& [op, n] : simulated_device().calls())
      if (op == name) return n;
    return std::int64_t{0};
  };
  std::int64_t products = count("mm"), copies = count("copy_to_host");
  at::matmul(x, x);
  x.cpu();
  EXPECT_EQ(count("mm"), products + 1);
  EXPECT_EQ(count("copy_to_host"), copies + 1);
}

}  // namespace
}  // namespace lenscpp
