// The activations of a run, in two types: one that only the verifier can make and every analysis
// takes, and one for everything else. Also the three exceptions of this library.
#pragma once

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "hooks/run_record.h"
#include "verify/verdict.h"

namespace lenscpp {

/// Named activations in execution order. Immutable once in a cache.
class Activations {
 public:
  struct Entry {
    std::string name;  // full hook name
    TensorId id;
    Array value;
    std::string digest;  // of `value` when it was checked
  };

  /// `digest`: of the value before it was checked.
  void add(const TensorId& id, Array value, std::string digest);
  /// What the run returned: logits [batch, pos, d_vocab], or the residual where it stopped. Kept
  /// whatever else was.
  void set_output(const TensorId& id, Array value, std::string digest);
  const Entry& output() const { return output_; }
  const std::vector<Entry>& entries() const { return entries_; }
  const Entry* find(std::string_view name) const;
  /// Throws std::invalid_argument naming the nearest names.
  const Entry& at(std::string_view name) const;

 private:
  std::vector<Entry> entries_;
  Entry output_;
};

/// Activations of which nothing is known. Readable; no analysis takes it.
class UnverifiedCache {
 public:
  /// `config` is needed where there are no weights: of a run loaded without its model.
  UnverifiedCache(std::shared_ptr<const Weights> weights, Activations activations, RunRecord record,
                  Verdict verdict, std::optional<Config> config = {})
      : weights_(std::move(weights)),
        activations_(std::move(activations)),
        record_(std::move(record)),
        verdict_(std::move(verdict)),
        config_(std::move(config)) {}
  const Config& config() const { return weights_ ? weights_->config : config_.value(); }
  const Activations& activations() const { return activations_; }
  const Array& operator[](std::string_view name) const { return activations_.at(name).value; }
  const RunRecord& record() const { return record_; }
  const Verdict& verdict() const { return verdict_; }

 private:
  std::shared_ptr<const Weights> weights_;
  Activations activations_;
  RunRecord record_;
  Verdict verdict_;
  std::optional<Config> config_;
};

/// Activations that were checked, all of them, against the reference. Only a Verifier can make one,
/// and the buffers it holds are the very ones that were compared; and verify/store/run_file, from a
/// file that a Verifier's was saved to.
class VerifiedCache {
 public:
  const Activations& activations() const { return state_->activations; }
  /// The value under a full hook name. Throws std::invalid_argument for an unknown name,
  /// NotVerified when the bytes are no longer those that were checked.
  const Array& operator[](std::string_view name) const;
  /// What the run returned, under the same guard.
  const Array& output() const;
  const RunRecord& record() const { return state_->record; }
  const Verdict& verdict() const { return state_->verdict; }
  const Config& config() const {
    return state_->weights ? state_->weights->config : state_->config.value();
  }
  /// Throw std::invalid_argument for a run that was loaded from a file without its model.
  const Weights& weights() const { return *shared_weights(); }
  const std::shared_ptr<const Weights>& shared_weights() const;

 private:
  friend class Verifier;
  friend class RunReader;
  struct State {
    std::shared_ptr<const Weights> weights;
    Activations activations;
    RunRecord record;
    Verdict verdict;
    std::optional<Config> config = {};  // of a run without weights
  };
  explicit VerifiedCache(State state) : state_(std::make_shared<const State>(std::move(state))) {}

  std::shared_ptr<const State> state_;
};

/// The run was INVALID: what the device computed is not the model.
class VerificationFailed : public std::runtime_error {
 public:
  explicit VerificationFailed(UnverifiedCache cache);
  const Verdict& verdict() const { return cache_->verdict(); }
  const RunRecord& record() const { return cache_->record(); }
  const UnverifiedCache& unverified_cache() const { return *cache_; }

 private:
  std::shared_ptr<const UnverifiedCache> cache_;  // shared: exceptions are copied
};

/// An analysis was handed something else than a VerifiedCache, or the bytes no longer match.
class NotVerified : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The device is missing, out of its limits, or refused.
class DeviceError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace lenscpp
