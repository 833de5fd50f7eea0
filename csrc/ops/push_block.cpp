#include "op.h"

namespace aadl {
namespace {

template <class On>
void push_block(std::vector<Tensor> sums, int64_t count, Tensor last_point, Tensor last_gradient, Tensor step_rows,
                Tensor gradient_rows, Tensor noise_rows, int64_t slot, int64_t noise_slot,
                std::optional<Tensor> paired, std::optional<Tensor> accept) {
  const On on(last_point);
  const auto [point_sum, gradient_sum, noise_sum] = three_sums(sums, 2);
  const int64_t size = last_point.numel();
  const ScalarType type = last_point.scalar_type(), storage = step_rows.scalar_type();
  check_vector(on, "point_sum", point_sum, size, type);
  check_vector(on, "gradient_sum", *gradient_sum, size, type);
  if (noise_sum) check_vector(on, "noise_sum", *noise_sum, size, type);
  check_vector(on, "last_point", last_point, size, type);
  check_vector(on, "last_gradient", last_gradient, size, type);
  check_rows(on, "step_rows", step_rows, size);
  check_rows(on, "gradient_rows", gradient_rows, size);
  check_rows(on, "noise_rows", noise_rows, size);
  STD_TORCH_CHECK(count > 0, "count is ", count, "; a block has at least one sample");
  STD_TORCH_CHECK(gradient_rows.scalar_type() == storage && noise_rows.scalar_type() == storage,
                  "all rows must have one dtype");
  STD_TORCH_CHECK(-1 <= slot && slot < step_rows.size(0) &&
                      step_rows.size(0) == gradient_rows.size(0) &&
                      (noise_slot >= 0) == noise_sum.has_value() && noise_slot < noise_rows.size(0),
                  "there is no row ", slot, " or no noise row ", noise_slot);
  const bool* const has_pair = check_flag(on, "paired", paired);
  const bool* const accepts = check_flag(on, "accept", accept);
  check_apart({&point_sum, address(gradient_sum), address(noise_sum), &last_point, &last_gradient, &step_rows,
               &gradient_rows, &noise_rows},
              {});
  dispatch(type, storage, [&](auto t, auto s) {
    using T = decltype(t);
    using S = decltype(s);
    const auto row = [](const Tensor& rows, int64_t i) {
      return i < 0 ? nullptr : out<S>(rows) + i * rows.stride(0);
    };
    push_block(
        BlockMeans<T, S>{out<T>(point_sum), out<T>(*gradient_sum),
                         noise_sum ? out<T>(*noise_sum) : nullptr, count, out<T>(last_point),
                         out<T>(last_gradient), row(step_rows, slot), row(gradient_rows, slot),
                         row(noise_rows, noise_slot), size, has_pair, accepts},
        on.how);
  });
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(push_block)
