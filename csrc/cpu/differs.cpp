// Whether two vectors are the same, or nearly: reads both, and stops a block where they are not.
#include <atomic>

#include "../common/range.h"
#include "blocks.h"

namespace aadl::cpu {
namespace {

template <class T>
AADL_INLINE bool block_differs(const Difference<T>& args, const Block& block) {
  bool differs = false;
  const T within = args.scale ? static_cast<T>(args.tolerance) * *args.scale : 0;
  for (int64_t begin = block.begin; begin < block.end && !differs; begin += kChunk) {
    const int64_t end = std::min(begin + kChunk, block.end);
    typename Range<T>::Bits found = 0;  // NaN differs from all
#pragma omp simd reduction(| : found)
    for (int64_t j = begin; j < end; ++j) {
      found |= differ(args.one[j], args.other[j], within);
    }
    differs = found != 0;
  }
  return differs;
}

AADL_TARGETS bool one_differs(const Difference<float>& args, const Block& block) {
  return block_differs(args, block);
}

AADL_TARGETS bool one_differs(const Difference<double>& args, const Block& block) {
  return block_differs(args, block);
}

}  // namespace

template <class T>
void differs(const Difference<T>& args, const Threads& threads) {
  const std::vector<Block> blocks = make_blocks(args.size);
  std::atomic<bool> found{false};
  run_blocks(blocks, threads, [&](int64_t i) {
    if (!found.load(std::memory_order_relaxed) && one_differs(args, blocks[i])) {
      found.store(true, std::memory_order_relaxed);
    }
  });
  *args.difference = found;
}

template void differs(const Difference<float>&, const Threads&);
template void differs(const Difference<double>&, const Threads&);

}  // namespace aadl::cpu
