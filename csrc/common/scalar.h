// Storage types of history rows, and their conversion to the type that is computed in.
//
// Rows are stored as S in {float, double, BFloat16, Half}; arithmetic is in T = float, or double
// for double rows and vectors. All conversions round to nearest even and keep NaN and infinity.
// They are free of branches, so that loops over them become vector code, and of subnormal floats,
// so that they hold where the processor is set to flush those. A GPU has instructions for them.
#pragma once

#include <cstdint>
#include <cstring>

#include "target.h"

namespace aadl {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <class To, class From>
AADL_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the bits are read as they are");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

AADL_INLINE float widen(float x) { return x; }
AADL_INLINE double widen(double x) { return x; }

AADL_INLINE float widen(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

AADL_INLINE float widen(Half x) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t magnitude = static_cast<uint32_t>(x.bits & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t normal = magnitude + 0x38000000u;  // the exponent counts from -127, not -15
  // A subnormal half is a multiple of 2^-24: put under the bits of 2^-14, it is what exceeds that.
  const float subnormal = bit_cast<float>(magnitude + 0x38800000u) - 0x1p-14f;
  const uint32_t special = magnitude | 0x7f800000u;
  const uint32_t finite = magnitude < 0x00800000u ? bit_cast<uint32_t>(subnormal) : normal;
  return bit_cast<float>((magnitude >= 0x0f800000u ? special : finite) | sign);
#endif
}

// narrow<S>(x) for x of the working type. There is none from double to the 16-bit types: by way
// of float it would round twice.
template <class S>
struct Narrow;

template <>
struct Narrow<double> {
  static AADL_INLINE double from(double x) { return x; }
};

template <>
struct Narrow<float> {
  static AADL_INLINE float from(float x) { return x; }
  static AADL_INLINE float from(double x) { return static_cast<float>(x); }
};

template <>
struct Narrow<BFloat16> {
  static AADL_INLINE BFloat16 from(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    BFloat16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
    return rounded;
#else
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    const uint32_t quiet = bits | 0x400000u;
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    return {static_cast<uint16_t>((nan ? quiet : rounded) >> 16)};
#endif
  }
  static BFloat16 from(double) = delete;
};

template <>
struct Narrow<Half> {
  static AADL_INLINE Half from(float x) {
#ifdef __CUDA_ARCH__
    Half rounded;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(x));
    return rounded;
#else
    const uint32_t bits = bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // The last bit of 0.5f is worth 2^-24, as that of a subnormal half: the adder rounds.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
    const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
    const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
    // 65520 and more round to infinity.
    return {static_cast<uint16_t>((magnitude >= 0x477ff000u ? special : finite) | sign)};
#endif
  }
  static Half from(double) = delete;
};

template <class S, class T>
AADL_INLINE S narrow(T x) {
  return Narrow<S>::from(x);
}

// |x| as an integer that is ordered as |x| is, with NaN above infinity: a maximum over magnitudes
// cannot lose a NaN, and does not depend on the order.
AADL_INLINE int32_t magnitude(float x) { return bit_cast<int32_t>(x) & INT32_MAX; }
AADL_INLINE int64_t magnitude(double x) { return bit_cast<int64_t>(x) & INT64_MAX; }
AADL_INLINE float from_magnitude(int32_t x) { return bit_cast<float>(x); }
AADL_INLINE double from_magnitude(int64_t x) { return bit_cast<double>(x); }

template <class T>
using Magnitude = decltype(magnitude(T()));

// Neither infinite nor NaN.
AADL_INLINE bool finite(double x) { return x - x == 0; }

}  // namespace aadl
