// Mean and largest variance over a window of iterates, a block at a time.
//
// Deviations are taken from the newest iterate: they are small, so nothing cancels in their
// squares, and no running sums are needed. In chunks, whose two sums stay in L1, four rows at a
// time. Reads t vectors, writes 1, past the caches where it is large; only the largest variance
// leaves the kernel besides.
#include <cmath>

#include "blocks.h"

namespace aadl::cpu {
namespace {

// A chunk of sums over the rows of the window.
template <class T>
struct Deviations {
  alignas(64) T sum[kChunk];
  alignas(64) T squares[kChunk];
};

// Adds K rows, over one slice or less.
template <int K, class T>
AADL_INLINE void add_deviations(const T* const* rows, const T* newest, T* sum, T* squares,
                                int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    T d = 0;
    T s = 0;
    for (int k = 0; k < K; ++k) {
      const T x = rows[k][j] - newest[j];
      d += x;
      s += x * x;
    }
    sum[j] += d;
    squares[j] += s;
  }
}

template <int K, class T>
AADL_INLINE void add_iterates(const T* const* rows, const T* newest, Deviations<T>& to, int64_t n) {
  const T* slice[K];
  for (int64_t j = 0; j < n; j += kSlice) {
    for (int k = 0; k < K; ++k) {
      slice[k] = rows[k] + j;
      fetch_ahead<kChunk>(slice[k]);
    }
    if (j + kSlice <= n) {
      add_deviations<K>(slice, newest + j, to.sum + j, to.squares + j, kSlice);
    } else {
      add_deviations<K>(slice, newest + j, to.sum + j, to.squares + j, n - j);
    }
  }
}

// Writes the mean of a block and returns the largest variance.
template <class T>
AADL_INLINE Magnitude<T> window_block(const Window<T>& args, const Block& block, bool stream) {
  Deviations<T> deviations;
  T* sum = deviations.sum;
  T* squares = deviations.squares;
  const int64_t older = args.count - 1;
  const T count = static_cast<T>(older + 1);
  Magnitude<T> peak = 0;
  for (int64_t begin = block.begin; begin < block.end; begin += kChunk) {
    const int64_t n = std::min(kChunk, block.end - begin);
    const T* newest = args.iterates[older] + begin;
    const T* rows[4];
    int64_t size = 0;
    // Its own deviation: zero, unless the entry is infinite or NaN.
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      sum[j] = newest[j] - newest[j];
      squares[j] = sum[j];
    }
    for (int64_t k = 0; k < older; ++k) {
      rows[size++] = args.iterates[k] + begin;
      if (size < 4) continue;
      add_iterates<4>(rows, newest, deviations, n);
      size = 0;
    }
    if (size == 3) add_iterates<3>(rows, newest, deviations, n);
    if (size == 2) add_iterates<2>(rows, newest, deviations, n);
    if (size == 1) add_iterates<1>(rows, newest, deviations, n);
#pragma omp simd reduction(max : peak)
    for (int64_t j = 0; j < n; ++j) {
      const T mean = sum[j] / count;
      // Not negative but by rounding, and then next to nothing: the magnitude does.
      peak = std::max(peak, magnitude((squares[j] - sum[j] * mean) / count));
      sum[j] = newest[j] + mean;
    }
    store(args.mean + begin, sum, n, stream);
  }
  finish_stores(stream);
  return peak;
}

AADL_TARGETS int32_t window_one(const Window<float>& args, const Block& block, bool stream) {
  return window_block(args, block, stream);
}

AADL_TARGETS int64_t window_one(const Window<double>& args, const Block& block, bool stream) {
  return window_block(args, block, stream);
}

}  // namespace

template <class T>
void window_statistics(const Window<T>& args, const Threads& threads) {
  const std::vector<Block> blocks = make_blocks(args.size);
  const bool stream = exceeds_cache(args.size * (args.count + 1) * sizeof(T));
  std::vector<Magnitude<T>> peaks(blocks.size());
  run_blocks(blocks, threads, [&](int64_t i) { peaks[i] = window_one(args, blocks[i], stream); });
  Magnitude<T> peak = 0;
  for (const Magnitude<T> own : peaks) peak = std::max(peak, own);
  *args.deviation = std::sqrt(from_magnitude(peak));
}

template void window_statistics(const Window<float>&, const Threads&);
template void window_statistics(const Window<double>&, const Threads&);

}  // namespace aadl::cpu
