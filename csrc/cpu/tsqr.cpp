// R factor of [rows | append] by folds. Every block of entries is folded, tile after tile, into a
// triangle of its own; the triangles of a segment, in order, are rows of one more tall matrix,
// which is folded in float64. Tiles are computed in T, the factor in float64. Blocks depend on the
// sizes only: same bits on any number of threads.
//
// Reads every row once. The tile being folded is a scaled copy in L1 or L2; the cache lines of
// the next one are asked for a few at a time between the loops over this one, since so many
// short streams are too much for the hardware's own prefetcher.
//
// A Householder fold lets a triangular factor absorb a tile, R <- R factor of [R; tile].
//
// The tile is column-major: `columns` arrays of `rows` entries, `height` apart, so that all long
// loops run over contiguous entries and history rows enter without a transposition. The factor
// is row-major and float64 whatever T is: it is small, and its roundings would add up over the
// tiles. Reflector j is v = [u e_j; tile column j]; rows of R but j stay as they are. Within a
// panel of four columns one pass applies a reflector and takes the products that the next one
// needs; then the panel acts on up to four further columns at once, so that a loaded entry is
// used two to four times: the work is bound by multiply-adds, 2 columns^2 flops a row. The tile
// stays in L1 or L2; it is the only copy, and what comes from memory is read once.
//
// The power of two that keeps the squares of a column in range (range.h) scales the column of R
// alike, exactly.
//
// Vectors are GCC's and Clang's vector types, not `omp simd`: GCC sums reductions of a simd loop
// lane after lane, which would take as long as the loop.
#include <cmath>
#include <memory>
#include <new>
#include <type_traits>

#include "../common/range.h"
#include "blocks.h"

namespace aadl::cpu {
namespace {

constexpr int64_t kTile = 768;  // rows of a tile: the waits between its passes are shared by many
constexpr int64_t kLanes = 16;  // rows are filled up with zeros to a multiple of it
constexpr int64_t kPanel = 4;   // reflectors applied together

// to = scale * from, of entries `step` apart, zeros behind it up to a multiple of kLanes; returns
// the largest magnitude, NaN if there is one: as integers, magnitudes are in order and NaN comes
// last.
template <class T, class S>
AADL_INLINE T load_column(const S* AADL_RESTRICT from, int64_t step, int64_t count, T scale,
                          T* AADL_RESTRICT to) {
  using Bits = typename Range<T>::Bits;
  Bits largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < count; ++i) {
    const T value = scale * static_cast<T>(widen(from[i * step]));
    to[i] = value;
    const Bits magnitude = bit_cast<Bits>(std::fabs(value));
    largest = magnitude > largest ? magnitude : largest;
  }
  for (int64_t i = count; i % kLanes != 0; ++i) to[i] = 0;
  return bit_cast<T>(largest);
}

// Vectors of kBytes, the size of a register, and how many columns the registers can serve.
template <class T, int kBytes, int kColumns>
struct Simd {
  using Entry = T;
  typedef T Vector __attribute__((vector_size(kBytes)));
  static constexpr int kWidth = kBytes / sizeof(T);
  static constexpr int kBlock = kColumns;  // columns that a panel is applied to at once

  static AADL_INLINE void load(const T* from, Vector& to) { std::memcpy(&to, from, kBytes); }
  static AADL_INLINE void store(const Vector& from, T* to) { std::memcpy(to, &from, kBytes); }

  static AADL_INLINE T sum(const Vector& lanes) {
    constexpr int kShort = 16 / sizeof(T);
    typedef T Short __attribute__((vector_size(16)));
    Short parts[kBytes / 16];
    std::memcpy(parts, &lanes, kBytes);
    if constexpr (kBytes == 64) parts[0] += parts[2], parts[1] += parts[3];
    if constexpr (kBytes >= 32) parts[0] += parts[1];
    if constexpr (kShort == 2) return parts[0][0] + parts[0][1];
    return (parts[0][0] + parts[0][2 % kShort]) + (parts[0][1] + parts[0][3 % kShort]);
  }
};

// Of a panel. v_h and v_i meet in the tile only: their corners lie in different rows of R.
struct Reflectors {
  double corner[kPanel];           // u
  double weight[kPanel];           // H = 1 - weight v v^T; 0 for none
  double product[kPanel][kPanel];  // v_h . v_i, h < i
};

// Pass I over a panel of W columns: reflector I - 1 is applied, V_c -= step_c V_{I-1} for c >= I;
// then product_c = V_I . V_c for all columns.
template <class V, int I, int W, class T = typename V::Entry>
AADL_INLINE void pass(T* tile, int64_t height, int64_t rows, const T* step, T* product) {
  typename V::Vector sums[W] = {}, x[W];
  for (int64_t i = 0; i < rows; i += V::kWidth) {
#pragma GCC unroll 4
    for (int c = 0; c < W; ++c) V::load(tile + c * height + i, x[c]);
    if constexpr (I > 0) {
#pragma GCC unroll 4
      for (int c = I; c < W; ++c) {
        x[c] -= step[c] * x[I - 1];
        V::store(x[c], tile + c * height + i);
      }
    }
#pragma GCC unroll 4
    for (int c = 0; c < W; ++c) sums[c] += x[I] * x[c];
  }
#pragma GCC unroll 4
  for (int c = 0; c < W; ++c) product[c] = V::sum(sums[c]);
}

// Reflectors I .. W - 1 of a panel; `corner` is the entry of R where the panel's diagonal begins.
template <class V, int I, int W, class Ahead, class T = typename V::Entry>
AADL_INLINE void factor_panel(T* tile, int64_t height, int64_t rows, double* corner,
                              int64_t columns, T* step, Reflectors& h, Ahead& ahead) {
  if constexpr (I < W) {
    ahead.step();
    T product[W];
    pass<V, I, W>(tile, height, rows, step, product);
    for (int before = 0; before < I; ++before) h.product[before][I] = product[before];
    double* const row = corner + I * columns;
    const double square = product[I];
    double u = 0, weight = 0;
    if (!(square <= Range<T>::kVanishing)) {
      const double norm = std::sqrt(row[I] * row[I] + square);
      u = row[I] + std::copysign(norm, row[I]);  // no cancellation
      weight = 1 / (norm * std::fabs(u));
      row[I] = -std::copysign(norm, row[I]);
    }
    h.corner[I] = u, h.weight[I] = weight;
    for (int c = I + 1; c < W; ++c) {
      const double s = weight * (u * row[c] + product[c]);
      row[c] -= u * s;
      step[c] = static_cast<T>(s);
    }
    factor_panel<V, I + 1, W>(tile, height, rows, corner, columns, step, h, ahead);
  }
}

// The four reflectors in `panel` applied to C columns of the tile and of R: step_i is weight_i
// times the product of v_i with what the reflectors before it left of the column.
template <class V, int C, class Ahead, class T = typename V::Entry>
AADL_INLINE void reflect(const T* panel, int64_t height, int64_t rows, T* tile, double* entries,
                         int64_t columns, const Reflectors& h, Ahead& ahead) {
  using Vector = typename V::Vector;
  ahead.step();
  Vector sums[kPanel][C] = {};
  for (int64_t i = 0; i < rows; i += V::kWidth) {
    Vector x[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) V::load(tile + c * height + i, x[c]);
#pragma GCC unroll 4
    for (int p = 0; p < kPanel; ++p) {
      Vector v;
      V::load(panel + p * height + i, v);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sums[p][c] += v * x[c];
    }
  }
  ahead.step();
  double steps[kPanel][C];
  T step[kPanel][C];
#pragma GCC unroll 4
  for (int p = 0; p < kPanel; ++p) {
    double* const row = entries + p * columns;
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      double dot = h.corner[p] * row[c] + V::sum(sums[p][c]);
#pragma GCC unroll 4
      for (int before = 0; before < p; ++before) dot -= h.product[before][p] * steps[before][c];
      steps[p][c] = h.weight[p] * dot;
      row[c] -= h.corner[p] * steps[p][c];
      step[p][c] = static_cast<T>(steps[p][c]);
    }
  }
  for (int64_t i = 0; i < rows; i += V::kWidth) {
    Vector v[kPanel];
#pragma GCC unroll 4
    for (int p = 0; p < kPanel; ++p) V::load(panel + p * height + i, v[p]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      Vector x;
      V::load(tile + c * height + i, x);
#pragma GCC unroll 4
      for (int p = 0; p < kPanel; ++p) x -= step[p][c] * v[p];
      V::store(x, tile + c * height + i);
    }
  }
}

// factor <- R factor of [factor; tile]; the tile is used up. ahead.step() is called often.
template <class V, class Ahead, class T = typename V::Entry>
AADL_INLINE void fold(T* tile, int64_t columns, int64_t height, int64_t rows, double* factor,
                      Ahead& ahead) {
  for (int64_t first = 0; first < columns; first += kPanel) {
    T* const panel = tile + first * height;
    double* const corner = factor + first * columns + first;
    const int64_t width = columns - first;
    Reflectors h;
    T step[kPanel];
    if (width < kPanel) {
      if (width == 3) factor_panel<V, 0, 3>(panel, height, rows, corner, columns, step, h, ahead);
      if (width == 2) factor_panel<V, 0, 2>(panel, height, rows, corner, columns, step, h, ahead);
      if (width == 1) factor_panel<V, 0, 1>(panel, height, rows, corner, columns, step, h, ahead);
      return;
    }
    factor_panel<V, 0, 4>(panel, height, rows, corner, columns, step, h, ahead);
    const auto apply = [&](auto count, int64_t c) __attribute__((always_inline)) {
      reflect<V, count.value>(panel, height, rows, panel + c * height, corner + c, columns, h,
                              ahead);
    };
    int64_t c = kPanel;
    for (; c + V::kBlock <= width; c += V::kBlock) {
      apply(std::integral_constant<int, V::kBlock>(), c);
    }
    if constexpr (V::kBlock == 4) {
      if (width - c == 3) apply(std::integral_constant<int, 3>(), c);
      if (width - c == 2) apply(std::integral_constant<int, 2>(), c);
    }
    if (width - c == 1) apply(std::integral_constant<int, 1>(), c);
  }
}

constexpr int64_t kFoldBlock = 48 * kTile;  // entries of a block
constexpr int64_t kLine = 64;               // bytes of a cache line

AADL_INLINE void prefetch(const char* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address, 0, 2);  // into L2
#endif
}

// The cache lines of the next tile that are still to be asked for.
struct Ahead {
  struct Stream {
    const char* begin;
    const char* end;
  };
  std::vector<Stream> streams;
  Stream* current = nullptr;
  int64_t streams_left = 0;
  int64_t bytes_per_step = 0;

  // In runs through one stream: bookkeeping for every line would cost more than the lines.
  AADL_INLINE void step() {
    for (int64_t bytes = bytes_per_step; bytes > 0 && streams_left > 0;) {
      const char* const begin = current->begin;
      const char* const end = begin + std::min<int64_t>(bytes, current->end - begin);
      for (const char* line = begin; line < end; line += kLine) prefetch(line);
      bytes -= end - begin;
      current->begin = end;
      if (end == current->end) ++current, --streams_left;
    }
  }
};

#define AADL_LOAD(T, S)                                                             \
  AADL_TARGETS T load(const S* from, int64_t step, int64_t count, T scale, T* to) { \
    return step == 1 ? load_column(from, 1, count, scale, to)                       \
                     : load_column(from, step, count, scale, to);                   \
  }
AADL_LOAD(float, float)
AADL_LOAD(double, double)
AADL_LOAD(double, float)

// Vectors of 64, 32 or 16 bytes, and as many columns at once as the registers hold.
#define AADL_ABSORB(VERSION, T, BYTES, BLOCK)                                                 \
  VERSION void absorb(T* tile, int64_t columns, int64_t height, int64_t rows, double* factor, \
                      Ahead& ahead) {                                                         \
    fold<Simd<T, BYTES, BLOCK>>(tile, columns, height, rows, factor, ahead);                  \
  }
#ifdef AADL_V4
AADL_ABSORB(AADL_V4, float, 64, 4)
AADL_ABSORB(AADL_V4, double, 64, 4)
AADL_ABSORB(AADL_V3, float, 32, 2)
AADL_ABSORB(AADL_V3, double, 32, 2)
AADL_ABSORB(AADL_BASE, float, 16, 2)
AADL_ABSORB(AADL_BASE, double, 16, 2)
#else
AADL_ABSORB(, float, 16, 2)
AADL_ABSORB(, double, 16, 2)
#endif

// A factor of scaled columns, and the tile that it absorbs next.
template <class T>
class Triangle {
 public:
  Triangle(int64_t columns, int64_t height)
      : columns_(columns),
        height_(height),
        tile_(new (std::align_val_t(kLine)) T[columns * height]),
        factor_(columns * columns),
        scales_(columns) {}

  template <class S>
  void load(int64_t column, const S* from, int64_t step, int64_t count) {
    Scale& scale = scales_[column];
    for (;;) {
      const T power = std::ldexp(T(1), scale.exponent);
      const T most = cpu::load(from, step, count, power, &tile_[column * height_]);
      const T largest = scale.largest > most ? scale.largest : most;
      const int change = better_exponent(largest, scale.exponent) - scale.exponent;
      if (change == 0) {
        scale.largest = largest;
        return;
      }
      scale.exponent += change;
      scale.largest = std::ldexp(scale.largest, change);
      for (int64_t i = 0; i <= column; ++i) {
        double& entry = factor_[i * columns_ + column];
        entry = std::ldexp(entry, change);
      }
    }
  }

  void absorb(int64_t count, Ahead& ahead) {
    const int64_t rows = (count + kLanes - 1) / kLanes * kLanes;
    cpu::absorb(tile_.get(), columns_, height_, rows, factor_.data(), ahead);
  }

  // The factor without the scales.
  void finish(double* out) const {
    for (int64_t i = 0; i < columns_; ++i) {
      for (int64_t c = 0; c < columns_; ++c, ++out) {
        *out = std::ldexp(factor_[i * columns_ + c], -scales_[c].exponent);
      }
    }
  }

 private:
  struct Scale {
    int exponent = 0;
    T largest = 0;
  };
  struct Free {
    void operator()(T* tile) const { ::operator delete[](tile, std::align_val_t(kLine)); }
  };
  int64_t columns_, height_;
  std::unique_ptr<T[], Free> tile_;
  std::vector<double> factor_;
  std::vector<Scale> scales_;
};

template <class T, class S>
void fold_block(const Tsqr<T, S>& args, const Block& block, int64_t columns, double* out) {
  Triangle<T> triangle(columns, kTile);
  Ahead ahead;
  ahead.streams.resize(columns);
  // A fold has a step for every column in its panel, and two for every four behind a panel.
  int64_t steps = columns;
  for (int64_t rest = columns - kPanel; rest > 0; rest -= kPanel) steps += (rest + 3) / 4 * 2;

  for (int64_t begin = block.begin; begin < block.end; begin += kTile) {
    const int64_t next = std::min(begin + kTile, block.end);
    const int64_t next_end = std::min(next + kTile, block.end);
    const auto load = [&](int64_t c, const auto* row, int64_t step) {
      triangle.load(c, row + begin * step, step, next - begin);
      // A matrix that is stored row after row is one stream, which needs no help.
      const int64_t end = step == 1 ? next_end : next;
      ahead.streams[c] = {reinterpret_cast<const char*>(row + next),
                          reinterpret_cast<const char*>(row + end)};
    };
    for (int64_t c = 0; c < args.count; ++c) load(c, args.rows + c * args.stride, args.step);
    if (args.append) load(args.count, args.append, 1);
    const int64_t bytes = (next_end - next) * sizeof(T) * columns;  // or fewer
    ahead.current = ahead.streams.data();
    ahead.streams_left = columns;
    ahead.bytes_per_step = (bytes / steps + kLine - 1) / kLine * kLine;
    triangle.absorb(next - begin, ahead);
  }
  triangle.finish(out);
}

// The triangles [blocks, columns, columns] of a segment into one.
std::vector<double> join(const double* triangles, int64_t blocks, int64_t columns) {
  const int64_t group = std::max<int64_t>(1, kTile / columns);
  const int64_t height = (group * columns + kLanes - 1) / kLanes * kLanes;
  Triangle<double> triangle(columns, height);
  std::vector<double> column(height), out(columns * columns);
  Ahead none;
  for (int64_t begin = 0; begin < blocks; begin += group) {
    const int64_t count = std::min(group, blocks - begin);
    for (int64_t c = 0; c < columns; ++c) {
      const double* const entries = triangles + begin * columns * columns + c;
      for (int64_t i = 0; i < count * columns; ++i) column[i] = entries[i * columns];
      triangle.load(c, column.data(), 1, count * columns);
    }
    triangle.absorb(count * columns, none);
  }
  triangle.finish(out.data());
  return out;
}

// Rows with their diagonal made positive.
template <class T>
void write_factor(const double* triangle, int64_t columns, T* out) {
  for (int64_t i = 0; i < columns; ++i) {
    const double sign = triangle[i * columns + i] < 0 ? -1 : 1;
    for (int64_t c = 0; c < columns; ++c, ++out) {
      *out = c < i ? T(0) : static_cast<T>(sign * triangle[i * columns + c]);
    }
  }
}

}  // namespace

template <class T, class S>
void tsqr(const Tsqr<T, S>& args, const Threads& threads) {
  const int64_t columns = args.count + (args.append ? 1 : 0), size = columns * columns;
  const std::vector<Block> blocks = make_blocks(args.offsets, args.segments, kFoldBlock);
  const int64_t total = static_cast<int64_t>(blocks.size());
  std::vector<double> triangles(total * size);
  run_blocks(blocks, threads,
             [&](int64_t b) { fold_block(args, blocks[b], columns, triangles.data() + b * size); });

  T* factor = args.factor;
  int64_t begin = 0;
  for (int64_t s = 0; s < args.segments; ++s, factor += size) {
    int64_t end = begin;
    while (end < total && blocks[end].segment == s) ++end;
    if (end == begin) {
      std::fill_n(factor, size, T(0));
    } else if (end == begin + 1) {
      write_factor(triangles.data() + begin * size, columns, factor);
    } else {
      write_factor(join(triangles.data() + begin * size, end - begin, columns).data(), columns,
                   factor);
    }
    begin = end;
  }
}

template void tsqr(const Tsqr<float, float>&, const Threads&);
template void tsqr(const Tsqr<double, double>&, const Threads&);
template void tsqr(const Tsqr<double, float>&, const Threads&);

}  // namespace aadl::cpu
