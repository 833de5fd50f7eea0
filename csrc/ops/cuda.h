// Where ops meet CUDA: current device, current stream, workspaces.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include <vector>

#include "../cuda/kernels.h"
#include "checks.h"

namespace aadl {

// The function that tells the stream that torch works on, or null. Stream::nativeHandle() exists since
// torch 2.13 only; what is behind it is in libtorch_cuda, loaded wherever there are CUDA tensors.
using CurrentStream = int32_t (*)(int32_t device, void** stream);

inline CurrentStream find_current_stream() {
  void* const library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  void* const found = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  return reinterpret_cast<CurrentStream>(found);
}

inline cuda::Stream current_stream(int32_t device) {
  static const CurrentStream get = find_current_stream();
  check_runs_on(device, [] { return get ? cuda::refusal() : "this torch tells no current stream"; });
  void* stream = nullptr;
  STD_TORCH_CHECK(get(device, &stream) == 0, "torch has no current CUDA stream");
  return static_cast<cuda::Stream>(stream);
}

// The device of a tensor, for as long as this lives the current one, and its current stream.
class Cuda {
 public:
  static constexpr bool kFlagsCanBeRead = false;
  static constexpr auto reads_steps = cuda::reads_steps;

  explicit Cuda(const Tensor& tensor)
      : device_(tensor.get_device_index()),
        guard_(device_),
        how{current_stream(device_),
            [this, tensor](int64_t bytes) {
              workspaces_.push_back(torch::stable::new_empty(tensor, {bytes}, ScalarType::Byte));
              return workspaces_.back().mutable_data_ptr();
            },
            cuda::slow_float64(device_)} {}
  Cuda(const Cuda&) = delete;

  // All of an op's tensors must be here: a kernel cannot reach others.
  void check(const char* name, const Tensor& tensor) const {
    STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == device_, name,
                    " must be on CUDA device ", device_, ", as the other tensors");
  }

 private:
  const int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
  // They return to torch's allocator, in the order of the stream, when this dies.
  mutable std::vector<Tensor> workspaces_;

 public:
  const cuda::Launch how;
};

}  // namespace aadl
