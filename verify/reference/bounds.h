// What rounding may do: the bounds within which a device's result is what the model computes.
//
//   |device - reference| <= u_s |reference| (1 + 2^-20) + slack + eta
//
// u_s |reference|: the one rounding of the store. `slack`: what the operation's own arithmetic may
// lose before it, from the functions below. eta: below the normal numbers devices may flush to
// zero. The constants are those measured in numerics.md; verify/README.md derives them.
#pragma once

#include <cstdint>
#include <span>

#include "hooks/hook_point.h"

namespace lenscpp {

/// The arithmetic that a device declares for one tensor. Nothing else widens a bound.
struct Contract {
  DType stored;
  double u_s;   // unit roundoff of the store
  double u_a;   // unit roundoff of the accumulation
  double eta;   // absolute floor: smallest normal number; half a subnormal step for float16
  bool narrow;  // stored narrower than accumulated: bfloat16, float16
  double
      reference;   // 2 where the fp64 reference rounds as coarsely as the device (float64), else 1
  double u_x = 0;  // to which operands of products may be rounded first; 0: they may not be
};
/// `precision` concerns the products of float32 models; it says nothing about any other.
Contract contract_of(Site site, DType model, MatmulPrecision precision = MatmulPrecision::ieee);

/// A slack of `kExact` demands equality: no rounding is allowed at all.
inline constexpr double kExact = -1;
/// Times the expected rounding error, root mean square, beyond which a product's precision is not
/// the declared one. Honest products stay near 1, TF32 inputs reach hundreds.
inline constexpr double kRmsLimit = 8;

/// u_s |reference| (1 + 2^-20) + slack + eta; 0 when slack is kExact. In float64 the reference's
/// own last rounding is as large as the device's, so that term counts twice.
double tolerance(const Contract& c, double reference, double slack);
/// The same for a row: one call a row, so that it vectorises.
void row_tolerances(const Contract& c, std::span<const double> reference,
                    std::span<const double> slack, std::span<double> out);

/// The square of the rounding error that a sum of `terms` products is expected to make, for the RMS
/// test. Each partial sum is rounded once; a sum y of terms whose root sum of squares is m runs
/// like y k / K plus a random walk, so that u^2/3 sum S_k^2 is about u_a^2 (K m^2 / 6 + K y^2 / 9),
/// and the store adds u_s^2 y^2 / 3. `walk` is K m^2, for which ||x||^2 ||w||^2 stands.
double expected_square(const Contract& c, std::int64_t terms, double walk, double y_square);

/// What rounding their operands adds to the above: `square` is the sum of the squares of the errors
/// that it makes where it is done exactly as declared. A ninth, so that 8/3 times those errors are
/// allowed: the next coarser format, bfloat16, makes 8 times.
double expected_operand_square(const Contract& c, double square);

// Slacks. `terms` is the length of the sum (K).

/// Declared rounding of operands: (2 u_x + u_x^2) ||x|| ||w||, `magnitude` being the norms, since
/// sum |x w| is at most their product. Matrix products alone have it, beside their slack; 0 without
/// a declaration.
double operand_slack(const Contract& c, double magnitude);

/// Product stored as accumulated: sqrt(K) u_a (6 sqrt(sum x^2 w^2 + b^2) + 2 |y|). `rms` is that
/// root: partial sums that walk at random. |y|: terms of one sign, whose partial sums run like y k
/// / K, so that u sqrt(sum S_k^2) is u |y| sqrt(K / 3), 3.5 times which is allowed.
double product_slack(const Contract& c, std::int64_t terms, double rms, double y);
/// Product stored narrower: 2 K u_a (||x|| ||w|| + |b|), products of narrow numbers being exact.
double narrow_product_slack(const Contract& c, std::int64_t terms, double magnitude);
/// Scores: sqrt(K) u_a (10 sqrt(sum q^2 k^2) / divisor + 2 |s|): short sums, with a division. `rms`
/// includes it.
double scores_slack(const Contract& c, std::int64_t terms, double rms, double score);
/// pattern V: K u_a sum p |v| (2 K when narrow): same-sign terms, so roundings do not cancel.
double mix_slack(const Contract& c, std::int64_t terms, double magnitude);
/// Norm scale: 8 u_a sqrt(mean((|x| + mean|x|)^2) + eps): magnitudes taken before the mean cancels.
double norm_scale_slack(const Contract& c, double magnitude);
/// Normalized: 8 u_a (|x| + mean|x|) / scale.
double normalize_slack(const Contract& c, double magnitude);
/// x w + b: the product's rounding, 2 u_a |x w|.
double affine_slack(const Contract& c, double product);
/// softmax: 16 u_a p (2 + max - s) + 2^-122, the exponent's argument being rounded at |s - max| u.
double softmax_slack(const Contract& c, double p, double below_max);
/// The same for a row.
void softmax_slacks(const Contract& c, std::span<const double> p, std::span<const double> below_max,
                    std::span<double> out);
/// p over the sum of `terms` of them: u_a (K sum|p| / |sum p| + 2) of the quotient; `sizes` is that
/// ratio, 1 for numbers of one sign.
double share_slack(const Contract& c, std::int64_t terms, double sizes, double quotient);
/// GELU: 8 u_a |x|, absolute since 1 + tanh cancels; SiLU: + u_a |x y|.
double gelu_slack(const Contract& c, double x);
double silu_slack(const Contract& c, double x, double y);
/// tanh: 8 u_a |y|, as of the others.
double tanh_slack(const Contract& c, double y);
/// Rotary positions, x c -+ y s: 3 u_a (|x c| + |y s|), two products and their sum.
double turn_slack(const Contract& c, double magnitude);
/// c tanh(x / c): 8 u_a |y| of tanh and the last product, 2 u_a |x| of the division (tanh moves by
/// less than its argument).
double softcap_slack(const Contract& c, double x, double y);
/// Cosines and sines of angles that both sides multiply out in float64: 2^-50 (1 + largest angle).
double table_slack(double largest_argument);
/// A sum of `terms` numbers in any order: K u_a sum|x|.
double sum_slack(const Contract& c, std::int64_t terms, double magnitude);
/// A multiplication by a constant that the device rounds first: 2 u_a |y|.
double scale_slack(const Contract& c, double y);

}  // namespace lenscpp
