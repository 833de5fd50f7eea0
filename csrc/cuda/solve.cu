// The small least-squares problem: see solve.h. One block a problem, its workspace in shared
// memory where it fits. Reads 8 k^2 bytes; some 2e6 flops for 32 columns, in chains of an estimated
// fifth of a millisecond. One block fills no device, but nothing leaves it.
#include "jacobi.cuh"
#include "kernels.h"

namespace aadl::cuda {
namespace {

// systems [problems, k, k]; out: gamma [problems, k - 1], rank, condition, reduction [problems].
__global__ void __launch_bounds__(kTeam, 1)
    solve_secants_kernel(const double* systems, int64_t k, bool factored, double ridge,
                         double tolerance, bool conditioned, const double* noise,
                         double* workspace, double* gamma, int64_t* rank, double* condition,
                         double* reduction) {
  AADL_DYNAMIC_SHARED(double, shared);
  AADL_SHARED(int, votes, kTeam / kWarp);
  const Desk at = desk(shared, votes, k, workspace, solve_workspace(k));
  const int64_t problem = blockIdx.x;
  const double* const own = noise ? noise + problem * (k - 1) : nullptr;
  const Directions found = solve_system(at.team, systems + problem * k * k, k, factored, ridge,
                                        tolerance, own, at.work, gamma + problem * (k - 1));
  if (threadIdx.x != 0) return;
  rank[problem] = found.rank;
  condition[problem] = conditioned ? found.condition : kNan;
  reduction[problem] = found.reduction;
}

}  // namespace

void solve_secants(const Secants& args, const Launch& launch) {
  if (args.problems == 0) return;
  const int64_t size = solve_workspace(args.k);
  double* const global = global_workspace(launch, args.problems, args.k, size);
  AADL_LAUNCH(solve_secants_kernel, static_cast<unsigned>(args.problems), kTeam,
              shared_bytes(args.k, size), launch.stream, args.systems, args.k, args.factored,
              args.ridge, args.tolerance, args.conditioned, args.noise, global, args.gamma,
              args.rank, args.condition, args.reduction);
  check_launch("solve_secants");
}

}  // namespace aadl::cuda
