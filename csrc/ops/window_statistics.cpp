#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor window_statistics(std::vector<Tensor> window, Tensor mean) {
  const On on(mean);
  const int64_t size = mean.numel();
  const ScalarType type = mean.scalar_type();
  STD_TORCH_CHECK(!window.empty(), "the window is empty");
  check_vector(on, "out", mean, size, type);
  for (const Tensor& iterate : window) {
    check_vector(on, "window", iterate, size, type);
    check_apart({&mean}, {&iterate});
  }
  Tensor max_std = torch::stable::new_empty(mean, {}, type);
  dispatch(type, [&](auto t) {
    using T = decltype(t);
    std::vector<const T*> iterates;
    for (const Tensor& iterate : window) iterates.push_back(in<T>(iterate));
    window_statistics(Window<T>{iterates.data(), static_cast<int64_t>(iterates.size()), size,
                                out<T>(mean), out<T>(max_std)},
                      on.how);
  });
  return max_std;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(window_statistics)
