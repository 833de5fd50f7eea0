#include <algorithm>
#include <stdexcept>

#include "finish.h"
#include "window.cuh"

namespace aadl::cuda {
namespace {

template <class T>
int64_t tile_of_all(const Window<T>& args) {
  return tile_size(args.size, kChunkSize<T>, args.most_tiles);
}

template <class T>
int64_t tiles_of_all(const Window<T>& args) {
  return (args.size + tile_of_all(args) - 1) / tile_of_all(args);
}

}  // namespace

template <class T>
int64_t window_workspace(const Window<T>& args) {
  return tiles_of_all(args) * sizeof(T);
}

template <class T>
void window_statistics(const Window<T>& args, void* workspace, Stream stream) {
  if (args.count < 1 || args.count > kMostIterates) {
    throw std::invalid_argument("window_statistics takes 1 to 256 iterates");
  }
  WindowTiles<T> own = {};
  std::copy_n(args.iterates, args.count, own.iterates);
  own.count = static_cast<int>(args.count);
  own.aligned = aligned(args.mean) && std::all_of(args.iterates, args.iterates + args.count,
                                                  [](const T* x) { return aligned(x); });
  own.size = args.size;
  own.tile = tile_of_all(args);
  own.mean = args.mean;
  own.partials = static_cast<T*>(workspace);
  const int64_t tiles = tiles_of_all(args);
  if (tiles > 0) {
    AADL_LAUNCH(window_tiles<T>, static_cast<unsigned>(tiles), kThreads, 0, stream, own);
    check_launch("window_statistics");
  }
  finish_peak(own.partials, tiles, true, args.deviation, stream);
}

template int64_t window_workspace(const Window<float>&);
template int64_t window_workspace(const Window<double>&);
template void window_statistics(const Window<float>&, void*, Stream);
template void window_statistics(const Window<double>&, void*, Stream);

}  // namespace aadl::cuda
