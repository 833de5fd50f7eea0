#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor differs(const Tensor& one, const Tensor& other) {
  const On on(one);
  const int64_t size = one.numel();
  const ScalarType type = one.scalar_type();
  check_vector(on, "one", one, size, type);
  check_vector(on, "other", other, size, type);
  Tensor difference = torch::stable::new_empty(one, {}, ScalarType::Bool);
  dispatch(type, [&](auto t) {
    using T = decltype(t);
    differs(Difference<T>{in<T>(one), in<T>(other), size, out<bool>(difference)}, on.how);
  });
  return difference;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(differs)
