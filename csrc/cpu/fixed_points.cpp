#include "blocks.h"

namespace aadl::cpu {

void judge_fixed_points(const FixedPoints& args, const Threads& threads) {
  const std::vector<Block> blocks = make_blocks(args.count);
  run_blocks(blocks, threads, [&](int64_t b) {
    for (int64_t i = blocks[b].begin; i < blocks[b].end; ++i) args.judge(i);
  });
}

}  // namespace aadl::cpu
