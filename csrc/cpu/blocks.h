// How the CPU kernels go through memory.
//
// The long dimension is cut up into blocks that depend on the sizes only. A block lies in one
// segment. Blocks may run in any order and on any thread; each leaves its sums in a place of its
// own, and those are added up in the order of the blocks. So the result has the same bits for any
// number of threads.
//
// Stores may go past the caches. An ordinary store first reads the line that it overwrites. For a
// vector that is written whole and not read again soon, a non-temporal store saves this read and
// leaves the cache to the rows. It does not pay where the data stay in cache until their next use,
// nor for lines just read.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "../common/target.h"
#include "kernels.h"

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define AADL_STREAM 1
#endif

namespace aadl::cpu {

constexpr int64_t kBlock = 1 << 15;  // entries; 128 KiB a float row: a block of 10 rows fits in L2
constexpr int64_t kChunk = 1 << 8;   // that a kernel takes of a row before it goes to the next
constexpr int64_t kSlice = 64;       // of a row between two requests for more of it

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

inline std::vector<Block> make_blocks(const int64_t* offsets, int64_t segments,
                                      int64_t size = kBlock) {
  std::vector<Block> blocks;
  for (int64_t s = 0; s < segments; ++s) {
    for (int64_t begin = offsets[s]; begin < offsets[s + 1]; begin += size) {
      blocks.push_back({s, begin, std::min(begin + size, offsets[s + 1])});
    }
  }
  return blocks;
}

inline std::vector<Block> make_blocks(int64_t total) {
  const int64_t offsets[] = {0, total};
  return make_blocks(offsets, 1);
}

// Where pieces begin if they lie one behind the other.
template <class AnyPiece>
std::vector<int64_t> positions(const std::vector<AnyPiece>& pieces) {
  std::vector<int64_t> offsets = {0};
  for (const AnyPiece& piece : pieces) offsets.push_back(offsets.back() + piece.count);
  return offsets;
}

// Calls body(i) for every block. What one block could hold is done here and now, in however many
// segments it comes: waking other threads would take longer.
template <class Body>
void run_blocks(const std::vector<Block>& blocks, const Threads& threads, const Body& body) {
  const int64_t count = static_cast<int64_t>(blocks.size());
  if (count > 1 && blocks.back().end - blocks.front().begin > kBlock) {
    threads.run(count, std::ref(body));
  } else {
    for (int64_t i = 0; i < count; ++i) body(i);
  }
}

// Whether data of this size are gone from the caches before their next use.
inline bool exceeds_cache(int64_t bytes) { return bytes > (int64_t{32} << 20); }

// Asks for the slice of a row that lies `Ahead` entries further, into the second-level cache. The
// processor's own prefetching starts anew for every row of a chunk, and the row ends before it is
// in its stride. The slice may lie past the end: nothing is read.
template <int64_t Ahead, class S>
AADL_INLINE void fetch_ahead(const S* from) {
#if defined(__GNUC__)
  const uintptr_t there = reinterpret_cast<uintptr_t>(from) + Ahead * sizeof(S);
  for (uintptr_t i = 0; i < kSlice * sizeof(S); i += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(there + i), 0, 2);
  }
#else
  (void)from;
#endif
}

// Copies a piece that was just computed, and so is in L1, to where it belongs.
template <class S>
AADL_INLINE void store(S* to, const S* from, int64_t count, bool stream) {
  int64_t done = 0;
#ifdef AADL_STREAM
  if (stream) {
    // Whole lines only: a line written in part is read, merged and written back.
    const int64_t past_line = static_cast<int64_t>(reinterpret_cast<uintptr_t>(to) % 64);
    const int64_t head = (past_line ? 64 - past_line : 0) / static_cast<int64_t>(sizeof(S));
    done = std::min(head, count);
    std::memcpy(to, from, done * sizeof(S));
    constexpr int64_t kLine = 64 / sizeof(S);
    for (; done + kLine <= count; done += kLine) {
      const __m128i* source = reinterpret_cast<const __m128i*>(from + done);
      __m128i* target = reinterpret_cast<__m128i*>(to + done);
      for (int i = 0; i < 4; ++i) _mm_stream_si128(target + i, _mm_loadu_si128(source + i));
    }
  }
#else
  (void)stream;
#endif
  if (done < count) std::memcpy(to + done, from + done, (count - done) * sizeof(S));
}

// Non-temporal stores are not ordered with others: to be called before another thread may read.
inline void finish_stores(bool stream) {
#ifdef AADL_STREAM
  if (stream) _mm_sfence();
#else
  (void)stream;
#endif
}

}  // namespace aadl::cpu
