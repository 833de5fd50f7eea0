// Signs by chance: ops/sketch.py.
#pragma once

#include <cstdint>

#include "target.h"

namespace aadl {

// Whether entry i is taken with the sign turned.
AADL_INLINE uint32_t turned(uint64_t i) {
  uint32_t x = static_cast<uint32_t>(i) ^ (static_cast<uint32_t>(i >> 32) * 0x9e3779b9u);
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return (x ^ (x >> 16)) & 1u;
}

}  // namespace aadl
