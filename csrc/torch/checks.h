// Checks of arguments with the offending values in the message, and views of tensors as pointers.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "../kernels/cpu/kernels.h"

namespace aadl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class T>
constexpr ScalarType scalar_type_of();
template <>
constexpr ScalarType scalar_type_of<float>() {
  return ScalarType::Float;
}
template <>
constexpr ScalarType scalar_type_of<double>() {
  return ScalarType::Double;
}
template <>
constexpr ScalarType scalar_type_of<BFloat16>() {
  return ScalarType::BFloat16;
}
template <>
constexpr ScalarType scalar_type_of<Half>() {
  return ScalarType::Half;
}

inline void check_vector(const char* name, const Tensor& tensor, int64_t size, ScalarType type) {
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size && tensor.is_contiguous(), name,
                  " must be a contiguous vector of ", size, " entries, got ", tensor.dim(),
                  " dimensions and ", tensor.numel(), " entries");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must have the dtype of the other vectors");
}

inline void check_rows(const char* name, const Tensor& rows, int64_t size) {
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == size && (size < 2 || rows.stride(1) == 1),
                  name, " must be [m, ", size, "] with contiguous rows, got ", rows.dim(),
                  " dimensions and ", rows.numel(), " entries");
}

inline void check_offsets(const std::vector<int64_t>& offsets, int64_t size) {
  STD_TORCH_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == size,
                  "offsets must begin with 0 and end with ", size);
  for (size_t s = 1; s < offsets.size(); ++s) {
    STD_TORCH_CHECK(offsets[s - 1] <= offsets[s], "offsets must not decrease, got ", offsets[s - 1],
                    " before ", offsets[s]);
  }
}

// Where a flag is; null for none, which counts as true.
inline const bool* check_flag(const char* name, const std::optional<Tensor>& flag) {
  STD_TORCH_CHECK(!flag || (flag->dim() == 0 && flag->scalar_type() == ScalarType::Bool), name,
                  " must be bool [], got ", flag ? flag->dim() : 0, " dimensions");
  return flag ? static_cast<const bool*>(flag->const_data_ptr()) : nullptr;
}

// The same, read: for ops on the CPU.
inline bool is_true(const char* name, const std::optional<Tensor>& flag) {
  const bool* const there = check_flag(name, flag);
  return !there || *there;
}

// What the arguments of an op must be together, on any device.

inline void check_push(int64_t size, const std::vector<double>& rates,
                       const std::vector<int64_t>& offsets, const Tensor& step_rows,
                       const Tensor& residual_rows, int64_t slot,
                       const std::optional<Tensor>& systems) {
  check_rows("step_rows", step_rows, size);
  check_rows("residual_rows", residual_rows, size);
  check_offsets(offsets, size);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t rows = residual_rows.size(0);
  STD_TORCH_CHECK(static_cast<int64_t>(rates.size()) == segments, "got ", rates.size(),
                  " rates for ", segments, " segments");
  STD_TORCH_CHECK(step_rows.size(0) == rows && step_rows.stride(0) == residual_rows.stride(0) &&
                      step_rows.scalar_type() == residual_rows.scalar_type(),
                  "step_rows and residual_rows must be alike");
  STD_TORCH_CHECK(-1 <= slot && slot < rows, "slot is ", slot, " of ", rows, " rows");
  const int64_t k = systems ? systems->size(1) : 0;
  STD_TORCH_CHECK(!systems || (systems->dim() == 3 && systems->size(0) == segments &&
                               systems->size(2) == k && k > rows && systems->is_contiguous() &&
                               systems->scalar_type() == ScalarType::Double),
                  "systems must be contiguous float64 [", segments, ", k, k] with k > ", rows);
}

inline void check_block(int64_t count, const Tensor& step_rows, const Tensor& gradient_rows,
                        const Tensor& noise_rows, int64_t slot, int64_t noise_slot,
                        bool has_noise) {
  const ScalarType storage = step_rows.scalar_type();
  STD_TORCH_CHECK(count > 0, "count is ", count, "; a block has at least one sample");
  STD_TORCH_CHECK(gradient_rows.scalar_type() == storage && noise_rows.scalar_type() == storage,
                  "all rows must have one dtype");
  STD_TORCH_CHECK(-1 <= slot && slot < step_rows.size(0) && slot < gradient_rows.size(0) &&
                      (noise_slot >= 0) == has_noise && noise_slot < noise_rows.size(0),
                  "there is no row ", slot, " or no noise row ", noise_slot);
}

inline void check_subspace(const Tensor& metric, const Tensor& curvature, const Tensor& right_side,
                           const Tensor& noise, const Tensor& radius) {
  for (const Tensor* x : {&metric, &curvature, &right_side, &noise, &radius}) {
    STD_TORCH_CHECK(x->is_contiguous() && x->scalar_type() == ScalarType::Double,
                    "all matrices must be contiguous float64");
  }
  STD_TORCH_CHECK(right_side.dim() == 2 && noise.dim() == 3, "expected [S, m] and [S, m, J]");
  const int64_t systems = right_side.size(0), m = right_side.size(1), samples = noise.size(2);
  STD_TORCH_CHECK(metric.numel() == systems * m * m && curvature.numel() == systems * m * m &&
                      noise.numel() == systems * m * samples && radius.numel() == systems,
                  "matrices do not fit to ", systems, " systems of ", m);
}

inline Type kernel_type(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::BFloat16:
      return Type::kBFloat16;
    case ScalarType::Half:
      return Type::kHalf;
    default:
      STD_TORCH_CHECK(false, "tensors must be float32, float64, bfloat16 or float16");
  }
}

template <class T>
const T* in(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* out(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls f(T{}, S{}) for the types of working vectors and of rows.
template <class F>
void dispatch(ScalarType vectors, ScalarType rows, F&& f) {
  if (vectors == ScalarType::Float && rows == ScalarType::Float) return f(float{}, float{});
  if (vectors == ScalarType::Float && rows == ScalarType::BFloat16) return f(float{}, BFloat16{});
  if (vectors == ScalarType::Float && rows == ScalarType::Half) return f(float{}, Half{});
  if (vectors == ScalarType::Double && rows == ScalarType::Double) return f(double{}, double{});
  if (vectors == ScalarType::Double && rows == ScalarType::Float) return f(double{}, float{});
  STD_TORCH_CHECK(false,
                  "vectors must be float32 or float64; rows of the same dtype, of float32, "
                  "or (with float32 vectors) of bfloat16 or float16");
}

inline Tensor doubles(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, shape, ScalarType::Double);
}

// torch's own threads; a single block stays on this one.
inline void parallel(int64_t count, const std::function<void(int64_t)>& body) {
  if (count == 1) return body(0);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

}  // namespace aadl
