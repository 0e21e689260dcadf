// How functions that CPU and GPU kernels share are declared.
#pragma once

// Always inlined on the host: sources compiled for AVX-512 include such headers, and a linker that keeps one copy of
// an inline function could keep theirs for everybody.
#if defined(__CUDACC__)
#define PLANTOPS_INLINE __host__ __device__ __forceinline__
#else
#define PLANTOPS_INLINE inline __attribute__((always_inline))
#endif

// In front of a loop that the GPU's compiler must unroll, so that arrays indexed by its counter stay in registers; or
// must not, so that it does not fill the registers with loads of all turns.
#if defined(__CUDA_ARCH__)
#define PLANTOPS_UNROLL _Pragma("unroll")
#define PLANTOPS_NO_UNROLL _Pragma("unroll 1")
#else
#define PLANTOPS_UNROLL
#define PLANTOPS_NO_UNROLL
#endif
