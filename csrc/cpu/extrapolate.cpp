// out = before + beta (after - before) - coefficients . rows over a block.
//
// In chunks: the combination of the rows is gathered in L1, four rows at a time, and joined with
// the point at the end. So each vector is read once, and the combination, small against the point,
// is rounded at the size of the point only once. Reads 2 + m vectors (1 + m at beta = 1), writes 1,
// past the caches where it is large and was not read. The largest entries come for free.
#include "blocks.h"

namespace aadl::cpu {
namespace {

// sum += weights . rows for K rows, over one slice or less.
template <int K, class T, class S>
AADL_INLINE void add_slice(const S* const* rows, const T* weights, T* sum, int64_t n) {
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    T x = 0;
    for (int k = 0; k < K; ++k) x += weights[k] * widen(rows[k][j]);
    sum[j] += x;
  }
}

template <int K, class T, class S>
AADL_INLINE void add_rows(const S* const* rows, const T* weights, T* sum, int64_t n) {
  const S* slice[K];
  T weight[K];
  for (int k = 0; k < K; ++k) weight[k] = weights[k];
  for (int64_t j = 0; j < n; j += kSlice) {
    for (int k = 0; k < K; ++k) {
      slice[k] = rows[k] + j;
      fetch_ahead<kChunk>(slice[k]);
    }
    if (j + kSlice <= n) {
      add_slice<K>(slice, weight, sum + j, kSlice);
    } else {
      add_slice<K>(slice, weight, sum + j, n - j);
    }
  }
}

// Largest entries of the point, and of the way to it.
template <class T>
struct Sizes {
  Magnitude<T> point = 0, way = 0;
};

template <class T, class S>
AADL_INLINE Sizes<T> extrapolate_block(const Extrapolate<T, S>& args, const Block& block,
                                           bool stream) {
  alignas(64) T sum[kChunk];
  const double* coefficients =
      args.coefficients + (args.sets == 1 ? 0 : block.segment) * args.count;
  const T beta = static_cast<T>(args.beta);
  Magnitude<T> point = 0, way = 0;
  for (int64_t begin = block.begin; begin < block.end; begin += kChunk) {
    const int64_t n = std::min(kChunk, block.end - begin);
    const S* rows[4];
    T weights[4];
    int64_t size = 0;
    std::fill_n(sum, n, T(0));
    for (int64_t k = 0; k < args.count; ++k) {
      const T weight = static_cast<T>(coefficients[k]);
      if (weight == 0) continue;
      weights[size] = weight;
      rows[size++] = args.rows + k * args.stride + begin;
      if (size < 4) continue;
      add_rows<4>(rows, weights, sum, n);
      size = 0;
    }
    if (size == 3) add_rows<3>(rows, weights, sum, n);
    if (size == 2) add_rows<2>(rows, weights, sum, n);
    if (size == 1) add_rows<1>(rows, weights, sum, n);

    const T* after = args.after + begin;
    for (int64_t j = 0; j < n; j += kSlice) {
      fetch_ahead<kChunk>(after + j);
      if (beta != 1) fetch_ahead<kChunk>(args.before + begin + j);
    }
    if (beta == 1) {
#pragma omp simd reduction(max : point, way)
      for (int64_t j = 0; j < n; ++j) {
        sum[j] = after[j] - sum[j];
        point = std::max(point, magnitude(sum[j]));
        way = std::max(way, magnitude(sum[j] - after[j]));
      }
    } else {
      const T* before = args.before + begin;
#pragma omp simd reduction(max : point, way)
      for (int64_t j = 0; j < n; ++j) {
        sum[j] = (before[j] + beta * (after[j] - before[j])) - sum[j];
        point = std::max(point, magnitude(sum[j]));
        way = std::max(way, magnitude(sum[j] - after[j]));
      }
    }
    store(args.out + begin, sum, n, stream);
  }
  finish_stores(stream);
  return {point, way};
}

#define AADL_EXTRAPOLATE(T, S)                                                         \
  AADL_TARGETS Sizes<T> extrapolate_one(const Extrapolate<T, S>& args, const Block& b, \
                                        bool stream) {                                 \
    return extrapolate_block(args, b, stream);                                         \
  }
AADL_EXTRAPOLATE(float, float)
AADL_EXTRAPOLATE(double, double)
AADL_EXTRAPOLATE(double, float)
AADL_EXTRAPOLATE(float, BFloat16)
AADL_EXTRAPOLATE(float, Half)

}  // namespace

template <class T, class S>
void extrapolate(const Extrapolate<T, S>& given, const Threads& threads) {
  Extrapolate<T, S> args = given;
  if (args.accept && !*args.accept) args.beta = 1, args.count = 0;
  const std::vector<Block> blocks = make_blocks(args.offsets, args.segments);
  const int64_t size = args.offsets[args.segments];
  const bool read = args.out == args.after || (args.out == args.before && args.beta != 1);
  const bool stream = !read && exceeds_cache(size * (args.count * sizeof(S) + 3 * sizeof(T)));
  std::vector<Sizes<T>> sizes(blocks.size());
  run_blocks(blocks, threads,
             [&](int64_t i) { sizes[i] = extrapolate_one(args, blocks[i], stream); });
  Sizes<T> all;
  for (const Sizes<T>& one : sizes) {
    all = {std::max(all.point, one.point), std::max(all.way, one.way)};
  }
  args.sizes[0] = from_magnitude(all.point), args.sizes[1] = from_magnitude(all.way);
}

template void extrapolate(const Extrapolate<float, float>&, const Threads&);
template void extrapolate(const Extrapolate<double, double>&, const Threads&);
template void extrapolate(const Extrapolate<double, float>&, const Threads&);
template void extrapolate(const Extrapolate<float, BFloat16>&, const Threads&);
template void extrapolate(const Extrapolate<float, Half>&, const Threads&);

}  // namespace aadl::cpu
