// The Newton step in a subspace on the CPU: see subspace.h. One thread, in cache only.
#include "../subspace.h"

#include <vector>

#include "kernels.h"
#include "target.h"

namespace aadl::cpu {
namespace {

AADL_TARGETS NewtonStep solve(const Subspace& s, const NewtonSettings& with, double* work) {
  return newton_step(Alone(), s.metric, s.curvature, s.right_side, s.noise, s.size, s.samples, with,
                     work, s.coefficients, s.eigenvalues);
}

}  // namespace

void solve_subspace(Subspace& args) {
  std::vector<double> work(newton_workspace(args.size));
  const NewtonStep step =
      solve(args, {args.radius, args.ridge, args.floor, args.shrinkage}, work.data());
  args.slope = step.slope;
  args.length = step.length;
  args.reduction = step.reduction;
  args.rank = step.rank;
}

}  // namespace aadl::cpu
