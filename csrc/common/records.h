// What the kernels take, those of the CPU and of CUDA alike: pointers, sizes and scalars.
//
// S is the storage type of history rows, T the type of working vectors: T = double or float;
// S = T, or BFloat16 or Half with T = float, or float with T = double. Rows are `stride` entries
// apart, vectors are contiguous. Segment s is entries offsets[s] .. offsets[s + 1], and the last
// of the `segments` ends where vectors end. Offsets, rates and lists of pointers are always on the
// host; whatever else is pointed to is where the kernels run, results and flags too. A flag that
// is null counts as true. Nothing written may overlap what is read, but for what is said here.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "scalar.h"

namespace aadl {

enum class Type { kFloat, kDouble, kBFloat16, kHalf };

constexpr int64_t size_of(Type type) {
  return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2;
}

// Whether there is a copy between entries of these types.
constexpr bool copies(Type from, Type to) {
  return from == to || from == Type::kFloat || to == Type::kFloat;
}

// Contiguous entries, to be copied or converted.
struct Piece {
  const void* from;
  void* to;
  int64_t count;
  Type from_type, to_type;
};

// Contiguous entries.
struct Entries {
  const void* begin;
  int64_t count;
  Type type;
};

// Contiguous entries of a flat vector from `first` on, to be taken `weight` times.
struct Weighted {
  const void* begin;
  int64_t first, count;
  double weight;
  Type type;
};

// *difference = whether |one[i] - other[i]| > tolerance * *scale for some i; NaN differs from all.
template <class T>
struct Difference {
  const T* one;
  const T* other;
  const T* scale;  // null for zero
  double tolerance;
  int64_t size;
  bool* difference;
};

// Equal infinities have no difference.
template <class T>
AADL_INLINE bool differ(T one, T other, T within) {
  const T difference = one < other ? other - one : one - other;
  return one != other && !(difference <= within);
}

// ---- secants ----------------------------------------------------------------------

// residual = rho = (after - before) / rate, 0 at rate 0 for a finite step. With slot >= 0 also
//   residual_rows[slot] = rho - last_residual,
//   step_rows[slot]     = (before - last_point) + rate * (rho - last_residual),
// zero if a norm of the step or of the rows as stored is not finite, or not `paired`. The Gram matrices of the rows
// and, last, of rho get what is new: column `slot` and the last; nothing if |rho| is not finite,
// zeros in column `slot` if the row cannot be used. Reads 4 + m vectors, writes 3.
template <class T, class S>
struct Push {
  const T* before;
  const T* after;
  const T* last_point;     // unused without slot
  const T* last_residual;  // unused without slot
  const double* rates;     // [segments]
  const int64_t* offsets;  // [segments + 1]
  int64_t segments;
  T* residual;
  S* step_rows;      // [rows, stride]
  S* residual_rows;  // [rows, stride]
  int64_t stride, rows;
  int64_t slot;        // -1: measure only
  const bool* paired;  // whether last_point and last_residual are a pair
  double* systems;  // [segments, systems_size, systems_size] or null: no products
  int64_t systems_size;
  double* figures;  // [4]: max |after - before| (NaN if there is one), |rho|^2, the sum of squares
                    // of both new rows as stored, and the largest entry of the new step row
  const double* rounding;  // [segments]: error of an entry of rho, relative to that of the points
  double* noise;           // [segments, noise_size] or null: column `slot` gets row_noise()
  int64_t noise_size;      // >= rows
};

// |error|^2 of a row rho - last_residual of `entries`, given |after|^2 + |last_point|^2: rounding
// of the points, of what rho was computed from, and of entries that are subnormal in storage.
template <class T, class S>
AADL_INLINE double row_noise(double rounding, double points, double squared_norm, int64_t entries) {
  constexpr double kOwn = 4 * std::numeric_limits<T>::epsilon();
  constexpr double kLeast = std::is_same_v<S, Half> ? 0x1p-25 : 0;
  return rounding * rounding * points + kOwn * kOwn * squared_norm +
         kLeast * kLeast * static_cast<double>(entries);
}

// out = before + beta (after - before) - coefficients[s] . rows, entry by entry, or `after` where
// `accept` is false; sizes = max |out| and max |out - after|, NaN if an entry is. Exact at beta = 1:
// out starts from `after` then. Rows with a zero coefficient have no part. `out` may be `before` or
// `after`. Reads 2 + m vectors, writes 1.
template <class T, class S>
struct Extrapolate {
  const T* before;
  const T* after;
  double beta;
  const S* rows;  // [count, stride]
  int64_t stride, count;
  const double* coefficients;  // [sets, count]
  int64_t sets;                // one, or as many as segments
  const int64_t* offsets;      // [segments + 1]
  int64_t segments;
  const bool* accept;
  T* out;
  T* sizes;  // [2]
};

// With d_i = x_i - x_newest: mean = x_newest + sum d / t, variance = (sum d^2 - (sum d)^2 / t) / t;
// *deviation = max sqrt(variance), NaN if any entry is NaN or infinite. Reads t vectors, writes 1.
template <class T>
struct Window {
  const T* const* iterates;  // [count], the newest last
  int64_t count, size;
  T* mean;
  T* deviation;
};

// Upper triangular factor with diagonal >= 0 of the matrix whose columns are rows[0 .. count - 1]
// and, if not null, `append`, for each segment: k = count + 1 with append. S = T, or float beside
// double. Entries of a row are `step` apart: 1 for rows of a history, the number of columns for a
// matrix that is stored row after row.
template <class T, class S>
struct Tsqr {
  const S* rows;  // entry i of row c is rows[c * stride + i * step]
  int64_t stride, step, count;
  const T* append;
  const int64_t* offsets;  // [segments + 1]
  int64_t segments;
  T* factor;  // [segments, k, k]
};

// Least squares by the singular directions of the scaled columns: see ops.solve_secants and
// solve.h. A system is the Gram matrix or R factor of [R | r]; k = m + 1. One that is not finite
// gives rank 0 and NaN for all else.
struct Secants {
  const double* systems;  // [problems, k, k]
  int64_t problems, k;
  bool factored;
  double ridge, tolerance;
  bool conditioned;     // whether the condition is asked for; else it is NaN
  const double* noise;  // [problems, m] |error|^2 of each column, or null for none
  double* gamma;        // [problems, m]
  int64_t* rank;  // [problems], as the others
  double* condition;
  double* reduction;
};

// ---- blocks of samples ------------------------------------------------------------

// A tensor of the point of a sample, and that of the gradient there, of one type; to be taken with
// the weight decay in the loss, decay * point.
struct SamplePart {
  const void* point;
  const void* gradient;
  int64_t begin, count;  // in the vectors
  double decay;
  Type type;
};

// point_sum += point - anchor, gradient_sum += gradient, noise_sum += sign * gradient, over parts
// whose type is T or narrower.
template <class T>
struct Sample {
  T* point_sum;
  T* gradient_sum;  // may be null, with noise_sum
  T* noise_sum;     // may be null
  const T* anchor;
  const T* direction;  // null for zero
  double sign;
  double* figures;  // [2]: |gradient|^2, gradient . direction
};

// Means of `count` samples: see ops.push_block. The sums become zero; rows, too, if not `accept`, and
// the rows of changes if not `paired`.
template <class T, class S>
struct BlockMeans {
  T* point_sum;
  T* gradient_sum;
  T* noise_sum;  // null without noise_row
  int64_t count;
  T* last_point;
  T* last_gradient;
  S* step_row;  // null after the first block, with gradient_row
  S* gradient_row;
  S* noise_row;
  int64_t size;
  const bool* paired;
  const bool* accept;
};

// out[s][i][j] = rows[i] . vectors[j] over segment s; all are as long. Reads each once.
struct Products {
  std::vector<Entries> rows;
  std::vector<Entries> vectors;
  const int64_t* offsets;  // [segments + 1]
  int64_t segments;
  double* out;  // [segments, rows, vectors]
};

// The Newton step in the span of displacements: see ops.solve_subspace and subspace.h.
struct Subspace {
  const double* metric;      // [problems, m, m]
  const double* curvature;   // [problems, m, m]
  const double* right_side;  // [problems, m]
  const double* noise;       // [problems, m, samples]
  const double* radius;      // [problems]
  int64_t problems, m, samples;
  double ridge, floor, shrinkage;
  double* coefficients;  // [problems, m]
  double* eigenvalues;   // [problems, m], ascending
  double* slope;         // [problems], as the others
  double* length;
  double* reduction;
  int64_t* rank;
};

// The quadratic that fits slopes at the last count + 1 points: see ops.fit_quadratic and fit.h.
struct Quadratic {
  const double* metric;      // [problems, m, m] W W^T, rows in a ring
  const double* curvature;   // [problems, m, m] W G^T
  const double* right_side;  // [problems, m]
  const double* noise;       // [problems, m, samples]
  int64_t problems, m, samples, newest, count;
  double ridge, shrinkage;
  double* fitted;  // [problems, m, m] curvature
  double* slopes;  // [problems, m] right side
  double* left;    // [problems, m, samples] noise
};

// The direction of L-BFGS, -(gradient g + steps S + changes Y), from products of m pairs in a ring:
// see ops.solve_quasi_newton and quasi_newton.h.
struct QuasiNewton {
  const double* metric;           // [m, m] S S^T
  const double* curvature;        // [m, m] S Y^T
  const double* gradient_metric;  // [m, m] Y Y^T
  const double* slopes;           // [m] S g
  const double* gradient_slopes;  // [m] Y g
  const double* squared_norm;     // |g|^2
  int64_t m, newest;
  double growth;
  double* gradient;
  double* steps;    // [m]
  double* changes;  // [m]
};

}  // namespace aadl
