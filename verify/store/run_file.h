// A run as a sealed file of kind "run":
//
//   /run                {config, record, activations: [id in execution order], output: id or null,
//   remarks} /prompts/tokens     int64 [batch, pos]; absent when the run started from a residual
//   /prompts/strings    the tokens' texts, row-major; absent without a tokenizer
//   /prompts/positions  int64: the positions that pos_slice kept; absent where all were
//   /act/HOOK NAME      one activation
//   /output             what the run returned
//   /verdict            the verdict without its points
//   /verify/HOOK NAME   the points of that tensor, each with its place in the execution
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "verify/verified_cache.h"

namespace lenscpp {

/// What a file says of a run beside what its cache does.
struct RunNotes {
  std::vector<std::string> strings = {};  // of the tokens, [batch * pos]; empty without a tokenizer
  std::optional<std::vector<std::int64_t>> positions = {};  // that were kept, where not all were
  nlohmann::json remarks = nlohmann::json::object();        // of the program that made the run
};

/// Saves a run. Throws NotVerified when an activation's bytes are no longer those that were
/// checked, and what SealedWriter throws; what stood at `path` is then as before.
void save_run(const std::filesystem::path& path, const VerifiedCache& cache,
              const RunNotes& notes = {});
/// Saves a run with its status, UNVERIFIED or INVALID, so that load_run refuses it.
void save_run(const std::filesystem::path& path, const UnverifiedCache& cache,
              const RunNotes& notes = {});

/// A model that a run is loaded with: its weights, and its digest as runs record it.
struct ModelAtHand {
  std::shared_ptr<const Weights> weights;
  std::string digest;
};
struct LoadedRun {
  VerifiedCache cache;
  RunNotes notes;
};
struct LoadedUnverifiedRun {
  UnverifiedCache cache;
  RunNotes notes;
};

/// Reads a whole run and checks every byte of it. Without a model, cache.weights() throws. Throws
/// what SealedFile::open throws, NotVerified for an activation that does not match its digest, and
/// std::invalid_argument for another kind of file or a model of another digest.
LoadedRun load_run(const std::filesystem::path& path, const std::optional<ModelAtHand>& model = {});
/// Reads a run whatever its status and digests say: UNVERIFIED, or INVALID where the file says so.
LoadedUnverifiedRun load_run_unverified(const std::filesystem::path& path,
                                        const std::optional<ModelAtHand>& model = {});

}  // namespace lenscpp
