// Lists of contiguous pieces: copies and squared norms.

#include <cmath>

#include "arrays.h"

namespace aadl::lab {
namespace {

void copy(const std::vector<py::array>& from, const std::vector<py::array>& to,
          const std::optional<bool>& when, int64_t threads) {
  const std::vector<Piece> pieces = all_pieces(from, to);
  const auto run = threads_of(threads);
  py::gil_scoped_release release;
  cpu::copy(pieces, when ? &*when : nullptr, run);
}

void copy_one(const py::array& from, const py::array& to, int64_t threads) {
  copy({from}, {to}, {}, threads);
}

double squared_norm(const std::vector<py::array>& arrays, int64_t threads) {
  const std::vector<Entries> pieces = all_entries(arrays);
  const auto run = threads_of(threads);
  py::gil_scoped_release release;
  double sum = NAN;
  cpu::squared_norm(pieces, &sum, run);
  return sum;
}

}  // namespace

void add_flat(py::module_& m) {
  m.def("copy", &copy_one, py::arg("from_array"), py::arg("to_array"), py::arg("threads") = 1);
  m.def("copy", &copy, py::arg("from_arrays"), py::arg("to_arrays"), py::kw_only(),
        py::arg("when") = py::none(), py::arg("threads") = 1);
  m.def("squared_norm", &squared_norm, py::arg("arrays"), py::arg("threads") = 1);
}

}  // namespace aadl::lab
