// One pass over a block for a new secant pair: forms it, stores it, multiplies it with all rows.
//
// The pair is formed and used in chunks that stay in L1, so each vector is read from memory once:
// before, after, last_point, last_residual and the m history rows; written are the residual and
// the two new rows, past the caches when they are large. The new row and the residual are held as
// float64, and up to four rows at a time are multiplied with both: this takes about as long as
// reading the rows, so memory has to be kept busy meanwhile. Sums start anew with every chunk: a
// product of two float32 is exact in float64, and short sums lose little.
#include <cmath>
#include <limits>

#include "blocks.h"

namespace aadl::cpu {
namespace {

constexpr int64_t kAhead = 2 * kChunk;  // entries from what is read to what is asked for
constexpr int64_t kGroup = 4;           // rows at a time
constexpr int64_t kFew = 16;            // rows whose sums need no allocation
constexpr int64_t kFlush = 4 * kChunk;  // entries after which the lanes of sums are emptied

// The sums over one block.
template <class T>
struct PushSums {
  double* right_side;  // [rows]
  double* gram_row;    // [rows]
  double squared_norm;
  double row_norm;    // of both new rows
  double points;      // |after|^2 + |last_point|^2
  Magnitude<T> peak;  // of after - before
  Magnitude<double> way;  // of the step row
};

// A chunk of the new pair, widened: the residual and the new row as it is stored.
struct Pair {
  alignas(64) double residual[kChunk];
  alignas(64) double row[kChunk];
};

// Forms entries begin .. begin + n - 1 of the pair, n <= kChunk, and stores them; adds the
// products within the pair.
template <class T, class S>
AADL_INLINE void form_pair(const Push<T, S>& args, double exact_rate, int64_t begin, int64_t n,
                           bool stream, Pair& pair, PushSums<T>& sums) {
  const T rate = static_cast<T>(exact_rate);
  // At rate 0 every finite step counts as none, but NaN and infinity shall be seen.
  const T divisor = exact_rate == 0 ? std::numeric_limits<T>::infinity() : rate;
  alignas(64) T residual[kChunk];
  const T* before = args.before + begin;
  const T* after = args.after + begin;
  Magnitude<T> peak = 0;
  double norm = 0, points = 0;
#pragma omp simd reduction(max : peak) reduction(+ : norm, points)
  for (int64_t j = 0; j < n; ++j) {
    const T step = after[j] - before[j];
    const T rho = step / divisor;
    peak = std::max(peak, magnitude(step));
    residual[j] = rho;
    pair.residual[j] = rho;
    norm += pair.residual[j] * pair.residual[j];
    points += static_cast<double>(after[j]) * after[j];
  }
  store(args.residual + begin, residual, n, stream);
  sums.peak = std::max(sums.peak, peak);
  sums.squared_norm += norm;
  sums.points += points;
  if (args.slot < 0) return;

  alignas(64) S step_row[kChunk];
  alignas(64) S residual_row[kChunk];
  const T* last_point = args.last_point + begin;
  const T* last_residual = args.last_residual + begin;
  double with_residual = 0;
  double with_row = 0;
  double with_step = 0;
  double last_points = 0;
  Magnitude<double> way = 0;
#pragma omp simd reduction(max : way) reduction(+ : with_residual, with_row, with_step, last_points)
  for (int64_t j = 0; j < n; ++j) {
    const T difference = residual[j] - last_residual[j];
    residual_row[j] = narrow<S>(difference);
    step_row[j] = narrow<S>((before[j] - last_point[j]) + rate * difference);
    const double stored = widen(residual_row[j]);
    pair.row[j] = stored;
    with_residual += stored * pair.residual[j];
    with_row += stored * stored;
    const double step = widen(step_row[j]);
    with_step += step * step;
    way = std::max(way, magnitude(step));
    last_points += static_cast<double>(last_point[j]) * last_point[j];
  }
  const int64_t to = args.slot * args.stride + begin;
  store(args.residual_rows + to, residual_row, n, stream);
  store(args.step_rows + to, step_row, n, stream);
  sums.row_norm += with_row + with_step;
  sums.way = std::max(sums.way, way);
  sums.points += last_points;
  if (!args.systems) return;
  sums.right_side[args.slot] += with_residual;
  sums.gram_row[args.slot] += with_row;
}

// The products of one row, as lanes of sums.
template <int Width>
struct RowSums {
  double residual[Width];  // with the residual
  double row[Width];       // with the new row
};

AADL_INLINE const double* widen_slice(const double* row, double*) { return row; }

template <class S>
AADL_INLINE const double* widen_slice(const S* row, double* buffer) {
#pragma omp simd
  for (int64_t j = 0; j < kSlice; ++j) buffer[j] = widen(row[j]);
  return buffer;
}

// Adds the products of K rows with the residual and, if Two, with the new row.
template <int K, bool Two, int Width, class S>
AADL_INLINE void multiply_rows(const S* const* rows, const Pair& pair, int64_t n,
                               RowSums<Width>* const* sums) {
  using Vector = typename Lanes<Width>::type;
  Vector residual_sums[K], row_sums[K];
  for (int k = 0; k < K; ++k) {
    std::memcpy(&residual_sums[k], sums[k]->residual, sizeof(Vector));
    std::memcpy(&row_sums[k], sums[k]->row, sizeof(Vector));
  }
  alignas(64) double buffer[K][kSlice];
  const int64_t whole = n - n % kSlice;
  for (int64_t j = 0; j < whole; j += kSlice) {
    const double* x[K];
    for (int k = 0; k < K; ++k) {
      fetch_ahead<kAhead>(rows[k] + j);
      x[k] = widen_slice(rows[k] + j, buffer[k]);
    }
    for (int64_t i = 0; i < kSlice; i += Width) {
      Vector residual, row, lanes;
      std::memcpy(&residual, pair.residual + j + i, sizeof(Vector));
      std::memcpy(&row, pair.row + j + i, sizeof(Vector));
      for (int k = 0; k < K; ++k) {
        std::memcpy(&lanes, x[k] + i, sizeof(Vector));
        residual_sums[k] += lanes * residual;
        if (Two) row_sums[k] += lanes * row;
      }
    }
  }
  for (int k = 0; k < K; ++k) {
    std::memcpy(sums[k]->residual, &residual_sums[k], sizeof(Vector));
    std::memcpy(sums[k]->row, &row_sums[k], sizeof(Vector));
    for (int64_t j = whole; j < n; ++j) {
      const double x = widen(rows[k][j]);
      sums[k]->residual[j % Width] += x * pair.residual[j];
      if (Two) sums[k]->row[j % Width] += x * pair.row[j];
    }
  }
}

template <bool Two, int Width, class T, class S>
AADL_INLINE void multiply_all(const Push<T, S>& args, int64_t begin, int64_t n, const Pair& pair,
                              RowSums<Width>* sums) {
  const S* rows[kGroup];
  RowSums<Width>* group[kGroup];
  int64_t size = 0;
  for (int64_t k = 0; k < args.rows; ++k) {
    if (k == args.slot) continue;
    rows[size] = args.residual_rows + k * args.stride + begin;
    group[size++] = sums + k;
    if (size < kGroup) continue;
    multiply_rows<kGroup, Two>(rows, pair, n, group);
    size = 0;
  }
  if (size == 3) multiply_rows<3, Two>(rows, pair, n, group);
  if (size == 2) multiply_rows<2, Two>(rows, pair, n, group);
  if (size == 1) multiply_rows<1, Two>(rows, pair, n, group);
}

template <int Width, class T, class S>
AADL_INLINE void push_part(const Push<T, S>& args, const Block& block, bool stream,
                           PushSums<T>& sums) {
  Pair pair;
  const int64_t count = args.systems ? args.rows : 0;
  RowSums<Width> few[kFew];
  std::vector<RowSums<Width>> many(count > kFew ? count : 0);
  RowSums<Width>* rows = count > kFew ? many.data() : few;
  std::fill_n(rows, count, RowSums<Width>{});
  for (int64_t begin = block.begin; begin < block.end; begin += kChunk) {
    const int64_t n = std::min(kChunk, block.end - begin);
    for (int64_t j = 0; j < n; j += kSlice) {
      fetch_ahead<kAhead>(args.before + begin + j);
      fetch_ahead<kAhead>(args.after + begin + j);
      if (args.slot < 0) continue;
      fetch_ahead<kAhead>(args.last_point + begin + j);
      fetch_ahead<kAhead>(args.last_residual + begin + j);
    }
    form_pair(args, args.rates[block.segment], begin, n, stream, pair, sums);
    if (!args.systems) continue;
    if (args.slot >= 0) {
      multiply_all<true>(args, begin, n, pair, rows);
    } else {
      multiply_all<false>(args, begin, n, pair, rows);
    }
    if ((begin - block.begin) % kFlush + kChunk < kFlush && begin + n < block.end) continue;
    for (int64_t k = 0; k < args.rows; ++k) {
      double right = sums.right_side[k], gram = sums.gram_row[k];
      for (int i = 0; i < Width; ++i) right += rows[k].residual[i], gram += rows[k].row[i];
      sums.right_side[k] = right, sums.gram_row[k] = gram;
      rows[k] = {};
    }
  }
  finish_stores(stream);
}

// A register's width of sums, or half as many more would not fit into the registers.
#define AADL_PUSH_VERSION(target, Width, T, S)                                  \
  target void push_one(const Push<T, S>& args, const Block& block, bool stream, \
                       PushSums<T>& sums) {                                     \
    push_part<Width>(args, block, stream, sums);                                \
  }
#ifdef AADL_V4
#define AADL_PUSH(T, S)               \
  AADL_PUSH_VERSION(AADL_V4, 8, T, S) \
  AADL_PUSH_VERSION(AADL_V3, 4, T, S) \
  AADL_PUSH_VERSION(AADL_BASE, 2, T, S)
#else
#ifdef __AVX512F__
#define AADL_PUSH(T, S) AADL_PUSH_VERSION(, 8, T, S)
#else
#define AADL_PUSH(T, S) AADL_PUSH_VERSION(, 4, T, S)
#endif
#endif
AADL_PUSH(float, float)
AADL_PUSH(double, double)
AADL_PUSH(double, float)
AADL_PUSH(float, BFloat16)
AADL_PUSH(float, Half)

// The sums of a segment, over its blocks in their order.
struct SegmentSums {
  std::vector<double> right_side, gram_row;  // [rows]
  double squared_norm, points;
};

// Enters what is new into the Gram matrix of the rows and, last, the residual.
template <class T, class S>
void write_system(const Push<T, S>& args, int64_t segment, const SegmentSums& sums) {
  const int64_t k = args.systems_size, last = k - 1;
  double* const system = args.systems + segment * k * k;
  const auto write = [&](int64_t i, int64_t j, double value) {
    system[i * k + j] = system[j * k + i] = value;
  };
  for (int64_t i = 0; i < args.rows; ++i) {
    write(i, last, sums.right_side[i]);
    if (args.slot >= 0) write(i, args.slot, sums.gram_row[i]);
  }
  write(last, last, sums.squared_norm);
}

template <class T, class S>
void write_noise(const Push<T, S>& args, int64_t segment, const SegmentSums& sums, bool usable) {
  const double noise = row_noise<T, S>(args.rounding[segment], sums.points, sums.squared_norm,
                                       args.offsets[segment + 1] - args.offsets[segment]);
  args.noise[segment * args.noise_size + args.slot] = usable ? noise : 0;
}

// Zero: the new row cannot be used, and takes the place of the oldest.
template <class T, class S>
void drop_row(const Push<T, S>& args) {
  const int64_t size = args.offsets[args.segments], k = args.systems_size, slot = args.slot;
  std::fill_n(args.step_rows + slot * args.stride, size, S{});
  std::fill_n(args.residual_rows + slot * args.stride, size, S{});
  double* system = args.systems;
  for (int64_t s = 0; system && s < args.segments; ++s, system += k * k) {
    for (int64_t i = 0; i < k; ++i) system[i * k + slot] = system[slot * k + i] = 0;
  }
}

}  // namespace

template <class T, class S>
void push(const Push<T, S>& args, const Threads& threads) {
  const std::vector<Block> blocks = make_blocks(args.offsets, args.segments);
  const int64_t size = args.offsets[args.segments], rows = args.rows;
  const bool stream = exceeds_cache(size * ((rows + 2) * sizeof(S) + 5 * sizeof(T)));
  std::vector<double> products(blocks.size() * 2 * rows);
  std::vector<PushSums<T>> sums(blocks.size());
  run_blocks(blocks, threads, [&](int64_t i) {
    double* own = products.data() + i * 2 * rows;
    PushSums<T> result = {own, own + rows, 0, 0, 0, 0, 0};
    push_one(args, blocks[i], stream, result);
    sums[i] = result;
  });

  double norm = 0, row_norm = 0;
  Magnitude<T> peak = 0;
  Magnitude<double> way = 0;
  for (const PushSums<T>& own : sums) {
    norm += own.squared_norm;
    row_norm += own.row_norm;
    peak = std::max(peak, own.peak);
    way = std::max(way, own.way);
  }
  const bool sound = std::isfinite(norm);
  const bool usable = sound && std::isfinite(row_norm) && (!args.paired || *args.paired);
  const int64_t multiplied = args.systems ? rows : 0;
  SegmentSums all = {std::vector<double>(multiplied), std::vector<double>(multiplied), 0, 0};
  size_t i = 0;
  for (int64_t segment = 0; segment < args.segments; ++segment) {
    std::fill(all.right_side.begin(), all.right_side.end(), 0.0);
    std::fill(all.gram_row.begin(), all.gram_row.end(), 0.0);
    all.squared_norm = all.points = 0;
    for (; i < blocks.size() && blocks[i].segment == segment; ++i) {
      all.squared_norm += sums[i].squared_norm;
      all.points += sums[i].points;
      for (int64_t k = 0; k < multiplied; ++k) {
        all.right_side[k] += sums[i].right_side[k];
        all.gram_row[k] += sums[i].gram_row[k];
      }
    }
    if (args.systems && sound) write_system(args, segment, all);
    if (args.noise && args.slot >= 0) write_noise(args, segment, all, usable);
  }
  if (args.slot >= 0 && !usable) drop_row(args);
  args.figures[0] = from_magnitude(peak), args.figures[1] = norm, args.figures[2] = row_norm;
  args.figures[3] = usable ? from_magnitude(way) : 0;
}

template void push(const Push<float, float>&, const Threads&);
template void push(const Push<double, double>&, const Threads&);
template void push(const Push<double, float>&, const Threads&);
template void push(const Push<float, BFloat16>&, const Threads&);
template void push(const Push<float, Half>&, const Threads&);

}  // namespace aadl::cpu
