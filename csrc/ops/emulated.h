// In the place of cuda.h for tests: an op's CUDA kernels on the host, on tensors of the CPU.
//
// Read at every call, so that tests can change them: AADL_TILES, into how many tiles a vector is
// cut at most, AADL_COMPENSATED, which stands for a device with slow float64, AADL_DEVICE, its number,
// and AADL_REFUSAL, why no kernel runs there.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "../cuda/kernels.h"
#include "checks.h"

namespace aadl {

class Emulated {
 public:
  static constexpr bool kFlagsCanBeRead = false;
  static constexpr auto reads_steps = cuda::reads_steps;

  explicit Emulated(const Tensor& tensor)
      : how{stream(),
            [this, tensor](int64_t bytes) {
              workspaces_.push_back(torch::stable::new_empty(tensor, {bytes}, ScalarType::Byte));
              char* const begin = static_cast<char*>(workspaces_.back().mutable_data_ptr());
              std::fill_n(begin, bytes, '\xff');  // NaN
              return begin;
            },
            std::getenv("AADL_COMPENSATED") != nullptr, most_tiles()} {}
  Emulated(const Emulated&) = delete;

  void check(const char*, const Tensor&) const {}

 private:
  static int64_t most_tiles() {
    const char* const count = std::getenv("AADL_TILES");
    return count ? std::atoll(count) : cuda::kMostTiles;
  }

  static cuda::Stream stream() {
    const char* const device = std::getenv("AADL_DEVICE");
    check_runs_on(device ? std::atoi(device) : 0, [] {
      const char* const why = std::getenv("AADL_REFUSAL");
      return why ? why : cuda::refusal();
    });
    return nullptr;
  }

  mutable std::vector<Tensor> workspaces_;

 public:
  const cuda::Launch how;
};

}  // namespace aadl
