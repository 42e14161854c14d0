// The general path over all pairs of each graph: any size, float32 and float64. See row.h for how it works.
#include "cuda/complete_graph.h"

#include <type_traits>

#include "cuda/gate_noise.h"
#include "cuda/row.h"
#include "cuda/tiles_launch.h"

namespace l0sign::cuda {
namespace {

// ---- What the kernels share ----

// The problem and the memory that a call works in.
template <class A>
struct Launch {
  CompleteGraph<A> problem;
  GateFunction<A> gate;
  Network<A> message, edge;
  int64_t* pair_offsets;  // [G + 1], where single pairs are read or written
  // Forward: what each row adds to its graph's sums.
  A *l0, *l2;      // [N]
  int32_t* edges;  // [N]
  // Backward.
  A *scale, *grad_hidden, *grad_gate;  // [N], [N, H], [N]
  GradientLayout message_gradients, edge_gradients;
  A *partials, *sums;  // [warps, size], [size]
  A* scratch;          // [warps, scratch_size]
  int64_t scratch_size;
  int64_t blocks, bytes;

  int64_t warps() const { return blocks * kRowWarps; }
};

template <class A>
bool has_message(const CompleteGraph<A>& p, bool backward) {
  return p.nodes && (!backward || p.grad_out || p.grad_l2);
}

template <class A>
bool wants_pairs(const CompleteGraph<A>& p) {
  return p.gates || p.grad_gates || p.grad_logits;
}

template <class A>
Launch<A> plan(const CompleteGraph<A>& p, bool backward, void* memory) {
  Arena arena(memory);
  Launch<A> l = {};
  l.problem = p;
  l.gate = GateFunction<A>(p.gate);
  const int64_t N = p.graphs.num_nodes;
  const bool message = has_message(p, backward);
  if (message) l.message = network(p.message, arena);
  if (p.edge_nodes) l.edge = network(p.edge, arena);
  if (wants_pairs(p)) l.pair_offsets = arena.take<int64_t>(p.graphs.count + 1);
  const int64_t units = (N + kRowWarps - 1) / kRowWarps;
  if (!backward) {
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
      l.grad_hidden = p.grad_out ? arena.take<A>(N * p.message.hidden) : nullptr;
      l.grad_gate = p.grad_out ? arena.take<A>(N) : nullptr;
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

template <class A>
__global__ void __launch_bounds__(kRowThreads) forward_rows(Launch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const bool gated = p.edge_nodes, message = p.nodes;
  const int64_t H = l.message.hidden_size, d = l.message.out_size, b = l.edge.in_size;
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
        const A logit = edge_logit(l.edge, p.edge_nodes + row * b, p.edge_nodes + partner * b);
        const int64_t pair = unordered_pair(row - graph.begin, partner - graph.begin, n);
        const Gate<A> g = l.gate(logit, graph.graph, pair);
        gate = g.value;
        if (counts) l0 += g.open;
        if (counts && p.gates && l.pair_offsets[graph.graph] + pair < p.num_pairs) {
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
          hidden_unit(l.message, h, p.nodes, row, chunk, y);
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
          if (chunk.partner[c] < row || !(chunk.factor[c] > 0)) continue;
          for (int64_t k = lane; k < d; k += kWarp) {
            A z = l.message.out_bias[k];
            for (int64_t h = 0; h < H; ++h)
              z = std::fma(l.message.out_transposed[h * d + k], hidden[c * H + h], z);
            l2 = std::fma(z, z, l2);
          }
        }
        __syncwarp();
      }
    }
    degree = warp_sum(degree);
    if (message)
      write_out(l.message, hidden_sum, warp_sum(gate_sum), aggregation_scale<A>(p.aggregation, n, degree),
                p.out + row * d, lane);
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
__global__ void __launch_bounds__(kRowThreads) sum_graphs(Launch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const int lane = threadIdx.x % kWarp;
  for (int64_t graph = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
       graph < p.graphs.count; graph += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    int64_t begin = graph * p.graphs.graph_size, end = begin + p.graphs.graph_size;
    if (p.graphs.offsets) begin = p.graphs.offsets[graph], end = p.graphs.offsets[graph + 1];
    begin = begin < 0 ? 0 : begin, end = end > p.graphs.num_nodes ? p.graphs.num_nodes : end;
    A l0 = 0, l2 = 0;
    int64_t edges = 0;
    for (int64_t row = begin + lane; row < end; row += kWarp) {
      if (l.l0) l0 += l.l0[row];
      if (l.l2) l2 += l.l2[row];
      if (l.edges) edges += l.edges[row];
    }
    l0 = warp_sum(l0), l2 = warp_sum(l2), edges = warp_sum(edges);
    if (lane != 0) continue;
    if (p.l0) p.l0[graph] = l0;
    if (p.l2) p.l2[graph] = l2;
    if (p.num_edges) p.num_edges[graph] = edges;
  }
}

// ---- Backward ----

template <class A>
__global__ void __launch_bounds__(kRowThreads) scale_rows(Launch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; row < p.graphs.num_nodes;
       row += static_cast<int64_t>(gridDim.x) * kRowThreads) {
    const GraphOfRow graph = graph_of_row(p.graphs, row);
    const bool counted = p.aggregation == Aggregation::neighbor_mean;
    l.scale[row] = aggregation_scale<A>(p.aggregation, graph.end - graph.begin, counted ? p.degree[row] : 0);
  }
}

template <class A>
__global__ void __launch_bounds__(kRowThreads) backward_rows(Launch<A> l) {
  const CompleteGraph<A>& p = l.problem;
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const bool gated = p.edge_nodes, message = l.message.in_size > 0;
  const int64_t d = l.message.out_size, b = l.edge.in_size, He = l.edge.hidden_size;
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
    A gate_sum = 0, logit_sum = 0;
    for (int64_t first = graph.begin; first < graph.end; first += kWarp) {
      const int64_t partner = first + lane;
      const bool active = partner < graph.end;
      const A times = partner == row ? 2 : 1;  // a self-pair is met once, every other pair twice
      Gate<A> gate = {active ? A(1) : A(0), 0, 0, 0};
      A grad_gate = 0, grad_logit = 0;
      if (gated && active) {
        const A logit = edge_logit(l.edge, p.edge_nodes + row * b, p.edge_nodes + partner * b);
        const int64_t pair = unordered_pair(row - graph.begin, partner - graph.begin, n);
        gate = l.gate(logit, graph.graph, pair);
        const int64_t at = l.pair_offsets ? l.pair_offsets[graph.graph] + pair : 0;
        if (p.grad_gates && at < p.num_pairs) grad_gate = times * p.grad_gates[at];
        if (p.grad_logits && at < p.num_pairs) grad_logit = times * p.grad_logits[at];
        grad_logit += times * grad_l0 * gate.open_slope;
      }
      gate_sum += gate.value;
      unsigned open = message ? __ballot_sync(kAllLanes, gate.value != 0) : 0;
      while (open) {
        const Chunk<A> chunk = take_chunk(open, partner, gate.value);
        const auto l2_factor = [&](int c) {
          return chunk.factor[c] > 0 ? (chunk.partner[c] == row ? 4 : 2) * grad_l2 : A(0);
        };
        A grad_factor[kChunk];
        message_backward(l.message, l.message_gradients, s, p.nodes, row, chunk, l.grad_hidden, {true, true},
                         true, p.grad_l2 != nullptr, l2_factor, lane, grad_factor);
#pragma unroll
        for (int c = 0; c < kChunk; ++c)
          if (c < chunk.count && lane == chunk.lane[c]) {
            grad_gate += grad_factor[c];
            if (l.grad_gate) grad_gate += l.grad_gate[row] + l.grad_gate[partner];
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
          hidden_unit(l.edge, static_cast<int>(h), p.edge_nodes, row, chunk, y);
#pragma unroll
          for (int c = 0; c < kChunk; ++c) {
            y[c] = c < chunk.count && y[c] > 0 ? chunk.factor[c] : A(0);
            bias += y[c];
          }
          edge_bias[h] += bias;
          for (int64_t k = 0; k < b; ++k) {
            A sum = 0;
#pragma unroll
            for (int c = 0; c < kChunk; ++c)
              if (c < chunk.count) sum = std::fma(y[c], p.edge_nodes[chunk.partner[c] * b + k], sum);
            edge_outer[k * He + h] += sum;
          }
        }
      }
    }
    if (message) {
      if (p.grad_out)
        finish_out_gradients(l.message, l.message_gradients, s, p.grad_out + row * d, l.scale[row],
                             warp_sum(gate_sum), lane);
      finish_outer(l.message, static_cast<const A*>(nullptr), s.outer, p.nodes + row * d,
                   gradients + l.message_gradients.hidden, p.grad_nodes + row * d, lane);
      move_to(gradients + l.message_gradients.hidden_bias, s.bias_sum, l.message.hidden_size, lane);
    }
    if (gated) {
      finish_outer(l.edge, l.edge.out, edge_outer, p.edge_nodes + row * b,
                   gradients + l.edge_gradients.hidden, p.grad_edge_nodes + row * b, lane);
      move_to(gradients + l.edge_gradients.hidden_bias, edge_bias, He, lane);
      logit_sum = warp_sum(logit_sum);
      if (lane == 0) gradients[l.edge_gradients.out_bias] += logit_sum;
    }
  }
}

}  // namespace

template <class A>
cudaError_t prepare(const Launch<A>& l, cudaStream_t stream) {
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
  const Launch<A> l = plan(problem, false, workspace);
  L0SIGN_TRY(prepare(l, stream));
  if (problem.graphs.num_nodes) L0SIGN_TRY(launch(forward_rows<A>, l.blocks, kRowThreads, 0, stream, l));
  if (problem.graphs.count && (l.l0 || l.l2 || l.edges))
    L0SIGN_TRY(launch(sum_graphs<A>, blocks_for((problem.graphs.count + kRowWarps - 1) / kRowWarps, 0),
                      kRowThreads, 0, stream, l));
  return cudaSuccess;
}

template <class A>
cudaError_t backward(const CompleteGraph<A>& problem, void* workspace, cudaStream_t stream) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, true)) return tiles_backward(problem, workspace, stream);
  const Launch<A> l = plan(problem, true, workspace);
  const int64_t N = problem.graphs.num_nodes;
  L0SIGN_TRY(prepare(l, stream));
  if (l.scale && N)
    L0SIGN_TRY(
        launch(scale_rows<A>, blocks_for((N + kRowThreads - 1) / kRowThreads, 0), kRowThreads, 0, stream, l));
  if (l.grad_hidden)
    L0SIGN_TRY(hidden_gradients(l.message, problem.grad_out, l.scale, N, l.grad_hidden, l.grad_gate, stream));
  L0SIGN_TRY(launch(backward_rows<A>, l.blocks, kRowThreads, 0, stream, l));
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
