// Every tensor of a run before it runs: by arithmetic over the list of links, from shapes alone.
// Also what the device pass makes between two links and nobody names: a third reading of the
// computation, held to the device pass by a test that looks at what it allocates.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "hooks/rows.h"
#include "verify/reference/link.h"

namespace lenscpp {

/// What a planned tensor is. `host`: made on the host only, so no limit of the device concerns it.
enum class Role : std::uint8_t { weight, recorded, intermediate, host };
std::string_view name_of(Role role);

/// The type of an element: a DType, or the bool of a mask.
struct ElementType {
  std::string_view name;  // "float32", "bool"
  std::int64_t bytes;
};
ElementType element_type(DType dtype);

/// A tensor of a run. Sizes that int64 cannot hold stand as its largest value.
struct PlannedTensor {
  Role role;
  TensorId id = {};       // of the link that makes it; a weight has none
  std::string_view part;  // what it is, when it is not the link's output: "mask", "queries by head"
  Shape shape;
  ElementType type;
  std::string weight = {};  // its name

  std::int64_t elements() const;
  std::int64_t bytes() const;
};

/// batch x [rows, terms] [terms, columns].
struct PlannedProduct {
  TensorId id;
  std::int64_t batch, rows, terms, columns;
};

/// One link: what it makes, what the device makes on the way, and when it can go again.
struct PlannedLink {
  Link link;
  PlannedTensor output;
  std::vector<PlannedTensor> parts = {};
  std::vector<PlannedProduct> products = {};
  std::size_t parts_until = 0;  // index of the last link before which the device holds `parts`
  bool same_memory = false;     // the output is its first input under another name
  std::size_t last_use = 0;     // index of the last link before which the device holds the output
  std::size_t last_reader = 0;  // index of the last link that reads it
};

/// a * b, or the largest int64.
std::int64_t product_of(std::int64_t a, std::int64_t b);
std::int64_t product_of(const Shape& shape);
/// a + b, or the largest int64; both at least 0.
std::int64_t sum_of(std::int64_t a, std::int64_t b);

/// The links of a run with the sizes of all their tensors. Only shapes are read of `weights`, which
/// may be an outline, and of the request, whose token ids may be left out. The request need not be
/// valid beyond that: a batch that no memory could hold is what this is for.
std::vector<PlannedLink> plan_links(const Weights& weights, const Request& request);
/// The mask, which every run uploads: [pos, key], of padded prompts [batch, pos, key]; two of them
/// where there is a window.
PlannedTensor planned_mask(const Weights& weights, const Request& request);
/// The weights as a device holds them, each with a buffer of its own.
std::vector<PlannedTensor> planned_weights(const Weights& weights);

/// "blocks.0.attn.hook_q", "blocks.0.attn.hook_q (queries, keys and values)", "embed.W_E".
std::string name_of(const PlannedTensor& tensor, const Request& request);

}  // namespace lenscpp
