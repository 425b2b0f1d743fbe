// The bounds, one line each.
#include "verify/reference/bounds.h"

#include <cmath>

namespace lenscpp {

Contract contract_of(Site site, DType model, MatmulPrecision precision) {
  DType stored = stored_dtype(site, model);
  double u_a = unit_roundoff(accumulate_type(model));
  double eta = stored == DType::f16 ? 0x1p-25 : smallest_normal(stored);
  return {.stored = stored,
          .u_s = unit_roundoff(stored),
          .u_a = u_a,
          .eta = eta,
          .narrow = stored == DType::bf16 || stored == DType::f16,
          .reference = model == DType::f64 ? 2.0 : 1.0,
          .u_x = model == DType::f32 && precision == MatmulPrecision::tf32 ? 0x1p-11 : 0.0};
}

double tolerance(const Contract& c, double reference, double slack) {
  double allowed = c.reference * c.u_s * std::abs(reference) * (1 + 0x1p-20) + slack + c.eta;
  return slack == kExact ? 0 : allowed;  // no branch: rows of them vectorise
}

void row_tolerances(const Contract& c, std::span<const double> reference,
                    std::span<const double> slack, std::span<double> out) {
  for (std::size_t j = 0; j < out.size(); ++j) out[j] = tolerance(c, reference[j], slack[j]);
}

double expected_square(const Contract& c, std::int64_t terms, double walk, double y_square) {
  return c.u_a * c.u_a * (walk / 6 + static_cast<double>(terms) * y_square / 9) +
         c.u_s * c.u_s / 3 * y_square;
}

double expected_operand_square(const Contract& c, double square) {
  return c.u_x > 0 ? square / 9 : 0;
}

double operand_slack(const Contract& c, double magnitude) {
  return (2 * c.u_x + c.u_x * c.u_x) * magnitude;
}
double product_slack(const Contract& c, std::int64_t terms, double rms, double y) {
  return c.reference * std::sqrt(static_cast<double>(terms)) * c.u_a * (6 * rms + 2 * std::abs(y));
}
double narrow_product_slack(const Contract& c, std::int64_t terms, double magnitude) {
  return 2 * static_cast<double>(terms) * c.u_a * magnitude;
}
double scores_slack(const Contract& c, std::int64_t terms, double rms, double score) {
  return c.reference * std::sqrt(static_cast<double>(terms)) * c.u_a *
         (10 * rms + 2 * std::abs(score));
}
double mix_slack(const Contract& c, std::int64_t terms, double magnitude) {
  return (c.narrow ? 2 : c.reference) * static_cast<double>(terms) * c.u_a * magnitude;
}
double norm_scale_slack(const Contract& c, double magnitude) {
  return c.reference * 8 * c.u_a * magnitude;
}
double normalize_slack(const Contract& c, double magnitude) {
  return c.reference * 8 * c.u_a * magnitude;
}
double affine_slack(const Contract& c, double product) {
  return c.reference * 2 * c.u_a * std::abs(product);
}
double softmax_slack(const Contract& c, double p, double below_max) {
  return c.reference * 16 * c.u_a * p * (2 + below_max) + 0x1p-122;
}
void softmax_slacks(const Contract& c, std::span<const double> p, std::span<const double> below_max,
                    std::span<double> out) {
  for (std::size_t j = 0; j < out.size(); ++j) out[j] = softmax_slack(c, p[j], below_max[j]);
}
double share_slack(const Contract& c, std::int64_t terms, double sizes, double quotient) {
  return c.reference * c.u_a * (static_cast<double>(terms) * sizes + 2) * std::abs(quotient);
}
double gelu_slack(const Contract& c, double x) { return c.reference * 8 * c.u_a * std::abs(x); }
double silu_slack(const Contract& c, double x, double y) {
  return c.reference * c.u_a * (8 * std::abs(x) + std::abs(x * y));
}
double tanh_slack(const Contract& c, double y) { return c.reference * 8 * c.u_a * std::abs(y); }
double turn_slack(const Contract& c, double magnitude) {
  return c.reference * 3 * c.u_a * magnitude;
}
double softcap_slack(const Contract& c, double x, double y) {
  return c.reference * c.u_a * (8 * std::abs(y) + 2 * std::abs(x));
}
double table_slack(double largest_argument) { return 0x1p-50 * (1 + std::abs(largest_argument)); }
double sum_slack(const Contract& c, std::int64_t terms, double magnitude) {
  return c.reference * static_cast<double>(terms) * c.u_a * magnitude;
}
double scale_slack(const Contract& c, double y) { return c.reference * 2 * c.u_a * std::abs(y); }

}  // namespace lenscpp
