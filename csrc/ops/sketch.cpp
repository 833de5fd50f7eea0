#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor sketch(std::vector<Tensor> tensors, int64_t size, std::vector<double> weights) {
  STD_TORCH_CHECK(!tensors.empty(), "the list is empty");
  STD_TORCH_CHECK(size >= 1 && size <= (int64_t{1} << 31), "size is ", size);
  STD_TORCH_CHECK(weights.empty() || weights.size() == tensors.size(), "weights must be as many");
  const On on(tensors[0]);
  std::vector<Weighted> pieces;
  int64_t first = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor& tensor = tensors[i];
    on.check("tensors", tensor);
    if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
    const int64_t count = tensor.numel();
    if (count == 0) continue;
    const double weight = weights.empty() ? 1 : weights[i];
    pieces.push_back({tensor.const_data_ptr(), first, count, weight, kernel_type(tensor)});
    first += count;
  }
  Tensor sums = doubles(tensors[0], {size});
  sketch(pieces, size, out<double>(sums), on.how);
  return sums;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(sketch)
