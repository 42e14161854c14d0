// What kernels take from CUDA; on the host, with L0SIGN_SIMT, from the executor that stands in for it.
// Kernels are started by launch(), since <<<>>> is not C++.
#pragma once
#include <stdint.h>

#ifdef L0SIGN_SIMT
#include "../simt/executor.h"
#else
#include <cuda_runtime.h>
#endif

namespace l0sign::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// Blocks beyond these take several turns. Free ones leave nothing behind that grows with their number. On the
// host few, so that tests see many turns.
#ifdef L0SIGN_SIMT
constexpr int64_t kMaxBlocks = 2, kMaxFreeBlocks = 2;
#else
constexpr int64_t kMaxBlocks = 1024, kMaxFreeBlocks = 1 << 16;
#endif

#define L0SIGN_TRY(call) \
  if (const cudaError_t error = call; error != cudaSuccess) return error

// Allows a kernel so many bytes of dynamic shared memory.
template <class... Parameters>
cudaError_t allow_shared([[maybe_unused]] void (*kernel)(Parameters...), [[maybe_unused]] size_t bytes) {
#ifndef L0SIGN_SIMT
  constexpr size_t kUsual = 48 << 10;  // more has to be asked for
  if (bytes > kUsual)
    return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
#endif
  return cudaSuccess;
}

// The blocks of a kernel that the device works on at a time.
template <class... Parameters>
cudaError_t resident_blocks([[maybe_unused]] void (*kernel)(Parameters...), [[maybe_unused]] int threads,
                            [[maybe_unused]] size_t shared_bytes, int64_t& blocks) {
#ifdef L0SIGN_SIMT
  blocks = kMaxBlocks;
#else
  L0SIGN_TRY(allow_shared(kernel, shared_bytes));
  int device = 0, multiprocessors = 0, each = 0;
  L0SIGN_TRY(cudaGetDevice(&device));
  L0SIGN_TRY(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
  L0SIGN_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, shared_bytes));
  blocks = static_cast<int64_t>(multiprocessors) * each;
#endif
  return cudaSuccess;
}

// Starts `blocks` blocks of `threads` threads with `shared_bytes` of dynamic shared memory.
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
                   cudaStream_t stream, Arguments... arguments) {
  if (blocks == 0) return cudaSuccess;
#ifdef L0SIGN_SIMT
  (void)stream;
  simt::run(static_cast<unsigned>(blocks), threads, shared_bytes, [&] { kernel(arguments...); });
  return cudaSuccess;
#else
  L0SIGN_TRY(allow_shared(kernel, shared_bytes));
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
#endif
}

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// The block's dynamic shared memory, aligned to 16 bytes.
template <class T>
__device__ __forceinline__ T* dynamic_shared() {
#ifdef L0SIGN_SIMT
  return static_cast<T*>(simt::shared_memory());
#else
  extern __shared__ __align__(16) unsigned char l0sign_dynamic_shared[];
  return reinterpret_cast<T*>(l0sign_dynamic_shared);
#endif
}

// The sum over the lanes of the warp, the same bits in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int lanes = kWarp / 2; lanes; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

#endif

}  // namespace l0sign::cuda
