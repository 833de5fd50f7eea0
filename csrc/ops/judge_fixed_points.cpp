#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor judge_fixed_points_(const Tensor& norm, const Tensor& size, const Tensor& sound,
                           Tensor residuals, Tensor counts, Tensor status, Tensor flags, double tol,
                           double abs_tol, double progress, int64_t patience, bool compares,
                           bool stores) {
  const On on(norm);
  const int64_t count = norm.numel();
  Tensor moves = torch::stable::new_empty(norm, {3, count}, ScalarType::Bool);
  judge_fixed_points(
      FixedPoints{entries<double>(on, "norm", norm, ScalarType::Double, {count}),
                  entries<double>(on, "size", size, ScalarType::Double, {count}),
                  entries<bool>(on, "sound", sound, ScalarType::Bool, {count}),
                  entries<double>(on, "residuals", residuals, ScalarType::Double, {3, count}),
                  entries<int64_t>(on, "counts", counts, ScalarType::Long, {2, count}),
                  entries<uint8_t>(on, "status", status, ScalarType::Byte, {count}),
                  entries<bool>(on, "flags", flags, ScalarType::Bool, {2, count}),
                  out<bool>(moves), count, tol, abs_tol, progress, patience, compares, stores},
      on.how);
  return moves;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(judge_fixed_points_)
