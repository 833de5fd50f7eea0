// TSQR and the small least-squares solve.

#include "arrays.h"

namespace aadl::lab {
namespace {

template <class T, class S>
py::array factor_of(const py::array& rows, const std::optional<py::array>& append,
                    const Offsets& offsets, int64_t threads) {
  const int64_t size = offsets.back();
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t columns = rows.shape(0) + (append ? 1 : 0);
  py::array_t<T> factor({segments, columns, columns});
  const Tsqr<T, S> args = {entries<S>(rows, 2, size, "rows"),
                           stride<S>(rows),
                           rows.shape(0),
                           vector<T>(append, size, "append"),
                           offsets.data(),
                           segments,
                           factor.mutable_data()};
  const auto run = threads_of(threads);
  py::gil_scoped_release release;
  cpu::tsqr(args, run);
  return std::move(factor);
}

// `working` is the dtype that is computed in.
py::array tsqr(const py::array& rows, const std::optional<py::array>& append,
               const Offsets& offsets, const py::object& working, int64_t threads) {
  if (rows.ndim() != 2 || offsets.empty()) throw std::invalid_argument("rows are [k, n]");
  const py::array kind(py::dtype::from_args(working), std::vector<py::ssize_t>{0});
  return with_wide_types(kind, rows, [&](auto types) {
    using Pair = decltype(types);
    return factor_of<typename Pair::Vector, typename Pair::Storage>(rows, append, offsets, threads);
  });
}

py::dict solve_secants(const py::array& system, bool factored, double ridge, double tolerance) {
  if (system.ndim() != 2 || system.shape(0) != system.shape(1) || system.shape(0) < 2 ||
      !(system.flags() & py::array::c_style)) {
    throw std::invalid_argument("system is one [k, k] matrix, row by row, k >= 2");
  }
  const int64_t k = system.shape(0);
  const double* matrix = entries<double>(system, 2, k, "system");
  py::array_t<double> gamma(k - 1);
  int64_t rank = -1;
  double condition = 0, reduction = 0;
  cpu::solve_secants(Secants{matrix, 1, k, factored, ridge, tolerance, gamma.mutable_data(), &rank,
                             &condition, &reduction},
                     threads_of(1));
  py::dict out;
  out["gamma"] = gamma;
  out["condition"] = condition;
  out["reduction"] = reduction;
  out["rank"] = rank;
  return out;
}

}  // namespace

void add_small(py::module_& m) {
  m.def("tsqr", &tsqr, py::arg("rows"), py::kw_only(), py::arg("append") = py::none(),
        py::arg("offsets"), py::arg("working"), py::arg("threads") = 1);
  m.def("solve_secants", &solve_secants, py::arg("system"), py::kw_only(), py::arg("factored"),
        py::arg("ridge") = 0.0, py::arg("tolerance") = 0.0);
}

}  // namespace aadl::lab
