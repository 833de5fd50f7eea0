// The part of CUDA that the kernels use, on the host: included by cuda/device.h where the
// compiler is not nvcc. Finds missing and divergent barriers, accesses past shared memory (with
// AddressSanitizer) and reads of shared memory that nobody wrote (it is full of NaN).
//
// The threads of a block are fibers, switched at barriers and shuffles. In the natural schedule
// each runs in turn as far as it gets; with a seed, blocks and turns are shuffled, so that a
// missing barrier shows as a wrong result. A barrier that some threads do not reach, or that they
// reach at different places, throws std::logic_error from the launch.
//
// With -DAADL_SANITIZE=thread every CUDA thread is an std::thread and two blocks run at a time, so
// that ThreadSanitizer sees races within and between blocks; a divergent barrier aborts.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
using cudaStream_t = struct CUstream_st*;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace aadl::cuda_on_host {

constexpr int kLanes = 32;

// Where a thread waits, as the source names it.
struct Place {
  const char* file;
  int line;
};

struct Position {
  dim3 thread, block, block_size, grid;
};

inline thread_local const Position* position = nullptr;  // of the running thread

void launch(dim3 grid, dim3 block, int64_t shared_bytes, const std::function<void()>& body);

void synchronize_block(Place place);

// Ends the launch with this message.
[[noreturn]] void fail(const std::string& message);

// Passes a value to all lanes of the warp; returns that of lane `source`.
uint64_t exchange(uint64_t value, int source, Place place);

// The memory of this block behind a declaration, which `tag` stands for.
void* shared_memory(const void* tag, size_t bytes);
void* dynamic_shared_memory();

inline int lane() { return static_cast<int>(position->thread.x % kLanes); }

template <class T>
T shuffle(unsigned mask, T value, int source, Place place) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  if (mask != 0xffffffffu) fail("a shuffle with a mask that is not all lanes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = exchange(bits, source, place);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace aadl::cuda_on_host

#define threadIdx (aadl::cuda_on_host::position->thread)
#define blockIdx (aadl::cuda_on_host::position->block)
#define blockDim (aadl::cuda_on_host::position->block_size)
#define gridDim (aadl::cuda_on_host::position->grid)

#define AADL_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                  \
  ((void)(stream), aadl::cuda_on_host::launch(dim3(grid), dim3(block), shared_bytes, \
                                              [&] { kernel(__VA_ARGS__); }))

#define AADL_SHARED(Type, name, count)      \
  static const char aadl_tag_of_##name = 0; \
  Type* const name = static_cast<Type*>(    \
      aadl::cuda_on_host::shared_memory(&aadl_tag_of_##name, sizeof(Type) * (count)))

#define AADL_DYNAMIC_SHARED(Type, name) \
  Type* const name = static_cast<Type*>(aadl::cuda_on_host::dynamic_shared_memory())

// The place of the caller, as default arguments.
#define AADL_HERE int line = __builtin_LINE(), const char *file = __builtin_FILE()

inline void __syncthreads(AADL_HERE) { aadl::cuda_on_host::synchronize_block({file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffffu, AADL_HERE) {
  aadl::cuda_on_host::shuffle(mask, 0, aadl::cuda_on_host::lane(), {file, line});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, AADL_HERE) {
  const int own = aadl::cuda_on_host::lane();
  return aadl::cuda_on_host::shuffle(mask, value, (own & ~(width - 1)) | (source & (width - 1)),
                                     {file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32, AADL_HERE) {
  const int own = aadl::cuda_on_host::lane(), other = own + static_cast<int>(by);
  const bool inside = (own & (width - 1)) + static_cast<int>(by) < width;
  return aadl::cuda_on_host::shuffle(mask, value, inside ? other : own, {file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32, AADL_HERE) {
  const int own = aadl::cuda_on_host::lane(), other = own ^ by;
  const bool inside = (own & ~(width - 1)) == (other & ~(width - 1));
  return aadl::cuda_on_host::shuffle(mask, value, inside ? other : own, {file, line});
}

// Rounded once each: built with -ffp-contract=off.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
