#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor add_sample_(std::vector<Tensor> sums, const Tensor& point, const Tensor& anchor,
                   const Tensor& gradient, double sign, std::optional<Tensor> direction) {
  const On on(point);
  const auto [point_sum, gradient_sum, noise_sum] = three_sums(sums);
  const int64_t size = point.numel();
  const ScalarType type = point.scalar_type();
  check_vector(on, "point_sum", point_sum, size, type);
  check_vector(on, "gradient_sum", gradient_sum, size, type);
  if (noise_sum) check_vector(on, "noise_sum", *noise_sum, size, type);
  check_vector(on, "point", point, size, type);
  check_vector(on, "anchor", anchor, size, type);
  check_vector(on, "gradient", gradient, size, type);
  if (direction) check_vector(on, "direction", *direction, size, type);
  check_apart({&point_sum, &gradient_sum, address(noise_sum)},
              {&point, &anchor, &gradient, address(direction)});
  Tensor figures = doubles(point, {2});
  dispatch(type, [&](auto t) {
    using T = decltype(t);
    add_sample(
        Sample<T>{out<T>(point_sum), out<T>(gradient_sum), noise_sum ? out<T>(*noise_sum) : nullptr,
                  in<T>(point), in<T>(anchor), in<T>(gradient),
                  direction ? in<T>(*direction) : nullptr, sign, size, out<double>(figures)},
        on.how);
  });
  return figures;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(add_sample_)
