// The ops on CPU tensors: check, hand pointers to the kernels, wrap what they return.

#include <cmath>
#include <numeric>
#include <optional>
#include <tuple>

#include "checks.h"

namespace aadl {
namespace {

// Enters what a push has measured into the Gram matrices [segments, k, k] of the rows and, last,
// the residual.
template <class T, class S>
void write_systems(const cpu::Push<T, S>& seen, int64_t k, double* systems) {
  const int64_t segments = static_cast<int64_t>(seen.offsets.size()) - 1, last = k - 1;
  for (int64_t s = 0; s < segments; ++s, systems += k * k) {
    const auto write = [&](int64_t i, int64_t j, double value) {
      systems[i * k + j] = systems[j * k + i] = value;
    };
    for (int64_t i = 0; i < seen.rows; ++i) {
      write(i, last, seen.right_side[s * seen.rows + i]);
      if (seen.slot >= 0) write(i, seen.slot, seen.gram_row[s * seen.rows + i]);
    }
    write(last, last, seen.squared_norm[s]);
  }
}

// Zero: the new row cannot be used, and takes the place of the oldest.
template <class T, class S>
void drop_row(const cpu::Push<T, S>& seen, int64_t k, double* systems) {
  const int64_t size = seen.offsets.back(), segments = seen.offsets.size() - 1;
  std::memset(seen.step_rows + seen.slot * seen.stride, 0, size * sizeof(S));
  std::memset(seen.residual_rows + seen.slot * seen.stride, 0, size * sizeof(S));
  for (int64_t s = 0; systems && s < segments; ++s, systems += k * k) {
    for (int64_t i = 0; i < k; ++i) systems[i * k + seen.slot] = systems[seen.slot * k + i] = 0;
  }
}

Tensor push_secant(const Tensor& before, const Tensor& after, const Tensor& last_point,
                   const Tensor& last_residual, std::vector<double> rates,
                   std::vector<int64_t> offsets, Tensor residual, Tensor step_rows,
                   Tensor residual_rows, int64_t slot, std::optional<Tensor> systems) {
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  check_vector("before", before, size, type);
  check_vector("after", after, size, type);
  check_vector("last_point", last_point, size, type);
  check_vector("last_residual", last_residual, size, type);
  check_vector("residual", residual, size, type);
  check_push(size, rates, offsets, step_rows, residual_rows, slot, systems);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t rows = residual_rows.size(0);
  const int64_t k = systems ? systems->size(1) : 0;

  std::vector<double> right_side(k ? segments * rows : 0), gram_row(right_side);
  std::vector<double> squared_norm(segments);
  Tensor figures = doubles(before, {3});
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
                         k > 0,
                         right_side.data(),
                         gram_row.data(),
                         squared_norm.data(),
                         0.0,
                         0.0};
    cpu::push(args, parallel);
    const double norm = std::accumulate(squared_norm.begin(), squared_norm.end(), 0.0);
    double* const values = k ? out<double>(*systems) : nullptr;
    if (values && std::isfinite(norm)) write_systems(args, k, values);
    const bool usable = std::isfinite(norm) && std::isfinite(args.row_norm);
    if (slot >= 0 && !usable) drop_row(args, k, values);
    double* const to = out<double>(figures);
    to[0] = args.max_step, to[1] = norm, to[2] = args.row_norm;
  });
  return figures;
}

Tensor extrapolate(const Tensor& before, const Tensor& after, double relaxation, const Tensor& rows,
                   const Tensor& coefficients, std::vector<int64_t> offsets, Tensor result,
                   std::optional<Tensor> accept) {
  const int64_t size = before.numel();
  const ScalarType type = before.scalar_type();
  check_vector("before", before, size, type);
  check_vector("after", after, size, type);
  check_vector("out", result, size, type);
  check_rows("rows", rows, size);
  check_offsets(offsets, size);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t sets = coefficients.dim() == 2 ? coefficients.size(0) : 0, count = rows.size(0);
  STD_TORCH_CHECK((sets == segments || sets == 1) && coefficients.size(1) == count &&
                      coefficients.is_contiguous() &&
                      coefficients.scalar_type() == ScalarType::Double,
                  "coefficients must be contiguous float64 [1 or ", segments, ", ", count, "]");
  const bool accepted = is_true("accept", accept);
  const double beta = accepted ? relaxation : 1;
  std::vector<double> weights;
  for (int64_t s = 0; s < segments; ++s) {
    const double* const set = in<double>(coefficients) + (sets == 1 ? 0 : s * count);
    weights.insert(weights.end(), set, set + count);
  }
  Tensor largest = torch::stable::new_empty(before, {}, type);
  dispatch(type, rows.scalar_type(), [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    *out<T>(largest) = cpu::extrapolate(
        cpu::Extrapolate<T, S>{in<T>(before), in<T>(after), beta, in<S>(rows), rows.stride(0),
                               accepted ? count : 0, weights.data(), offsets, out<T>(result)},
        parallel);
  });
  return largest;
}

Tensor window_statistics(std::vector<Tensor> window, Tensor mean) {
  const int64_t size = mean.numel();
  const ScalarType type = mean.scalar_type();
  STD_TORCH_CHECK(!window.empty(), "the window is empty");
  check_vector("out", mean, size, type);
  for (const Tensor& iterate : window) check_vector("window", iterate, size, type);
  Tensor max_std = torch::stable::new_empty(mean, {}, type);
  dispatch(type, type, [&](auto t, auto s) {
    using T = decltype(t);
    if constexpr (std::is_same_v<T, decltype(s)>) {
      cpu::Window<T> args = {{}, size, out<T>(mean)};
      for (const Tensor& iterate : window) args.iterates.push_back(in<T>(iterate));
      *out<T>(max_std) = cpu::window_statistics(args, parallel);
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
    cpu::tsqr(
        cpu::Tsqr<T, S>{in<S>(rows), rows.stride(0), rows.size(0), column, offsets, out<T>(factor)},
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
      "Tensor(c!) residual_rows, int slot, Tensor(d!)? systems) -> Tensor");
  m.def(
      "extrapolate(Tensor before, Tensor after, float relaxation, Tensor rows, "
      "Tensor coefficients, int[] offsets, Tensor(a!) out, Tensor? accept=None) -> Tensor");
  m.def("window_statistics(Tensor[] window, Tensor(a!) out) -> Tensor");
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
