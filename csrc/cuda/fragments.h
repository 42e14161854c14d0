// What the kernels on the matrix units hold in fragments: weights as the left operand, split for float32.
#pragma once
#include "cuda/mma.h"
#include "cuda/tile_config.h"
#include "cuda/weights.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// A value as tf32, and what is left of it; without Precise only the first. hi hi + hi lo + lo hi has the
// error of float32 (3xTF32).
template <bool Precise>
struct Split {
  float high, low;
  __device__ __forceinline__ explicit Split(float x)
      : high(to_tf32(x)), low(Precise ? to_tf32(x - to_tf32(x)) : 0.0f) {}
};

template <bool Precise>
struct SplitA {
  FragmentA high, low;
  __device__ __forceinline__ void set(int part, float x) {
    const Split<Precise> split(x);
    high.x[part] = split.high;
    low.x[part] = split.low;
  }
};

template <bool Precise>
struct SplitB {
  FragmentB high, low;
  __device__ __forceinline__ void set(int part, float x) {
    const Split<Precise> split(x);
    high.x[part] = split.high;
    low.x[part] = split.low;
  }
};

template <bool Precise>
__device__ __forceinline__ void multiply_add(FragmentC& c, const SplitA<Precise>& a,
                                             const SplitB<Precise>& b) {
  if (Precise) {
    mma_tf32(c, a.low, b.high);
    mma_tf32(c, a.high, b.low);
  }
  mma_tf32(c, a.high, b.high);
}

// Row and column of part `part` of this lane's fragments.
struct LanePlace {
  int group, in_group;
  __device__ __forceinline__ explicit LanePlace(int lane) : group(lane / 4), in_group(lane % 4) {}
  // Of A: hidden unit and component.
  __device__ __forceinline__ int a_row(int part) const { return group + part % 2 * 8; }
  __device__ __forceinline__ int a_column(int part) const { return in_group + part / 2 * 4; }
  // Of C: hidden unit and pair (or component).
  __device__ __forceinline__ int c_row(int part) const { return group + part / 2 * 8; }
  __device__ __forceinline__ int c_column(int part) const { return in_group * 2 + part % 2; }
};

// A weight matrix [hidden, in] (or, transposed, [in, hidden]) as left operands, padded with zeros: kept in
// registers, or in the block's shared memory.
template <int Units, int Inner, bool Precise, bool kInRegisters>
class WeightFragments {
 public:
  static constexpr int kParts = Precise ? 8 : 4;
  static constexpr int kSharedFloats = kInRegisters ? 0 : Units * Inner * kWarp * kParts;

  // All threads of the block together; a barrier has to follow.
  __device__ __forceinline__ WeightFragments(const float* weight, int hidden, int in, bool transposed,
                                             float* shared, int lane, int warp)
      : shared_(shared + lane * kParts) {
    const LanePlace place(lane);
    const auto value = [&](int m, int k, int part) {
      const int row = m * kUnits + place.a_row(part), column = k * kInner + place.a_column(part);
      if (row >= hidden || column >= in) return 0.0f;
      return transposed ? weight[static_cast<int64_t>(column) * hidden + row]
                        : weight[static_cast<int64_t>(row) * in + column];
    };
    if (kInRegisters) {
#pragma unroll
      for (int f = 0; f < kCount; ++f)
#pragma unroll
        for (int part = 0; part < 4; ++part) fragments_[f].set(part, value(f / Inner, f % Inner, part));
    } else {
      for (int f = warp; f < Units * Inner; f += kTileWarps)
        for (int part = 0; part < 4; ++part) {
          const Split<Precise> split(value(f / Inner, f % Inner, part));
          shared_[f * kWarp * kParts + part] = split.high;
          if (Precise) shared_[f * kWarp * kParts + 4 + part] = split.low;
        }
    }
  }

  __device__ __forceinline__ SplitA<Precise> get(int m, int k) const {
    if (kInRegisters) return fragments_[kInRegisters ? m * Inner + k : 0];
    const float* from = shared_ + (m * Inner + k) * kWarp * kParts;
    SplitA<Precise> a;
    a.high = *reinterpret_cast<const FragmentA*>(from);
    if (Precise) a.low = *reinterpret_cast<const FragmentA*>(from + 4);
    return a;
  }

 private:
  static constexpr int kCount = kInRegisters ? Units * Inner : 1;
  SplitA<Precise> fragments_[kCount];
  float* shared_;
};

// A lane's sum for each hidden unit, as the rows of C see it: parts 0 and 1 share one value, parts 2 and 3
// the other.
template <int Units>
struct UnitSums {
  float x[Units][2];
  __device__ __forceinline__ UnitSums() { clear(); }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < Units; ++m) x[m][0] = x[m][1] = 0;
  }
};

// A weight for each hidden unit, likewise; in registers or in the block's shared memory.
template <int Units, bool kInRegisters>
class UnitWeights {
 public:
  static constexpr int kSharedFloats = kInRegisters ? 0 : Units * kUnits;

  // All threads of the block together; a barrier has to follow.
  __device__ __forceinline__ UnitWeights(const float* weight, int hidden, float* shared, int lane, int warp)
      : shared_(shared + lane / 4) {
    if (kInRegisters) {
#pragma unroll
      for (int m = 0; m < kCount; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int h = m * kUnits + lane / 4 + half * 8;
          x_[m][half] = h < hidden ? weight[h] : 0.0f;
        }
    } else {
      for (int h = warp * kWarp + lane; h < Units * kUnits; h += kTileThreads)
        shared[h] = h < hidden ? weight[h] : 0.0f;
    }
  }

  __device__ __forceinline__ float operator()(int m, int half) const {
    return kInRegisters ? x_[kInRegisters ? m : 0][half] : shared_[m * kUnits + half * 8];
  }

 private:
  static constexpr int kCount = kInRegisters ? Units : 1;
  float x_[kCount][2];
  const float* shared_;
};

// The sum over the lanes that hold the same rows of C, or the same columns.
__device__ __forceinline__ float sum_in_group(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 1);
  return x + __shfl_xor_sync(kAllLanes, x, 2);
}
__device__ __forceinline__ float sum_over_groups(float x) {
  x += __shfl_xor_sync(kAllLanes, x, 4);
  x += __shfl_xor_sync(kAllLanes, x, 8);
  return x + __shfl_xor_sync(kAllLanes, x, 16);
}

#endif

}  // namespace l0sign::cuda
