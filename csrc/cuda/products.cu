// Products of m rows with k vectors: see Products in records.h.
//
// A warp takes four rows, four vectors and a tile of entries, with all 16 sums in registers and no
// shared memory; warps that take the same entries are neighbours, so that what several of them
// read comes from memory once and from the caches after that. About m k float64 multiply-adds an
// entry, m k / 2 conversions; bound by arithmetic from about ten rows and vectors on.
#include <algorithm>

#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

constexpr int kSide = 4;            // rows, vectors and entries that a lane takes at once
constexpr int kVectorsAtOnce = 64;  // in the arguments, of rows and of vectors
constexpr int64_t kProductChunk = kWarp * kSide;
constexpr int64_t kMostProductTiles = kMostTiles / 4;  // each has many sums

// The part of [rows, vectors] that one launch computes.
struct Side {
  const void* begin[kVectorsAtOnce];
  unsigned char type[kVectorsAtOnce];
  bool aligned[kVectorsAtOnce];
  int count;
  int64_t first;
};

struct ProductTiles {
  Side rows, vectors;
  int64_t width;     // all vectors
  bool symmetric;    // rows are vectors: only what reaches the diagonal or lies above it
  double* partials;  // [all rows, all vectors, total_tiles]
  int64_t total_tiles, first_tile;
};

__host__ __device__ __forceinline__ int groups_of(int count) { return (count + kSide - 1) / kSide; }

// Whether a pair of groups has a product on or above the diagonal.
__host__ __device__ __forceinline__ bool wanted(const ProductTiles& own, int row, int vector) {
  return !own.symmetric || own.vectors.first + (vector + 1) * kSide > own.rows.first + row * kSide;
}

template <class Factor, class S>
__device__ __forceinline__ void load_four(const void* from, int64_t index, const Tile& tile,
                                          bool aligned, Factor (&to)[kSide]) {
  const S* const entries = static_cast<const S*>(from) + index;
  if (aligned && index >= tile.begin && index + kSide <= tile.end) {
    const auto pack = *reinterpret_cast<const Pack<S, kSide>*>(entries);
#pragma unroll
    for (int j = 0; j < kSide; ++j) to[j] = static_cast<Factor>(widen(pack.entry[j]));
  } else {
#pragma unroll
    for (int j = 0; j < kSide; ++j) {
      const bool inside = index + j >= tile.begin && index + j < tile.end;
      to[j] = inside ? static_cast<Factor>(widen(entries[j])) : Factor(0);
    }
  }
}

template <class Factor>
__device__ __forceinline__ void load_any(const Side& side, int i, int64_t index, const Tile& tile,
                                         Factor (&to)[kSide]) {
  const void* const from = side.begin[i];
  const bool aligned = side.aligned[i];
  switch (static_cast<Type>(side.type[i])) {
    case Type::kFloat:
      return load_four<Factor, float>(from, index, tile, aligned, to);
    case Type::kDouble:
      return load_four<Factor, double>(from, index, tile, aligned, to);
    case Type::kBFloat16:
      return load_four<Factor, BFloat16>(from, index, tile, aligned, to);
    case Type::kHalf:
      return load_four<Factor, Half>(from, index, tile, aligned, to);
  }
}

// Warp number i of all takes pair number i % pairs of tile i / pairs. No barriers: warps whose
// number is too large return.
template <class Sum>
__global__ void __launch_bounds__(kThreads, 2)
    product_tiles(ProductTiles own, Tiles tiles, int pairs, int64_t warps) {
  using Factor = typename Sum::Factor;
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (warp >= warps) return;
  const int index = static_cast<int>(warp / pairs);
  const Tile tile = tile_of(tiles, index);
  int row_group = 0, vector_group = 0;
  for (int left = static_cast<int>(warp % pairs);;) {
    if (wanted(own, row_group, vector_group) && left-- == 0) break;
    if (++vector_group == groups_of(own.vectors.count)) vector_group = 0, ++row_group;
  }
  const int row = row_group * kSide, vector = vector_group * kSide;
  // Places past the last are computed with the last, and not written.
  int rows[kSide], vectors[kSide];
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    rows[i] = row + i < own.rows.count ? row + i : own.rows.count - 1;
    vectors[i] = vector + i < own.vectors.count ? vector + i : own.vectors.count - 1;
  }

  Sum sums[kSide][kSide];
  for (int64_t i = tile.begin - tile.begin % kProductChunk + lane * kSide; i < tile.end;
       i += kProductChunk) {
    Factor x[kSide], y[kSide][kSide];
#pragma unroll
    for (int c = 0; c < kSide; ++c) load_any(own.vectors, vectors[c], i, tile, y[c]);
#pragma unroll
    for (int r = 0; r < kSide; ++r) {
      load_any(own.rows, rows[r], i, tile, x);
#pragma unroll
      for (int c = 0; c < kSide; ++c) {
#pragma unroll
        for (int j = 0; j < kSide; ++j) sums[r][c].add(x[j], y[c][j]);
      }
    }
  }

  double values[kSide * kSide];
#pragma unroll
  for (int i = 0; i < kSide * kSide; ++i) values[i] = sums[i / kSide][i % kSide].value();
  const double sum = sum_lanes(values);
  const int64_t to_row = row + lane / kSide, to_vector = vector + lane % kSide;
  if (lane < kSide * kSide && to_row < own.rows.count && to_vector < own.vectors.count) {
    const int64_t place = (own.rows.first + to_row) * own.width + own.vectors.first + to_vector;
    own.partials[place * own.total_tiles + own.first_tile + index] = sum;
  }
}

// out[segment, row, vector] for block (row * vectors + vector, segment).
__global__ void __launch_bounds__(kThreads)
    finish_products(const double* partials, int64_t total, int64_t first_tile, Tiles tiles,
                    int64_t width, bool symmetric, double* out) {
  const int64_t row = blockIdx.x / width, vector = blockIdx.x % width;
  const int64_t place = symmetric && row > vector ? vector * width + row : blockIdx.x;
  const double* const parts = partials + place * total + first_tile;
  double sum = 0;
  for (int t = tiles.first[blockIdx.y] + threadIdx.x; t < tiles.first[blockIdx.y + 1];
       t += kThreads) {
    sum += parts[t];
  }
  sum = sum_block(sum);
  if (threadIdx.x == 0) out[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = sum;
}

bool same_vectors(const Products& args) {
  return args.rows.size() == args.vectors.size() &&
         std::equal(args.rows.begin(), args.rows.end(), args.vectors.begin(),
                    [](const Entries& row, const Entries& vector) {
                      return row.begin == vector.begin && row.type == vector.type;
                    });
}

Side side_of(const std::vector<Entries>& all, int64_t first) {
  Side side = {};
  side.first = first;
  side.count = static_cast<int>(std::min<int64_t>(all.size() - first, kVectorsAtOnce));
  for (int i = 0; i < side.count; ++i) {
    const Entries& one = all[first + i];
    side.begin[i] = one.begin;
    side.type[i] = static_cast<unsigned char>(one.type);
    side.aligned[i] = aligned(one.begin);
  }
  return side;
}

bool all_float(const std::vector<Entries>& all) {
  return std::none_of(all.begin(), all.end(),
                      [](const Entries& one) { return one.type == Type::kDouble; });
}

int count_pairs(const ProductTiles& own) {
  int pairs = 0;
  for (int r = 0; r < groups_of(own.rows.count); ++r) {
    for (int c = 0; c < groups_of(own.vectors.count); ++c) pairs += wanted(own, r, c);
  }
  return pairs;
}

void launch_tiles(const ProductTiles& own, const Tiles& tiles, bool compensated, Stream stream) {
  const int pairs = count_pairs(own);
  const int64_t warps = int64_t{pairs} * tiles.first[tiles.segments];
  if (warps == 0) return;
  const unsigned blocks = static_cast<unsigned>((warps + kWarps - 1) / kWarps);
  if (compensated) {
    AADL_LAUNCH(product_tiles<Compensated>, blocks, kThreads, 0, stream, own, tiles, pairs, warps);
  } else {
    AADL_LAUNCH(product_tiles<Wide>, blocks, kThreads, 0, stream, own, tiles, pairs, warps);
  }
  check_launch("cross_products");
}

}  // namespace

void products(const Products& args, const Launch& launch) {
  const int64_t rows = args.rows.size(), vectors = args.vectors.size();
  if (rows == 0 || vectors == 0) return;
  const bool compensated = launch.compensated && all_float(args.rows) && all_float(args.vectors);
  const int64_t tile = tile_size(args.offsets[args.segments], 8 * kProductChunk,
                                 std::min(launch.most_tiles, kMostProductTiles));
  const int64_t total = count_tiles(args.offsets, args.segments, tile);
  double* const partials = workspace<double>(launch, rows * vectors * total);
  ProductTiles own = {{}, {}, vectors, same_vectors(args), partials, total, 0};
  for_tiles(args.offsets, args.segments, tile,
            [&](const Tiles& tiles, int64_t first_segment, int64_t first_tile) {
              own.first_tile = first_tile;
              for (int64_t r = 0; r < rows; r += kVectorsAtOnce) {
                own.rows = side_of(args.rows, r);
                for (int64_t c = 0; c < vectors; c += kVectorsAtOnce) {
                  own.vectors = side_of(args.vectors, c);
                  launch_tiles(own, tiles, compensated, launch.stream);
                }
              }
              AADL_LAUNCH(finish_products, dim3(rows * vectors, tiles.segments), kThreads, 0,
                          launch.stream, partials, total, first_tile, tiles, vectors, own.symmetric,
                          args.out + first_segment * rows * vectors);
              check_launch("cross_products");
            });
}

}  // namespace aadl::cuda
