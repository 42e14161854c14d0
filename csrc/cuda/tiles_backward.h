// The backward on the matrix units; instantiated by tiles_*.cu. Nothing was kept of a pair: gates and hidden
// values are computed again. In the place where a lane held `hidden`, it gets W2^T (D_i + D_j) from a second
// product, and from both m = [unit on] g W2^T (D_i + D_j), which is the left operand of M_i += m U as it lies
// there: the inner index of that product, the pair, may be counted in any order.
#pragma once
#include "cuda/tiles.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

template <class Shape, bool Precise>
struct BackwardShared {
  using T = Tiles<Shape, Precise>;
  static constexpr int kFloats = 2 * T::MessageWeights::kSharedFloats + T::EdgeWeights::kSharedFloats;
  static constexpr size_t kBytes =
      kFloats * sizeof(float) + kTileWarps * (sizeof(TileMemory) + sizeof(TileGradients));
};

// Where part `part` of C lies in the left operand of a product over its columns, which are then counted as
// 0, 2, 4, 6, 1, 3, 5, 7.
__device__ __forceinline__ constexpr int as_left(int part) { return part % 2 * 2 + part / 2; }

// The right operand of such a product: rows of the listed pairs.
template <int Inner, bool Precise>
__device__ __forceinline__ void listed_rows(const float* rows, int size, const TileMemory& memory,
                                            const Piece& piece, int at, int count, const LanePlace& place,
                                            SplitB<Precise> (&b)[Inner]) {
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    const int64_t partner = memory.listed(piece, at + place.c_column(part), count);
#pragma unroll
    for (int k = 0; k < Inner; ++k) {
      const int component = k * kInner + place.group;
      b[k].set(part, partner >= 0 && component < size ? rows[partner * size + component] : 0.0f);
    }
  }
}

template <int Units, int Inner>
struct Accumulator {
  FragmentC c[Units][Inner];
  __device__ __forceinline__ Accumulator() { clear(); }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < Units; ++m)
#pragma unroll
      for (int k = 0; k < Inner; ++k)
#pragma unroll
        for (int part = 0; part < 4; ++part) c[m][k].x[part] = 0;
  }

  // Calls run(m, k, part, h, component) for everything this lane holds of [hidden, in].
  template <class Run>
  __device__ __forceinline__ void for_each(int hidden, int in, const LanePlace& place, Run run) const {
#pragma unroll
    for (int m = 0; m < Units; ++m)
#pragma unroll
      for (int k = 0; k < Inner; ++k)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const int h = m * kUnits + place.c_row(part), component = k * kInner + place.c_column(part);
          if (h < hidden && component < in) run(m, k, part, h, component);
        }
  }

  __device__ __forceinline__ void store(float* to, int hidden, int in, const LanePlace& place) const {
    for_each(hidden, in, place, [&](int m, int k, int part, int h, int component) {
      to[static_cast<int64_t>(component) * hidden + h] = c[m][k].x[part];
    });
  }
};

template <int Units>
__device__ __forceinline__ void store_units(UnitVector<Units>& units, float* to, int hidden,
                                            const LanePlace& place) {
#pragma unroll
  for (int m = 0; m < Units; ++m)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_in_group(units.x[m][half]);
      const int h = m * kUnits + place.group + half * 8;
      if (place.in_group == 0 && h < hidden) to[h] = sum;
    }
}

// From M_i: writes dx_i = sum_h w_h W1_h o M_ih (w null: ones), and adds x_i o M_i to the sums.
template <int Units, int Inner>
__device__ __forceinline__ void finish_row(const Accumulator<Units, Inner>& outer,
                                           const Perceptron<float>& network, const float* unit_weight,
                                           const float* own, float* grad, Accumulator<Units, Inner>& sums,
                                           const LanePlace& place) {
  const auto hidden = static_cast<int>(network.hidden), in = static_cast<int>(network.in);
  float grads[Inner][2] = {};
  outer.for_each(hidden, in, place, [&](int m, int k, int part, int h, int component) {
    const float x = outer.c[m][k].x[part];
    const float weight = network.hidden_weight[h * in + component];
    grads[k][part % 2] = fmaf(unit_weight ? unit_weight[h] * weight : weight, x, grads[k][part % 2]);
    sums.c[m][k].x[part] = fmaf(own[component], x, sums.c[m][k].x[part]);
  });
#pragma unroll
  for (int k = 0; k < Inner; ++k)
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float sum = sum_over_groups(grads[k][part]);
      const int component = k * kInner + place.c_column(part);
      if (place.group == 0 && component < in) grad[component] = sum;
    }
}

template <class Shape, bool Precise>
__global__ void __launch_bounds__(kTileThreads, backward_blocks<Shape>()) tile_backward(TileLaunch l) {
  using T = Tiles<Shape, Precise>;
  constexpr int MI = T::kMI, MU = T::kMU, EI = T::kEI, EU = T::kEU;
  const CompleteGraph<float>& p = l.problem;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const LanePlace place(lane);
  const auto d = static_cast<int>(p.message.in), H = static_cast<int>(p.message.hidden);
  const auto b_size = static_cast<int>(p.edge.in), He = static_cast<int>(p.edge.hidden);
  float* const shared = dynamic_shared<float>();
  const typename T::MessageWeights message(p.message.hidden_weight, H, d, false, shared, lane, warp);
  const typename T::MessageWeights message_out(p.message.out_weight, H, d, true,
                                               shared + T::MessageWeights::kSharedFloats, lane, warp);
  const typename T::EdgeWeights edge(p.edge.hidden_weight, He, b_size, false,
                                     shared + 2 * T::MessageWeights::kSharedFloats, lane, warp);
  auto* const memories = reinterpret_cast<TileMemory*>(shared + BackwardShared<Shape, Precise>::kFloats);
  TileMemory& memory = memories[warp];
  TileGradients& gradients = reinterpret_cast<TileGradients*>(memories + kTileWarps)[warp];
  const UnitVector<MU> bias(p.message.hidden_bias, H, place);
  const UnitVector<EU> edge_bias(p.edge.hidden_bias, He, place), edge_out(p.edge.out_weight, He, place);
  __syncthreads();

  // Sums over all rows of this warp, and over the row that is at work.
  Accumulator<MU, MI> grad_hidden_weight, grad_out_weight, outer;
  Accumulator<EU, EI> grad_edge_weight, edge_outer;
  UnitVector<MU> grad_hidden_bias, hidden_sum;
  UnitVector<EU> grad_edge_bias;
  float grad_out_bias[MI][2] = {};
  float logit_sum = 0, gate_sum = 0;

  const auto scale_of_row = [&](int64_t row, int64_t n) {
    return scale_of(p.aggregation, n, p.aggregation == Aggregation::neighbor_mean ? p.degree[row] : 0);
  };

  // Adds the pairs of the list from `at` on to M_i and S_i, and stores what their gates receive.
  const auto message_pairs = [&](const Piece& piece, int64_t row, int64_t n, float scale, int at, int open) {
    const int64_t partner = memory.listed(piece, at + place.group, open);
    SplitB<Precise> b[MI] = {};
    T::template product<MI>(p.nodes, d, row, partner, place, b);
    const float partner_scale = partner >= 0 ? scale_of_row(partner, n) : 0.0f;
    SplitB<Precise> grads[MI] = {}, rows[MI] = {};
    float bias_part = 0;
#pragma unroll
    for (int k = 0; k < MI; ++k)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int component = k * kInner + place.in_group + part * 4;
        if (partner < 0 || component >= d) continue;
        const float both =
            scale * p.grad_out[row * d + component] + partner_scale * p.grad_out[partner * d + component];
        grads[k].set(part, both);
        bias_part = fmaf(p.message.out_bias[component], both, bias_part);
      }
    listed_rows(p.nodes, d, memory, piece, at, open, place, rows);
    const float gate[2] = {memory.value(at + place.c_column(0), open),
                           memory.value(at + place.c_column(1), open)};
    float grad_gate[2] = {0, 0};
#pragma unroll
    for (int m = 0; m < MU; ++m) {
      const FragmentC c = T::hidden(message, bias, m, b);
      FragmentC both = {};
#pragma unroll
      for (int k = 0; k < MI; ++k) multiply_add(both, message_out.get(m, k), grads[k]);
      SplitA<Precise> left;
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float on = relu(c.x[part]), g = gate[part % 2];
        grad_gate[part % 2] = fmaf(both.x[part], on, grad_gate[part % 2]);
        hidden_sum.x[m][part / 2] = fmaf(g, on, hidden_sum.x[m][part / 2]);
        const float grad = c.x[part] > 0 ? g * both.x[part] : 0.0f;
        grad_hidden_bias.x[m][part / 2] += grad;
        left.set(as_left(part), grad);
      }
#pragma unroll
      for (int k = 0; k < MI; ++k) multiply_add(outer.c[m][k], left, rows[k]);
    }
    bias_part = sum_in_group(bias_part);  // of the pair at + group
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const float sum =
          sum_over_groups(grad_gate[part]) + __shfl_sync(kAllLanes, bias_part, place.c_column(part) * 4);
      const int pair = at + place.c_column(part);
      if (place.group == 0 && pair < open) gradients.grad_gate[memory.list_column[pair]] = sum;
    }
  };

  // The same for the edge network's M_i; the list holds the logits' gradients.
  const auto edge_pairs = [&](const Piece& piece, int64_t row, int at, int count) {
    SplitB<Precise> b[EI] = {}, rows[EI] = {};
    T::template product<EI>(p.edge_nodes, b_size, row, memory.listed(piece, at + place.group, count), place,
                            b);
    listed_rows(p.edge_nodes, b_size, memory, piece, at, count, place, rows);
    const float grad[2] = {memory.value(at + place.c_column(0), count),
                           memory.value(at + place.c_column(1), count)};
#pragma unroll
    for (int m = 0; m < EU; ++m) {
      const FragmentC c = T::hidden(edge, edge_bias, m, b);
      SplitA<Precise> left;
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const float masked = c.x[part] > 0 ? grad[part % 2] : 0.0f;
        grad_edge_bias.x[m][part / 2] += masked;
        left.set(as_left(part), masked);
      }
#pragma unroll
      for (int k = 0; k < EI; ++k) multiply_add(edge_outer.c[m][k], left, rows[k]);
    }
  };

  const auto finish_message_row = [&](int64_t row, float scale) {
    const float gates = warp_sum(gate_sum);
    const float* grad_out = p.grad_out + row * d;
#pragma unroll
    for (int m = 0; m < MU; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) hidden_sum.x[m][half] = sum_in_group(hidden_sum.x[m][half]);
    grad_out_weight.for_each(H, d, place, [&](int m, int k, int part, int, int component) {
      float& sum = grad_out_weight.c[m][k].x[part];
      sum = fmaf(scale * grad_out[component], hidden_sum.x[m][part / 2], sum);
    });
#pragma unroll
    for (int k = 0; k < MI; ++k)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int component = k * kInner + place.c_column(part);
        if (component < d)
          grad_out_bias[k][part] = fmaf(scale * grad_out[component], gates, grad_out_bias[k][part]);
      }
    finish_row(outer, p.message, nullptr, p.nodes + row * d, p.grad_nodes + row * d, grad_hidden_weight,
               place);
  };

  const auto run = [&](const Piece& piece, bool first, bool last) {
    const int64_t n = piece.graph.end - piece.graph.begin;
    float l0 = 0;
    int edges = 0;
    piece_gates<Shape, Precise, true>(l, edge, edge_bias, edge_out, piece, memory, &gradients, lane, l0,
                                      edges);
    for (int r = 0; r < piece.rows; ++r) {
      const int64_t row = piece.graph.begin + piece.row + r;
      const int base = piece.nodes_small ? r * kSmallGraph : 0;
      const float scale = scale_of_row(row, n);
      if (first) {
        outer.clear(), edge_outer.clear();
        hidden_sum = UnitVector<MU>();
        gate_sum = 0;
      }
      for (int c = lane; c < piece.columns; c += kWarp) gradients.grad_gate[c] = 0;
      const int open = list_columns(piece.columns, memory, lane, [&](int c) {
        gate_sum += memory.gate[base + c];
        return memory.gate[base + c];
      });
      for (int at = 0; at < open; at += kPairs) message_pairs(piece, row, n, scale, at, open);
      __syncwarp();
      if (p.edge_nodes) {
        const int count = list_columns(piece.columns, memory, lane, [&](int c) {
          const float grad =
              fmaf(gradients.grad_gate[c], gradients.slope[base + c], gradients.grad_logit[base + c]);
          logit_sum += grad;
          return grad;
        });
        for (int at = 0; at < count; at += kPairs) edge_pairs(piece, row, at, count);
        __syncwarp();
      }
      if (!last) continue;
      finish_message_row(row, scale);
      if (p.edge_nodes)
        finish_row(edge_outer, p.edge, p.edge.out_weight, p.edge_nodes + row * b_size,
                   p.grad_edge_nodes + row * b_size, grad_edge_weight, place);
    }
  };
  const int64_t all_warps = static_cast<int64_t>(gridDim.x) * kTileWarps;
  const int64_t this_warp = static_cast<int64_t>(blockIdx.x) * kTileWarps + warp;
  for_pieces(p.graphs, this_warp, all_warps, run);

  float* const partial = l.partials + this_warp * l.edge_gradients.end;
  grad_hidden_weight.store(partial + l.message_gradients.hidden, H, d, place);
  grad_out_weight.store(partial + l.message_gradients.out, H, d, place);
  store_units(grad_hidden_bias, partial + l.message_gradients.hidden_bias, H, place);
#pragma unroll
  for (int k = 0; k < MI; ++k)
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const int component = k * kInner + place.c_column(part);
      if (place.group == 0 && component < d)
        partial[l.message_gradients.out_bias + component] = grad_out_bias[k][part];
    }
  if (!p.edge_nodes) return;
  grad_edge_weight.store(partial + l.edge_gradients.hidden, He, b_size, place);
  store_units(grad_edge_bias, partial + l.edge_gradients.hidden_bias, He, place);
  for (int h = lane; h < He; h += kWarp) partial[l.edge_gradients.out + h] = 0;  // follows from the rest
  logit_sum = warp_sum(logit_sum);
  if (lane == 0) partial[l.edge_gradients.out_bias] = logit_sum;
}

#endif

}  // namespace l0sign::cuda
