// The kernels that go through the long vectors: push, extrapolate, window statistics.

#include <limits>

#include "arrays.h"

namespace aadl::lab {
namespace {

// `step_rows` and `residual_rows` are [rows, stride], `slot` -1 to measure only, `systems`
// [segments, k, k] or None; returns the three figures.
std::vector<double> push(const py::array& before, const py::array& after,
                         const std::optional<py::array>& last_point,
                         const std::optional<py::array>& last_residual,
                         const std::vector<double>& rates, const Offsets& offsets,
                         const py::array& residual, const py::array& step_rows,
                         const py::array& residual_rows, int64_t slot,
                         const std::optional<bool>& paired,
                         const std::optional<py::array>& systems, int64_t threads) {
  std::vector<double> figures(3, std::numeric_limits<double>::quiet_NaN());
  const auto run = threads_of(threads);
  with_types(before, residual_rows, [&](auto types) {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    const auto args =
        push_of<T, S>(before, after, last_point, last_residual, rates, offsets, residual, step_rows,
                      residual_rows, slot, paired ? &*paired : nullptr, systems, figures.data());
    py::gil_scoped_release release;
    cpu::push(args, run);
  });
  return figures;
}

double extrapolate(const py::array& before, const py::array& after, double beta,
                   const py::array& rows,
                   const py::array_t<double, py::array::c_style>& coefficients,
                   const Offsets& offsets, const py::array& out, const std::optional<bool>& accept,
                   int64_t threads) {
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  if (rows.ndim() != 2 || offsets.empty() || coefficients.ndim() != 2 ||
      (coefficients.shape(0) != segments && coefficients.shape(0) != 1) ||
      coefficients.shape(1) != rows.shape(0)) {
    throw std::invalid_argument("rows are [m, n], coefficients [segments or 1, m]");
  }
  const auto run = threads_of(threads);
  return with_types(after, rows, [&](auto types) -> double {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    const int64_t size = offsets.back();
    T largest = std::numeric_limits<T>::quiet_NaN();
    const Extrapolate<T, S> args = {entries<T>(before, 1, size, "before"),
                                    entries<T>(after, 1, size, "after"),
                                    beta,
                                    entries<S>(rows, 2, size, "rows"),
                                    stride<S>(rows),
                                    rows.shape(0),
                                    coefficients.data(),
                                    coefficients.shape(0),
                                    offsets.data(),
                                    segments,
                                    accept ? &*accept : nullptr,
                                    entries<T>(out, 1, size, "out"),
                                    &largest};
    py::gil_scoped_release release;
    cpu::extrapolate(args, run);
    return largest;
  });
}

double window_statistics(const py::array& rows, int64_t newest, const py::array& mean,
                         int64_t threads) {
  if (rows.ndim() != 2 || newest < 0 || newest >= rows.shape(0) || mean.ndim() != 1) {
    throw std::invalid_argument("rows are [t, n], newest is one of them, the mean a vector");
  }
  const auto run = threads_of(threads);
  return with_types(mean, rows, [&](auto types) -> double {
    using T = typename decltype(types)::Vector;
    if (!std::is_same_v<T, typename decltype(types)::Storage>) {
      throw std::invalid_argument("rows and mean must have one dtype");
    }
    const int64_t size = mean.shape(0);
    const T* const first = entries<T>(rows, 2, size, "rows");
    std::vector<const T*> iterates;
    for (int64_t k = 0; k < rows.shape(0); ++k) {
      if (k != newest) iterates.push_back(first + k * stride<T>(rows));
    }
    iterates.push_back(first + newest * stride<T>(rows));
    T deviation = std::numeric_limits<T>::quiet_NaN();
    const Window<T> args = {iterates.data(), rows.shape(0), size, entries<T>(mean, 1, size, "mean"),
                            &deviation};
    py::gil_scoped_release release;
    cpu::window_statistics(args, run);
    return deviation;
  });
}

bool differs(const py::array& one, const py::array& other, int64_t threads) {
  const auto run = threads_of(threads);
  return with_type(one, [&](auto zero) {
    using T = decltype(zero);
    bool difference = false;
    const Difference<T> args = {entries<T>(one, 1, one.size(), "one"),
                                entries<T>(other, 1, one.size(), "other"), one.size(), &difference};
    py::gil_scoped_release release;
    cpu::differs(args, run);
    return difference;
  });
}

}  // namespace

void add_streaming(py::module_& m) {
  m.def("push", &push, py::kw_only(), py::arg("before"), py::arg("after"),
        py::arg("last_point") = py::none(), py::arg("last_residual") = py::none(), py::arg("rates"),
        py::arg("offsets"), py::arg("residual"), py::arg("step_rows"), py::arg("residual_rows"),
        py::arg("slot") = -1, py::arg("paired") = py::none(), py::arg("systems") = py::none(), py::arg("threads") = 1);
  m.def("extrapolate", &extrapolate, py::kw_only(), py::arg("before"), py::arg("after"),
        py::arg("beta") = 1.0, py::arg("rows"), py::arg("coefficients"), py::arg("offsets"),
        py::arg("out"), py::arg("accept") = py::none(), py::arg("threads") = 1);
  m.def("differs", &differs, py::arg("one"), py::arg("other"), py::kw_only(),
        py::arg("threads") = 1);
  m.def("window_statistics", &window_statistics, py::arg("rows"), py::kw_only(), py::arg("newest"),
        py::arg("mean"), py::arg("threads") = 1);
}

}  // namespace aadl::lab
