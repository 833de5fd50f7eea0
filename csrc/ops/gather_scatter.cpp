// Copies between a list of tensors and a flat vector. What no kernel copies goes to torch, tensor
// by tensor: strides that are not row-major, and rarer pairs of dtypes.
#include <cstring>

#include "op.h"

namespace aadl {
namespace {

enum class Way { kGather, kScatter };

// A copy that no kernel makes. torch's own know no flag: with one, a contiguous copy of what is
// there is overwritten or not, and put back.
template <class On>
void copy_by_torch(const On& on, Tensor to, const Tensor& from, const bool* when) {
  if (!when) {
    torch::stable::copy_(to, from);
    return;
  }
  Tensor source = torch::stable::new_empty(to, to.sizes()), target = torch::stable::contiguous(to);
  torch::stable::copy_(source, from);
  const Type type = kernel_type(to);
  const std::vector<Piece> all = {
      {source.const_data_ptr(), target.mutable_data_ptr(), to.numel(), type, type}};
  copy(all, when, on.how);
  if (!to.is_contiguous()) torch::stable::copy_(to, target);
}

// Returns how many entries the tensors have.
template <class On>
int64_t copy_tensors(const On& on, const std::vector<Tensor>& tensors, Tensor flat,
                     const bool* when, Way way) {
  const Type flat_type = kernel_type(flat);
  STD_TORCH_CHECK(flat.dim() == 1 && flat.is_contiguous(),
                  "the flat vector must be contiguous, with one dimension; got ", flat.dim());
  const int64_t entry = static_cast<int64_t>(flat.element_size());
  char* const flat_begin = static_cast<char*>(flat.mutable_data_ptr());
  const bool gathers = way == Way::kGather;
  std::vector<const Tensor*> others;
  for (const Tensor& tensor : tensors) others.push_back(&tensor);
  check_apart({&flat}, others);
  std::vector<Piece> pieces;
  int64_t begin = 0;
  for (const Tensor& tensor : tensors) {
    const int64_t count = tensor.numel();
    STD_TORCH_CHECK(begin + count <= flat.numel(), "the flat vector must hold ",
                    begin + count, " entries or more, got ", flat.numel());
    if (count == 0) continue;
    on.check("tensors", tensor);
    const Type type = kernel_type(tensor);
    if (!tensor.is_contiguous() || !copies(type, flat_type)) {
      Tensor part =
          torch::stable::view(torch::stable::narrow(flat, 0, begin, count), tensor.sizes());
      copy_by_torch(on, gathers ? part : tensor, gathers ? tensor : part, when);
    } else if (void* const there = flat_begin + begin * entry; gathers) {
      pieces.push_back({tensor.const_data_ptr(), there, count, type, flat_type});
    } else {
      pieces.push_back({there, tensor.mutable_data_ptr(), count, flat_type, type});
    }
    begin += count;
  }
  copy(pieces, when, on.how);
  return begin;
}

// Where the kernels find a flag that could not be read here; `no` if it was read, and is false.
template <class On>
const bool* flag_of(const On& on, const std::optional<Tensor>& flag, bool* no) {
  const bool* const when = check_flag(on, "when", flag);
  *no = On::kFlagsCanBeRead && when && !*when;
  return On::kFlagsCanBeRead ? nullptr : when;
}

template <class On>
void gather(std::vector<Tensor> tensors, Tensor flat, std::optional<Tensor> flag) {
  const On on(flat);
  bool no = false;
  const bool* const when = flag_of(on, flag, &no);
  if (no) return;
  const int64_t end = copy_tensors(on, tensors, flat, when, Way::kGather);
  const int64_t left = flat.numel() - end;
  if (left == 0) return;
  if constexpr (On::kFlagsCanBeRead) {
    const int64_t entry = static_cast<int64_t>(flat.element_size());
    std::memset(static_cast<char*>(flat.mutable_data_ptr()) + end * entry, 0, left * entry);
  } else {
    Tensor rest = torch::stable::narrow(flat, 0, end, left);
    if (!when) {
      torch::stable::zero_(rest);
    } else {
      copy_by_torch(on, rest, torch::stable::new_zeros(rest, {left}), when);
    }
  }
}

template <class On>
void scatter_(std::vector<Tensor> tensors, Tensor flat, std::optional<Tensor> flag) {
  const On on(flat);
  bool no = false;
  const bool* const when = flag_of(on, flag, &no);
  if (!no) copy_tensors(on, tensors, flat, when, Way::kScatter);
}

}  // namespace
}  // namespace aadl

AADL_REGISTER(gather)
AADL_REGISTER(scatter_)
