// How the long dimension is cut up: into blocks that depend on the sizes only.
//
// A block lies in one segment. Blocks may run in any order and on any thread; each leaves its
// sums in a place of its own, and those are added up in the order of the blocks. So the result
// has the same bits for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

namespace aadl {

constexpr int64_t kBlock = 1 << 15;  // entries; 128 KiB a float row: a block of 10 rows fits in L2
constexpr int64_t kChunk =
    1 << 8;  // entries that a kernel takes of a row before it goes to the next

// Sums side by side: a type of the compiler's, so that they stay in registers.
template <int Width>
struct Lanes {
  typedef double type __attribute__((vector_size(Width * sizeof(double))));
};

struct Block {
  int64_t segment;
  int64_t begin;
  int64_t end;
};

inline std::vector<Block> make_blocks(const std::vector<int64_t>& offsets, int64_t size = kBlock) {
  std::vector<Block> blocks;
  for (size_t s = 0; s + 1 < offsets.size(); ++s) {
    for (int64_t begin = offsets[s]; begin < offsets[s + 1]; begin += size) {
      blocks.push_back({static_cast<int64_t>(s), begin, std::min(begin + size, offsets[s + 1])});
    }
  }
  return blocks;
}

// Calls body(i) for every block. What one block could hold is done here and now, in however many
// segments it comes: waking other threads would take longer.
template <class Parallel, class Body>
void run_blocks(const std::vector<Block>& blocks, const Parallel& parallel, const Body& body) {
  const int64_t count = static_cast<int64_t>(blocks.size());
  if (count > 1 && blocks.back().end - blocks.front().begin > kBlock) {
    parallel(count, std::function<void(int64_t)>(std::ref(body)));
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
}

}  // namespace aadl
