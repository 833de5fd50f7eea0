// A launch of CUDA kernels on the host.
#pragma once

#include <memory>
#include <vector>

#include "arrays.h"
#include "cuda/kernels.h"

namespace aadl::lab {

// Its workspaces are exactly as long as was asked for, and full of NaN.
struct Launch : cuda::Launch {
  explicit Launch(int64_t most_tiles = cuda::kMostTiles, bool compensated = false)
      : cuda::Launch{nullptr, {}, compensated, most_tiles} {
    workspace = [all = std::make_shared<std::vector<std::vector<unsigned char>>>()](int64_t bytes) {
      return static_cast<void*>(all->emplace_back(bytes, 0xff).data());
    };
  }
};

}  // namespace aadl::lab
