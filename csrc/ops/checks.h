// Checks of arguments with the offending values in the message, and views of tensors as pointers.
// `on` is the device of an op: op.h.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../common/records.h"
#include "../common/scalar.h"

namespace aadl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

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

// Calls f(T{}) for the type of working vectors.
template <class F>
void dispatch(ScalarType vectors, F&& f) {
  if (vectors == ScalarType::Float) return f(float{});
  if (vectors == ScalarType::Double) return f(double{});
  STD_TORCH_CHECK(false, "vectors must be float32 or float64");
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

// Refuses a device on which no kernel can run. `why` is asked once of each; it says "" where they can.
template <class Why>
void check_runs_on(int32_t device, const Why& why) {
  static std::mutex one_at_a_time;
  static std::map<int32_t, std::string> refusals;
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  const auto [found, is_new] = refusals.try_emplace(device);
  if (is_new) found->second = why();
  STD_TORCH_CHECK(found->second.empty(), "no kernels run on CUDA device ", device, ": ",
                  found->second);
}

inline Tensor doubles(const Tensor& like, std::vector<int64_t> shape) {
  return torch::stable::new_empty(like, shape, ScalarType::Double);
}

// A vector like the others of an op.
template <class On>
void check_vector(const On& on, const char* name, const Tensor& tensor, int64_t size,
                  ScalarType type) {
  on.check(name, tensor);
  STD_TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == size && tensor.is_contiguous(), name,
                  " must be a contiguous vector of ", size, " entries, got ", tensor.dim(),
                  " dimensions and ", tensor.numel(), " entries");
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, " must have the dtype of the other vectors");
}

template <class On>
void check_rows(const On& on, const char* name, const Tensor& rows, int64_t size) {
  on.check(name, rows);
  STD_TORCH_CHECK(rows.dim() == 2 && rows.size(1) == size && (size < 2 || rows.stride(1) == 1),
                  name, " must be [m, ", size, "] with contiguous rows, got ", rows.dim(),
                  " dimensions and ", rows.numel(), " entries");
}

// Returns how many segments there are.
inline int64_t check_offsets(const std::vector<int64_t>& offsets, int64_t size) {
  STD_TORCH_CHECK(!offsets.empty() && offsets.front() == 0 && offsets.back() == size,
                  "offsets must begin with 0 and end with ", size);
  for (size_t s = 1; s < offsets.size(); ++s) {
    STD_TORCH_CHECK(offsets[s - 1] <= offsets[s], "offsets must not decrease, got ", offsets[s - 1],
                    " before ", offsets[s]);
  }
  return static_cast<int64_t>(offsets.size()) - 1;
}

// Makes of one number for all segments one for each.
inline void one_each(const char* name, std::vector<double>& numbers, int64_t segments) {
  if (numbers.size() == 1) numbers.resize(segments, numbers[0]);
  STD_TORCH_CHECK(static_cast<int64_t>(numbers.size()) == segments, "got ", numbers.size(), " ",
                  name, " for ", segments, " segments");
}

// Sums of points and, perhaps, of gradients and of noise; `least` of them.
inline std::tuple<Tensor, std::optional<Tensor>, std::optional<Tensor>> three_sums(
    const std::vector<Tensor>& sums, size_t least) {
  STD_TORCH_CHECK(least <= sums.size() && sums.size() <= 3, "got ", sums.size(),
                  " sums; expected ", least, " to 3");
  const auto at = [&](size_t i) {
    return i < sums.size() ? std::optional<Tensor>(sums[i]) : std::nullopt;
  };
  return {sums[0], at(1), at(2)};
}

// Where a tensor begins and ends; one that is empty, or has gaps between entries, nowhere.
struct Span {
  const char* begin = nullptr;
  const char* end = nullptr;

  explicit Span(const Tensor& x) {
    if (!x.is_contiguous()) return;
    begin = static_cast<const char*>(x.const_data_ptr());
    end = begin + x.numel() * static_cast<int64_t>(x.element_size());
  }
};

// What is changed in place must share no memory with the other arguments; `same`: it may be one of
// them. Of tensors with gaps between entries nothing is said, as in torch. Null is none.
inline void check_apart(const std::vector<const Tensor*>& changed,
                        const std::vector<const Tensor*>& others, bool same = false) {
  std::vector<Span> targets;
  const auto check = [&](const Span& other, bool may_be_one) {
    for (const Span& one : targets) {
      if (one.begin >= other.end || other.begin >= one.end) continue;
      if (may_be_one && one.begin == other.begin && one.end == other.end) continue;
      STD_TORCH_CHECK(false, "a tensor of ", one.end - one.begin,
                      " bytes that is changed in place overlaps another of ",
                      other.end - other.begin, "; pass separate tensors");
    }
  };
  for (const Tensor* one : changed) {
    if (!one) continue;
    const Span span(*one);
    check(span, false);
    targets.push_back(span);
  }
  for (const Tensor* other : others) {
    if (other) check(Span(*other), same);
  }
}

// Where they are, or null.
inline const Tensor* address(const std::optional<Tensor>& tensor) {
  return tensor ? &*tensor : nullptr;
}

// Where the squared errors of columns are; of more than these if it may be `wider`; null for none.
template <class On>
double* check_noise(const On& on, const std::optional<Tensor>& noise, int64_t problems,
                    int64_t columns, bool wider = false) {
  if (!noise) return nullptr;
  on.check("noise", *noise);
  STD_TORCH_CHECK(noise->dim() == 2 && noise->size(0) == problems &&
                      (noise->size(1) == columns || (wider && noise->size(1) > columns)) &&
                      noise->is_contiguous() && noise->scalar_type() == ScalarType::Double,
                  "noise must be contiguous float64 [", problems, ", ", columns,
                  wider ? " or more]" : "]");
  return out<double>(*noise);
}

// Where so many numbers are.
template <class On>
const double* numbers(const On& on, const char* name, const Tensor& tensor, int64_t count) {
  on.check(name, tensor);
  STD_TORCH_CHECK(tensor.numel() == count && tensor.is_contiguous() &&
                      tensor.scalar_type() == ScalarType::Double,
                  name, " must be ", count, " contiguous float64 numbers, got ", tensor.numel());
  return in<double>(tensor);
}

// Where the entries of a tensor of this type and shape are, to be changed.
template <class T, class On>
T* entries(const On& on, const char* name, const Tensor& tensor, ScalarType type,
           std::initializer_list<int64_t> shape) {
  on.check(name, tensor);
  bool fits = tensor.dim() == static_cast<int64_t>(shape.size());
  int64_t dimension = 0;
  for (const int64_t size : shape) fits = fits && tensor.size(dimension++) == size;
  STD_TORCH_CHECK(fits && tensor.is_contiguous() && tensor.scalar_type() == type, name,
                  " must be contiguous, of its type and shape, got ", tensor.dim(),
                  " dimensions and ", tensor.numel(), " entries");
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Where a flag is; null for none, which counts as true.
template <class On>
const bool* check_flag(const On& on, const char* name, const std::optional<Tensor>& flag) {
  if (!flag) return nullptr;
  on.check(name, *flag);
  STD_TORCH_CHECK(flag->dim() == 0 && flag->scalar_type() == ScalarType::Bool, name,
                  " must be bool [], got ", flag->dim(), " dimensions");
  return static_cast<const bool*>(flag->const_data_ptr());
}

}  // namespace aadl
