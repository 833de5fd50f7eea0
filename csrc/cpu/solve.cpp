// The small least-squares problem on the CPU: see solve.h. Work in cache only, microseconds for
// the usual ten columns, so one thread a problem, and no allocation up to 33.
#include "../common/solve.h"

#include <vector>

#include "kernels.h"

namespace aadl::cpu {
namespace {

AADL_TARGETS Directions solve(const Secants& args, int64_t i, double* work) {
  return solve_system(Alone(), args.systems + i * args.k * args.k, args.k, args.factored,
                      args.ridge, args.tolerance,
                      args.noise ? args.noise + i * (args.k - 1) : nullptr, work, args.gamma + i * (args.k - 1));
}

}  // namespace

void solve_secants(const Secants& args, const Threads& threads) {
  threads.run(args.problems, [&](int64_t i) {
    constexpr int64_t kSmall = 33;
    double small[2 * kSmall * kSmall + 3 * kSmall];
    std::vector<double> large(args.k > kSmall ? solve_workspace(args.k) : 0);
    const Directions found = solve(args, i, args.k > kSmall ? large.data() : small);
    args.rank[i] = found.rank;
    args.condition[i] = found.condition;
    args.reduction[i] = found.reduction;
  });
}

}  // namespace aadl::cpu
