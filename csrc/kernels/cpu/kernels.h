// The CPU kernels, free of torch: pointers, sizes and scalars in, numbers out.
//
// S is the storage type of history rows, T the type of working vectors: T = double or float;
// S = T, or BFloat16 or Half with T = float, or float with T = double. Rows are `stride` entries
// apart, vectors are contiguous, N = offsets.back(). Segment s is entries
// offsets[s] .. offsets[s + 1]. All sums are float64. The bits of a result do not depend on the
// number of threads; they do on the instruction set.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "../records.h"
#include "../scalar.h"

namespace aadl::cpu {

// Calls body(i) for every i in [0, count): in any order, on any threads, and returns when all
// are done. torch's thread pool in the extension, std::thread in the lab, a loop in small cases.
using Parallel = std::function<void(int64_t count, const std::function<void(int64_t)>& body)>;

// Between different types there are float <-> double, BFloat16, Half: `copies` tells.
bool copies(Type from, Type to);
void copy(const std::vector<Piece>& pieces, const Parallel& parallel);

// Sum of squares.
double squared_norm(const std::vector<Entries>& pieces, const Parallel& parallel);

// residual = rho = (after - before) / rate, 0 at rate 0 for a finite step. With slot >= 0 also
//   residual_rows[slot] = rho - last_residual,
//   step_rows[slot]     = (before - last_point) + rate * (rho - last_residual),
// written always, so that after a step that is not finite (seen by squared_norm), or one that does
// not fit the storage type (seen by row_norm), the caller has to discard row `slot`.
// right_side[s][i] = residual_rows[i] . rho and, with slot >= 0, gram_row[s][i] = residual_rows[i]
// . residual_rows[slot] (as stored, rounded), per segment; both only if `products`. Nothing written
// may overlap what is read. Reads 4 + m vectors, writes 3.
template <class T, class S>
struct Push {
  const T* before;
  const T* after;
  const T* last_point;     // unused without slot
  const T* last_residual;  // unused without slot
  const double* rates;     // [segments]
  std::vector<int64_t> offsets;
  T* residual;       // out
  S* step_rows;      // [rows, stride]
  S* residual_rows;  // [rows, stride]
  int64_t stride;
  int64_t rows;
  int64_t slot;  // -1: measure only
  bool products;
  // out:
  double* right_side;    // [segments, rows]
  double* gram_row;      // [segments, rows]
  double* squared_norm;  // [segments]
  double max_step;       // max |after - before|; NaN if there is one
  double row_norm;       // |residual_rows[slot]|^2 + |step_rows[slot]|^2 as stored
};
template <class T, class S>
void push(Push<T, S>& args, const Parallel& parallel);

// out = before + beta (after - before) - coefficients[s] . rows, entry by entry; returns max |out|,
// NaN if there is one. Exact at beta = 1: out starts from `after` then. Rows with a zero
// coefficient are not read. `out` may be `before` or `after`. Reads 2 + m vectors, writes 1.
template <class T, class S>
struct Extrapolate {
  const T* before;
  const T* after;
  double beta;
  const S* rows;  // [count, stride]
  int64_t stride;
  int64_t count;
  const double* coefficients;  // [segments, count]
  std::vector<int64_t> offsets;
  T* out;
};
template <class T, class S>
T extrapolate(const Extrapolate<T, S>& args, const Parallel& parallel);

// With d_i = x_i - x_newest: mean = x_newest + sum d / t, variance = (sum d^2 - (sum d)^2 / t) / t;
// returns max sqrt(variance), NaN if any entry is NaN or infinite. Reads t vectors, writes 1.
template <class T>
struct Window {
  std::vector<const T*> iterates;  // the newest last
  int64_t size;
  T* mean;
};
template <class T>
T window_statistics(const Window<T>& args, const Parallel& parallel);

// Upper triangular factor with diagonal >= 0 of the matrix whose columns are rows[0 .. count - 1]
// and, if not null, `append`, for each segment: factor[s] is [k, k] row-major, k = count + 1 with
// append. Tiles are folded in order within a block, blocks are joined in order; tiles are computed
// in T, the factor in float64.
template <class T, class S>
struct Tsqr {
  const S* rows;  // [count, stride]
  int64_t stride;
  int64_t count;
  const T* append;
  std::vector<int64_t> offsets;
  T* factor;  // [segments, k, k]
};
template <class T, class S>
void tsqr(const Tsqr<T, S>& args, const Parallel& parallel);

// out[s][i][j] = rows[i] . vectors[j] over segment s. Reads every row and vector once.
struct Products {
  std::vector<Entries> rows;
  std::vector<Entries> vectors;
  std::vector<int64_t> offsets;
  double* out;  // [segments, rows, vectors]
};
void products(const Products& args, const Parallel& parallel);

// point_sum += point - anchor, gradient_sum += gradient, noise_sum += sign * gradient.
template <class T>
struct Sample {
  T* point_sum;
  T* gradient_sum;
  T* noise_sum;  // may be null
  const T* point;
  const T* anchor;
  const T* gradient;
  const T* direction;  // null for zero
  double sign;
  int64_t size;
  // out:
  double squared_norm;  // |gradient|^2
  double slope;         // gradient . direction
};
template <class T>
void add_sample(Sample<T>& args, const Parallel& parallel);

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, const Parallel& parallel);

// The Newton step in the span of displacements: see ops.solve_subspace and small.py. One system.
struct Subspace {
  const double* metric;      // [size, size]
  const double* curvature;   // [size, size]
  const double* right_side;  // [size]
  const double* noise;       // [size, samples]
  int64_t size;
  int64_t samples;
  double radius, ridge, floor, shrinkage;
  // out:
  double* coefficients;  // [size]
  double* eigenvalues;   // [size], ascending
  double slope, length, reduction;
  int64_t rank;
};
void solve_subspace(Subspace& args);

// Least squares by the singular directions of the scaled columns; see ops.solve_secants and
// reference.py. One problem: `system` is [k, k] row-major, Gram matrix or R factor of [R | r]. One
// that is not finite gives rank 0 and NaN for all else.
struct Solution {
  double condition;
  double reduction;
  int64_t rank;
};
Solution solve_secants(const double* system, int64_t k, bool factored, double ridge,
                       double tolerance, double* gamma);

}  // namespace aadl::cpu
