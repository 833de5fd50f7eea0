// Sums and maxima over the threads of a warp or block and over tiles, in an order that depends on
// nothing.
#pragma once

#include "../common/scalar.h"
#include "chunk.h"
#include "device.h"
#include "tiles.h"

namespace aadl::cuda {

constexpr int kWarps = kThreads / kWarp;

// A sum of products in float64. A product of two float32 is exact.
struct Wide {
  using Factor = double;
  double sum = 0;

  __device__ __forceinline__ void add(double x, double y) { sum += x * y; }
  __device__ __forceinline__ double value() const { return sum; }
};

// The same of float32 factors on devices where float64 is slow: the rounding errors of products
// and sums are computed and summed as well (TwoProd and TwoSum; Ogita, Rump and Oishi 2005,
// "Accurate sum and dot product", algorithm Dot2). As if computed with twice the digits.
struct Compensated {
  using Factor = float;
  float sum = 0, error = 0;

  __device__ __forceinline__ void add(float x, float y) {
    const float product = __fmul_rn(x, y), rest = __fmaf_rn(x, y, -product);
    const float next = __fadd_rn(sum, product), part = __fsub_rn(next, sum);
    const float lost = __fadd_rn(__fsub_rn(sum, __fsub_rn(next, part)), __fsub_rn(product, part));
    error = __fadd_rn(error, __fadd_rn(lost, rest));
    sum = next;
  }
  __device__ __forceinline__ double value() const {
    // After an overflow the error is NaN, but the sum tells which infinity it is.
    return static_cast<double>(sum) + (sum - sum == 0 ? static_cast<double>(error) : 0);
  }
};

// One exchange between lanes `half` apart: each gives away half of the values it holds.
template <int half, int count>
__device__ __forceinline__ void halve_values(double (&values)[count], int lane) {
  if constexpr (half > 0) {
    const bool upper = lane & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const double away = upper ? values[i] : values[i + half];
      const double kept = upper ? values[i + half] : values[i];
      values[i] = kept + __shfl_xor_sync(kAllLanes, away, half);
    }
    halve_values<half / 2>(values, lane);
  }
}

// Sums `count` values, a power of two up to 32, over the lanes of a warp: returns that of value
// number `lane % count`. About count + 4 shuffles, not 5 * count.
template <int count>
__device__ __forceinline__ double sum_lanes(double (&values)[count]) {
  halve_values<count / 2>(values, threadIdx.x % kWarp);
  double sum = values[0];
#pragma unroll
  for (int by = count; by < kWarp; by *= 2) sum += __shfl_xor_sync(kAllLanes, sum, by);
  return sum;
}

__device__ __forceinline__ double sum_lanes(double value) {
  double values[1] = {value};
  return sum_lanes(values);
}

// To all threads of the block. Every thread has to come.
__device__ __forceinline__ double sum_block(double value) {
  AADL_SHARED(double, parts, kWarps);
  const double own = sum_lanes(value);
  __syncthreads();  // parts may still be read, from the call before
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = own;
  __syncthreads();
  double sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += parts[w];
  return sum;
}

// The largest Magnitude (scalar.h), to all threads of the block.
template <class Bits>
__device__ __forceinline__ Bits max_block(Bits value) {
  AADL_SHARED(Bits, parts, kWarps);
#pragma unroll
  for (int by = kWarp / 2; by >= 1; by /= 2) {
    const Bits other = __shfl_xor_sync(kAllLanes, value, by);
    value = other > value ? other : value;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  Bits most = 0;
  for (int w = 0; w < kWarps; ++w) most = parts[w] > most ? parts[w] : most;
  return most;
}

// ---- the last pass over what the tiles have left: small ---------------------------
//
// `partials` holds `total` numbers for each of `values` values: one a tile, value after value.

// out[segment * values + value] = the sum over the tiles of these segments, the first of which is
// number `first_tile`; or, of the last `peaks` values, the largest magnitude.
void finish_segments(const double* partials, int64_t total, int64_t first_tile, const Tiles& tiles,
                     int values, int peaks, double* out, cudaStream_t stream);

// out[value] = the sum over all tiles.
void finish_sums(const double* partials, int64_t total, int values, double* out,
                 cudaStream_t stream);

// *out = the largest magnitude of all tiles, or its square root.
template <class T>
void finish_peaks(const T* partials, int64_t total, int values, bool root, T* out,
                  cudaStream_t stream);

}  // namespace aadl::cuda
