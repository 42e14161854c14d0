// The backward on the matrix units; instantiated by tiles_*.cu. Nothing was kept of a pair: gates and hidden
// values are computed again. In the place where a lane held `hidden`, it gets W2^T (D_i + D_j) from a second
// product, and from both m = [unit on] g W2^T (D_i + D_j), which is the left operand of M_i += m U as it lies
// there: the inner index of that product, the pair, may be counted in any order.
#pragma once
#include "cuda/tiles.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

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

// Sums over the pairs of one row, in registers: the units [first, first + Units) of fragments.
template <int Units, int Inner>
struct Accumulator {
  FragmentC c[Units][Inner];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int m = 0; m < Units; ++m)
#pragma unroll
      for (int k = 0; k < Inner; ++k)
#pragma unroll
        for (int part = 0; part < 4; ++part) c[m][k].x[part] = 0;
  }
};

// A lane's part of sums over all rows of the warp, in the warp's shared memory: touched once a row.
template <int Units, int Inner>
class SharedSums {
 public:
  static constexpr int kFloats = Units * Inner * 4 * kWarp;

  __device__ __forceinline__ SharedSums(float* memory, int lane) : own_(memory + lane) {
    for (int e = 0; e < Units * Inner * 4; ++e) own_[e * kWarp] = 0;
  }
  __device__ __forceinline__ float& at(int m, int k, int part) {
    return own_[((m * Inner + k) * 4 + part) * kWarp];
  }
  // Writes [in, hidden].
  __device__ __forceinline__ void store(float* to, int hidden, int in, const LanePlace& place) {
    for (int m = 0; m < Units; ++m)
      for (int k = 0; k < Inner; ++k)
        for (int part = 0; part < 4; ++part) {
          const int h = m * kUnits + place.c_row(part), component = k * kInner + place.c_column(part);
          if (h < hidden && component < in) to[component * hidden + h] = at(m, k, part);
        }
  }

 private:
  float* own_;
};

// The same for one value a unit.
template <int Units>
class SharedUnitSums {
 public:
  static constexpr int kFloats = Units * 2 * kWarp;

  __device__ __forceinline__ SharedUnitSums(float* memory, int lane) : own_(memory + lane) {
    for (int e = 0; e < Units * 2; ++e) own_[e * kWarp] = 0;
  }
  template <int Some>
  __device__ __forceinline__ void add(const UnitSums<Some>& sums, int first) {
#pragma unroll
    for (int m = 0; m < Some; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) own_[((first + m) * 2 + half) * kWarp] += sums.x[m][half];
  }
  // Writes [hidden].
  __device__ __forceinline__ void store(float* to, int hidden, const LanePlace& place) const {
    for (int m = 0; m < Units; ++m)
      for (int half = 0; half < 2; ++half) {
        const float sum = sum_in_group(own_[(m * 2 + half) * kWarp]);
        const int h = m * kUnits + place.group + half * 8;
        if (place.in_group == 0 && h < hidden) to[h] = sum;
      }
  }

 private:
  float* own_;
};

// What a row's components receive; a lane holds those of its columns of C.
template <int Inner>
struct RowGradient {
  float x[Inner][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int k = 0; k < Inner; ++k) x[k][0] = x[k][1] = 0;
  }

  // From M_i: adds sum_h w_h W1_h o M_ih (w null: ones), and x_i o M_i to the sums.
  template <int Units, int AllUnits>
  __device__ __forceinline__ void add(const Accumulator<Units, Inner>& outer, int first,
                                      const Perceptron<float>& network, const float* unit_weight,
                                      const float* own, SharedSums<AllUnits, Inner>& sums,
                                      const LanePlace& place) {
    const auto hidden = static_cast<int>(network.hidden), in = static_cast<int>(network.in);
#pragma unroll
    for (int m = 0; m < Units; ++m)
#pragma unroll
      for (int k = 0; k < Inner; ++k)
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const int h = (first + m) * kUnits + place.c_row(part),
                    component = k * kInner + place.c_column(part);
          if (h >= hidden || component >= in) continue;
          const float outer_part = outer.c[m][k].x[part];
          const float weight = network.hidden_weight[h * in + component];
          x[k][part % 2] = fmaf(unit_weight ? unit_weight[h] * weight : weight, outer_part, x[k][part % 2]);
          sums.at(first + m, k, part) += own[component] * outer_part;
        }
  }

  __device__ __forceinline__ void store(float* to, int in, const LanePlace& place) const {
#pragma unroll
    for (int k = 0; k < Inner; ++k)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const float sum = sum_over_groups(x[k][part]);
        const int component = k * kInner + place.c_column(part);
        if (place.group == 0 && component < in) to[component] = sum;
      }
  }
};

template <class Shape, bool Precise>
struct BackwardShared {
  using T = Tiles<Shape, Precise, true>;
  static constexpr int kFloats =
      2 * T::MessageWeights::kSharedFloats + T::MessageBias::kSharedFloats + T::Edge::kSharedFloats;
  using MessageSums = SharedSums<T::kMU, T::kMI>;
  using EdgeSums = SharedSums<T::kEU, T::kEI>;
  using MessageUnits = SharedUnitSums<T::kMU>;
  using EdgeUnits = SharedUnitSums<T::kEU>;
  static constexpr int kSums =
      2 * MessageSums::kFloats + EdgeSums::kFloats + MessageUnits::kFloats + EdgeUnits::kFloats;  // of a warp
  static constexpr size_t kBytes =
      kFloats * sizeof(float) +
      kTileWarps * (sizeof(TileMemory) + sizeof(TileGradients) + kSums * sizeof(float));
};

template <class Shape, bool Precise>
__global__ void __launch_bounds__(kTileThreads, Shape::kBackwardBlocks) tile_backward(TileLaunch l) {
  using T = Tiles<Shape, Precise, true>;
  using S = BackwardShared<Shape, Precise>;
  constexpr int MI = T::kMI, EI = T::kEI, EU = T::kEU;
  // Fragments of message units that a pass over a row's pairs takes: their M_i has to fit into registers.
  constexpr int MU = T::kMU < kPassUnits ? T::kMU : kPassUnits;
  const CompleteGraph<float>& p = l.problem;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const LanePlace place(lane);
  const auto d = static_cast<int>(p.message.in), H = static_cast<int>(p.message.hidden);
  const auto b_size = static_cast<int>(p.edge.in), He = static_cast<int>(p.edge.hidden);

  float* const shared = dynamic_shared<float>();
  const typename T::MessageWeights message(p.message.hidden_weight, H, d, false, shared, lane, warp);
  const typename T::MessageWeights message_out(p.message.out_weight, H, d, true,
                                               shared + T::MessageWeights::kSharedFloats, lane, warp);
  float* const after_weights = shared + 2 * T::MessageWeights::kSharedFloats;
  const typename T::MessageBias bias(p.message.hidden_bias, H, after_weights, lane, warp);
  const typename T::Edge edge(p.edge, after_weights + T::MessageBias::kSharedFloats, lane, warp);
  auto* const memories = reinterpret_cast<TileMemory*>(shared + S::kFloats);
  auto* const all_gradients = reinterpret_cast<TileGradients*>(memories + kTileWarps);
  TileMemory& memory = memories[warp];
  TileGradients& gradients = all_gradients[warp];

  // Sums over all rows of this warp.
  float* sums = reinterpret_cast<float*>(all_gradients + kTileWarps) + warp * S::kSums;
  typename S::MessageSums grad_hidden_weight(sums, lane),
      grad_out_weight(sums += S::MessageSums::kFloats, lane);
  typename S::EdgeSums grad_edge_weight(sums += S::MessageSums::kFloats, lane);
  typename S::MessageUnits grad_hidden_bias(sums += S::EdgeSums::kFloats, lane);
  typename S::EdgeUnits grad_edge_bias(sums += S::MessageUnits::kFloats, lane);
  float grad_out_bias[MI][2] = {};
  float logit_sum = 0;
  // Of the row that is at work.
  RowGradient<MI> grad_row;
  RowGradient<EI> grad_edge_row;
  float gate_sum = 0;
  __syncthreads();

  const auto scale_of_row = [&](int64_t row, int64_t n) {
    return aggregation_scale<float>(p.aggregation, n,
                                    p.aggregation == Aggregation::neighbor_mean ? p.degree[row] : 0);
  };

  // The listed pairs through the units from `first` on.
  const auto message_pass = [&](const Piece& piece, int64_t row, int64_t n, float scale, int open,
                                int first) {
    Accumulator<MU, MI> outer;
    UnitSums<MU> hidden_sum, bias_sum;
    outer.clear();
#pragma unroll 1
    for (int at = 0; at < open; at += kPairs) {
      const int64_t partner = memory.listed(piece, at + place.group, open);
      SplitB<Precise> b[MI] = {}, grads[MI] = {}, rows[MI] = {};
      T::template product<MI>(p.nodes, d, row, partner, place, b);
      const float partner_scale = partner >= 0 ? scale_of_row(partner, n) : 0.0f;
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
        const FragmentC c = T::hidden(message, bias, first + m, b);
        FragmentC both = {};
#pragma unroll
        for (int k = 0; k < MI; ++k) multiply_add(both, message_out.get(first + m, k), grads[k]);
        SplitA<Precise> left;
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float on = relu(c.x[part]), g = gate[part % 2];
          grad_gate[part % 2] = fmaf(both.x[part], on, grad_gate[part % 2]);
          hidden_sum.x[m][part / 2] = fmaf(g, on, hidden_sum.x[m][part / 2]);
          const float grad = c.x[part] > 0 ? g * both.x[part] : 0.0f;
          bias_sum.x[m][part / 2] += grad;
          left.set(as_left(part), grad);
        }
#pragma unroll
        for (int k = 0; k < MI; ++k) multiply_add(outer.c[m][k], left, rows[k]);
      }
      bias_part = first == 0 ? sum_in_group(bias_part) : 0.0f;  // of the pair at + group
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const float sum =
            sum_over_groups(grad_gate[part]) + __shfl_sync(kAllLanes, bias_part, place.c_column(part) * 4);
        const int pair = at + place.c_column(part);
        if (place.group == 0 && pair < open) gradients.grad_gate[memory.list_column[pair]] += sum;
      }
    }
    grad_row.add(outer, first, p.message, nullptr, p.nodes + row * d, grad_hidden_weight, place);
    grad_hidden_bias.add(bias_sum, first);
#pragma unroll
    for (int m = 0; m < MU; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = sum_in_group(hidden_sum.x[m][half]);
#pragma unroll
        for (int k = 0; k < MI; ++k)
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const int component = k * kInner + place.c_column(part);
            if (component < d)
              grad_out_weight.at(first + m, k, half * 2 + part) +=
                  scale * p.grad_out[row * d + component] * sum;
          }
      }
  };

  // The same for the edge network; the list holds the logits' gradients.
  const auto edge_pass = [&](const Piece& piece, int64_t row, int count) {
    Accumulator<EU, EI> outer;
    UnitSums<EU> bias_sum;
    outer.clear();
#pragma unroll 1
    for (int at = 0; at < count; at += kPairs) {
      SplitB<Precise> b[EI] = {}, rows[EI] = {};
      T::template product<EI>(p.edge_nodes, b_size, row, memory.listed(piece, at + place.group, count), place,
                              b);
      listed_rows(p.edge_nodes, b_size, memory, piece, at, count, place, rows);
      const float grad[2] = {memory.value(at + place.c_column(0), count),
                             memory.value(at + place.c_column(1), count)};
#pragma unroll
      for (int m = 0; m < EU; ++m) {
        const FragmentC c = T::hidden(edge.hidden, edge.bias, m, b);
        SplitA<Precise> left;
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const float masked = c.x[part] > 0 ? grad[part % 2] : 0.0f;
          bias_sum.x[m][part / 2] += masked;
          left.set(as_left(part), masked);
        }
#pragma unroll
        for (int k = 0; k < EI; ++k) multiply_add(outer.c[m][k], left, rows[k]);
      }
    }
    grad_edge_row.add(outer, 0, p.edge, p.edge.out_weight, p.edge_nodes + row * b_size, grad_edge_weight,
                      place);
    grad_edge_bias.add(bias_sum, 0);
  };

  const auto run = [&](const Piece& piece, bool first, bool last) {
    const int64_t n = piece.graph.end - piece.graph.begin;
    float l0 = 0;
    int edges = 0;
    piece_gates<Shape, Precise, true>(l, edge, piece, memory, &gradients, lane, l0, edges);
#pragma unroll 1
    for (int r = 0; r < piece.rows; ++r) {
      const int64_t row = piece.graph.begin + piece.row + r;
      const int base = piece.nodes_small ? r * kSmallGraph : 0;
      const float scale = scale_of_row(row, n);
      if (first) {
        grad_row.clear(), grad_edge_row.clear();
        gate_sum = 0;
      }
      for (int c = lane; c < piece.columns; c += kWarp) gradients.grad_gate[c] = 0;
      const int open = list_columns(piece.columns, memory, lane, [&](int c) {
        gate_sum += memory.gate[base + c];
        return memory.gate[base + c];
      });
#pragma unroll 1
      for (int units = 0; units < T::kMU; units += MU) message_pass(piece, row, n, scale, open, units);
      __syncwarp();
      if (p.edge_nodes) {
        const int count = list_columns(piece.columns, memory, lane, [&](int c) {
          const float grad =
              fmaf(gradients.grad_gate[c], gradients.slope[base + c], gradients.grad_logit[base + c]);
          logit_sum += grad;
          return grad;
        });
        edge_pass(piece, row, count);
        __syncwarp();
      }
      if (!last) continue;
      const float gates = warp_sum(gate_sum);
#pragma unroll
      for (int k = 0; k < MI; ++k)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const int component = k * kInner + place.c_column(part);
          if (component < d)
            grad_out_bias[k][part] =
                fmaf(scale * p.grad_out[row * d + component], gates, grad_out_bias[k][part]);
        }
      grad_row.store(p.grad_nodes + row * d, d, place);
      if (p.edge_nodes) grad_edge_row.store(p.grad_edge_nodes + row * b_size, b_size, place);
    }
  };
  const int64_t all_warps = static_cast<int64_t>(gridDim.x) * kTileWarps;
  const int64_t this_warp = static_cast<int64_t>(blockIdx.x) * kTileWarps + warp;
  for_pieces(p.graphs, this_warp, all_warps, run);

  float* const partial = l.partials + this_warp * l.edge_gradients.end;
  grad_hidden_weight.store(partial + l.message_gradients.hidden, H, d, place);
  grad_out_weight.store(partial + l.message_gradients.out, H, d, place);
  grad_hidden_bias.store(partial + l.message_gradients.hidden_bias, H, place);
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
  grad_edge_bias.store(partial + l.edge_gradients.hidden_bias, He, place);
  for (int h = lane; h < He; h += kWarp) partial[l.edge_gradients.out + h] = 0;  // follows from the rest
  logit_sum = warp_sum(logit_sum);
  if (lane == 0) partial[l.edge_gradients.out_bias] = logit_sum;
}

#endif

}  // namespace l0sign::cuda
