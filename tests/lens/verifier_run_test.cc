#include <gtest/gtest.h>
#include <iostream>
#include "hooks/transformer/transformer.h"
#include "tests/golden_cases.h"
#include "verify/verifier.h"
#include "lens/torch_parallel.h"
namespace lenscpp { namespace {
TEST(Probe, AllCases) {
  for (auto name : golden::case_names()) for (DType d : {DType::f32, DType::f64, DType::bf16, DType::f16}) for (bool p : {false, true}) {
    auto w = std::make_shared<const Weights>(cast(process(load_weights(golden::folder(name), d==DType::f64?d:DType::f32), p ? Processing{} : Processing::none()), d));
    SafetensorsFile hf = SafetensorsFile::open(golden::folder(name) / "hf.safetensors");
    Array tokens = hf.tensor("tokens.0");
    Request request{.rows = Rows::from_tokens(golden::ids(tokens), tokens.size(0), w->config)};
    Verifier v(w, request, {.dtype = d, .keep = [](Site, std::int64_t) { return true; }, .drift = true, .parallel = torch_parallel_for});
    Transformer(w, at::kCPU).run(request, &v);
    std::string status = "ok"; double worst=0, rms=0;
    try { auto cache = std::move(v).finish({}); for (auto& q : cache.verdict().points) { worst = std::max(worst, q.worst_ratio); rms = std::max(rms, q.rms_ratio);} 
      if (name=="three_layers" && d==DType::f32 && !p) std::cout << cache.verdict().table() << "\n";
    } catch (const VerificationFailed& e) { status = e.what(); }
    std::cout << name << " " << name_of(d) << " " << p << " worst " << worst << " rms " << rms << " " << status << "\n";
    EXPECT_EQ(status, "ok");
  }
}
}}
