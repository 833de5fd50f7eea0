#include <tuple>

#include "op.h"

namespace aadl {
namespace {

template <class On>
std::tuple<Tensor, Tensor, Tensor> fit_quadratic(const Tensor& metric, const Tensor& curvature,
                                                 const Tensor& right_side, const Tensor& noise,
                                                 int64_t newest, int64_t count, double ridge,
                                                 double shrinkage) {
  const On on(metric);
  STD_TORCH_CHECK(right_side.dim() == 2 && noise.dim() == 3, "expected [S, m] and [S, m, J]");
  const int64_t systems = right_side.size(0), m = right_side.size(1), samples = noise.size(2);
  STD_TORCH_CHECK(0 <= newest && newest < m && 0 <= count && count <= m && ridge >= 0 &&
                      shrinkage >= 0,
                  "there are no such rows, or a setting is negative");
  Tensor fitted = doubles(metric, {systems, m, m}), slopes = doubles(metric, {systems, m});
  Tensor left = doubles(metric, {systems, m, samples});
  fit_quadratic(
      Quadratic{numbers(on, "metric", metric, systems * m * m),
                numbers(on, "curvature", curvature, systems * m * m),
                numbers(on, "right_side", right_side, systems * m),
                numbers(on, "noise", noise, systems * m * samples), systems, m, samples, newest,
                count, ridge, shrinkage, out<double>(fitted), out<double>(slopes), out<double>(left)},
      on.how);
  return {fitted, slopes, left};
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(fit_quadratic)
