// What is pinned while a run lasts, what is recorded, and that everything is put back.
#include "hooks/transformer/ambient.h"

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <thread>

#include <cstdlib>
#include <optional>

namespace lenscpp {
namespace {

using Precision = at::Float32Precision;
constexpr auto kCuda = at::Float32Backend::CUDA;
constexpr auto kMatmul = at::Float32Op::MATMUL;

Precision products() { return at::globalContext().float32Precision(kCuda, kMatmul); }
void set_products(Precision p) { at::globalContext().setFloat32Precision(kCuda, kMatmul, p); }
void set_generic(Precision p) {
  at::globalContext().setFloat32Precision(at::Float32Backend::GENERIC, at::Float32Op::ALL, p);
}

class Ambient : public testing::Test {
 protected:
  ~Ambient() override {
    set_products(Precision::NONE);
    set_generic(Precision::NONE);
  }
};

TEST_F(Ambient, ProductsAreFullFloat32UnlessDeclared) {
  for (Precision before : {Precision::NONE, Precision::TF32}) {
    set_products(before);
    Precision found = products();
    {
      AmbientGuard guard(at::kCPU);
      EXPECT_NE(products(), Precision::TF32);
    }
    EXPECT_EQ(products(), found);
  }
}

TEST_F(Ambient, DeclaredTf32IsAskedOfCudaAndTakenBack) {
  for (Precision before : {Precision::NONE, Precision::IEEE, Precision::TF32}) {
    set_products(before);
    Precision found = products();
    {
      AmbientGuard guard(at::kCPU, MatmulPrecision::tf32);
      EXPECT_EQ(products(), Precision::TF32);
      EXPECT_EQ(AmbientGuard(at::kCPU).flags(), read_ambient(at::kCPU));
      EXPECT_EQ(products(), Precision::TF32);
    }
    EXPECT_EQ(products(), found);
  }
}

// Products of their own precision keep it; those that inherit inherit again.
TEST_F(Ambient, DeclaredTf32IsTakenBackBelowAGenericOne) {
  for (Precision generic : {Precision::NONE, Precision::IEEE, Precision::TF32})
    for (Precision before : {Precision::NONE, Precision::IEEE, Precision::TF32}) {
      set_generic(generic);
      set_products(before);
      Precision found = products();
      {
        AmbientGuard guard(at::kCPU, MatmulPrecision::tf32);
        EXPECT_EQ(products(), Precision::TF32);
      }
      EXPECT_EQ(products(), found);
    }
}

// In a thread of its own: guards that end in another order than runs of one thread do leave its
// gradient mode behind.
TEST_F(Ambient, OfSeveralRunsTheStrictestDecides) {
  std::thread([] {
    std::optional<AmbientGuard> declared, strict;
    declared.emplace(at::kCPU, MatmulPrecision::tf32);
    strict.emplace(at::kCPU);
    EXPECT_EQ(products(), Precision::IEEE);
    strict.reset();
    EXPECT_EQ(products(), Precision::TF32);
    strict.emplace(at::kCPU);
    declared.reset();
    EXPECT_EQ(products(), Precision::IEEE);
    strict.reset();
    EXPECT_EQ(products(), Precision::NONE);
  }).join();
}

TEST_F(Ambient, NarrowReductionsAreOffWhileItLasts) {
  at::Context& context = at::globalContext();
  auto before = context.allowBF16ReductionCuBLAS();
  {
    AmbientGuard guard(at::kCPU);
    EXPECT_EQ(context.allowBF16ReductionCuBLAS(),
              at::CuBLASReductionOption::DisallowReducedPrecisionDisallowSplitK);
    EXPECT_EQ(context.allowFP16ReductionCuBLAS(),
              at::CuBLASReductionOption::DisallowReducedPrecisionDisallowSplitK);
  }
  EXPECT_EQ(context.allowBF16ReductionCuBLAS(), before);
}

TEST_F(Ambient, NarrowAccumulationIsOffWhileItLasts) {
  at::Context& context = at::globalContext();
  for (bool before : {true, false}) {
    context.setAllowFP16AccumulationCuBLAS(before);
    EXPECT_EQ(read_ambient(at::Device("cuda")).at("cublas_fp16_accumulation"),
              before ? "on" : "off");
    {
      AmbientGuard guard(at::kCPU);
      EXPECT_FALSE(context.allowFP16AccumulationCuBLAS());
      EXPECT_EQ(read_ambient(at::Device("cuda")).at("cublas_fp16_accumulation"), "off");
    }
    EXPECT_EQ(context.allowFP16AccumulationCuBLAS(), before);
  }
  context.setAllowFP16AccumulationCuBLAS(false);
}

TEST_F(Ambient, FlagsOfCudaAreRecordedForCudaAlone) {
  auto cuda = read_ambient(at::Device("cuda")), cpu = read_ambient(at::kCPU);
  for (const char* name : {"cublas_tf32", "cuda_float32_matmul", "deterministic_cudnn"}) {
    EXPECT_TRUE(cuda.contains(name)) << name;
    EXPECT_FALSE(cpu.contains(name)) << name;
  }
  for (const char* name : {"deterministic_algorithms", "deterministic_fill", "autocast"})
    EXPECT_TRUE(cpu.contains(name)) << name;
}

// Torch throws where the old flag and the new one contradict each other.
TEST_F(Ambient, AFlagThatCannotBeReadSaysSo) {
  EXPECT_EQ(read_ambient(at::Device("cuda")).at("cublas_tf32"), "off");
  at::globalContext().setAllowTF32CuBLAS(true);
  set_products(Precision::IEEE);
  EXPECT_EQ(read_ambient(at::Device("cuda")).at("cublas_tf32"), "unreadable");
  at::globalContext().setAllowTF32CuBLAS(false);
}

TEST_F(Ambient, TheEnvironmentIsRecordedWhereItIsSet) {
  unsetenv("NVIDIA_TF32_OVERRIDE");
  EXPECT_FALSE(read_ambient(at::kCPU).contains("NVIDIA_TF32_OVERRIDE"));
  setenv("NVIDIA_TF32_OVERRIDE", "1", 1);
  setenv("PYTORCH_MPS_FAST_MATH", "1", 1);
  EXPECT_EQ(read_ambient(at::kCPU).at("NVIDIA_TF32_OVERRIDE"), "1");
  EXPECT_EQ(read_ambient(at::kCPU).at("PYTORCH_MPS_FAST_MATH"), "1");
  unsetenv("NVIDIA_TF32_OVERRIDE");
  unsetenv("PYTORCH_MPS_FAST_MATH");
}

}  // namespace
}  // namespace lenscpp
