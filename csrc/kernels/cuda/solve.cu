#include "kernels.h"
#include "solve.cuh"

namespace aadl::cuda {

int64_t solve_secants_workspace(const Secants& args) {
  return global_bytes(args.problems, args.k, solve_workspace(args.k));
}

void solve_secants(const Secants& args, void* workspace, Stream stream) {
  if (args.problems == 0) return;
  const int64_t size = solve_workspace(args.k);
  double* const global = fits_shared(args.k, size) ? nullptr : static_cast<double*>(workspace);
  AADL_LAUNCH(solve_secants_kernel, static_cast<unsigned>(args.problems), kTeam,
              shared_bytes(args.k, size), stream, args.systems, args.k, args.factored, args.ridge,
              args.tolerance, global, args.gamma, args.rank, args.condition, args.reduction);
  check_launch("solve_secants");
}

}  // namespace aadl::cuda
