// Blocks of samples: sums, secant rows, products.

#include "arrays.h"

namespace aadl::lab {
namespace {

using Array = std::optional<py::array>;

// |gradient|^2 and gradient . direction.
std::pair<double, double> add_sample(const py::array& point_sum, const py::array& gradient_sum,
                                     const Array& noise_sum, const py::array& point,
                                     const py::array& anchor, const py::array& gradient,
                                     const Array& direction, double sign, int64_t threads) {
  const auto run = threads_of(threads);
  return with_type(point, [&](auto zero) -> std::pair<double, double> {
    using T = decltype(zero);
    const int64_t size = point.size();
    double figures[2];
    const Sample<T> args = {entries<T>(point_sum, 1, size, "point_sum"),
                            entries<T>(gradient_sum, 1, size, "gradient_sum"),
                            vector<T>(noise_sum, size, "noise_sum"),
                            entries<T>(point, 1, size, "point"),
                            entries<T>(anchor, 1, size, "anchor"),
                            entries<T>(gradient, 1, size, "gradient"),
                            vector<T>(direction, size, "direction"),
                            sign,
                            size,
                            figures};
    py::gil_scoped_release release;
    cpu::add_sample(args, run);
    return {figures[0], figures[1]};
  });
}

void push_block(const py::array& point_sum, const py::array& gradient_sum, const Array& noise_sum,
                int64_t count, const py::array& last_point, const py::array& last_gradient,
                const Array& step_row, const Array& gradient_row, const Array& noise_row,
                const std::optional<bool>& paired, const std::optional<bool>& accept,
                int64_t threads) {
  if (step_row.has_value() != gradient_row.has_value() ||
      noise_sum.has_value() != noise_row.has_value() || count < 1) {
    throw std::invalid_argument("the sums, their count and the rows do not fit together");
  }
  const py::array& stored = step_row ? *step_row : noise_row ? *noise_row : last_point;
  const auto run = threads_of(threads);
  with_types(last_point, stored, [&](auto types) {
    using T = typename decltype(types)::Vector;
    using S = typename decltype(types)::Storage;
    const auto args =
        block_means<T, S>(point_sum, gradient_sum, noise_sum, count, last_point, last_gradient,
                          step_row, gradient_row, noise_row, paired ? &*paired : nullptr, accept ? &*accept : nullptr);
    py::gil_scoped_release release;
    cpu::push_block(args, run);
  });
}

// Of one length.
std::vector<Entries> equal_entries(const std::vector<py::array>& arrays, int64_t size) {
  for (const py::array& array : arrays) {
    if (array.size() != size) throw std::invalid_argument("an array has another length");
  }
  return all_entries(arrays);
}

// [segments, rows, vectors]; starts as rubbish, which the kernel has to overwrite.
py::array_t<double> products(const std::vector<py::array>& rows,
                             const std::vector<py::array>& vectors, const Offsets& offsets,
                             int64_t threads) {
  if (offsets.empty()) throw std::invalid_argument("offsets must not be empty");
  const int64_t size = offsets.back();
  py::array_t<double> out({offsets.size() - 1, rows.size(), vectors.size()});
  std::fill_n(out.mutable_data(), out.size(), 7.0);
  const Products args = {equal_entries(rows, size), equal_entries(vectors, size), offsets.data(),
                         static_cast<int64_t>(offsets.size()) - 1, out.mutable_data()};
  const auto run = threads_of(threads);
  {
    py::gil_scoped_release release;
    cpu::products(args, run);
  }
  return out;
}

}  // namespace

void add_blocks(py::module_& m) {
  m.def("add_sample", &add_sample, py::kw_only(), py::arg("point_sum"), py::arg("gradient_sum"),
        py::arg("noise_sum") = py::none(), py::arg("point"), py::arg("anchor"), py::arg("gradient"),
        py::arg("direction") = py::none(), py::arg("sign") = 1.0, py::arg("threads") = 1);
  m.def("push_block", &push_block, py::kw_only(), py::arg("point_sum"), py::arg("gradient_sum"),
        py::arg("noise_sum") = py::none(), py::arg("count"), py::arg("last_point"),
        py::arg("last_gradient"), py::arg("step_row") = py::none(),
        py::arg("gradient_row") = py::none(), py::arg("noise_row") = py::none(),
        py::arg("paired") = py::none(), py::arg("accept") = py::none(),
        py::arg("threads") = 1);
  m.def("products", &products, py::arg("rows"), py::arg("vectors"), py::kw_only(),
        py::arg("offsets"), py::arg("threads") = 1);
}

}  // namespace aadl::lab
