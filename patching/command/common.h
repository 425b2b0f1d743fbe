// What the commands share: options, exit statuses, loading, faults to try out. A command is
// a function that gives its options to the parser and returns what to do once they are filled in.
#pragma once

#include <CLI/CLI.hpp>

#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "lens/fault_injection.h"
#include "lens/hooked_transformer.h"

namespace lenscpp::command {

/// What the program returns. Anything that no other status means is `other`.
enum class ExitStatus : std::uint8_t {
  done = 0,
  other = 1,
  usage = 2,
  refused = 3,
  device = 4,
  interrupted = 130,  // 128 + SIGINT
  terminated = 143    // 128 + SIGTERM
};

/// A command that ends with its own status: the message says where, what was found, what is
/// allowed.
class Failure : public std::runtime_error {
 public:
  Failure(ExitStatus status, const std::string& message)
      : std::runtime_error(message), status_(status) {}
  ExitStatus status() const { return status_; }

 private:
  ExitStatus status_;
};

struct CommonOptions {
  std::string model, device = "cpu", dtype = "float32", verify = "exact", matmul_precision = "ieee";
  std::int64_t threads = 0;  // 0: as many as LibTorch takes
  std::uint64_t seed = 0;
  bool no_processing = false, no_fallback = false, json = false;
  std::vector<std::string> inject = {};
  std::optional<std::string> adapter = {};
};

/// A command's work: returns its exit status and throws for every failure.
using Action = std::function<ExitStatus()>;
/// One a file. Each adds a subcommand of its name to `program`.
Action add_run(CLI::App& program);
Action add_verify(CLI::App& program);
Action add_show(CLI::App& program);
Action add_lens(CLI::App& program);
Action add_demo(CLI::App& program);
Action add_patch(CLI::App& program);
Action add_batch(CLI::App& program);
Action add_merge(CLI::App& program);
Action add_task(CLI::App& program);
Action add_compare(CLI::App& program);
Action add_preflight(CLI::App& program);
Action add_drill(CLI::App& program);
Action add_doctor(CLI::App& program);

/// No upper limit of its own.
constexpr std::int64_t kAnyNumber = std::numeric_limits<std::int64_t>::max();
/// A whole number from `least` to `most`, else an error that names both.
CLI::Validator whole_number(std::int64_t least, std::int64_t most);
/// MODEL.
void add_model_option(CLI::App& command, CommonOptions& options);
/// MODEL and --prompt.
void add_input_options(CLI::App& command, CommonOptions& options, std::string& prompt);
/// --device --dtype --threads --seed --no-processing --adapter --json.
void add_common_options(CLI::App& command, CommonOptions& options);
/// --verify --inject.
void add_checking_options(CLI::App& command, CommonOptions& options);

/// The mode of `--verify`, and a site that the logit lens reads. Throw std::invalid_argument naming
/// what is allowed.
VerifyMode verify_mode(const CommonOptions& options);
Site lens_site(const std::string& name);

/// Loads the model as the options say. Throws Failure: `usage` for what cannot be read, `refused`
/// when the processed weights compute something else than the checkpoint.
HookedTransformer load(const CommonOptions& options);

/// The faults of --inject, and what became of them.
class Faults {
 public:
  Faults(const CommonOptions& options, const Config& config);
  Interference interference() const { return faults_.interference(); }
  const std::shared_ptr<DeviceFaults>& device_faults() const { return faults_.device_faults(); }
  /// "injected: head at blocks.1.attn.hook_z changed 480 elements" and a line break; empty without
  /// --inject.
  std::string in_words(Status status) const;
  nlohmann::ordered_json to_json() const;

 private:
  InjectedFaults faults_;
};
/// "NAME[:key=value,...][@HOOK]". Throws std::invalid_argument saying what it could not read.
FaultSpec parse_fault(const std::string& text, std::uint64_t seed);

/// Calls `body`, which reads a file: one that cannot be read is bad input.
void from_disk(const std::function<void()>& body);
/// Calls `body`, which uses the device: what LibTorch throws becomes a Failure in one line.
void on_device(const CommonOptions& options, const std::function<void()>& body);
VerifiedCache run_checked(const CommonOptions& options, const HookedTransformer& model,
                          const Tokens& tokens, const RunOptions& run);

}  // namespace lenscpp::command
