// What a device cannot do, as numbers that a plan can be held against before anything runs: Apple's
// assertions abort the process, so nothing is ever tried. Sizes, thresholds beyond which a known
// bug gives wrong numbers, and the table of dtypes. Arithmetic only; no torch.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lenscpp {

/// A version of PyTorch or of an operating system: 2.13, 14.0.
struct Version {
  int major = 0, minor = 0;
  auto operator<=>(const Version&) const = default;
};
/// "2.13.0+cpu" is 2.13. Throws std::invalid_argument for what does not begin with two numbers.
Version version_from(std::string_view text);
std::string to_string(const Version& version);

/// What of a tensor, or of a matrix product of a run, a limit is about.
enum class Measure : std::uint8_t {
  bytes,          // of one buffer
  elements,       // of one tensor
  dimension,      // the largest extent of one tensor
  rank,           // of one tensor
  terms,          // of each sum in a product whose rows and columns are both at least 16
  product_batch,  // products in one batched call
  columns,        // of a product
  table,          // elements of a table whose rows are looked up
};
std::string_view name_of(Measure measure);

/// The largest value that a device takes; beyond it, it aborts, throws, or computes wrong numbers.
struct Limit {
  std::string name;  // "2^32 bytes a buffer"
  Measure measure;
  std::int64_t most;   // the largest allowed
  std::string source;  // of a known bug: "pytorch 195163"; empty for what the device documents
  Version first = {};  // of the PyTorch versions with the bug
  std::optional<Version> last = {};  // the last one known to have it; unset: it still stands
};

/// The limits of one device that stand in one version of PyTorch. Empty: no limits.
struct DeviceLimits {
  std::string device;
  std::vector<Limit> limits = {};
};

/// Whether the limit stands in this version.
bool applies(const Limit& limit, const Version& torch);
/// All that is known about a kind of device ("cpu", "cuda", "mps", ...), bugs of any version
/// included.
DeviceLimits known_limits(std::string_view kind);
/// Those of known_limits that stand in `torch`.
DeviceLimits limits_of(std::string_view kind, const Version& torch);

/// Why a device of this kind cannot hold `dtype` ("float64", "complex64"), in PyTorch's own words;
/// nothing where it can. `os`: version of macOS, where that decides; unset: unknown, and not held
/// against the dtype.
std::optional<std::string> why_not(std::string_view kind, const std::optional<Version>& os,
                                   std::string_view dtype);
/// The version of this machine's macOS; nothing on anything else.
std::optional<Version> running_macos();

}  // namespace lenscpp
