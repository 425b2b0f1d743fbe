// Edits as users write them: by name, before the model is known that they are for.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "hooks/plan.h"
#include "verify/verified_cache.h"

namespace lenscpp::python {

/// One edit at a named hook point; its source is an array, or what a verified cache holds at that
/// name.
struct NamedEdit {
  EditKind kind;
  std::string name;
  std::optional<std::int64_t> layer;
  std::string layer_type;
  Selection where;
  std::optional<Array> values;
  std::optional<VerifiedCache> cache;
  double factor = 1.0;
};

struct NamedPlan {
  std::vector<NamedEdit> edits;
};

/// The plan for a model of this config. Throws what find_hook throws, and NotVerified when a
/// source's bytes have changed.
Plan resolve(const NamedPlan& plan, const Config& config);

}  // namespace lenscpp::python
