// The rows that a block of one or more warps is about to absorb, in its registers, and what its
// threads do together: see block_fold.cuh.
#pragma once

#include "triangles.cuh"

namespace aadl::cuda {

template <class T, int kGroups, int kTeamWarps>
struct BlockTile {
  using Value = T;
  static constexpr int kColumnLanes = 8;
  static constexpr int kColumnGroups = kGroups;
  static constexpr int kWidth = kColumnLanes * kGroups;  // most columns
  static constexpr int kRowLanes = kWarp / kColumnLanes * kTeamWarps;
  static constexpr int kWords = sizeof(T) / 4;
  // Rows of a lane: as the registers have room for, beside some eight words for a column.
  static constexpr int kRoom = (120 - 8 * kGroups) / (kWords * kGroups), kMost = 32 / kWords;
  static constexpr int kHeight = (kRoom < kMost ? kRoom : kMost) / 4 * 4;
  static constexpr int64_t kRows = kRowLanes * kHeight;
  static constexpr int kPitch = kHeight / 4 + 1;  // one more: lanes find different banks
  using Four = Pack<T, 4>;

  struct Shared {
    T* factor;       // [kWidth, kWidth]
    Four* vectors;   // [2, kRowLanes, kPitch], reflectors by turns
    T* partials;     // [2, kTeamWarps, kWidth], by turns
    int* exponents;  // [kWidth]
    int* votes;      // [kTeamWarps]
  };

  const Shared shared;
  const int columns;
  const int column_lane, row_lane, warp;
  T x[kGroups][kHeight];
  T power[kGroups], largest[kGroups], most[kGroups];  // `most` with the tile that is loaded
  int turn = 0;

  __device__ __forceinline__ BlockTile(const Shared& shared, int columns)
      : shared(shared),
        columns(columns),
        column_lane(threadIdx.x % kColumnLanes),
        row_lane(threadIdx.x / kColumnLanes),
        warp(threadIdx.x / kWarp) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) power[g] = 1, largest[g] = 0;
    for (int i = threadIdx.x; i < kWidth * kWidth; i += blockDim.x) shared.factor[i] = 0;
    for (int c = threadIdx.x; c < kWidth; c += blockDim.x) shared.exponents[c] = 0;
    sync();
  }

  static __device__ __forceinline__ void sync() {
    if constexpr (kTeamWarps == 1) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }

  __device__ __forceinline__ int column(int group) const {
    return group * kColumnLanes + column_lane;
  }

  // To all lanes; a sync() as well.
  __device__ __forceinline__ bool any(bool mine) const {
    bool found = any_lane(mine);
    if constexpr (kTeamWarps > 1) {
      if (threadIdx.x % kWarp == 0) shared.votes[warp] = found;
      __syncthreads();
      for (int w = 0; w < kTeamWarps; ++w) found |= shared.votes[w] != 0;
    }
    sync();
    return found;
  }

  // Combines a value of every row lane, by columns, for the groups from `begin` on.
  template <class Combine>
  __device__ __forceinline__ void over_rows(T (&values)[kGroups], int begin,
                                            const Combine& combine) {
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g < begin) continue;
      values[g] = combine(values[g], __shfl_xor_sync(kAllLanes, values[g], kColumnLanes));
      values[g] = combine(values[g], __shfl_xor_sync(kAllLanes, values[g], 2 * kColumnLanes));
    }
    if constexpr (kTeamWarps > 1) {
      T* const partials = shared.partials + turn * kTeamWarps * kWidth;
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if (g >= begin && row_lane % 4 == 0) partials[warp * kWidth + column(g)] = values[g];
      }
      __syncthreads();
#pragma unroll
      for (int g = 0; g < kGroups; ++g) {
        if (g < begin) continue;
        values[g] = partials[column(g)];
        for (int w = 1; w < kTeamWarps; ++w) {
          values[g] = combine(values[g], partials[w * kWidth + column(g)]);
        }
      }
    }
  }

  // Entries of one column: four in a row, then those of the other row lanes, and so on.
  template <class S>
  __device__ __forceinline__ void load_column(const S* from, int64_t first, int64_t begin,
                                              int64_t end, bool packed, T (&to)[kHeight]) const {
#pragma unroll
    for (int i = 0; i < kHeight; i += 4) {
      const int64_t row = first + (i / 4 * kRowLanes + row_lane) * 4;
      if (packed) {
        const auto four = *reinterpret_cast<const Pack<S, 4>*>(from + row);
#pragma unroll
        for (int j = 0; j < 4; ++j) to[i + j] = static_cast<T>(widen(four.entry[j]));
      } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const bool inside = row + j >= begin && row + j < end;
          to[i + j] = inside ? static_cast<T>(widen(from[row + j])) : T(0);
        }
      }
    }
  }

  // Rows from `first`, a multiple of four, times the powers; zero outside of the tile. Returns
  // whether squares of this lane's entries may leave their range.
  template <class S>
  __device__ __forceinline__ bool load(const Columns<T, S>& from, int64_t first, const Tile& tile) {
    const bool packed = from.packed && first >= tile.begin && first + kRows <= tile.end;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int c = column(g);
      if (c < from.count) {
        load_column(from.rows + c * from.stride, first, tile.begin, tile.end, packed, x[g]);
      } else if (c < columns) {
        load_column(from.append, first, tile.begin, tile.end, packed, x[g]);
      } else {
#pragma unroll
        for (T& entry : x[g]) entry = 0;
      }
    }
    bool misfits = false;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      most[g] = largest[g];
#pragma unroll
      for (T& entry : x[g]) {
        entry *= power[g];
        most[g] = std::fmax(most[g], std::fabs(entry));
      }
      const bool fits = most[g] >= Range<T>::kLeast && most[g] <= Range<T>::kMost;
      misfits = misfits || !(fits || most[g] == 0);
    }
    return misfits;
  }

  // Adapts the powers of two to the largest entries of all row lanes; true if one changed, and x
  // has to be loaded again.
  __device__ __forceinline__ bool rescale() {
    over_rows(most, 0, [](T a, T b) { return std::fmax(a, b); });
    turn ^= 1;
    int old[kGroups], exponent[kGroups];
    bool changed = false;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      old[g] = shared.exponents[column(g)];
      exponent[g] = better_exponent(most[g], old[g]);
      changed = changed || exponent[g] != old[g];
    }
    changed = any(changed);
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (exponent[g] == old[g]) continue;
      largest[g] = std::ldexp(largest[g], exponent[g] - old[g]);
      power[g] = std::ldexp(T(1), exponent[g]);
      if (row_lane > 0) continue;
      shared.exponents[column(g)] = exponent[g];
      for (int i = 0; i < columns; ++i) {
        T& entry = shared.factor[i * kWidth + column(g)];
        entry = std::ldexp(entry, exponent[g] - old[g]);
      }
    }
    sync();
    return changed;
  }
};

}  // namespace aadl::cuda
