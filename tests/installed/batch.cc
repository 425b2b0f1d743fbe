// A data set of pairs, every patched run verified, in a folder that can be resumed: one file of
// statistics.
#include <lenscpp/lenscpp.h>

#include <cstdio>

int main(int, char** argv) try {
  auto model = lenscpp::HookedTransformer::from_pretrained(argv[1]);
  auto task = lenscpp::ioi_task(model, {.n = 24});
  lenscpp::BatchOptions options;
  options.tokenize.sites = {{"z", {"layer", "head"}}};

  auto report = lenscpp::run_experiments(model, task.experiments, options,
                                         {.folder = argv[2], .resume = true});
  std::puts(report.summary().c_str());
  if (!report.complete()) return report.refused > 0 ? 3 : 1;

  std::string path = std::string(argv[2]) + "/merged.h5";
  lenscpp::merge_batch(argv[2], path);
  auto merged = lenscpp::MergedFile::open(path);  // or throws NotVerified
  auto statistics = merged.statistics("z");
  for (std::int64_t cell : statistics.top) {
    const auto& s = statistics.cells[static_cast<std::size_t>(cell)];
    std::printf("layer %d, head %d: %+.3f (%+.3f to %+.3f), n %d\n", int(cell / 4), int(cell % 4),
                s.mean, s.low, s.high, int(s.n));
  }
} catch (const std::exception& e) {
  std::fprintf(stderr, "%s\n", e.what());
  return 1;
}
