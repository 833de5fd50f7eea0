// Whether two vectors are the same, or nearly. Reads both once; a tile a block leaves 0 or 1, and one block
// brings these together.
#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

template <class T>
struct DifferenceTiles {
  Difference<T> args;
  bool aligned;
  int64_t tile;
  double* partials;
};

template <class T>
__global__ void __launch_bounds__(kThreads) differs_tiles(DifferenceTiles<T> own) {
  const int64_t size = own.args.size, begin = blockIdx.x * own.tile;
  const int64_t end = begin + own.tile < size ? begin + own.tile : size;
  const T within = own.args.scale ? static_cast<T>(own.args.tolerance) * *own.args.scale : 0;
  double found = 0;
  for_chunks<T, T>(begin, end, own.aligned, [&](const auto& share) {
    T one[kHeld<T>], other[kHeld<T>];
    share.load(own.args.one, one);
    share.load(own.args.other, other);
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) {
      if (differ(one[j], other[j], within)) found = 1;
    }
  });
  found = sum_block(found);
  if (threadIdx.x == 0) own.partials[blockIdx.x] = found;
}

__global__ void __launch_bounds__(kThreads)
    any_tile(const double* partials, int64_t tiles, bool* difference) {
  double found = 0;
  for (int64_t i = threadIdx.x; i < tiles; i += kThreads) found += partials[i];
  found = sum_block(found);
  if (threadIdx.x == 0) *difference = found > 0;
}

}  // namespace

template <class T>
void differs(const Difference<T>& args, const Launch& launch) {
  const int64_t tile = tile_size(args.size, kChunkSize<T>, launch.most_tiles);
  const int64_t tiles = (args.size + tile - 1) / tile;
  const DifferenceTiles<T> own = {args, aligned(args.one) && aligned(args.other), tile,
                                  workspace<double>(launch, tiles)};
  if (tiles > 0) {
    AADL_LAUNCH(differs_tiles<T>, static_cast<unsigned>(tiles), kThreads, 0, launch.stream, own);
    check_launch("differs");
  }
  AADL_LAUNCH(any_tile, 1, kThreads, 0, launch.stream, own.partials, tiles, args.difference);
  check_launch("differs");
}

template void differs(const Difference<float>&, const Launch&);
template void differs(const Difference<double>&, const Launch&);

}  // namespace aadl::cuda
