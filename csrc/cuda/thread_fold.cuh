// A fold for few columns: every thread keeps a triangle in registers and absorbs rows by
// Householder reflections, R <- R factor of [R; rows]; at the end the triangles of a warp are
// folded into one, by halves. See cpu/tsqr.cpp for the method. One warp a block, one tile a block.
//
// A thread takes 32 bytes of every column at a time, so that lanes read whole lines, and 8 k loads
// of a float are under way at once. Bytes: each entry once. Flops: 2 k^2 a row, which is k / 2 a
// byte of float32; for 11 columns, a third of what an H100 can do while it reads. Planned for
// sm_90, warps that fit on each of the four schedulers of a multiprocessor:
//   columns   4   6   8   11
//   float     6   4   3    2
//   double    4   3   2    -
#pragma once

#include "triangles.cuh"

namespace aadl::cuda {

template <class T, int K>
struct ThreadFold {
  static constexpr int kRows = 32 / sizeof(T);  // that a thread absorbs at once
  static constexpr int64_t kStep = kWarp * kRows;

  T r[K * (K + 1) / 2];  // row after row
  T x[K][kRows];         // column after column

  static constexpr __device__ __host__ int at(int i, int c) { return i * K - i * (i + 1) / 2 + c; }

  // r <- R factor of [r; x]; x is used up.
  __device__ __forceinline__ void absorb() { reflect<0>(); }

  // Reflectors j and behind: by recursion, since compilers give up on unrolling so long a loop.
  template <int j>
  __device__ __forceinline__ void reflect() {
    T square = 0;
#pragma unroll
    for (int i = 0; i < kRows; ++i) square += x[j][i] * x[j][i];
    const bool none = square <= Range<T>::kVanishing;
    const T diagonal = r[at(j, j)];
    const T norm = std::sqrt(diagonal * diagonal + square);
    const T u = none ? T(0) : diagonal + std::copysign(norm, diagonal);  // no cancellation
    const T weight = none ? T(0) : 1 / (norm * std::fabs(u));
    if (!none) r[at(j, j)] = -std::copysign(norm, diagonal);
#pragma unroll
    for (int c = j + 1; c < K; ++c) {
      T dot = u * r[at(j, c)];
#pragma unroll
      for (int i = 0; i < kRows; ++i) dot += x[j][i] * x[c][i];
      const T step = weight * dot;
      r[at(j, c)] -= step * u;
#pragma unroll
      for (int i = 0; i < kRows; ++i) x[c][i] -= step * x[j][i];
    }
    if constexpr (j + 1 < K) reflect<j + 1>();
  }

  // Rows first + lane + 32 i of the tile, times the powers; zero behind `end`.
  template <class S>
  __device__ __forceinline__ void load(const Columns<T, S>& from, const T* powers, int64_t first,
                                       int64_t end) {
    const int left = static_cast<int>(end - first < kStep ? end - first : kStep) - threadIdx.x;
    const S* column = from.rows + (first + threadIdx.x) * from.step;
    const int64_t next = kWarp * from.step;
#pragma unroll
    for (int c = 0; c < K; ++c) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const S raw = c < from.count && kWarp * i < left ? column[next * i] : S{};
        x[c][i] = static_cast<T>(widen(raw));
      }
      column += from.stride;
    }
    const T* const append = from.append + first + threadIdx.x;
#pragma unroll
    for (int c = 0; c < K; ++c) {
      if (!from.append || c != from.count) continue;
#pragma unroll
      for (int i = 0; i < kRows; ++i) x[c][i] = kWarp * i < left ? append[kWarp * i] : T(0);
    }
#pragma unroll
    for (int c = 0; c < K; ++c) {
      const T power = powers[c];
#pragma unroll
      for (int i = 0; i < kRows; ++i) x[c][i] *= power;
    }
  }

  // Whether squares may leave their range: entries are large, or those of a column in `fresh` are
  // the first that are not zero.
  __device__ __forceinline__ bool doubtful(unsigned fresh) const {
    T total = 0;
    unsigned seen = 0;
#pragma unroll
    for (int c = 0; c < K; ++c) {
      T sum = 0;
#pragma unroll
      for (int i = 0; i < kRows; ++i) sum += std::fabs(x[c][i]);
      total += sum;
      seen |= sum > 0 ? 1u << c : 0u;
    }
    return !(total <= Range<T>::kMost) || (seen & fresh) != 0;
  }

  // Adapts the powers of two to the largest entries that the warp has seen; true if one changed,
  // and x has to be loaded again.
  __device__ __forceinline__ bool rescale(int* exponents, T* powers, unsigned* fresh) {
    bool changed = false;
#pragma unroll
    for (int c = 0; c < K; ++c) {
      T largest = 0;
#pragma unroll
      for (int i = 0; i <= c; ++i) largest = std::fmax(largest, std::fabs(r[at(i, c)]));
#pragma unroll
      for (int i = 0; i < kRows; ++i) largest = std::fmax(largest, std::fabs(x[c][i]));
#pragma unroll
      for (int by = kWarp / 2; by > 0; by /= 2) {
        largest = std::fmax(largest, __shfl_xor_sync(kAllLanes, largest, by));
      }
      if (largest > 0) *fresh &= ~(1u << c);
      const int old = exponents[c], exponent = better_exponent(largest, old);
      __syncwarp();
      if (exponent == old) continue;
      changed = true;
#pragma unroll
      for (int i = 0; i <= c; ++i) r[at(i, c)] = std::ldexp(r[at(i, c)], exponent - old);
      if (threadIdx.x == 0) {
        exponents[c] = exponent;
        powers[c] = std::ldexp(T(1), exponent);
      }
    }
    __syncwarp();
    return changed;
  }

  // The triangles of all lanes into that of the first. Those that are taken over stay as they are
  // until they are read.
  __device__ __forceinline__ void join_lanes() {
#pragma unroll 1
    for (int by = kWarp / 2; by > 0; by /= 2) {
#pragma unroll
      for (int first = 0; first < K; first += kRows) {
#pragma unroll
        for (int c = 0; c < K; ++c) {
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            const bool inside = first + i <= c;
            x[c][i] =
                inside ? __shfl_down_sync(kAllLanes, r[inside ? at(first + i, c) : 0], by) : T(0);
          }
        }
        if (static_cast<int>(threadIdx.x) < by) absorb();
      }
    }
  }
};

template <class T, class S, int K>
__global__ void __launch_bounds__(kWarp, 1)
    fold_in_threads(Columns<T, S> from, Tiles tiles, Triangles to) {
  using Fold = ThreadFold<T, K>;
  AADL_SHARED(int, exponents, K);
  AADL_SHARED(T, powers, K);
  AADL_SHARED(T, factor, K * K);
  const int lane = threadIdx.x;
  if (lane < K) exponents[lane] = 0, powers[lane] = 1;
  __syncwarp();

  Fold fold;
#pragma unroll
  for (T& entry : fold.r) entry = 0;
  unsigned fresh = (1u << K) - 1;
  const Tile tile = tile_of_block(tiles, to);
#pragma unroll 1
  for (int64_t first = tile.begin; first < tile.end; first += Fold::kStep) {
    do {
      fold.load(from, powers, first, tile.end);
    } while (any_lane(fold.doubtful(fresh)) && fold.rescale(exponents, powers, &fresh));
    fold.absorb();
  }
  fold.join_lanes();
  if (lane == 0) {
#pragma unroll
    for (int i = 0; i < K; ++i) {
#pragma unroll
      for (int c = i; c < K; ++c) factor[i * K + c] = fold.r[Fold::at(i, c)];
    }
  }
  __syncwarp();
  write_triangle(factor, K, exponents, from.number(), to);
}

}  // namespace aadl::cuda
