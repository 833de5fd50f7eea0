// The quadratic through several slopes on the CPU: see fit.h. One thread a problem, in cache only.
#include "../common/fit.h"

#include <vector>

#include "kernels.h"

namespace aadl::cpu {
namespace {

AADL_TARGETS void fit(const Quadratic& args, int64_t i, double* work) {
  fit_quadratic(Alone(), args, i, work);
}

}  // namespace

void fit_quadratic(const Quadratic& args, const Threads& threads) {
  threads.run(args.problems, [&](int64_t i) {
    std::vector<double> work(FitWork::size(args.m));
    fit(args, i, work.data());
  });
}

}  // namespace aadl::cpu
