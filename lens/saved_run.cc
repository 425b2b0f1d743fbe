// Saved runs and their model.
#include "lens/saved_run.h"

namespace lenscpp {

std::vector<std::string> token_strings(const Tokenizer& tokenizer,
                                       const std::vector<std::int64_t>& ids) {
  std::vector<std::string> strings;
  for (std::int64_t id : ids)
    strings.push_back(tokenizer.contains(id) ? tokenizer.token(id)
                                             : "<id " + std::to_string(id) + ">");
  return strings;
}

ModelAtHand at_hand(const HookedTransformer& model) {
  return {model.shared_weights(), model.digest()};
}

LoadedRun load_run(const std::filesystem::path& path, const HookedTransformer& model) {
  return load_run(path, at_hand(model));
}

}  // namespace lenscpp
