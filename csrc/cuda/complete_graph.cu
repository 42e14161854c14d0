// The general path over all pairs of each graph: any size, float32 and float64. See row.h for how it works.
// Of a bag, forward_rows leaves what each node adds to the pooled sum, and with D the gradient of that sum
// D_i = scale_i D in the backward.
#include "cuda/complete_graph.h"

#include <type_traits>

#include "cuda/graph_totals.h"
#include "cuda/row.h"
#include "cuda/tiles_launch.h"

namespace l0sign::cuda {
namespace {

// ---- What the kernels share ----

template <class A>
struct PairLaunch {
  CompleteGraph<A> problem;
  GateFunction<A> gate;
  Network<A> message, edge;
  int64_t* pair_offsets;  // where single pairs are read or written
  // Forward: what each row adds to its graph's sums. `out` is the problem's, or of a bag such a summand.
  A *out, *l0, *l2;  // [N, d], [N], [N]
  int32_t* edges;    // [N]
  // Backward. D_i = scale_i grad_out_i, or of a bag scale_i grad_pooled, of the node's graph. W2^T D_i and
  // b2 . D_i of each node; of a bag without scale_i, of each graph.
  A *scale, *grad_hidden, *grad_gate;  // [N], [N, H], [N]; of a bag [N], [G, H], [G]
  GradientLayout message_gradients, edge_gradients;
  A *partials, *sums;  // [warps, size], [size]
  A* scratch;          // [warps, scratch_size]
  int64_t scratch_size;
  int64_t blocks, bytes;

  int64_t warps() const { return blocks * kRowWarps; }
};

// scale_i of the result, and of its gradient: v'_i, or of a bag what it adds to the pooled sum.
template <class Rows, class A>
__device__ __forceinline__ A result_scale(const Rows& nodes, const GraphOfRow& graph, int64_t row, A scale) {
  if constexpr (Rows::kOfTable) return scale * pooled_share(graph, nodes.scale(row));
  return scale;
}

template <class A>
bool has_message(const CompleteGraph<A>& p, bool backward) {
  return p.nodes && (!backward || p.grad_out || p.grad_pooled || p.grad_l2);
}

template <class A>
bool wants_pairs(const CompleteGraph<A>& p) {
  return p.gates || p.grad_gates || p.grad_logits;
}

template <class A>
PairLaunch<A> plan(const CompleteGraph<A>& p, bool backward, void* memory) {
  Arena arena(memory);
  PairLaunch<A> l = {};
  l.problem = p;
  l.gate = GateFunction<A>(p.gate);
  const int64_t N = p.graphs.num_nodes;
  const bool message = has_message(p, backward);
  if (message) l.message = network(p.message, arena);
  if (p.edge_nodes) l.edge = network(p.edge, arena);
  if (wants_pairs(p)) l.pair_offsets = arena.take<int64_t>(graph_totals_size(p.graphs.count));
  const int64_t units = (N + kRowWarps - 1) / kRowWarps;
  if (!backward) {
    l.out = p.pools ? arena.take<A>(N * p.message.out) : p.out;
    l.l0 = p.l0 ? arena.take<A>(N) : nullptr;
    l.l2 = p.l2 ? arena.take<A>(N) : nullptr;
    l.edges = p.num_edges ? arena.take<int32_t>(N) : nullptr;
    // The sum over partners, and the hidden values of a chunk.
    l.scratch_size = message ? p.message.hidden * (1 + (p.l2 ? kChunk : 0)) : 0;
    l.blocks = blocks_for(units, kRowWarps * l.scratch_size * sizeof(A));
  } else {
    l.message_gradients = gradient_layout(0, p.message);
    l.edge_gradients = gradient_layout(l.message_gradients.end, p.edge);
    if (message) {
      l.scale = arena.take<A>(N);
      if (p.grad_out || p.grad_pooled) {
        const int64_t rows = p.pools ? p.graphs.count : N;
        l.grad_hidden = arena.take<A>(rows * p.message.hidden);
        l.grad_gate = arena.take<A>(rows);
      }
      l.scratch_size = MessageScratch<A>::size(p.message.in, p.message.hidden, p.message.out);
    }
    if (p.edge_nodes) l.scratch_size += p.edge.hidden * (1 + p.edge.in);
    const int64_t size = l.edge_gradients.end;
    l.blocks = blocks_for(units, kRowWarps * (l.scratch_size + size) * sizeof(A));
    l.partials = arena.take<A>(l.warps() * size);
    l.sums = arena.take<A>(size);
  }
  l.scratch = arena.take<A>(l.warps() * l.scratch_size);
  l.bytes = arena.used();
  return l;
}

// ---- Forward ----

template <class A, class Rows>
__global__ void __launch_bounds__(kRowThreads) forward_rows(PairLaunch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const Rows nodes = Rows::nodes(p), edge_nodes = Rows::edges(p);
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const bool gated = p.edge_nodes, message = p.nodes;
  const int64_t H = l.message.hidden_size, d = l.message.out_size;
  A* const hidden_sum = l.scratch + warp * l.scratch_size;
  A* const hidden = hidden_sum + H;
  for (int64_t row = warp; row < p.graphs.num_nodes; row += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow graph = graph_of_row(p.graphs, row);
    const int64_t n = graph.end - graph.begin;
    if (message) clear(hidden_sum, H, lane);
    A gate_sum = 0, l0 = 0, l2 = 0;
    int degree = 0, edges = 0;
    for (int64_t first = graph.begin; first < graph.end; first += kWarp) {
      const int64_t partner = first + lane;
      const bool active = partner < graph.end, counts = active && partner >= row;
      A gate = active ? A(1) : A(0);
      if (gated && active) {
        const A logit = edge_logit(l.edge, edge_nodes, row, partner);
        const int64_t pair = unordered_pair(row - graph.begin, partner - graph.begin, n);
        const Gate<A> g = l.gate(logit, graph.graph, pair);
        gate = g.value;
        if (counts) l0 += g.open;
        if (counts && p.gates && is_pair(l.pair_offsets[graph.graph] + pair, p.num_pairs)) {
          p.gates[l.pair_offsets[graph.graph] + pair] = gate;
          p.logits[l.pair_offsets[graph.graph] + pair] = logit;
        }
      }
      degree += gate > 0;
      edges += counts && gate > 0;
      gate_sum += gate;
      unsigned open =
          message ? __ballot_sync(kAllLanes, gate != 0) : 0;  // a NaN has to be seen in the result
      while (open) {
        const Chunk<A> chunk = take_chunk(open, partner, gate);
        for (int h = lane; h < H; h += kWarp) {
          A y[kChunk], sum = 0;
          hidden_unit(l.message, h, nodes, row, chunk, y);
#pragma unroll
          for (int c = 0; c < kChunk; ++c) {
            if (c < chunk.count) sum = std::fma(chunk.factor[c], relu(y[c]), sum);
            if (p.l2) hidden[c * H + h] = relu(y[c]);
          }
          hidden_sum[h] += sum;
        }
        if (!p.l2) continue;
        __syncwarp();
        for (int c = 0; c < chunk.count; ++c) {
          if (chunk.partner[c] >= row && chunk.factor[c] > 0)
            l2 += squared_norm(l.message, hidden + c * H, lane);
        }
        __syncwarp();
      }
    }
    degree = warp_sum(degree);
    if (message) {
      const A scale = aggregation_scale<A>(p.aggregation, n, degree);
      write_out(l.message, hidden_sum, warp_sum(gate_sum), result_scale(nodes, graph, row, scale),
                l.out + row * d, lane);
    }
    l0 = warp_sum(l0), l2 = warp_sum(l2), edges = warp_sum(edges);
    if (lane != 0) continue;
    if (l.l0) l.l0[row] = l0;
    if (l.l2) l.l2[row] = l2;
    if (l.edges) l.edges[row] = edges;
    if (p.degree && p.aggregation == Aggregation::neighbor_mean) p.degree[row] = degree;
  }
}

// A warp a graph adds up what its rows left.
template <class A>
__global__ void __launch_bounds__(kRowThreads) sum_graphs(PairLaunch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const int lane = threadIdx.x % kWarp;
  for (int64_t graph = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
       graph < p.graphs.count; graph += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow rows = graph_at(p.graphs, graph);
    A l0 = 0, l2 = 0;
    int64_t edges = 0;
    for (int64_t row = rows.begin + lane; row < rows.end; row += kWarp) {
      if (l.l0) l0 += l.l0[row];
      if (l.l2) l2 += l.l2[row];
      if (l.edges) edges += l.edges[row];
    }
    l0 = warp_sum(l0), l2 = warp_sum(l2), edges = warp_sum(edges);
    if (p.pools)
      for (int64_t k = lane; k < p.message.out; k += kWarp) {
        A sum = 0;
        for (int64_t row = rows.begin; row < rows.end; ++row) sum += l.out[row * p.message.out + k];
        p.pooled[graph * p.message.out + k] = sum;
      }
    if (lane != 0) continue;
    if (p.l0) p.l0[graph] = l0;
    if (p.l2) p.l2[graph] = l2;
    if (p.num_edges) p.num_edges[graph] = edges;
  }
}

// ---- Backward ----

template <class A, class Rows>
__global__ void __launch_bounds__(kRowThreads) scale_rows(PairLaunch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const Rows nodes = Rows::nodes(p);
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; row < p.graphs.num_nodes;
       row += static_cast<int64_t>(gridDim.x) * kRowThreads) {
    const GraphOfRow graph = graph_of_row(p.graphs, row);
    l.scale[row] = result_scale(nodes, graph, row, node_scale(p, graph, row));
  }
}

template <class A, class Rows>
__global__ void __launch_bounds__(kRowThreads) backward_rows(PairLaunch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const Rows nodes = Rows::nodes(p), edge_nodes = Rows::edges(p);
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const bool gated = p.edge_nodes, message = l.message.in_size > 0;
  const int64_t H = l.message.hidden_size, d = l.message.out_size;
  const int64_t b = l.edge.in_size, He = l.edge.hidden_size;
  A* const gradients = l.partials + warp * l.edge_gradients.end;
  A* const memory = l.scratch + warp * l.scratch_size;
  const auto s = MessageScratch<A>::at(memory, gradients, l.message.in_size, l.message.hidden_size);
  A* const edge_bias =
      memory + MessageScratch<A>::size(l.message.in_size, l.message.hidden_size, l.message.out_size);  // [He]
  A* const edge_outer = edge_bias + He;  // [b, He] the edge network's M_i
  clear(gradients, l.edge_gradients.end, lane);
  clear(memory, l.scratch_size, lane);
  __syncwarp();
  for (int64_t row = warp; row < p.graphs.num_nodes; row += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow graph = graph_of_row(p.graphs, row);
    const int64_t n = graph.end - graph.begin;
    const A grad_l0 = p.grad_l0 ? p.grad_l0[graph.graph] : A(0);
    const A grad_l2 = p.grad_l2 ? p.grad_l2[graph.graph] : A(0);
    // Whose grad_hidden and grad_gate `row` has; of a bag its graph's, times scale. And those of both ends.
    const int64_t own = Rows::kOfTable ? graph.graph : row;
    const auto ends = [&](const A* received, int64_t width, int64_t k, int64_t partner) {
      if constexpr (Rows::kOfTable) {
        return (l.scale[row] + l.scale[partner]) * received[own * width + k];
      } else {
        return received[own * width + k] + received[partner * width + k];
      }
    };
    A gate_sum = 0, logit_sum = 0;
    for (int64_t first = graph.begin; first < graph.end; first += kWarp) {
      const int64_t partner = first + lane;
      const bool active = partner < graph.end;
      const A times = partner == row ? 2 : 1;  // a self-pair is met once, every other pair twice
      Gate<A> gate = {active ? A(1) : A(0), 0, 0, 0};
      A grad_gate = 0, grad_logit = 0;
      if (gated && active) {
        const A logit = edge_logit(l.edge, edge_nodes, row, partner);
        const int64_t pair = unordered_pair(row - graph.begin, partner - graph.begin, n);
        gate = l.gate(logit, graph.graph, pair);
        const int64_t at = l.pair_offsets ? l.pair_offsets[graph.graph] + pair : 0;
        if (p.grad_gates && is_pair(at, p.num_pairs)) grad_gate = times * p.grad_gates[at];
        if (p.grad_logits && is_pair(at, p.num_pairs)) grad_logit = times * p.grad_logits[at];
        grad_logit += times * grad_l0 * gate.open_slope;
      }
      gate_sum += gate.value;
      unsigned open = message ? __ballot_sync(kAllLanes, gate.value != 0) : 0;
      while (open) {
        const Chunk<A> chunk = take_chunk(open, partner, gate.value);
        const auto l2_factor = [&](int c) {
          return chunk.factor[c] > 0 ? (chunk.partner[c] == row ? 4 : 2) * grad_l2 : A(0);
        };
        const auto grad_hidden = [&](int c, int64_t h) {
          return l.grad_hidden ? ends(l.grad_hidden, H, h, chunk.partner[c]) : A(0);
        };
        A grad_factor[kChunk];
        message_backward(l.message, l.message_gradients, s, nodes, row, chunk, grad_hidden, true,
                         p.grad_l2 != nullptr, l2_factor, lane, grad_factor);
#pragma unroll
        for (int c = 0; c < kChunk; ++c)
          if (c < chunk.count && lane == chunk.lane[c]) {
            grad_gate += grad_factor[c];
            if (l.grad_gate) grad_gate += ends(l.grad_gate, 1, 0, partner);
          }
      }
      if (!gated) continue;
      grad_logit += grad_gate * gate.slope;
      logit_sum += grad_logit;
      unsigned has_gradient = __ballot_sync(kAllLanes, grad_logit != 0);
      while (has_gradient) {
        const Chunk<A> chunk = take_chunk(has_gradient, partner, grad_logit);
        for (int64_t h = lane; h < He; h += kWarp) {
          A y[kChunk], bias = 0;
          hidden_unit(l.edge, static_cast<int>(h), edge_nodes, row, chunk, y);
#pragma unroll
          for (int c = 0; c < kChunk; ++c) {
            y[c] = c < chunk.count && y[c] > 0 ? chunk.factor[c] : A(0);
            bias += y[c];
          }
          edge_bias[h] += bias;
          const PartnerRows<A, Rows> partners(edge_nodes, chunk);
          for (int64_t k = 0; k < b; ++k) {
            A sum = 0;
#pragma unroll
            for (int c = 0; c < kChunk; ++c)
              if (c < chunk.count) sum = std::fma(y[c], partners(c, k), sum);
            edge_outer[k * He + h] += sum;
          }
        }
      }
    }
    if (message) {
      if (l.grad_hidden)
        finish_out_gradients(l.message, l.message_gradients, s,
                             (Rows::kOfTable ? p.grad_pooled : p.grad_out) + own * d, l.scale[row],
                             warp_sum(gate_sum), lane);
      finish_outer(l.message, static_cast<const A*>(nullptr), s.outer, nodes, row,
                   gradients + l.message_gradients.hidden, p.grad_nodes + row * d, lane);
      move_to(gradients + l.message_gradients.hidden_bias, s.bias_sum, l.message.hidden_size, lane);
    }
    if (gated) {
      finish_outer(l.edge, l.edge.out, edge_outer, edge_nodes, row, gradients + l.edge_gradients.hidden,
                   p.grad_edge_nodes + row * b, lane);
      move_to(gradients + l.edge_gradients.hidden_bias, edge_bias, He, lane);
      logit_sum = warp_sum(logit_sum);
      if (lane == 0) gradients[l.edge_gradients.out_bias] += logit_sum;
    }
  }
}

}  // namespace

template <class A>
cudaError_t prepare(const PairLaunch<A>& l, cudaStream_t stream) {
  if (l.message.in_size) L0SIGN_TRY(write_transposed(l.message, stream));
  if (l.edge.in_size) L0SIGN_TRY(write_transposed(l.edge, stream));
  if (l.pair_offsets) L0SIGN_TRY(first_pairs(l.problem.graphs, l.pair_offsets, stream));
  return cudaSuccess;
}

template <class A>
int64_t forward_workspace(const CompleteGraph<A>& problem) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, false)) return tiles_workspace(problem, false);
  return plan(problem, false, nullptr).bytes;
}

template <class A>
int64_t backward_workspace(const CompleteGraph<A>& problem) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, true)) return tiles_workspace(problem, true);
  return plan(problem, true, nullptr).bytes;
}

template <class A>
cudaError_t forward(const CompleteGraph<A>& problem, void* workspace, cudaStream_t stream) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, false)) return tiles_forward(problem, workspace, stream);
  const PairLaunch<A> l = plan(problem, false, workspace);
  L0SIGN_TRY(prepare(l, stream));
  const auto rows = problem.pools ? forward_rows<A, TableRows<A>> : forward_rows<A, NodeRows<A>>;
  if (problem.graphs.num_nodes) L0SIGN_TRY(launch(rows, l.blocks, kRowThreads, 0, stream, l));
  if (problem.graphs.count && (problem.pools || l.l0 || l.l2 || l.edges))
    L0SIGN_TRY(launch(sum_graphs<A>, blocks_for((problem.graphs.count + kRowWarps - 1) / kRowWarps, 0),
                      kRowThreads, 0, stream, l));
  return cudaSuccess;
}

template <class A>
cudaError_t backward(const CompleteGraph<A>& problem, void* workspace, cudaStream_t stream) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, true)) return tiles_backward(problem, workspace, stream);
  const PairLaunch<A> l = plan(problem, true, workspace);
  const int64_t N = problem.graphs.num_nodes;
  L0SIGN_TRY(prepare(l, stream));
  if (l.scale && N) {
    const auto scales = problem.pools ? scale_rows<A, TableRows<A>> : scale_rows<A, NodeRows<A>>;
    L0SIGN_TRY(launch(scales, blocks_for((N + kRowThreads - 1) / kRowThreads, 0), kRowThreads, 0, stream, l));
  }
  if (l.grad_hidden)
    L0SIGN_TRY(hidden_gradients(l.message, problem.pools ? problem.grad_pooled : problem.grad_out,
                                problem.pools ? nullptr : l.scale, problem.pools ? problem.graphs.count : N,
                                l.grad_hidden, l.grad_gate, stream));
  const auto rows = problem.pools ? backward_rows<A, TableRows<A>> : backward_rows<A, NodeRows<A>>;
  L0SIGN_TRY(launch(rows, l.blocks, kRowThreads, 0, stream, l));
  L0SIGN_TRY(sum_partials(l.partials, l.warps(), l.edge_gradients.end, l.sums, stream));
  if (problem.nodes)
    L0SIGN_TRY(
        finish_message_gradients(l.sums, l.message_gradients, problem.message, problem.grad_message, stream));
  if (l.edge.in_size)
    L0SIGN_TRY(finish_edge_gradients(l.sums, l.edge_gradients, problem.edge, problem.grad_edge, stream));
  return cudaSuccess;
}

#define INSTANTIATE(A)                                                        \
  template int64_t forward_workspace(const CompleteGraph<A>&);                \
  template int64_t backward_workspace(const CompleteGraph<A>&);               \
  template cudaError_t forward(const CompleteGraph<A>&, void*, cudaStream_t); \
  template cudaError_t backward(const CompleteGraph<A>&, void*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
