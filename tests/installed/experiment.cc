// Which head moves the name? Clean run, corrupted run, a grid of patches: all of them verified.
#include <lenscpp/lenscpp.h>

#include <cstdio>

int main(int, char** argv) try {
  auto model = lenscpp::HookedTransformer::from_pretrained(argv[1]);
  auto clean = model.to_tokens("When John and Mary went to the store, John gave the bag to");
  auto corrupted = model.to_tokens("When John and Mary went to the store, Mary gave the bag to");
  lenscpp::LogitDiff metric{model.to_single_token(" Mary"), model.to_single_token(" John")};

  lenscpp::VerifiedCache cache = model.run_with_cache(clean);  // or throws VerificationFailed
  std::puts(cache.verdict().summary().c_str());

  auto grid = lenscpp::patch_grid(
      model, cache, corrupted,
      {.site = lenscpp::Site::z, .over = {lenscpp::Axis::layer, lenscpp::Axis::head}}, metric);
  std::printf("clean %+.2f, corrupted %+.2f\n", grid.clean(), grid.corrupted());
  lenscpp::Array restored = grid.normalized();  // 0: as corrupted, 1: as clean
  for (std::int64_t layer = 0; layer < restored.size(0); ++layer)
    for (std::int64_t head = 0; head < restored.size(1); ++head)
      if (double x = restored[layer * restored.size(1) + head]; x > 0.1)
        std::printf("layer %d, head %d restores %.2f\n", int(layer), int(head), x);
} catch (const lenscpp::VerificationFailed& refused) {
  std::fprintf(stderr, "%s\n", refused.what());
  return 3;
}
