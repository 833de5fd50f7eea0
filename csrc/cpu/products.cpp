// Products of m rows with k vectors over a block, in float64.
//
// In chunks: the vectors are widened once, the rows four at a time, into L1; then tiles of four
// rows and up to four vectors are multiplied with all sums in registers. So every entry is read
// from memory once and widened once. About m k multiply-adds an entry; bound by reading up to
// about eight of them, by arithmetic beyond. A product of two float32 is exact; the lanes of sums
// are kept over one block only, which keeps them short.
#include "blocks.h"

namespace aadl::cpu {
namespace {

constexpr int kTileRows = 4;

template <class S>
AADL_INLINE void widen_as(const void* from, int64_t begin, int64_t n, double* to) {
  const S* entries = static_cast<const S*>(from) + begin;
  for (int64_t j = 0; j < n; j += kSlice) fetch_ahead<2 * kChunk>(entries + j);
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) to[j] = widen(entries[j]);
}

// Entries begin .. begin + n - 1 of a vector, and zeros up to the end of the chunk.
AADL_INLINE void widen_chunk(const Entries& vector, int64_t begin, int64_t n, double* to) {
  if (vector.type == Type::kFloat) widen_as<float>(vector.begin, begin, n, to);
  if (vector.type == Type::kDouble) widen_as<double>(vector.begin, begin, n, to);
  if (vector.type == Type::kBFloat16) widen_as<BFloat16>(vector.begin, begin, n, to);
  if (vector.type == Type::kHalf) widen_as<Half>(vector.begin, begin, n, to);
  for (int64_t j = n; j < kChunk; ++j) to[j] = 0;
}

// Adds the products of four rows with C vectors, all kChunk apart, to lanes of sums: those of row
// r and vector c are at sums + (r * vectors + c) * Width.
template <int C, int Width>
AADL_INLINE void multiply_tile(const double* rows, const double* columns, int64_t n, double* sums,
                               int64_t stride) {
  using Vector = typename Lanes<Width>::type;
  Vector sum[kTileRows][C], x[kTileRows], y;
#pragma GCC unroll 4
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      std::memcpy(&sum[r][c], sums + (r * stride + c) * Width, sizeof(Vector));
    }
  }
  for (int64_t j = 0; j < n; j += Width) {
#pragma GCC unroll 4
    for (int r = 0; r < kTileRows; ++r) std::memcpy(&x[r], rows + r * kChunk + j, sizeof(Vector));
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      std::memcpy(&y, columns + c * kChunk + j, sizeof(Vector));
#pragma GCC unroll 4
      for (int r = 0; r < kTileRows; ++r) sum[r][c] += x[r] * y;
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      std::memcpy(sums + (r * stride + c) * Width, &sum[r][c], sizeof(Vector));
    }
  }
}

// Products of a block: out[i * vectors + j]. Where rows and vectors are the same, only tiles that
// reach the diagonal or lie above it are computed.
template <int Columns, int Width>
AADL_INLINE void products_block(const Products& args, const Block& block, bool symmetric,
                                double* out) {
  const int64_t rows = args.rows.size(), vectors = args.vectors.size();
  const int64_t padded = (rows + kTileRows - 1) / kTileRows * kTileRows;
  const int64_t wide = symmetric ? padded : vectors;
  std::vector<double> memory(wide * kChunk + padded * vectors * Width);
  double *const columns = memory.data(), *const sums = columns + wide * kChunk;
  alignas(64) double group[kTileRows * kChunk];
  for (int64_t begin = block.begin; begin < block.end; begin += kChunk) {
    const int64_t n = std::min(kChunk, block.end - begin);
    for (int64_t c = 0; c < vectors; ++c) {
      widen_chunk(args.vectors[c], begin, n, columns + c * kChunk);
    }
    for (int64_t r = 0; r < rows; r += kTileRows) {
      for (int64_t i = r; i < r + kTileRows && !symmetric; ++i) {
        double* const to = group + (i - r) * kChunk;
        if (i < rows) {
          widen_chunk(args.rows[i], begin, n, to);
        } else {
          std::fill_n(to, kChunk, 0.0);
        }
      }
      const double* const four = symmetric ? columns + r * kChunk : group;
      for (int64_t c = symmetric ? r - r % Columns : 0; c < vectors; c += Columns) {
        double* const tile = sums + (r * vectors + c) * Width;
        const double* const right = columns + c * kChunk;
        const int64_t left = vectors - c;
        if (left >= Columns) multiply_tile<Columns, Width>(four, right, n, tile, vectors);
        if constexpr (Columns > 3) {
          if (left == 3) multiply_tile<3, Width>(four, right, n, tile, vectors);
          if (left == 2) multiply_tile<2, Width>(four, right, n, tile, vectors);
        }
        if (left == 1) multiply_tile<1, Width>(four, right, n, tile, vectors);
      }
    }
  }
  for (int64_t i = 0; i < rows * vectors; ++i) {
    out[i] = 0;
    for (int lane = 0; lane < Width; ++lane) out[i] += sums[i * Width + lane];
  }
}

constexpr int64_t kMostBlocks = 512;  // bounds the memory of their sums

// As many vectors in a tile as the registers hold sums.
#define AADL_PRODUCTS(version, Columns, Width)                                        \
  version void products_one(const Products& args, const Block& block, bool symmetric, \
                            double* out) {                                            \
    products_block<Columns, Width>(args, block, symmetric, out);                      \
  }
#ifdef AADL_V4
AADL_PRODUCTS(AADL_V4, 4, 8)
AADL_PRODUCTS(AADL_V3, 2, 4)
AADL_PRODUCTS(AADL_BASE, 2, 2)
#else
AADL_PRODUCTS(, 2, 4)
#endif

bool same_vectors(const Products& args) {
  bool same = args.rows.size() == args.vectors.size();
  for (size_t i = 0; same && i < args.rows.size(); ++i) {
    const Entries &row = args.rows[i], &vector = args.vectors[i];
    same = row.begin == vector.begin && row.type == vector.type;
  }
  return same;
}

}  // namespace

void products(const Products& args, const Threads& threads) {
  const int64_t rows = args.rows.size(), vectors = args.vectors.size(), size = rows * vectors;
  const int64_t total = args.offsets[args.segments];
  const int64_t longer = (total + kBlock * kMostBlocks - 1) / (kBlock * kMostBlocks);
  const std::vector<Block> blocks =
      make_blocks(args.offsets, args.segments, kBlock * std::max<int64_t>(1, longer));
  const bool symmetric = same_vectors(args);
  std::vector<double> sums(blocks.size() * size);
  run_blocks(blocks, threads,
             [&](int64_t i) { products_one(args, blocks[i], symmetric, sums.data() + i * size); });
  std::fill_n(args.out, args.segments * size, 0.0);
  for (size_t b = 0; b < blocks.size(); ++b) {
    double* const out = args.out + blocks[b].segment * size;
    for (int64_t i = 0; i < size; ++i) out[i] += sums[b * size + i];
  }
  for (int64_t s = 0; symmetric && s < args.segments; ++s) {
    double* const out = args.out + s * size;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < i; ++j) out[i * rows + j] = out[j * rows + i];
    }
  }
}

}  // namespace aadl::cpu
