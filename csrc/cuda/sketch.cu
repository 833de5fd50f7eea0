// Count sketch of a list of pieces. A thread has a column of the sketch and some rows of the flat
// vector, cut up into rows of as many entries as the sketch has; the sums of each run of rows are
// brought together by a second kernel, in order.
#include "../common/sketch.h"

#include <type_traits>

#include "chunk.h"
#include "kernels.h"
#include "pieces.h"

namespace aadl::cuda {
namespace {

constexpr int64_t kRunRows = 16;  // at least, for a thread
constexpr int64_t kMostRuns = 64;
constexpr int kAtOnce = 4;  // loads under way

template <int kMost>
struct SketchRuns {
  Weighted pieces[kMost];
  int count;
  int64_t size, rows, run;  // rows of the whole vector, and of a run
  double* partials;         // [runs, size]
  bool adds;                // to what other pieces have left there
};

__device__ __forceinline__ double entry_of(const Weighted& piece, int64_t i) {
  const int64_t at = i - piece.first;
  if (piece.type == Type::kFloat) return static_cast<const float*>(piece.begin)[at];
  if (piece.type == Type::kDouble) return static_cast<const double*>(piece.begin)[at];
  if (piece.type == Type::kBFloat16) return widen(static_cast<const BFloat16*>(piece.begin)[at]);
  return widen(static_cast<const Half*>(piece.begin)[at]);
}

__device__ __forceinline__ double signed_weight(const Weighted& piece, int64_t i) {
  return turned(static_cast<uint64_t>(i)) ? -piece.weight : piece.weight;
}

// The first piece that ends behind entry i.
template <int kMost>
__device__ __forceinline__ int piece_at(const SketchRuns<kMost>& own, int64_t i) {
  int low = 0, high = own.count;
  while (low < high) {
    const int middle = (low + high) / 2;
    const Weighted& piece = own.pieces[middle];
    if (piece.first + piece.count <= i) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

template <int kMost>
__global__ void __launch_bounds__(kThreads) sketch_runs(SketchRuns<kMost> own) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= own.size) return;
  const int64_t begin = blockIdx.y * own.run;
  const int64_t end = begin + own.run < own.rows ? begin + own.run : own.rows;
  int64_t i = begin * own.size + column;
  const int64_t stop = end * own.size;
  double sum = 0;
  for (int p = piece_at(own, i); p < own.count; ++p) {
    const Weighted& piece = own.pieces[p];
    if (i >= stop) break;
    if (i < piece.first) i += (piece.first - i + own.size - 1) / own.size * own.size;
    const int64_t last = piece.first + piece.count, until = last < stop ? last : stop;
    for (; i + (kAtOnce - 1) * own.size < until; i += kAtOnce * own.size) {
      double x[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) x[k] = entry_of(piece, i + k * own.size);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) sum += signed_weight(piece, i + k * own.size) * x[k];
    }
    for (; i < until; i += own.size) sum += signed_weight(piece, i) * entry_of(piece, i);
  }
  double& partial = own.partials[blockIdx.y * own.size + column];
  partial = own.adds ? partial + sum : sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_runs(const double* partials, int64_t runs, int64_t size, double* out) {
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= size) return;
  double sum = 0;
#pragma unroll 8
  for (int64_t run = 0; run < runs; ++run) sum += partials[run * size + column];
  out[column] = sum;
}

}  // namespace

void sketch(const std::vector<Weighted>& pieces, int64_t size, double* out, const Launch& launch) {
  const int64_t entries = pieces.empty() ? 0 : pieces.back().first + pieces.back().count;
  const int64_t rows = (entries + size - 1) / size;
  const int64_t run = std::max(kRunRows, (rows + kMostRuns - 1) / kMostRuns);
  const int64_t runs = (rows + run - 1) / run, blocks = (size + kThreads - 1) / kThreads;
  double* const partials = workspace<double>(launch, runs * size);
  with_room_for(pieces.size(), [&](auto most) {
    constexpr int kMost = decltype(most)::value;
    SketchRuns<kMost> own = {{}, 0, size, rows, run, partials, false};
    static_assert(sizeof own <= (kMost > kFewPieces ? 32764 : 4096), "arguments of a kernel");
    for (size_t begin = 0; begin < pieces.size(); begin += kMost, own.adds = true) {
      own.count = static_cast<int>(std::min<size_t>(pieces.size() - begin, kMost));
      std::copy_n(pieces.begin() + begin, own.count, own.pieces);
      const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(runs));
      AADL_LAUNCH(sketch_runs<kMost>, grid, kThreads, 0, launch.stream, own);
      check_launch("sketch");
    }
  });
  AADL_LAUNCH(sum_runs, static_cast<unsigned>(blocks), kThreads, 0, launch.stream, partials, runs,
              size, out);
  check_launch("sketch");
}

}  // namespace aadl::cuda
