// Jacobi rotations by a block of threads, the team (solve.h) of a small problem.
//
// Where one thread alone rotates pair after pair, a block rotates all pairs of a round at once:
// they are disjoint, so that each finds the numbers that it would find in turn. In a round robin
// of the rows, every two meet once a sweep; an odd row out sits a round out. The order depends on
// the size only, and so do the bits. A round is a chain of a division, two roots and one or two
// barriers, an estimated microsecond; 32 rows take 31 rounds in each of six to ten sweeps.
#pragma once

#include "../common/solve.h"
#include "device.h"

namespace aadl::cuda {

// Threads: eight for each of the 16 pairs among 32 rows. Kernels are compiled for one block at a
// time, or registers would be spilled to make room for more.
constexpr int kTeam = 128;

struct BlockTeam {
  int64_t rank, size;
  int* votes;       // shared, one for each warp
  double* scratch;  // shared, [rows + 1]: rotations of a round

  __device__ __forceinline__ void sync() const { __syncthreads(); }

  __device__ __forceinline__ bool all(bool mine) const {
    int yes = mine;
    for (int by = kWarp / 2; by > 0; by /= 2) yes &= __shfl_xor_sync(kAllLanes, yes, by);
    if (rank % kWarp == 0) votes[rank / kWarp] = yes;
    sync();
    for (int warp = 0; warp < size / kWarp; ++warp) yes &= votes[warp];
    sync();
    return yes != 0;
  }
};

constexpr int64_t kSharedBytes = 47 * 1024;  // a block has 48 KiB without asking, votes among them

// Of a block over a problem of `rows` whose workspace is `size` doubles: scratch for the team, and
// the workspace, if there is room. Otherwise each block has one in global memory.
inline int64_t scratch_bytes(int64_t rows) { return (rows + 1) * sizeof(double); }
inline int64_t bytes_of(int64_t size) { return size * sizeof(double); }

inline bool fits_shared(int64_t rows, int64_t size) {
  return scratch_bytes(rows) + bytes_of(size) <= kSharedBytes;
}
inline int64_t shared_bytes(int64_t rows, int64_t size) {
  return scratch_bytes(rows) + (fits_shared(rows, size) ? bytes_of(size) : 0);
}
inline double* global_workspace(const Launch& launch, int64_t problems, int64_t rows,
                                int64_t size) {
  return fits_shared(rows, size) ? nullptr : workspace<double>(launch, problems * size);
}

// The team of this block; its workspace is behind the scratch unless `workspace` has one.
struct Desk {
  BlockTeam team;
  double* work;
};

__device__ __forceinline__ Desk desk(double* shared, int* votes, int64_t rows, double* workspace,
                                     int64_t size) {
  double* const work =
      workspace ? workspace + static_cast<int64_t>(blockIdx.x) * size : shared + rows + 1;
  return {{static_cast<int64_t>(threadIdx.x), kTeam, votes, shared}, work};
}

struct Round {
  int players;  // rows, and one that does not exist if their number is odd
  int pairs;

  explicit __device__ __forceinline__ Round(int64_t rows)
      : players(static_cast<int>(rows + rows % 2)), pairs(players / 2) {}

  // Rows first < second that meet in this round; `second` may be the one that does not exist.
  __device__ __forceinline__ void meet(int round, int pair, int* first, int* second) const {
    const int circle = players - 1, ahead = round + pair, behind = round - pair;
    const int a = ahead < circle ? ahead : ahead - circle;
    const int b = pair == 0 ? circle : behind < 0 ? behind + circle : behind;
    *first = a < b ? a : b;
    *second = a < b ? b : a;
  }
};

// As orthogonalize_rows in solve.h. Eight lanes share a pair and the entries of its rows.
__device__ __forceinline__ void orthogonalize_rows(const BlockTeam& team, double* a, int64_t size) {
  constexpr int kGroup = 8;
  const int rows = static_cast<int>(size), width = rows + 1;
  const int groups = static_cast<int>(team.size) / kGroup;
  const int group = static_cast<int>(team.rank) / kGroup;
  const int begin = static_cast<int>(team.rank) % kGroup;
  const double bound = product_error(size);
  const Round robin(size);
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool rotated = false;
    for (int round = 0; round < robin.players - 1; ++round) {
      for (int pair = group; pair - group < robin.pairs; pair += groups) {  // as often for all
        int p, q;
        robin.meet(round, pair, &p, &q);
        const bool meets = pair < robin.pairs && q < rows;
        double *const x = a + p * width, *const y = a + q * width;
        double first = 0, product = 0, second = 0;
        for (int i = begin; meets && i < rows; i += kGroup) {
          first += x[i] * x[i];
          product += x[i] * y[i];
          second += y[i] * y[i];
        }
        for (int by = kGroup / 2; by > 0; by /= 2) {
          first += __shfl_xor_sync(kAllLanes, first, by);
          product += __shfl_xor_sync(kAllLanes, product, by);
          second += __shfl_xor_sync(kAllLanes, second, by);
        }
        if (is_small(first, product, second, bound)) continue;
        rotated = true;
        const Rotation by = rotation(first, product, second);
        for (int i = begin; i < width; i += kGroup) rotate(by, x + i, y + i, 1);
      }
      team.sync();
    }
    if (team.all(!rotated)) return;
  }
}

// Rotations of a round, and what they do to the four entries where their pairs meet.
__device__ __forceinline__ void rotate_pairs(const BlockTeam& team, const Round& robin, int round,
                                             double* a, int size, double least, bool* rotated) {
  for (int pair = static_cast<int>(team.rank); pair < robin.pairs; pair += team.size) {
    int p, q;
    robin.meet(round, pair, &p, &q);
    Rotation by = {1, 0, 0};
    if (q < size) {
      const double first = a[p * size + p], product = a[p * size + q], second = a[q * size + q];
      if (!counts_as_zero(first, product, second, least)) {
        *rotated = true;
        by = rotation(first, product, second);
        a[p * size + p] = first - by.tangent * product;
        a[q * size + q] = second + by.tangent * product;
        a[p * size + q] = a[q * size + p] = 0;
      }
    }
    team.scratch[2 * pair] = by.cosine;
    team.scratch[2 * pair + 1] = by.sine;
  }
}

// The other entries: where the rows of one pair meet the columns of another, on both sides of the
// diagonal; and the rows of v.
__device__ __forceinline__ void apply_pairs(const BlockTeam& team, const Round& robin, int round,
                                            double* a, double* v, int size) {
  for (int i = static_cast<int>(team.rank); i < robin.pairs * robin.pairs; i += team.size) {
    const int above = i / robin.pairs, below = i % robin.pairs;
    if (above >= below) continue;
    int p, q, r, s;
    robin.meet(round, above, &p, &q);
    robin.meet(round, below, &r, &s);
    const double c = team.scratch[2 * above], d = team.scratch[2 * above + 1];
    const double e = team.scratch[2 * below], f = team.scratch[2 * below + 1];
    const bool both = q < size, right = s < size;
    const double pr = a[p * size + r], ps = right ? a[p * size + s] : 0;
    const double qr = both ? a[q * size + r] : 0, qs = both && right ? a[q * size + s] : 0;
    const double up_r = c * pr - d * qr, up_s = c * ps - d * qs;
    const double low_r = d * pr + c * qr, low_s = d * ps + c * qs;
    a[p * size + r] = a[r * size + p] = e * up_r - f * up_s;
    if (right) a[p * size + s] = a[s * size + p] = f * up_r + e * up_s;
    if (both) a[q * size + r] = a[r * size + q] = e * low_r - f * low_s;
    if (both && right) a[q * size + s] = a[s * size + q] = f * low_r + e * low_s;
  }
  for (int i = static_cast<int>(team.rank); i < robin.pairs * size; i += team.size) {
    const int pair = i / size, column = i % size;
    int p, q;
    robin.meet(round, pair, &p, &q);
    if (q >= size) continue;
    const Rotation by = {team.scratch[2 * pair], team.scratch[2 * pair + 1], 0};
    rotate(by, v + p * size + column, v + q * size + column, 1);
  }
}

// As diagonalize in solve.h.
__device__ __forceinline__ void diagonalize(const BlockTeam& team, double* a, double* v,
                                            int64_t size, double least) {
  const int rows = static_cast<int>(size);
  for (int i = static_cast<int>(team.rank); i < rows * rows; i += team.size) {
    v[i] = i % (rows + 1) == 0;
  }
  const Round robin(size);
  for (int sweep = 0; sweep < kSweeps; ++sweep) {
    bool rotated = false;
    for (int round = 0; round < robin.players - 1; ++round) {
      rotate_pairs(team, robin, round, a, rows, least, &rotated);
      team.sync();
      apply_pairs(team, robin, round, a, v, rows);
      team.sync();
    }
    if (team.all(!rotated)) return;
  }
}

}  // namespace aadl::cuda
