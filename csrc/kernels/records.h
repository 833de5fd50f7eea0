// What kernels of the CPU and of CUDA take alike.
#pragma once

#include <cstdint>

namespace aadl {

enum class Type { kFloat, kDouble, kBFloat16, kHalf };

constexpr int64_t size_of(Type type) {
  return type == Type::kDouble ? 8 : type == Type::kFloat ? 4 : 2;
}

// Contiguous entries, to be copied or converted; the two places must not overlap.
struct Piece {
  const void* from;
  void* to;
  int64_t count;
  Type from_type, to_type;
};

// Contiguous entries.
struct Entries {
  const void* begin;
  int64_t count;
  Type type;
};

// Means of `count` samples: see ops.push_block. The sums become zero.
template <class T, class S>
struct BlockMeans {
  T* point_sum;
  T* gradient_sum;
  T* noise_sum;  // null without noise_row
  int64_t count;
  T* last_point;
  T* last_gradient;
  S* step_row;  // null after the first block, with gradient_row
  S* gradient_row;
  S* noise_row;
  int64_t size;
  const bool* accept;  // null counts as true
};

}  // namespace aadl
