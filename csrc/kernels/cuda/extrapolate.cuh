// A point moved along a combination of rows: see Extrapolate in kernels.h.
//
// A block takes a tile, chunk after chunk: the combination is gathered in registers, rows one after
// the other, and joined with the point at the end, so that each vector is read once and the
// combination, small against the point, is rounded at its size only once. Reads 2 + m vectors
// (1 + m at beta = 1), writes 1.
#pragma once

#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {

template <class T, class S>
struct ExtrapolateTile {
  Extrapolate<T, S> args;
  bool aligned;
  T* partials;  // max |out| of each tile
  int64_t first_segment;
};

template <class T, class S>
__global__ void __launch_bounds__(kThreads)
    extrapolate_tiles(ExtrapolateTile<T, S> own, Tiles tiles) {
  AADL_DYNAMIC_SHARED(T, weights);  // [count]
  const Extrapolate<T, S>& args = own.args;
  const Tile tile = tile_of(tiles, blockIdx.x);
  const bool accepted = !args.accept || *args.accept;
  const int count = accepted ? static_cast<int>(args.count) : 0;
  const T beta = accepted ? static_cast<T>(args.beta) : T(1);
  const int64_t set = args.sets == 1 ? 0 : own.first_segment + tile.segment;
  for (int k = threadIdx.x; k < count; k += kThreads) {
    weights[k] = static_cast<T>(args.coefficients[set * args.count + k]);
  }
  __syncthreads();

  Magnitude<T> peak = 0;
  for_chunks<T, S>(tile.begin, tile.end, own.aligned, [&](const auto& share) {
    T sum[kHeld<T>] = {}, x[kHeld<T>], point[kHeld<T>];
#pragma unroll 4
    for (int k = 0; k < count; ++k) {
      share.load(args.rows + k * args.stride, x);
      const T weight = weights[k];
#pragma unroll
      for (int j = 0; j < kHeld<T>; ++j) sum[j] += weight == 0 ? T(0) : weight * x[j];
    }
    share.load(args.after, point);
    if (beta != 1) {
      share.load(args.before, x);
#pragma unroll
      for (int j = 0; j < kHeld<T>; ++j) point[j] = x[j] + beta * (point[j] - x[j]);
    }
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) {
      point[j] -= sum[j];
      const Magnitude<T> size = magnitude(point[j]);
      peak = size > peak ? size : peak;
    }
    share.store(args.out, point);
  });
  peak = max_block(peak);
  if (threadIdx.x == 0) own.partials[blockIdx.x] = from_magnitude(peak);
}

}  // namespace aadl::cuda
