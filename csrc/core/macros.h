// What lets one source serve the host and the device.
#pragma once

// Functions of core/ have internal linkage: each instruction-set file compiles its own copy, so that the
// linker can never put an AVX-512 body where the portable one is called.
#ifdef __CUDACC__
#define L0SIGN_HD static __host__ __device__ __forceinline__
#else
#define L0SIGN_HD static inline __attribute__((always_inline))
#endif
