// What the commands share: options, exit statuses, faults to try out, words for a run. A command is a function
// that gives its options to the parser and returns what to do once they are filled in.
#pragma once

#include <CLI/CLI.hpp>

#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "lens/fault_injection.h"
#include "lens/hooked_transformer.h"
#include "lens/logit_lens.h"

namespace lenscpp::command {

/// What the program returns. Anything that no other status means is `other`.
enum class ExitStatus : std::uint8_t { done = 0, other = 1, usage = 2, refused = 3, device = 4 };

/// A command that ends with its own status: the message says where, what was found, what is allowed.
class Failure : public std::runtime_error {
 public:
  Failure(ExitStatus status, const std::string& message) : std::runtime_error(message), status_(status) {}
  ExitStatus status() const { return status_; }

 private:
  ExitStatus status_;
};

struct CommonOptions {
  std::string model, device = "cpu", dtype = "float32", verify = "exact";
  std::int64_t threads = 0;  // 0: as many as LibTorch takes
  std::uint64_t seed = 0;
  bool no_processing = false, json = false;
  std::vector<std::string> inject = {};
};

/// A command's work: returns its exit status and throws for every failure.
using Action = std::function<ExitStatus()>;
/// One a file. Each adds a subcommand of its name to `program`.
Action add_run(CLI::App& program);
Action add_lens(CLI::App& program);
Action add_demo(CLI::App& program);

/// --device --dtype --threads --seed --no-processing --json.
void add_common_options(CLI::App& command, CommonOptions& options);
/// --verify --inject.
void add_checking_options(CLI::App& command, CommonOptions& options);

/// The mode of `--verify`, and a site that the logit lens reads. Throw std::invalid_argument naming what is allowed.
VerifyMode verify_mode(const CommonOptions& options);
Site lens_site(const std::string& name);

/// Loads the model as the options say. Throws Failure: `usage` for what cannot be read, `refused` when the processed
/// weights compute something else than the checkpoint.
HookedTransformer load(const CommonOptions& options);

/// The faults of --inject, and what became of them.
class Faults {
 public:
  Faults(const CommonOptions& options, const Config& config);
  Interference interference() const { return injector_ ? interference_of(injector_) : Interference(); }
  bool any() const { return injector_ != nullptr; }
  /// Each that fired: "head at blocks.1.attn.hook_z changed 480 elements". Empty without --inject.
  std::string in_words() const;
  nlohmann::ordered_json to_json() const;

 private:
  std::shared_ptr<FaultInjector> injector_;
};
/// "NAME[:key=value,...][@HOOK]". Throws std::invalid_argument saying what it could not read.
FaultSpec parse_fault(const std::string& text, std::uint64_t seed);

/// Calls `body`, which uses the device: what LibTorch throws becomes a Failure in one line.
void on_device(const CommonOptions& options, const std::function<void()>& body);
VerifiedCache run_checked(const CommonOptions& options, const HookedTransformer& model, const Tokens& tokens, const RunOptions& run);

/// The text of a token; "<id 7>" for an id of the model that its tokenizer has not.
std::string token_text(const HookedTransformer& model, std::int64_t id);
/// "15 tokens: "When" " John" ...", cut in the middle when there are many.
std::string tokens_in_words(const HookedTransformer& model, const Tokens& tokens);
/// "tiny-ioi on cpu in float32".
std::string model_in_words(const HookedTransformer& model);
nlohmann::ordered_json tokens_to_json(const HookedTransformer& model, const Tokens& tokens);
nlohmann::ordered_json to_json(const HookedTransformer& model, const std::vector<RankedToken>& top);
/// A record with the seed of the options.
nlohmann::json record_to_json(const RunRecord& record, const CommonOptions& options);

/// Logits [batch, pos, d_vocab] as one row of a lens: to rank tokens and turn them into probabilities.
LogitLens as_lens(const Array& logits);
/// The logit lens at the last of its positions: a row a layer, the `k` most likely tokens, and how `followed` stands.
std::string lens_table(const HookedTransformer& model, const LogitLens& lens, std::int64_t followed, std::int64_t k);
nlohmann::ordered_json lens_to_json(const HookedTransformer& model, const LogitLens& lens, std::int64_t followed, std::int64_t k);

/// A file to be written: refuses (std::invalid_argument) what cannot be, before any work is done.
std::filesystem::path checked_output(const std::string& path);
/// Writes what the caller vouches for: activations, tokens, and verdict, record and prompt in the metadata.
/// Returns the file's size in bytes.
std::uintmax_t save(const std::filesystem::path& path, const std::map<std::string, Array>& activations, const Tokens& tokens,
                    const nlohmann::ordered_json& document);
std::map<std::string, Array> activations_of(const VerifiedCache& cache);
std::map<std::string, Array> activations_of(const UnverifiedCache& cache);

/// One JSON document and a line break, invalid UTF-8 replaced.
void print_json(const nlohmann::ordered_json& document);

}  // namespace lenscpp::command
