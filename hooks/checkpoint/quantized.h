// Quantized checkpoints, told by name: their numbers are not the weights, so they are refused with
// what they are and what to do.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace lenscpp {

/// "gptq, 4 bits": what a config.json's quantization_config says, however it is spelled.
std::string quantization_method(const nlohmann::json& quantization_config);

/// The method that a tensor's name or type in the file betrays without the config's help
/// ("bitsandbytes, 8 bits"); nothing for a tensor of plain numbers, or of masks.
std::optional<std::string> quantization_of(std::string_view tensor, std::string_view file_dtype);

/// What to do about it, for the end of a message.
inline constexpr std::string_view kDequantize =
    "quantized weights are not read: take the unquantized checkpoint, or save it as one: "
    "model.dequantize().save_pretrained(other_folder) in transformers";

}  // namespace lenscpp
