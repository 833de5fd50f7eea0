// Ops on blocks of samples, on CPU tensors.

#include <optional>
#include <tuple>

#include "checks.h"

namespace aadl {
namespace {

Tensor add_sample(Tensor point_sum, Tensor gradient_sum, std::optional<Tensor> noise_sum,
                  const Tensor& point, const Tensor& anchor, const Tensor& gradient, double sign,
                  std::optional<Tensor> direction) {
  const int64_t size = point.numel();
  const ScalarType type = point.scalar_type();
  check_vector("point_sum", point_sum, size, type);
  check_vector("gradient_sum", gradient_sum, size, type);
  if (noise_sum) check_vector("noise_sum", *noise_sum, size, type);
  check_vector("point", point, size, type);
  check_vector("anchor", anchor, size, type);
  check_vector("gradient", gradient, size, type);
  if (direction) check_vector("direction", *direction, size, type);
  Tensor figures = doubles(point, {2});
  dispatch(type, type, [&](auto t, auto s) {
    using T = decltype(t);
    if constexpr (std::is_same_v<T, decltype(s)>) {
      cpu::Sample<T> args{out<T>(point_sum),
                          out<T>(gradient_sum),
                          noise_sum ? out<T>(*noise_sum) : nullptr,
                          in<T>(point),
                          in<T>(anchor),
                          in<T>(gradient),
                          direction ? in<T>(*direction) : nullptr,
                          sign,
                          size,
                          0.0,
                          0.0};
      cpu::add_sample(args, parallel);
      out<double>(figures)[0] = args.squared_norm;
      out<double>(figures)[1] = args.slope;
    }
  });
  return figures;
}

void push_block(Tensor point_sum, Tensor gradient_sum, std::optional<Tensor> noise_sum,
                int64_t count, Tensor last_point, Tensor last_gradient, Tensor step_rows,
                Tensor gradient_rows, Tensor noise_rows, int64_t slot, int64_t noise_slot,
                std::optional<Tensor> accept) {
  const int64_t size = last_point.numel();
  const ScalarType type = last_point.scalar_type(), storage = step_rows.scalar_type();
  check_vector("point_sum", point_sum, size, type);
  check_vector("gradient_sum", gradient_sum, size, type);
  if (noise_sum) check_vector("noise_sum", *noise_sum, size, type);
  check_vector("last_point", last_point, size, type);
  check_vector("last_gradient", last_gradient, size, type);
  check_rows("step_rows", step_rows, size);
  check_rows("gradient_rows", gradient_rows, size);
  check_rows("noise_rows", noise_rows, size);
  check_block(count, step_rows, gradient_rows, noise_rows, slot, noise_slot, noise_sum.has_value());
  dispatch(type, storage, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto row = [](const Tensor& rows, int64_t i) {
      return i < 0 ? nullptr : out<S>(rows) + i * rows.stride(0);
    };
    cpu::push_block(
        BlockMeans<T, S>{out<T>(point_sum), out<T>(gradient_sum),
                         noise_sum ? out<T>(*noise_sum) : nullptr, count, out<T>(last_point),
                         out<T>(last_gradient), row(step_rows, slot), row(gradient_rows, slot),
                         row(noise_rows, noise_slot), size, check_flag("accept", accept)},
        parallel);
  });
}

Tensor cross_products(const Tensor& rows, std::vector<Tensor> vectors,
                      std::vector<int64_t> offsets) {
  const int64_t size = rows.dim() == 2 ? rows.size(1) : -1;
  check_rows("rows", rows, size);
  check_offsets(offsets, size);
  const int64_t segments = static_cast<int64_t>(offsets.size()) - 1;
  const int64_t count = rows.size(0), width = static_cast<int64_t>(vectors.size());
  Tensor result = doubles(rows, {segments, count, width});
  cpu::Products args = {{}, {}, offsets, out<double>(result)};
  const char* const first = static_cast<const char*>(rows.const_data_ptr());
  const int64_t stride = rows.stride(0) * static_cast<int64_t>(rows.element_size());
  for (int64_t i = 0; i < count; ++i) {
    args.rows.push_back({first + i * stride, size, kernel_type(rows)});
  }
  for (const Tensor& vector : vectors) {
    check_vector("vectors", vector, size, vector.scalar_type());
    args.vectors.push_back({vector.const_data_ptr(), size, kernel_type(vector)});
  }
  cpu::products(args, parallel);
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> solve_subspace(
    const Tensor& metric, const Tensor& curvature, const Tensor& right_side, const Tensor& noise,
    const Tensor& radius, double ridge, double floor, double shrinkage) {
  check_subspace(metric, curvature, right_side, noise, radius);
  const int64_t systems = right_side.size(0), m = right_side.size(1), samples = noise.size(2);
  Tensor coefficients = doubles(metric, {systems, m}), eigenvalues = doubles(metric, {systems, m});
  Tensor slope = doubles(metric, {systems}), length = doubles(metric, {systems});
  Tensor reduction = doubles(metric, {systems});
  Tensor rank = torch::stable::new_empty(metric, {systems}, ScalarType::Long);
  parallel(systems, [&](int64_t s) {
    cpu::Subspace args{in<double>(metric) + s * m * m,
                       in<double>(curvature) + s * m * m,
                       in<double>(right_side) + s * m,
                       in<double>(noise) + s * m * samples,
                       m,
                       samples,
                       in<double>(radius)[s],
                       ridge,
                       floor,
                       shrinkage,
                       out<double>(coefficients) + s * m,
                       out<double>(eigenvalues) + s * m,
                       0.0,
                       0.0,
                       0.0,
                       0};
    cpu::solve_subspace(args);
    out<double>(slope)[s] = args.slope;
    out<double>(length)[s] = args.length;
    out<double>(reduction)[s] = args.reduction;
    out<int64_t>(rank)[s] = args.rank;
  });
  return {coefficients, slope, length, rank, eigenvalues, reduction};
}

}  // namespace
}  // namespace aadl

STABLE_TORCH_LIBRARY_FRAGMENT(aadl_ext, m) {
  m.def(
      "add_sample(Tensor(a!) point_sum, Tensor(b!) gradient_sum, Tensor(c!)? noise_sum, "
      "Tensor point, Tensor anchor, Tensor gradient, float sign, Tensor? direction) -> Tensor");
  m.def(
      "push_block(Tensor(a!) point_sum, Tensor(b!) gradient_sum, Tensor(c!)? noise_sum, int count, "
      "Tensor(d!) last_point, Tensor(e!) last_gradient, Tensor(f!) step_rows, "
      "Tensor(g!) gradient_rows, Tensor(h!) noise_rows, int slot, int noise_slot, "
      "Tensor? accept=None) -> ()");
  m.def(
      "solve_subspace(Tensor metric, Tensor curvature, Tensor right_side, Tensor noise, "
      "Tensor radius, float ridge, float floor, float shrinkage) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("cross_products(Tensor rows, Tensor[] vectors, int[] offsets) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(aadl_ext, CPU, m) {
  m.impl("add_sample", TORCH_BOX(&aadl::add_sample));
  m.impl("push_block", TORCH_BOX(&aadl::push_block));
  m.impl("solve_subspace", TORCH_BOX(&aadl::solve_subspace));
  m.impl("cross_products", TORCH_BOX(&aadl::cross_products));
}
