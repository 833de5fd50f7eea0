#include <tuple>

#include "op.h"

namespace aadl {
namespace {

template <class On>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> solve_subspace(
    const Tensor& metric, const Tensor& curvature, const Tensor& right_side, const Tensor& noise,
    const Tensor& radius, double ridge, double floor, double shrinkage) {
  const On on(metric);
  STD_TORCH_CHECK(right_side.dim() == 2 && noise.dim() == 3, "expected [S, m] and [S, m, J]");
  const int64_t systems = right_side.size(0), m = right_side.size(1), samples = noise.size(2);
  STD_TORCH_CHECK(ridge >= 0 && floor >= 0 && shrinkage >= 0,
                  "ridge, floor and shrinkage must be >= 0");
  Tensor coefficients = doubles(metric, {systems, m}), eigenvalues = doubles(metric, {systems, m});
  Tensor slope = doubles(metric, {systems}), length = doubles(metric, {systems});
  Tensor reduction = doubles(metric, {systems});
  Tensor rank = torch::stable::new_empty(metric, {systems}, ScalarType::Long);
  solve_subspace(
      Subspace{numbers(on, "metric", metric, systems * m * m),
               numbers(on, "curvature", curvature, systems * m * m),
               numbers(on, "right_side", right_side, systems * m),
               numbers(on, "noise", noise, systems * m * samples),
               numbers(on, "radius", radius, systems), systems, m, samples, ridge, floor, shrinkage,
               out<double>(coefficients), out<double>(eigenvalues), out<double>(slope),
               out<double>(length), out<double>(reduction), out<int64_t>(rank)},
      on.how);
  return {coefficients, slope, length, rank, eigenvalues, reduction};
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(solve_subspace)
