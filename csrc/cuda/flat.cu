// Lists of contiguous pieces: copied, converted, or reduced to their squared norm.
//
// Where a piece is aligned it is taken in packs of 16 bytes, elsewhere entry by entry.
#include <type_traits>

#include "chunk.h"
#include "kernels.h"
#include "pieces.h"
#include "sums.h"

namespace aadl::cuda {
namespace {

constexpr int64_t kPieceTile = 32 * kThreads;

template <int kMost>
struct CopyTiles {
  Piece pieces[kMost];
  PieceTiles<kMost> tiles;
  const bool* when;
};

template <int kMost>
struct SquareTiles {
  Entries pieces[kMost];
  PieceTiles<kMost> tiles;
  double* partials;  // of each tile
};

template <class To, class From>
__device__ __forceinline__ To converted(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;  // also the bits of a NaN
  } else {
    return narrow<To>(widen(x));
  }
}

// So many packs, a pass of the block apart: all are in registers before the first is stored, since
// the compiler cannot know that a store does not change what is still to be read.
template <int kPack, int kAtOnce, class From, class To>
__device__ __forceinline__ void copy_packs(const From* from, To* to) {
  Pack<From, kPack> source[kAtOnce];
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    source[k] = *reinterpret_cast<const Pack<From, kPack>*>(from + k * kThreads * kPack);
  }
#pragma unroll
  for (int k = 0; k < kAtOnce; ++k) {
    Pack<To, kPack> target;
#pragma unroll
    for (int j = 0; j < kPack; ++j) target.entry[j] = converted<To>(source[k].entry[j]);
    *reinterpret_cast<Pack<To, kPack>*>(to + k * kThreads * kPack) = target;
  }
}

// Entries begin .. end - 1, whole packs.
template <int kPack, int kAtOnce, class From, class To>
__device__ __forceinline__ void copy_span(const From* from, To* to, int64_t begin, int64_t end) {
  constexpr int64_t kPass = kThreads * kPack;
  int64_t i = begin + threadIdx.x * kPack;
  for (; i + (kAtOnce - 1) * kPass < end; i += kAtOnce * kPass) {
    copy_packs<kPack, kAtOnce>(from + i, to + i);
  }
#pragma unroll 1
  for (; i < end; i += kPass) copy_packs<kPack, 1>(from + i, to + i);
}

template <class From, class To>
__device__ __forceinline__ void copy_part(const Piece& piece, int64_t begin, int64_t count) {
  constexpr int kPack = 16 / (sizeof(From) < sizeof(To) ? sizeof(From) : sizeof(To));
  const From* const from = static_cast<const From*>(piece.from) + begin;
  To* const to = static_cast<To*>(piece.to) + begin;
  const int64_t packed = aligned(from) && aligned(to) ? count - count % kPack : 0;
  copy_span<kPack, 4>(from, to, 0, packed);
  copy_span<1, 8>(from, to, packed, count);
}

// Calls use(From{}, To{}).
template <class Use>
__device__ __forceinline__ void with_types(Type from, Type to, const Use& use) {
  const bool wide = from == Type::kFloat;
  if (from == Type::kFloat && to == Type::kFloat) return use(float{}, float{});
  if (from == Type::kDouble && to == Type::kDouble) return use(double{}, double{});
  if (from == Type::kBFloat16 && to == Type::kBFloat16) return use(BFloat16{}, BFloat16{});
  if (from == Type::kHalf && to == Type::kHalf) return use(Half{}, Half{});
  if (wide && to == Type::kDouble) return use(float{}, double{});
  if (wide && to == Type::kBFloat16) return use(float{}, BFloat16{});
  if (wide && to == Type::kHalf) return use(float{}, Half{});
  if (from == Type::kDouble && to == Type::kFloat) return use(double{}, float{});
  if (from == Type::kBFloat16 && to == Type::kFloat) return use(BFloat16{}, float{});
  if (from == Type::kHalf && to == Type::kFloat) return use(Half{}, float{});
}

template <int kMost>
__global__ void __launch_bounds__(kThreads) copy_tiles(CopyTiles<kMost> own) {
  if (own.when && !*own.when) return;
  const int tile = blockIdx.x, index = piece_of(own.tiles, tile);
  const Piece& piece = own.pieces[index];
  const int64_t begin = (tile - own.tiles.first[index]) * kPieceTile;
  const int64_t left = piece.count - begin, count = left < kPieceTile ? left : kPieceTile;
  with_types(piece.from_type, piece.to_type, [&](auto from, auto to) {
    copy_part<decltype(from), decltype(to)>(piece, begin, count);
  });
}

template <class Sum, class S>
__device__ __forceinline__ double squares_of(const void* entries, int64_t begin, int64_t count) {
  using Factor = typename Sum::Factor;
  constexpr int kPack = 16 / sizeof(S);
  const S* const from = static_cast<const S*>(entries) + begin;
  Sum sum;
  int64_t done = 0;
  if (aligned(from)) {
    done = count - count % kPack;
#pragma unroll 4
    for (int64_t i = threadIdx.x * kPack; i < done; i += kThreads * kPack) {
      const auto pack = *reinterpret_cast<const Pack<S, kPack>*>(from + i);
#pragma unroll
      for (int j = 0; j < kPack; ++j) {
        const Factor x = static_cast<Factor>(widen(pack.entry[j]));
        sum.add(x, x);
      }
    }
  }
#pragma unroll 8
  for (int64_t i = done + threadIdx.x; i < count; i += kThreads) {
    const Factor x = static_cast<Factor>(widen(from[i]));
    sum.add(x, x);
  }
  return sum.value();
}

template <class Sum, int kMost>
__global__ void __launch_bounds__(kThreads) square_tiles(SquareTiles<kMost> own) {
  const int tile = blockIdx.x, index = piece_of(own.tiles, tile);
  const Entries& piece = own.pieces[index];
  const int64_t begin = (tile - own.tiles.first[index]) * kPieceTile;
  const int64_t left = piece.count - begin, count = left < kPieceTile ? left : kPieceTile;
  double sum = 0;
  if (piece.type == Type::kFloat) sum = squares_of<Sum, float>(piece.begin, begin, count);
  if (piece.type == Type::kDouble) sum = squares_of<Wide, double>(piece.begin, begin, count);
  if (piece.type == Type::kBFloat16) sum = squares_of<Sum, BFloat16>(piece.begin, begin, count);
  if (piece.type == Type::kHalf) sum = squares_of<Sum, Half>(piece.begin, begin, count);
  sum = sum_block(sum);
  if (threadIdx.x == 0) own.partials[tile] = sum;
}

}  // namespace

void copy(const std::vector<Piece>& pieces, const bool* when, const Launch& launch) {
  with_room_for(pieces.size(), [&](auto most) {
    constexpr int kMost = decltype(most)::value;
    CopyTiles<kMost> own = {};
    own.when = when;
    for_pieces<kMost>(pieces, kPieceTile, own, [&](int tiles) {
      AADL_LAUNCH(copy_tiles<kMost>, tiles, kThreads, 0, launch.stream, own);
      check_launch("a copy");
    });
  });
}

void squared_norm(const std::vector<Entries>& pieces, double* out, const Launch& launch) {
  const int64_t total = tiles_of(pieces, kPieceTile);
  double* const partials = workspace<double>(launch, total);
  with_room_for(pieces.size(), [&](auto most) {
    constexpr int kMost = decltype(most)::value;
    SquareTiles<kMost> own = {};
    own.partials = partials;
    for_pieces<kMost>(pieces, kPieceTile, own, [&](int tiles) {
      if (launch.compensated) {
        AADL_LAUNCH((square_tiles<Compensated, kMost>), tiles, kThreads, 0, launch.stream, own);
      } else {
        AADL_LAUNCH((square_tiles<Wide, kMost>), tiles, kThreads, 0, launch.stream, own);
      }
      check_launch("squared_norm");
      own.partials += tiles;
    });
  });
  finish_sums(partials, total, 1, out, launch.stream);
}

}  // namespace aadl::cuda
