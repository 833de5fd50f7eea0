// A fold for many columns: a block of one or more warps keeps one triangle in shared memory and
// absorbs tiles of rows that its registers hold. See ../fold.h for the method.
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

#include "block_tile.cuh"

namespace aadl::cuda {

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
