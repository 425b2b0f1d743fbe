// What a family of models brings: how its config.json and its tensors become a Config and Weights.
#pragma once

#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "hooks/checkpoint/adapters.h"
#include "hooks/checkpoint/config.h"
#include "hooks/checkpoint/loading.h"
#include "hooks/checkpoint/safetensors.h"
#include "hooks/checkpoint/weights.h"

namespace lenscpp {

/// Hands out the tensors of a checkpoint by name and shape, and remembers which: what nobody took
/// is refused at the end, so that nothing in a checkpoint goes unread but layers left out.
class TensorSource {
 public:
  /// `merge`: of loading.adapter, null without one.
  TensorSource(const Checkpoint& checkpoint, const Loading& loading, const Merge* merge)
      : checkpoint_(checkpoint), loading_(loading), merge_(merge) {}

  bool has(const std::string& name) const { return checkpoint_.has(name); }
  /// Whether an adapter changes the tensor.
  bool adapted(const std::string& name) const { return merge_ != nullptr && merge_->changes(name); }
  /// The tensor, merged with the adapter, rounded once to the dtype. Throws std::invalid_argument
  /// when it is missing (naming the nearest), of another shape or type, or holds a NaN or an
  /// infinity, also after rounding.
  Array take(const std::string& name, const Shape& shape);
  /// Like take, without rounding: what a copy must equal bitwise.
  Array take_as_stored(const std::string& name, const Shape& shape);
  /// Marks a tensor that is known to change nothing.
  void ignore(const std::string& name) { taken_.push_back(name); }
  /// Throws std::invalid_argument naming the tensors that were neither taken nor ignored, and what
  /// an adapter changes and was not taken.
  void finish() const;

  /// The narrowest dtype that holds every tensor taken so far exactly.
  DType widest_stored() const;
  DType dtype() const { return loading_.dtype; }
  /// The file that holds `name`, or the folder, for error messages.
  const std::string& origin(const std::string& name) const;

 private:
  Array checked(const std::string& name, const Shape& shape);
  bool left_out(const std::string& name) const;

  const Checkpoint& checkpoint_;
  const Loading& loading_;
  const Merge* merge_;
  std::set<DType> stored_;
  std::set<std::string> merged_;
  std::vector<std::string> taken_;
};

/// One row of the table; each family is one file beside this one.
struct Family {
  std::string_view model_type;  // in config.json
  Config (*config)(const nlohmann::json& document, const std::string& origin);
  Weights (*weights)(const Config& config, TensorSource& tensors);
  bool stores_in_out = false;  // matrices are [in, out] in the file: transformers' Conv1D
};

/// All families. To add one: its file, and its row in families.cc.
std::span<const Family> families();
/// Throws std::invalid_argument naming what is allowed.
const Family& family(std::string_view model_type, const std::string& origin);

}  // namespace lenscpp
