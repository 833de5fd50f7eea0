// Samples (point, gradient) of a block: added up, and turned into rows when the block is full. See
// Sample and BlockMeans in records.h. One pass each: a sample reads six vectors (seven with a
// direction) and writes three of them back; closing a block reads five and writes eight.
#include <type_traits>

#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

template <class T>
struct SampleTiles {
  Sample<T> args;
  int64_t tile;
  bool aligned;
  double* partials;  // [2, tiles]
};

template <class Sum, class T>
__global__ void __launch_bounds__(kThreads) sample_tiles(SampleTiles<T> own) {
  using Factor = typename Sum::Factor;
  const Sample<T>& args = own.args;
  const int64_t begin = blockIdx.x * own.tile;
  const int64_t end = begin + own.tile < args.size ? begin + own.tile : args.size;
  const T sign = static_cast<T>(args.sign);
  Sum squared_norm, slope;
  for_chunks<T, T>(begin, end, own.aligned, [&](const auto& share) {
    T gradient[kHeld<T>], x[kHeld<T>], sum[kHeld<T>];
    share.load(args.gradient, gradient);
    if (args.direction) share.load(args.direction, x);
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) {
      const Factor wide = static_cast<Factor>(gradient[j]);
      squared_norm.add(wide, wide);
      if (args.direction) slope.add(wide, static_cast<Factor>(x[j]));
    }
    share.load(args.gradient_sum, sum);
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) sum[j] += gradient[j];
    share.store(args.gradient_sum, sum);
    if (args.noise_sum) {
      share.load(args.noise_sum, sum);
#pragma unroll
      for (int j = 0; j < kHeld<T>; ++j) sum[j] += sign * gradient[j];
      share.store(args.noise_sum, sum);
    }
    share.load(args.point, x);
    share.load(args.anchor, gradient);
    share.load(args.point_sum, sum);
#pragma unroll
    for (int j = 0; j < kHeld<T>; ++j) sum[j] += x[j] - gradient[j];
    share.store(args.point_sum, sum);
  });
  const double norm = sum_block(squared_norm.value()), product = sum_block(slope.value());
  if (threadIdx.x == 0) {
    own.partials[blockIdx.x] = norm;
    own.partials[gridDim.x + blockIdx.x] = product;
  }
}

template <class T, class S>
struct BlockTiles {
  BlockMeans<T, S> args;
  bool aligned;
};

// One chunk of a block that cannot be used.
template <class T, class S, bool packed>
__device__ __forceinline__ void drop_chunk(const BlockMeans<T, S>& args,
                                           const Share<T, S, packed>& share) {
  const T zero[kHeld<T>] = {};
  const S none[kHeld<T>] = {};
  for (T* const sum : {args.point_sum, args.gradient_sum, args.noise_sum}) {
    if (sum) share.store(sum, zero);
  }
  for (S* const row : {args.step_row, args.gradient_row, args.noise_row}) {
    if (row) share.store(row, none);
  }
}

// One chunk of any other.
template <class T, class S, bool packed>
__device__ __forceinline__ void close_chunk(const BlockMeans<T, S>& args,
                                            const Share<T, S, packed>& share) {
  const T count = static_cast<T>(args.count), zero[kHeld<T>] = {};
  T mean[kHeld<T>], last[kHeld<T>];
  S row[kHeld<T>];
  const bool paired = !args.paired || *args.paired;

  share.load(args.point_sum, mean);
  share.load(args.last_point, last);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) {
    mean[j] /= count;
    row[j] = paired ? narrow<S>(mean[j]) : S{};
    last[j] += mean[j];
  }
  share.store(args.last_point, last);
  if (args.step_row) share.store(args.step_row, row);
  share.store(args.point_sum, zero);

  share.load(args.gradient_sum, mean);
  share.load(args.last_gradient, last);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) {
    mean[j] /= count;
    row[j] = paired ? narrow<S>(mean[j] - last[j]) : S{};
  }
  share.store(args.last_gradient, mean);
  if (args.gradient_row) share.store(args.gradient_row, row);
  share.store(args.gradient_sum, zero);

  if (!args.noise_sum) return;
  share.load(args.noise_sum, mean);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) row[j] = narrow<S>(mean[j] / count);
  share.store(args.noise_row, row);
  share.store(args.noise_sum, zero);
}

// A chunk a block: nothing is summed up.
template <class T, class S>
__global__ void __launch_bounds__(kThreads) close_block(BlockTiles<T, S> own) {
  const int64_t begin = blockIdx.x * kChunkSize<T>;
  const int64_t end = begin + kChunkSize<T> < own.args.size ? begin + kChunkSize<T> : own.args.size;
  const bool accepted = !own.args.accept || *own.args.accept;
  for_chunks<T, S>(begin, end, own.aligned, [&](const auto& share) {
    if (accepted) {
      close_chunk(own.args, share);
    } else {
      drop_chunk(own.args, share);
    }
  });
}

template <class T>
void launch_tiles(const SampleTiles<T>& own, unsigned tiles, const Launch& launch) {
  if constexpr (std::is_same_v<T, float>) {
    if (launch.compensated) {
      AADL_LAUNCH((sample_tiles<Compensated, T>), tiles, kThreads, 0, launch.stream, own);
      return;
    }
  }
  AADL_LAUNCH((sample_tiles<Wide, T>), tiles, kThreads, 0, launch.stream, own);
}

}  // namespace

template <class T>
void add_sample(const Sample<T>& args, const Launch& launch) {
  const int64_t tile = tile_size(args.size, kChunkSize<T>, launch.most_tiles);
  const int64_t tiles = (args.size + tile - 1) / tile;
  const SampleTiles<T> own = {args, tile,
                              aligned(args.point_sum) && aligned(args.gradient_sum) &&
                                  aligned(args.noise_sum) && aligned(args.point) &&
                                  aligned(args.anchor) && aligned(args.gradient) &&
                                  aligned(args.direction),
                              workspace<double>(launch, 2 * tiles)};
  if (tiles > 0) launch_tiles(own, static_cast<unsigned>(tiles), launch);
  check_launch("add_sample_");
  finish_sums(own.partials, tiles, 2, args.figures, launch.stream);
}

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, const Launch& launch) {
  if (args.size == 0) return;
  const BlockTiles<T, S> own = {args, aligned(args.point_sum) && aligned(args.gradient_sum) &&
                                          aligned(args.noise_sum) && aligned(args.last_point) &&
                                          aligned(args.last_gradient) && aligned(args.step_row) &&
                                          aligned(args.gradient_row) && aligned(args.noise_row)};
  const int64_t chunks = (args.size + kChunkSize<T> - 1) / kChunkSize<T>;
  AADL_LAUNCH((close_block<T, S>), static_cast<unsigned>(chunks), kThreads, 0, launch.stream, own);
  check_launch("push_block");
}

template void add_sample(const Sample<float>&, const Launch&);
template void add_sample(const Sample<double>&, const Launch&);
template void push_block(const BlockMeans<float, float>&, const Launch&);
template void push_block(const BlockMeans<float, BFloat16>&, const Launch&);
template void push_block(const BlockMeans<float, Half>&, const Launch&);
template void push_block(const BlockMeans<double, double>&, const Launch&);
template void push_block(const BlockMeans<double, float>&, const Launch&);

}  // namespace aadl::cuda
