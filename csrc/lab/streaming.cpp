// The kernels that go through the long vectors: push, extrapolate, window statistics.

#include <limits>

#include "arrays.h"

namespace aadl::lab {
namespace {

constexpr double kUnset = std::numeric_limits<double>::quiet_NaN();

py::array_t<double> unset(std::vector<py::ssize_t> shape) {
  py::array_t<double> out(shape);
  std::fill_n(out.mutable_data(), out.size(), kUnset);
  return out;
}

// `step_rows` and `residual_rows` are [rows, stride], `slot` -1 to measure only. Results that the
// kernel leaves alone are NaN.
py::dict push(const py::array& before, const py::array& after,
              const std::optional<py::array>& last_point,
              const std::optional<py::array>& last_residual, const std::vector<double>& rates,
              const Offsets& offsets, const py::array& residual, const py::array& step_rows,
              const py::array& residual_rows, int64_t slot, bool products, int64_t threads) {
  if (offsets.size() != rates.size() + 1 || residual_rows.ndim() != 2 || step_rows.ndim() != 2 ||
      slot < -1 || slot >= residual_rows.shape(0) || step_rows.shape(0) != residual_rows.shape(0) ||
      (slot >= 0 && !(last_point && last_residual))) {
    throw std::invalid_argument("rates, offsets, rows, slot and the last pair do not fit together");
  }
  const py::ssize_t segments = static_cast<py::ssize_t>(rates.size());
  const py::ssize_t rows = residual_rows.shape(0);
  auto right_side = unset({segments, rows});
  auto gram_row = unset({segments, rows});
  auto squared_norm = unset({segments});
  double row_norm = kUnset;
  const auto run = parallel(threads);
  const double max_step = with_types(before, residual_rows, [&](auto types) {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    const int64_t size = offsets.back();
    if (stride<S>(step_rows) != stride<S>(residual_rows)) {
      throw std::invalid_argument("step_rows and residual_rows must have one stride");
    }
    cpu::Push<T, S> args = {entries<T>(before, 1, size, "before"),
                            entries<T>(after, 1, size, "after"),
                            vector<T>(last_point, size, "last_point"),
                            vector<T>(last_residual, size, "last_residual"),
                            rates.data(),
                            offsets,
                            entries<T>(residual, 1, size, "residual"),
                            entries<S>(step_rows, 2, size, "step_rows"),
                            entries<S>(residual_rows, 2, size, "residual_rows"),
                            stride<S>(residual_rows),
                            rows,
                            slot,
                            products,
                            right_side.mutable_data(),
                            gram_row.mutable_data(),
                            squared_norm.mutable_data(),
                            kUnset,
                            kUnset};
    py::gil_scoped_release release;
    cpu::push(args, run);
    row_norm = args.row_norm;
    return args.max_step;
  });
  py::dict out;
  out["right_side"] = right_side;
  out["gram_row"] = gram_row;
  out["squared_norm"] = squared_norm;
  out["max_step"] = max_step;
  out["row_norm"] = row_norm;
  return out;
}

double extrapolate(const py::array& before, const py::array& after, double beta,
                   const py::array& rows,
                   const py::array_t<double, py::array::c_style>& coefficients,
                   const Offsets& offsets, const py::array& out, int64_t threads) {
  if (rows.ndim() != 2 || offsets.empty() || coefficients.ndim() != 2 ||
      coefficients.shape(0) + 1 != static_cast<py::ssize_t>(offsets.size()) ||
      coefficients.shape(1) != rows.shape(0)) {
    throw std::invalid_argument("rows are [m, n], coefficients [segments, m]");
  }
  const auto run = parallel(threads);
  return with_types(after, rows, [&](auto types) -> double {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    const int64_t size = offsets.back();
    const cpu::Extrapolate<T, S> args = {entries<T>(before, 1, size, "before"),
                                         entries<T>(after, 1, size, "after"),
                                         beta,
                                         entries<S>(rows, 2, size, "rows"),
                                         stride<S>(rows),
                                         rows.shape(0),
                                         coefficients.data(),
                                         offsets,
                                         entries<T>(out, 1, size, "out")};
    py::gil_scoped_release release;
    return cpu::extrapolate(args, run);
  });
}

double window_statistics(const py::array& rows, int64_t newest, const py::array& mean,
                         int64_t threads) {
  if (rows.ndim() != 2 || newest < 0 || newest >= rows.shape(0) || mean.ndim() != 1) {
    throw std::invalid_argument("rows are [t, n], newest is one of them, the mean a vector");
  }
  const auto run = parallel(threads);
  return with_types(mean, rows, [&](auto types) -> double {
    using T = typename decltype(types)::Vector;
    if (!std::is_same_v<T, typename decltype(types)::Storage>) {
      throw std::invalid_argument("rows and mean must have one dtype");
    }
    const int64_t size = mean.shape(0);
    const T* const first = entries<T>(rows, 2, size, "rows");
    cpu::Window<T> args = {{}, size, entries<T>(mean, 1, size, "mean")};
    for (int64_t k = 0; k < rows.shape(0); ++k) {
      if (k != newest) args.iterates.push_back(first + k * stride<T>(rows));
    }
    args.iterates.push_back(first + newest * stride<T>(rows));
    py::gil_scoped_release release;
    return cpu::window_statistics(args, run);
  });
}

}  // namespace

void add_streaming(py::module_& m) {
  m.def("push", &push, py::kw_only(), py::arg("before"), py::arg("after"),
        py::arg("last_point") = py::none(), py::arg("last_residual") = py::none(), py::arg("rates"),
        py::arg("offsets"), py::arg("residual"), py::arg("step_rows"), py::arg("residual_rows"),
        py::arg("slot") = -1, py::arg("products") = true, py::arg("threads") = 1);
  m.def("extrapolate", &extrapolate, py::kw_only(), py::arg("before"), py::arg("after"),
        py::arg("beta") = 1.0, py::arg("rows"), py::arg("coefficients"), py::arg("offsets"),
        py::arg("out"), py::arg("threads") = 1);
  m.def("window_statistics", &window_statistics, py::arg("rows"), py::kw_only(), py::arg("newest"),
        py::arg("mean"), py::arg("threads") = 1);
}

}  // namespace aadl::lab
