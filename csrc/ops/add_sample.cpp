#include "op.h"

namespace aadl {
namespace {

// Contiguous, of this type: itself or a copy.
Tensor plain(const Tensor& tensor, ScalarType type) {
  if (tensor.is_contiguous() && tensor.scalar_type() == type) return tensor;
  Tensor copy = torch::stable::new_empty(tensor, tensor.sizes(), type);
  torch::stable::copy_(copy, tensor);
  return copy;
}

// Where a point and its gradient are, or copies in the type of the vectors, where no kernel reads them.
SamplePart part_of(Tensor& point, Tensor& gradient, ScalarType vectors, int64_t begin,
                   double decay) {
  const ScalarType type = point.scalar_type();
  const bool narrower = vectors == ScalarType::Float ? type != ScalarType::Double
                                                     : type == ScalarType::Float;
  const bool read = (type == vectors || narrower) && type == gradient.scalar_type();
  const ScalarType common = read ? type : vectors;
  point = plain(point, common), gradient = plain(gradient, common);
  return {point.const_data_ptr(), gradient.const_data_ptr(), begin, point.numel(), decay,
          kernel_type(point)};
}

template <class On>
Tensor add_sample_(std::vector<Tensor> sums, std::vector<Tensor> points, const Tensor& anchor,
                   std::vector<Tensor> gradients, double sign, std::optional<Tensor> direction,
                   std::vector<double> decays) {
  const On on(anchor);
  const auto [point_sum, gradient_sum, noise_sum] = three_sums(sums, 1);
  const int64_t size = anchor.numel();
  const ScalarType type = anchor.scalar_type();
  check_vector(on, "point_sum", point_sum, size, type);
  if (gradient_sum) check_vector(on, "gradient_sum", *gradient_sum, size, type);
  if (noise_sum) check_vector(on, "noise_sum", *noise_sum, size, type);
  check_vector(on, "anchor", anchor, size, type);
  if (direction) check_vector(on, "direction", *direction, size, type);
  STD_TORCH_CHECK(points.size() == gradients.size(), "points and gradients must be as many");
  STD_TORCH_CHECK(decays.empty() || decays.size() == points.size(), "decays must be as many");
  std::vector<const Tensor*> read = {&anchor, address(direction)};
  for (const auto* list : {&points, &gradients}) {
    for (const Tensor& tensor : *list) {
      on.check("points and gradients", tensor);
      kernel_type(tensor);
      read.push_back(&tensor);
    }
  }
  check_apart({&point_sum, address(gradient_sum), address(noise_sum)}, read);
  int64_t begin = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    STD_TORCH_CHECK(points[i].sizes() == gradients[i].sizes(), "shapes must be those of the points");
    begin += points[i].numel();
  }
  STD_TORCH_CHECK(begin <= size, "points must have no more entries than vectors");
  std::vector<SamplePart> parts;
  begin = 0;
  for (size_t i = 0; i < points.size(); ++i) {
    if (points[i].numel() == 0) continue;
    const double decay = decays.empty() ? 0 : decays[i];
    parts.push_back(part_of(points[i], gradients[i], type, begin, decay));
    begin += parts.back().count;
  }
  Tensor figures = doubles(anchor, {2});
  dispatch(type, [&](auto t) {
    using T = decltype(t);
    add_sample(Sample<T>{out<T>(point_sum), gradient_sum ? out<T>(*gradient_sum) : nullptr,
                         noise_sum ? out<T>(*noise_sum) : nullptr, in<T>(anchor),
                         direction ? in<T>(*direction) : nullptr, sign, out<double>(figures)},
               parts, on.how);
  });
  return figures;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(add_sample_)
