#include <cmath>

#include "kernels.h"
#include "sums.h"

namespace aadl::cuda {
namespace {

// One block a value and segment.
__global__ void __launch_bounds__(kThreads)
    sum_segments(const double* partials, int64_t total, int64_t first_tile, Tiles tiles, int peaks,
                 double* out) {
  const int values = gridDim.x, value = blockIdx.x, segment = blockIdx.y;
  const double* const parts = partials + value * total + first_tile;
  const bool peak = value >= values - peaks;
  double sum = 0;
  Magnitude<double> most = 0;
  for (int t = tiles.first[segment] + threadIdx.x; t < tiles.first[segment + 1]; t += kThreads) {
    if (peak) {
      most = magnitude(parts[t]) > most ? magnitude(parts[t]) : most;
    } else {
      sum += parts[t];
    }
  }
  sum = sum_block(sum);
  most = max_block(most);
  if (threadIdx.x == 0) out[segment * values + value] = peak ? from_magnitude(most) : sum;
}

// One block a value.
__global__ void __launch_bounds__(kThreads)
    sum_tiles(const double* partials, int64_t total, double* out) {
  double sum = 0;
  for (int64_t t = threadIdx.x; t < total; t += kThreads) sum += partials[blockIdx.x * total + t];
  sum = sum_block(sum);
  if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// One block a value.
template <class T>
__global__ void __launch_bounds__(kThreads)
    max_tiles(const T* partials, int64_t total, bool root, T* out) {
  const T* const own = partials + blockIdx.x * total;
  Magnitude<T> most = 0;
  for (int64_t t = threadIdx.x; t < total; t += kThreads) {
    most = magnitude(own[t]) > most ? magnitude(own[t]) : most;
  }
  most = max_block(most);
  if (threadIdx.x == 0) out[blockIdx.x] = root ? std::sqrt(from_magnitude(most)) : from_magnitude(most);
}

}  // namespace

void finish_segments(const double* partials, int64_t total, int64_t first_tile, const Tiles& tiles,
                     int values, int peaks, double* out, cudaStream_t stream) {
  AADL_LAUNCH(sum_segments, dim3(values, tiles.segments), kThreads, 0, stream, partials, total,
              first_tile, tiles, peaks, out);
  check_launch("sums of segments");
}

void finish_sums(const double* partials, int64_t total, int values, double* out,
                 cudaStream_t stream) {
  AADL_LAUNCH(sum_tiles, values, kThreads, 0, stream, partials, total, out);
  check_launch("sums of tiles");
}

template <class T>
void finish_peaks(const T* partials, int64_t total, int values, bool root, T* out,
                  cudaStream_t stream) {
  AADL_LAUNCH(max_tiles<T>, values, kThreads, 0, stream, partials, total, root, out);
  check_launch("maximum of tiles");
}

template void finish_peaks(const float*, int64_t, int, bool, float*, cudaStream_t);
template void finish_peaks(const double*, int64_t, int, bool, double*, cudaStream_t);

// All kernels are compiled for the same architectures: one stands for them.
std::string refusal() {
#ifdef __CUDACC__
  cudaFuncAttributes ignored;
  const cudaError_t error = cudaFuncGetAttributes(&ignored, sum_tiles);
  if (error == cudaSuccess) return "";
  cudaGetLastError();  // it is told here, not by the next launch
  return cudaGetErrorString(error);
#else
  return "";
#endif
}

bool slow_float64(int device) {
#ifdef __CUDACC__
  int ratio = 2;  // float32 operations in the time of a float64 operation: 2 to 64
  cudaDeviceGetAttribute(&ratio, cudaDevAttrSingleToDoublePrecisionPerfRatio, device);
  return ratio > 8;
#else
  (void)device;
  return false;
#endif
}

}  // namespace aadl::cuda
