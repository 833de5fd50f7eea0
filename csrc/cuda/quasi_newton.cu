// The direction of L-BFGS: see quasi_newton.h. One block, with two barriers for each of 2 m columns.
#include "../common/quasi_newton.h"
#include "jacobi.cuh"
#include "kernels.h"

namespace aadl::cuda {
namespace {

__global__ void __launch_bounds__(kTeam, 1)
    solve_quasi_newton_kernel(QuasiNewton args, double* workspace) {
  AADL_DYNAMIC_SHARED(double, shared);
  AADL_SHARED(int, votes, kTeam / kWarp);
  const Desk at = desk(shared, votes, args.m, workspace, direction_workspace(args.m));
  quasi_newton_direction(at.team, args, at.work);
}

}  // namespace

void solve_quasi_newton(const QuasiNewton& args, const Launch& launch) {
  const int64_t size = direction_workspace(args.m);
  double* const global = global_workspace(launch, 1, args.m, size);
  AADL_LAUNCH(solve_quasi_newton_kernel, 1, kTeam, shared_bytes(args.m, size), launch.stream, args,
              global);
  check_launch("solve_quasi_newton");
}

}  // namespace aadl::cuda
