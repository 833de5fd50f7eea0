// Lists of contiguous pieces: copies and squared norms.

#include "arrays.h"

namespace aadl::lab {
namespace {

void copy(const std::vector<py::array>& from, const std::vector<py::array>& to, int64_t threads) {
  const std::vector<Piece> pieces = all_pieces(from, to, cpu::copies);
  const auto run = parallel(threads);
  py::gil_scoped_release release;
  cpu::copy(pieces, run);
}

void copy_one(const py::array& from, const py::array& to, int64_t threads) {
  copy({from}, {to}, threads);
}

double squared_norm(const std::vector<py::array>& arrays, int64_t threads) {
  const std::vector<Entries> pieces = all_entries(arrays);
  const auto run = parallel(threads);
  py::gil_scoped_release release;
  return cpu::squared_norm(pieces, run);
}

}  // namespace

void add_flat(py::module_& m) {
  m.def("copy", &copy_one, py::arg("from_array"), py::arg("to_array"), py::arg("threads") = 1);
  m.def("copy", &copy, py::arg("from_arrays"), py::arg("to_arrays"), py::arg("threads") = 1);
  m.def("squared_norm", &squared_norm, py::arg("arrays"), py::arg("threads") = 1);
}

}  // namespace aadl::lab
