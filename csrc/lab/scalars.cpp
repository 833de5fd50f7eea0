// The conversions of scalar.h over arrays.

#include "arrays.h"

namespace aadl::lab {
namespace {

template <class S>
py::array widened(const py::array& from) {
  const int64_t size = from.size();
  const S* x = entries<S>(from, 1, size, "array");
  py::array_t<float> out(size);
  float* y = out.mutable_data();
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] = widen(x[i]);
  return out;
}

template <class S>
py::array narrowed(const py::array& from) {
  const int64_t size = from.size();
  const float* x = entries<float>(from, 1, size, "array");
  py::array out(dtype<S>(), std::vector<py::ssize_t>{size});
  S* y = static_cast<S*>(out.mutable_data());
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) y[i] = narrow<S>(x[i]);
  return out;
}

}  // namespace

void add_scalars(py::module_& m) {
  m.def("widen_half", &widened<Half>);
  m.def("widen_bfloat16", &widened<BFloat16>);
  m.def("narrow_half", &narrowed<Half>);
  m.def("narrow_bfloat16", &narrowed<BFloat16>);
}

}  // namespace aadl::lab
