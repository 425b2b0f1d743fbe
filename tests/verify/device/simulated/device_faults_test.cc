// Every row of the table of device faults, on operators called directly: it changes the result
// where its condition is met, and not one bit where it is not.
#include "verify/device/device_faults.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <thread>

#include "verify/device/simulated.h"

namespace lenscpp {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

using Body = std::function<at::Tensor(c10::Device)>;
using Numbers = std::map<std::string, double>;

// Upper-case letters are devices: what runs on the simulated one runs on the CPU for comparison.
at::Tensor numbers(c10::Device d, at::IntArrayRef shape, c10::ScalarType type = at::kFloat) {
  return at::arange(c10::multiply_integers(shape), at::kFloat).sin().view(shape).to(type).to(d);
}
at::Tensor causal(c10::Device d, std::int64_t n, c10::ScalarType type) {
  return at::full({n, n}, -kInfinity, at::kFloat).triu(1).to(type).to(d).unsqueeze(0);
}
at::Tensor scores(c10::Device d, c10::ScalarType type, double alpha = 0.5) {
  return at::baddbmm(causal(d, 5, type), numbers(d, {1, 5, 3}, type), numbers(d, {1, 3, 5}, type),
                     1, alpha);
}
at::Tensor normed(const at::Tensor& x) {
  return std::get<0>(at::native_layer_norm(x, {x.size(-1)}, {}, {}, 1e-5));
}

bool same_bits(const at::Tensor& x, const at::Tensor& y) {
  at::Tensor a = x.contiguous(), b = y.contiguous();
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

struct Outcome {
  std::int64_t fired;
  bool harmless;  // every bit as on the CPU
};
Outcome outcome_of(const std::string& fault, const Numbers& parameters, const Body& body) {
  at::Tensor expected = body(c10::Device(at::kCPU));
  auto faults = std::make_shared<DeviceFaults>(
      std::vector<FaultSpec>{{.name = fault, .parameters = parameters, .seed = 1}});
  simulated_device().arm(faults);
  at::Tensor found;
  try {
    found = body(c10::Device("simulated"));
  } catch (...) {
    simulated_device().arm(nullptr);
    throw;
  }
  simulated_device().arm(nullptr);
  return {faults->fired(), same_bits(found.cpu(), expected)};
}

// One fault: where it must fire, and where it must not.
struct Case {
  std::string fault;
  Numbers parameters;
  Body met;
  std::vector<Body> unmet;
};

const std::vector<Case>& cases() {
  using D = c10::Device;
  static const std::vector<Case> all{
      {"S1",
       {},
       [](D d) {
         return at::mm(numbers(d, {4, 6}), numbers(d, {5, 6}).t());
       },
       {[](D d) {
          return at::mm(numbers(d, {4, 6}), numbers(d, {6, 5}));
        },
        [](D d) {
          return at::mm(numbers(d, {6, 4}).t(), numbers(d, {6, 5}));
        }}},
      {"S2",
       {},
       [](D d) {
         return at::gelu(numbers(d, {4, 6}).t());
       },
       {[](D d) {
         return at::gelu(numbers(d, {4, 6}));
       }}},
      {"S3",
       {},
       [](D d) {
         return at::silu(numbers(d, {4, 6}).t());
       },
       {[](D d) {
         return at::silu(numbers(d, {4, 6}));
       }}},
      {"S4",
       {},
       [](D d) {
         return normed(numbers(d, {4, 6}).slice(0, 2, 4));
       },
       {[](D d) {
         return normed(numbers(d, {4, 6}).slice(0, 0, 2));
       }}},
      {"S5",
       {},
       [](D d) {
         at::Tensor out = at::zeros({5, 4}, at::device(d)).t();
         return at::mm_out(out, numbers(d, {4, 6}), numbers(d, {6, 5}));
       },
       {[](D d) {
         at::Tensor out = at::zeros({4, 5}, at::device(d));
         return at::mm_out(out, numbers(d, {4, 6}), numbers(d, {6, 5}));
       }}},
      {"S6",
       {},
       [](D d) {
         return numbers(d, {4, 6}).t().add_(1);
       },
       {[](D d) {
          return numbers(d, {4, 6}).add_(1);
        },
        [](D d) {
          return numbers(d, {4, 6}).t().add(1);
        }}},
      {"S7",
       {},
       [](D d) {
         return at::where((numbers(d, {4, 4}) > 0).t(), numbers(d, {4, 4}), numbers(d, {4, 4}) * 2);
       },
       {[](D d) {
         return at::where(numbers(d, {4, 4}) > 0, numbers(d, {4, 4}), numbers(d, {4, 4}) * 2);
       }}},
      {"S8",
       {},
       [](D d) {
         return numbers(d, {3}) * at::tensor({2.F, 5.F}).select(0, 1);
       },
       {[](D d) {
         return numbers(d, {3}) * at::tensor({2.F, 5.F}).select(0, 0);
       }}},
      {"S9",
       {},
       [](D d) {
         return at::zeros({3, 4}, at::device(d)).copy_(numbers(d, {1, 4}).expand({3, 4}));
       },
       {[](D d) {
         return at::zeros({3, 4}, at::device(d)).copy_(numbers(d, {3, 4}));
       }}},
      {"S11",
       {},
       [](D d) {
         at::Tensor mask = at::zeros({13}, at::device(d).dtype(at::kBool));
         mask.slice(0, 1, 13).fill_(true);
         return mask;
       },
       {[](D d) {
         at::Tensor mask = at::zeros({13}, at::device(d).dtype(at::kBool));
         mask.slice(0, 0, 12).fill_(true);
         return mask;
       }}},
      {"Z1",
       {{"columns", 8}, {"right", 2}},
       [](D d) {
         return at::mm(numbers(d, {3, 4}), numbers(d, {4, 8}));
       },
       {[](D d) {
         return at::mm(numbers(d, {3, 4}), numbers(d, {4, 7}));
       }}},
      {"Z3",
       {{"rows", 8}},
       [](D d) {
         return at::mm(numbers(d, {9, 4}), numbers(d, {4, 3}));
       },
       {[](D d) {
         return at::mm(numbers(d, {8, 4}), numbers(d, {4, 3}));
       }}},
      {"Z4",
       {{"rows", 8}},
       [](D d) {
         return at::addmm(numbers(d, {3}), numbers(d, {9, 4}), numbers(d, {4, 3}));
       },
       {[](D d) {
          return at::addmm(numbers(d, {3}), numbers(d, {8, 4}), numbers(d, {4, 3}));
        },
        [](D d) {
          return at::mm(numbers(d, {9, 4}), numbers(d, {4, 3}));
        }}},
      {"Z5",
       {{"inner", 16}},
       [](D d) {
         return at::mm(numbers(d, {8, 16}), numbers(d, {16, 8}));
       },
       {[](D d) {
          return at::mm(numbers(d, {8, 15}), numbers(d, {15, 8}));
        },
        [](D d) {
          return at::mm(numbers(d, {7, 16}), numbers(d, {16, 8}));
        }}},
      {"Z7",
       {},
       [](D d) {
         return at::index_select(numbers(d, {10, 3}), 0, at::tensor({1, 9}).to(d));
       },
       {[](D d) {
         return at::index_select(numbers(d, {10, 3}), 0, at::tensor({1, 7}).to(d));
       }}},
      {"Z8",
       {},
       [](D d) {
         return at::cat({numbers(d, {40}), numbers(d, {40})});
       },
       {[](D d) {
         return at::cat({numbers(d, {32}), numbers(d, {32})});
       }}},
      {"Z10", {}, [](D d) { return numbers(d, {300}) + 1; }, {[](D d) {
         return numbers(d, {255}) + 1;
       }}},
      {"Z11", {}, [](D d) { return at::empty({65}, at::device(d)).fill_(3); }, {[](D d) {
         return at::empty({64}, at::device(d)).fill_(3);
       }}},
      {"Z12",
       {},
       [](D d) {
         return normed(numbers(d, {9, 6}));
       },
       {[](D d) {
          return normed(numbers(d, {9, 8}));
        },
        [](D d) {
          return normed(numbers(d, {8, 6}));
        }}},
      {"Z14",
       {},
       [](D d) {
         return at::mm(numbers(d, {16, 16}), numbers(d, {16, 16}));
       },
       {[](D d) {
         return at::mm(numbers(d, {16, 16}), numbers(d, {16, 15}));
       }}},
      {"Z15",
       {},
       [](D d) {
         return numbers(d, {12, 12}).triu(1);
       },
       {[](D d) {
         return numbers(d, {8, 8}).triu(1);
       }}},
      {"Z16",
       {},
       [](D d) {
         return at::mm(numbers(d, {2, 5}), numbers(d, {5, 3}));
       },
       {[](D d) {
         return at::mm(numbers(d, {2, 4}), numbers(d, {4, 3}));
       }}},
      {"U1",
       {},
       [](D d) {
         return at::bmm(numbers(d, {2, 8, 33}), numbers(d, {2, 33, 5}));
       },
       {[](D d) {
          return at::bmm(numbers(d, {2, 8, 32}), numbers(d, {2, 32, 5}));
        },
        [](D d) {
          return at::bmm(numbers(d, {2, 8, 64}), numbers(d, {2, 64, 5}));
        },
        [](D d) {
          return at::bmm(numbers(d, {2, 9, 33}), numbers(d, {2, 33, 5}));
        }}},
      {"U2",
       {},
       [](D d) {
         return at::bmm(numbers(d, {2, 4, 8}, at::kBFloat16), numbers(d, {2, 8, 5}, at::kBFloat16));
       },
       {[](D d) {
          return at::bmm(numbers(d, {2, 4, 8}), numbers(d, {2, 8, 5}));
        },
        [](D d) {
          return at::bmm(numbers(d, {2, 4, 7}, at::kBFloat16),
                         numbers(d, {2, 7, 5}, at::kBFloat16));
        }}},
      {"U3",
       {{"neighbour", 1}},
       [](D d) {
         at::Tensor x = numbers(d, {4, 6}), cached = numbers(d, {9});
         x.slice(1, 0, 2).abs();
         return cached;
       },
       {[](D d) {
         at::Tensor x = numbers(d, {4, 6}), cached = numbers(d, {9});
         x.slice(0, 0, 2).abs();
         return cached;
       }}},
      {"M1", {}, [](D d) { return scores(d, at::kBFloat16); }, {[](D d) {
         return scores(d, at::kFloat);
       }}},
      {"M3",
       {},
       [](D d) {
         return at::cat({scores(d, at::kFloat, 0.5), scores(d, at::kFloat, 0.25)});
       },
       {[](D d) {
         return at::cat({scores(d, at::kFloat, 0.25), scores(d, at::kFloat, 0.25)});
       }}},
      {"M5",
       {},
       [](D d) {
         return at::baddbmm(at::zeros({2, 2, 33}, at::device(d).dtype(at::kBFloat16)),
                            numbers(d, {2, 2, 3}, at::kBFloat16),
                            numbers(d, {1, 3, 33}, at::kBFloat16).expand({2, 3, 33}));
       },
       {[](D d) {
          return at::baddbmm(at::zeros({2, 2, 33}, at::device(d).dtype(at::kBFloat16)),
                             numbers(d, {2, 2, 3}, at::kBFloat16),
                             numbers(d, {2, 3, 33}, at::kBFloat16));
        },
        [](D d) {
          return at::baddbmm(at::zeros({2, 2, 32}, at::device(d).dtype(at::kBFloat16)),
                             numbers(d, {2, 2, 3}, at::kBFloat16),
                             numbers(d, {1, 3, 32}, at::kBFloat16).expand({2, 3, 32}));
        }}},
      {"M7",
       {{"heads", 4}},
       [](D d) {
         return at::bmm(numbers(d, {4, 2, 3}), numbers(d, {4, 3, 5}));
       },
       {[](D d) {
         return at::bmm(numbers(d, {3, 2, 3}), numbers(d, {3, 3, 5}));
       }}},
      {"M8",
       {},
       [](D d) {
         return at::_softmax(at::full({2, 3}, -kInfinity, at::kFloat).to(d), -1, false);
       },
       {[](D d) {
         return at::_softmax(numbers(d, {2, 3}), -1, false);
       }}},
      {"M10",
       {},
       [](D d) {
         return at::full({4, 4}, -kInfinity, at::kFloat).to(d).triu(1);
       },
       {[](D d) {
         return numbers(d, {4, 4}).triu(1);
       }}},
      {"M11",
       {},
       [](D d) {
         return at::baddbmm(causal(d, 5, at::kFloat).expand({2, 5, 5}), numbers(d, {2, 5, 3}),
                            numbers(d, {2, 3, 5}));
       },
       {[](D d) {
          return at::baddbmm(numbers(d, {2, 5, 5}), numbers(d, {2, 5, 3}), numbers(d, {2, 3, 5}));
        },
        [](D d) { return scores(d, at::kFloat); }}},
      {"P1",
       {},
       [](D d) {
         return normed(numbers(d, {3, 8}) * 1e-4);
       },
       {[](D d) {
         return normed(numbers(d, {3, 8}) * 1e-2);
       }}},
      {"P3",
       {},
       [](D d) { return at::gelu(numbers(d, {40}) * 20, "tanh"); },
       {[](D d) { return at::gelu(numbers(d, {40}) * 20, "none"); },
        [](D d) { return at::gelu(numbers(d, {40}) * 9, "tanh"); },
        [](D d) { return at::tanh(numbers(d, {40}) * 44); }}},
      {"P4",
       {},
       [](D d) {
         return normed(numbers(d, {3, 40}));
       },
       {[](D d) {
         return normed(numbers(d, {3, 32}));
       }}},
      {"P5",
       {},
       [](D d) {
         return at::mm(numbers(d, {2, 4}), numbers(d, {4, 2}));
       },
       {[](D d) {
          return at::mm(numbers(d, {1, 4}), numbers(d, {4, 2}));
        },
        [](D d) {
          return at::mm(numbers(d, {2, 4}), numbers(d, {4, 1}));
        }}},
      {"P6",
       {},
       [](D d) {
         return at::mm(numbers(d, {2, 4}), numbers(d, {4, 2}));
       },
       {[](D d) {
         return at::mm(numbers(d, {1, 4}), numbers(d, {4, 2}));
       }}},
      {"P8",
       {},
       [](D d) { return at::scalar_tensor(at::full({1}, 0.4496, at::kHalf).to(d).item()); },
       {[](D d) { return at::scalar_tensor(at::full({1}, 0.4496, at::kFloat).to(d).item()); }}},
      {"P9",
       {},
       [](D d) { return at::full({2}, std::int64_t{1} << 40, at::kLong).to(d) + 1; },
       {[](D d) { return at::full({2}, std::int64_t{1} << 30, at::kLong).to(d) + 1; }}},
      {"P10",
       {},
       [](D d) {
         return at::addmm(numbers(d, {3}), numbers(d, {2, 4}), numbers(d, {4, 3}));
       },
       {[](D d) {
         return at::mm(numbers(d, {2, 4}), numbers(d, {4, 3}));
       }}},
      {"C1",
       {},
       [](D d) { return numbers(c10::Device(at::kCPU), {7}).to(d, at::kFloat, true); },
       {[](D d) { return numbers(c10::Device(at::kCPU), {7}).to(d, at::kFloat, false); }}},
      {"C2",
       {},
       [](D d) {
         at::Tensor to = at::zeros({4, 6}).slice(1, 0, 6, 2);
         return to.copy_(numbers(d, {4, 6}).slice(1, 0, 6, 2)).contiguous();
       },
       {[](D d) {
          return at::zeros({4, 6}).copy_(numbers(d, {4, 6}));
        },
        [](D d) {
          return at::zeros({4, 3}).copy_(numbers(d, {4, 6}).slice(1, 0, 6, 2));
        }}},
      {"C3",
       {},
       [](D d) {
         at::gelu(numbers(d, {4, 6}));
         return at::gelu(numbers(d, {2, 3}) * 3);
       },
       {[](D d) {
         at::gelu(numbers(d, {2, 3}));
         return at::gelu(numbers(d, {2, 3}) * 3);
       }}},
      {"R2",
       {},
       [](D d) { return scores(d, at::kHalf); },
       {[](D d) { return scores(d, at::kFloat); }, [](D d) { return scores(d, at::kHalf, 1); }}},
      {"R3",
       {},
       [](D d) {
         return at::mm(at::ones({1, 1024}, at::kBFloat16).to(d),
                       at::ones({1024, 1}, at::kBFloat16).to(d));
       },
       {[](D d) {
         return at::mm(at::ones({1, 1024}).to(d), at::ones({1024, 1}).to(d));
       }}},
  };
  return all;
}

TEST(DeviceFaults, EveryRowOfTheTableHasACase) {
  std::vector<std::string> listed, tried;
  for (const DeviceFaultInfo& row : device_fault_catalogue()) listed.emplace_back(row.id);
  for (const Case& c : cases()) tried.push_back(c.fault);
  EXPECT_EQ(tried, listed);
}

class DeviceFault : public testing::TestWithParam<std::size_t> {
 protected:
  DeviceFault() { simulated_device(); }
};

TEST_P(DeviceFault, ChangesTheResultWhereItsConditionIsMet) {
  const Case& c = cases()[GetParam()];
  Outcome outcome = outcome_of(c.fault, c.parameters, c.met);
  EXPECT_GE(outcome.fired, 1);
  EXPECT_FALSE(outcome.harmless);
}

TEST_P(DeviceFault, ChangesNoBitWhereItsConditionIsNotMet) {
  const Case& c = cases()[GetParam()];
  for (std::size_t i = 0; i < c.unmet.size(); ++i) {
    Outcome outcome = outcome_of(c.fault, c.parameters, c.unmet[i]);
    EXPECT_EQ(outcome.fired, 0) << i;
    EXPECT_TRUE(outcome.harmless) << i;
  }
}

// Nothing happens in another call than the first one that meets the condition, nor by chance 0.
TEST_P(DeviceFault, IsLimitedToACallAndByChance) {
  const Case& c = cases()[GetParam()];
  Numbers later = c.parameters, never = c.parameters;
  later["call"] = 1000;
  never["probability"] = 0;
  for (const Numbers& parameters : {later, never}) {
    Outcome outcome = outcome_of(c.fault, parameters, c.met);
    EXPECT_EQ(outcome.fired, 0);
    EXPECT_TRUE(outcome.harmless);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, DeviceFault, testing::Range<std::size_t>(0, cases().size()),
                         [](const auto& info) { return cases()[info.param].fault; });

TEST(DeviceFaults, SomeAreSeenOnTheSecondCallOnly) {
  simulated_device();
  Body once = [](c10::Device d) { return scores(d, at::kFloat, 0.5); };
  EXPECT_EQ(outcome_of("M3", {{"factor", 2}}, once).fired, 0);
  Body twice = [&](c10::Device d) { return at::cat({once(d), once(d)}); };
  EXPECT_EQ(outcome_of("M3", {{"factor", 2}}, twice).fired, 1);
  Body different = [](c10::Device d) {
    return at::cat({at::gelu(numbers(d, {2, 3})).view({-1}), at::gelu(numbers(d, {4})).view({-1}),
                    at::gelu(numbers(d, {2, 3})).view({-1})});
  };
  EXPECT_EQ(outcome_of("C3", {}, different).fired, 1) << "the second shape alone";
}

// A bias times 0 or 2, sums of fewer terms, the mask of head h read h keys later: to the number.
TEST(DeviceFaults, OfBiasSumAndMaskAreWhatTheyAreCalled) {
  simulated_device();
  c10::Device d("simulated");
  auto with = [](const std::string& name, Numbers parameters, const auto& body) {
    simulated_device().arm(std::make_shared<DeviceFaults>(
        std::vector<FaultSpec>{{.name = name, .parameters = std::move(parameters)}}));
    at::Tensor found = body();
    simulated_device().arm(nullptr);
    return found.cpu();
  };
  at::Tensor b = numbers(d, {3}), x = numbers(d, {2, 4}), w = numbers(d, {4, 3});
  for (double factor : {0., 2.})
    EXPECT_TRUE(same_bits(with("P10", {{"factor", factor}}, [&] { return at::addmm(b, x, w); }),
                          at::addmm(b.cpu(), x.cpu(), w.cpu(), factor)));
  EXPECT_TRUE(at::allclose(with("Z16", {{"terms", 3}}, [&] { return at::mm(x, w); }),
                           at::mm(x.cpu().slice(1, 0, 1), w.cpu().slice(0, 0, 1))));
  at::Tensor q = numbers(d, {4, 5, 3}), k = numbers(d, {4, 3, 5});
  at::Tensor mask = causal(c10::Device(at::kCPU), 5, at::kFloat).expand({4, 5, 5}).contiguous();
  for (std::int64_t over : {0, 1}) {
    at::Tensor wrong = mask.clone();
    for (std::int64_t g = 0; g < 4; ++g)
      wrong[g] = mask[g].flatten().roll(-(over == 0 ? g / 2 : g % 2)).view({5, 5});
    Numbers parameters{{"over", static_cast<double>(over)}, {"heads", 2}};
    EXPECT_TRUE(same_bits(with("M11", parameters, [&] { return at::baddbmm(mask.to(d), q, k); }),
                          at::baddbmm(wrong, q.cpu(), k.cpu())))
        << over;
  }
}

// Runs of two threads have nothing of each other's faults.
TEST(DeviceFaults, AreArmedInTheirThreadAlone) {
  simulated_device();
  c10::Device d("simulated");
  at::Tensor x = numbers(d, {4, 6}), y = numbers(d, {6, 5}), right = at::mm(x.cpu(), y.cpu());
  auto faults = std::make_shared<DeviceFaults>(
      std::vector<FaultSpec>{{.name = "P6"}, {.name = "U3", .parameters = {{"always", 1}}}});
  simulated_device().arm(faults);
  std::vector<bool> same;
  std::thread([&] {
    for (int i = 0; i < 8; ++i) same.push_back(same_bits(at::mm(x, y).cpu(), right));
  }).join();
  EXPECT_EQ(faults->fired(), 0);
  EXPECT_EQ(same, std::vector<bool>(8, true));
  EXPECT_FALSE(same_bits(at::mm(x, y).cpu(), right));
  simulated_device().arm(nullptr);
  EXPECT_GT(faults->fired(), 0);
  EXPECT_TRUE(same_bits(at::mm(x, y).cpu(), right));
}

// Complex numbers are no faults' business.
TEST(DeviceFaults, LeaveResultsOfDtypesThatTheyDoNotKnow) {
  simulated_device();
  c10::Device d("simulated");
  at::Tensor x = numbers(d, {4, 6});
  simulated_device().arm(std::make_shared<DeviceFaults>(
      std::vector<FaultSpec>{{.name = "S6", .parameters = {{"always", 1}}}, {.name = "P5"}}));
  at::Tensor spectrum = at::fft_rfft(x);
  simulated_device().arm(nullptr);
  EXPECT_TRUE(at::equal(at::view_as_real(spectrum.cpu()), at::view_as_real(at::fft_rfft(x.cpu()))));
}

// Operators of no rows or no columns have nothing to change.
TEST(DeviceFaults, AreNothingToEmptyTensors) {
  simulated_device();
  c10::Device d("simulated");
  for (const DeviceFaultInfo& row : device_fault_catalogue()) {
    auto faults = std::make_shared<DeviceFaults>(
        std::vector<FaultSpec>{{.name = std::string(row.id), .parameters = {{"always", 1}}}});
    simulated_device().arm(faults);
    auto in = [&](at::IntArrayRef shape) { return at::empty(shape, at::device(d)); };
    EXPECT_NO_THROW({
      at::bmm(in({2, 0, 3}), in({2, 3, 5}));
      at::baddbmm(in({2, 0, 5}), in({2, 0, 3}), in({2, 3, 5}));
      at::baddbmm(in({2, 4, 0}), in({2, 4, 3}), in({2, 3, 0}));
      normed(in({0, 6}));
      at::_softmax(in({3, 0}), -1, false);
      at::gelu(in({0, 6}));
    }) << row.id;
    simulated_device().arm(nullptr);
  }
}

// What lies behind the operands decides: fresh memory hides it.
TEST(DeviceFaults, AnUnclippedTileIsHiddenByFreshMemory) {
  simulated_device();
  c10::Device d("simulated");
  for (bool used : {false, true}) {
    at::Tensor x = numbers(d, {8, 16}), w = numbers(d, {16, 8}), y = numbers(d, {500});
    auto faults = std::make_shared<DeviceFaults>(
        std::vector<FaultSpec>{{.name = "Z5", .parameters = {{"inner", 16}}}});
    simulated_device().arm(faults);
    if (used) y.mul(3);
    at::Tensor out = at::mm(x, w);
    simulated_device().arm(nullptr);
    EXPECT_EQ(faults->fired(), used ? 1 : 0);
    EXPECT_EQ(same_bits(out.cpu(), at::mm(x.cpu(), w.cpu())), !used);
  }
}

TEST(DeviceFaults, ReadsAWeightAsIfItLayTransposed) {
  simulated_device();
  c10::Device d("simulated");
  auto faults = std::make_shared<DeviceFaults>(std::vector<FaultSpec>{
      {.name = "ignores_weight_strides", .parameters = {{"transposed", 1}}}});
  at::Tensor x = numbers(d, {3, 4}), w = numbers(d, {4, 5});
  simulated_device().arm(faults);
  at::Tensor out = at::mm(x, w);
  simulated_device().arm(nullptr);
  EXPECT_TRUE(same_bits(out.cpu(), at::mm(x.cpu(), w.cpu().view({5, 4}).t().contiguous())));
  ASSERT_EQ(faults->fired(), 1);
  EXPECT_EQ(faults->log()[0].op, "mm");
  EXPECT_EQ(faults->log()[0].changed, 15);
  EXPECT_FALSE(faults->log()[0].id.has_value());
}

}  // namespace
}  // namespace lenscpp
