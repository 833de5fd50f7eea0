// The verdicts of a step, by one thread: a launch each, and nothing for the host to read.
#include "device.h"
#include "kernels.h"

namespace aadl::cuda {
namespace {

template <class Verdict>
__global__ void __launch_bounds__(kWarp) judge_once(Verdict verdict) {
  if (threadIdx.x == 0) verdict();
}

}  // namespace

template <class Verdict>
void judge(const Verdict& verdict, const Launch& launch) {
  AADL_LAUNCH(judge_once<Verdict>, 1, kWarp, 0, launch.stream, verdict);
  check_launch("a verdict");
}

template void judge(const JudgeGradient&, const Launch&);
template void judge(const JudgeResidual&, const Launch&);
template void judge(const Arm&, const Launch&);
template void judge(const Average&, const Launch&);
template void judge(const JudgeSlope&, const Launch&);
template void judge(const Learn&, const Launch&);
template void judge(const Compare&, const Launch&);
template void judge(const JudgeLine&, const Launch&);
template void judge(const TakeLine&, const Launch&);

}  // namespace aadl::cuda
