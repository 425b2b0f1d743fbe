// The table of limits. Sources: PyTorch's aten/src/ATen/mps and its issues, Apple's own assertions.
#include "verify/device/limits.h"

#ifdef __APPLE__
#include <sys/sysctl.h>
#endif

#include <charconv>
#include <stdexcept>

namespace lenscpp {
namespace {

// What [MPSNDArray initWithDevice:] asserts (it aborts the process), and MPSGraph's own checks.
std::vector<Limit> mps() {
  constexpr std::int64_t one = 1;
  return {
      {.name = "2^32 bytes a buffer", .measure = Measure::bytes, .most = (one << 32) - 1},
      {.name = "2^31 elements a tensor", .measure = Measure::elements, .most = (one << 31) - 1},
      {.name = "2^31 - 1 a dimension", .measure = Measure::dimension, .most = (one << 31) - 1},
      {.name = "16 dimensions", .measure = Measure::rank, .most = 16},
      {.name = "32768 columns of a product",
       .measure = Measure::columns,
       .most = 32768,
       .source = "pytorch 116769",
       .first = {2, 1},
       .last = Version{2, 2}},
      {.name = "32766 terms of a product's sums",
       .measure = Measure::terms,
       .most = 32766,
       .source = "pytorch 195163",
       .first = {2, 7}},
      {.name = "65536 products in one call",
       .measure = Measure::product_batch,
       .most = 65536,
       .source = "pytorch 189495",
       .first = {2, 12},
       .last = Version{2, 14}},
      {.name = "2^31 elements a table",
       .measure = Measure::table,
       .most = one << 31,
       .source = "pytorch 188756",
       .first = {2, 12},
       .last = Version{2, 13}},
  };
}

}  // namespace

Version version_from(std::string_view text) {
  Version version;
  const char* end = text.data() + text.size();
  auto major = std::from_chars(text.data(), end, version.major);
  if (major.ec == std::errc() && major.ptr != end && *major.ptr == '.')
    if (std::from_chars(major.ptr + 1, end, version.minor).ec == std::errc()) return version;
  throw std::invalid_argument("[preflight] \"" + std::string(text) +
                              "\" is no version; one looks like 2.13");
}

std::string to_string(const Version& version) {
  return std::to_string(version.major) + "." + std::to_string(version.minor);
}

std::string_view name_of(Measure measure) {
  switch (measure) {
    case Measure::bytes:
      return "bytes";
    case Measure::elements:
      return "elements";
    case Measure::dimension:
      return "dimension";
    case Measure::rank:
      return "rank";
    case Measure::terms:
      return "terms";
    case Measure::product_batch:
      return "product_batch";
    case Measure::columns:
      return "columns";
    case Measure::table:
      return "table";
  }
  throw std::logic_error("[limits] not a Measure");
}

bool applies(const Limit& limit, const Version& torch) {
  return torch >= limit.first && (!limit.last || torch <= *limit.last);
}

DeviceLimits known_limits(std::string_view kind) {
  DeviceLimits known{.device = std::string(kind)};
  if (kind == "mps") known.limits = mps();
  return known;
}

DeviceLimits limits_of(std::string_view kind, const Version& torch) {
  DeviceLimits limits = known_limits(kind);
  std::erase_if(limits.limits, [&](const Limit& limit) { return !applies(limit, torch); });
  return limits;
}

std::optional<std::string> why_not(std::string_view kind, const std::optional<Version>& os,
                                   std::string_view dtype) {
  if (kind != "mps") return {};
  if (dtype == "float64")
    return "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support "
           "float64. Please use float32 instead.";
  if (dtype == "complex128")
    return "Trying to convert ComplexDouble to the MPS backend but it does not have support for "
           "that dtype.";
  if (dtype == "bfloat16" && os && *os < Version{14, 0})
    return "MPS BFloat16 is only supported on MacOS 14 or newer";
  return {};
}

std::optional<Version> running_macos() {
#ifdef __APPLE__
  char text[64] = {};
  std::size_t size = sizeof text - 1;
  if (sysctlbyname("kern.osproductversion", text, &size, nullptr, 0) == 0)
    return version_from(text);
#endif
  return {};
}

}  // namespace lenscpp
