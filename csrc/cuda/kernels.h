// The launchers of the CUDA kernels, free of torch: see records.h for what they take and do.
//
// They return at once, leave their results on the device, and can be captured in a CUDA graph: what
// is on the host is copied with the launch. Same input, same bits on one kind of device. Errors of
// a launch are thrown as std::runtime_error, sizes for which there is no kernel as
// std::invalid_argument.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../common/fixed_points.h"
#include "../common/records.h"
#include "../common/scalar.h"
#include "../common/verdicts.h"

struct CUstream_st;

namespace aadl::cuda {

using Stream = CUstream_st*;  // cudaStream_t

// Into how many tiles the long dimension is cut at most, one a block of threads: several times what
// runs at once on the largest device, and few enough that their partial sums cost nothing.
constexpr int64_t kMostTiles = 4096;

// How and where to launch.
struct Launch {
  Stream stream;
  // Device memory, aligned to 16 bytes, that the kernels of this launch may use.
  std::function<void*(int64_t bytes)> workspace;
  // Sums are float64; or, of float32, as accurate in pairs of float32 (sums.h).
  bool compensated = false;
  int64_t most_tiles = kMostTiles;
};

// Why these kernels cannot run on this device, the current one; empty if they can.
std::string refusal();

// Whether this device computes float64 so slowly that `compensated` sums pay.
bool slow_float64(int device);

constexpr int64_t kMostIterates = 256;  // of a window
constexpr int64_t kMostColumns = 40;    // of a factor, with `append`
// Columns, with `append`, that a thread's registers have room for. Only so few are read from rows
// whose entries are not side by side.
constexpr int kThreadColumns = 11, kThreadColumnsWide = 8;  // float, double

constexpr bool reads_steps(int64_t columns, bool wide) {
  return columns <= (wide ? kThreadColumnsWide : kThreadColumns);
}

// None of them, if `when` is false.
void copy(const std::vector<Piece>& pieces, const bool* when, const Launch& launch);

// *out = sum of squares.
void squared_norm(const std::vector<Entries>& pieces, double* out, const Launch& launch);

// out[j] = sum of the entries at j, j + size, ..., with their signs and weights.
void sketch(const std::vector<Weighted>& pieces, int64_t size, double* out, const Launch& launch);

template <class T>
void differs(const Difference<T>& args, const Launch& launch);

template <class T, class S>
void push(const Push<T, S>& args, const Launch& launch);

template <class T, class S>
void extrapolate(const Extrapolate<T, S>& args, const Launch& launch);

template <class T>
void window_statistics(const Window<T>& args, const Launch& launch);

template <class T, class S>
void tsqr(const Tsqr<T, S>& args, const Launch& launch);

template <class T>
void add_sample(const Sample<T>& args, const std::vector<SamplePart>& parts, const Launch& launch);

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, const Launch& launch);

void products(const Products& args, const Launch& launch);

void solve_secants(const Secants& args, const Launch& launch);

void fit_quadratic(const Quadratic& args, const Launch& launch);

void solve_subspace(const Subspace& args, const Launch& launch);

void solve_quasi_newton(const QuasiNewton& args, const Launch& launch);

void judge_fixed_points(const FixedPoints& args, const Launch& launch);

template <class Verdict>
void judge(const Verdict& verdict, const Launch& launch);

}  // namespace aadl::cuda
