// What both kinds of fold (thread_fold.cuh, block_fold.cuh) share: where columns come from, where
// triangles go.
#pragma once

#include "../common/range.h"
#include "chunk.h"
#include "tiles.h"

namespace aadl::cuda {

// The matrix whose columns are `count` rows and, if not null, `append`.
template <class T, class S>
struct Columns {
  const S* rows;  // entry i of row c is rows[c * stride + i * step]
  int64_t stride, step;
  int count;
  const T* append;
  bool packed;  // all aligned to 16 bytes, and step is 1

  __device__ __forceinline__ int number() const { return count + (append != nullptr); }
};

// A pass leaves a triangle [k, k] for each tile, as k rows of a matrix that the next pass folds,
// or, as the last, one for each segment.
struct Triangles {
  double* columns;  // [k, stride]; null in the last pass, which writes one of
  int64_t stride;
  float* narrow;  // [segments, k, k]
  double* wide;   // [segments, k, k]

  AADL_INLINE bool last() const { return columns == nullptr; }
};

// The rows of this block: in the last pass all of its segment, and there may be none.
__device__ __forceinline__ Tile tile_of_block(const Tiles& tiles, const Triangles& to) {
  const int index = static_cast<int>(blockIdx.x);
  if (!to.last()) return tile_of(tiles, index);
  return {index, tiles.bounds[index], tiles.bounds[index + 1]};
}

// factor [k, width] in shared memory, with columns times 2^exponents; the diagonal is made
// positive in the last pass.
template <class T>
__device__ __forceinline__ void write_triangle(const T* factor, int width, const int* exponents,
                                               int k, const Triangles& to) {
  const int64_t index = blockIdx.x;
  for (int entry = threadIdx.x; entry < k * k; entry += blockDim.x) {
    const int i = entry / k, c = entry % k;
    const double scaled = c < i ? 0 : static_cast<double>(factor[i * width + c]);
    const double value = std::ldexp(scaled, -exponents[c]);
    if (!to.last()) {
      to.columns[c * to.stride + index * k + i] = value;
      continue;
    }
    const double positive = factor[i * width + i] < 0 && c >= i ? -value : value;
    if (to.narrow) to.narrow[index * k * k + entry] = static_cast<float>(positive);
    if (to.wide) to.wide[index * k * k + entry] = positive;
  }
}

__device__ __forceinline__ bool any_lane(bool mine) {
  int any = mine;
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) any |= __shfl_xor_sync(kAllLanes, any, by);
  return any != 0;
}

}  // namespace aadl::cuda
