// Names that quantization methods leave behind: transformers' quantization_config.py and the files
// that bitsandbytes, AutoGPTQ, AutoAWQ, compressed-tensors and fine-grained fp8 write.
#include "hooks/checkpoint/quantized.h"

#include <array>
#include <nlohmann/json.hpp>

namespace lenscpp {
namespace {

struct Trace {
  std::string_view ending, method;
};

constexpr std::array<Trace, 15> kTraces{{{".qweight", "gptq or awq"},
                                         {".qzeros", "gptq or awq"},
                                         {".g_idx", "gptq"},
                                         {".scales", "gptq or awq"},
                                         {".SCB", "bitsandbytes, 8 bits"},
                                         {".weight_format", "bitsandbytes, 8 bits"},
                                         {".absmax", "bitsandbytes, 4 bits"},
                                         {".nested_absmax", "bitsandbytes, 4 bits"},
                                         {".quant_map", "bitsandbytes, 4 bits"},
                                         {".quant_state.bitsandbytes__nf4", "bitsandbytes, nf4"},
                                         {".quant_state.bitsandbytes__fp4", "bitsandbytes, fp4"},
                                         {".weight_packed", "compressed-tensors"},
                                         {".weight_scale", "fp8 or compressed-tensors"},
                                         {".weight_scale_inv", "fp8"},
                                         {".input_scale", "fp8"}}};

}  // namespace

std::string quantization_method(const nlohmann::json& config) {
  if (!config.is_object()) return "an unknown method";
  auto flag = [&](const char* key) {
    auto it = config.find(key);
    return it != config.end() && it->is_boolean() && it->get<bool>();
  };
  std::string method = "an unknown method";
  for (const char* key : {"quant_method", "quant_algo", "method"})
    if (auto it = config.find(key); it != config.end() && it->is_string()) {
      method = it->get<std::string>();
      break;
    }
  bool four = flag("load_in_4bit") || flag("_load_in_4bit");
  bool eight = flag("load_in_8bit") || flag("_load_in_8bit");
  if ((four || eight) && method == "an unknown method") method = "bitsandbytes";
  for (const char* key : {"bits", "w_bit", "nbits"})
    if (auto it = config.find(key); it != config.end() && it->is_number_integer())
      return method + ", " + it->dump() + " bits";
  return method + (four ? ", 4 bits" : eight ? ", 8 bits" : "");
}

std::optional<std::string> quantization_of(std::string_view tensor, std::string_view file_dtype) {
  for (const Trace& trace : kTraces)
    if (tensor.ends_with(trace.ending)) return std::string(trace.method);
  if (file_dtype.starts_with("F8_")) return "fp8";
  bool weight = tensor.ends_with(".weight");
  if (weight && (file_dtype == "I8" || file_dtype == "U8")) return "packed or 8-bit integers";
  return {};
}

}  // namespace lenscpp
