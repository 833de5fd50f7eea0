#include "../extrapolate.h"

namespace aadl::cpu {
namespace {

#define AADL_EXTRAPOLATE(T, S)                                                             \
  AADL_TARGETS Magnitude<T> extrapolate_one(const Extrapolate<T, S>& args, const Block& b, \
                                            bool stream) {                                 \
    return extrapolate_block(args, b, stream);                                             \
  }
AADL_EXTRAPOLATE(float, float)
AADL_EXTRAPOLATE(double, double)
AADL_EXTRAPOLATE(double, float)
AADL_EXTRAPOLATE(float, BFloat16)
AADL_EXTRAPOLATE(float, Half)

}  // namespace

template <class T, class S>
T extrapolate(const Extrapolate<T, S>& args, const Parallel& parallel) {
  const std::vector<Block> blocks = make_blocks(args.offsets);
  const int64_t size = args.offsets.empty() ? 0 : args.offsets.back();
  const bool read = args.out == args.after || (args.out == args.before && args.beta != 1);
  const bool stream = !read && exceeds_cache(size * (args.count * sizeof(S) + 3 * sizeof(T)));
  std::vector<Magnitude<T>> peaks(blocks.size());
  run_blocks(blocks, parallel,
             [&](int64_t i) { peaks[i] = extrapolate_one(args, blocks[i], stream); });
  Magnitude<T> peak = 0;
  for (const Magnitude<T> one : peaks) peak = std::max(peak, one);
  return from_magnitude(peak);
}

template float extrapolate(const Extrapolate<float, float>&, const Parallel&);
template double extrapolate(const Extrapolate<double, double>&, const Parallel&);
template double extrapolate(const Extrapolate<double, float>&, const Parallel&);
template float extrapolate(const Extrapolate<float, BFloat16>&, const Parallel&);
template float extrapolate(const Extrapolate<float, Half>&, const Parallel&);

}  // namespace aadl::cpu
