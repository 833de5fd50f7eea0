// The launchers of the CUDA kernels, free of torch: device pointers, sizes, scalars and a stream.
//
// They return at once, leave their results on the device, and can be captured in a CUDA graph;
// offsets, rates and lists of pointers are on the host and copied with the launch. S is the storage
// type of history rows, T the type of working vectors, as in cpu/kernels.h. Where a launcher wants
// a `workspace`, a function beside it tells of how many bytes. Sums are float64, or as accurate in
// pairs of float32 if `compensated` and T = float. Same input, same bits on one kind of device.
// Flags (`when`, `accept`) are on the device, where the kernels read them; null counts as true.
// Errors of a launch are thrown as std::runtime_error.
#pragma once

#include <cstdint>
#include <vector>

#include "../records.h"
#include "../scalar.h"

struct CUstream_st;

namespace aadl::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Into how many tiles the long dimension is cut at most, one a block of threads: several times what
// runs at once on the largest device, and few enough that their partial sums cost nothing.
constexpr int64_t kMostTiles = 4096;

// Whether this device computes float64 so slowly that `compensated` sums pay.
bool slow_float64(int device);

// ---- lists of tensors -------------------------------------------------------------

// Pieces are copied or converted, types as in cpu::copies, or not if `when` is false.
bool copies(Type from, Type to);
void copy(const std::vector<Piece>& pieces, const bool* when, Stream stream);

// *out = sum of squares.
int64_t squared_norm_workspace(const std::vector<Entries>& pieces);
void squared_norm(const std::vector<Entries>& pieces, bool compensated, void* workspace,
                  double* out, Stream stream);

// ---- secants ----------------------------------------------------------------------

// ops.push_secant: everything it defines, and `figures` [3].
template <class T, class S>
struct Push {
  const T* before;
  const T* after;
  const T* last_point;
  const T* last_residual;
  const double* rates;     // [segments], on the host
  const int64_t* offsets;  // [segments + 1], on the host
  int64_t segments;
  T* residual;
  S* step_rows;      // [rows, stride]
  S* residual_rows;  // [rows, stride]
  int64_t stride, rows;
  int64_t slot;     // -1: measure only
  double* systems;  // [segments, systems_size, systems_size] or null
  int64_t systems_size;
  double* figures;  // [3]
  bool compensated;
  int64_t most_tiles = kMostTiles;
};
template <class T, class S>
int64_t push_workspace(const Push<T, S>& args);
template <class T, class S>
void push(const Push<T, S>& args, void* workspace, Stream stream);

// ops.extrapolate_; coefficients of 0 leave their row out. *largest = max |out|.
template <class T, class S>
struct Extrapolate {
  const T* before;
  const T* after;
  double beta;
  const S* rows;  // [count, stride]
  int64_t stride, count;
  const double* coefficients;  // [sets, count] on the device
  int64_t sets;                // one, or as many as segments
  const int64_t* offsets;      // [segments + 1], on the host
  int64_t segments;
  const bool* accept;
  T* out;
  T* largest;
  int64_t most_tiles = kMostTiles;
};
template <class T, class S>
int64_t extrapolate_workspace(const Extrapolate<T, S>& args);
template <class T, class S>
void extrapolate(const Extrapolate<T, S>& args, void* workspace, Stream stream);

// ops.window_statistics of at most kMostIterates iterates, the newest last.
constexpr int64_t kMostIterates = 256;
template <class T>
struct Window {
  const T* const* iterates;  // on the host
  int64_t count, size;
  T* mean;
  T* deviation;
  int64_t most_tiles = kMostTiles;
};
template <class T>
int64_t window_workspace(const Window<T>& args);
template <class T>
void window_statistics(const Window<T>& args, void* workspace, Stream stream);

// ---- blocks of samples ------------------------------------------------------------

// ops.add_sample_; figures [2].
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
  double* figures;
  bool compensated;
  int64_t most_tiles = kMostTiles;
};
template <class T>
int64_t sample_workspace(const Sample<T>& args);
template <class T>
void add_sample(const Sample<T>& args, void* workspace, Stream stream);

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, Stream stream);

// out[s][i][j] = rows[i] . vectors[j] over segment s; `count` of the entries is not looked at.
struct Products {
  const std::vector<Entries>& rows;
  const std::vector<Entries>& vectors;
  const int64_t* offsets;  // [segments + 1], on the host
  int64_t segments;
  double* out;  // [segments, rows, vectors]
  bool compensated;
  int64_t most_tiles = kMostTiles / 4;
};
int64_t products_workspace(const Products& args);
void products(const Products& args, void* workspace, Stream stream);

// ---- small dense problems and TSQR ------------------------------------------------

// ops.tsqr: [rows | append] in segments, of at most kMostColumns columns with `append`. The
// workspace is aligned to 16 bytes. A tile is four to 64 folds, so as to have `wanted_tiles`.
constexpr int64_t kMostColumns = 40;
template <class T, class S>
struct Tsqr {
  const S* rows;  // [count, stride]
  int64_t stride, count;
  const T* append;         // or null
  const int64_t* offsets;  // [segments + 1], on the host
  int64_t segments;
  T* factor;  // [segments, k, k]
  int64_t wanted_tiles = kMostTiles;
};
template <class T, class S>
int64_t tsqr_workspace(const Tsqr<T, S>& args);
template <class T, class S>
void tsqr(const Tsqr<T, S>& args, void* workspace, Stream stream);

// ops.solve_secants; k = m + 1.
struct Secants {
  const double* systems;  // [problems, k, k]
  int64_t problems, k;
  bool factored;
  double ridge, tolerance;
  double* gamma;  // [problems, k - 1]
  int64_t* rank;
  double* condition;
  double* reduction;
};
int64_t solve_secants_workspace(const Secants& args);
void solve_secants(const Secants& args, void* workspace, Stream stream);

// ops.solve_subspace.
struct Subspace {
  const double* metric;      // [problems, m, m]
  const double* curvature;   // [problems, m, m]
  const double* right_side;  // [problems, m]
  const double* noise;       // [problems, m, samples]
  const double* radius;      // [problems], on the device
  int64_t problems, m, samples;
  double ridge, floor, shrinkage;
  double* coefficients;  // [problems, m]
  double* eigenvalues;   // [problems, m], ascending
  double* slope;
  double* length;
  double* reduction;
  int64_t* rank;
};
int64_t solve_subspace_workspace(const Subspace& args);
void solve_subspace(const Subspace& args, void* workspace, Stream stream);

}  // namespace aadl::cuda
