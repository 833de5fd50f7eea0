// Squares must neither overflow nor vanish: columns are kept times a power of two that brings their
// largest entry so far into a window in which they do not.
#pragma once

#include <cmath>
#include <cstdint>

#include "target.h"

namespace aadl {

template <class T>
struct Range;  // of the largest entry of a scaled column, and squares that count as zero

template <>
struct Range<float> {
  using Bits = int32_t;
  static constexpr float kLeast = 0x1p-24f, kMost = 0x1p30f, kVanishing = 0x1p-100f;
  static constexpr int kExponent = 126;
};

template <>
struct Range<double> {
  using Bits = int64_t;
  static constexpr double kLeast = 0x1p-200, kMost = 0x1p400, kVanishing = 0x1p-600;
  static constexpr int kExponent = 1022;
};

// The power of two that brings `largest`, which has been scaled by 2^exponent, close to one.
template <class T>
AADL_INLINE int better_exponent(T largest, int exponent) {
  const bool fits = largest >= Range<T>::kLeast && largest <= Range<T>::kMost;
  if (fits || largest == 0 || std::isnan(largest)) return exponent;
  const int most = Range<T>::kExponent;
  const int wanted = std::isinf(largest) ? -most : exponent - std::ilogb(largest);
  return wanted < -most ? -most : wanted > most ? most : wanted;
}

}  // namespace aadl
