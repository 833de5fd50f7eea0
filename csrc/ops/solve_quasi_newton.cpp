#include <tuple>

#include "op.h"

namespace aadl {
namespace {

template <class On>
std::tuple<Tensor, Tensor, Tensor> solve_quasi_newton(
    const Tensor& metric, const Tensor& curvature, const Tensor& gradient_metric,
    const Tensor& slopes, const Tensor& gradient_slopes, const Tensor& squared_norm,
    int64_t newest, double growth) {
  const On on(metric);
  const int64_t m = slopes.numel();
  for (const Tensor* x : {&metric, &curvature, &gradient_metric}) {
    STD_TORCH_CHECK(x->dim() == 2 && x->size(0) == m && x->size(1) == m, "expected [m, m]");
  }
  STD_TORCH_CHECK(slopes.dim() == 1 && gradient_slopes.dim() == 1, "expected [m]");
  STD_TORCH_CHECK(0 <= newest && newest < m && growth >= 0, "there is no row ", newest,
                  ", or growth is ", growth);
  Tensor gradient = doubles(metric, {1, 1}), steps = doubles(metric, {1, m});
  Tensor changes = doubles(metric, {1, m});
  solve_quasi_newton(
      QuasiNewton{numbers(on, "metric", metric, m * m),
                  numbers(on, "curvature", curvature, m * m),
                  numbers(on, "gradient_metric", gradient_metric, m * m),
                  numbers(on, "slopes", slopes, m),
                  numbers(on, "gradient_slopes", gradient_slopes, m),
                  numbers(on, "squared_norm", squared_norm, 1), m, newest, growth,
                  out<double>(gradient), out<double>(steps), out<double>(changes)},
      on.how);
  return {gradient, steps, changes};
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(solve_quasi_newton)
