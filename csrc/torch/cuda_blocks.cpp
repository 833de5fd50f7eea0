// Ops on blocks of samples, on CUDA tensors.

#include <optional>
#include <tuple>

#include "cuda.h"

namespace aadl {
namespace {

Tensor add_sample(Tensor point_sum, Tensor gradient_sum, std::optional<Tensor> noise_sum,
                  const Tensor& point, const Tensor& anchor, const Tensor& gradient, double sign,
                  std::optional<Tensor> direction) {
  const OnDevice on(point);
  const int64_t size = point.numel();
  const ScalarType type = point.scalar_type();
  const auto check = [&](const char* name, const Tensor& vector) {
    on.check(name, vector);
    check_vector(name, vector, size, type);
  };
  check("point_sum", point_sum);
  check("gradient_sum", gradient_sum);
  if (noise_sum) check("noise_sum", *noise_sum);
  check("point", point);
  check("anchor", anchor);
  check("gradient", gradient);
  if (direction) check("direction", *direction);
  Tensor figures = doubles(point, {2});
  dispatch(type, type, [&](auto t, auto s) {
    using T = decltype(t);
    if constexpr (std::is_same_v<T, decltype(s)>) {
      const cuda::Sample<T> args = {out<T>(point_sum),
                                    out<T>(gradient_sum),
                                    noise_sum ? out<T>(*noise_sum) : nullptr,
                                    in<T>(point),
                                    in<T>(anchor),
                                    in<T>(gradient),
                                    direction ? in<T>(*direction) : nullptr,
                                    sign,
                                    size,
                                    out<double>(figures),
                                    cuda::slow_float64(on.device)};
      const Workspace workspace(point, cuda::sample_workspace(args));
      cuda::add_sample(args, workspace.data(), on.stream);
    }
  });
  return figures;
}

void push_block(Tensor point_sum, Tensor gradient_sum, std::optional<Tensor> noise_sum,
                int64_t count, Tensor last_point, Tensor last_gradient, Tensor step_rows,
                Tensor gradient_rows, Tensor noise_rows, int64_t slot, int64_t noise_slot,
                std::optional<Tensor> accept) {
  const OnDevice on(last_point);
  const int64_t size = last_point.numel();
  const ScalarType type = last_point.scalar_type(), storage = step_rows.scalar_type();
  const auto check = [&](const char* name, const Tensor& vector) {
    on.check(name, vector);
    check_vector(name, vector, size, type);
  };
  const auto check_ring = [&](const char* name, const Tensor& rows) {
    on.check(name, rows);
    check_rows(name, rows, size);
  };
  check("point_sum", point_sum);
  check("gradient_sum", gradient_sum);
  if (noise_sum) check("noise_sum", *noise_sum);
  check("last_point", last_point);
  check("last_gradient", last_gradient);
  check_ring("step_rows", step_rows);
  check_ring("gradient_rows", gradient_rows);
  check_ring("noise_rows", noise_rows);
  check_block(count, step_rows, gradient_rows, noise_rows, slot, noise_slot, noise_sum.has_value());
  dispatch(type, storage, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto row = [](const Tensor& rows, int64_t i) {
      return i < 0 ? nullptr : out<S>(rows) + i * rows.stride(0);
    };
    cuda::push_block(
        BlockMeans<T, S>{out<T>(point_sum), out<T>(gradient_sum),
                         noise_sum ? out<T>(*noise_sum) : nullptr, count, out<T>(last_point),
                         out<T>(last_gradient), row(step_rows, slot), row(gradient_rows, slot),
                         row(noise_rows, noise_slot), size, on.flag("accept", accept)},
        on.stream);
  });
}

Tensor cross_products(const Tensor& rows, std::vector<Tensor> vectors,
                      std::vector<int64_t> offsets) {
  const OnDevice on(rows);
  const int64_t size = rows.dim() == 2 ? rows.size(1) : -1;
  check_rows("rows", rows, size);
  check_offsets(offsets, size);
  std::vector<Entries> left, right;
  const char* const first = static_cast<const char*>(rows.const_data_ptr());
  const int64_t stride = rows.stride(0) * static_cast<int64_t>(rows.element_size());
  for (int64_t i = 0; i < rows.size(0); ++i) {
    left.push_back({first + i * stride, size, kernel_type(rows)});
  }
  for (const Tensor& vector : vectors) {
    on.check("vectors", vector);
    check_vector("vectors", vector, size, vector.scalar_type());
    right.push_back({vector.const_data_ptr(), size, kernel_type(vector)});
  }
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  Tensor result = doubles(rows, {segments, rows.size(0), static_cast<int64_t>(vectors.size())});
  const cuda::Products args = {
      left, right, offsets.data(), segments, out<double>(result), cuda::slow_float64(on.device)};
  const Workspace workspace(rows, cuda::products_workspace(args));
  cuda::products(args, workspace.data(), on.stream);
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> solve_subspace(
    const Tensor& metric, const Tensor& curvature, const Tensor& right_side, const Tensor& noise,
    const Tensor& radius, double ridge, double floor, double shrinkage) {
  const OnDevice on(metric);
  for (const Tensor* x : {&metric, &curvature, &right_side, &noise, &radius}) {
    on.check("matrices", *x);
  }
  check_subspace(metric, curvature, right_side, noise, radius);
  const int64_t systems = right_side.size(0), m = right_side.size(1), samples = noise.size(2);
  Tensor coefficients = doubles(metric, {systems, m}), eigenvalues = doubles(metric, {systems, m});
  Tensor slope = doubles(metric, {systems}), length = doubles(metric, {systems});
  Tensor reduction = doubles(metric, {systems});
  Tensor rank = torch::stable::new_empty(metric, {systems}, ScalarType::Long);
  const cuda::Subspace args = {in<double>(metric),
                               in<double>(curvature),
                               in<double>(right_side),
                               in<double>(noise),
                               in<double>(radius),
                               systems,
                               m,
                               samples,
                               ridge,
                               floor,
                               shrinkage,
                               out<double>(coefficients),
                               out<double>(eigenvalues),
                               out<double>(slope),
                               out<double>(length),
                               out<double>(reduction),
                               out<int64_t>(rank)};
  const Workspace workspace(metric, cuda::solve_subspace_workspace(args));
  cuda::solve_subspace(args, workspace.data(), on.stream);
  return {coefficients, slope, length, rank, eigenvalues, reduction};
}

}  // namespace
}  // namespace aadl

STABLE_TORCH_LIBRARY_IMPL(aadl_ext, CUDA, m) {
  m.impl("add_sample", TORCH_BOX(&aadl::add_sample));
  m.impl("push_block", TORCH_BOX(&aadl::push_block));
  m.impl("cross_products", TORCH_BOX(&aadl::cross_products));
  m.impl("solve_subspace", TORCH_BOX(&aadl::solve_subspace));
}
