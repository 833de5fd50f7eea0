#include <tuple>

#include "op.h"

namespace aadl {
namespace {

template <class On>
std::tuple<Tensor, Tensor, Tensor, Tensor> solve_secants(const Tensor& system, bool factored,
                                                         double ridge, double tolerance,
                                                         std::optional<Tensor> noise,
                                                         bool condition_asked) {
  const On on(system);
  STD_TORCH_CHECK(system.dim() == 3 && system.size(1) == system.size(2) && system.size(1) >= 2,
                  "system must be [S, m + 1, m + 1]");
  const int64_t problems = system.size(0), k = system.size(1);
  STD_TORCH_CHECK(ridge >= 0 && tolerance >= 0, "ridge and tolerance must be >= 0");
  const double* const errors = check_noise(on, noise, problems, k - 1);
  Tensor gamma = doubles(system, {problems, k - 1});
  Tensor rank = torch::stable::new_empty(system, {problems}, ScalarType::Long);
  Tensor condition = doubles(system, {problems}), reduction = doubles(system, {problems});
  solve_secants(
      Secants{numbers(on, "system", system, problems * k * k), problems, k, factored, ridge,
              tolerance, condition_asked, errors, out<double>(gamma), out<int64_t>(rank),
              out<double>(condition), out<double>(reduction)},
      on.how);
  return {gamma, rank, condition, reduction};
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(solve_secants)
