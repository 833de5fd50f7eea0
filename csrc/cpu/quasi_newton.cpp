// The direction of L-BFGS on the CPU: see quasi_newton.h. One thread, in cache only.
#include "../common/quasi_newton.h"

#include "kernels.h"

namespace aadl::cpu {

void solve_quasi_newton(const QuasiNewton& args, const Threads&) {
  std::vector<double> work(direction_workspace(args.m));
  quasi_newton_direction(Alone(), args, work.data());
}

}  // namespace aadl::cpu
