// In the place of cuda.h for tests: an op's CUDA kernels on the host, on tensors of the CPU.
//
// Read at every call, so that tests can change them: AADL_TILES, into how many tiles a vector is
// cut at most, and AADL_COMPENSATED, which stands for a device with slow float64.
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

  explicit Emulated(const Tensor& tensor)
      : how{nullptr,
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

  mutable std::vector<Tensor> workspaces_;

 public:
  const cuda::Launch how;
};

}  // namespace aadl
