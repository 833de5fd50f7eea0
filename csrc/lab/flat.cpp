// Lists of contiguous pieces: copies and squared norms.

#include "arrays.h"

namespace aadl::lab {
namespace {

template <class S>
cpu::Entries piece_of(const py::array& array, cpu::Type type) {
  return {entries<S>(array, 1, array.size(), "array"), type, array.size()};
}

cpu::Entries piece(const py::array& array) {
  if (holds<float>(array)) return piece_of<float>(array, cpu::Type::kFloat);
  if (holds<double>(array)) return piece_of<double>(array, cpu::Type::kDouble);
  if (holds<BFloat16>(array)) return piece_of<BFloat16>(array, cpu::Type::kBFloat16);
  if (holds<Half>(array)) return piece_of<Half>(array, cpu::Type::kHalf);
  throw std::invalid_argument("no kernel for arrays of this dtype");
}

void copy(const std::vector<py::array>& from, const std::vector<py::array>& to, int64_t threads) {
  if (from.size() != to.size()) {
    throw std::invalid_argument("there must be as many arrays to copy to as to copy from");
  }
  std::vector<cpu::Piece> pieces;
  for (size_t i = 0; i < from.size(); ++i) {
    const cpu::Entries source = piece(from[i]), target = piece(to[i]);
    if (source.count != target.count || !cpu::copies(source.type, target.type)) {
      throw std::invalid_argument("no copy between arrays of these lengths or dtypes");
    }
    pieces.push_back(
        {source.begin, source.type, const_cast<void*>(target.begin), target.type, source.count});
  }
  const auto run = parallel(threads);
  py::gil_scoped_release release;
  cpu::copy(pieces, run);
}

void copy_one(const py::array& from, const py::array& to, int64_t threads) {
  copy({from}, {to}, threads);
}

double squared_norm(const std::vector<py::array>& arrays, int64_t threads) {
  std::vector<cpu::Entries> pieces;
  for (const py::array& array : arrays) pieces.push_back(piece(array));
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
