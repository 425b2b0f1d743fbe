// The streaming verifier: a sink that checks each link as soon as its inputs and output are there,
// and drops what no later link and no user needs. It alone can make a VerifiedCache.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "hooks/parallel.h"
#include "hooks/rows.h"
#include "hooks/sink.h"
#include "verify/reference/checksum.h"
#include "verify/verified_cache.h"

namespace lenscpp {

/// What to keep of a run, and what to report beside the verdict.
struct VerifierOptions {
  DType dtype;                                              // of the model on the device
  std::function<bool(Site, std::int64_t layer)> keep = {};  // nothing is kept without it
  /// Keep only these positions (along pos, or query for attention). All are checked all the same.
  std::optional<std::vector<std::int64_t>> pos_slice = {};
  // Also run in float64 from the tokens: about as long again as the check. What a callback changes,
  // that run takes as returned.
  bool drift = false;
  /// Set: products are checked by these projections (VerifyMode::checksum), whose seed is recorded.
  std::shared_ptr<Projections> projections = {};
  ParallelFor parallel = serial_for;
  MatmulPrecision matmul_precision = MatmulPrecision::ieee;  // as declared for the run
};

/// What checking a run recorded elsewhere needs to know.
struct RecordedOptions {
  DType dtype;  // of the model when it was recorded
  ParallelFor parallel = serial_for;
  MatmulPrecision matmul_precision = MatmulPrecision::ieee;
};

/// Checks one run while it runs. Feed it through take() in execution order, then call finish().
class Verifier : public Sink {
 public:
  /// `request` must be valid for the weights.
  Verifier(std::shared_ptr<const Weights> weights, const Request& request, VerifierOptions options);

  void take(const TensorId& id, const Array& value) override;
  void take_returned(const TensorId& id, const Array& value) override;
  /// The verified activations. Throws VerificationFailed when any link failed, was not computed, or
  /// nothing was compared.
  VerifiedCache finish(RunRecord record) &&;

 private:
  friend VerifiedCache verify_recorded(std::shared_ptr<const Weights>, const Request&,
                                       const std::map<std::string, Array>&, RunRecord,
                                       const RecordedOptions&);
  static VerifiedCache check_recorded(std::shared_ptr<const Weights> weights, Request request,
                                      const std::map<std::string, Array>& recorded,
                                      RunRecord record, const RecordedOptions& options);

  struct Live {
    Array value;
    std::string digest;  // when it arrived
    std::int64_t readers;
    bool failed;
  };

  void report(Point point);
  void skip_to(std::size_t link);
  void check(const Link& link, const Array& value);
  void follow_in_float64(const Link& link, const Array& value);
  void retire_inputs(const Link& link);
  void keep(const TensorId& id, const Array& value, const std::string& digest);
  Shape shape_of_link(const Link& link) const;

  std::shared_ptr<const Weights> weights_;
  Request request_;
  VerifierOptions options_;
  std::vector<Link> links_;
  std::size_t next_ = 0;
  std::map<TensorId, std::int64_t> readers_;
  std::map<TensorId, Live> live_;
  std::map<TensorId, Array> exact_;  // the float64 run's values that are still to be read
  std::vector<Point> points_;
  Drift drift_;
  Activations kept_;
  double seconds_ = 0;
};

/// Largest share of a recorded tensor (root mean squares) by which gaps before it may widen its
/// bounds.
inline constexpr double kWidestGap = 0.01;

/// Checks activations recorded elsewhere (full hook name -> value). Links that were not recorded
/// are recomputed in float64 inside the link that spans them, with its bound widened by how far
/// their own rounding can reach, and listed in verdict.recomputed. Throws VerificationFailed;
/// std::invalid_argument for unknown names, wrong shapes or dtypes, or when nothing that was
/// recorded can be checked.
VerifiedCache verify_recorded(std::shared_ptr<const Weights> weights, const Request& request,
                              const std::map<std::string, Array>& recorded, RunRecord record,
                              const RecordedOptions& options);

}  // namespace lenscpp
