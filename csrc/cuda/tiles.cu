// Chooses a shape of tile_config.h, and does what is left to do around its kernels.
#include "cuda/tiles.h"

#include "cuda/tiles_launch.h"
#include "cuda/weights.h"

namespace l0sign::cuda {

// Defined by tiles_instance.h, shape by shape.
template <class Shape>
cudaError_t start_tile_forward(const TileLaunch& l, cudaStream_t stream);
template <class Shape>
cudaError_t start_tile_backward(const TileLaunch& l, cudaStream_t stream);

#define DECLARE(Shape)                                                             \
  template <>                                                                      \
  cudaError_t start_tile_forward<Shape>(const TileLaunch& l, cudaStream_t stream); \
  template <>                                                                      \
  cudaError_t start_tile_backward<Shape>(const TileLaunch& l, cudaStream_t stream);
DECLARE(TileShape8x32)
DECLARE(TileShape16x32)
DECLARE(TileShape16x64)
#undef DECLARE

namespace {

constexpr int kThreads = 128;

// Calls run(Shape{}) with the smallest shape that fits; whether there is one.
template <class Run>
bool with_shape(const CompleteGraph<float>& p, Run run) {
  if (TileShape8x32::fits(p)) {
    run(TileShape8x32{});
  } else if (TileShape16x32::fits(p)) {
    run(TileShape16x32{});
  } else if (TileShape16x64::fits(p)) {
    run(TileShape16x64{});
  } else {
    return false;
  }
  return true;
}

// Graphs whose sums no warp has written: those of more than kSmallGraph nodes, and those without any.
__global__ void __launch_bounds__(kThreads) sum_large_graphs(TileLaunch l) {
  const CompleteGraph<float>& p = l.problem;
  const int lane = threadIdx.x % kWarp;
  for (int64_t graph = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp;
       graph < p.graphs.count; graph += static_cast<int64_t>(gridDim.x) * (kThreads / kWarp)) {
    int64_t begin = graph * p.graphs.graph_size, end = begin + p.graphs.graph_size;
    if (p.graphs.offsets) begin = p.graphs.offsets[graph], end = p.graphs.offsets[graph + 1];
    begin = begin < 0 ? 0 : begin, end = end > p.graphs.num_nodes ? p.graphs.num_nodes : end;
    if (end > begin && is_small(end - begin)) continue;
    const auto store = [&](auto* of_graphs, const auto* of_rows, auto sum) {
      if (!of_graphs) return;
      for (int64_t row = begin + lane; row < end; row += kWarp) sum += of_rows[row];
      sum = warp_sum(sum);
      if (lane == 0) of_graphs[graph] = sum;
    };
    store(p.l0, l.l0, 0.0f);
    store(p.l2, l.l2, 0.0f);
    store(p.num_edges, l.edges, int64_t{0});
  }
}

bool may_have_large_graphs(const Graphs& graphs) { return graphs.offsets || !is_small(graphs.graph_size); }

TileLaunch plan(const CompleteGraph<float>& p, bool backward, void* memory) {
  Arena arena(memory);
  TileLaunch l = {};
  l.problem = p;
  l.gate = GateFunction<float>(p.gate);
  const int64_t N = p.graphs.num_nodes;
  const int64_t units = (N + kTileRows * kTileWarps - 1) / (kTileRows * kTileWarps);
  if (!backward) {
    l.blocks = units < kMaxFreeBlocks ? units : kMaxFreeBlocks;
    const int64_t rows = may_have_large_graphs(p.graphs) ? N : 0;
    l.l0 = arena.take<float>(p.l0 ? rows : 0);
    l.l2 = arena.take<float>(p.l2 ? rows : 0);
    l.edges = arena.take<int32_t>(p.num_edges ? rows : 0);
  } else {
    l.message_gradients = gradient_layout(0, p.message);
    l.edge_gradients = gradient_layout(l.message_gradients.end, p.edge);
    const int64_t size = l.edge_gradients.end;
    l.blocks = blocks_for(units, kTileWarps * size * sizeof(float));
    l.partials = arena.take<float>(l.blocks * kTileWarps * size);
    l.sums = arena.take<float>(size);
  }
  l.bytes = arena.used();
  return l;
}

}  // namespace

bool tiles_take(const CompleteGraph<float>& p, bool backward) {
  if (!p.nodes || p.gates) return false;
  if (backward && (!p.grad_out || p.grad_l2 || p.grad_gates || p.grad_logits)) return false;
  return with_shape(p, [](auto) {});
}

int64_t tiles_workspace(const CompleteGraph<float>& problem, bool backward) {
  return plan(problem, backward, nullptr).bytes;
}

cudaError_t tiles_forward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream) {
  const TileLaunch l = plan(problem, false, workspace);
  cudaError_t error = cudaSuccess;
  if (problem.graphs.num_nodes)
    with_shape(problem, [&](auto shape) { error = start_tile_forward<decltype(shape)>(l, stream); });
  const bool sums = problem.l0 || problem.l2 || problem.num_edges;
  if (error != cudaSuccess || !sums || !problem.graphs.count || !may_have_large_graphs(problem.graphs))
    return error;
  const int64_t warps = kThreads / kWarp;
  return launch(sum_large_graphs, blocks_for((problem.graphs.count + warps - 1) / warps, 0), kThreads, 0,
                stream, l);
}

cudaError_t tiles_backward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream) {
  const TileLaunch l = plan(problem, true, workspace);
  cudaError_t error = cudaSuccess;
  with_shape(problem, [&](auto shape) { error = start_tile_backward<decltype(shape)>(l, stream); });
  if (error != cudaSuccess) return error;
  L0SIGN_TRY(sum_partials(l.partials, l.blocks * kTileWarps, l.edge_gradients.end, l.sums, stream));
  L0SIGN_TRY(
      finish_message_gradients(l.sums, l.message_gradients, problem.message, problem.grad_message, stream));
  if (!problem.edge_nodes) return cudaSuccess;
  return finish_edge_gradients(l.sums, l.edge_gradients, problem.edge, problem.grad_edge, stream);
}

}  // namespace l0sign::cuda
