// What callbacks may return.
#include "hooks/callback.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace lenscpp {
namespace {

[[noreturn]] void refuse(const Callback& callback, const std::string& what) {
  throw std::invalid_argument("[hook] " + describe(callback) + " returned " + what);
}

std::string kind_of(const Array& array) {
  return std::string(name_of(array.dtype())) + " " + to_string(array.shape());
}

// -inf everywhere in a row of scores: the softmax of it is not a number.
void check_each_query_sees_a_key(const Callback& callback, const Array& scores) {
  std::int64_t keys = scores.size(-1);
  for (std::int64_t row = 0; row < scores.numel() / keys; ++row) {
    bool seen = false;
    for (std::int64_t key = 0; key < keys && !seen; ++key)
      seen = !std::isinf(scores[row * keys + key]);
    if (!seen)
      refuse(callback, "-inf for every key of row " + std::to_string(row) +
                           "; allowed: at least one finite score a query");
  }
}

}  // namespace

std::string describe(const Callback& callback) {
  return callback.name + " at " + hook_name(callback.site, callback.layer);
}

bool identical(const Array& a, const Array& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.empty() || std::memcmp(a.bytes(), b.bytes(), a.nbytes()) == 0);
}

void check_returned(const Callback& callback, const Array& before, const Array& after) {
  if (after.dtype() != before.dtype() || after.shape() != before.shape())
    refuse(callback, kind_of(after) + "; allowed: " + kind_of(before) + ", as it was handed");
  bool scores = callback.site == Site::attn_scores;
  std::size_t size = size_of(after.dtype());
  for (std::int64_t i = 0; i < after.numel(); ++i) {
    double x = after[i];
    if (std::isfinite(x) || (scores && std::isinf(x) && x < 0)) continue;
    std::size_t offset = static_cast<std::size_t>(i) * size;
    // Infinities of an honest overflow that the callback left alone are not its doing.
    if (std::memcmp(after.bytes() + offset, before.bytes() + offset, size) == 0) continue;
    refuse(callback, std::to_string(x) + " at element " + std::to_string(i) +
                         "; allowed: finite numbers" + (scores ? ", and -inf to hide a key" : ""));
  }
  if (scores) check_each_query_sees_a_key(callback, after);
}

}  // namespace lenscpp
