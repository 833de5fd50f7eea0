// What a CUDA kernel needs of its surroundings: under nvcc the CUDA runtime; under a C++ compiler
// an emulation on the host, with which the tests run the same kernels where there is no GPU.
//
// Kernels keep to what both have: threadIdx, blockIdx, blockDim, gridDim (all one-dimensional but
// the grid), __syncthreads, __syncwarp, __shfl_sync, __shfl_down_sync, __shfl_xor_sync (all 32
// lanes take part), __fmul_rn and its like. Blocks are multiples of 32 threads, none of which may
// return while others still come to a barrier. Shared memory is declared by the macros below:
// the emulation gives every block fresh memory full of NaN, whose bounds are watched.
#pragma once

#include <stdexcept>
#include <string>

#include "kernels.h"

#ifdef __CUDACC__

#include <cuda_runtime.h>

// kernel in parentheses if it has template arguments: AADL_LAUNCH((sum<float, 4>), ...).
#define AADL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

// An array of `count` entries in shared memory; `count` is a constant.
#define AADL_SHARED(Type, name, count) __shared__ Type name[count]

// A pointer to the shared memory whose size the launch gives, aligned to 16 bytes; one a kernel.
#define AADL_DYNAMIC_SHARED(Type, name)                                       \
  extern __shared__ __align__(16) unsigned char aadl_dynamic_shared_memory[]; \
  Type* const name = reinterpret_cast<Type*>(aadl_dynamic_shared_memory)

#else

#include "cuda_on_host.h"  // IWYU pragma: export

#endif

namespace aadl::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Throws std::runtime_error if what was launched last could not be: `name` says what it was.
inline void check_launch(const char* name) {
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

// How many blocks of `kernel` the device runs at once, at most launch.most_tiles.
template <class Kernel>
int64_t resident_blocks(Kernel* kernel, int threads, const Launch& launch) {
#ifdef __CUDACC__
  int device = 0, processors = 1, blocks = 1;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, 0);
  const int64_t resident = static_cast<int64_t>(processors) * (blocks > 0 ? blocks : 1);
  return resident < launch.most_tiles ? resident : launch.most_tiles;
#else
  (void)kernel, (void)threads;
  return launch.most_tiles;
#endif
}

// Room for `count` numbers.
template <class T>
T* workspace(const Launch& launch, int64_t count) {
  return static_cast<T*>(launch.workspace(count * static_cast<int64_t>(sizeof(T))));
}

}  // namespace aadl::cuda
