// A thread for each sample; a launch, and nothing for the host to read.
#include "chunk.h"
#include "kernels.h"

namespace aadl::cuda {
namespace {

__global__ void __launch_bounds__(kThreads) judge_samples(FixedPoints args) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i < args.count) args.judge(i);
}

}  // namespace

void judge_fixed_points(const FixedPoints& args, const Launch& launch) {
  const int64_t blocks = (args.count + kThreads - 1) / kThreads;
  if (blocks == 0) return;
  if (blocks > INT32_MAX) throw std::invalid_argument("too many samples for one launch");
  AADL_LAUNCH(judge_samples, static_cast<unsigned>(blocks), kThreads, 0, launch.stream, args);
  check_launch("judge_fixed_points");
}

}  // namespace aadl::cuda
