// Products of float64 matrices as the reference computes them: both operands are widened and packed
// once, in the order in which they are read, then multiplied a tile of the result at a time in
// registers. Eigen's own products pack a second time and reach 60 % of AVX-512's speed here.
#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <span>

#include "hooks/array.h"

namespace lenscpp {

using Index = Eigen::Index;
template <class T>
using RowMajor = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Mat = RowMajor<double>;

template <class T>
using Packet = typename Eigen::internal::packet_traits<T>::type;
template <class T>
inline constexpr Index kLanes = Eigen::internal::packet_traits<T>::size;

/// A tile of a product: as many sums as fit into registers beside what is read.
inline constexpr Index kTileRows = EIGEN_ARCH_DEFAULT_NUMBER_OF_REGISTERS >= 32 ? 8 : 4;
inline constexpr Index kTileColumns = 2 * kLanes<double>;

/// Rows of the left operand of a product, columns of the right one.
enum class Side : std::uint8_t { left, right };

/// Runs of `terms` numbers in groups of N, a tile's rows or columns: term by term the numbers of a
/// group's runs stand side by side. A group that is not full ends in zeros.
template <class T, Side side>
class Packed {
 public:
  static constexpr Index N = side == Side::left ? kTileRows : kTileColumns;

  Packed(Index runs, Index terms)
      : runs_(runs),
        terms_(terms),
        group_size_((terms + kLanes<T> - 1) / kLanes<T> * kLanes<T> * N),
        data_(groups() * group_size_) {}

  Index runs() const { return runs_; }
  Index terms() const { return terms_; }
  Index groups() const { return (runs_ + N - 1) / N; }
  /// [terms, N].
  T* group(Index g) { return data_.data() + g * group_size_; }
  const T* group(Index g) const { return data_.data() + g * group_size_; }
  auto terms_of_group(Index g) const {
    return Eigen::Map<const Eigen::Array<T, N, Eigen::Dynamic>>(group(g), N, terms_);
  }
  auto run(Index i) const {
    return Eigen::Map<const Eigen::Array<T, Eigen::Dynamic, 1>, 0, Eigen::InnerStride<N>>(
        group(i / N) + i % N, terms_);
  }
  /// The sum of the squares of each run.
  Eigen::Matrix<T, Eigen::Dynamic, 1> squared_norms() const {
    Eigen::Matrix<T, Eigen::Dynamic, 1> squares(groups() * N);
    for (Index g = 0; g < groups(); ++g)
      squares.segment(g * N, N) = terms_of_group(g).square().rowwise().sum();
    squares.conservativeResize(runs_);
    return squares;
  }
  /// Every number replaced by function(array of numbers); zeros must stay zeros.
  template <class Function>
  Packed map(const Function& function) const {
    Packed result(runs_, terms_);
    for (Index g = 0; g < groups(); ++g)
      Eigen::Map<Eigen::Array<T, N, Eigen::Dynamic>>(result.group(g), N, terms_) =
          function(terms_of_group(g));
    return result;
  }

 private:
  Index runs_, terms_, group_size_;
  Eigen::Array<T, Eigen::Dynamic, 1> data_;
};

template <class T>
using LeftRows = Packed<T, Side::left>;
template <class T>
using RightColumns = Packed<T, Side::right>;

/// Packs runs that lie one behind the other, each `stride` elements after the one before.
template <Side side>
Packed<double, side> pack_runs(const Array& array, std::int64_t offset, std::int64_t stride,
                               Index runs, Index terms);
/// Packs runs that lie across: what all of them have at one term is together, terms `stride` apart.
template <Side side>
Packed<double, side> pack_across(const Array& array, std::int64_t offset, std::int64_t stride,
                                 Index runs, Index terms);

/// Squares of every fourth term in float32, of every one where there are few: zero where a product
/// of two squares could leave float32's normal numbers.
template <Side side>
Packed<float, side> some_squares(const Packed<double, side>& runs);
/// A factor that makes a product of some_squares, of runs of `terms` terms, a lower bound of the
/// sum over all terms however float32 rounded: 1 - (terms + 4) 2^-23 (Higham 2002, section 3).
double least_sum(Index terms);

/// How much of a tile of rows is wanted: terms beyond are zeros, columns beyond are not computed.
struct Extent {
  Index terms, columns;
};

/// Writes rows times columns into `out`, [rows, at least as many as columns]. `extents`: one for
/// each tile of kTileRows rows; none: all is wanted.
template <class T>
void multiply(const LeftRows<T>& rows, const RightColumns<T>& columns, RowMajor<T>& out,
              std::span<const Extent> extents = {});

}  // namespace lenscpp
