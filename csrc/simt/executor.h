// Runs CUDA kernel sources on the host, thread by thread: for tests without a GPU.
//
// A kernel source includes cuda/device.h, which is this file where L0SIGN_SIMT is defined. The threads of a
// block are fibers of one host thread. A thread runs until it meets a barrier or a warp operation; the order
// in which threads get there is a setting (Order), and results must not depend on it: two orders that
// disagree are a race. Blocks run one after the other, each with shared memory of exactly the size asked for,
// filled with NaNs.
//
// Reported as std::runtime_error: a barrier or warp operation that some of its threads never reach, or reach
// at another line. Accesses out of bounds are AddressSanitizer's to find.
#pragma once
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
// One block at a time: its shared memory may be static. Not in templates, whose statics cannot choose a
// section.
#define __shared__ static __attribute__((section("simt_shared")))
#define threadIdx (::l0sign::simt::thread_index())
#define blockIdx (::l0sign::simt::block_index())
#define blockDim (::l0sign::simt::block_size())
#define gridDim (::l0sign::simt::grid_size())

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };

namespace l0sign {
namespace simt {

constexpr unsigned kWarp = 32;
constexpr size_t kSlotBytes = 64;  // what a lane can hand to its warp in one operation

struct Index3 {
  unsigned x, y, z;
};

// The order in which the threads of a block run between two barriers.
enum class Order { ascending, descending, shuffled };
void set_order(Order order);

// Where a barrier or a warp operation is called.
struct Site {
  const char* file;
  int line;
};

Index3 thread_index();
Index3 block_index();
Index3 block_size();
Index3 grid_size();
void* shared_memory();

// How much shared memory a block may have: an H100's, unless a test sets a lesser device's.
size_t most_shared_bytes();
void set_most_shared_bytes(size_t bytes);

// Runs `thread` for every thread of every block.
void run(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& thread);

void block_barrier(Site site);
// Waits for the warp; the slots hold what each of its lanes brought. They last until the lane's next
// operation.
const unsigned char (*warp_exchange(const void* value, size_t size, Site site))[kSlotBytes];

template <class T>
T from_lane(const unsigned char (*slots)[kSlotBytes], unsigned lane) {
  static_assert(sizeof(T) <= kSlotBytes && std::is_trivially_copyable<T>::value, "does not fit a slot");
  T value;
  memcpy(&value, slots[lane % kWarp], sizeof(T));
  return value;
}

// Throws unless every lane of the warp takes part: the kernels use whole warps only.
void require_full(unsigned mask, Site site);

}  // namespace simt
}  // namespace l0sign

#define L0SIGN_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(L0SIGN_SITE) { l0sign::simt::block_barrier({file, line}); }

inline void __syncwarp(L0SIGN_SITE) { l0sign::simt::warp_exchange(nullptr, 0, {file, line}); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, L0SIGN_SITE) {
  l0sign::simt::require_full(mask, {file, line});
  return l0sign::simt::from_lane<T>(l0sign::simt::warp_exchange(&value, sizeof(T), {file, line}), lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, L0SIGN_SITE) {
  return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % l0sign::simt::kWarp) ^ lanes, file, line);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate, L0SIGN_SITE) {
  l0sign::simt::require_full(mask, {file, line});
  const auto slots = l0sign::simt::warp_exchange(&predicate, sizeof(bool), {file, line});
  unsigned votes = 0;
  for (unsigned lane = 0; lane < l0sign::simt::kWarp; ++lane)
    votes |= static_cast<unsigned>(l0sign::simt::from_lane<bool>(slots, lane)) << lane;
  return votes;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
