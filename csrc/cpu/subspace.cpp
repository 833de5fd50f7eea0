// The Newton step in a subspace on the CPU: see subspace.h. One thread a problem, in cache only.
#include "../common/subspace.h"

#include <vector>

#include "kernels.h"

namespace aadl::cpu {
namespace {

AADL_TARGETS NewtonStep solve(const Subspace& args, int64_t i, double* work) {
  const int64_t m = args.m;
  return newton_step(Alone(), args.metric + i * m * m, args.curvature + i * m * m,
                     args.right_side + i * m, args.noise + i * m * args.samples, m, args.samples,
                     {args.radius[i], args.ridge, args.floor, args.shrinkage}, work,
                     args.coefficients + i * m, args.eigenvalues + i * m);
}

}  // namespace

void solve_subspace(const Subspace& args, const Threads& threads) {
  threads.run(args.problems, [&](int64_t i) {
    std::vector<double> work(newton_workspace(args.m));
    const NewtonStep step = solve(args, i, work.data());
    args.slope[i] = step.slope;
    args.length[i] = step.length;
    args.reduction[i] = step.reduction;
    args.rank[i] = step.rank;
  });
}

}  // namespace aadl::cpu
