// Products of m rows with k vectors: see Products in records.h.
//
// A warp takes four rows, four vectors and a tile of entries, with all 16 sums in registers and no
// shared memory; warps that take the same entries are neighbours, so that what several of them
// read comes from memory once and from the caches after that. A lane takes a pack of 16 bytes of
// each row, and as many entries of each vector, and has all of them under way before it uses one.
// About m k float64 multiply-adds an entry, m k / 2 conversions; bound by arithmetic from about ten
// rows and vectors on.
#include <algorithm>
#include <type_traits>

#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

constexpr int kProductThreads = 128;
constexpr int kSide = 4;            // rows and vectors that a warp takes at once
constexpr int kVectorsAtOnce = 64;  // in the arguments, of rows and of vectors
constexpr int64_t kMostProductTiles = kMostTiles / 4;  // each has many sums

template <class S>
constexpr int kPack = 16 / static_cast<int>(sizeof(S));

template <class S>
constexpr int64_t kProductChunk = kWarp * kPack<S>;

// The part of [rows, vectors] that one launch computes.
struct Side {
  const void* begin[kVectorsAtOnce];
  unsigned char type[kVectorsAtOnce];
  int count;
  int64_t first;

  // Places past the last are computed with the last, and not written.
  __device__ __forceinline__ int at(int place) const { return place < count ? place : count - 1; }
};

struct ProductTiles {
  Side rows, vectors;
  int64_t width;     // all vectors
  bool symmetric;    // rows are vectors: only what reaches the diagonal or lies above it
  bool packed;       // rows are of S, vectors of S or Wider<S>, all of them aligned
  double* partials;  // [all rows, all vectors, total_tiles]
  int64_t total_tiles, first_tile;
};

__host__ __device__ __forceinline__ int groups_of(int count) { return (count + kSide - 1) / kSide; }

// Whether a pair of groups has a product on or above the diagonal.
__host__ __device__ __forceinline__ bool wanted(const ProductTiles& own, int row, int vector) {
  return !own.symmetric || own.vectors.first + (vector + 1) * kSide > own.rows.first + row * kSide;
}

// What a vector may be in beside rows of S.
template <class S>
using Wider = std::conditional_t<sizeof(S) == 2, float, double>;

// Entries of a vector as they are read: one pack of S, or two of Wider<S>.
template <class S>
struct Raw {
  static constexpr int kHalf = kPack<S> / 2;
  Pack<S, kPack<S>> pack[2];
  bool wide;

  __device__ __forceinline__ void load(const void* from, int64_t index) {
    const char* const place = static_cast<const char*>(from) + (index * sizeof(S) << wide);
    pack[0] = *reinterpret_cast<const Pack<S, kPack<S>>*>(place);
    if (wide) pack[1] = *reinterpret_cast<const Pack<S, kPack<S>>*>(place + 16);
  }

  template <class Factor>
  __device__ __forceinline__ Factor entry(int j) const {
    const Factor narrow = static_cast<Factor>(widen(pack[0].entry[j]));
    if constexpr (std::is_same_v<S, Wider<S>>) {
      return narrow;
    } else {
      const auto half = bit_cast<Pack<Wider<S>, kHalf>>(pack[j / kHalf]);
      return wide ? static_cast<Factor>(half.entry[j % kHalf]) : narrow;
    }
  }
};

template <class Factor>
__device__ __forceinline__ Factor entry_of(const void* from, unsigned char type, int64_t i) {
  switch (static_cast<Type>(type)) {
    case Type::kFloat:
      return static_cast<Factor>(static_cast<const float*>(from)[i]);
    case Type::kDouble:
      return static_cast<Factor>(static_cast<const double*>(from)[i]);
    case Type::kBFloat16:
      return static_cast<Factor>(widen(static_cast<const BFloat16*>(from)[i]));
    default:
      return static_cast<Factor>(widen(static_cast<const Half*>(from)[i]));
  }
}

// Adds the products of entries begin .. end - 1, whole chunks.
template <class S, class Sum>
__device__ __forceinline__ void add_packs(const ProductTiles& own, int row, int vector,
                                          int64_t begin, int64_t end, Sum (&sums)[kSide][kSide]) {
  using Factor = typename Sum::Factor;
  Pack<S, kPack<S>> x[kSide];
  Raw<S> y[kSide];
#pragma unroll
  for (int c = 0; c < kSide; ++c) {
    y[c].wide = own.vectors.type[own.vectors.at(vector + c)] != own.rows.type[0];
  }
  const int lane = threadIdx.x % kWarp;
  for (int64_t i = begin + lane * kPack<S>; i < end; i += kProductChunk<S>) {
    // Where rows and vectors begin is read again: eight pointers are too many registers.
    asm volatile("" : "+r"(row), "+r"(vector));
#pragma unroll
    for (int r = 0; r < kSide; ++r) {
      const S* const entries = static_cast<const S*>(own.rows.begin[own.rows.at(row + r)]);
      x[r] = *reinterpret_cast<const Pack<S, kPack<S>>*>(entries + i);
    }
#pragma unroll
    for (int c = 0; c < kSide; ++c) y[c].load(own.vectors.begin[own.vectors.at(vector + c)], i);
#pragma unroll
    for (int j = 0; j < kPack<S>; ++j) {
      Factor factors[kSide];
#pragma unroll
      for (int c = 0; c < kSide; ++c) factors[c] = y[c].template entry<Factor>(j);
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
        const Factor factor = static_cast<Factor>(widen(x[r].entry[j]));
#pragma unroll
        for (int c = 0; c < kSide; ++c) sums[r][c].add(factor, factors[c]);
      }
    }
  }
}

// The same of any entries, one by one, in the same order.
template <class S, class Sum>
__device__ __forceinline__ void add_entries(const ProductTiles& own, int row, int vector,
                                            int64_t begin, int64_t end,
                                            Sum (&sums)[kSide][kSide]) {
  using Factor = typename Sum::Factor;
  const int lane = threadIdx.x % kWarp;
  const int64_t first = begin - begin % kProductChunk<S> + lane * kPack<S>;
  for (int64_t chunk = first; chunk < end; chunk += kProductChunk<S>) {
#pragma unroll 1
    for (int64_t i = chunk; i < chunk + kPack<S>; ++i) {
      if (i < begin || i >= end) continue;
      Factor x[kSide], y[kSide];
#pragma unroll
      for (int k = 0; k < kSide; ++k) {
        const int r = own.rows.at(row + k), c = own.vectors.at(vector + k);
        x[k] = entry_of<Factor>(own.rows.begin[r], own.rows.type[r], i);
        y[k] = entry_of<Factor>(own.vectors.begin[c], own.vectors.type[c], i);
      }
#pragma unroll
      for (int r = 0; r < kSide; ++r) {
#pragma unroll
        for (int c = 0; c < kSide; ++c) sums[r][c].add(x[r], y[c]);
      }
    }
  }
}

// Three blocks have 168 registers a thread. Elsewhere some kernels would spill, and two do: what they
// read is slower there, or float64 is, so that most take the compensated sums.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000)
#define AADL_PRODUCT_BLOCKS 3
#else
#define AADL_PRODUCT_BLOCKS 2
#endif

// Warp number i of all takes pair number i % pairs of tile i / pairs. No barriers: warps whose
// number is too large return.
template <class Sum, class S>
__global__ void __launch_bounds__(kProductThreads, AADL_PRODUCT_BLOCKS)
    product_tiles(ProductTiles own, Tiles tiles, int pairs, int64_t warps) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = (int64_t{blockIdx.x} * kProductThreads + threadIdx.x) / kWarp;
  if (warp >= warps) return;
  const int index = static_cast<int>(warp / pairs);
  const Tile tile = tile_of(tiles, index);
  int row_group = 0, vector_group = 0;
  for (int left = static_cast<int>(warp % pairs);;) {
    if (wanted(own, row_group, vector_group) && left-- == 0) break;
    if (++vector_group == groups_of(own.vectors.count)) vector_group = 0, ++row_group;
  }
  const int row = row_group * kSide, vector = vector_group * kSide;
  // The ends of a tile that are no whole chunk, and what is not packed, go entry by entry.
  constexpr int64_t kChunk = kProductChunk<S>;
  const int64_t first = (tile.begin + kChunk - 1) / kChunk * kChunk;
  const int64_t last = tile.end / kChunk * kChunk;
  int64_t from = tile.begin, to = own.packed && first < last ? first : tile.end;
  Sum sums[kSide][kSide];
#pragma unroll 1
  for (;;) {
    add_entries<S>(own, row, vector, from, to, sums);
    if (to == tile.end) break;
    add_packs<S>(own, row, vector, to, last, sums);
    from = last, to = tile.end;
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
  }
  return side;
}

// Whether all are aligned, and of one of these types.
bool all_are(const std::vector<Entries>& all, Type one, Type other) {
  return std::all_of(all.begin(), all.end(), [&](const Entries& entries) {
    return (entries.type == one || entries.type == other) && aligned(entries.begin);
  });
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

template <class S>
void launch_tiles(const ProductTiles& own, const Tiles& tiles, bool compensated, Stream stream) {
  const int pairs = count_pairs(own);
  const int64_t warps = int64_t{pairs} * tiles.first[tiles.segments];
  if (warps == 0) return;
  constexpr int64_t kEach = kProductThreads / kWarp;
  const unsigned blocks = static_cast<unsigned>((warps + kEach - 1) / kEach);
  if constexpr (!std::is_same_v<S, double>) {
    if (compensated) {
      AADL_LAUNCH((product_tiles<Compensated, S>), blocks, kProductThreads, 0, stream, own, tiles,
                  pairs, warps);
      return;
    }
  }
  AADL_LAUNCH((product_tiles<Wide, S>), blocks, kProductThreads, 0, stream, own, tiles, pairs,
              warps);
}

template <class S>
void products_of(const Products& args, const Launch& launch) {
  const int64_t rows = args.rows.size(), vectors = args.vectors.size();
  const bool compensated = launch.compensated && all_float(args.rows) && all_float(args.vectors);
  const int64_t tile = tile_size(args.offsets[args.segments], 8 * kProductChunk<S>,
                                 std::min(launch.most_tiles, kMostProductTiles));
  const int64_t total = count_tiles(args.offsets, args.segments, tile);
  double* const partials = workspace<double>(launch, rows * vectors * total);
  const Type type = args.rows[0].type, wider = sizeof(S) == 2 ? Type::kFloat : Type::kDouble;
  const bool packed = all_are(args.rows, type, type) && all_are(args.vectors, type, wider);
  ProductTiles own = {{}, {}, vectors, same_vectors(args), packed, partials, total, 0};
  for_tiles(args.offsets, args.segments, tile,
            [&](const Tiles& tiles, int64_t first_segment, int64_t first_tile) {
              own.first_tile = first_tile;
              for (int64_t r = 0; r < rows; r += kVectorsAtOnce) {
                own.rows = side_of(args.rows, r);
                for (int64_t c = 0; c < vectors; c += kVectorsAtOnce) {
                  own.vectors = side_of(args.vectors, c);
                  launch_tiles<S>(own, tiles, compensated, launch.stream);
                  check_launch("cross_products");
                }
              }
              AADL_LAUNCH(finish_products, dim3(rows * vectors, tiles.segments), kThreads, 0,
                          launch.stream, partials, total, first_tile, tiles, vectors, own.symmetric,
                          args.out + first_segment * rows * vectors);
              check_launch("cross_products");
            });
}

}  // namespace

void products(const Products& args, const Launch& launch) {
  if (args.rows.empty() || args.vectors.empty()) return;
  switch (args.rows[0].type) {
    case Type::kFloat:
      return products_of<float>(args, launch);
    case Type::kDouble:
      return products_of<double>(args, launch);
    case Type::kBFloat16:
      return products_of<BFloat16>(args, launch);
    case Type::kHalf:
      return products_of<Half>(args, launch);
  }
}

}  // namespace aadl::cuda
