#include "op.h"

namespace aadl {
namespace {

template <class On>
Tensor squared_norm(std::vector<Tensor> tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "the list is empty");
  const On on(tensors[0]);
  std::vector<Entries> pieces;
  for (Tensor& tensor : tensors) {
    on.check("tensors", tensor);
    if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
    if (tensor.numel() == 0) continue;
    pieces.push_back({tensor.const_data_ptr(), tensor.numel(), kernel_type(tensor)});
  }
  Tensor sum = doubles(tensors[0], {});
  squared_norm(pieces, out<double>(sum), on.how);
  return sum;
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(squared_norm)
