#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor extrapolate_(Tensor result, const Tensor& before, const Tensor& after, double relaxation,
                    const Tensor& rows, const Tensor& coefficients, std::vector<int64_t> offsets,
                    std::optional<Tensor> accept) {
  const On on(before);
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  check_vector(on, "before", before, size, type);
  check_vector(on, "after", after, size, type);
  check_vector(on, "out", result, size, type);
  check_rows(on, "rows", rows, size);
  on.check("coefficients", coefficients);
  const int64_t segments = check_offsets(offsets, size), count = rows.size(0);
  const int64_t sets = coefficients.dim() == 2 ? coefficients.size(0) : 0;
  STD_TORCH_CHECK((sets == segments || sets == 1) && coefficients.size(1) == count &&
                      coefficients.is_contiguous() &&
                      coefficients.scalar_type() == ScalarType::Double,
                  "coefficients must be contiguous float64 [1 or ", segments, ", ", count, "]");
  const bool* const accepts = check_flag(on, "accept", accept);
  check_apart({&result}, {&before, &after}, true);
  check_apart({&result}, {&rows, &coefficients});
  Tensor sizes = torch::stable::new_empty(before, {2}, type);
  dispatch(type, rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    extrapolate(
        Extrapolate<T, S>{in<T>(before), in<T>(after), relaxation, in<S>(rows), rows.stride(0),
                          count, in<double>(coefficients), sets, offsets.data(), segments, accepts,
                          out<T>(result), out<T>(sizes)},
        on.how);
  });
  return sizes;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(extrapolate_)
