// The general path over a given list of edges: any size, float32 and float64. See row.h for how it works; a
// row's partners are the sources of the edges into it, and in the backward also the targets of the edges out
// of it.
#include "cuda/edge_list.h"

#include <type_traits>

#include "cuda/row.h"
#include "cuda/tiles_launch.h"

namespace l0sign::cuda {
namespace {

template <class A>
struct Launch {
  EdgeList<A> problem;
  EdgeOrder by_target, by_source;
  Network<A> message;
  // Backward.
  A *scale, *grad_hidden, *grad_gate;  // [N], [N, H], [N]
  GradientLayout gradients;
  A *partials, *sums;  // [warps, size], [size]
  A* scratch;          // [warps, scratch_size]
  int64_t scratch_size;
  int64_t blocks, bytes;

  int64_t warps() const { return blocks * kRowWarps; }
};

template <class A>
Launch<A> plan(const EdgeList<A>& p, bool backward, void* memory) {
  Arena arena(memory);
  Launch<A> l = {};
  l.problem = p;
  l.message = network(p.message, arena);
  const int64_t N = p.graphs.num_nodes;
  const int64_t units = (N + kRowWarps - 1) / kRowWarps;
  if (!backward) {
    l.scratch_size = p.message.hidden;
    l.blocks = blocks_for(units, kRowWarps * l.scratch_size * sizeof(A));
  } else {
    l.scale = arena.take<A>(N);
    l.grad_hidden = arena.take<A>(N * p.message.hidden);
    l.grad_gate = arena.take<A>(N);
    l.gradients = gradient_layout(0, p.message);
    l.scratch_size = MessageScratch<A>::size(p.message.in, p.message.hidden, p.message.out);
    l.blocks = blocks_for(units, kRowWarps * (l.scratch_size + l.gradients.end) * sizeof(A));
    l.partials = arena.take<A>(l.warps() * l.gradients.end);
    l.sums = arena.take<A>(l.gradients.end);
  }
  l.scratch = arena.take<A>(l.warps() * l.scratch_size);
  l.bytes = arena.used();
  return l;
}

// One edge of a row's list, as a lane holds it.
template <class A>
struct Edge {
  int64_t id, partner;
  A weight;
  bool active;
};

// Calls run(edge) in every lane with the next edges of `row`, until all have passed.
template <class A, class Run>
__device__ __forceinline__ void for_edges(const EdgeList<A>& p, const EdgeOrder& order,
                                          const int64_t* partners, int64_t row, const GraphOfRow& graph,
                                          int lane, Run run) {
  const int64_t end = lower_bound(order.row, p.num_edges, row + 1);
  for (int64_t at = lower_bound(order.row, p.num_edges, row) + lane; at - lane < end; at += kWarp) {
    Edge<A> edge = {-1, row, 0, at < end};
    if (edge.active) {
      edge.id = order.order[at];
      const EdgeEnd<A> end_of = edge_end(p, partners, edge.id, row, graph);
      edge.partner = end_of.partner, edge.weight = end_of.weight;
    }
    run(edge);
  }
}

template <class A>
__global__ void __launch_bounds__(kRowThreads) forward_edges(Launch<A> l) {
  const EdgeList<A>& p = l.problem;
  const int lane = threadIdx.x % kWarp, H = l.message.hidden_size;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  A* const hidden_sum = l.scratch + warp * l.scratch_size;
  const NodeRows<A> nodes = {p.nodes, l.message.in_size};
  for (int64_t row = warp; row < p.graphs.num_nodes; row += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow graph = graph_of_row(p.graphs, row);
    clear(hidden_sum, H, lane);
    A weight_sum = 0;
    int64_t degree = 0;
    for_edges(p, l.by_target, p.source, row, graph, lane, [&](const Edge<A>& edge) {
      weight_sum += edge.weight;
      degree += edge.weight > 0;
      unsigned lanes = __ballot_sync(kAllLanes, edge.active);
      while (lanes) {
        const Chunk<A> chunk = take_chunk(lanes, edge.partner, edge.weight);
        for (int h = lane; h < H; h += kWarp) {
          A y[kChunk], sum = 0;
          hidden_unit(l.message, h, nodes, row, chunk, y);
#pragma unroll
          for (int c = 0; c < kChunk; ++c)
            if (c < chunk.count) sum = std::fma(chunk.factor[c], relu(y[c]), sum);
          hidden_sum[h] += sum;
        }
      }
    });
    const A scale = aggregation_scale<A>(p.aggregation, graph.end - graph.begin, warp_sum(degree));
    write_out(l.message, hidden_sum, warp_sum(weight_sum), scale, p.out + row * l.message.out_size, lane);
  }
}

template <class A>
__global__ void __launch_bounds__(kRowThreads) scale_edges(EdgeList<A> p, EdgeOrder by_target, A* scale) {
  const int lane = threadIdx.x % kWarp;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
       row < p.graphs.num_nodes; row += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow graph = graph_of_row(p.graphs, row);
    int64_t degree = 0;
    if (p.aggregation == Aggregation::neighbor_mean)
      for_edges(p, by_target, p.source, row, graph, lane,
                [&](const Edge<A>& edge) { degree += edge.weight > 0; });
    degree = warp_sum(degree);
    if (lane == 0) scale[row] = aggregation_scale<A>(p.aggregation, graph.end - graph.begin, degree);
  }
  if (!p.grad_weight) return;
  for (int64_t edge = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x; edge < p.num_edges;
       edge += static_cast<int64_t>(gridDim.x) * kRowThreads)
    if (p.target[edge] < 0 || p.target[edge] >= p.graphs.num_nodes) p.grad_weight[edge] = static_cast<A>(NAN);
}

template <class A>
__global__ void __launch_bounds__(kRowThreads) backward_edges(Launch<A> l) {
  const EdgeList<A>& p = l.problem;
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kRowWarps + threadIdx.x / kWarp;
  const int64_t d = l.message.in_size;
  A* const gradients = l.partials + warp * l.gradients.end;
  A* const memory = l.scratch + warp * l.scratch_size;
  const auto s = MessageScratch<A>::at(memory, gradients, d, l.message.hidden_size);
  const NodeRows<A> nodes = {p.nodes, l.message.in_size};
  const int64_t H = l.message.hidden_size;
  const auto no_l2 = [](int) { return A(0); };
  clear(gradients, l.gradients.end, lane);
  clear(memory, l.scratch_size, lane);
  __syncwarp();
  for (int64_t row = warp; row < p.graphs.num_nodes; row += static_cast<int64_t>(gridDim.x) * kRowWarps) {
    const GraphOfRow graph = graph_of_row(p.graphs, row);
    A weight_sum = 0;
    for_edges(p, l.by_target, p.source, row, graph, lane, [&](const Edge<A>& edge) {
      weight_sum += edge.weight;
      A grad_weight = l.grad_gate[row];
      unsigned lanes = __ballot_sync(kAllLanes, edge.active);
      while (lanes) {
        const Chunk<A> chunk = take_chunk(lanes, edge.partner, edge.weight);
        A grad_factor[kChunk];
        const auto of_target = [&](int, int64_t h) { return l.grad_hidden[row * H + h]; };
        message_backward(l.message, l.gradients, s, nodes, row, chunk, of_target, true, false, no_l2, lane,
                         grad_factor);
#pragma unroll
        for (int c = 0; c < kChunk; ++c)
          if (c < chunk.count && lane == chunk.lane[c]) grad_weight += grad_factor[c];
      }
      if (p.grad_weight && edge.active)
        p.grad_weight[edge.id] = weight_gradient(p, edge.id, edge.partner, grad_weight);
    });
    for_edges(p, l.by_source, p.target, row, graph, lane, [&](const Edge<A>& edge) {
      unsigned lanes = __ballot_sync(kAllLanes, edge.active);
      while (lanes) {
        const Chunk<A> chunk = take_chunk(lanes, edge.partner, edge.weight);
        A grad_factor[kChunk];
        const auto of_target = [&](int c, int64_t h) { return l.grad_hidden[chunk.partner[c] * H + h]; };
        message_backward(l.message, l.gradients, s, nodes, row, chunk, of_target, false, false, no_l2, lane,
                         grad_factor);
      }
    });
    finish_out_gradients(l.message, l.gradients, s, p.grad_out + row * d, l.scale[row], warp_sum(weight_sum),
                         lane);
    finish_outer(l.message, static_cast<const A*>(nullptr), s.outer, nodes, row,
                 gradients + l.gradients.hidden, p.grad_nodes + row * d, lane);
    move_to(gradients + l.gradients.hidden_bias, s.bias_sum, l.message.hidden_size, lane);
  }
}

}  // namespace

template <class A>
cudaError_t edge_scales(const EdgeList<A>& problem, const EdgeOrder& by_target, A* scale,
                        cudaStream_t stream) {
  const int64_t rows = (problem.graphs.num_nodes + kRowWarps - 1) / kRowWarps;
  const int64_t edges = problem.grad_weight ? (problem.num_edges + kRowThreads - 1) / kRowThreads : 0;
  const int64_t units = rows > edges ? rows : edges;
  if (units == 0) return cudaSuccess;
  return launch(scale_edges<A>, blocks_for(units, 0), kRowThreads, 0, stream, problem, by_target, scale);
}

template <class A>
int64_t forward_workspace(const EdgeList<A>& problem) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, false)) return tiles_workspace(problem, false);
  return plan(problem, false, nullptr).bytes;
}

template <class A>
int64_t backward_workspace(const EdgeList<A>& problem) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, true)) return tiles_workspace(problem, true);
  return plan(problem, true, nullptr).bytes;
}

template <class A>
cudaError_t forward(const EdgeList<A>& problem, const EdgeOrder& by_target, void* workspace,
                    cudaStream_t stream) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, false)) return tiles_forward(problem, by_target, workspace, stream);
  Launch<A> l = plan(problem, false, workspace);
  l.by_target = by_target;
  if (problem.graphs.num_nodes == 0) return cudaSuccess;
  L0SIGN_TRY(write_transposed(l.message, stream));
  return launch(forward_edges<A>, l.blocks, kRowThreads, 0, stream, l);
}

template <class A>
cudaError_t backward(const EdgeList<A>& problem, const EdgeOrder& by_target, const EdgeOrder& by_source,
                     void* workspace, cudaStream_t stream) {
  if constexpr (std::is_same_v<A, float>)
    if (tiles_take(problem, true)) return tiles_backward(problem, by_target, by_source, workspace, stream);
  Launch<A> l = plan(problem, true, workspace);
  l.by_target = by_target, l.by_source = by_source;
  const int64_t N = problem.graphs.num_nodes;
  L0SIGN_TRY(write_transposed(l.message, stream));
  L0SIGN_TRY(edge_scales(problem, by_target, l.scale, stream));
  if (N) {
    L0SIGN_TRY(hidden_gradients(l.message, problem.grad_out, l.scale, N, l.grad_hidden, l.grad_gate, stream));
  }
  L0SIGN_TRY(launch(backward_edges<A>, l.blocks, kRowThreads, 0, stream, l));
  L0SIGN_TRY(sum_partials(l.partials, l.warps(), l.gradients.end, l.sums, stream));
  return finish_message_gradients(l.sums, l.gradients, problem.message, problem.grad_message, stream);
}

#define INSTANTIATE(A)                                                                      \
  template cudaError_t edge_scales(const EdgeList<A>&, const EdgeOrder&, A*, cudaStream_t); \
  template int64_t forward_workspace(const EdgeList<A>&);                                   \
  template int64_t backward_workspace(const EdgeList<A>&);                                  \
  template cudaError_t forward(const EdgeList<A>&, const EdgeOrder&, void*, cudaStream_t);  \
  template cudaError_t backward(const EdgeList<A>&, const EdgeOrder&, const EdgeOrder&, void*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
