#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor differs(const Tensor& one, const Tensor& other, std::optional<Tensor> scale,
               double tolerance) {
  const On on(one);
  const int64_t size = one.numel();
  const ScalarType type = one.scalar_type();
  check_vector(on, "one", one, size, type);
  check_vector(on, "other", other, size, type);
  if (scale) on.check("scale", *scale);
  STD_TORCH_CHECK(!scale || (scale->dim() == 0 && scale->scalar_type() == type),
                  "scale must be [] of the dtype of the vectors");
  STD_TORCH_CHECK(tolerance >= 0, "tolerance must be >= 0");
  Tensor difference = torch::stable::new_empty(one, {}, ScalarType::Bool);
  dispatch(type, [&](auto t) {
    using T = decltype(t);
    differs(Difference<T>{in<T>(one), in<T>(other), scale ? in<T>(*scale) : nullptr, tolerance, size,
                          out<bool>(difference)}, on.how);
  });
  return difference;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(differs)
