#include "op.h"

namespace aadl {
namespace {

// As one of the types that there are kernels for; what is not, or has gaps, is copied.
Tensor plain(const Tensor& tensor, ScalarType type) {
  if (tensor.is_contiguous() && tensor.scalar_type() == type) return tensor;
  Tensor copy = torch::stable::new_empty(tensor, tensor.sizes(), type);
  torch::stable::copy_(copy, tensor);
  return copy;
}

template <class On>
Tensor add_sample_(std::vector<Tensor> sums, std::vector<Tensor> points, const Tensor& anchor,
                   std::vector<Tensor> gradients, double sign, std::optional<Tensor> direction,
                   std::vector<double> decays) {
  const On on(anchor);
  const auto [point_sum, gradient_sum, noise_sum] = three_sums(sums);
  const int64_t size = anchor.numel();
  const ScalarType type = anchor.scalar_type();
  check_vector(on, "point_sum", point_sum, size, type);
  check_vector(on, "gradient_sum", gradient_sum, size, type);
  if (noise_sum) check_vector(on, "noise_sum", *noise_sum, size, type);
  check_vector(on, "anchor", anchor, size, type);
  if (direction) check_vector(on, "direction", *direction, size, type);
  const auto check_apart_from = [&](const Tensor* one, const Tensor* other) {
    check_apart({&point_sum, &gradient_sum, address(noise_sum)}, {one, other});
  };
  check_apart_from(&anchor, address(direction));
  STD_TORCH_CHECK(points.size() == gradients.size(), "points and gradients must be as many");
  STD_TORCH_CHECK(decays.empty() || decays.size() == points.size(), "decays must be as many or none");
  std::vector<SamplePart> parts;
  int64_t begin = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    Tensor &point = points[i], &gradient = gradients[i];
    on.check("points", point);
    on.check("gradients", gradient);
    STD_TORCH_CHECK(point.sizes() == gradient.sizes(), "a gradient must have the shape of its point");
    const int64_t count = point.numel();
    STD_TORCH_CHECK(begin + count <= size, "points must have no more entries than vectors");
    if (count == 0) continue;
    check_apart_from(&point, &gradient);
    const Type own = kernel_type(point), wide = kernel_type(anchor);
    const bool known = own == kernel_type(gradient) && copies(own, wide) && size_of(own) <= size_of(wide);
    const ScalarType common = known ? point.scalar_type() : type;
    point = plain(point, common), gradient = plain(gradient, common);
    parts.push_back({point.const_data_ptr(), gradient.const_data_ptr(), begin, count,
                     decays.empty() ? 0 : decays[i], kernel_type(point)});
    begin += count;
  }
  Tensor figures = doubles(anchor, {2});
  dispatch(type, [&](auto t) {
    using T = decltype(t);
    add_sample(Sample<T>{out<T>(point_sum), out<T>(gradient_sum),
                         noise_sum ? out<T>(*noise_sum) : nullptr, in<T>(anchor),
                         direction ? in<T>(*direction) : nullptr, sign, out<double>(figures)},
               parts, on.how);
  });
  return figures;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(add_sample_)
