// Packing and the tile kernel.
#include "verify/reference/multiply.h"

#include <algorithm>

namespace lenscpp {
namespace {

constexpr Index kChunk = 64;  // terms widened at a time: a group of them stays in L1

// As in Eigen's own headers: a packet as a template's argument is aligned all the same.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wignored-attributes"

// A square of kLanes by kLanes numbers, turned.
void turn(const double* from, Index from_stride, double* to, Index to_stride) {
  constexpr Index lanes = kLanes<double>;
  Eigen::internal::PacketBlock<Packet<double>, lanes> square;
  for (Index i = 0; i < lanes; ++i)
    square.packet[i] = Eigen::internal::ploadu<Packet<double>>(from + i * from_stride);
  Eigen::internal::ptranspose(square);
  for (Index i = 0; i < lanes; ++i) Eigen::internal::pstoreu(to + i * to_stride, square.packet[i]);
}

#pragma GCC diagnostic pop

// Asks for elements before they are read: what lies a stride apart the processor does not foresee.
constexpr Index kAhead = 16;  // terms
void fetch(const Array& array, std::int64_t begin, std::int64_t count) {
  constexpr std::int64_t kLine_bytes = 64;
  if (begin + count > array.numel()) return;
  auto size = static_cast<std::int64_t>(size_of(array.dtype()));
  const std::byte* from = array.bytes() + begin * size;
  for (std::int64_t i = 0; i < count * size; i += kLine_bytes) __builtin_prefetch(from + i);
}

// One tile: kTileRows by kTileColumns sums, kept in registers from the first term to the last.
template <class T>
void multiply_tile(const T* rows, const T* columns, Index terms, T* out, Index stride) {
  using namespace Eigen::internal;
  constexpr Index packets = kTileColumns / kLanes<T>;
  Packet<T> sums[kTileRows][packets];
  for (auto& row : sums)
    for (auto& sum : row) sum = pset1<Packet<T>>(T(0));
  for (Index k = 0; k < terms; ++k) {
    Packet<T> column[packets];
    for (Index p = 0; p < packets; ++p)
      column[p] = ploadu<Packet<T>>(columns + k * kTileColumns + p * kLanes<T>);
    for (Index r = 0; r < kTileRows; ++r) {
      auto x = pset1<Packet<T>>(rows[k * kTileRows + r]);
      for (Index p = 0; p < packets; ++p) sums[r][p] = pmadd(x, column[p], sums[r][p]);
    }
  }
  for (Index r = 0; r < kTileRows; ++r)
    for (Index p = 0; p < packets; ++p) pstoreu(out + r * stride + p * kLanes<T>, sums[r][p]);
}

}  // namespace

template <Side side>
Packed<double, side> pack_runs(const Array& array, std::int64_t offset, std::int64_t stride,
                               Index runs, Index terms) {
  constexpr Index N = Packed<double, side>::N, lanes = kLanes<double>;
  static_assert(N % lanes == 0 && kChunk % lanes == 0);
  Packed<double, side> packed(runs, terms);
  alignas(64) double chunk[N][kChunk] = {};
  for (Index g = 0; g < packed.groups(); ++g)
    for (Index k = 0; k < terms; k += kChunk) {
      Index count = std::min(kChunk, terms - k), filled = std::min(N, runs - g * N);
      for (Index i = 0; i < N; ++i) {
        if (i < filled)
          array.widen(offset + (g * N + i) * stride + k,
                      {chunk[i], static_cast<std::size_t>(count)});
        std::fill(chunk[i] + (i < filled ? count : 0), chunk[i] + kChunk, 0.0);
      }
      for (Index i = 0; i < N; i += lanes)
        for (Index j = 0; j < count; j += lanes)
          turn(&chunk[i][j], kChunk, packed.group(g) + (k + j) * N + i, N);
    }
  return packed;
}

template <Side side>
Packed<double, side> pack_across(const Array& array, std::int64_t offset, std::int64_t stride,
                                 Index runs, Index terms) {
  constexpr Index N = Packed<double, side>::N;
  Packed<double, side> packed(runs, terms);
  Eigen::Array<double, Eigen::Dynamic, 1> term =
      Eigen::Array<double, Eigen::Dynamic, 1>::Zero(packed.groups() * N);
  for (Index k = 0; k < terms; ++k) {
    fetch(array, offset + (k + kAhead) * stride, runs);
    array.widen(offset + k * stride, {term.data(), static_cast<std::size_t>(runs)});
    for (Index g = 0; g < packed.groups(); ++g)
      Eigen::Map<Eigen::Array<double, N, 1>>(packed.group(g) + k * N) =
          term.template segment<N>(g * N);
  }
  return packed;
}

namespace {
// Sums of every fourth square vary little where there are many of them.
Index square_step(Index terms) { return terms > 128 ? 4 : 1; }
}  // namespace

template <Side side>
Packed<float, side> some_squares(const Packed<double, side>& runs) {
  constexpr Index N = Packed<double, side>::N;
  constexpr double kLeast = 0x1p-62;  // a product of two is still a normal float
  Index step = square_step(runs.terms());
  Packed<float, side> squares(runs.runs(), (runs.terms() + step - 1) / step);
  for (Index g = 0; g < runs.groups(); ++g) {
    const double* from = runs.group(g);
    float* to = squares.group(g);
    for (Index k = 0; k < runs.terms(); k += step, to += N)
      for (Index i = 0; i < N; ++i) {
        double square = from[k * N + i] * from[k * N + i];
        to[i] = static_cast<float>(square < kLeast ? 0 : square);
      }
  }
  return squares;
}

double least_sum(Index terms) {
  return std::max(0.0, 1 - static_cast<double>(terms + 4) * 0x1p-23);
}

template <class T>
void multiply(const LeftRows<T>& rows, const RightColumns<T>& columns, RowMajor<T>& out,
              std::span<const Extent> extents) {
  for (Index t = 0; t < rows.groups(); ++t) {
    Extent all = extents.empty() ? Extent{rows.terms(), columns.runs()}
                                 : extents[static_cast<std::size_t>(t)];
    Index first = t * kTileRows, height = std::min(kTileRows, rows.runs() - first);
    for (Index j = 0; j < all.columns; j += kTileColumns) {
      const T* panel = columns.group(j / kTileColumns);
      Index width = std::min(kTileColumns, columns.runs() - j);
      if (height == kTileRows && width == kTileColumns) {
        multiply_tile(rows.group(t), panel, all.terms, &out(first, j), out.cols());
        continue;
      }
      Eigen::Matrix<T, kTileRows, kTileColumns, Eigen::RowMajor> tile;  // more than is left of out
      multiply_tile(rows.group(t), panel, all.terms, tile.data(), kTileColumns);
      out.block(first, j, height, width) = tile.topLeftCorner(height, width);
    }
  }
}

#define LENSCPP_SIDE(side)                                                                         \
  template Packed<double, side> pack_runs(const Array&, std::int64_t, std::int64_t, Index, Index); \
  template Packed<double, side> pack_across(const Array&, std::int64_t, std::int64_t, Index,       \
                                            Index);                                                \
  template Packed<float, side> some_squares(const Packed<double, side>&)
LENSCPP_SIDE(Side::left);
LENSCPP_SIDE(Side::right);
#undef LENSCPP_SIDE
template void multiply(const LeftRows<double>&, const RightColumns<double>&, RowMajor<double>&,
                       std::span<const Extent>);
template void multiply(const LeftRows<float>&, const RightColumns<float>&, RowMajor<float>&,
                       std::span<const Extent>);

}  // namespace lenscpp
