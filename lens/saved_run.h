// Saved runs and the model that they are of: verify/store/run_file with tokenizer and weights.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lens/hooked_transformer.h"
#include "verify/store/run_file.h"

namespace lenscpp {

/// The text of each token; "<id 7>" for an id that the tokenizer has not.
std::vector<std::string> token_strings(const Tokenizer& tokenizer,
                                       const std::vector<std::int64_t>& ids);
/// The model as load_run takes it.
ModelAtHand at_hand(const HookedTransformer& model);
/// Reads a run of this very model, so that analyses find its weights. Throws what load_run of
/// verify/store/run_file.h throws.
LoadedRun load_run(const std::filesystem::path& path, const HookedTransformer& model);

}  // namespace lenscpp
