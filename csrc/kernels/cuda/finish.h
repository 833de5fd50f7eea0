// The last pass over what the tiles have left: small, and in a fixed order.
//
// `partials` holds `total` numbers for each of `values` values: one a tile, value after value.
#pragma once

#include "tiles.h"

namespace aadl::cuda {

// out[segment * values + value] = the sum over the tiles of these segments, the first of which is
// number `first_tile`; or, of the last `peaks` values, the largest magnitude.
void finish_segments(const double* partials, int64_t total, int64_t first_tile, const Tiles& tiles,
                     int values, int peaks, double* out, cudaStream_t stream);

// out[value] = the sum over all tiles.
void finish_sums(const double* partials, int64_t total, int values, double* out,
                 cudaStream_t stream);

// *out = the largest magnitude of all tiles, or its square root.
template <class T>
void finish_peak(const T* partials, int64_t total, bool root, T* out, cudaStream_t stream);

}  // namespace aadl::cuda
