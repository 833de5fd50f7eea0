#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor push_secant(const Tensor& before, const Tensor& after, std::vector<double> rates,
                   std::vector<int64_t> offsets, Tensor residual, const Tensor& last_point,
                   const Tensor& last_residual, Tensor step_rows, Tensor residual_rows,
                   int64_t slot, std::optional<Tensor> paired, std::optional<Tensor> systems,
                   std::vector<double> rounding, std::optional<Tensor> noise) {
  const On on(before);
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  check_vector(on, "before", before, size, type);
  check_vector(on, "after", after, size, type);
  check_vector(on, "last_point", last_point, size, type);
  check_vector(on, "last_residual", last_residual, size, type);
  check_vector(on, "residual", residual, size, type);
  check_rows(on, "step_rows", step_rows, size);
  check_rows(on, "residual_rows", residual_rows, size);
  const int64_t segments = check_offsets(offsets, size), rows = residual_rows.size(0);
  one_each("rates", rates, segments);
  STD_TORCH_CHECK(step_rows.size(0) == rows && step_rows.stride(0) == residual_rows.stride(0) &&
                      step_rows.scalar_type() == residual_rows.scalar_type(),
                  "step_rows and residual_rows must be alike");
  STD_TORCH_CHECK(-1 <= slot && slot < rows, "slot is ", slot, " of ", rows, " rows");
  if (systems) on.check("systems", *systems);
  const int64_t k = systems && systems->dim() == 3 ? systems->size(1) : 0;
  STD_TORCH_CHECK(!systems || (systems->dim() == 3 && systems->size(0) == segments &&
                               systems->size(2) == k && k > rows && systems->is_contiguous() &&
                               systems->scalar_type() == ScalarType::Double),
                  "systems must be contiguous float64 [", segments, ", k, k] with k > ", rows);
  double* const errors = check_noise(on, noise, segments, rows, true);
  if (noise) one_each("roundings", rounding, segments);
  const bool* const has_pair = check_flag(on, "paired", paired);
  check_apart({&residual, &step_rows, &residual_rows, address(systems), address(noise)},
              {&before, &after, &last_point, &last_residual});
  Tensor figures = doubles(before, {4});
  dispatch(type, residual_rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    push(Push<T, S>{in<T>(before), in<T>(after), in<T>(last_point), in<T>(last_residual),
                    rates.data(), offsets.data(), segments, out<T>(residual), out<S>(step_rows),
                    out<S>(residual_rows), residual_rows.stride(0), rows, slot, has_pair,
                    systems ? out<double>(*systems) : nullptr, k, out<double>(figures),
                    rounding.data(), errors, noise ? noise->size(1) : 0},
         on.how);
  });
  return figures;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(push_secant)
