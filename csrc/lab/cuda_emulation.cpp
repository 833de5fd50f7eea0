// What tests need to see that the emulation of CUDA finds faults: its schedule, and a kernel into
// which they can be planted.

#include "arrays.h"
#include "cuda/device.h"

namespace aadl::lab {
namespace {

using namespace aadl::cuda;

constexpr int kThreads = 128;
enum Fault { kNone, kMissingBarrier, kDivergentBarrier, kEarlyReturn, kPastShared, kBlocksShare };

// out[block] = the sum of 128 values of this block, by way of shared memory.
__global__ void sum_values(const double* values, double* out, int fault) {
  AADL_SHARED(double, parts, kThreads);
  const int i = threadIdx.x;
  parts[i + (fault == kPastShared ? 1 : 0)] = values[blockIdx.x * kThreads + i];
  for (int half = kThreads / 2; half >= 1; half /= 2) {
    if (fault == kDivergentBarrier && i < half) __syncthreads();
    if (fault != kMissingBarrier) __syncthreads();
    if (fault == kEarlyReturn && i >= half) return;
    if (i < half) parts[i] += parts[i + half];
  }
  if (i == 0) out[fault == kBlocksShare ? 0 : blockIdx.x] = parts[0];
}

py::array_t<double> sum_blocks(const py::array_t<double, py::array::c_style>& values,
                               const std::string& fault) {
  const std::vector<std::string> names = {"none",         "missing barrier", "divergent barrier",
                                          "early return", "past shared",     "blocks share"};
  const auto found = std::find(names.begin(), names.end(), fault);
  if (found == names.end() || values.size() % kThreads != 0) {
    throw std::invalid_argument("values come in groups of 128, faults by their names");
  }
  py::array_t<double> out(values.size() / kThreads);
  AADL_LAUNCH(sum_values, static_cast<unsigned>(out.size()), kThreads, 0, nullptr, values.data(),
              out.mutable_data(), static_cast<int>(found - names.begin()));
  return out;
}

}  // namespace

void add_cuda_emulation(py::module_& m) {
  m.def("set_schedule", &cuda_on_host::set_schedule, py::arg("seed"));
  m.def("sum_blocks", &sum_blocks, py::arg("values"), py::arg("fault") = "none");
}

}  // namespace aadl::lab
