// The new secant pair and its products with all rows, in one pass: see Push in records.h.
//
// A block takes a tile, chunk after chunk. Threads form their entries of the pair and keep them in
// registers; rows pass by in groups of four, whose 8 sums over a chunk are brought together by the
// lanes (sums.h) and added up in shared memory, so that registers do not depend on how many
// rows there are. Every vector is read once: 4 + m of them, 3 are written. About 2 m float64
// multiply-adds and m conversions an entry, which an H100 does several times faster than it reads.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "chunk.h"
#include "kernels.h"
#include "sums.h"
#include "tiles.h"

namespace aadl::cuda {
namespace {

constexpr int kRowGroup = 4;
constexpr int kRowsAtOnce = 128;  // in shared memory

// Values of a tile: right_side [rows], gram_row [rows], then these.
enum PushValue { kSquaredNorm, kRowNorm, kNoise, kLargestStep, kLargestWay, kPushValues };
constexpr int kPeaks = 2;  // the last of them

template <class T, class S>
struct PushTile {
  Push<T, S> args;
  int64_t first_row, rows;  // to multiply with
  bool forms;               // the pair; or reads it, formed before
  bool aligned;
  double* partials;
  int64_t total_tiles, first_tile;
  double rates[kSegmentsAtOnce], rounding[kSegmentsAtOnce];
};

// What a thread holds of the new pair.
template <class T>
struct Pair {
  T residual[kHeld<T>];
  T row[kHeld<T>];  // as stored; zero without slot
};

// Sums over a tile, of one thread.
template <class T, class Sum>
struct PairSums {
  Sum squared_norm, row_norm;
  Sum points;  // |after|^2 + |last_point|^2
  Magnitude<T> peak = 0;
  Magnitude<T> way = 0;  // of the step row
};

template <class Sum, class T, class S, bool packed>
__device__ __forceinline__ void form_pair(const Push<T, S>& args, double exact_rate,
                                          const Share<T, S, packed>& share, Pair<T>& pair,
                                          PairSums<T, Sum>& sums) {
  using Factor = typename Sum::Factor;
  const T rate = static_cast<T>(exact_rate);
  // At rate 0 every finite step counts as none, but NaN and infinity shall be seen.
  const T divisor = exact_rate == 0 ? std::numeric_limits<T>::infinity() : rate;
  T before[kHeld<T>], other[kHeld<T>];
  share.load(args.before, before);
  share.load(args.after, other);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) {
    const T step = other[j] - before[j];
    const Magnitude<T> size = magnitude(step);
    sums.peak = size > sums.peak ? size : sums.peak;
    pair.residual[j] = step / divisor;
    pair.row[j] = 0;
    sums.squared_norm.add(static_cast<Factor>(pair.residual[j]),
                          static_cast<Factor>(pair.residual[j]));
    sums.points.add(static_cast<Factor>(other[j]), static_cast<Factor>(other[j]));
  }
  share.store(args.residual, pair.residual);
  if (args.slot < 0) return;

  T point[kHeld<T>];
  S step_row[kHeld<T>], residual_row[kHeld<T>];
  share.load(args.last_residual, other);
  share.load(args.last_point, point);
#pragma unroll
  for (int j = 0; j < kHeld<T>; ++j) {
    const T difference = pair.residual[j] - other[j];
    residual_row[j] = narrow<S>(difference);
    step_row[j] = narrow<S>((before[j] - point[j]) + rate * difference);
    pair.row[j] = static_cast<T>(widen(residual_row[j]));
    const Factor row = static_cast<Factor>(pair.row[j]);
    const T way = static_cast<T>(widen(step_row[j]));
    const Factor step = static_cast<Factor>(way);
    sums.way = magnitude(way) > sums.way ? magnitude(way) : sums.way;
    sums.row_norm.add(row, row);
    sums.row_norm.add(step, step);
    sums.points.add(static_cast<Factor>(point[j]), static_cast<Factor>(point[j]));
  }
  share.store(args.residual_rows + args.slot * args.stride, residual_row);
  share.store(args.step_rows + args.slot * args.stride, step_row);
}

// Adds the products of a chunk to sums [2, rows] of this warp. All rows of a group are under way
// before the first is used. The new row is read back like any other, from what this very thread has
// stored. Places past the last row are computed with the last, and not written.
template <class Sum, class T, class S, bool packed>
__device__ __forceinline__ void multiply_rows(const PushTile<T, S>& tile,
                                              const Share<T, S, packed>& share, const Pair<T>& pair,
                                              double* sums) {
  using Factor = typename Sum::Factor;
  const Push<T, S>& args = tile.args;
  const int lane = threadIdx.x % kWarp, rows = static_cast<int>(tile.rows);
  const S* const first = args.residual_rows + tile.first_row * args.stride;
  for (int begin = 0; begin < rows; begin += kRowGroup) {
    T x[kRowGroup][kHeld<T>];
#pragma unroll
    for (int k = 0; k < kRowGroup; ++k) {
      const int row = begin + k < rows ? begin + k : rows - 1;
      share.load(first + row * args.stride, x[k]);
    }
    Sum dots[2 * kRowGroup];
#pragma unroll
    for (int k = 0; k < kRowGroup; ++k) {
#pragma unroll
      for (int j = 0; j < kHeld<T>; ++j) {
        const Factor factor = static_cast<Factor>(x[k][j]);
        dots[k].add(factor, static_cast<Factor>(pair.residual[j]));
        dots[kRowGroup + k].add(factor, static_cast<Factor>(pair.row[j]));
      }
    }
    double values[2 * kRowGroup];
#pragma unroll
    for (int i = 0; i < 2 * kRowGroup; ++i) values[i] = dots[i].value();
    const double sum = sum_lanes(values);
    const int row = begin + lane % kRowGroup, half = lane / kRowGroup;
    if (half < 2 && row < rows) sums[half * rows + row] += sum;
  }
}

template <class Sum, class T, class S>
__global__ void __launch_bounds__(kThreads, 2) push_tiles(PushTile<T, S> own, Tiles tiles) {
  AADL_DYNAMIC_SHARED(double, all_sums);  // [kWarps, 2, rows]
  const Push<T, S>& args = own.args;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int products = 2 * static_cast<int>(own.rows);
  double* const sums = all_sums + warp * products;
  for (int i = lane; i < products; i += kWarp) sums[i] = 0;
  __syncwarp();

  const Tile tile = tile_of(tiles, blockIdx.x);
  PairSums<T, Sum> norms;
  for_chunks<T, S>(tile.begin, tile.end, own.aligned, [&](const auto& share) {
    Pair<T> pair;
    if (own.forms) {
      form_pair<Sum>(args, own.rates[tile.segment], share, pair, norms);
    } else {
      share.load(args.residual, pair.residual);
#pragma unroll
      for (int j = 0; j < kHeld<T>; ++j) pair.row[j] = 0;
      if (args.slot >= 0) share.load(args.residual_rows + args.slot * args.stride, pair.row);
    }
    multiply_rows<Sum>(own, share, pair, sums);
  });

  double* const out = own.partials + own.first_tile + blockIdx.x;
  __syncthreads();
  for (int i = threadIdx.x; i < products; i += kThreads) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += all_sums[w * products + i];
    const int64_t half = i / own.rows, row = own.first_row + i % own.rows;
    out[(half * args.rows + row) * own.total_tiles] = sum;
  }
  if (!own.forms) return;
  const double squared_norm = sum_block(norms.squared_norm.value());
  const double row_norm = sum_block(norms.row_norm.value());
  const double points = sum_block(norms.points.value());
  const Magnitude<T> peak = max_block(norms.peak);
  const Magnitude<T> way = max_block(norms.way);
  if (threadIdx.x == 0) {
    double* const rest = out + 2 * args.rows * own.total_tiles;
    rest[kSquaredNorm * own.total_tiles] = squared_norm;
    rest[kRowNorm * own.total_tiles] = row_norm;
    rest[kNoise * own.total_tiles] = row_noise<T, S>(own.rounding[tile.segment], points,
                                                     squared_norm, tile.end - tile.begin);
    rest[kLargestStep * own.total_tiles] = from_magnitude(peak);
    rest[kLargestWay * own.total_tiles] = from_magnitude(way);
  }
}


// What is left to do when the sums [segments, 2 rows + kPushValues] are known: figures and
// systems; a row that cannot be used becomes zero.
template <class T, class S>
__global__ void __launch_bounds__(kThreads)
    conclude_push(Push<T, S> args, const double* sums, int64_t size) {
  const int64_t values = 2 * args.rows + kPushValues, rows = args.rows, slot = args.slot;
  double norm = 0, row_norm = 0;
  Magnitude<double> peak = 0, way = 0;
  for (int64_t s = threadIdx.x; s < args.segments; s += kThreads) {
    const double* const own = sums + s * values + 2 * rows;
    norm += own[kSquaredNorm];
    row_norm += own[kRowNorm];
    const Magnitude<double> step = magnitude(own[kLargestStep]);
    peak = step > peak ? step : peak;
    way = magnitude(own[kLargestWay]) > way ? magnitude(own[kLargestWay]) : way;
  }
  norm = sum_block(norm);
  row_norm = sum_block(row_norm);
  peak = max_block(peak);
  way = max_block(way);
  const bool paired = !args.paired || *args.paired;
  const bool drops = slot >= 0 && !(finite(norm) && finite(row_norm) && paired);
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    args.figures[0] = from_magnitude(peak);
    args.figures[1] = norm;
    args.figures[2] = row_norm;
    args.figures[3] = drops ? 0 : from_magnitude(way);
  }

  for (int64_t s = threadIdx.x; args.noise && slot >= 0 && s < args.segments; s += kThreads) {
    const double noise = sums[s * values + 2 * rows + kNoise];
    if (blockIdx.x == 0) args.noise[s * args.noise_size + slot] = drops ? 0 : noise;
  }
  const int64_t k = args.systems_size, last = k - 1;
  for (int64_t s = blockIdx.x; args.systems && s < args.segments; s += gridDim.x) {
    double* const system = args.systems + s * k * k;
    const double* const own = sums + s * values;
    for (int64_t i = threadIdx.x; i < rows && finite(norm); i += kThreads) {
      system[i * k + last] = system[last * k + i] = own[i];
      if (slot >= 0) system[i * k + slot] = system[slot * k + i] = own[rows + i];
    }
    if (threadIdx.x == 0 && finite(norm)) {
      system[last * k + last] = own[2 * rows + kSquaredNorm];
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; drops && i < k; i += kThreads) {
      system[i * k + slot] = system[slot * k + i] = 0;
    }
  }
  if (!drops) return;
  const int64_t step = int64_t{kThreads} * gridDim.x;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < size; i += step) {
    args.step_rows[slot * args.stride + i] = args.residual_rows[slot * args.stride + i] = S{};
  }
}

// How a push is cut up, and where its workspace keeps what.
struct Plan {
  int64_t size, values, tile, tiles, partials, sums;  // the last two in float64 numbers
};

template <class T, class S>
Plan plan_of(const Push<T, S>& args, int64_t most_tiles) {
  Plan plan;
  plan.size = args.offsets[args.segments];
  plan.values = 2 * args.rows + kPushValues;
  plan.tile = tile_size(plan.size, kChunkSize<T>, most_tiles);
  plan.tiles = count_tiles(args.offsets, args.segments, plan.tile);
  plan.partials = plan.values * plan.tiles;
  plan.sums = plan.values * args.segments;
  return plan;
}

template <class T, class S>
bool is_aligned(const Push<T, S>& args) {
  const bool vectors = aligned(args.before) && aligned(args.after) && aligned(args.last_point) &&
                       aligned(args.last_residual) && aligned(args.residual);
  return vectors && aligned(args.step_rows, args.stride, args.rows) &&
         aligned(args.residual_rows, args.stride, args.rows);
}

template <class T, class S>
void launch_tiles(const PushTile<T, S>& own, const Tiles& tiles, const Launch& launch) {
  const int blocks = tiles.first[tiles.segments];
  const int64_t shared = 2 * own.rows * kWarps * sizeof(double);
  if constexpr (std::is_same_v<T, float>) {
    if (launch.compensated) {
      AADL_LAUNCH((push_tiles<Compensated, T, S>), blocks, kThreads, shared, launch.stream, own,
                  tiles);
      return;
    }
  }
  AADL_LAUNCH((push_tiles<Wide, T, S>), blocks, kThreads, shared, launch.stream, own, tiles);
}

}  // namespace

template <class T, class S>
void push(const Push<T, S>& args, const Launch& launch) {
  const Plan plan = plan_of(args, launch.most_tiles);
  double* const partials = workspace<double>(launch, plan.partials + plan.sums);
  double* const sums = partials + plan.partials;
  PushTile<T, S> own = {args, 0, 0, true, is_aligned(args), partials, plan.tiles, 0, {}, {}};
  const int64_t multiplied = args.systems ? args.rows : 0;
  for_tiles(args.offsets, args.segments, plan.tile,
            [&](const Tiles& tiles, int64_t first_segment, int64_t first_tile) {
              own.first_tile = first_tile;
              std::copy_n(args.rates + first_segment, tiles.segments, own.rates);
              if (args.noise) {
                std::copy_n(args.rounding + first_segment, tiles.segments, own.rounding);
              }
              // More rows than shared memory has sums for: the others afterwards.
              for (own.first_row = 0; own.first_row == 0 || own.first_row < multiplied;
                   own.first_row += kRowsAtOnce) {
                own.rows = std::min<int64_t>(multiplied - own.first_row, kRowsAtOnce);
                own.forms = own.first_row == 0;
                if (tiles.first[tiles.segments] > 0) launch_tiles(own, tiles, launch);
                check_launch("push_secant");
              }
              finish_segments(partials, plan.tiles, first_tile, tiles, plan.values, kPeaks,
                              sums + first_segment * plan.values, launch.stream);
            });
  const int64_t blocks = std::max(std::clamp<int64_t>(args.segments, 1, 1024),
                                  std::min<int64_t>((plan.size + kThreads - 1) / kThreads, 1024));
  AADL_LAUNCH((conclude_push<T, S>), static_cast<unsigned>(blocks), kThreads, 0, launch.stream,
              args, sums, plan.size);
  check_launch("push_secant");
}

template void push(const Push<float, float>&, const Launch&);
template void push(const Push<float, BFloat16>&, const Launch&);
template void push(const Push<float, Half>&, const Launch&);
template void push(const Push<double, double>&, const Launch&);
template void push(const Push<double, float>&, const Launch&);

}  // namespace aadl::cuda
