#include "../window.h"

#include <cmath>

namespace aadl::cpu {
namespace {

AADL_TARGETS int32_t window_one(const Window<float>& args, const Block& block, bool stream) {
  return window_block(args, block, stream);
}

AADL_TARGETS int64_t window_one(const Window<double>& args, const Block& block, bool stream) {
  return window_block(args, block, stream);
}

}  // namespace

template <class T>
T window_statistics(const Window<T>& args, const Parallel& parallel) {
  const std::vector<Block> blocks = make_blocks({0, args.size});
  const bool stream = exceeds_cache(args.size * (args.iterates.size() + 1) * sizeof(T));
  std::vector<Magnitude<T>> peaks(blocks.size());
  run_blocks(blocks, parallel, [&](int64_t i) { peaks[i] = window_one(args, blocks[i], stream); });
  Magnitude<T> peak = 0;
  for (const Magnitude<T> own : peaks) peak = std::max(peak, own);
  return std::sqrt(from_magnitude(peak));
}

template float window_statistics(const Window<float>&, const Parallel&);
template double window_statistics(const Window<double>&, const Parallel&);

}  // namespace aadl::cpu
