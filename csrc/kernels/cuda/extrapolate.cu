#include "extrapolate.cuh"
#include "finish.h"

namespace aadl::cuda {
namespace {

template <class T, class S>
int64_t tile_of_all(const Extrapolate<T, S>& args) {
  return tile_size(args.offsets[args.segments], kChunkSize<T>, args.most_tiles);
}

template <class T, class S>
int64_t tiles_of_all(const Extrapolate<T, S>& args) {
  return count_tiles(args.offsets, args.segments, tile_of_all(args));
}

}  // namespace

template <class T, class S>
int64_t extrapolate_workspace(const Extrapolate<T, S>& args) {
  return tiles_of_all(args) * sizeof(T);
}

template <class T, class S>
void extrapolate(const Extrapolate<T, S>& args, void* workspace, Stream stream) {
  T* const partials = static_cast<T*>(workspace);
  ExtrapolateTile<T, S> own = {args,
                               aligned(args.before) && aligned(args.after) && aligned(args.out) &&
                                   aligned(args.rows, args.stride, args.count),
                               partials, 0};
  for_tiles(args.offsets, args.segments, tile_of_all(args),
            [&](const Tiles& tiles, int64_t first_segment, int64_t first_tile) {
              const int blocks = tiles.first[tiles.segments];
              if (blocks == 0) return;
              own.partials = partials + first_tile;
              own.first_segment = first_segment;
              AADL_LAUNCH((extrapolate_tiles<T, S>), blocks, kThreads, args.count * sizeof(T),
                          stream, own, tiles);
              check_launch("extrapolate_");
            });
  finish_peak(partials, tiles_of_all(args), false, args.largest, stream);
}

#define AADL_EXTRAPOLATE(T, S)                                      \
  template int64_t extrapolate_workspace(const Extrapolate<T, S>&); \
  template void extrapolate(const Extrapolate<T, S>&, void*, Stream);
AADL_EXTRAPOLATE(float, float)
AADL_EXTRAPOLATE(float, BFloat16)
AADL_EXTRAPOLATE(float, Half)
AADL_EXTRAPOLATE(double, double)
AADL_EXTRAPOLATE(double, float)

}  // namespace aadl::cuda
