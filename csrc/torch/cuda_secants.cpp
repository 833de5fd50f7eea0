// Ops of the paper's iteration on CUDA tensors: check, hand pointers to the launchers, return what
// is on the device. Nothing waits.

#include <optional>
#include <tuple>

#include "cuda.h"

namespace aadl {
namespace {

Tensor push_secant(const Tensor& before, const Tensor& after, const Tensor& last_point,
                   const Tensor& last_residual, std::vector<double> rates,
                   std::vector<int64_t> offsets, Tensor residual, Tensor step_rows,
                   Tensor residual_rows, int64_t slot, std::optional<Tensor> systems) {
  const OnDevice on(before);
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  const auto check = [&](const char* name, const Tensor& vector) {
    on.check(name, vector);
    check_vector(name, vector, size, type);
  };
  check("before", before);
  check("after", after);
  check("last_point", last_point);
  check("last_residual", last_residual);
  check("residual", residual);
  on.check("step_rows", step_rows);
  on.check("residual_rows", residual_rows);
  if (systems) on.check("systems", *systems);
  check_push(size, rates, offsets, step_rows, residual_rows, slot, systems);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t rows = residual_rows.size(0);
  const int64_t k = systems ? systems->size(1) : 0;
  Tensor figures = doubles(before, {3});
  dispatch(type, residual_rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const cuda::Push<T, S> args = {in<T>(before),
                                   in<T>(after),
                                   in<T>(last_point),
                                   in<T>(last_residual),
                                   rates.data(),
                                   offsets.data(),
                                   segments,
                                   out<T>(residual),
                                   out<S>(step_rows),
                                   out<S>(residual_rows),
                                   residual_rows.stride(0),
                                   rows,
                                   slot,
                                   systems ? out<double>(*systems) : nullptr,
                                   k,
                                   out<double>(figures),
                                   cuda::slow_float64(on.device)};
    const Workspace workspace(before, cuda::push_workspace(args));
    cuda::push(args, workspace.data(), on.stream);
  });
  return figures;
}

Tensor extrapolate(const Tensor& before, const Tensor& after, double relaxation, const Tensor& rows,
                   const Tensor& coefficients, std::vector<int64_t> offsets, Tensor result,
                   std::optional<Tensor> accept) {
  const OnDevice on(before);
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  check_vector("before", before, size, type);
  check_vector("after", after, size, type);
  check_vector("out", result, size, type);
  check_rows("rows", rows, size);
  check_offsets(offsets, size);
  on.check("after", after);
  on.check("out", result);
  on.check("rows", rows);
  on.check("coefficients", coefficients);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t sets = coefficients.dim() == 2 ? coefficients.size(0) : 0, count = rows.size(0);
  STD_TORCH_CHECK((sets == segments || sets == 1) && coefficients.size(1) == count &&
                      coefficients.is_contiguous() &&
                      coefficients.scalar_type() == ScalarType::Double,
                  "coefficients must be contiguous float64 [1 or ", segments, ", ", count, "]");
  Tensor largest = torch::stable::new_empty(before, {}, type);
  dispatch(type, rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const cuda::Extrapolate<T, S> args = {in<T>(before),
                                          in<T>(after),
                                          relaxation,
                                          in<S>(rows),
                                          rows.stride(0),
                                          count,
                                          in<double>(coefficients),
                                          sets,
                                          offsets.data(),
                                          segments,
                                          on.flag("accept", accept),
                                          out<T>(result),
                                          out<T>(largest)};
    const Workspace workspace(before, cuda::extrapolate_workspace(args));
    cuda::extrapolate(args, workspace.data(), on.stream);
  });
  return largest;
}

Tensor window_statistics(std::vector<Tensor> window, Tensor mean) {
  const OnDevice on(mean);
  const int64_t size = mean.numel();
  const ScalarType type = mean.scalar_type();
  STD_TORCH_CHECK(!window.empty(), "the window is empty");
  check_vector("out", mean, size, type);
  for (const Tensor& iterate : window) {
    on.check("window", iterate);
    check_vector("window", iterate, size, type);
  }
  Tensor max_std = torch::stable::new_empty(mean, {}, type);
  dispatch(type, type, [&](auto t, auto s) {
    using T = decltype(t);
    if constexpr (std::is_same_v<T, decltype(s)>) {
      std::vector<const T*> iterates;
      for (const Tensor& iterate : window) iterates.push_back(in<T>(iterate));
      const cuda::Window<T> args = {iterates.data(), static_cast<int64_t>(iterates.size()), size,
                                    out<T>(mean), out<T>(max_std)};
      const Workspace workspace(mean, cuda::window_workspace(args));
      cuda::window_statistics(args, workspace.data(), on.stream);
    }
  });
  return max_std;
}

Tensor tsqr(const Tensor& rows, std::optional<Tensor> append, std::vector<int64_t> offsets) {
  const OnDevice on(rows);
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(0) >= 1, "rows must be [k >= 1, n]");
  const int64_t size = rows.size(1);
  check_rows("rows", rows, size);
  check_offsets(offsets, size);
  const ScalarType type =
      append ? append->scalar_type()
             : (rows.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  if (append) on.check("append", *append);
  if (append) check_vector("append", *append, size, type);
  const int64_t columns = rows.size(0) + (append ? 1 : 0);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  STD_TORCH_CHECK(columns <= cuda::kMostColumns, "a CUDA factor has at most ", cuda::kMostColumns,
                  " columns, got ", columns);
  Tensor factor = torch::stable::new_empty(rows, {segments, columns, columns}, type);
  dispatch(type, rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    // An empty tensor has no address, but null would mean that there is no column.
    const T* column = !append ? nullptr : size > 0 ? in<T>(*append) : in<T>(factor);
    const cuda::Tsqr<T, S> args = {in<S>(rows),    rows.stride(0), rows.size(0),  column,
                                   offsets.data(), segments,       out<T>(factor)};
    const Workspace workspace(rows, cuda::tsqr_workspace(args));
    cuda::tsqr(args, workspace.data(), on.stream);
  });
  return factor;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> solve_secants(const Tensor& system, bool factored,
                                                         double ridge, double tolerance) {
  const OnDevice on(system);
  STD_TORCH_CHECK(system.dim() == 3 && system.size(1) == system.size(2) && system.size(1) >= 2 &&
                      system.is_contiguous() && system.scalar_type() == ScalarType::Double,
                  "system must be contiguous float64 [S, m + 1, m + 1]");
  const int64_t problems = system.size(0), k = system.size(1);
  Tensor gamma = doubles(system, {problems, k - 1});
  Tensor rank = torch::stable::new_empty(system, {problems}, ScalarType::Long);
  Tensor condition = doubles(system, {problems}), reduction = doubles(system, {problems});
  const cuda::Secants args = {in<double>(system),
                              problems,
                              k,
                              factored,
                              ridge,
                              tolerance,
                              out<double>(gamma),
                              out<int64_t>(rank),
                              out<double>(condition),
                              out<double>(reduction)};
  const Workspace workspace(system, cuda::solve_secants_workspace(args));
  cuda::solve_secants(args, workspace.data(), on.stream);
  return {gamma, rank, condition, reduction};
}

}  // namespace
}  // namespace aadl

STABLE_TORCH_LIBRARY_IMPL(aadl_ext, CUDA, m) {
  m.impl("push_secant", TORCH_BOX(&aadl::push_secant));
  m.impl("extrapolate", TORCH_BOX(&aadl::extrapolate));
  m.impl("window_statistics", TORCH_BOX(&aadl::window_statistics));
  m.impl("tsqr", TORCH_BOX(&aadl::tsqr));
  m.impl("solve_secants", TORCH_BOX(&aadl::solve_secants));
}
