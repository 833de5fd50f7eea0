#include "../push.h"

namespace aadl::cpu {
namespace {

// A register's width of sums, or half as many more would not fit into the registers.
#define AADL_PUSH_VERSION(target, Width, T, S)                                  \
  target void push_one(const Push<T, S>& args, const Block& block, bool stream, \
                       PushSums<T>& sums) {                                     \
    push_block<Width>(args, block, stream, sums);                               \
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

}  // namespace

template <class T, class S>
void push(Push<T, S>& args, const Parallel& parallel) {
  const std::vector<Block> blocks = make_blocks(args.offsets);
  const int64_t size = args.offsets.empty() ? 0 : args.offsets.back();
  const bool stream = exceeds_cache(size * ((args.rows + 2) * sizeof(S) + 5 * sizeof(T)));
  std::vector<double> products(blocks.size() * 2 * args.rows);
  std::vector<PushSums<T>> sums(blocks.size());
  run_blocks(blocks, parallel, [&](int64_t i) {
    double* own = products.data() + i * 2 * args.rows;
    PushSums<T> result = {own, own + args.rows, 0, 0, 0};
    push_one(args, blocks[i], stream, result);
    sums[i] = result;
  });

  const int64_t segments = static_cast<int64_t>(args.offsets.size()) - 1;
  const bool row = args.products && args.slot >= 0;
  for (int64_t s = 0; s < segments; ++s) {
    args.squared_norm[s] = 0;
    if (args.products) std::fill_n(args.right_side + s * args.rows, args.rows, 0.0);
    if (row) std::fill_n(args.gram_row + s * args.rows, args.rows, 0.0);
  }
  args.row_norm = 0;
  Magnitude<T> peak = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const int64_t first = blocks[i].segment * args.rows;
    args.squared_norm[blocks[i].segment] += sums[i].squared_norm;
    args.row_norm += sums[i].row_norm;
    for (int64_t k = 0; args.products && k < args.rows; ++k) {
      args.right_side[first + k] += sums[i].right_side[k];
      if (row) args.gram_row[first + k] += sums[i].gram_row[k];
    }
    peak = std::max(peak, sums[i].peak);
  }
  args.max_step = from_magnitude(peak);
}

template void push(Push<float, float>&, const Parallel&);
template void push(Push<double, double>&, const Parallel&);
template void push(Push<double, float>&, const Parallel&);
template void push(Push<float, BFloat16>&, const Parallel&);
template void push(Push<float, Half>&, const Parallel&);

}  // namespace aadl::cpu
