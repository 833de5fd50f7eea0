// A fold for many columns: a block of one or more warps keeps one triangle in shared memory and
// absorbs tiles of rows that its registers hold. See cpu/tsqr.cpp for the method.
//
// A warp is a grid of 8 lanes along the columns and 4 along the rows. Lane q holds columns q,
// 8 + q, 16 + q, ..., so that all lanes stay busy while the factorisation moves to the right. For
// reflector j its column goes through shared memory to the lanes of the same rows, which take its
// products with their columns; sums over the rows are shuffled, and between warps pass through
// shared memory in a fixed order; then every lane updates its columns. All lanes keep the scalars,
// computed from the same numbers.
//
// Many single-warp blocks, with as many rows in registers as there is room for, fold a long matrix:
// no barrier holds more than one warp up. Blocks of eight warps join the triangles, where there are
// few rows and the time of a step counts: that of a reflector hardly depends on the rows.
//
// Bytes: each entry once. Flops: 2 k^2 a row. Instructions of a warp for a tile of 128 float rows:
// 64 a reflector and group of columns, over half of them useful beside the triangle, and an
// estimated 75 others; so at 21 columns the issue slots of an H100 are good for about half of its
// memory bandwidth. To fill them while reflectors wait for their roots and shuffles, three warps
// fit on each of the four schedulers of a multiprocessor (four up to 16 columns, two of a join).
#pragma once

#include "triangles.cuh"

namespace aadl::cuda {

// The rows that a block is about to absorb, in its registers, and what its threads do together.
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

// Reflector 8 * group + lane.
template <class Held>
__device__ __forceinline__ void reflect(Held& held, int group, int lane) {
  using T = typename Held::Value;
  constexpr int kGroups = Held::kColumnGroups, kHeight = Held::kHeight;
  T* const row = held.shared.factor + (group * Held::kColumnLanes + lane) * Held::kWidth;
  typename Held::Four* const vector =
      held.shared.vectors + (held.turn * Held::kRowLanes + held.row_lane) * Held::kPitch;
  if (held.column_lane == lane) {
#pragma unroll
    for (int i = 0; i < kHeight; i += 4) {
      vector[i / 4] = {held.x[group][i], held.x[group][i + 1], held.x[group][i + 2],
                       held.x[group][i + 3]};
    }
  }
  T entry[kGroups], dot[kGroups];
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    dot[g] = 0;
    entry[g] = g < group ? T(0) : row[held.column(g)];
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < kHeight; i += 4) {
    const typename Held::Four v = vector[i / 4];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g < group) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) dot[g] += v.entry[j] * held.x[g][i + j];
    }
  }
  held.over_rows(dot, group, [](T a, T b) { return a + b; });

  const T square = __shfl_sync(kAllLanes, dot[group], lane);
  const T diagonal = __shfl_sync(kAllLanes, entry[group], lane);
  const bool none = square <= Range<T>::kVanishing;
  const T norm = std::sqrt(diagonal * diagonal + square);
  const T u = none ? T(0) : diagonal + std::copysign(norm, diagonal);  // no cancellation
  const T weight = none ? T(0) : 1 / (norm * std::fabs(u));
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
    if (g < group) continue;
    const bool behind = g > group || held.column_lane > lane;
    const bool own = g == group && held.column_lane == lane;
    dot[g] = behind ? weight * (u * entry[g] + dot[g]) : T(0);  // the step of this column
    if (own && !none) entry[g] = -std::copysign(norm, diagonal);
    if (behind) entry[g] -= u * dot[g];
    if (held.row_lane == 0 && (behind || own)) row[held.column(g)] = entry[g];
  }
#pragma unroll
  for (int i = 0; i < kHeight; i += 4) {
    const typename Held::Four v = vector[i / 4];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      if (g < group) continue;
#pragma unroll
      for (int j = 0; j < 4; ++j) held.x[g][i + j] -= dot[g] * v.entry[j];
    }
  }
  held.turn ^= 1;
}

// factor <- R factor of [factor; x]; x is used up.
template <class Held>
__device__ __forceinline__ void absorb(Held& held) {
#pragma unroll
  for (int g = 0; g < Held::kColumnGroups; ++g) {
    held.largest[g] = held.most[g];
    const int left = held.columns - g * Held::kColumnLanes;
#pragma unroll 1
    for (int lane = 0; lane < Held::kColumnLanes && lane < left; ++lane) reflect(held, g, lane);
  }
  held.sync();
}

template <class T, class S, int kGroups, int kTeamWarps>
__global__ void __launch_bounds__(kWarp* kTeamWarps, kTeamWarps == 1 ? 12 : 1)
    fold_in_blocks(Columns<T, S> from, Tiles tiles, Triangles to) {
  using Held = BlockTile<T, kGroups, kTeamWarps>;
  AADL_SHARED(T, factor, Held::kWidth * Held::kWidth);
  AADL_SHARED(typename Held::Four, vectors, 2 * Held::kRowLanes * Held::kPitch);
  AADL_SHARED(T, partials, 2 * kTeamWarps * Held::kWidth);
  AADL_SHARED(int, exponents, Held::kWidth);
  AADL_SHARED(int, votes, kTeamWarps);
  Held held({factor, vectors, partials, exponents, votes}, from.number());
  const Tile tile = tile_of_block(tiles, to);
#pragma unroll 1
  for (int64_t first = tile.begin / 4 * 4; first < tile.end; first += Held::kRows) {
    while (held.any(held.load(from, first, tile)) && held.rescale()) continue;
    absorb(held);
  }
  write_triangle(factor, Held::kWidth, exponents, from.number(), to);
}

}  // namespace aadl::cuda
