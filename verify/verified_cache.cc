// Caches and the refusal to read what was not checked.
#include "verify/verified_cache.h"

#include <map>
#include <type_traits>

#include "hooks/nearest.h"

namespace lenscpp {

// An analysis on unverified numbers does not compile: there is no way to make its argument, but for
// the verifier and for the reader of the files that its caches are saved to.
static_assert(!std::is_default_constructible_v<VerifiedCache>);
static_assert(!std::is_constructible_v<VerifiedCache, UnverifiedCache>);
static_assert(!std::is_constructible_v<VerifiedCache, std::shared_ptr<const Weights>, Activations,
                                       RunRecord, Verdict>);
static_assert(!std::is_convertible_v<UnverifiedCache, VerifiedCache>);
static_assert(!std::is_aggregate_v<VerifiedCache>);

namespace {

const Array& unchanged(const Activations::Entry& entry) {
  if (entry.name.empty()) throw NotVerified("[cache] the output of this run was not recorded");
  if (entry.value.digest() != entry.digest)
    throw NotVerified(
        "[cache] " + entry.name +
        ": its bytes are no longer those that were verified; something wrote to the memory");
  return entry.value;
}

}  // namespace

void Activations::add(const TensorId& id, Array value, std::string digest) {
  entries_.push_back({hook_name(id.site, id.layer), id, std::move(value), std::move(digest)});
}
void Activations::set_output(const TensorId& id, Array value, std::string digest) {
  output_ = {hook_name(id.site, id.layer), id, std::move(value), std::move(digest)};
}

const Activations::Entry* Activations::find(std::string_view name) const {
  for (const Entry& entry : entries_)
    if (entry.name == name) return &entry;
  return nullptr;
}

const Activations::Entry& Activations::at(std::string_view name) const {
  if (const Entry* entry = find(name)) return *entry;
  std::vector<std::string> names;
  for (const Entry& entry : entries_) names.push_back(entry.name);
  throw std::invalid_argument("[cache] \"" + std::string(name) + "\" is not in this cache of " +
                              std::to_string(names.size()) + " activations" +
                              (names.empty() ? "" : "; nearest: " + nearest_names(name, names)));
}

const Array& VerifiedCache::operator[](std::string_view name) const {
  return unchanged(state_->activations.at(name));
}
const std::shared_ptr<const Weights>& VerifiedCache::shared_weights() const {
  if (state_->weights) return state_->weights;
  throw std::invalid_argument(
      "[cache] this run of \"" + state_->record.model +
      "\" was loaded without its model, whose weights are needed here; load it with "
      "lens.load(path, model) (C++: load_run(path, model))");
}
const Array& VerifiedCache::output() const { return unchanged(state_->activations.output()); }

VerificationFailed::VerificationFailed(UnverifiedCache cache)
    : std::runtime_error(cache.verdict().summary()),
      cache_(std::make_shared<const UnverifiedCache>(std::move(cache))) {}

}  // namespace lenscpp
