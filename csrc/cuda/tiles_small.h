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

// What a lane gathers: components [component, component + 4) of a node of a piece. The warp takes kTogether
// nodes at a time, from `first` on; lanes whose node is none stay in bounds.
struct Gathered {
  static constexpr int kTogether = kWarp / 2;
  int component;
  bool exists;
  int node, graph, own;  // of the piece; its graph of the piece; of its graph

  __device__ __forceinline__ Gathered(const Piece& piece, const TileMemory<true>& memory, int first, int lane)
      : component(lane % 2 * 4), exists(first + lane / 2 < piece.rows) {
    node = exists ? first + lane / 2 : 0;
    graph = memory.graph_of_node[node];
    own = node - graph * piece.small;
  }
};

// [pairs, 8] by the numbers of pairs, in the warp's shared memory.
struct PairRows {
  static constexpr int kWords = kSmallPairs * kComponents;
  float* rows;
  LaneRows<kComponents> lane_rows;

  __device__ __forceinline__ PairRows(float* shared, const LanePlace& place)
      : rows(shared), lane_rows(shared, place) {}

  // weight times a lane's part of a fragment [16 pairs, 8 components]: of pair
  // `number`, the fragment's row group + 8 half.
  __device__ __forceinline__ void set(int number, int half, float weight, const FragmentC& x) const {
    *reinterpret_cast<Two*>(lane_rows.row(number)) = {{weight * x.x[half * 2], weight * x.x[half * 2 + 1]}};
  }
  __device__ __forceinline__ void clear(int number) const {
    auto* const row = reinterpret_cast<FragmentC*>(rows + number * kComponents);
    row[0] = row[1] = {};
  }

  // sum_j row_ij o factor(j) over the nodes j of the graph of node i; factor takes nodes of the piece.
  template <class Factor>
  __device__ __forceinline__ FragmentC gather(const Piece& piece, const Gathered& to, Factor factor) const {
    const int n = piece.small, first = to.graph * n;
    const float* row = rows + (to.graph * piece.small_pairs() + to.own) * kComponents + to.component;
    FragmentC sum = {};
    int step = (n - 1) * kComponents;  // to the pair with the next node, while that is one before this
#pragma unroll 4
    for (int j = 0; j < n; ++j) {
      const FragmentC x = *reinterpret_cast<const FragmentC*>(row), y = factor(first + j);
#pragma unroll
      for (int c = 0; c < 4; ++c) sum.x[c] = fmaf(x.x[c], y.x[c], sum.x[c]);
      row += j < to.own ? step : kComponents;
      step -= kComponents;
    }
    return sum;
  }
};

// Turns 16 pairs in rows round, in the warp's shared memory, for sums over
// pairs: values [16 pairs, 32 units]^T factors [16 pairs, 8 components], one of
// two such factors, and values^T weights [16 pairs].
template <Precision P>
struct PairSums {
  static constexpr int kParts = parts_of(P);
  static constexpr int kFactors = kUnitEights * 8, kWeight = kFactors + 2 * kComponents;
  static constexpr int kStride = kWeight + 4;  // spreads rows over the banks
  static constexpr int kWords = kStepPairs * kStride;
  float* rows;

  // Two components of the pair in row group + 8 half.
  __device__ __forceinline__ void write_factors(int which, int half, const Two& x,
                                                const LanePlace& place) const {
    float* const row = rows + (place.group + half * 8) * kStride;
    *reinterpret_cast<Two*>(row + kFactors + which * kComponents + place.in_group * 2) = x;
  }
  __device__ __forceinline__ void write_weight(int half, float weight, const LanePlace& place) const {
    if (place.in_group == 0) rows[(place.group + half * 8) * kStride + kWeight] = weight;
  }
  // Of units 8 e + 2 in_group + j of the pair in row group + 8 half, as
  // [half][j].x[e].
  __device__ __forceinline__ void write_values(const FragmentC (&values)[2][2],
                                               const LanePlace& place) const {
    static_assert(kUnitEights == 4, "a lane's units are a vector");
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < 2; ++j)
        *reinterpret_cast<FragmentC*>(rows + (place.group + half * 8) * kStride +
                                      (place.in_group * 2 + j) * kUnitEights) = values[half][j];
  }

  // Adds what the lanes have written to sum [32 units, 8 components], with
  // factors `which`, and with kWeights to bias [32 units]. kExact: the values
  // are 0 or 1.
  template <bool kExact, bool kWeights>
  __device__ __forceinline__ void add(int which, FragmentC (&sum)[kPassUnits][1],
                                      float (&bias)[kPassUnits][2], const LanePlace& place) const {
    __syncwarp();
#pragma unroll
    for (int o = 0; o < 2 / kParts; ++o) {
      Left<P> left[kPassUnits];
      Right<P> right;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const float* const first = rows + ((o * kParts + part) * 8 + place.in_group * 2) * kStride;
        const float* const second = first + kStride;
        const int factor = kFactors + which * kComponents + place.group;
        right.set(part, first[factor], second[factor]);
        const FragmentC x = *reinterpret_cast<const FragmentC*>(first + place.group * kUnitEights);
        const FragmentC y = *reinterpret_cast<const FragmentC*>(second + place.group * kUnitEights);
#pragma unroll
        for (int e = 0; e < kUnitEights; ++e) {
          if constexpr (kExact) {
            left[e / 2].set_exact(e % 2, part, x.x[e], y.x[e]);
          } else {
            left[e / 2].set(e % 2, part, x.x[e], y.x[e]);
          }
          if constexpr (kWeights)
            bias[e / 2][e % 2] =
                fmaf(second[kWeight], y.x[e], fmaf(first[kWeight], x.x[e], bias[e / 2][e % 2]));
        }
      }
      multiply_add_each<kPassUnits, kExact>([&](int m) -> FragmentC& { return sum[m][0]; },
                                            [&](int m) -> const Left<P>& { return left[m]; },
                                            [&](int) -> const Right<P>& { return right; });
    }
    __syncwarp();
  }
};

#endif

}  // namespace l0sign::cuda
