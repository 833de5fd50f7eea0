// The ops on CPU tensors: check, hand pointers to the kernels, wrap what they return.

#include <optional>
#include <tuple>

#include "checks.h"

namespace aadl {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> push_secant(
    const Tensor& before, const Tensor& after, const Tensor& last_point,
    const Tensor& last_residual, std::vector<double> rates, std::vector<int64_t> offsets,
    Tensor residual, Tensor step_rows, Tensor residual_rows, int64_t slot, bool products) {
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  check_vector("before", before, size, type);
  check_vector("after", after, size, type);
  check_vector("last_point", last_point, size, type);
  check_vector("last_residual", last_residual, size, type);
  check_vector("residual", residual, size, type);
  check_rows("step_rows", step_rows, size);
  check_rows("residual_rows", residual_rows, size);
  check_offsets(offsets, size);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t rows = residual_rows.size(0);
  STD_TORCH_CHECK(static_cast<int64_t>(rates.size()) == segments, "got ", rates.size(),
                  " rates for ", segments, " segments");
  STD_TORCH_CHECK(step_rows.size(0) == rows && step_rows.stride(0) == residual_rows.stride(0) &&
                      step_rows.scalar_type() == residual_rows.scalar_type(),
                  "step_rows and residual_rows must be alike");
  STD_TORCH_CHECK(-1 <= slot && slot < rows, "slot is ", slot, " of ", rows, " rows");

  const int64_t width = products ? rows : 0;
  Tensor right_side = doubles(before, {segments, width});
  Tensor gram_row = doubles(before, {segments, slot < 0 ? 0 : width});
  Tensor squared_norm = doubles(before, {segments});
  Tensor max_step = torch::stable::new_empty(before, {}, type);
  dispatch(type, residual_rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    cpu::Push<T, S> args{in<T>(before),
                         in<T>(after),
                         in<T>(last_point),
                         in<T>(last_residual),
                         rates.data(),
                         offsets,
                         out<T>(residual),
                         out<S>(step_rows),
                         out<S>(residual_rows),
                         residual_rows.stride(0),
                         rows,
                         slot,
                         products,
                         out<double>(right_side),
                         out<double>(gram_row),
                         out<double>(squared_norm),
                         0.0};
    cpu::push(args, parallel);
    *out<T>(max_step) = static_cast<T>(args.max_step);
  });
  return {max_step, squared_norm, right_side, gram_row};
}

void extrapolate(const Tensor& before, const Tensor& after, double relaxation, const Tensor& rows,
                 const Tensor& coefficients, std::vector<int64_t> offsets, Tensor result) {
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  check_vector("before", before, size, type);
  check_vector("after", after, size, type);
  check_vector("out", result, size, type);
  check_rows("rows", rows, size);
  check_offsets(offsets, size);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(0) == segments &&
                      coefficients.size(1) == rows.size(0) && coefficients.is_contiguous() &&
                      coefficients.scalar_type() == ScalarType::Double,
                  "coefficients must be contiguous float64 [", segments, ", ", rows.size(0), "]");
  dispatch(type, rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    cpu::extrapolate(
        cpu::Extrapolate<T, S>{in<T>(before), in<T>(after), relaxation, in<S>(rows),
                               rows.stride(0), rows.size(0), in<double>(coefficients), offsets,
                               out<T>(result)},
        parallel);
  });
}

Tensor window_statistics(const Tensor& window, int64_t newest, Tensor mean) {
  STD_TORCH_CHECK(window.dim() == 2 && window.size(0) >= 1, "window must be [t >= 1, N]");
  const int64_t size = window.size(1), count = window.size(0);
  check_rows("window", window, size);
  check_vector("out", mean, size, window.scalar_type());
  STD_TORCH_CHECK(0 <= newest && newest < count, "newest is ", newest, " of ", count, " rows");
  Tensor max_std = torch::stable::new_empty(window, {}, window.scalar_type());
  dispatch(window.scalar_type(), window.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    if constexpr (std::is_same_v<T, decltype(s)>) {
      *out<T>(max_std) = cpu::window_statistics(
          cpu::Window<T>{in<T>(window), window.stride(0), count, newest, size, out<T>(mean)},
          parallel);
    }
  });
  return max_std;
}

Tensor tsqr(const Tensor& rows, std::optional<Tensor> append, std::vector<int64_t> offsets) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) >= 1, "rows must be [k >= 1, n]");
  const int64_t size = rows.size(1);
  check_rows("rows", rows, size);
  check_offsets(offsets, size);
  const ScalarType type =
      append ? append->scalar_type()
             : (rows.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  if (append) check_vector("append", *append, size, type);
  const int64_t columns = rows.size(0) + (append ? 1 : 0);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  Tensor factor = torch::stable::new_empty(rows, {segments, columns, columns}, type);
  dispatch(type, rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    // An empty tensor has no address, but null would mean that there is no column.
    const T* column = !append ? nullptr : size > 0 ? in<T>(*append) : in<T>(factor);
    cpu::tsqr(cpu::Tsqr<T, S>{in<S>(rows), rows.stride(0), rows.size(0), column, offsets,
                              out<T>(factor)},
              parallel);
  });
  return factor;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> solve_secants(const Tensor& system, bool factored,
                                                         double ridge, double tolerance) {
  STD_TORCH_CHECK(system.dim() == 3 && system.size(1) == system.size(2) && system.size(1) >= 2 &&
                      system.is_contiguous() && system.scalar_type() == ScalarType::Double,
                  "system must be contiguous float64 [S, m + 1, m + 1]");
  const int64_t problems = system.size(0), k = system.size(1);
  Tensor gamma = doubles(system, {problems, k - 1});
  Tensor rank = torch::stable::new_empty(system, {problems}, ScalarType::Long);
  Tensor condition = doubles(system, {problems});
  Tensor reduction = doubles(system, {problems});
  parallel(problems, [&](int64_t i) {
    const cpu::Solution solution =
        cpu::solve_secants(in<double>(system) + i * k * k, k, factored, ridge, tolerance,
                           out<double>(gamma) + i * (k - 1));
    out<int64_t>(rank)[i] = solution.rank;
    out<double>(condition)[i] = solution.condition;
    out<double>(reduction)[i] = solution.reduction;
  });
  return {gamma, rank, condition, reduction};
}

}  // namespace
}  // namespace aadl

STABLE_TORCH_LIBRARY(aadl_ext, m) {
  m.def(
      "push_secant(Tensor before, Tensor after, Tensor last_point, Tensor last_residual, "
      "float[] rates, int[] offsets, Tensor(a!) residual, Tensor(b!) step_rows, "
      "Tensor(c!) residual_rows, int slot, bool products) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "extrapolate(Tensor before, Tensor after, float relaxation, Tensor rows, "
      "Tensor coefficients, int[] offsets, Tensor(a!) out) -> ()");
  m.def("window_statistics(Tensor window, int newest, Tensor(a!) out) -> Tensor");
  m.def("tsqr(Tensor rows, Tensor? append, int[] offsets) -> Tensor");
  m.def(
      "solve_secants(Tensor system, bool factored, float ridge, float tolerance) -> "
      "(Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(aadl_ext, CPU, m) {
  m.impl("push_secant", TORCH_BOX(&aadl::push_secant));
  m.impl("extrapolate", TORCH_BOX(&aadl::extrapolate));
  m.impl("window_statistics", TORCH_BOX(&aadl::window_statistics));
  m.impl("tsqr", TORCH_BOX(&aadl::tsqr));
  m.impl("solve_secants", TORCH_BOX(&aadl::solve_secants));
}
