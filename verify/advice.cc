// Advice on precisions that were not declared.
#include "verify/advice.h"

namespace lenscpp {
namespace {

// How float32 products of 11 bits are turned off, by device.
std::string without_tf32(const RunRecord& record) {
  std::string device = record.device.substr(0, record.device.find(':'));
  auto forced = record.ambient.find("NVIDIA_TF32_OVERRIDE");
  if (device == "cuda" && forced != record.ambient.end() && forced->second != "0")
    return "unset NVIDIA_TF32_OVERRIDE, which turns TF32 on whatever torch says";
  // The run itself asked torch for full float32: what rounded nonetheless is below torch.
  auto pinned = record.ambient.find("cuda_float32_matmul");
  if (device == "cuda" && pinned != record.ambient.end() && pinned->second != "tf32")
    return "put NVIDIA_TF32_OVERRIDE=0 into the environment: in this run torch itself was set to "
           "full float32";
  if (device == "cuda")
    return "turn TF32 off: torch.backends.cuda.matmul.allow_tf32 = False (or "
           "NVIDIA_TF32_OVERRIDE=0 in the environment)";
  if (device == "mps")
    return "float32 products are known to keep about 11 bits on M5 GPUs (mlx 4411), and no switch "
           "of torch turns that off: use the CPU";
  return "turn off whatever rounds the operands of float32 products (on CUDA: "
         "torch.backends.cuda.matmul.allow_tf32 = False)";
}

}  // namespace

std::string advice_for(const Point& first, const RunRecord& record) {
  bool tf32 = first.hint.starts_with(kTf32Hint) && record.dtype == "float32" &&
              record.matmul_precision == MatmulPrecision::ieee;
  bool product = first.op == Op::linear || first.op == Op::head_linear ||
                 first.op == Op::head_result || first.op == Op::scores || first.op == Op::mix;
  if (!tf32 || !product) return "";
  return without_tf32(record) + "; or declare it: matmul_precision=\"tf32\"";
}

}  // namespace lenscpp
