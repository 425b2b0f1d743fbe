// Interventions as data: read by the device pass and by the reference's wiring alike, so that a
// patched run is as verifiable as a clean one.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "hooks/array.h"
#include "hooks/hook_point.h"

namespace lenscpp {

/// What an edit writes: the source's values; zero; the mean over batch and position; itself plus
/// factor * source; factor * itself.
enum class EditKind : std::uint8_t { patch, zero, mean, add, scale };
std::string_view name_of(EditKind kind);

/// Which elements of a site an edit touches; what is not given means all. `pos` is the position,
/// the query position for attn_scores and pattern, whose key positions are `key`.
struct Selection {
  std::optional<std::int64_t> batch, head, key;
  std::optional<std::vector<std::int64_t>> pos;
  bool operator==(const Selection&) const = default;
};

/// One of the places that a patch writes at once.
struct Piece {
  Selection where;  // in one prompt: `batch` is given
  Array values;     // [n]: for each element that `where` selects, in row-major order
};

/// One intervention at one hook point.
struct Edit {
  EditKind kind;
  Site site;
  std::int64_t layer = 0;
  Selection where = {};
  /// patch: shaped as the site, or with batch extent 1. add: that, or [d] for the last axis. mean:
  /// the activation to average instead of the run's own, any batch and pos. Else empty.
  Array source = {};
  double factor = 1.0;  // of add and scale
  /// patch: several places instead of `where` and `source`, each in a prompt after the one before.
  std::vector<Piece> pieces = {};
};

/// Throws std::out_of_range (layer, batch, pos, head, key) or std::invalid_argument (a site that
/// cannot be edited, a source of another shape, an axis that the site has not) naming the edit.
/// `extents`: of the run at the edit's hook point.
void validate(const Edit& edit, const Config& config, const Extents& extents);

/// Edits in the order in which they are applied at their hook points.
class Plan {
 public:
  Plan() = default;
  explicit Plan(std::vector<Edit> edits) : edits_(std::move(edits)) {}

  const std::vector<Edit>& edits() const { return edits_; }
  bool empty() const { return edits_.empty(); }
  /// The edits of one hook point, in order.
  std::vector<const Edit*> at(Site site, std::int64_t layer) const;
  bool touches(Site site, std::int64_t layer) const { return !at(site, layer).empty(); }
  /// Validates every edit of a run whose extents are the same everywhere.
  void validate(const Config& config, const Extents& extents) const;

 private:
  std::vector<Edit> edits_;
};

/// Edits as JSON, sources by their shape and digest.
nlohmann::json to_json(const Plan& plan);

/// Which elements an edit touches, as flat indices into `shape` in increasing order.
std::vector<std::int64_t> touched(const Edit& edit, const Shape& shape);
/// What a patch or an add brings for each of the elements that `touched` lists: `source` broadcast
/// over batch (and, for add of a vector, over everything but the last axis) to `shape`.
std::vector<double> source_values(const Edit& edit, const Shape& shape,
                                  const std::vector<std::int64_t>& touched);

}  // namespace lenscpp
