#include <type_traits>

#include "finish.h"
#include "sample.cuh"

namespace aadl::cuda {
namespace {

template <class T>
int64_t tile_of_all(const Sample<T>& args) {
  return tile_size(args.size, kChunkSize<T>, args.most_tiles);
}

template <class T>
int64_t tiles_of_all(const Sample<T>& args) {
  return (args.size + tile_of_all(args) - 1) / tile_of_all(args);
}

template <class T>
void launch_tiles(const SampleTiles<T>& own, unsigned tiles, Stream stream) {
  if constexpr (std::is_same_v<T, float>) {
    if (own.args.compensated) {
      AADL_LAUNCH((sample_tiles<Compensated, T>), tiles, kThreads, 0, stream, own);
      return;
    }
  }
  AADL_LAUNCH((sample_tiles<Wide, T>), tiles, kThreads, 0, stream, own);
}

}  // namespace

template <class T>
int64_t sample_workspace(const Sample<T>& args) {
  return 2 * tiles_of_all(args) * sizeof(double);
}

template <class T>
void add_sample(const Sample<T>& args, void* workspace, Stream stream) {
  const SampleTiles<T> own = {args, tile_of_all(args),
                              aligned(args.point_sum) && aligned(args.gradient_sum) &&
                                  aligned(args.noise_sum) && aligned(args.point) &&
                                  aligned(args.anchor) && aligned(args.gradient) &&
                                  aligned(args.direction),
                              static_cast<double*>(workspace)};
  const int64_t tiles = tiles_of_all(args);
  if (tiles > 0) launch_tiles(own, static_cast<unsigned>(tiles), stream);
  check_launch("add_sample_");
  finish_sums(own.partials, tiles, 2, args.figures, stream);
}

template <class T, class S>
void push_block(const BlockMeans<T, S>& args, Stream stream) {
  if (args.size == 0) return;
  const BlockTiles<T, S> own = {args, aligned(args.point_sum) && aligned(args.gradient_sum) &&
                                          aligned(args.noise_sum) && aligned(args.last_point) &&
                                          aligned(args.last_gradient) && aligned(args.step_row) &&
                                          aligned(args.gradient_row) && aligned(args.noise_row)};
  const int64_t chunks = (args.size + kChunkSize<T> - 1) / kChunkSize<T>;
  AADL_LAUNCH((close_block<T, S>), static_cast<unsigned>(chunks), kThreads, 0, stream, own);
  check_launch("push_block");
}

template int64_t sample_workspace(const Sample<float>&);
template int64_t sample_workspace(const Sample<double>&);
template void add_sample(const Sample<float>&, void*, Stream);
template void add_sample(const Sample<double>&, void*, Stream);
template void push_block(const BlockMeans<float, float>&, Stream);
template void push_block(const BlockMeans<float, BFloat16>&, Stream);
template void push_block(const BlockMeans<float, Half>&, Stream);
template void push_block(const BlockMeans<double, double>&, Stream);
template void push_block(const BlockMeans<double, float>&, Stream);

}  // namespace aadl::cuda
