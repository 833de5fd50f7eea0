// Where the ops on CUDA tensors meet torch: current stream, current device, workspaces.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "../kernels/cuda/kernels.h"
#include "checks.h"

namespace aadl {

// The stream that torch works on. Stream::nativeHandle() exists since torch 2.13 only; the function
// behind it is in libtorch_cuda, which is loaded wherever there are CUDA tensors.
inline cuda::Stream current_stream(int32_t device) {
  using Get = int32_t (*)(int32_t device, void** stream);
  static const Get get = [] {
    void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    return reinterpret_cast<Get>(found);
  }();
  void* stream = nullptr;
  STD_TORCH_CHECK(get && get(device, &stream) == 0, "torch has no current CUDA stream");
  return static_cast<cuda::Stream>(stream);
}

// The device of a tensor for as long as this lives, and its current stream.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor)
      : device(tensor.get_device_index()), guard_(device), stream(current_stream(device)) {}

  // All of an op's tensors must be here: a kernel cannot reach others.
  void check(const char* name, const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device, name,
                    " must be on CUDA device ", device, ", as the other tensors");
  }

  // A flag as the launchers take it.
  const bool* flag(const char* name, const std::optional<Tensor>& flag) const {
    if (flag) check(name, *flag);
    return check_flag(name, flag);
  }

  const int32_t device;

 private:
  torch::stable::accelerator::DeviceGuard guard_;

 public:
  const cuda::Stream stream;
};

// Memory that the kernels of one op use: it returns to torch's allocator, in the order of the
// stream, when this dies.
class Workspace {
 public:
  Workspace(const Tensor& like, int64_t bytes)
      : bytes_(torch::stable::new_empty(like, {bytes}, ScalarType::Byte)) {}
  void* data() const { return bytes_.mutable_data_ptr(); }

 private:
  Tensor bytes_;
};

}  // namespace aadl
