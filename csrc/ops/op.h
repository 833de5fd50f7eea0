// What an op is made of. It is one function over `On`, the device: it checks, takes pointers and
// calls the kernel of its name with `on.how` as the last argument, by whose type the compiler finds
// that of the CPU or of CUDA.
#pragma once

#include <functional>

#include "../cpu/kernels.h"
#include "checks.h"
#if defined(AADL_EMULATES_CUDA)
#include "emulated.h"
#elif defined(AADL_WITH_CUDA)
#include "cuda.h"
#endif

namespace aadl {

// torch's own threads; a single block stays on this one.
inline void run_on_threads(int64_t count, const std::function<void(int64_t)>& body) {
  if (count == 1) return body(0);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(i);
  });
}

// The CPU, where an op works if all of its tensors are there: torch sees to it.
struct Cpu {
  static constexpr bool kFlagsCanBeRead = true;
  const cpu::Threads how = {run_on_threads};

  explicit Cpu(const Tensor&) {}
  void check(const char*, const Tensor&) const {}
  static bool reads_steps(int64_t, bool) { return true; }  // see cuda::reads_steps
};

}  // namespace aadl

// Registers the function of an op for the devices that there are kernels for.
#define AADL_REGISTER_ON(Device, On, op) \
  STABLE_TORCH_LIBRARY_IMPL(aadl_ext, Device, m) { m.impl(#op, TORCH_BOX(&aadl::op<aadl::On>)); }
#if defined(AADL_EMULATES_CUDA)
#define AADL_REGISTER(op) AADL_REGISTER_ON(CPU, Emulated, op)
#elif defined(AADL_WITH_CUDA)
#define AADL_REGISTER(op)        \
  AADL_REGISTER_ON(CPU, Cpu, op) \
  AADL_REGISTER_ON(CUDA, Cuda, op)
#else
#define AADL_REGISTER(op) AADL_REGISTER_ON(CPU, Cpu, op)
#endif
