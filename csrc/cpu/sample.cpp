// Samples (point, gradient) of a block: added up, and turned into rows when the block is full.
//
// Both are one pass. A sample reads six vectors (seven with a direction) and writes three of them
// back; closing a block reads five and writes eight, of which three are rows, past the caches.
#include <type_traits>

#include "blocks.h"

namespace aadl::cpu {
namespace {

template <class T>
constexpr Type kTypeOf = std::is_same_v<T, double> ? Type::kDouble : Type::kFloat;

struct SampleFigures {
  double squared_norm;
  double slope;
};

// Some entries of a part: where they lie if they are of type T, or else widened into `room`.
template <class T>
AADL_INLINE const T* widened(const void* entries, Type type, int64_t begin, int64_t n, T* room) {
  const auto from = [&](const auto* narrow) {
    for (int64_t j = 0; j < n; ++j) room[j] = static_cast<T>(widen(narrow[begin + j]));
  };
  if (type == kTypeOf<T>) return static_cast<const T*>(entries) + begin;
  if (type == Type::kFloat) from(static_cast<const float*>(entries));
  if (type == Type::kBFloat16) from(static_cast<const BFloat16*>(entries));
  if (type == Type::kHalf) from(static_cast<const Half*>(entries));
  return room;
}

// Entries begin .. end of a part.
template <class T>
AADL_INLINE SampleFigures sample_block(const Sample<T>& args, const SamplePart& part,
                                       int64_t begin, int64_t end) {
  const T sign = static_cast<T>(args.sign), decay = static_cast<T>(part.decay);
  const int64_t at_once = part.type == kTypeOf<T> ? end - begin : kChunk;
  alignas(64) T point_room[kChunk], gradient_room[kChunk];
  double norm = 0, slope = 0;
  for (; begin < end; begin += at_once) {
    const int64_t n = std::min(at_once, end - begin), place = part.begin + begin;
    const T* const point = widened(part.point, part.type, begin, n, point_room);
    const T* const gradient = widened(part.gradient, part.type, begin, n, gradient_room);
    const T* const anchor = args.anchor + place;
    const T* const direction = args.direction ? args.direction + place : gradient;
    T* const points = args.point_sum + place;
    const auto add_to = [&](auto add) {
#pragma omp simd reduction(+ : norm, slope)
      for (int64_t j = 0; j < n; ++j) {
        const T p = point[j], g = gradient[j] + decay * p;
        points[j] += p - anchor[j];
        add(j, g);
        const double wide = g;
        norm += wide * wide;
        slope += wide * static_cast<double>(direction[j]);
      }
    };
    if (args.gradient_sum) {
      T* const gradients = args.gradient_sum + place;
      add_to([gradients](int64_t j, T g) { gradients[j] += g; });
    } else {
      add_to([](int64_t, T) {});
    }
    if (!args.noise_sum) continue;
    T* const noises = args.noise_sum + place;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) noises[j] += sign * (gradient[j] + decay * point[j]);
  }
  return {norm, args.direction ? slope : 0};
}

// A block that cannot be used.
template <class T, class S>
AADL_INLINE void drop_block(const BlockMeans<T, S>& args, const Block& block) {
  const int64_t count = block.end - block.begin;
  for (T* const sum : {args.point_sum, args.gradient_sum, args.noise_sum}) {
    if (sum) std::fill_n(sum + block.begin, count, T(0));
  }
  for (S* const row : {args.step_row, args.gradient_row, args.noise_row}) {
    if (row) std::fill_n(row + block.begin, count, S{});
  }
}

template <class T, class S>
AADL_INLINE void close_block(const BlockMeans<T, S>& args, const Block& block, bool stream) {
  if (args.accept && !*args.accept) return drop_block(args, block);
  const T count = static_cast<T>(args.count);
  const bool paired = !args.paired || *args.paired;
  alignas(64) S step_row[kChunk], gradient_row[kChunk], noise_row[kChunk];
  for (int64_t begin = block.begin; begin < block.end; begin += kChunk) {
    const int64_t n = std::min(kChunk, block.end - begin);
    T *const points = args.point_sum + begin, *const gradients = args.gradient_sum + begin;
    T *const last_point = args.last_point + begin, *const last_gradient =
                                                       args.last_gradient + begin;
#pragma omp simd
    for (int64_t j = 0; j < n; ++j) {
      const T step = points[j] / count, gradient = gradients[j] / count;
      step_row[j] = narrow<S>(step);
      gradient_row[j] = narrow<S>(gradient - last_gradient[j]);
      last_point[j] += step;
      last_gradient[j] = gradient;
      points[j] = gradients[j] = 0;
    }
    if (args.noise_sum) {
      T* const noises = args.noise_sum + begin;
#pragma omp simd
      for (int64_t j = 0; j < n; ++j) {
        noise_row[j] = narrow<S>(noises[j] / count);
        noises[j] = 0;
      }
      store(args.noise_row + begin, noise_row, n, stream);
    }
    if (!args.step_row) continue;
    if (!paired) {
      std::fill_n(step_row, n, S{});
      std::fill_n(gradient_row, n, S{});
    }
    store(args.step_row + begin, step_row, n, stream);
    store(args.gradient_row + begin, gradient_row, n, stream);
  }
  finish_stores(stream);
}

#define AADL_SAMPLE(T)                                                                 \
  AADL_TARGETS SampleFigures sample_one(const Sample<T>& args, const SamplePart& part, \
                                        int64_t begin, int64_t end) {                  \
    return sample_block(args, part, begin, end);                                       \
  }
AADL_SAMPLE(float)
AADL_SAMPLE(double)

#define AADL_CLOSE(T, S)                                                                       \
  AADL_TARGETS void close_one(const BlockMeans<T, S>& args, const Block& block, bool stream) { \
    close_block(args, block, stream);                                                          \
  }
AADL_CLOSE(float, float)
AADL_CLOSE(double, double)
AADL_CLOSE(double, float)
AADL_CLOSE(float, BFloat16)
AADL_CLOSE(float, Half)

}  // namespace

template <class T>
void add_sample(const Sample<T>& args, const std::vector<SamplePart>& parts, const Threads& threads) {
  const std::vector<int64_t> offsets = positions(parts);
  const std::vector<Block> blocks = make_blocks(offsets.data(), parts.size());
  std::vector<SampleFigures> figures(blocks.size());
  run_blocks(blocks, threads, [&](int64_t i) {
    const SamplePart& part = parts[blocks[i].segment];
    figures[i] = sample_one(args, part, blocks[i].begin - part.begin, blocks[i].end - part.begin);
  });
  double squared_norm = 0, slope = 0;
  for (const SampleFigures& one : figures) {
    squared_norm += one.squared_norm;
    slope += one.slope;
  }
  args.figures[0] = squared_norm, args.figures[1] = slope;
}

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, const Threads& threads) {
  const std::vector<Block> blocks = make_blocks(args.size);
  const bool stream = exceeds_cache(args.size * (5 * sizeof(T) + 3 * sizeof(S)));
  run_blocks(blocks, threads, [&](int64_t i) { close_one(args, blocks[i], stream); });
}

template void add_sample(const Sample<float>&, const std::vector<SamplePart>&, const Threads&);
template void add_sample(const Sample<double>&, const std::vector<SamplePart>&, const Threads&);
template void push_block(const BlockMeans<float, float>&, const Threads&);
template void push_block(const BlockMeans<double, double>&, const Threads&);
template void push_block(const BlockMeans<double, float>&, const Threads&);
template void push_block(const BlockMeans<float, BFloat16>&, const Threads&);
template void push_block(const BlockMeans<float, Half>&, const Threads&);

}  // namespace aadl::cpu
