// The small least-squares problem on the CPU: see solve.h. Work in cache only, microseconds for
// the usual ten columns, so one thread, and no allocation up to 33.
#include "../solve.h"

#include <vector>

#include "kernels.h"
#include "target.h"

namespace aadl::cpu {
namespace {

AADL_TARGETS Directions solve(const double* system, int64_t k, bool factored, double ridge,
                              double tolerance, double* work, double* gamma) {
  return solve_system(Alone(), system, k, factored, ridge, tolerance, work, gamma);
}

}  // namespace

Solution solve_secants(const double* system, int64_t k, bool factored, double ridge,
                       double tolerance, double* gamma) {
  constexpr int64_t kSmall = 33;
  double small[2 * kSmall * kSmall + 3 * kSmall];
  std::vector<double> large(k > kSmall ? solve_workspace(k) : 0);
  double* const work = k > kSmall ? large.data() : small;
  const Directions found = solve(system, k, factored, ridge, tolerance, work, gamma);
  return {found.condition, found.reduction, found.rank};
}

}  // namespace aadl::cpu
