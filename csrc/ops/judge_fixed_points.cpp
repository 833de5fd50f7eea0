#include "op.h"

namespace aadl {
namespace {

template <class T, class On>
T* rows_of(const On& on, const char* name, const Tensor& tensor, ScalarType type, int64_t rows,
           int64_t count) {
  on.check(name, tensor);
  const bool fits = rows == 0 ? tensor.dim() == 1 && tensor.size(0) == count
                              : tensor.dim() == 2 && tensor.size(0) == rows && tensor.size(1) == count;
  STD_TORCH_CHECK(fits && tensor.is_contiguous() && tensor.scalar_type() == type, name,
                  " must be contiguous and of its type, for ", count, " samples, got ",
                  tensor.numel(), " entries");
  return static_cast<T*>(tensor.mutable_data_ptr());
}

template <class On>
Tensor judge_fixed_points_(const Tensor& norm, const Tensor& size, const Tensor& sound,
                           Tensor residuals, Tensor counts, Tensor status, Tensor flags, double tol,
                           double abs_tol, double progress, int64_t patience, bool compares,
                           bool stores) {
  const On on(norm);
  const int64_t count = norm.numel();
  Tensor moves = torch::stable::new_empty(norm, {3, count}, ScalarType::Bool);
  judge_fixed_points(
      FixedPoints{rows_of<double>(on, "norm", norm, ScalarType::Double, 0, count),
                  rows_of<double>(on, "size", size, ScalarType::Double, 0, count),
                  rows_of<bool>(on, "sound", sound, ScalarType::Bool, 0, count),
                  rows_of<double>(on, "residuals", residuals, ScalarType::Double, 3, count),
                  rows_of<int64_t>(on, "counts", counts, ScalarType::Long, 2, count),
                  rows_of<uint8_t>(on, "status", status, ScalarType::Byte, 0, count),
                  rows_of<bool>(on, "flags", flags, ScalarType::Bool, 2, count),
                  out<bool>(moves), count, tol, abs_tol, progress, patience, compares, stores},
      on.how);
  return moves;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(judge_fixed_points_)
