// Ops on lists of CUDA tensors. What no kernel copies goes to torch, tensor by tensor: strides that
// are not row-major, and rarer pairs of dtypes.

#include "cuda.h"

namespace aadl {
namespace {

enum class Way { kGather, kScatter };

// A copy that no kernel makes. torch's own know no flag: with one, a contiguous copy of what is
// there is overwritten or not, and put back.
void copy_by_torch(Tensor to, const Tensor& from, const bool* when, cuda::Stream stream) {
  if (!when) {
    torch::stable::copy_(to, from);
    return;
  }
  Tensor source = torch::stable::new_empty(to, to.sizes()), target = torch::stable::contiguous(to);
  torch::stable::copy_(source, from);
  const Type type = kernel_type(to);
  cuda::copy({{source.const_data_ptr(), target.mutable_data_ptr(), to.numel(), type, type}}, when,
             stream);
  if (!to.is_contiguous()) torch::stable::copy_(to, target);
}

// Returns how many entries the tensors have.
int64_t copy_tensors(const std::vector<Tensor>& tensors, const Tensor& flat,
                     const std::optional<Tensor>& flag, Way way) {
  const OnDevice on(flat);
  const bool* const when = on.flag("when", flag);
  const Type flat_type = kernel_type(flat);
  const int64_t size = flat.dim() == 1 && flat.is_contiguous() ? flat.numel() : -1;
  const int64_t entry = static_cast<int64_t>(flat.element_size());
  char* const flat_begin = static_cast<char*>(flat.mutable_data_ptr());
  const bool gathers = way == Way::kGather;
  std::vector<Piece> pieces;
  int64_t begin = 0;
  for (Tensor tensor : tensors) {
    const int64_t count = tensor.numel();
    STD_TORCH_CHECK(begin + count <= size, "the flat vector must be contiguous and hold ",
                    begin + count, " entries or more, got ", flat.numel());
    if (count == 0) continue;
    on.check("tensors", tensor);
    const Type type = kernel_type(tensor);
    if (!tensor.is_contiguous() || !cuda::copies(type, flat_type) ||
        !cuda::copies(flat_type, type)) {
      Tensor narrow = flat;
      Tensor part =
          torch::stable::view(torch::stable::narrow(narrow, 0, begin, count), tensor.sizes());
      copy_by_torch(gathers ? part : tensor, gathers ? tensor : part, when, on.stream);
    } else if (void* const there = flat_begin + begin * entry; gathers) {
      pieces.push_back({tensor.const_data_ptr(), there, count, type, flat_type});
    } else {
      pieces.push_back({there, tensor.mutable_data_ptr(), count, flat_type, type});
    }
    begin += count;
  }
  cuda::copy(pieces, when, on.stream);
  return begin;
}

void gather(std::vector<Tensor> tensors, Tensor flat, std::optional<Tensor> when) {
  const int64_t filled = copy_tensors(tensors, flat, when, Way::kGather);
  if (filled == flat.numel()) return;
  const OnDevice on(flat);
  Tensor rest = torch::stable::narrow(flat, 0, filled, flat.numel() - filled);
  if (when) {
    const Tensor zeros = torch::stable::new_zeros(rest, {rest.numel()});
    copy_by_torch(rest, zeros, on.flag("when", when), on.stream);
  } else {
    torch::stable::zero_(rest);
  }
}

void scatter(std::vector<Tensor> tensors, Tensor flat, std::optional<Tensor> when) {
  copy_tensors(tensors, flat, when, Way::kScatter);
}

Tensor squared_norm(std::vector<Tensor> tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "the list is empty");
  const OnDevice on(tensors[0]);
  std::vector<Entries> pieces;
  for (Tensor& tensor : tensors) {
    on.check("tensors", tensor);
    if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
    if (tensor.numel() == 0) continue;
    pieces.push_back({tensor.const_data_ptr(), tensor.numel(), kernel_type(tensor)});
  }
  Tensor sum = doubles(tensors[0], {});
  const Workspace workspace(tensors[0], cuda::squared_norm_workspace(pieces));
  cuda::squared_norm(pieces, cuda::slow_float64(on.device), workspace.data(), out<double>(sum),
                     on.stream);
  return sum;
}

}  // namespace
}  // namespace aadl

STABLE_TORCH_LIBRARY_IMPL(aadl_ext, CUDA, m) {
  m.impl("gather", TORCH_BOX(&aadl::gather));
  m.impl("scatter", TORCH_BOX(&aadl::scatter));
  m.impl("squared_norm", TORCH_BOX(&aadl::squared_norm));
}
