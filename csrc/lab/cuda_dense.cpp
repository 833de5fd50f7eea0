// The CUDA kernels for TSQR and the small solves, on the host: see cuda_on_host.h.

#include <algorithm>
#include <cmath>
#include <limits>

#include "cuda_launch.h"

namespace aadl::lab {
namespace {

// Outputs before the kernel.
template <class T>
py::array_t<T> unset(const std::vector<py::ssize_t>& shape) {
  py::array_t<T> array(shape);
  std::fill_n(array.mutable_data(), array.size(), static_cast<T>(NAN));
  return array;
}

template <>
py::array_t<int64_t> unset(const std::vector<py::ssize_t>& shape) {
  py::array_t<int64_t> array(shape);
  std::fill_n(array.mutable_data(), array.size(), -1);
  return array;
}

// `working` is the dtype that is computed in.
py::array tsqr(const py::array& rows, const std::optional<py::array>& append,
               const Offsets& offsets, const py::object& working, int64_t most_tiles) {
  if (rows.ndim() != 2 || offsets.empty()) throw std::invalid_argument("rows are [k, n]");
  const py::array kind(py::dtype::from_args(working), std::vector<py::ssize_t>{0});
  return with_wide_types(kind, rows, [&](auto types) {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    const int64_t size = offsets.back(), segments = static_cast<int64_t>(offsets.size()) - 1;
    const int64_t columns = rows.shape(0) + (append ? 1 : 0);
    auto factor = unset<T>({segments, columns, columns});
    const Tsqr<T, S> args = {entries<S>(rows, 2, size, "rows"),
                             stride<S>(rows),
                             rows.shape(0),
                             vector<T>(append, size, "append"),
                             offsets.data(),
                             segments,
                             factor.mutable_data()};
    cuda::tsqr(args, Launch(most_tiles));
    return py::array(std::move(factor));
  });
}

const double* doubles(const py::array& array, const std::vector<py::ssize_t>& shape,
                      const char* name) {
  const bool fits =
      holds<double>(array) && (array.flags() & py::array::c_style) &&
      std::equal(shape.begin(), shape.end(), array.shape(), array.shape() + array.ndim());
  if (!fits) throw std::invalid_argument(std::string(name) + " does not fit: its dtype or shape");
  return static_cast<const double*>(array.data());
}

py::dict solve_secants(const py::array& systems, bool factored, double ridge, double tolerance) {
  if (systems.ndim() != 3) throw std::invalid_argument("systems are [problems, k, k]");
  const int64_t problems = systems.shape(0), k = systems.shape(1);
  auto gamma = unset<double>({problems, k - 1});
  auto rank = unset<int64_t>({problems});
  auto condition = unset<double>({problems}), reduction = unset<double>({problems});
  const Secants args = {doubles(systems, {problems, k, k}, "systems"),
                        problems,
                        k,
                        factored,
                        ridge,
                        tolerance,
                        gamma.mutable_data(),
                        rank.mutable_data(),
                        condition.mutable_data(),
                        reduction.mutable_data()};
  cuda::solve_secants(args, Launch());
  py::dict out;
  out["gamma"] = gamma, out["rank"] = rank;
  out["condition"] = condition, out["reduction"] = reduction;
  return out;
}

py::dict solve_subspace(const py::array& metric, const py::array& curvature,
                        const py::array& right_side, const py::array& noise,
                        const py::array& radius, double ridge, double floor, double shrinkage) {
  if (noise.ndim() != 3) throw std::invalid_argument("noise is [problems, m, samples]");
  const int64_t problems = noise.shape(0), m = noise.shape(1), samples = noise.shape(2);
  auto coefficients = unset<double>({problems, m}), eigenvalues = unset<double>({problems, m});
  auto slope = unset<double>({problems}), length = unset<double>({problems});
  auto reduction = unset<double>({problems});
  auto rank = unset<int64_t>({problems});
  const Subspace args = {doubles(metric, {problems, m, m}, "metric"),
                         doubles(curvature, {problems, m, m}, "curvature"),
                         doubles(right_side, {problems, m}, "right_side"),
                         doubles(noise, {problems, m, samples}, "noise"),
                         doubles(radius, {problems}, "radius"),
                         problems,
                         m,
                         samples,
                         ridge,
                         floor,
                         shrinkage,
                         coefficients.mutable_data(),
                         eigenvalues.mutable_data(),
                         slope.mutable_data(),
                         length.mutable_data(),
                         reduction.mutable_data(),
                         rank.mutable_data()};
  cuda::solve_subspace(args, Launch());
  py::dict out;
  out["coefficients"] = coefficients, out["curvature"] = eigenvalues;
  out["slope"] = slope, out["length"] = length;
  out["reduction"] = reduction, out["rank"] = rank;
  return out;
}

}  // namespace

void add_cuda_dense(py::module_& m) {
  m.def("tsqr", &tsqr, py::arg("rows"), py::kw_only(), py::arg("append") = py::none(),
        py::arg("offsets"), py::arg("working"), py::arg("most_tiles") = cuda::kMostTiles);
  m.def("solve_secants", &solve_secants, py::arg("systems"), py::kw_only(), py::arg("factored"),
        py::arg("ridge") = 0.0, py::arg("tolerance") = 0.0);
  m.def("solve_subspace", &solve_subspace, py::arg("metric"), py::arg("curvature"),
        py::arg("right_side"), py::arg("noise"), py::kw_only(), py::arg("radius"),
        py::arg("ridge") = 1e-4, py::arg("floor") = 0.01, py::arg("shrinkage") = 4.0);
}

}  // namespace aadl::lab
