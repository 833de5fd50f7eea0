#include "kernels.h"
#include "subspace.cuh"

namespace aadl::cuda {

int64_t solve_subspace_workspace(const Subspace& args) {
  return global_bytes(args.problems, args.m, newton_workspace(args.m));
}

void solve_subspace(const Subspace& args, void* workspace, Stream stream) {
  if (args.problems == 0) return;
  const int64_t size = newton_workspace(args.m);
  double* const global = fits_shared(args.m, size) ? nullptr : static_cast<double*>(workspace);
  const NewtonSettings with = {0, args.ridge, args.floor, args.shrinkage};
  AADL_LAUNCH(solve_subspace_kernel, static_cast<unsigned>(args.problems), kTeam,
              shared_bytes(args.m, size), stream, args.metric, args.curvature, args.right_side,
              args.noise, args.radius, args.m, args.samples, with, global, args.coefficients,
              args.eigenvalues, args.slope, args.length, args.reduction, args.rank);
  check_launch("solve_subspace");
}

}  // namespace aadl::cuda
