// One binary for all x86-64 machines: functions marked AADL_TARGETS are compiled for AVX-512, AVX2
// and the baseline, and the loader picks. What they call must be AADL_INLINE to be cloned with
// them. Where one source does not do for all, AADL_V4, AADL_V3 and AADL_BASE (if defined) mark
// versions of one function that are written out. Under nvcc AADL_INLINE is for host and device.
#pragma once

#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && defined(__x86_64__) && \
    defined(__linux__) && !defined(AADL_NO_TARGETS)
#define AADL_TARGETS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define AADL_V4 __attribute__((target("arch=x86-64-v4")))
#define AADL_V3 __attribute__((target("arch=x86-64-v3")))
#define AADL_BASE __attribute__((target("default")))
#else
#define AADL_TARGETS
#endif

#if defined(__CUDACC__)
#define AADL_INLINE __host__ __device__ __forceinline__
#define AADL_RESTRICT __restrict__
#elif defined(__GNUC__)
#define AADL_INLINE inline __attribute__((always_inline))
#define AADL_RESTRICT __restrict__
#else
#define AADL_INLINE inline
#define AADL_RESTRICT
#endif
