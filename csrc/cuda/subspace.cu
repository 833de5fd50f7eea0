// The Newton step in a subspace: see subspace.h. One block a problem, as in solve.cu; reads
// 8 (2 m^2 + m samples) bytes, twice the work of a least-squares problem.
#include "../common/subspace.h"
#include "jacobi.cuh"
#include "kernels.h"

namespace aadl::cuda {
namespace {

// metric, curvature [problems, m, m], right_side [problems, m], noise [problems, m, samples],
// radius [problems]; out: coefficients, eigenvalues [problems, m], slope, length, reduction,
// rank [problems].
__global__ void __launch_bounds__(kTeam, 1)
    solve_subspace_kernel(const double* metric, const double* curvature, const double* right_side,
                          const double* noise, const double* radius, int64_t m, int64_t samples,
                          NewtonSettings with, double* workspace, double* coefficients,
                          double* eigenvalues, double* slope, double* length, double* reduction,
                          int64_t* rank) {
  AADL_DYNAMIC_SHARED(double, shared);
  AADL_SHARED(int, votes, kTeam / kWarp);
  const Desk at = desk(shared, votes, m, workspace, newton_workspace(m));
  const int64_t problem = blockIdx.x;
  with.radius = radius[problem];
  const NewtonStep step =
      newton_step(at.team, metric + problem * m * m, curvature + problem * m * m,
                  right_side + problem * m, noise + problem * m * samples, m, samples, with,
                  at.work, coefficients + problem * m, eigenvalues + problem * m);
  if (threadIdx.x != 0) return;
  slope[problem] = step.slope;
  length[problem] = step.length;
  reduction[problem] = step.reduction;
  rank[problem] = step.rank;
}

}  // namespace

void solve_subspace(const Subspace& args, const Launch& launch) {
  if (args.problems == 0) return;
  const int64_t size = newton_workspace(args.m);
  double* const global = global_workspace(launch, args.problems, args.m, size);
  const NewtonSettings with = {0, args.ridge, args.floor, args.shrinkage};
  AADL_LAUNCH(solve_subspace_kernel, static_cast<unsigned>(args.problems), kTeam,
              shared_bytes(args.m, size), launch.stream, args.metric, args.curvature,
              args.right_side, args.noise, args.radius, args.m, args.samples, with, global,
              args.coefficients, args.eigenvalues, args.slope, args.length, args.reduction,
              args.rank);
  check_launch("solve_subspace");
}

}  // namespace aadl::cuda
