// Householder fold: a triangular factor absorbs a tile of rows, R <- R factor of [R; tile].
//
// The tile is column-major: `columns` arrays of `rows` entries, `height` apart, so that all long
// loops run over contiguous entries and history rows enter without a transposition. The factor
// is row-major and float64 whatever T is: it is small, and its roundings would add up over the
// tiles. Reflector j is v = [u e_j; tile column j]; rows of R but j stay as they are. Within a
// panel of four columns one pass applies a reflector and takes the products that the next one
// needs; then the panel acts on up to four further columns at once, so that a loaded entry is
// used two to four times: the work is bound by multiply-adds, 2 columns^2 flops a row. The tile
// stays in L1 or L2; it is the only copy, and what comes from memory is read once.
//
// The power of two that keeps the squares of a column in range (range.h) scales the column of R
// alike, exactly.
//
// Vectors are GCC's and Clang's vector types, not `omp simd`: GCC sums reductions of a simd loop
// lane after lane, which would take as long as the loop.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cpu/target.h"
#include "range.h"
#include "scalar.h"

namespace aadl {

constexpr int64_t kTile = 768;  // rows of a tile: the waits between its passes are shared by many
constexpr int64_t kLanes = 16;  // rows are filled up with zeros to a multiple of it
constexpr int64_t kPanel = 4;   // reflectors applied together

// to = scale * from, zeros behind it up to a multiple of kLanes; returns the largest magnitude,
// NaN if there is one: as integers, magnitudes are in order and NaN comes last.
template <class T, class S>
AADL_INLINE T load_column(const S* AADL_RESTRICT from, int64_t count, T scale,
                          T* AADL_RESTRICT to) {
  using Bits = typename Range<T>::Bits;
  Bits largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    const T value = scale * static_cast<T>(widen(from[i]));
    to[i] = value;
    const Bits magnitude = bit_cast<Bits>(std::fabs(value));
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int64_t i = count; i % kLanes != 0; ++i) to[i] = 0;
  return bit_cast<T>(largest);
}

// Vectors of kBytes, the size of a register, and how many columns the registers can serve.
template <class T, int kBytes, int kColumns>
struct Simd {
  using Entry = T;
  typedef T Vector __attribute__((vector_size(kBytes)));
  static constexpr int kWidth = kBytes / sizeof(T);
  static constexpr int kBlock = kColumns;  // columns that a panel is applied to at once

  static AADL_INLINE void load(const T* from, Vector& to) { std::memcpy(&to, from, kBytes); }
  static AADL_INLINE void store(const Vector& from, T* to) { std::memcpy(to, &from, kBytes); }

  static AADL_INLINE T sum(const Vector& lanes) {
    constexpr int kShort = 16 / sizeof(T);
    typedef T Short __attribute__((vector_size(16)));
    Short parts[kBytes / 16];
    std::memcpy(parts, &lanes, kBytes);
    if constexpr (kBytes == 64) parts[0] += parts[2], parts[1] += parts[3];
    if constexpr (kBytes >= 32) parts[0] += parts[1];
    if constexpr (kShort == 2) return parts[0][0] + parts[0][1];
    return (parts[0][0] + parts[0][2 % kShort]) + (parts[0][1] + parts[0][3 % kShort]);
  }
};

// Of a panel. v_h and v_i meet in the tile only: their corners lie in different rows of R.
struct Reflectors {
  double corner[kPanel];           // u
  double weight[kPanel];           // H = 1 - weight v v^T; 0 for none
  double product[kPanel][kPanel];  // v_h . v_i, h < i
};

// Pass I over a panel of W columns: reflector I - 1 is applied, V_c -= step_c V_{I-1} for c >= I;
// then product_c = V_I . V_c for all columns.
template <class V, int I, int W, class T = typename V::Entry>
AADL_INLINE void pass(T* tile, int64_t height, int64_t rows, const T* step, T* product) {
  typename V::Vector sums[W] = {}, x[W];
  for (int64_t i = 0; i < rows; i += V::kWidth) {
#pragma GCC unroll 4
    for (int c = 0; c < W; ++c) V::load(tile + c * height + i, x[c]);
    if constexpr (I > 0) {
#pragma GCC unroll 4
      for (int c = I; c < W; ++c) {
        x[c] -= step[c] * x[I - 1];
        V::store(x[c], tile + c * height + i);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < W; ++c) sums[c] += x[I] * x[c];
  }
#pragma GCC unroll 4
  for (int c = 0; c < W; ++c) product[c] = V::sum(sums[c]);
}

// Reflectors I .. W - 1 of a panel; `corner` is the entry of R where the panel's diagonal begins.
template <class V, int I, int W, class Ahead, class T = typename V::Entry>
AADL_INLINE void factor_panel(T* tile, int64_t height, int64_t rows, double* corner,
                              int64_t columns, T* step, Reflectors& h, Ahead& ahead) {
  if constexpr (I < W) {
    ahead.step();
    T product[W];
    pass<V, I, W>(tile, height, rows, step, product);
    for (int before = 0; before < I; ++before) h.product[before][I] = product[before];
    double* const row = corner + I * columns;
    const double square = product[I];
    double u = 0, weight = 0;
    if (!(square <= Range<T>::kVanishing)) {
      const double norm = std::sqrt(row[I] * row[I] + square);
      u = row[I] + std::copysign(norm, row[I]);  // no cancellation
      weight = 1 / (norm * std::fabs(u));
      row[I] = -std::copysign(norm, row[I]);
    }
    h.corner[I] = u, h.weight[I] = weight;
    for (int c = I + 1; c < W; ++c) {
      const double s = weight * (u * row[c] + product[c]);
      row[c] -= u * s;
      step[c] = static_cast<T>(s);
    }
    factor_panel<V, I + 1, W>(tile, height, rows, corner, columns, step, h, ahead);
  }
}

// The four reflectors in `panel` applied to C columns of the tile and of R: step_i is weight_i
// times the product of v_i with what the reflectors before it left of the column.
template <class V, int C, class Ahead, class T = typename V::Entry>
AADL_INLINE void reflect(const T* panel, int64_t height, int64_t rows, T* tile, double* entries,
                         int64_t columns, const Reflectors& h, Ahead& ahead) {
  using Vector = typename V::Vector;
  ahead.step();
  Vector sums[kPanel][C] = {};
  for (int64_t i = 0; i < rows; i += V::kWidth) {
    Vector x[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) V::load(tile + c * height + i, x[c]);
#pragma GCC unroll 4
    for (int p = 0; p < kPanel; ++p) {
      Vector v;
      V::load(panel + p * height + i, v);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[p][c] += v * x[c];
    }
  }
  ahead.step();
  double steps[kPanel][C];
  T step[kPanel][C];
#pragma GCC unroll 4
  for (int p = 0; p < kPanel; ++p) {
    double* const row = entries + p * columns;
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      double dot = h.corner[p] * row[c] + V::sum(sums[p][c]);
#pragma GCC unroll 4
      for (int before = 0; before < p; ++before) dot -= h.product[before][p] * steps[before][c];
      steps[p][c] = h.weight[p] * dot;
      row[c] -= h.corner[p] * steps[p][c];
      step[p][c] = static_cast<T>(steps[p][c]);
    }
  }
  for (int64_t i = 0; i < rows; i += V::kWidth) {
    Vector v[kPanel];
#pragma GCC unroll 4
    for (int p = 0; p < kPanel; ++p) V::load(panel + p * height + i, v[p]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Vector x;
      V::load(tile + c * height + i, x);
#pragma GCC unroll 4
      for (int p = 0; p < kPanel; ++p) x -= step[p][c] * v[p];
      V::store(x, tile + c * height + i);
    }
  }
}

// factor <- R factor of [factor; tile]; the tile is used up. ahead.step() is called often.
template <class V, class Ahead, class T = typename V::Entry>
AADL_INLINE void fold(T* tile, int64_t columns, int64_t height, int64_t rows, double* factor,
                      Ahead& ahead) {
  for (int64_t first = 0; first < columns; first += kPanel) {
    T* const panel = tile + first * height;
    double* const corner = factor + first * columns + first;
    const int64_t width = columns - first;
    Reflectors h;
    T step[kPanel];
    if (width < kPanel) {
      if (width == 3) factor_panel<V, 0, 3>(panel, height, rows, corner, columns, step, h, ahead);
      if (width == 2) factor_panel<V, 0, 2>(panel, height, rows, corner, columns, step, h, ahead);
      if (width == 1) factor_panel<V, 0, 1>(panel, height, rows, corner, columns, step, h, ahead);
      return;
    }
    factor_panel<V, 0, 4>(panel, height, rows, corner, columns, step, h, ahead);
    const auto apply = [&](auto count, int64_t c) __attribute__((always_inline)) {
      reflect<V, count.value>(panel, height, rows, panel + c * height, corner + c, columns, h,
                              ahead);
    };
    int64_t c = kPanel;
    for (; c + V::kBlock <= width; c += V::kBlock) {
      apply(std::integral_constant<int, V::kBlock>(), c);
    }
    if constexpr (V::kBlock == 4) {
      if (width - c == 3) apply(std::integral_constant<int, 3>(), c);
      if (width - c == 2) apply(std::integral_constant<int, 2>(), c);
    }
    if (width - c == 1) apply(std::integral_constant<int, 1>(), c);
  }
}

}  // namespace aadl
