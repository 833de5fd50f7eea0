// Products of m rows with k vectors over a block, in float64.
//
// In chunks: the vectors are widened once, the rows four at a time, into L1; then tiles of four
// rows and up to four vectors are multiplied with all sums in registers. So every entry is read
// from memory once and widened once. About m k multiply-adds an entry; bound by reading up to
// about eight of them, by arithmetic beyond. A product of two float32 is exact; the lanes of sums
// are kept over one block only, which keeps them short.
#pragma once

#include <vector>

#include "blocks.h"
#include "cpu/kernels.h"
#include "cpu/target.h"
#include "scalar.h"
#include "stream.h"

namespace aadl {

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
AADL_INLINE void products_block(const cpu::Products& args, const Block& block, bool symmetric,
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

}  // namespace aadl
