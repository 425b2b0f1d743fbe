// Products by oneDNN's operators with a re-ordered weight, where they exist.
#include "hooks/transformer/linear_weight.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/addmm.h>

#include <optional>
#include <string_view>

namespace lenscpp {
namespace {

using Reorder = at::Tensor(const at::Tensor&, std::optional<c10::SymInt>);
using Multiply = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                            std::string_view, c10::List<std::optional<at::Scalar>>,
                            std::optional<std::string_view>);

// Private operators of torch's compiler: looked up once, absent from builds without oneDNN.
struct OneDnn {
  std::optional<c10::TypedOperatorHandle<Reorder>> reorder;
  std::optional<c10::TypedOperatorHandle<Multiply>> multiply;

  OneDnn() {
    if (!at::globalContext().hasMKLDNN()) return;
    auto& dispatcher = c10::Dispatcher::singleton();
    auto first = dispatcher.findSchema({"mkldnn::_reorder_linear_weight", ""});
    auto second = dispatcher.findSchema({"mkldnn::_linear_pointwise", ""});
    if (!first || !second) return;
    reorder = first->typed<Reorder>();
    multiply = second->typed<Multiply>();
  }
  static const OneDnn& instance() {
    static const OneDnn operators;
    return operators;
  }
};

// Below it a product takes microseconds, and a second copy gains nothing.
constexpr std::int64_t kWorthPacking = 1 << 18;  // elements

}  // namespace

LinearWeight::LinearWeight(at::Tensor weight, bool outputs_are_rows)
    : plain_(std::move(weight)), outputs_are_rows_(outputs_are_rows) {
  bool fits = plain_.device().is_cpu() && plain_.scalar_type() == at::kFloat &&
              plain_.numel() >= kWorthPacking;
  if (fits && OneDnn::instance().multiply) packed_ = std::make_shared<Packed>();
}

at::Tensor LinearWeight::operator()(const at::Tensor& x, const at::Tensor& bias) const {
  if (!packed_) return at::addmm(bias, x, outputs_are_rows_ ? plain_.t() : plain_);
  const OneDnn& one_dnn = OneDnn::instance();
  std::call_once(packed_->once, [&] {
    packed_->weight = one_dnn.reorder->call(outputs_are_rows_ ? plain_ : plain_.t(), std::nullopt);
  });
  return one_dnn.multiply->call(x, packed_->weight, bias, "none",
                                c10::List<std::optional<at::Scalar>>(), "");
}

}  // namespace lenscpp
