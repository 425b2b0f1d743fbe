// A run on the simulated device from the installed package, and the same run with a fault in it.
#include <lenscpp/lenscpp.h>

#include <cstdio>

int main(int, char** argv) {
  auto model = lenscpp::HookedTransformer::from_pretrained(argv[1], {.device = "simulated"});
  auto tokens = model.to_tokens("When John and Mary went to the store, John gave the bag to");
  std::puts(model.run_with_cache(tokens).record().device_name.c_str());
  auto faults = std::make_shared<lenscpp::DeviceFaults>(
      std::vector<lenscpp::FaultSpec>{{.name = "P5", .hook = "blocks.1.hook_mlp_out"}},
      model.config());
  try {
    model.run_with_cache(tokens, {.device_faults = faults});
  } catch (const lenscpp::VerificationFailed& refused) {
    std::puts(to_string(*refused.verdict().first_failure()).c_str());
  }
}
