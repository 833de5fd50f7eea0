// Samples (point, gradient) of a block: added up, and turned into rows when the block is full. See
// Sample and BlockMeans in records.h. One pass each: a sample reads six vectors (seven with a
// direction) and writes three of them back; closing a block reads five and writes eight. The point
// and its gradient are lists of tensors (pieces.h).
#include <type_traits>

#include "chunk.h"
#include "kernels.h"
#include "pieces.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

template <class T, int kMost>
struct SampleTiles {
  Sample<T> args;
  SamplePart pieces[kMost];
  PieceTiles<kMost> tiles;
  int64_t tile;
  double* partials;  // [2, total]
  int64_t total;
};

// Calls use(P{}) with the type of a part.
template <class T, class Use>
__device__ __forceinline__ void with_type(Type type, const Use& use) {
  if (type == Type::kFloat) return use(float{});
  if constexpr (std::is_same_v<T, double>) {
    use(double{});
  } else if (type == Type::kBFloat16) {
    use(BFloat16{});
  } else {
    use(Half{});
  }
}

// What a thread adds up.
template <class Sum>
struct SampleSums {
  Sum squared_norm, slope;
};

// One chunk of a part, which `vectors` begin with.
template <class P, class T, class Sum, bool packed>
__device__ __forceinline__ void add_chunk(const Sample<T>& vectors, const SamplePart& part,
                                          const Share<T, T, packed>& share, SampleSums<Sum>& sums) {
  using Factor = typename Sum::Factor;
  const T sign = static_cast<T>(vectors.sign), decay = static_cast<T>(part.decay);
  T gradient[kHeld<T>], x[kHeld<T>], sum[kHeld<T>];
  share.load(static_cast<const P*>(part.gradient), gradient);
  share.load(static_cast<const P*>(part.point), x);
  share.load(vectors.anchor, sum);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) {
    if (decay != 0) gradient[j] += decay * x[j];
    x[j] -= sum[j];
  }
  share.load(vectors.point_sum, sum);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) sum[j] += x[j];
  share.store(vectors.point_sum, sum);
  if (vectors.direction) share.load(vectors.direction, x);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) {
    const Factor wide = static_cast<Factor>(gradient[j]);
    sums.squared_norm.add(wide, wide);
    if (vectors.direction) sums.slope.add(wide, static_cast<Factor>(x[j]));
  }
  if (!vectors.gradient_sum) return;
  share.load(vectors.gradient_sum, sum);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) sum[j] += gradient[j];
  share.store(vectors.gradient_sum, sum);
  if (!vectors.noise_sum) return;
  share.load(vectors.noise_sum, sum);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) sum[j] += sign * gradient[j];
  share.store(vectors.noise_sum, sum);
}

template <class Sum, class T, int kMost>
__global__ void __launch_bounds__(kThreads) sample_tiles(SampleTiles<T, kMost> own) {
  const int tile = blockIdx.x, index = piece_of(own.tiles, tile);
  const SamplePart& part = own.pieces[index];
  const int64_t begin = (tile - own.tiles.first[index]) * own.tile;
  const int64_t end = begin + own.tile < part.count ? begin + own.tile : part.count;
  Sample<T> vectors = own.args;
  bool packs = aligned(part.point) && aligned(part.gradient);
  for (T** const vector : {&vectors.point_sum, &vectors.gradient_sum, &vectors.noise_sum}) {
    if (*vector) *vector += part.begin;
    packs = packs && aligned(*vector);
  }
  for (const T** const vector : {&vectors.anchor, &vectors.direction}) {
    if (*vector) *vector += part.begin;
    packs = packs && aligned(*vector);
  }
  SampleSums<Sum> sums;
  with_type<T>(part.type, [&](auto p) {
    for_chunks<T, T>(begin, end, packs, [&](const auto& share) {
      add_chunk<decltype(p)>(vectors, part, share, sums);
    });
  });
  const double norm = sum_block(sums.squared_norm.value());
  const double product = sum_block(sums.slope.value());
  if (threadIdx.x == 0) {
    own.partials[tile] = norm;
    own.partials[own.total + tile] = product;
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

template <class T, int kMost>
void launch_tiles(const SampleTiles<T, kMost>& own, int tiles, const Launch& launch) {
  if constexpr (std::is_same_v<T, float>) {
    if (launch.compensated) {
      AADL_LAUNCH((sample_tiles<Compensated, T, kMost>), tiles, kThreads, 0, launch.stream, own);
      return;
    }
  }
  AADL_LAUNCH((sample_tiles<Wide, T, kMost>), tiles, kThreads, 0, launch.stream, own);
}

}  // namespace

template <class T>
void add_sample(const Sample<T>& args, const std::vector<SamplePart>& parts, const Launch& launch) {
  const int64_t size = parts.empty() ? 0 : parts.back().begin + parts.back().count;
  const int64_t tile = tile_size(size, kChunkSize<T>, launch.most_tiles);
  const int64_t total = tiles_of(parts, tile);
  double* const partials = workspace<double>(launch, 2 * total);
  with_room_for(parts.size(), [&](auto most) {
    constexpr int kMost = decltype(most)::value;
    SampleTiles<T, kMost> own = {};
    own.args = args, own.tile = tile, own.partials = partials, own.total = total;
    for_pieces<kMost>(parts, tile, own, [&](int tiles) {
      launch_tiles(own, tiles, launch);
      check_launch("add_sample_");
      own.partials += tiles;
    });
  });
  finish_sums(partials, total, 2, args.figures, launch.stream);
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

template void add_sample(const Sample<float>&, const std::vector<SamplePart>&, const Launch&);
template void add_sample(const Sample<double>&, const std::vector<SamplePart>&, const Launch&);
template void push_block(const BlockMeans<float, float>&, const Launch&);
template void push_block(const BlockMeans<float, BFloat16>&, const Launch&);
template void push_block(const BlockMeans<float, Half>&, const Launch&);
template void push_block(const BlockMeans<double, double>&, const Launch&);
template void push_block(const BlockMeans<double, float>&, const Launch&);

}  // namespace aadl::cuda
