// The quadratic through several slopes: see fit.h. One block a problem, as in subspace.cu, with two
// diagonalizations and a dozen products of [m, m].
#include "../common/fit.h"
#include "jacobi.cuh"
#include "kernels.h"

namespace aadl::cuda {
namespace {

__global__ void __launch_bounds__(kTeam, 1)
    fit_quadratic_kernel(Quadratic args, double* workspace) {
  AADL_DYNAMIC_SHARED(double, shared);
  AADL_SHARED(int, votes, kTeam / kWarp);
  const Desk at = desk(shared, votes, args.m, workspace, FitWork::size(args.m));
  fit_quadratic(at.team, args, blockIdx.x, at.work);
}

}  // namespace

void fit_quadratic(const Quadratic& args, const Launch& launch) {
  if (args.problems == 0) return;
  const int64_t size = FitWork::size(args.m);
  double* const global = global_workspace(launch, args.problems, args.m, size);
  AADL_LAUNCH(fit_quadratic_kernel, static_cast<unsigned>(args.problems), kTeam,
              shared_bytes(args.m, size), launch.stream, args, global);
  check_launch("fit_quadratic");
}

}  // namespace aadl::cuda
