#include <stdexcept>
#include <string>

#include "device.h"
#include "kernels.h"

namespace aadl::cuda {

void check_launch(const char* name) {
#ifdef __CUDACC__
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA kernel for ") + name +
                             " could not be launched: " + cudaGetErrorString(error));
  }
#else
  (void)name;  // the emulation throws itself
#endif
}

bool slow_float64(int device) {
#ifdef __CUDACC__
  int ratio = 2;  // float32 operations in the time of a float64 operation: 2 to 64
  cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, device);
  return ratio > 8;
#else
  (void)device;
  return false;
#endif
}

}  // namespace aadl::cuda
