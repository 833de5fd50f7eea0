// A block of threads as the team (team.h) of a small problem, and the memory that it works in.
#pragma once

#include "../team.h"
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
inline int64_t global_bytes(int64_t problems, int64_t rows, int64_t size) {
  return fits_shared(rows, size) ? 0 : problems * bytes_of(size);
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

}  // namespace aadl::cuda
