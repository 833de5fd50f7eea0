// Lists of pieces as arguments of kernels, copied with the launch, so that a CUDA graph holds its own.
//
// Pieces are cut into tiles, one a block of threads, so that one long tensor is shared among many
// blocks as many short ones are.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include "device.h"

namespace aadl::cuda {

// How many a launch takes: short lists in 4 KiB of arguments, which cost less to send; long ones in
// the 32 KiB that CUDA 12.1 brought.
constexpr int kFewPieces = 72, kManyPieces = 600;
static_assert(2 * kManyPieces >= 1000, "lists of 1000 tensors need two launches at most");

// Whether a launch may have arguments of 32 KiB.
inline bool takes_many() {
#if !defined(__CUDACC__)
  return true;  // in the emulation
#elif CUDART_VERSION < 12010
  return false;
#else
  static const bool takes = [] {
    int driver = 0;
    return cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010;
  }();
  return takes;
#endif
}

// Piece p has tiles first[p] .. first[p + 1] - 1.
template <int kMost>
struct PieceTiles {
  int first[kMost + 1];
  int pieces;
};

template <int kMost>
__device__ __forceinline__ int piece_of(const PieceTiles<kMost>& tiles, int tile) {
  int low = 0, high = tiles.pieces;
  while (high - low > 1) {  // first[low] <= tile < first[high]
    const int middle = (low + high) / 2;
    (tiles.first[middle] <= tile ? low : high) = middle;
  }
  return low;
}

inline int tiles_of(int64_t count, int64_t tile) {
  return static_cast<int>((count + tile - 1) / tile);
}

// Tiles of all pieces together.
template <class AnyPiece>
int64_t tiles_of(const std::vector<AnyPiece>& pieces, int64_t tile) {
  int64_t total = 0;
  for (const AnyPiece& piece : pieces) total += tiles_of(piece.count, tile);
  return total;
}

// Calls use(m) with how many pieces of a list a launch is to take, as a constant.
template <class Use>
void with_room_for(size_t pieces, const Use& use) {
  if (pieces <= kFewPieces || !takes_many()) return use(std::integral_constant<int, kFewPieces>{});
  use(std::integral_constant<int, kManyPieces>{});
}

// Calls use(tiles) for as many pieces at a time as `own` holds, which then has them.
template <int kMost, class Own, class AnyPiece, class Use>
void for_pieces(const std::vector<AnyPiece>& pieces, int64_t tile, Own& own, const Use& use) {
  static_assert(sizeof(Own) <= (kMost > kFewPieces ? 32764 : 4096), "arguments of a kernel");
  for (size_t begin = 0; begin < pieces.size(); begin += kMost) {
    own.tiles.pieces = static_cast<int>(std::min<size_t>(pieces.size() - begin, kMost));
    for (int p = 0; p < own.tiles.pieces; ++p) {
      own.pieces[p] = pieces[begin + p];
      own.tiles.first[p + 1] = own.tiles.first[p] + tiles_of(own.pieces[p].count, tile);
    }
    if (const int tiles = own.tiles.first[own.tiles.pieces]; tiles > 0) use(tiles);
  }
}

}  // namespace aadl::cuda
