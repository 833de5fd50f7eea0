// R factor of [rows | append] by passes of folds. The first goes over the entries and leaves a
// triangle for every tile; each further one goes over the triangles, as rows of one more tall
// matrix, in float64; the last leaves one for each segment. Tiles depend on the shape, and on how
// many blocks the device runs at once.
//
// The first pass reads everything once, and its folds set the time: see thread_fold.cuh and
// block_fold.cuh. It leaves k triangle rows for each tile of four to 64 folds: a few percent of the
// rows where these fill the device. Each further pass has a tenth of the rows of the one before, or
// fewer, and the time of two folds by eight warps.
#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "block_fold.cuh"
#include "kernels.h"
#include "thread_fold.cuh"

namespace aadl::cuda {
namespace {

constexpr int kJoinWarps = 8;

// A number that is a type.
template <int kValue>
using Number = std::integral_constant<int, kValue>;

// Calls use(Number<groups>()) for the groups of eight that k columns take.
template <class Use>
void with_groups(int64_t k, const Use& use) {
  if (k <= 8) return use(Number<1>());
  if (k <= 16) return use(Number<2>());
  if (k <= 24) return use(Number<3>());
  if (k <= 32) return use(Number<4>());
  use(Number<5>());
}

template <class T>
bool fits_threads(int64_t k) {
  return reads_steps(k, std::is_same_v<T, double>);
}

// Calls use(Number<K>()) for the least K >= k that there is.
template <class T, class Use>
void with_columns(int64_t k, const Use& use) {
  if (k <= 4) return use(Number<4>());
  if (k <= 6) return use(Number<6>());
  if (k <= 8) return use(Number<8>());
  if constexpr (std::is_same_v<T, float>) use(Number<kThreadColumns>());
}

// Calls use(kernel, rows of a fold) for the kernel of the first pass.
template <class T, class S, class Use>
void with_first_fold(int64_t k, const Use& use) {
  if (fits_threads<T>(k)) {
    return with_columns<T>(k, [&](auto columns) {
      use(fold_in_threads<T, S, columns.value>, ThreadFold<T, columns.value>::kStep);
    });
  }
  with_groups(k, [&](auto groups) {
    constexpr int kGroups = groups.value < 2 ? 2 : groups.value;  // fewer fit threads
    use(fold_in_blocks<T, S, kGroups, 1>, BlockTile<T, kGroups, 1>::kRows);
  });
}

template <class T, class S>
int64_t columns_of(const Tsqr<T, S>& args) {
  return args.count + (args.append ? 1 : 0);
}

// Rows of a tile of the first pass.
template <class T, class S>
int64_t first_tile_rows(const Tsqr<T, S>& args, int64_t k, const Launch& launch) {
  int64_t rows = 0;
  with_first_fold<T, S>(k, [&](auto* kernel, int64_t fold) {
    const int64_t folds = (args.offsets[args.segments] + fold - 1) / fold;
    rows = fold * folds_of_tile(folds, resident_blocks(kernel, kWarp, launch));
  });
  return rows;
}

// Of the others.
int64_t join_tile_rows(int64_t rows, int64_t k) {
  int64_t fold = 0;
  with_groups(k, [&](auto groups) { fold = BlockTile<double, groups.value, kJoinWarps>::kRows; });
  const int64_t folds = (rows + fold - 1) / fold, tiles = kMostTiles / kJoinWarps;
  return fold * std::clamp<int64_t>((folds + tiles - 1) / tiles, 2, 64);
}

// Whether no segment is longer than a tile: then one pass is enough.
bool is_last(const Tiles& tiles) {
  for (int s = 0; s < tiles.segments; ++s) {
    if (tiles.bounds[s + 1] - tiles.bounds[s] > tiles.size) return false;
  }
  return true;
}

int64_t triangle_stride(const Tiles& tiles, int64_t k) {
  return (tiles.first[tiles.segments] * k + 1) / 2 * 2;
}

unsigned blocks_of(const Tiles& tiles, const Triangles& to) {
  return static_cast<unsigned>(to.last() ? tiles.segments : tiles.first[tiles.segments]);
}

template <class T, class S>
void first_pass(const Columns<T, S>& from, const Tiles& tiles, const Triangles& to, Stream stream) {
  const unsigned blocks = blocks_of(tiles, to);
  with_first_fold<T, S>(from.count + (from.append ? 1 : 0), [&](auto* kernel, int64_t) {
    AADL_LAUNCH(kernel, blocks, kWarp, 0, stream, from, tiles, to);
  });
  check_launch("tsqr");
}

void join(const Columns<double, double>& from, const Tiles& tiles, const Triangles& to,
          Stream stream) {
  with_groups(from.count, [&](auto groups) {
    AADL_LAUNCH((fold_in_blocks<double, double, groups.value, kJoinWarps>), blocks_of(tiles, to),
                kWarp * kJoinWarps, 0, stream, from, tiles, to);
  });
  check_launch("tsqr");
}

Triangles factors(float* factor) { return {nullptr, 0, factor, nullptr}; }
Triangles factors(double* factor) { return {nullptr, 0, nullptr, factor}; }

// Triangles that lie in `columns` as the rows of the next matrix.
Tiles next_tiles(const Tiles& tiles, int64_t k) {
  int64_t bounds[kSegmentsAtOnce + 1];
  for (int s = 0; s <= tiles.segments; ++s) bounds[s] = tiles.first[s] * k;
  Tiles next;
  for_tiles(bounds, tiles.segments, join_tile_rows(bounds[tiles.segments], k),
            [&](const Tiles& cut, int64_t, int64_t) { next = cut; });
  return next;
}

}  // namespace

template <class T, class S>
void tsqr(const Tsqr<T, S>& args, const Launch& launch) {
  const int64_t k = columns_of(args);
  if (k > kMostColumns) {
    throw std::invalid_argument("a CUDA factor has at most 40 columns, got " + std::to_string(k));
  }
  if (args.step != 1 && !fits_threads<T>(k)) {
    throw std::invalid_argument("so many columns are read from contiguous rows only");
  }
  const int64_t tile = first_tile_rows(args, k, launch);
  int64_t most = 0;
  for_tiles(args.offsets, args.segments, tile, [&](const Tiles& tiles, int64_t, int64_t) {
    if (!is_last(tiles)) most = std::max(most, k * triangle_stride(tiles, k));
  });
  double* const first = workspace<double>(launch, 2 * most);
  double* const halves[2] = {first, first + most};  // one is read, one written
  const bool packed =
      args.step == 1 && aligned(args.rows, args.stride, args.count) && aligned(args.append);
  const Columns<T, S> from = {args.rows,   args.stride, args.step, static_cast<int>(args.count),
                              args.append, packed};
  for_tiles(args.offsets, args.segments, tile, [&](Tiles tiles, int64_t first_segment, int64_t) {
    const Triangles result = factors(args.factor + first_segment * k * k);
    bool last = is_last(tiles);
    int64_t stride = triangle_stride(tiles, k);
    first_pass(from, tiles, last ? result : Triangles{halves[0], stride, nullptr, nullptr},
               launch.stream);
    for (int turn = 0; !last; turn ^= 1) {
      const Columns<double, double> triangles = {halves[turn],        stride,  1,
                                                 static_cast<int>(k), nullptr, true};
      tiles = next_tiles(tiles, k);
      last = is_last(tiles);
      stride = triangle_stride(tiles, k);
      join(triangles, tiles, last ? result : Triangles{halves[1 - turn], stride, nullptr, nullptr},
           launch.stream);
    }
  });
}

template void tsqr(const Tsqr<float, float>&, const Launch&);
template void tsqr(const Tsqr<double, double>&, const Launch&);
template void tsqr(const Tsqr<double, float>&, const Launch&);

}  // namespace aadl::cuda
