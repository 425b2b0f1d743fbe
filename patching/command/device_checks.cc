// Small questions to a device.
#include "patching/command/device_checks.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/record_function.h>
#include <c10/core/InferenceMode.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <set>

#include "hooks/transformer/fallbacks.h"
#include "hooks/transformer/torch_array.h"

namespace lenscpp::command {

void step(const std::string& what) { std::fprintf(stderr, "%s\n", what.c_str()); }

std::string first_line(std::string text) {
  constexpr std::size_t kLongest = 200;
  text = text.substr(0, text.find('\n'));
  if (text.size() <= kLongest) return text;
  std::size_t sentence = text.rfind(". ", kLongest);
  return sentence == text.npos ? text.substr(0, kLongest) + "..." : text.substr(0, sentence + 1);
}

std::string short_number(double value) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g", value);
  return text.data();
}

nlohmann::json number(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json(short_number(value));
}

namespace {

std::string message_of(const std::exception& e) {
  const auto* torch = dynamic_cast<const c10::Error*>(&e);
  return first_line(torch == nullptr ? e.what() : torch->what_without_backtrace());
}

// --- operators ---

// The tensors of an operand or a result; none of anything else.
std::vector<at::Tensor> tensors_of(const c10::IValue& value) {
  std::vector<at::Tensor> tensors;
  if (value.isTensor()) tensors = {value.toTensor()};
  if (value.isTensorList()) tensors = value.toTensorVector();
  std::erase_if(tensors, [](const at::Tensor& x) { return !x.defined() || !x.has_storage(); });
  return tensors;
}

struct Call {
  c10::OperatorName name;
  std::vector<c10::IValue> inputs;
};

// The operators that a model calls by itself, not inside of each other, on what would lie on its
// device: weights, and whatever came of them. Each once. What is made on the host whatever the
// device (the causal mask, ids before they are uploaded) is not asked of the device.
class CallRecorder {
 public:
  explicit CallRecorder(const Weights& weights)
      : handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(&enter, &leave)
                                               .needsInputs(true)
                                               .needsOutputs(true)
                                               .scopes({at::RecordScope::FUNCTION}))) {
    weights.for_each(
        [this](const std::string&, const Array& array) { there_.insert(array.bytes()); });
    current_ = this;
  }
  ~CallRecorder() {
    at::removeCallback(handle_);
    current_ = nullptr;
  }
  CallRecorder(const CallRecorder&) = delete;
  CallRecorder& operator=(const CallRecorder&) = delete;
  const std::vector<Call>& calls() const { return calls_; }

 private:
  static std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& function) {
    auto name = function.operator_name();
    CallRecorder& self = *current_;
    if (self.depth_++ > 0) return {};
    self.on_device_ = std::ranges::any_of(
        function.inputs(), [&](const c10::IValue& input) { return self.is_there(input); });
    if (!name || !self.on_device_) return {};
    for (const Call& call : self.calls_)
      if (call.name == *name) return {};
    auto inputs = function.inputs();
    self.calls_.push_back({*name, std::vector<c10::IValue>(inputs.begin(), inputs.end())});
    return {};
  }
  static void leave(const at::RecordFunction& function, at::ObserverContext*) {
    CallRecorder& self = *current_;
    if (--self.depth_ > 0 || !self.on_device_) return;
    for (const c10::IValue& output : function.outputs())
      for (const at::Tensor& x : tensors_of(output)) {
        self.kept_.push_back(x);  // so that no other memory takes its place
        self.there_.insert(x.storage().data());
      }
  }
  bool is_there(const c10::IValue& value) const {
    return std::ranges::any_of(tensors_of(value), [this](const at::Tensor& x) {
      return there_.contains(x.storage().data());
    });
  }

  static thread_local CallRecorder* current_;
  at::RecordFunctionGuard observed_{true};
  int depth_ = 0;
  bool on_device_ = false;
  std::set<const void*> there_;
  std::vector<at::Tensor> kept_;
  std::vector<Call> calls_;
  at::CallbackHandle handle_;
};
thread_local CallRecorder* CallRecorder::current_ = nullptr;

// Waits for the device: what it has not computed yet can still fail, and would in a later call.
void read_back(const torch::jit::Stack& results) {
  for (const c10::IValue& value : results)
    for (const at::Tensor& x : tensors_of(value)) x.to(at::kCPU, /*non_blocking=*/false);
}

// Products of which the CPU keeps a weight in an order of its own are an addmm elsewhere.
Call as_elsewhere(const Call& call) {
  if (call.name.name.starts_with("aten::")) return call;
  at::Tensor x = at::ones({3, 2}), weight = at::ones({2, 4}), bias = at::ones({4});
  return {{"aten::addmm", ""}, {bias, x, weight, 1, 1}};
}

c10::IValue moved(const c10::IValue& value, c10::Device device) {
  if (value.isTensor() && value.toTensor().defined()) return value.toTensor().to(device);
  if (value.isDevice()) return device;
  if (!value.isTensorList()) return value;
  c10::List<at::Tensor> list;
  for (const at::Tensor& x : value.toTensorVector()) list.push_back(x.to(device));
  return list;
}

OperatorCheck check_operator(const Call& call, c10::Device device) {
  OperatorCheck check{.name = call.name.name, .status = "native", .error = {}};
  step("operator " + call.name.name);
  try {
    torch::jit::Stack stack;
    for (const c10::IValue& input : call.inputs) stack.push_back(moved(input, device));
    auto op = c10::Dispatcher::singleton().findSchemaOrThrow(call.name.name.c_str(),
                                                             call.name.overload_name.c_str());
    std::vector<std::string> fallen;
    {
      FallbackWatch watch;
      op.callBoxed(stack);
      fallen = watch.operators();
    }
    read_back(stack);
    if (!fallen.empty()) check.status = "fallback";
    if (!fallen.empty() && fallen[0] != check.name) check.error = "inside of it: " + fallen[0];
  } catch (const std::exception& e) {
    check.status = "missing";
    check.error = message_of(e);
  }
  return check;
}

}  // namespace

std::vector<OperatorCheck> check_operators(const HookedTransformer& model, const Tokens& tokens,
                                           c10::Device device) {
  c10::InferenceMode inference;
  CallRecorder recorder(model.weights());
  model.forward(tokens, {.verify = VerifyMode::off});
  std::vector<Call> calls = recorder.calls();
  std::vector<OperatorCheck> checks;
  for (const Call& call : calls) {
    OperatorCheck check = check_operator(device.is_cpu() ? call : as_elsewhere(call), device);
    auto same = std::ranges::find(checks, check.name, &OperatorCheck::name);  // another overload
    if (same == checks.end())
      checks.push_back(check);
    else if (same->status == "native")
      *same = check;
  }
  return checks;
}

// --- dtypes ---

namespace {

at::Tensor special_values() {
  std::vector<float> values{0.0f,
                            -0.0f,
                            1.0f,
                            -1.5f,
                            3.14159265f,
                            1e-3f,
                            65504.0f,
                            -2e4f,
                            0x1p-14f,
                            0x1p-120f,
                            std::numeric_limits<float>::infinity(),
                            -std::numeric_limits<float>::infinity()};
  for (int i = 0; i < 500; ++i) values.push_back(std::sin(static_cast<float>(i)) * 100);
  return at::tensor(values);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(),
                     a.nbytes()) == 0;
}

// Empty where every bit is as on the host.
std::string different(const at::Tensor& device, const at::Tensor& host) {
  at::Tensor back = device.to(at::kCPU);
  if (back.sizes() != host.sizes() || back.scalar_type() != host.scalar_type())
    return "another shape or dtype came back";
  if (same_bits(back, host)) return "";
  at::Tensor wrong = at::ne(back, host);
  return std::to_string(wrong.sum().item<std::int64_t>()) + " of " + std::to_string(host.numel()) +
         " elements differ";
}

}  // namespace

std::vector<DtypeCheck> check_dtypes(c10::Device device) {
  c10::InferenceMode inference;
  std::vector<DtypeCheck> checks;
  at::Tensor floats = special_values();
  for (auto [type, name] : {std::pair{at::kFloat, "float32"},
                            {at::kDouble, "float64"},
                            {at::kBFloat16, "bfloat16"},
                            {at::kHalf, "float16"},
                            {at::kLong, "int64"},
                            {at::kBool, "bool"}}) {
    DtypeCheck check{.name = name, .error = {}};
    step(std::string("dtype ") + name);
    bool floating = at::isFloatingType(type);
    at::Tensor host = floating ? floats.to(type) : at::floor(floats.slice(0, 12)).to(type);
    try {
      check.error = different(host.to(device), host);
      if (check.error.empty() && floating) {
        check.error = different(floats.to(device).to(type), host);
        if (!check.error.empty()) check.error = "converted from float32 there: " + check.error;
      }
      check.lies = !check.error.empty();
    } catch (const std::exception& e) {
      check.error = message_of(e);
    }
    checks.push_back(check);
  }
  return checks;
}

// --- functions ---

namespace {

double ulp_of(double x) {  // of a float32 as large as x
  int exponent = 0;
  std::frexp(x, &exponent);
  return std::ldexp(1.0, std::max(exponent, -125) - 24);
}

struct Function {
  const char* name;
  double from, to, allowed;
  bool of_argument;
  std::function<at::Tensor(const at::Tensor&)> device;
  std::function<double(double)> host;
};

double gelu_tanh(double x) {
  return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
}
double gelu_erf(double x) { return 0.5 * x * std::erfc(-x * M_SQRT1_2); }

}  // namespace

std::vector<AccuracyCheck> check_accuracy(c10::Device device) {
  c10::InferenceMode inference;
  constexpr int kPoints = 1 << 16;
  // Four ulp is what the bounds of verification assume of an elementary function; 8 u |x| of GELU.
  const std::vector<Function> functions{
      {"exp", -87, 88, 4, false, [](auto& x) { return at::exp(x); },
       [](double x) { return std::exp(x); }},
      {"tanh", -12, 12, 4, false, [](auto& x) { return at::tanh(x); },
       [](double x) { return std::tanh(x); }},
      {"erf", -5, 5, 4, false, [](auto& x) { return at::erf(x); },
       [](double x) { return std::erf(x); }},
      {"gelu_tanh", -12, 12, 8, true, [](auto& x) { return at::gelu(x, "tanh"); }, gelu_tanh},
      {"gelu_erf", -12, 12, 8, true, [](auto& x) { return at::gelu(x, "none"); }, gelu_erf}};
  std::vector<AccuracyCheck> checks;
  for (const Function& f : functions) {
    step(std::string("function ") + f.name);
    at::Tensor x = at::linspace(f.from, f.to, kPoints, at::kFloat);
    at::Tensor y = f.device(x.to(device)).to(at::kCPU).contiguous();
    AccuracyCheck check{.name = f.name, .worst_ulp = 0, .at = 0, .allowed = f.allowed};
    const float *in = x.const_data_ptr<float>(), *out = y.const_data_ptr<float>();
    for (int i = 0; i < kPoints; ++i) {
      double exact = f.host(in[i]);
      double error = std::abs(out[i] - exact) / ulp_of(f.of_argument ? in[i] : exact);
      if (!(error <= check.worst_ulp)) {
        check.worst_ulp = std::isnan(error) ? std::numeric_limits<double>::infinity() : error;
        check.at = in[i];
      }
    }
    checks.push_back(check);
  }
  return checks;
}

// --- copies ---

std::vector<CopyCheck> check_copies(c10::Device device) {
  c10::InferenceMode inference;
  at::Tensor host = at::arange(6 * 10 * 8, at::kFloat).view({6, 10, 8}) * 0.37 - 50;
  using View = std::function<at::Tensor(const at::Tensor&)>;
  const std::vector<std::pair<const char*, View>> views{
      {"contiguous", [](auto& x) { return x; }},
      {"transposed", [](auto& x) { return x.transpose(0, 2); }},
      {"a slice in the middle", [](auto& x) { return x.slice(0, 2, 5); }},
      {"every second row", [](auto& x) { return x.slice(1, 1, 10, 2); }},
      {"a column", [](auto& x) { return x.select(2, 3); }},
      {"one element with an offset",
       [](auto& x) { return x.select(0, 4).select(0, 7).select(0, 5); }},
      {"expanded",
       [](auto& x) {
         return x.select(0, 1).unsqueeze(0).expand({3, 10, 8});
       }},
      {"permuted slice", [](auto& x) {
         return x.slice(2, 2, 6).permute({1, 2, 0});
       }}};
  std::vector<CopyCheck> checks;
  auto check = [&](const std::string& name, const std::function<std::string()>& question) {
    step("copy " + name);
    CopyCheck result{.name = name, .error = {}};
    try {
      result.error = question();
    } catch (const std::exception& e) {
      result.error = message_of(e);
    }
    checks.push_back(std::move(result));
  };
  for (const auto& [name, view] : views) {
    const View& v = view;
    check(std::string("to the device, ") + name,
          [&] { return different(v(host).to(device), v(host).contiguous()); });
    check(std::string("to the host, ") + name,
          [&] { return different(v(host.to(device)), v(host).contiguous()); });
    check(std::string("on the device, ") + name,
          [&] { return different(v(host.to(device)).contiguous(), v(host).contiguous()); });
    if (std::string_view(name) == "expanded") continue;
    check(std::string("written into, ") + name, [&] {
      at::Tensor there = host.clone().to(device), here = host.clone();
      v(there).copy_((v(host) + 1).to(device));
      v(here).copy_(v(host) + 1);
      return different(there, here);
    });
  }
  check("a scalar from the middle of a tensor", [&] {
    at::Tensor factor = host.select(0, 3).select(0, 2).select(0, 1);
    return different(at::mul(host.to(device), factor), at::mul(host, factor));
  });
  return checks;
}

// --- gradients ---

std::vector<std::pair<std::string, double>> check_backward(c10::Device device) {
  constexpr std::int64_t rows = 12, width = 64;
  auto values = [](at::IntArrayRef shape, double phase) {
    std::int64_t n = 1;
    for (std::int64_t extent : shape) n *= extent;
    return (at::sin(at::arange(n, at::kDouble) * 0.7 + phase)).view(shape);
  };
  const std::vector<std::pair<std::string, at::Tensor>> inputs{
      {"x", values({rows, width}, 0.1)},
      {"W_in", values({width, 4 * width}, 0.2) / 8},
      {"b_in", values({4 * width}, 0.3)},
      {"W_out", values({4 * width, width}, 0.4) / 16}};
  // The same numbers on both sides: what float32 holds.
  auto gradients = [&](c10::Device where, c10::ScalarType type) {
    std::vector<at::Tensor> leaves, grads;
    for (const auto& [name, value] : inputs)
      leaves.push_back(value.to(at::kFloat).to(type).to(where).set_requires_grad(true));
    at::Tensor hidden = at::gelu(at::addmm(leaves[2], leaves[0], leaves[1]), "tanh");
    at::Tensor loss = at::mm(hidden, leaves[3]).pow(2).mean();
    step("gradients on " + where.str());
    loss.backward();
    for (const at::Tensor& leaf : leaves) grads.push_back(leaf.grad().to(at::kCPU).to(at::kDouble));
    return grads;
  };
  auto exact = gradients(at::kCPU, at::kDouble), found = gradients(device, at::kFloat);
  std::vector<std::pair<std::string, double>> errors;
  for (std::size_t i = 0; i < inputs.size(); ++i)
    errors.emplace_back(inputs[i].first, at::norm(found[i] - exact[i]).item<double>() /
                                             at::norm(exact[i]).item<double>());
  return errors;
}

}  // namespace lenscpp::command
