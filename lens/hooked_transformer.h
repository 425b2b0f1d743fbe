// HookedTransformer: a model, its tokenizer and its verifier, as researchers know it from
// TransformerLens.
#pragma once

#include <filesystem>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "hooks/checkpoint/processing.h"
#include "hooks/tokenizer/tokenizer.h"
#include "hooks/transformer/transformer.h"
#include "verify/device/limits.h"
#include "verify/verifier.h"

namespace lenscpp {

class DeviceFaults;

/// Token ids of prompts, [batch, pos], shorter ones padded.
struct Tokens {
  std::int64_t batch = 0, pos = 0;
  std::vector<std::int64_t> ids;         // row-major
  std::vector<Span> spans = {};          // where the tokens of each prompt stand; empty: no padding
  std::vector<std::int64_t> types = {};  // [batch * pos], the kind of each token; empty: 0
};

/// How a checkpoint is loaded. Nothing is chosen unasked: the device is the CPU.
struct LoadOptions {
  Processing processing = {};
  std::string device = "cpu";
  DType dtype = DType::f32;
  VerifyMode verify = VerifyMode::exact;
  std::optional<std::int64_t> first_n_layers = {};  // of the others nothing is read
  /// A folder of peft's, LoRA or DoRA, merged into the weights before anything else.
  std::optional<std::filesystem::path> adapter = {};
  /// What the device may do to operands of float32 products. tf32 lets it round them (and asks CUDA
  /// to), and widens the bounds of products by just that.
  MatmulPrecision matmul_precision = MatmulPrecision::ieee;
  bool allow_fallback = true;  // of operators to the CPU where the device has none; always recorded
  std::optional<bool> default_prepend_bos = {};  // unset: true where the tokenizer has such a token
  PaddingSide default_padding_side = PaddingSide::right;  // of prompts of unequal length
  std::optional<std::filesystem::path> tokenizer =
      {};  // unset: loaded_tokenizer, else tokenizer.json in the folder, if any
  std::optional<Tokenizer> loaded_tokenizer = {};
  std::optional<DeviceLimits> limits = {};  // unset: what is known of the device
};

/// Where a run starts that does not start from tokens.
struct Start {
  std::int64_t layer;  // negative from the end
  Array residual;      // resid_pre of that layer: [batch, pos, d_model], of the model's dtype
};

/// One call of a model.
struct RunOptions {
  std::optional<VerifyMode> verify = {};  // unset: the model's
  std::optional<std::vector<std::string>> names =
      {};  // hook names to keep, on-demand ones included
  std::function<bool(const std::string&)> filter =
      {};  // or those for which this holds; neither: all
  std::optional<std::vector<std::int64_t>> pos_slice = {};
  Plan plan = {};
  std::vector<Callback> callbacks = {};  // after the plan's edits at their hook points
  std::optional<Start> start = {};       // instead of tokens, of which there must be none then
  std::optional<std::int64_t> stop_at_layer =
      {};                          // exclusive, negative from the end: returns the residual there
  bool drift = false;              // report the distance from a float64 run
  Interference interference = {};  // faults injected at the taps
  // Faults inside the simulated device, armed for this run; std::invalid_argument on any other.
  std::shared_ptr<DeviceFaults> device_faults = {};
  Sink* watch = nullptr;  // is given every tensor too, internal ones included, before its check
};

/// A transformer whose every run is checked before anybody reads it. Const after loading.
class HookedTransformer {
 public:
  /// Reads a Hugging Face folder. Throws what read_config, load_weights, Adapter::open and
  /// Tokenizer::from_file throw; DeviceError when the device is unknown or missing, cannot hold the
  /// dtype or a weight, or when there is not enough memory, before anything large is read;
  /// std::runtime_error when the processed weights do not compute what the checkpoint computes, or
  /// merged ones are not the checkpoint's and the adapter's.
  static HookedTransformer from_pretrained(const std::filesystem::path& folder,
                                           const LoadOptions& options = {});
  HookedTransformer(std::shared_ptr<const Weights> weights, std::optional<Tokenizer> tokenizer,
                    const LoadOptions& options);

  /// The same model and tokenizer on `device`, its weights rounded to `dtype`. Throws DeviceError,
  /// std::invalid_argument naming the weight that overflows `dtype`.
  HookedTransformer moved(const std::string& device, DType dtype) const;

  const Config& config() const { return pass_->weights().config; }
  const Weights& weights() const { return pass_->weights(); }
  std::shared_ptr<const Weights> shared_weights() const { return pass_->shared_weights(); }
  const LoadOptions& options() const { return options_; }
  /// What of options().processing this model allows, and so was done to its weights.
  Processing processing() const { return applicable(options_.processing, config()); }
  const std::string& name() const { return name_; }
  /// Folder and digest of the adapter that was merged, as in every record; empty without one.
  const std::string& adapter() const { return adapter_; }
  bool has_tokenizer() const { return tokenizer_.has_value(); }
  /// Throws std::invalid_argument when there is none.
  const Tokenizer& tokenizer() const;
  /// Digest of config and weights; computed once, in the background of loading.
  std::string digest() const { return digest_.get(); }

  /// Tokens of one prompt or of several, shorter ones padded on a side; `prepend_bos` and `side`
  /// unset mean the model's defaults. A model that is not causal gets the special tokens that its
  /// tokenizer adds around a text ([CLS] ... [SEP]) instead of a bos. Throws std::invalid_argument
  /// (no tokenizer, no such token).
  Tokens to_tokens(const std::string& text, std::optional<bool> prepend_bos = {}) const;
  Tokens to_tokens(const std::vector<std::string>& texts, std::optional<bool> prepend_bos = {},
                   std::optional<PaddingSide> side = {}) const;
  /// Of two texts each, which the tokenizer puts together and tells apart by their types.
  Tokens to_tokens_of_pairs(const std::vector<std::pair<std::string, std::string>>& pairs,
                            std::optional<PaddingSide> side = {}) const;
  Tokens tokens_of(std::vector<std::int64_t> ids, std::int64_t batch) const;
  /// Rows of ids, shorter ones padded. Throws std::invalid_argument for an empty one.
  Tokens padded(const std::vector<std::vector<std::int64_t>>& rows,
                std::optional<PaddingSide> side = {}) const;
  /// What padding is filled with, which nothing reads: the tokenizer's pad token, or its eos, or 0.
  std::int64_t pad_token() const;
  std::string to_string(const std::vector<std::int64_t>& ids) const;
  std::vector<std::string> to_str_tokens(const std::string& text,
                                         std::optional<bool> prepend_bos = {}) const;
  /// single_token by this model's tokenizer.
  std::int64_t to_single_token(const std::string& text) const;

  /// Runs and verifies. Throws VerificationFailed when the run is INVALID; std::invalid_argument
  /// when verification is off for this call or model (then use run_unverified); DeviceError, before
  /// anything is allocated, when a tensor of the run is beyond a limit of the device or its memory.
  /// A batch that is beyond one runs in parts where that is exact: see lens/split_run.h.
  VerifiedCache run_with_cache(const Tokens& tokens, const RunOptions& options = {}) const;
  /// The output alone (logits, or the residual at stop_at_layer), verified all the same.
  Array forward(const Tokens& tokens, const RunOptions& options = {}) const;
  /// Runs without checking anything. No analysis takes the result.
  UnverifiedCache run_unverified(const Tokens& tokens, const RunOptions& options = {}) const;
  /// What run_with_cache runs: the prompts' rows, with the plan, the callbacks and the on-demand
  /// sites of `options`. Throws what run_with_cache throws for options that do not fit.
  Request request_for(const Tokens& tokens, const RunOptions& options) const;
  /// Whether the device can take the request in one go.
  bool fits(const Request& request) const;
  /// Runs any rows of the model, as the sweep engine does, and verifies what it computed; of
  /// `options` what rows and edits are does not come from the request: verify, names, filter,
  /// drift, faults and watch. Throws what run_with_cache throws, and what Request::validate throws.
  VerifiedCache run_request(const Request& request, const RunOptions& options) const;
  /// The output alone, checked by nobody whatever `options` says.
  Array run_request_unverified(const Request& request, const RunOptions& options) const;
  /// Checks activations recorded elsewhere from these tokens: see verify_recorded in
  /// verify/verifier.h.
  VerifiedCache verify_recorded(const Tokens& tokens,
                                const std::map<std::string, Array>& recorded) const;

 private:
  std::vector<std::int64_t> ids_of(const std::string& text, std::optional<bool> prepend_bos) const;
  PassResult pass(const Request& request, Sink* sink, const RunOptions& options) const;
  // What a pass over the request leaves, in one go or in parts, and how it was split.
  struct Computed {
    PassResult pass;
    std::vector<std::int64_t> split;
  };
  RunRecord record_for(const Request& request, const Computed& computed) const;
  PassResult armed_pass(const Request& request, Sink* sink, const RunOptions& options) const;
  Computed compute(const Request& request, Sink* sink, const RunOptions& options) const;
  void require_room(const Request& request, const RunOptions& options, bool in_parts) const;

  std::shared_ptr<const Transformer> pass_;
  std::optional<Tokenizer> tokenizer_;
  LoadOptions options_;
  std::string name_, adapter_;
  std::shared_future<std::string> digest_;
  std::shared_ptr<Projections> projections_ =
      std::make_shared<Projections>(Projections::secret_seed());  // of the weights, once needed
};

/// The prompts of a run that was recorded; without ids where it started from a residual.
Tokens tokens_of(const RunRecord& record);
/// All rows of a run from tokens.
Rows rows_of(const Tokens& tokens, const Config& config);

/// The one token of `text`; throws std::invalid_argument listing the tokens when it is not one.
std::int64_t single_token(const Tokenizer& tokenizer, const std::string& text);

/// Which hook points a call keeps: options.names, options.filter or all default ones. Throws
/// std::invalid_argument naming the nearest when something matches nothing.
std::vector<TensorId> selected_hooks(const Config& config, const RunOptions& options);

}  // namespace lenscpp
