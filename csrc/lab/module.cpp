// The module aadl_lab: the drivers of cpu/kernels.h and cuda/kernels.h over NumPy arrays.

#include <atomic>
#include <thread>

#include "arrays.h"

namespace aadl::lab {

cpu::Threads threads_of(int64_t threads) {
  if (threads < 1) throw std::invalid_argument("threads must be at least 1");
  return {[threads](int64_t count, const std::function<void(int64_t)>& body) {
    std::atomic<int64_t> next = 0;
    const auto work = [&] {
      for (int64_t i = next++; i < count; i = next++) body(i);
    };
    std::vector<std::thread> others;
    for (int64_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(work);
    work();
    for (std::thread& other : others) other.join();
  }};
}

}  // namespace aadl::lab

PYBIND11_MODULE(aadl_lab, m) {
  m.doc() = "The kernels over NumPy arrays, for tests and measurements.";
  aadl::lab::add_blocks(m);
  aadl::lab::add_flat(m);
  aadl::lab::add_memory(m);
  aadl::lab::add_scalars(m);
  aadl::lab::add_small(m);
  aadl::lab::add_streaming(m);
  pybind11::module_ cuda = m.def_submodule("cuda", "The CUDA kernels, emulated on the host.");
  aadl::lab::add_cuda_dense(cuda);
  aadl::lab::add_cuda_emulation(cuda);
  aadl::lab::add_cuda_streaming(cuda);
}
