#include "finish.h"
#include "push.cuh"

namespace aadl::cuda {
namespace {

// How a push is cut up, and where its workspace keeps what.
struct Plan {
  int64_t size, values, tile, tiles, partials, sums;  // the last two in float64 numbers
};

template <class T, class S>
Plan plan_of(const Push<T, S>& args) {
  Plan plan;
  plan.size = args.offsets[args.segments];
  plan.values = 2 * args.rows + kPushValues;
  plan.tile = tile_size(plan.size, kChunkSize<T>, args.most_tiles);
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
void launch_tiles(const PushTile<T, S>& own, const Tiles& tiles, Stream stream) {
  const int blocks = tiles.first[tiles.segments];
  const int64_t shared = 2 * own.rows * kWarps * sizeof(double);
  if constexpr (std::is_same_v<T, float>) {
    if (own.args.compensated) {
      AADL_LAUNCH((push_tiles<Compensated, T, S>), blocks, kThreads, shared, stream, own, tiles);
      return;
    }
  }
  AADL_LAUNCH((push_tiles<Wide, T, S>), blocks, kThreads, shared, stream, own, tiles);
}

}  // namespace

template <class T, class S>
int64_t push_workspace(const Push<T, S>& args) {
  const Plan plan = plan_of(args);
  return (plan.partials + plan.sums) * sizeof(double);
}

template <class T, class S>
void push(const Push<T, S>& args, void* workspace, Stream stream) {
  const Plan plan = plan_of(args);
  double* const partials = static_cast<double*>(workspace);
  double* const sums = partials + plan.partials;
  PushTile<T, S> own = {args, 0, 0, true, is_aligned(args), partials, plan.tiles, 0, {}};
  const int64_t multiplied = args.systems ? args.rows : 0;
  for_tiles(args.offsets, args.segments, plan.tile,
            [&](const Tiles& tiles, int64_t first_segment, int64_t first_tile) {
              own.first_tile = first_tile;
              std::copy_n(args.rates + first_segment, tiles.segments, own.rates);
              // More rows than shared memory has sums for: the others afterwards.
              for (own.first_row = 0; own.first_row == 0 || own.first_row < multiplied;
                   own.first_row += kRowsAtOnce) {
                own.rows = std::min<int64_t>(multiplied - own.first_row, kRowsAtOnce);
                own.forms = own.first_row == 0;
                if (tiles.first[tiles.segments] > 0) launch_tiles(own, tiles, stream);
                check_launch("push_secant");
              }
              finish_segments(partials, plan.tiles, first_tile, tiles, plan.values, 1,
                              sums + first_segment * plan.values, stream);
            });
  const int64_t blocks = std::max(std::clamp<int64_t>(args.segments, 1, 1024),
                                  std::min<int64_t>((plan.size + kThreads - 1) / kThreads, 1024));
  AADL_LAUNCH((conclude_push<T, S>), static_cast<unsigned>(blocks), kThreads, 0, stream, args, sums,
              plan.size);
  check_launch("push_secant");
}

#define AADL_PUSH(T, S)                               \
  template int64_t push_workspace(const Push<T, S>&); \
  template void push(const Push<T, S>&, void*, Stream);
AADL_PUSH(float, float)
AADL_PUSH(float, BFloat16)
AADL_PUSH(float, Half)
AADL_PUSH(double, double)
AADL_PUSH(double, float)

}  // namespace aadl::cuda
