// Small graphs in the kernels of the smallest sizes: each unordered pair goes
// through a network once, with 16 pairs in the rows of a fragment,
//   hidden^T [16 pairs, 8 units] = (x_i o x_j) W1^T + b1,
// which is the left operand of a product over units as it lies there. What
// comes of a pair for its two ends, [8] numbers, waits in the warp's shared
// memory until the nodes gather it: no sum depends on an order, and no product
// on which node is which.
#pragma once
#include "cuda/tiles.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// Whether kernels of a shape have this way for graphs of up to kSmallGraph
// nodes. It wants all units in one pass, and the components in one fragment.
template <class Shape>
constexpr bool kPairwise =
    Shape::kFixedUnits == kPassUnits && Shape::kMessageInner == 1 && Shape::kEdgeInner == 1;

constexpr int kUnitEights = kPassUnits * 2;  // eights of units: fragments of hidden^T

// Calls run(j, number of the pair) for each node j of a graph of n, the node
// itself included. Of a node that is none numbers are in bounds, too.
template <class Run>
__device__ __forceinline__ void for_partners(int node, int n, Run run) {
  int number = node;
#pragma unroll 2
  for (int j = 0; j < n; ++j) {
    run(j, number);
    number += j < node ? n - 1 - j : 1;
  }
}

// What a lane gathers.
__device__ __forceinline__ int gathered_node(int lane) { return lane / 2; }
__device__ __forceinline__ int gathered_component(int lane) { return lane % 2 * 4; }

// [pairs, 8] by the numbers of pairs, in the warp's shared memory.
struct PairRows {
  static constexpr int kWords = kSmallPairs * kComponents;
  float* rows;

  // A lane's part of a fragment [16 pairs, 8 components]: of pair `number`, the
  // fragment's row group + 8 half.
  __device__ __forceinline__ void set(int number, int half, const FragmentC& x,
                                      const LanePlace& place) const {
    *reinterpret_cast<Two*>(rows + number * kComponents +
                            place.in_group * 2) = {{x.x[half * 2], x.x[half * 2 + 1]}};
  }

  // sum_j weight_ij row_ij o factor(j) over the nodes j of a graph of n, where
  // the weight is not 0: four components, from gathered_component(lane) on, of
  // node gathered_node(lane).
  template <class Factor>
  __device__ __forceinline__ FragmentC gather(const float* weights, int n, int lane, Factor factor) const {
    const float* const own = rows + gathered_component(lane);
    FragmentC sum = {};
    for_partners(gathered_node(lane), n, [&](int j, int number) {
      const float weight = weights[number];
      if (weight == 0) return;
      const FragmentC row = *reinterpret_cast<const FragmentC*>(own + number * kComponents);
      const FragmentC other = factor(j);
#pragma unroll
      for (int c = 0; c < 4; ++c) sum.x[c] = fmaf(weight * other.x[c], row.x[c], sum.x[c]);
    });
    return sum;
  }
};

// Turns 16 pairs in rows round, in the warp's shared memory, for a sum over
// pairs: values [16 pairs, 32 units]^T factors [16 pairs, 8 components], and
// values^T weights.
template <Precision P>
struct PairSums {
  static constexpr int kParts = parts_of(P);
  static constexpr int kFactors = kUnitEights * 8, kWeight = kFactors + kComponents;
  static constexpr int kStride = kWeight + 4;  // spreads rows over the banks
  static constexpr int kWords = kStepPairs * kStride;
  float* rows;

  // A lane's part: values of units 8 e + 2 in_group + j of pair group + 8 half
  // as [half][j].x[e], and of the factors two components of each half.
  __device__ __forceinline__ void write(const FragmentC (&values)[2][2], const Two (&factors)[2],
                                        const LanePlace& place) const {
    static_assert(kUnitEights == 4, "a lane's units are a vector");
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float* const row = rows + (place.group + half * 8) * kStride;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        *reinterpret_cast<FragmentC*>(row + (place.in_group * 2 + j) * kUnitEights) = values[half][j];
      *reinterpret_cast<Two*>(row + kFactors + place.in_group * 2) = factors[half];
    }
  }
  __device__ __forceinline__ void write_weights(const float (&weights)[2], const LanePlace& place) const {
    if (place.in_group == 0)
#pragma unroll
      for (int half = 0; half < 2; ++half) rows[(place.group + half * 8) * kStride + kWeight] = weights[half];
  }

  // Adds what the lanes have written to sum [32 units, 8 components] and, where
  // there are weights, to bias [32 units]. kExact: the values are 0 or 1.
  template <bool kExact, bool kWeights>
  __device__ __forceinline__ void add(FragmentC (&sum)[kPassUnits][1], float (&bias)[kPassUnits][2],
                                      const LanePlace& place) const {
    __syncwarp();
    Left<P> left[kPassUnits][2 / kParts];
    Right<P> right[2 / kParts];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const float* const row = rows + (t * 8 + place.in_group * 2) * kStride;
      const FragmentC values[2] = {
          *reinterpret_cast<const FragmentC*>(row + place.group * kUnitEights),
          *reinterpret_cast<const FragmentC*>(row + kStride + place.group * kUnitEights)};
      right[t / kParts].set(t % kParts, row[kFactors + place.group], row[kStride + kFactors + place.group]);
      const float weights[2] = {kWeights ? row[kWeight] : 0, kWeights ? row[kStride + kWeight] : 0};
#pragma unroll
      for (int m = 0; m < kPassUnits; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float x0 = values[0].x[m * 2 + half], x1 = values[1].x[m * 2 + half];
          if constexpr (kExact) {
            left[m][t / kParts].set_exact(half, t % kParts, x0, x1);
          } else {
            left[m][t / kParts].set(half, t % kParts, x0, x1);
          }
          if constexpr (kWeights) bias[m][half] = fmaf(weights[1], x1, fmaf(weights[0], x0, bias[m][half]));
        }
    }
#pragma unroll
    for (int m = 0; m < kPassUnits; ++m)
#pragma unroll
      for (int o = 0; o < 2 / kParts; ++o) {
        if constexpr (kExact) {
          multiply_add_exact(sum[m][0], left[m][o], right[o]);
        } else {
          multiply_add(sum[m][0], left[m][o], right[o]);
        }
      }
    __syncwarp();
  }
};

#endif

}  // namespace l0sign::cuda
