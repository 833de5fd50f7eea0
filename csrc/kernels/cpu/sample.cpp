#include "../sample.h"

namespace aadl::cpu {
namespace {

#define AADL_SAMPLE(T)                                                               \
  AADL_TARGETS SampleFigures sample_one(const Sample<T>& args, const Block& block) { \
    return sample_block(args, block);                                                \
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
void add_sample(Sample<T>& args, const Parallel& parallel) {
  const std::vector<Block> blocks = make_blocks({0, args.size});
  std::vector<SampleFigures> figures(blocks.size());
  run_blocks(blocks, parallel, [&](int64_t i) { figures[i] = sample_one(args, blocks[i]); });
  args.squared_norm = args.slope = 0;
  for (const SampleFigures& one : figures) {
    args.squared_norm += one.squared_norm;
    args.slope += one.slope;
  }
}

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, const Parallel& parallel) {
  const std::vector<Block> blocks = make_blocks({0, args.size});
  const bool stream = exceeds_cache(args.size * (5 * sizeof(T) + 3 * sizeof(S)));
  run_blocks(blocks, parallel, [&](int64_t i) { close_one(args, blocks[i], stream); });
}

template void add_sample(Sample<float>&, const Parallel&);
template void add_sample(Sample<double>&, const Parallel&);
template void push_block(const BlockMeans<float, float>&, const Parallel&);
template void push_block(const BlockMeans<double, double>&, const Parallel&);
template void push_block(const BlockMeans<double, float>&, const Parallel&);
template void push_block(const BlockMeans<float, BFloat16>&, const Parallel&);
template void push_block(const BlockMeans<float, Half>&, const Parallel&);

}  // namespace aadl::cpu
