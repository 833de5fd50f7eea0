// How the long dimension is cut up into tiles, one a block of threads: by the sizes only.
//
// A tile lies in one segment, and tiles but the first and last of a segment begin and end at
// multiples of their size. Each leaves its sums in a place of its own (sums.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "device.h"

namespace aadl::cuda {

// Some segments and their tiles, as an argument of a kernel: copied with the launch, so that a
// CUDA graph holds its own.
constexpr int kSegmentsAtOnce = 128;

struct Tiles {
  int64_t bounds[kSegmentsAtOnce + 1];  // entries
  int first[kSegmentsAtOnce + 1];       // tile that each segment begins with; behind, their number
  int segments;
  int64_t size;  // entries of a tile
};

struct Tile {
  int segment;  // of these
  int64_t begin, end;
};

__device__ __forceinline__ Tile tile_of(const Tiles& tiles, int index) {
  int low = 0, high = tiles.segments;
  while (high - low > 1) {  // first[low] <= index < first[high]
    const int middle = (low + high) / 2;
    if (tiles.first[middle] <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const int64_t begin = tiles.bounds[low], end = tiles.bounds[low + 1];
  const int64_t start = (begin / tiles.size + index - tiles.first[low]) * tiles.size;
  return {low, start < begin ? begin : start, start + tiles.size < end ? start + tiles.size : end};
}

// Entries of a tile: a few thousand tiles at most, but for many short segments.
inline int64_t tile_size(int64_t total, int64_t chunk, int64_t most_tiles) {
  const int64_t chunks = (total + chunk - 1) / chunk;
  return chunk * std::max<int64_t>(1, (chunks + most_tiles - 1) / most_tiles);
}

// Folds of a tile where `slots` blocks run at once: as many as end soonest, since a last wave of a
// few blocks takes as long as a full one. Beside its folds a block joins and writes triangles, in
// the time of about kEnd of them.
inline int64_t folds_of_tile(int64_t folds, int64_t slots) {
  constexpr int64_t kLeast = 4, kMost = 64, kEnd = 8;
  int64_t best = kLeast, soonest = std::numeric_limits<int64_t>::max();
  for (int64_t each = kLeast; each <= kMost; ++each) {
    const int64_t tiles = (folds + each - 1) / each, waves = (tiles + slots - 1) / slots;
    const int64_t end = waves * (each + kEnd);
    if (end < soonest) best = each, soonest = end;
  }
  return best;
}

inline int tiles_between(int64_t begin, int64_t end, int64_t size) {
  return end > begin ? static_cast<int>((end + size - 1) / size - begin / size) : 0;
}

inline int64_t count_tiles(const int64_t* offsets, int64_t segments, int64_t size) {
  int64_t count = 0;
  for (int64_t s = 0; s < segments; ++s) count += tiles_between(offsets[s], offsets[s + 1], size);
  return count;
}

// Calls use(tiles, first_segment, first_tile) for as many segments at a time as an argument holds.
template <class Use>
void for_tiles(const int64_t* offsets, int64_t segments, int64_t size, const Use& use) {
  int64_t first_tile = 0;
  for (int64_t s = 0; s < segments; s += kSegmentsAtOnce) {
    Tiles tiles = {};
    tiles.segments = static_cast<int>(std::min<int64_t>(segments - s, kSegmentsAtOnce));
    tiles.size = size;
    for (int i = 0; i <= tiles.segments; ++i) tiles.bounds[i] = offsets[s + i];
    for (int i = 0; i < tiles.segments; ++i) {
      tiles.first[i + 1] =
          tiles.first[i] + tiles_between(tiles.bounds[i], tiles.bounds[i + 1], size);
    }
    use(tiles, s, first_tile);
    first_tile += tiles.first[tiles.segments];
  }
}

}  // namespace aadl::cuda
