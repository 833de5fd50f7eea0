// The module aadl_lab: a kernel into which faults can be planted, to see that the emulation of CUDA
// finds them, and how a long dimension is cut up.

#include <pybind11/numpy.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/device.h"
#include "cuda/tiles.h"

namespace aadl::lab {
namespace {

namespace py = pybind11;

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
}  // namespace aadl::lab

PYBIND11_MODULE(aadl_lab, m) {
  m.def("sum_blocks", &aadl::lab::sum_blocks, pybind11::arg("values"),
        pybind11::arg("fault") = "none");
  m.def("folds_of_tile", &aadl::cuda::folds_of_tile, pybind11::arg("folds"),
        pybind11::arg("slots"));
}
