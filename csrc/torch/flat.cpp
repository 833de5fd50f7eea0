// Ops on lists of CPU tensors: gather, scatter, squared norm. What no kernel copies goes to torch,
// tensor by tensor: strides that are not row-major, and rarer pairs of dtypes.

#include "checks.h"

namespace aadl {
namespace {

// Entries begin .. begin + numel - 1 of `flat` in the shape of a tensor.
Tensor part_of(Tensor flat, int64_t begin, const Tensor& tensor) {
  return torch::stable::view(torch::stable::narrow(flat, 0, begin, tensor.numel()), tensor.sizes());
}

enum class Way { kGather, kScatter };

// Returns how many entries the tensors have.
int64_t copy_tensors(const std::vector<Tensor>& tensors, const Tensor& flat, Way way) {
  const Type flat_type = kernel_type(flat);
  const int64_t size = flat.dim() == 1 && flat.is_contiguous() ? flat.numel() : -1;
  const int64_t entry = static_cast<int64_t>(flat.element_size());
  char* const flat_begin = static_cast<char*>(flat.mutable_data_ptr());
  std::vector<Piece> pieces;
  int64_t begin = 0;
  for (Tensor tensor : tensors) {
    const int64_t count = tensor.numel();
    STD_TORCH_CHECK(begin + count <= size, "the flat vector must be contiguous and hold ",
                    begin + count, " entries or more, got ", flat.numel());
    if (count == 0) continue;
    const Type type = kernel_type(tensor);
    const bool gathers = way == Way::kGather;
    if (!tensor.is_contiguous() || !cpu::copies(type, flat_type) || !cpu::copies(flat_type, type)) {
      Tensor part = part_of(flat, begin, tensor);
      torch::stable::copy_(gathers ? part : tensor, gathers ? tensor : part);
    } else if (void* const there = flat_begin + begin * entry; gathers) {
      pieces.push_back({tensor.const_data_ptr(), there, count, type, flat_type});
    } else {
      pieces.push_back({there, tensor.mutable_data_ptr(), count, flat_type, type});
    }
    begin += count;
  }
  cpu::copy(pieces, parallel);
  return begin;
}

void gather(std::vector<Tensor> tensors, Tensor flat, std::optional<Tensor> when) {
  if (!is_true("when", when)) return;
  const int64_t end = copy_tensors(tensors, flat, Way::kGather);
  const int64_t entry = static_cast<int64_t>(flat.element_size());
  char* const rest = static_cast<char*>(flat.mutable_data_ptr()) + end * entry;
  std::memset(rest, 0, (flat.numel() - end) * entry);
}

void scatter(std::vector<Tensor> tensors, Tensor flat, std::optional<Tensor> when) {
  if (is_true("when", when)) copy_tensors(tensors, flat, Way::kScatter);
}

Tensor squared_norm(std::vector<Tensor> tensors) {
  STD_TORCH_CHECK(!tensors.empty(), "the list is empty");
  std::vector<Entries> pieces;
  for (Tensor& tensor : tensors) {
    if (!tensor.is_contiguous()) tensor = torch::stable::contiguous(tensor);
    if (tensor.numel() == 0) continue;
    pieces.push_back({tensor.const_data_ptr(), tensor.numel(), kernel_type(tensor)});
  }
  Tensor sum = doubles(tensors[0], {});
  *out<double>(sum) = cpu::squared_norm(pieces, parallel);
  return sum;
}

}  // namespace
}  // namespace aadl

STABLE_TORCH_LIBRARY_FRAGMENT(aadl_ext, m) {
  m.def("gather(Tensor[] tensors, Tensor(a!) out, Tensor? when=None) -> ()");
  m.def("scatter(Tensor(a!)[] tensors, Tensor flat, Tensor? when=None) -> ()");
  m.def("squared_norm(Tensor[] tensors) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(aadl_ext, CPU, m) {
  m.impl("gather", TORCH_BOX(&aadl::gather));
  m.impl("scatter", TORCH_BOX(&aadl::scatter));
  m.impl("squared_norm", TORCH_BOX(&aadl::squared_norm));
}
