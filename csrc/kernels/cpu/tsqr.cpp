// R factor of [rows | append] by folds: see fold.h. Every block of entries is folded, tile after
// tile, into a triangle of its own; the triangles of a segment, in order, are rows of one more
// tall matrix, which is folded in float64. Blocks depend on the sizes only: same bits on any
// number of threads.
//
// Reads every row once. The tile being folded is a scaled copy in L1 or L2; the cache lines of
// the next one are asked for a few at a time between the loops over this one, since so many
// short streams are too much for the hardware's own prefetcher.
#include <memory>
#include <new>
#include <vector>

#include "../blocks.h"
#include "../fold.h"
#include "kernels.h"

namespace aadl::cpu {
namespace {

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

#define AADL_LOAD(T, S)                                               \
  AADL_TARGETS T load(const S* from, int64_t count, T scale, T* to) { \
    return load_column(from, count, scale, to);                       \
  }
AADL_LOAD(float, float)
AADL_LOAD(float, BFloat16)
AADL_LOAD(float, Half)
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
  void load(int64_t column, const S* from, int64_t count) {
    Scale& scale = scales_[column];
    for (;;) {
      const T power = std::ldexp(T(1), scale.exponent);
      const T most = cpu::load(from, count, power, &tile_[column * height_]);
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
    const auto stream = [&](const auto* row) {
      return Ahead::Stream{reinterpret_cast<const char*>(row + next),
                           reinterpret_cast<const char*>(row + next_end)};
    };
    for (int64_t c = 0; c < args.count; ++c) {
      triangle.load(c, args.rows + c * args.stride + begin, next - begin);
      ahead.streams[c] = stream(args.rows + c * args.stride);
    }
    if (args.append) {
      triangle.load(args.count, args.append + begin, next - begin);
      ahead.streams[args.count] = stream(args.append);
    }
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
      triangle.load(c, column.data(), count * columns);
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
void tsqr(const Tsqr<T, S>& args, const Parallel& parallel) {
  const int64_t columns = args.count + (args.append ? 1 : 0), size = columns * columns;
  const std::vector<Block> blocks = make_blocks(args.offsets, kFoldBlock);
  const int64_t total = static_cast<int64_t>(blocks.size());
  std::vector<double> triangles(total * size);
  run_blocks(blocks, parallel,
             [&](int64_t b) { fold_block(args, blocks[b], columns, triangles.data() + b * size); });

  T* factor = args.factor;
  int64_t begin = 0;
  for (int64_t s = 0; s + 1 < static_cast<int64_t>(args.offsets.size()); ++s, factor += size) {
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

template void tsqr(const Tsqr<float, float>&, const Parallel&);
template void tsqr(const Tsqr<float, BFloat16>&, const Parallel&);
template void tsqr(const Tsqr<float, Half>&, const Parallel&);
template void tsqr(const Tsqr<double, double>&, const Parallel&);
template void tsqr(const Tsqr<double, float>&, const Parallel&);

}  // namespace aadl::cpu
