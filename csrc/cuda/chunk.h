// How a block of threads takes entries of vectors: in chunks, of which every thread holds a few
// packs of 16 bytes, so that neighbouring threads read neighbouring packs.
//
// Chunks begin at multiples of their size, counted from the beginning of the vector, not of the
// tile: so packs are aligned if vectors are. Where a chunk lies in a tile in part only, or where a
// vector is not aligned, entries are taken one by one.
#pragma once

#include "../common/scalar.h"
#include "device.h"

namespace aadl::cuda {

constexpr int kThreads = 256;

// Entries that a thread holds, of which T is computed with: 32 bytes.
template <class T>
constexpr int kHeld = 32 / static_cast<int>(sizeof(T));

template <class T>
constexpr int64_t kChunkSize = int64_t{kThreads} * kHeld<T>;

template <class S, int kSize>
struct alignas(16 < sizeof(S) * kSize ? 16 : sizeof(S) * kSize) Pack {
  S entry[kSize];
};

// The entries that a thread holds of a chunk of vectors of T and rows of S: in whole packs of them,
// or, at the ends of a tile and of vectors that are not aligned, one by one.
template <class T, class S, bool packed>
struct Share {
  static constexpr int kSize = kHeld<T>;
  static constexpr int kPack = 16 / sizeof(S) < kSize ? 16 / sizeof(S) : kSize;

  int64_t chunk, begin, end;  // of the chunk; of the tile

  __device__ __forceinline__ int64_t index(int j) const {
    return chunk + (j / kPack) * (kThreads * kPack) + threadIdx.x * kPack + j % kPack;
  }

  __device__ __forceinline__ bool has(int j) const { return index(j) >= begin && index(j) < end; }

  // Entries of a vector, widened; zero where the tile has none.
  template <class From, class Wide>
  __device__ __forceinline__ void load(const From* vector, Wide (&to)[kSize]) const {
    if constexpr (packed) {
#pragma unroll
      for (int j = 0; j < kSize; j += kPack) {
        const auto pack = *reinterpret_cast<const Pack<From, kPack>*>(vector + index(j));
#pragma unroll
        for (int i = 0; i < kPack; ++i) to[j + i] = static_cast<Wide>(widen(pack.entry[i]));
      }
    } else {
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        to[j] = has(j) ? static_cast<Wide>(widen(vector[index(j)])) : Wide(0);
      }
    }
  }

  template <class To>
  __device__ __forceinline__ void store(To* vector, const To (&from)[kSize]) const {
    if constexpr (packed) {
#pragma unroll
      for (int j = 0; j < kSize; j += kPack) {
        Pack<To, kPack> pack;
#pragma unroll
        for (int i = 0; i < kPack; ++i) pack.entry[i] = from[j + i];
        *reinterpret_cast<Pack<To, kPack>*>(vector + index(j)) = pack;
      }
    } else {
#pragma unroll
      for (int j = 0; j < kSize; ++j) {
        if (has(j)) vector[index(j)] = from[j];
      }
    }
  }
};

// Calls use(share) for the chunks of a tile.
template <class T, class S, class Use>
__device__ __forceinline__ void for_chunks(int64_t begin, int64_t end, bool aligned,
                                           const Use& use) {
  for (int64_t chunk = begin - begin % kChunkSize<T>; chunk < end; chunk += kChunkSize<T>) {
    if (aligned && chunk >= begin && chunk + kChunkSize<T> <= end) {
      use(Share<T, S, true>{chunk, begin, end});
    } else {
      use(Share<T, S, false>{chunk, begin, end});
    }
  }
}

// Whether packs of a vector may be read at once; null counts as aligned.
__host__ __device__ inline bool aligned(const void* vector) {
  return reinterpret_cast<uintptr_t>(vector) % 16 == 0;
}

template <class S>
bool aligned(const S* rows, int64_t stride, int64_t count) {
  return aligned(rows) && (count < 2 || stride * sizeof(S) % 16 == 0);
}

}  // namespace aadl::cuda
