// Mean and largest variance over a window of iterates: see Window in records.h.
//
// Deviations are taken from the newest iterate: they are small, so nothing cancels in their
// squares, and no running sums are needed. Both sums of a chunk stay in registers. Reads t vectors,
// writes 1.
#include <algorithm>
#include <stdexcept>

#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

template <class T>
struct WindowTiles {
  const T* iterates[kMostIterates];
  int count;
  bool aligned;
  int64_t size, tile;
  T* mean;
  T* partials;  // largest variance of each tile
};

template <class T>
__global__ void __launch_bounds__(kThreads) window_tiles(WindowTiles<T> args) {
  const int64_t begin = blockIdx.x * args.tile;
  const int64_t end = begin + args.tile < args.size ? begin + args.tile : args.size;
  const T count = static_cast<T>(args.count);
  Magnitude<T> peak = 0;
  for_chunks<T, T>(begin, end, args.aligned, [&](const auto& share) {
    T newest[kHeld<T>], sum[kHeld<T>], squares[kHeld<T>], x[kHeld<T>];
    share.load(args.iterates[args.count - 1], newest);
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) {
      // Its own deviation: zero, unless the entry is infinite or NaN.
      squares[j] = sum[j] = newest[j] - newest[j];
    }
#pragma unroll 4
    for (int k = 0; k < args.count - 1; ++k) {
      share.load(args.iterates[k], x);
#pragma unroll
      for (int j = 0; j < kHeld<T>; ++j) {
        const T deviation = x[j] - newest[j];
        sum[j] += deviation;
        squares[j] += deviation * deviation;
      }
    }
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) {
      const T mean = sum[j] / count;
      // Not negative but by rounding, and then next to nothing: the magnitude does.
      const Magnitude<T> variance = magnitude((squares[j] - sum[j] * mean) / count);
      peak = variance > peak ? variance : peak;
      sum[j] = newest[j] + mean;
    }
    share.store(args.mean, sum);
  });
  peak = max_block(peak);
  if (threadIdx.x == 0) args.partials[blockIdx.x] = from_magnitude(peak);
}

}  // namespace

template <class T>
void window_statistics(const Window<T>& args, const Launch& launch) {
  if (args.count < 1 || args.count > kMostIterates) {
    throw std::invalid_argument("window_statistics takes 1 to 256 iterates");
  }
  WindowTiles<T> own = {};
  std::copy_n(args.iterates, args.count, own.iterates);
  own.count = static_cast<int>(args.count);
  own.aligned = aligned(args.mean) && std::all_of(args.iterates, args.iterates + args.count,
                                                  [](const T* x) { return aligned(x); });
  own.size = args.size;
  own.tile = tile_size(args.size, kChunkSize<T>, launch.most_tiles);
  own.mean = args.mean;
  const int64_t tiles = (args.size + own.tile - 1) / own.tile;
  own.partials = workspace<T>(launch, tiles);
  if (tiles > 0) {
    AADL_LAUNCH(window_tiles<T>, static_cast<unsigned>(tiles), kThreads, 0, launch.stream, own);
    check_launch("window_statistics");
  }
  finish_peaks(own.partials, tiles, 1, true, args.deviation, launch.stream);
}

template void window_statistics(const Window<float>&, const Launch&);
template void window_statistics(const Window<double>&, const Launch&);

}  // namespace aadl::cuda
