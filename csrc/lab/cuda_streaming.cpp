// The CUDA kernels that go through the long vectors, on the host: see cuda_on_host.h.

#include <limits>

#include "cuda_launch.h"

namespace aadl::lab {
namespace {

using Array = std::optional<py::array>;

// Set by tests, so that tiles of several chunks need no long vectors.
int64_t most_tiles = cuda::kMostTiles;

Launch launch(bool compensated = false) { return Launch(most_tiles, compensated); }

constexpr double kUnset = std::numeric_limits<double>::quiet_NaN();

using Flag = std::optional<bool>;

const bool* address(const Flag& flag) { return flag ? &*flag : nullptr; }

void copy(const std::vector<py::array>& from, const std::vector<py::array>& to, const Flag& when) {
  cuda::copy(all_pieces(from, to), address(when), launch());
}

double squared_norm(const std::vector<py::array>& arrays, bool compensated) {
  const std::vector<Entries> pieces = all_entries(arrays);
  double sum = kUnset;
  cuda::squared_norm(pieces, &sum, launch(compensated));
  return sum;
}

// `systems` [segments, k, k], or None; returns the three figures.
std::vector<double> push(const py::array& before, const py::array& after,
                         const py::array& last_point, const py::array& last_residual,
                         const std::vector<double>& rates, const Offsets& offsets,
                         const py::array& residual, const py::array& step_rows,
                         const py::array& residual_rows, int64_t slot, const Flag& paired,
                         const Array& systems, bool compensated) {
  return with_types(before, residual_rows, [&](auto types) {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    std::vector<double> figures(3, kUnset);
    const auto args =
        push_of<T, S>(before, after, last_point, last_residual, rates, offsets, residual, step_rows,
                      residual_rows, slot, address(paired), systems, figures.data());
    cuda::push(args, launch(compensated));
    return figures;
  });
}

double extrapolate(const py::array& before, const py::array& after, double beta,
                   const py::array& rows,
                   const py::array_t<double, py::array::c_style>& coefficients,
                   const Offsets& offsets, const py::array& out, const Flag& accept) {
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
                                    static_cast<int64_t>(offsets.size()) - 1,
                                    address(accept),
                                    entries<T>(out, 1, size, "out"),
                                    &largest};
    cuda::extrapolate(args, launch());
    return largest;
  });
}

bool differs(const py::array& one, const py::array& other) {
  return with_type(one, [&](auto zero) {
    using T = decltype(zero);
    bool difference = false;
    const Difference<T> args = {entries<T>(one, 1, one.size(), "one"),
                                entries<T>(other, 1, one.size(), "other"), one.size(), &difference};
    cuda::differs(args, launch());
    return difference;
  });
}

double window_statistics(const std::vector<py::array>& window, const py::array& mean) {
  return with_type(mean, [&](auto zero) -> double {
    using T = decltype(zero);
    T deviation = std::numeric_limits<T>::quiet_NaN();
    std::vector<const T*> iterates;
    for (const py::array& x : window) iterates.push_back(entries<T>(x, 1, mean.size(), "window"));
    const Window<T> args = {iterates.data(), static_cast<int64_t>(iterates.size()), mean.size(),
                            entries<T>(mean, 1, mean.size(), "mean"), &deviation};
    cuda::window_statistics(args, launch());
    return deviation;
  });
}

std::vector<double> add_sample(const py::array& point_sum, const py::array& gradient_sum,
                               const Array& noise_sum, const py::array& point,
                               const py::array& anchor, const py::array& gradient,
                               const Array& direction, double sign, bool compensated) {
  return with_type(point, [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = point.size();
    std::vector<double> figures(2, kUnset);
    const Sample<T> args = {entries<T>(point_sum, 1, size, "point_sum"),
                            entries<T>(gradient_sum, 1, size, "gradient_sum"),
                            vector<T>(noise_sum, size, "noise_sum"),
                            entries<T>(point, 1, size, "point"),
                            entries<T>(anchor, 1, size, "anchor"),
                            entries<T>(gradient, 1, size, "gradient"),
                            vector<T>(direction, size, "direction"),
                            sign,
                            size,
                            figures.data()};
    cuda::add_sample(args, launch(compensated));
    return figures;
  });
}

void push_block(const py::array& point_sum, const py::array& gradient_sum, const Array& noise_sum,
                int64_t count, const py::array& last_point, const py::array& last_gradient,
                const Array& step_row, const Array& gradient_row, const Array& noise_row,
                const Flag& paired, const Flag& accept) {
  const py::array& stored = step_row ? *step_row : noise_row ? *noise_row : last_point;
  with_types(last_point, stored, [&](auto types) {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    const auto args =
        block_means<T, S>(point_sum, gradient_sum, noise_sum, count, last_point, last_gradient,
                          step_row, gradient_row, noise_row, address(paired), address(accept));
    cuda::push_block(args, launch());
  });
}

// One of the verdicts, on arrays of float64, bool and int64.
void average(const py::array& control, const py::array& flags, const py::array& counts,
             double max_std, double threshold, double length) {
  const Verdicts to = {
      reinterpret_cast<Control*>(entries<double>(control, 1, sizeof(Control) / 8, "control")),
      static_cast<Flags*>(const_cast<void*>(flags.data())),
      static_cast<Counts*>(const_cast<void*>(counts.data()))};
  if (flags.nbytes() != sizeof(Flags) || counts.nbytes() != sizeof(Counts)) {
    throw std::invalid_argument("flags or counts have not the right length");
  }
  cuda::judge(Average{to, &max_std, true, threshold, length}, launch());
}

// [segments, rows, vectors]
py::array_t<double> products(const std::vector<py::array>& rows,
                             const std::vector<py::array>& vectors, const Offsets& offsets,
                             bool compensated) {
  py::array_t<double> out({offsets.size() - 1, rows.size(), vectors.size()});
  std::fill_n(out.mutable_data(), out.size(), kUnset);
  const Products args = {all_entries(rows), all_entries(vectors), offsets.data(),
                         static_cast<int64_t>(offsets.size()) - 1, out.mutable_data()};
  cuda::products(args, launch(compensated));
  return out;
}

}  // namespace

void add_cuda_streaming(py::module_& m) {
  m.def("set_most_tiles", [](int64_t count) { most_tiles = count; }, py::arg("count"));
  m.def("copy", &copy, py::arg("from_arrays"), py::arg("to_arrays"), py::kw_only(),
        py::arg("when") = py::none());
  m.def("squared_norm", &squared_norm, py::arg("arrays"), py::kw_only(),
        py::arg("compensated") = false);
  m.def("push", &push, py::kw_only(), py::arg("before"), py::arg("after"), py::arg("last_point"),
        py::arg("last_residual"), py::arg("rates"), py::arg("offsets"), py::arg("residual"),
        py::arg("step_rows"), py::arg("residual_rows"), py::arg("slot"),
        py::arg("paired") = py::none(), py::arg("systems") = py::none(), py::arg("compensated") = false);
  m.def("extrapolate", &extrapolate, py::kw_only(), py::arg("before"), py::arg("after"),
        py::arg("beta"), py::arg("rows"), py::arg("coefficients"), py::arg("offsets"),
        py::arg("out"), py::arg("accept") = py::none());
  m.def("differs", &differs, py::arg("one"), py::arg("other"));
  m.def("window_statistics", &window_statistics, py::arg("window"), py::arg("mean"));
  m.def("add_sample", &add_sample, py::kw_only(), py::arg("point_sum"), py::arg("gradient_sum"),
        py::arg("noise_sum") = py::none(), py::arg("point"), py::arg("anchor"), py::arg("gradient"),
        py::arg("direction") = py::none(), py::arg("sign") = 1.0, py::arg("compensated") = false);
  m.def("push_block", &push_block, py::kw_only(), py::arg("point_sum"), py::arg("gradient_sum"),
        py::arg("noise_sum") = py::none(), py::arg("count"), py::arg("last_point"),
        py::arg("last_gradient"), py::arg("step_row") = py::none(),
        py::arg("gradient_row") = py::none(), py::arg("noise_row") = py::none(),
        py::arg("paired") = py::none(), py::arg("accept") = py::none());
  m.def("average", &average, py::arg("control"), py::arg("flags"), py::arg("counts"),
        py::arg("max_std"), py::arg("threshold"), py::arg("length"));
  m.def("products", &products, py::arg("rows"), py::arg("vectors"), py::kw_only(),
        py::arg("offsets"), py::arg("compensated") = false);
}

}  // namespace aadl::lab
