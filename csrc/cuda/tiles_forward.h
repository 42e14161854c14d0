// The forward on the matrix units; instantiated by tiles_*.cu.
#pragma once
#include "cuda/tiles.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

template <class Shape, bool Precise>
struct ForwardShared {
  using T = Tiles<Shape, Precise, false>;
  static constexpr int kFloats =
      T::MessageWeights::kSharedFloats + T::MessageBias::kSharedFloats + T::Edge::kSharedFloats;
  static constexpr size_t kBytes = kFloats * sizeof(float) + kTileWarps * sizeof(TileMemory);
};

template <class Shape, bool Precise>
__global__ void __launch_bounds__(kTileThreads, Shape::kForwardBlocks) tile_forward(TileLaunch l) {
  using T = Tiles<Shape, Precise, false>;
  const CompleteGraph<float>& p = l.problem;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const LanePlace place(lane);
  const auto d = static_cast<int>(p.message.in), H = static_cast<int>(p.message.hidden);
  float* const shared = dynamic_shared<float>();
  const typename T::MessageWeights message(p.message.hidden_weight, H, d, false, shared, lane, warp);
  float* const after_weights = shared + T::MessageWeights::kSharedFloats;
  const typename T::MessageBias bias(p.message.hidden_bias, H, after_weights, lane, warp);
  const typename T::Edge edge(p.edge, after_weights + T::MessageBias::kSharedFloats, lane, warp);
  TileMemory& memory = reinterpret_cast<TileMemory*>(shared + ForwardShared<Shape, Precise>::kFloats)[warp];
  __syncthreads();

  UnitSums<T::kMU> sum;
  float gate_sum = 0, l0 = 0;
  int degree = 0, edges = 0;
  const auto run = [&](const Piece& piece, bool first, bool last) {
    const int64_t n = piece.graph.end - piece.graph.begin;
    if (first) l0 = 0, edges = 0;
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
        }
      }
      __syncwarp();  // the next row makes a new list
      if (!last) continue;
      // v'_i = scale (W2 S + b2 sum_j g_ij): the four lanes of a group share the components.
      const float all_gates = warp_sum(gate_sum);
      degree = warp_sum(degree);
      const float scale = scale_of(p.aggregation, n, degree);
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
    if (!last || !p.l0) return;
    const float l0_sum = warp_sum(l0);
    const int edge_sum = warp_sum(edges);
    if (lane != 0) return;
    if (piece.nodes_small) {
      p.l0[piece.graph.graph] = l0_sum;
      p.num_edges[piece.graph.graph] = edge_sum;
    } else {
      l.l0[piece.graph.begin + piece.row] = l0_sum;
      l.edges[piece.graph.begin + piece.row] = edge_sum;
    }
  };
  for_pieces(p.graphs, static_cast<int64_t>(blockIdx.x) * kTileWarps + warp,
             static_cast<int64_t>(gridDim.x) * kTileWarps, run);
}

#endif

}  // namespace l0sign::cuda
