// The kernels on the matrix units over all pairs of each graph, for the common sizes. As in row.h a warp owns
// rows of the pair matrix and meets each pair from both ends; eight pairs of a row go through a layer
// together:
//   hidden [units, 8 pairs] = W1 (u_i o u_j) + b1            the left operand W1 stays, the right one is made
//   in registers S_i += relu(hidden) g                                    backward: M_i += m U, with m in the
//   place where hidden was
// A warp takes kTileRows rows: a graph of up to kSmallGraph nodes as a whole, when its first row is among
// them, and each row of a larger graph by itself. Only open pairs go through the message network: they are
// listed first.
#pragma once
#include "cuda/fragments.h"
#include "cuda/gate.h"

namespace l0sign::cuda {

// What a launch of these kernels needs, forward or backward.
struct TileLaunch {
  CompleteGraph<float> problem;
  GateFunction<float> gate;
  // What the rows of large graphs add to their graph's sums (forward).
  float *l0, *l2;  // [N]
  int32_t* edges;  // [N]
  // Sums of a warp over its rows (backward).
  GradientLayout message_gradients, edge_gradients;
  float *partials, *sums;  // [warps, size], [size]
  int64_t blocks, bytes;
};

__host__ __device__ inline bool is_small(int64_t nodes) { return nodes <= kSmallGraph; }

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// A piece of the pair matrix: rows [row, row + rows) and columns [column, column + columns), local to the
// graph.
struct Piece {
  GraphOfRow graph;
  int nodes_small;  // nodes of a small graph, else 0
  int64_t row, column;
  int rows, columns;
};

// A warp's shared memory.
struct TileMemory {
  // One entry a gate; a small graph's gate (i, j) is at i * kSmallGraph + j.
  float gate[kTileGates];
  // Pairs of a row that go through a network: the column, and the gate or the logit's gradient.
  float list_value[kTileGates];
  uint8_t list_column[kTileGates];

  // The partner's row of the pair at a place of the list; -1 past its end.
  __device__ __forceinline__ int64_t listed(const Piece& piece, int at, int count) const {
    return at < count ? piece.graph.begin + piece.column + list_column[at] : -1;
  }
  __device__ __forceinline__ float value(int at, int count) const {
    return at < count ? list_value[at] : 0.0f;
  }
};
struct TileGradients {
  float slope[kTileGates];       // dg / da
  float grad_logit[kTileGates];  // what the logit receives besides
  float grad_gate[kTileGates];   // of the row that is at work
};

// Eight pairs of one row through a first layer.
template <class Shape, bool Precise, bool Backward>
class Tiles {
 public:
  static constexpr int kMI = Shape::kMessageInner, kMU = Shape::kMessageUnits;
  static constexpr int kEI = Shape::kEdgeInner, kEU = Shape::kEdgeUnits;
  static constexpr bool kMessageInRegisters = weights_in_registers(kMU * kMI, Backward);
  static constexpr bool kEdgeInRegisters = weights_in_registers(kEU * kEI, Backward);
  using MessageWeights = WeightFragments<kMU, kMI, Precise, kMessageInRegisters>;
  using MessageBias = UnitWeights<kMU, !Backward>;

  // The edge network but for its last bias: what gates are made of.
  struct Edge {
    using Weights = WeightFragments<kEU, kEI, Precise, kEdgeInRegisters>;
    using PerUnit = UnitWeights<kEU, !Backward>;
    static constexpr int kSharedFloats = Weights::kSharedFloats + 2 * PerUnit::kSharedFloats;
    Weights hidden;
    PerUnit bias, out;

    __device__ __forceinline__ Edge(const Perceptron<float>& m, float* shared, int lane, int warp)
        : hidden(m.hidden_weight, static_cast<int>(m.hidden), static_cast<int>(m.in), false, shared, lane,
                 warp),
          bias(m.hidden_bias, static_cast<int>(m.hidden), shared + Weights::kSharedFloats, lane, warp),
          out(m.out_weight, static_cast<int>(m.hidden),
              shared + Weights::kSharedFloats + PerUnit::kSharedFloats, lane, warp) {}
  };

  // The right operand x_i o x_j for the pair in this lane's column: `partner` a row, or -1 for none.
  template <int Inner>
  static __device__ __forceinline__ void product(const float* rows, int size, int64_t row, int64_t partner,
                                                 const LanePlace& place, SplitB<Precise> (&b)[Inner]) {
#pragma unroll
    for (int k = 0; k < Inner; ++k)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int component = k * kInner + place.in_group + part * 4;
        const bool inside = partner >= 0 && component < size;
        b[k].set(part, inside ? rows[row * size + component] * rows[partner * size + component] : 0.0f);
      }
  }

  template <class Weights, int Inner, class Bias>
  static __device__ __forceinline__ FragmentC hidden(const Weights& weights, const Bias& bias, int m,
                                                     const SplitB<Precise> (&b)[Inner]) {
    FragmentC c = {{bias(m, 0), bias(m, 0), bias(m, 1), bias(m, 1)}};
#pragma unroll
    for (int k = 0; k < Inner; ++k) multiply_add(c, weights.get(m, k), b[k]);
    return c;
  }
};

// The gates of a piece into `memory.gate`; with Backward also slopes and what the logits receive from l0.
// Returns by reference what this lane's pairs add to l0 and to the number of open pairs (each unordered pair
// once).
template <class Shape, bool Precise, bool Backward>
__device__ __forceinline__ void piece_gates(const TileLaunch& l,
                                            const typename Tiles<Shape, Precise, Backward>::Edge& edge,
                                            const Piece& piece, TileMemory& memory, TileGradients* gradients,
                                            int lane, float& l0, int& edges) {
  using T = Tiles<Shape, Precise, Backward>;
  const CompleteGraph<float>& p = l.problem;
  const LanePlace place(lane);
  const int64_t n = piece.graph.end - piece.graph.begin;
  const int stride = piece.nodes_small ? kSmallGraph : 0;
  if (!p.edge_nodes) {
    for (int r = 0; r < piece.rows; ++r)
      for (int c = lane; c < piece.columns; c += kWarp) memory.gate[r * stride + c] = 1;
    __syncwarp();
    return;
  }
  // Logits, eight columns at a time; of a small graph only the tiles that reach the diagonal or lie above it.
  for (int r = 0; r < piece.rows; ++r)
    for (int c0 = piece.nodes_small ? r / kPairs * kPairs : 0; c0 < piece.columns; c0 += kPairs) {
      const int column = c0 + place.group;
      const int64_t row = piece.graph.begin + piece.row + r;
      SplitB<Precise> b[Shape::kEdgeInner] = {};
      T::template product<Shape::kEdgeInner>(
          p.edge_nodes, static_cast<int>(p.edge.in), row,
          column < piece.columns ? piece.graph.begin + piece.column + column : -1, place, b);
      float logit[2] = {0, 0};
#pragma unroll
      for (int m = 0; m < Shape::kEdgeUnits; ++m) {
        const FragmentC c = T::hidden(edge.hidden, edge.bias, m, b);
#pragma unroll
        for (int part = 0; part < 4; ++part)
          logit[part % 2] = fmaf(edge.out(m, part / 2), relu(c.x[part]), logit[part % 2]);
      }
      logit[0] = sum_over_groups(logit[0]), logit[1] = sum_over_groups(logit[1]);
      if (place.group < 2 && c0 + place.c_column(place.group) < piece.columns)
        memory.gate[r * stride + c0 + place.c_column(place.group)] = place.group ? logit[1] : logit[0];
    }
  __syncwarp();
  const float out_bias = p.edge.out_bias[0];
  const float grad_l0 = Backward && p.grad_l0 ? p.grad_l0[piece.graph.graph] : 0.0f;
  const auto evaluate = [&](int at, int mirrored, int64_t i, int64_t j, bool counts) {
    const Gate<float> gate = l.gate(memory.gate[at] + out_bias, piece.graph.graph, unordered_pair(i, j, n));
    memory.gate[at] = memory.gate[mirrored] = gate.value;
    if (counts) {
      l0 += gate.open;
      edges += gate.value > 0;
    }
    if (Backward) {
      gradients->slope[at] = gradients->slope[mirrored] = gate.slope;
      gradients->grad_logit[at] = gradients->grad_logit[mirrored] =
          (i == j ? 2 : 1) * grad_l0 * gate.open_slope;
    }
  };
  if (piece.nodes_small) {
    // Rows i and nodes - 1 - i have nodes + 1 pairs i <= j together.
    const int nodes = piece.nodes_small, pairs = nodes * (nodes + 1) / 2;
    for (int q = lane; q < pairs; q += kWarp) {
      const int i0 = q / (nodes + 1), rest = q % (nodes + 1);
      const int i = rest < nodes - i0 ? i0 : nodes - 1 - i0;
      const int j = i + (rest < nodes - i0 ? rest : rest - (nodes - i0));
      evaluate(i * kSmallGraph + j, j * kSmallGraph + i, i, j, true);
    }
  } else {
    for (int c = lane; c < piece.columns; c += kWarp)
      evaluate(c, c, piece.row, piece.column + c, piece.column + c >= piece.row);
  }
  __syncwarp();
}

// Lists the columns of a piece whose value is not 0 (a NaN has to be seen in the result), in their order;
// returns their number. value(c) is called once for each column, by one lane; 0 is passed on for the lanes
// past the last.
template <class Value>
__device__ __forceinline__ int list_columns(int columns, TileMemory& memory, int lane, Value value) {
  int count = 0;
  for (int c0 = 0; c0 < columns; c0 += kWarp) {
    const int c = c0 + lane;
    const float x = c < columns ? value(c) : 0.0f;
    const unsigned bits = __ballot_sync(kAllLanes, x != 0);
    if (x != 0) {
      const int at = count + __popc(bits & ((1u << lane) - 1));
      memory.list_value[at] = x;
      memory.list_column[at] = static_cast<uint8_t>(c);
    }
    count += __popc(bits);
  }
  __syncwarp();
  return count;
}

// Calls run(piece, first, last) for every piece of the pair matrix that this warp owns; first and last say
// whether the piece begins or ends its rows.
template <class Run>
__device__ __forceinline__ void for_pieces(const Graphs& graphs, int64_t warp, int64_t warps, Run run) {
  for (int64_t begin = warp * kTileRows; begin < graphs.num_nodes; begin += warps * kTileRows) {
    const int64_t end = begin + kTileRows < graphs.num_nodes ? begin + kTileRows : graphs.num_nodes;
#pragma unroll 1
    for (int64_t row = begin; row < end;) {
      const GraphOfRow graph = graph_of_row(graphs, row);
      const int64_t n = graph.end - graph.begin;
      const int nodes_small = is_small(n) ? static_cast<int>(n) : 0;
      if (nodes_small && row != graph.begin) {  // another warp's, or this one's already
        row = graph.end;
        continue;
      }
      const int64_t first_row = row - graph.begin;
#pragma unroll 1
      for (int64_t column = 0; column < n; column += kTileGates) {
        const int64_t rest = n - column;
        const int columns = static_cast<int>(rest < kTileGates ? rest : kTileGates);
        run(Piece{graph, nodes_small, first_row, column, nodes_small ? nodes_small : 1, columns}, column == 0,
            rest <= kTileGates);
      }
      row = nodes_small ? graph.end : row + 1;
    }
  }
}

#endif

}  // namespace l0sign::cuda
