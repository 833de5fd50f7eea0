// NumPy arrays as the kernels want them, and threads to run them on.
//
// A storage type has a NumPy dtype each: float32, float64, float16, and uint16 for the bits of a
// bfloat16, which NumPy does not know. Arrays are never converted or copied: what does not fit is
// an error.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "common/scalar.h"
#include "cpu/kernels.h"

namespace aadl::lab {

namespace py = pybind11;
using Offsets = std::vector<int64_t>;

// Runs blocks on `threads` threads, the calling one among them, each taking the next that is left.
cpu::Threads threads_of(int64_t threads);

template <class S>
py::dtype dtype();
template <>
inline py::dtype dtype<float>() {
  return py::dtype("float32");
}
template <>
inline py::dtype dtype<double>() {
  return py::dtype("float64");
}
template <>
inline py::dtype dtype<Half>() {
  return py::dtype("float16");
}
template <>
inline py::dtype dtype<BFloat16>() {
  return py::dtype("uint16");
}

template <class S>
bool holds(const py::array& array) {
  return array.dtype().is(dtype<S>()) || array.dtype().equal(dtype<S>());
}

template <class S>
constexpr py::ssize_t kSize = sizeof(S);

// Checks that rows are contiguous, of S and at least `size` long (exactly, if a vector).
template <class S>
S* entries(const py::array& array, int64_t dimensions, int64_t size, const char* name) {
  bool fits = array.ndim() == dimensions && holds<S>(array);
  if (fits) {
    const int64_t length = array.shape(dimensions - 1);
    fits = dimensions == 1 ? length == size : length >= size;
    if (array.size() > 1) {
      fits = fits && (length < 2 || array.strides(dimensions - 1) == kSize<S>) &&
             reinterpret_cast<uintptr_t>(array.data()) % alignof(S) == 0;
    }
  }
  if (!fits) {
    throw std::invalid_argument(std::string(name) + " does not fit: its dtype, shape or strides");
  }
  return const_cast<S*>(static_cast<const S*>(array.data()));
}

template <class S>
Entries entries_of(const py::array& array, Type type) {
  return {entries<S>(array, 1, array.size(), "array"), array.size(), type};
}

// A vector of any storage type.
inline Entries any_entries(const py::array& array) {
  if (holds<float>(array)) return entries_of<float>(array, Type::kFloat);
  if (holds<double>(array)) return entries_of<double>(array, Type::kDouble);
  if (holds<BFloat16>(array)) return entries_of<BFloat16>(array, Type::kBFloat16);
  if (holds<Half>(array)) return entries_of<Half>(array, Type::kHalf);
  throw std::invalid_argument("no kernel for arrays of this dtype");
}

inline std::vector<Entries> all_entries(const std::vector<py::array>& arrays) {
  std::vector<Entries> all;
  for (const py::array& array : arrays) all.push_back(any_entries(array));
  return all;
}

// Copies for which there are kernels.
inline std::vector<Piece> all_pieces(const std::vector<py::array>& from,
                                     const std::vector<py::array>& to) {
  if (from.size() != to.size()) {
    throw std::invalid_argument("there must be as many arrays to copy to as to copy from");
  }
  std::vector<Piece> pieces;
  for (size_t i = 0; i < from.size(); ++i) {
    const Entries source = any_entries(from[i]), target = any_entries(to[i]);
    if (source.count != target.count || !copies(source.type, target.type)) {
      throw std::invalid_argument("no copy between arrays of these lengths or dtypes");
    }
    pieces.push_back(
        {source.begin, const_cast<void*>(target.begin), source.count, source.type, target.type});
  }
  return pieces;
}

template <class S>
S* vector(const std::optional<py::array>& array, int64_t size, const char* name) {
  return array ? entries<S>(*array, 1, size, name) : nullptr;
}

template <class S>
int64_t stride(const py::array& rows) {
  return rows.shape(0) < 2 ? rows.shape(1) : rows.strides(0) / static_cast<int64_t>(sizeof(S));
}

template <class T, class S>
struct Types {
  using Vector = T;
  using Storage = S;
};

// Calls f with a zero of the type of a vector.
template <class F>
auto with_type(const py::array& vector, const F& f) {
  if (holds<double>(vector)) return f(double{});
  if (holds<float>(vector)) return f(float{});
  throw std::invalid_argument("no kernel for vectors of this dtype");
}

// Calls f with the Types of a vector and of rows, if the kernels know this pair.
template <class F>
auto with_types(const py::array& vector, const py::array& rows, const F& f) {
  if (holds<double>(vector)) {
    if (holds<double>(rows)) return f(Types<double, double>());
    if (holds<float>(rows)) return f(Types<double, float>());
  } else if (holds<float>(vector)) {
    if (holds<float>(rows)) return f(Types<float, float>());
    if (holds<BFloat16>(rows)) return f(Types<float, BFloat16>());
    if (holds<Half>(rows)) return f(Types<float, Half>());
  }
  throw std::invalid_argument("no kernel for vectors and rows of these dtypes");
}

// Calls f with the Types of a vector and of rows if both are float32 or float64: those of a factor.
template <class F>
auto with_wide_types(const py::array& vector, const py::array& rows, const F& f) {
  if (holds<float>(rows) && holds<float>(vector)) return f(Types<float, float>());
  if (holds<float>(rows) && holds<double>(vector)) return f(Types<double, float>());
  if (holds<double>(rows) && holds<double>(vector)) return f(Types<double, double>());
  throw std::invalid_argument("no kernel for vectors and rows of these dtypes");
}

// The arguments of push.
template <class T, class S>
Push<T, S> push_of(const py::array& before, const py::array& after,
                   const std::optional<py::array>& last_point,
                   const std::optional<py::array>& last_residual, const std::vector<double>& rates,
                   const Offsets& offsets, const py::array& residual, const py::array& step_rows,
                   const py::array& residual_rows, int64_t slot, const bool* paired,
                   const std::optional<py::array>& systems, double* figures) {
  const int64_t size = offsets.back(), k = systems ? systems->shape(2) : 0;
  if (offsets.size() != rates.size() + 1 || residual_rows.ndim() != 2 || step_rows.ndim() != 2 ||
      slot < -1 || slot >= residual_rows.shape(0) || step_rows.shape(0) != residual_rows.shape(0) ||
      stride<S>(step_rows) != stride<S>(residual_rows) ||
      (slot >= 0 && !(last_point && last_residual)) || (systems && k <= residual_rows.shape(0))) {
    throw std::invalid_argument("rates, offsets, rows, slot and systems do not fit together");
  }
  return {entries<T>(before, 1, size, "before"),
          entries<T>(after, 1, size, "after"),
          vector<T>(last_point, size, "last_point"),
          vector<T>(last_residual, size, "last_residual"),
          rates.data(),
          offsets.data(),
          static_cast<int64_t>(rates.size()),
          entries<T>(residual, 1, size, "residual"),
          entries<S>(step_rows, 2, size, "step_rows"),
          entries<S>(residual_rows, 2, size, "residual_rows"),
          stride<S>(residual_rows),
          residual_rows.shape(0),
          slot,
          paired,
          systems ? entries<double>(*systems, 3, k, "systems") : nullptr,
          k,
          figures};
}

// The arguments of push_block; all arrays have the length of `last_point`.
template <class T, class S>
BlockMeans<T, S> block_means(const py::array& point_sum, const py::array& gradient_sum,
                             const std::optional<py::array>& noise_sum, int64_t count,
                             const py::array& last_point, const py::array& last_gradient,
                             const std::optional<py::array>& step_row,
                             const std::optional<py::array>& gradient_row,
                             const std::optional<py::array>& noise_row, const bool* paired,
                             const bool* accept) {
  const int64_t size = last_point.size();
  return {entries<T>(point_sum, 1, size, "point_sum"),
          entries<T>(gradient_sum, 1, size, "gradient_sum"),
          vector<T>(noise_sum, size, "noise_sum"),
          count,
          entries<T>(last_point, 1, size, "last_point"),
          entries<T>(last_gradient, 1, size, "last_gradient"),
          vector<S>(step_row, size, "step_row"),
          vector<S>(gradient_row, size, "gradient_row"),
          vector<S>(noise_row, size, "noise_row"),
          size,
          paired,
          accept};
}

void add_blocks(py::module_& m);
void add_cuda_dense(py::module_& m);
void add_cuda_emulation(py::module_& m);
void add_cuda_streaming(py::module_& m);
void add_flat(py::module_& m);
void add_memory(py::module_& m);
void add_scalars(py::module_& m);
void add_small(py::module_& m);
void add_streaming(py::module_& m);

}  // namespace aadl::lab
