// The forward on the matrix units; instantiated by tiles_*.cu.
#pragma once
#include <type_traits>

#include "cuda/tiles.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// The second layer of eight pairs, for |z|^2. The hidden values lie as a left operand in the registers, and
// go through the warp's shared memory to become a right one.
template <class Shape, bool Precise>
class SecondLayer {
  static constexpr int kHidden = Shape::kMessageUnits * kUnits;
  static constexpr int kOut = (Shape::kMessageInner * kInner + kUnits - 1) / kUnits;  // fragments of z
  using Weights = WeightFragments<kOut, kHidden / kInner, Precise, false>;
  using Bias = UnitWeights<kOut, false>;

 public:
  static constexpr int kSharedFloats = Weights::kSharedFloats + Bias::kSharedFloats;
  static constexpr int kWarpFloats = kHidden * kPairs;

  __device__ __forceinline__ SecondLayer(const Perceptron<float>& m, float* shared, float* warp_memory,
                                         int lane, int warp)
      : weights_(m.out_weight, static_cast<int>(m.out), static_cast<int>(m.hidden), false, shared, lane,
                 warp),
        bias_(m.out_bias, static_cast<int>(m.out), shared + Weights::kSharedFloats, lane, warp),
        hidden_(warp_memory),
        place_(lane) {}

  __device__ __forceinline__ void put(int m, int part, float on) {
    hidden_[(m * kUnits + place_.c_row(part)) * kPairs + place_.c_column(part)] = on;
  }

  // This lane's part of the sum of |z|^2 over the pairs that count; those of its columns.
  __device__ __forceinline__ float squares(const bool (&counts)[2]) const {
    __syncwarp();
    float sum = 0;
#pragma unroll
    for (int m = 0; m < kOut; ++m) {
      FragmentC z = {{bias_(m, 0), bias_(m, 0), bias_(m, 1), bias_(m, 1)}};
#pragma unroll
      for (int k = 0; k < kHidden / kInner; ++k) {
        SplitB<Precise> b;
#pragma unroll
        for (int part = 0; part < 2; ++part)
          b.set(part, hidden_[(k * kInner + place_.in_group + part * 4) * kPairs + place_.group]);
        multiply_add(z, weights_.get(m, k), b);
      }
#pragma unroll
      for (int part = 0; part < 4; ++part) sum += counts[part % 2] ? z.x[part] * z.x[part] : 0.0f;
    }
    __syncwarp();
    return sum;
  }

 private:
  const Weights weights_;
  const Bias bias_;
  float* hidden_;  // [units, kPairs]
  const LanePlace place_;
};

struct NoSecondLayer {
  static constexpr int kSharedFloats = 0, kWarpFloats = 0;
  __device__ __forceinline__ NoSecondLayer(const Perceptron<float>&, float*, float*, int, int) {}
};

template <class Shape, bool Precise, bool L2>
struct ForwardShared {
  using T = Tiles<Shape, Precise, false>;
  using Second = std::conditional_t<L2, SecondLayer<Shape, Precise>, NoSecondLayer>;
  static constexpr int kFirst =
      T::MessageWeights::kSharedFloats + T::MessageBias::kSharedFloats + T::Edge::kSharedFloats;
  static constexpr int kFloats = kFirst + Second::kSharedFloats + kTileWarps * Second::kWarpFloats;
  static constexpr size_t kBytes = kFloats * sizeof(float) + kTileWarps * sizeof(TileMemory);
};

template <class Shape, bool Precise, bool L2>
__global__ void __launch_bounds__(kTileThreads, Shape::kForwardBlocks - L2) tile_forward(TileLaunch l) {
  using T = Tiles<Shape, Precise, false>;
  using Shared = ForwardShared<Shape, Precise, L2>;
  const CompleteGraph<float>& p = l.problem;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const LanePlace place(lane);
  const auto d = static_cast<int>(p.message.in), H = static_cast<int>(p.message.hidden);
  float* const shared = dynamic_shared<float>();
  const typename T::MessageWeights message(p.message.hidden_weight, H, d, false, shared, lane, warp);
  float* const after_weights = shared + T::MessageWeights::kSharedFloats;
  const typename T::MessageBias bias(p.message.hidden_bias, H, after_weights, lane, warp);
  const typename T::Edge edge(p.edge, after_weights + T::MessageBias::kSharedFloats, lane, warp);
  float* const second_memory = shared + Shared::kFirst;
  [[maybe_unused]] typename Shared::Second second(
      p.message, second_memory,
      second_memory + Shared::Second::kSharedFloats + warp * Shared::Second::kWarpFloats, lane, warp);
  TileMemory& memory = reinterpret_cast<TileMemory*>(shared + Shared::kFloats)[warp];
  __syncthreads();

  UnitSums<T::kMU> sum;
  float gate_sum = 0, l0 = 0, l2 = 0;
  int degree = 0, edges = 0;
  const auto run = [&](const Piece& piece, bool first, bool last) {
    const int64_t n = piece.graph.end - piece.graph.begin;
    if (first) l0 = l2 = 0, edges = 0;
    piece_gates<Shape, Precise, false>(l, edge, piece, memory, nullptr, lane, l0, edges);
#pragma unroll 1
    for (int r = 0; r < piece.rows; ++r) {
      const int64_t row = piece.graph.begin + piece.row + r;
      if (first) {
        sum.clear();
        gate_sum = 0, degree = 0;
      }
      const float* gates = memory.gate + (piece.nodes_small ? r * kSmallGraph : 0);
      const int open = list_columns(piece.columns, memory, lane, [&](int c) {
        gate_sum += gates[c];
        degree += gates[c] > 0;
        return gates[c];
      });
#pragma unroll 1
      for (int at = 0; at < open; at += kPairs) {
        SplitB<Precise> b[T::kMI] = {};
        T::template product<T::kMI>(p.nodes, d, row, memory.listed(piece, at + place.group, open), place, b);
        const float gate[2] = {memory.value(at + place.c_column(0), open),
                               memory.value(at + place.c_column(1), open)};
#pragma unroll
        for (int m = 0; m < T::kMU; ++m) {
          const FragmentC c = T::hidden(message, bias, m, b);
#pragma unroll
          for (int part = 0; part < 4; ++part)
            sum.x[m][part / 2] = fmaf(gate[part % 2], relu(c.x[part]), sum.x[m][part / 2]);
          if constexpr (L2)
#pragma unroll
            for (int part = 0; part < 4; ++part) second.put(m, part, relu(c.x[part]));
        }
        if constexpr (L2) {
          bool counts[2];
#pragma unroll
          for (int part = 0; part < 2; ++part)
            counts[part] = gate[part] > 0 && memory.listed(piece, at + place.c_column(part), open) >= row;
          l2 += second.squares(counts);
        }
      }
      __syncwarp();  // the next row makes a new list
      if (!last) continue;
      // v'_i = scale (W2 S + b2 sum_j g_ij): the four lanes of a group share the components.
      const float all_gates = warp_sum(gate_sum);
      degree = warp_sum(degree);
      const float scale = aggregation_scale<float>(p.aggregation, n, degree);
#pragma unroll
      for (int m = 0; m < T::kMU; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) sum.x[m][half] = sum_in_group(sum.x[m][half]);
#pragma unroll
      for (int t = 0; t < T::kMI * 2; ++t) {
        const int k = place.in_group + t * 4;
        float part = 0;
#pragma unroll
        for (int m = 0; m < T::kMU; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int h = m * kUnits + place.group + half * 8;
            if (k < d && h < H) part = fmaf(p.message.out_weight[k * H + h], sum.x[m][half], part);
          }
        part = sum_over_groups(part);
        if (place.group == 0 && k < d)
          p.out[row * d + k] = scale * fmaf(p.message.out_bias[k], all_gates, part);
      }
      if (lane == 0 && p.degree && p.aggregation == Aggregation::neighbor_mean) p.degree[row] = degree;
    }
    if (!last) return;
    // To the graph, or to the row of a large one.
    const auto store = [&](auto* of_graphs, auto* of_rows, auto sum_of_lane) {
      if (!of_graphs) return;
      const auto all = warp_sum(sum_of_lane);
      if (lane != 0) return;
      if (piece.nodes_small) {
        of_graphs[piece.graph.graph] = all;
      } else {
        of_rows[piece.graph.begin + piece.row] = all;
      }
    };
    store(p.l0, l.l0, l0);
    store(p.num_edges, l.edges, edges);
    if (L2) store(p.l2, l.l2, l2);
  };
  for_pieces(p.graphs, static_cast<int64_t>(blockIdx.x) * kTileWarps + warp,
             static_cast<int64_t>(gridDim.x) * kTileWarps, run);
}

#endif

}  // namespace l0sign::cuda
