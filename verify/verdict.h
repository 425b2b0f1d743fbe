// What the check of a run came to, with the evidence. A verdict sticks: it travels with the cache,
// the Python object and the file.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "verify/reference/exact.h"

namespace lenscpp {

/// verified: every link was compared and passed. invalid: at least one did not. unverified: not
/// checked.
enum class Status : std::uint8_t { verified, invalid, unverified };
/// How a run is checked: every element against float64; products by random projections of every row
/// and all else as in exact (checksum.h); or not at all.
enum class VerifyMode : std::uint8_t { exact, checksum, off };

std::string_view name_of(Status status);    // "VERIFIED", "INVALID", "UNVERIFIED"
std::string_view name_of(VerifyMode mode);  // "exact", "checksum", "off"
/// Throws std::invalid_argument naming what is allowed.
VerifyMode verify_mode_from_name(std::string_view name);

/// How far a run as a whole is from a float64 run from the same tokens: a report, never a verdict.
/// It is the numerical error bar of what is concluded from the run.
struct Drift {
  struct Row {
    std::string name;
    double max_abs;   // largest difference
    double relative;  // l2 norm of the difference over l2 norm of the float64 values; masked scores
                      // left out
  };
  std::vector<Row> points;  // in execution order
};

/// The outcome of checking one run.
struct Verdict {
  Status status = Status::unverified;
  VerifyMode mode = VerifyMode::off;
  std::vector<Point> points = {};  // in execution order
  double coverage = 0;             // share of the elements of all links that were compared exactly
  double seconds = 0;              // spent checking
  std::optional<Drift> drift = {};
  double widest_gap = 0;  // verify_recorded: largest widening of a bound, as a share of the tensor
  std::vector<std::string> recomputed = {};  // verify_recorded: links that were not recorded
  std::string advice = {};                  // what to do about the first failure, where it is known
  std::vector<std::string> fallbacks = {};  // operators that ran on the CPU instead of the device

  const Point* first_failure() const;
  std::int64_t n_compared() const;   // elements compared exactly
  std::int64_t n_projected() const;  // elements that only checksums covered
  /// One line: what, where, how bad, what to do.
  std::string summary() const;
  /// A table of the points, grouped by kind of site, with the summary below.
  std::string table() const;
};

nlohmann::json to_json(const Point& point);
nlohmann::json to_json(const Verdict& verdict);

}  // namespace lenscpp
