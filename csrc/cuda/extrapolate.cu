// A point moved along a combination of rows: see Extrapolate in records.h.
//
// A block takes a tile, chunk after chunk: the combination is gathered in registers, rows one after
// the other of those that have a part, which it lists first, and joined with the point at the end, so that each vector is read once and the
// combination, small against the point, is rounded at its size only once. Reads 2 + m vectors
// (1 + m at beta = 1), writes 1.
#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

template <class T, class S>
struct ExtrapolateTile {
  Extrapolate<T, S> args;
  bool aligned;
  T* partials;  // [2, total_tiles] max |out| and max |out - after| of each tile
  int64_t first_segment, total_tiles;
};

// A row that has a part.
template <class T>
struct Term {
  T weight;
  int row;
};

template <class T, class S>
__global__ void __launch_bounds__(kThreads)
    extrapolate_tiles(ExtrapolateTile<T, S> own, Tiles tiles) {
  AADL_DYNAMIC_SHARED(Term<T>, terms);  // [count], and [count] coefficients
  const Extrapolate<T, S>& args = own.args;
  const Tile tile = tile_of(tiles, blockIdx.x);
  const bool accepted = !args.accept || *args.accept;
  const int count = accepted ? static_cast<int>(args.count) : 0;
  const T beta = accepted ? static_cast<T>(args.beta) : T(1);
  const int64_t set = args.sets == 1 ? 0 : own.first_segment + tile.segment;
  T* const weights = reinterpret_cast<T*>(terms + args.count);
  for (int k = threadIdx.x; k < count; k += kThreads) {
    weights[k] = static_cast<T>(args.coefficients[set * args.count + k]);
  }
  __syncthreads();
  int used = 0;
  for (int k = 0; k < count; ++k) {
    const T weight = weights[k];
    if (weight == 0) continue;
    if (static_cast<int>(threadIdx.x) == used % kThreads) terms[used] = {weight, k};
    ++used;
  }
  __syncthreads();

  Magnitude<T> peak = 0, way = 0;
  for_chunks<T, S>(tile.begin, tile.end, own.aligned, [&](const auto& share) {
    T sum[kHeld<T>] = {}, x[kHeld<T>], point[kHeld<T>];
#pragma unroll 4
    for (int k = 0; k < used; ++k) {
      const Term<T> term = terms[k];
      share.load(args.rows + term.row * args.stride, x);
#pragma unroll
      for (int j = 0; j < kHeld<T>; ++j) sum[j] += term.weight * x[j];
    }
    T after[kHeld<T>];
    share.load(args.after, after);
    if (beta != 1) share.load(args.before, x);
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) {
      point[j] = (beta == 1 ? after[j] : x[j] + beta * (after[j] - x[j])) - sum[j];
      const Magnitude<T> size = magnitude(point[j]), step = magnitude(point[j] - after[j]);
      peak = size > peak ? size : peak;
      way = step > way ? step : way;
    }
    share.store(args.out, point);
  });
  peak = max_block(peak);
  way = max_block(way);
  if (threadIdx.x == 0) {
    own.partials[blockIdx.x] = from_magnitude(peak);
    own.partials[own.total_tiles + blockIdx.x] = from_magnitude(way);
  }
}

}  // namespace

template <class T, class S>
void extrapolate(const Extrapolate<T, S>& args, const Launch& launch) {
  const int64_t tile = tile_size(args.offsets[args.segments], kChunkSize<T>, launch.most_tiles);
  const int64_t total = count_tiles(args.offsets, args.segments, tile);
  const int64_t shared = args.count * (sizeof(Term<T>) + sizeof(T));
  T* const partials = workspace<T>(launch, 2 * total);
  ExtrapolateTile<T, S> own = {args,
                               aligned(args.before) && aligned(args.after) && aligned(args.out) &&
                                   aligned(args.rows, args.stride, args.count),
                               partials, 0, total};
  for_tiles(args.offsets, args.segments, tile,
            [&](const Tiles& tiles, int64_t first_segment, int64_t first_tile) {
              const int blocks = tiles.first[tiles.segments];
              if (blocks == 0) return;
              own.partials = partials + first_tile;
              own.first_segment = first_segment;
              AADL_LAUNCH((extrapolate_tiles<T, S>), blocks, kThreads, shared, launch.stream, own,
                          tiles);
              check_launch("extrapolate_");
            });
  finish_peaks(partials, total, 2, false, args.sizes, launch.stream);
}

template void extrapolate(const Extrapolate<float, float>&, const Launch&);
template void extrapolate(const Extrapolate<float, BFloat16>&, const Launch&);
template void extrapolate(const Extrapolate<float, Half>&, const Launch&);
template void extrapolate(const Extrapolate<double, double>&, const Launch&);
template void extrapolate(const Extrapolate<double, float>&, const Launch&);

}  // namespace aadl::cuda
