// The sweep engine: which rows of a run a patch can change at all, and requests that compute only
// those, many patches at once.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "lens/hooked_transformer.h"
#include "patching/metrics.h"

namespace lenscpp {

/// What a sweep leaves out because the base run holds it already. Each can be switched off by
/// itself; products of other shapes round otherwise, so values then differ by rounding.
struct Savings {
  bool layers = true;  // a patch starts at its own layer, from the base run's residual there
  bool rows = true;    // and where it is behind attention, at the next one: of its own layer only
                       // the rows that it changes are computed
  bool positions = true;  // earlier positions than the first that changes keep the base's keys and
                          // values
  bool equal = true;      // a patch that changes no bit of what is read has the base run's metric
  bool output = true;     // last attention, last MLP and logits only of what the metric reads
};

/// One patch of a sweep.
struct Patch {
  std::int64_t cell;           // its place in the grid
  std::int64_t layer;          // 0 where the site has none
  Selection where;             // in every prompt: no batch
  std::int64_t first_pos = 0;  // the first position that it changes
  /// The residual behind its layer at the positions that it changes, [pos, batch, d_model], once a
  /// run of those rows made it; empty: an edit in its layer.
  Array carried = {};
};

/// The patches of one site over one base run.
class PatchRuns {
 public:
  /// `base` holds the residual, keys and values of every layer and the site; `sources` what is
  /// written, one a layer (one in all where the site has no layers), all positions.
  PatchRuns(const HookedTransformer& model, Site site, const VerifiedCache& base,
            std::vector<Array> sources, const Reads& reads, const Savings& savings);

  /// Names that a base run has to hold.
  static std::vector<std::string> needed(Site site, const Config& config);

  /// Sets patch.first_pos. False when nothing that is read changes: the base run is the patched
  /// one.
  bool changes_anything(Patch& patch) const;
  /// Patches that share a run, each group in the order of its layers, its output in that order.
  /// At most `most(first_pos)` in each.
  std::vector<std::vector<Patch>> grouped(
      std::vector<Patch> patches, const std::function<std::int64_t(std::int64_t)>& most) const;
  /// Whether it runs in two parts: request_of_rows() in its own layer, then request() from the next
  /// on.
  bool in_two_parts(const Patch& patch) const;
  /// The run of the rows that patches of one layer change, each a prompt of its own, from z to the
  /// end of that layer.
  Request request_of_rows(std::span<const Patch> patches) const;
  /// Gives each of those patches what it is carried on with, from that run's output.
  void carry(std::span<Patch> patches, const Array& output) const;
  /// The run of a group: row i * batch + b of its output is patch i in prompt b.
  Request request(std::span<const Patch> group) const;
  /// Whether the output of request() is only what the metric reads, else logits of all tokens at
  /// the computed positions.
  bool reads_one_position() const { return read_pos_.has_value(); }
  /// [batch, pos, d_vocab] of patch i from the run's output, which was not cut to what is read:
  /// positions before the computed ones are the base run's.
  Array whole_logits(const Array& output, std::span<const Patch> group, std::size_t i) const;
  /// About what one patch takes in memory while its run is checked, in bytes.
  std::size_t bytes_of_patch(std::int64_t first_pos) const;
  /// The same of its run of rows; and what it is carried on with.
  std::size_t bytes_of_rows(const Patch& patch) const;
  std::size_t bytes_carried(const Patch& patch) const;

 private:
  std::int64_t start_layer(const Patch& patch) const;
  bool only_read_position(std::int64_t layer) const;
  std::vector<std::int64_t> positions_of(const Patch& patch, std::int64_t from) const;
  bool differs(const Patch& patch, std::int64_t pos) const;
  std::vector<Piece> pieces(const Patch& patch, std::int64_t row, std::int64_t first_pos) const;
  std::vector<Piece> pieces_of_rows(const Patch& patch, std::int64_t row) const;
  std::vector<Edit> edits(std::span<const Patch> group, std::int64_t first_pos) const;
  Span span_of(std::int64_t prompt) const;
  Array before(const Array& of_base, std::int64_t first_pos) const;
  Array residuals(std::span<const Patch> patches, std::int64_t layer, std::int64_t first_pos) const;

  const HookedTransformer& model_;
  Site site_;
  const VerifiedCache& base_;
  std::int64_t batch_, pos_;
  std::vector<Array> sources_;
  std::optional<std::int64_t> read_pos_;
  std::vector<std::int64_t> read_tokens_;
  Savings savings_;
};

}  // namespace lenscpp
