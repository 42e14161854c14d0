// Chooses a shape of tile_config.h, and does what is left to do around its kernels.
#include "cuda/tiles.h"

#include <algorithm>

#include "cuda/graph_totals.h"
#include "cuda/tiles_launch.h"
#include "cuda/weights.h"

namespace l0sign::cuda {

#define DECLARE(Shape)                          \
  template <>                                   \
  TileStarters tile_starters<Shape>();          \
  template <>                                   \
  TileEdgeStarters tile_edge_starters<Shape>(); \
  template <>                                   \
  TileGateStarters tile_gate_starters<Shape>();
DECLARE(TileShape8)
DECLARE(TileShape16)
DECLARE(TileShape32)
DECLARE(TileShape64)
#undef DECLARE

namespace {

constexpr int kThreads = 128;
constexpr int kSumThreads = 256;
constexpr int kSlices = kSumThreads / kWarp;  // of the partial sums of one element
constexpr size_t kSharedForSums = 100 << 10;  // of a block: leaves room for a second one

// Calls run(Shape{}) with the smallest shape that fits; whether there is one.
template <class Run>
bool with_shape(const CompleteGraph<float>& p, Run run) {
  if (TileShape8::fits(p)) {
    run(TileShape8{});
  } else if (TileShape16::fits(p)) {
    run(TileShape16{});
  } else if (TileShape32::fits(p)) {
    run(TileShape32{});
  } else if (TileShape64::fits(p)) {
    run(TileShape64{});
  } else {
    return false;
  }
  return true;
}

Precision precision_of(const CompleteGraph<float>& p) {
  if (p.half == HalfType::bfloat16) return Precision::bf16;
  if (p.half == HalfType::float16) return Precision::fp16;
  return p.tf32 ? Precision::tf32 : Precision::tf32x3;
}

template <class Shape>
TileSums sums_layout(const CompleteGraph<float>& p) {
  const int message = Shape::units(p.message.hidden) * kUnits, edge = Shape::units(p.edge.hidden) * kUnits;
  TileSums at = {};
  const auto take = [&](int words) { return at.size += words, at.size - words; };
  at.message_hidden = take(message * Shape::kMessageInner * kComponents);
  at.message_out = take(message * Shape::kMessageInner * kComponents);
  at.edge_hidden = take(edge * Shape::kEdgeInner * kComponents);
  at.message_bias = take(message);
  at.edge_bias = take(edge);
  at.edge_out = take(edge);
  at.out_bias = take(Shape::kMessageInner * kComponents);
  at.logit = take(4);
  return at;
}

// Graphs whose sums no warp has written: those of more than kSmallGraph nodes, and those without any.
__global__ void __launch_bounds__(kThreads) sum_large_graphs(TileLaunch l) {
  const CompleteGraph<float>& p = l.problem;
  const int lane = threadIdx.x % kWarp;
  for (int64_t g = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; g < p.graphs.count;
       g += static_cast<int64_t>(gridDim.x) * (kThreads / kWarp)) {
    const GraphOfRow graph = graph_at(p.graphs, g);
    const bool empty = graph.end == graph.begin;
    if (!empty && is_small(graph.end - graph.begin)) continue;
    const int64_t begin = sums_slot(g, graph.begin), end = empty ? begin : sums_slot(g, graph.end - 1) + 1;
    const auto store = [&](auto* of_graphs, const auto* of_slots, auto sum) {
      if (!of_graphs) return;
      for (int64_t slot = begin + lane; slot < end; slot += kWarp) sum += of_slots[slot];
      sum = warp_sum(sum);
      if (lane == 0) of_graphs[g] = sum;
    };
    store(p.l0, l.l0, 0.0f);
    store(p.l2, l.l2, 0.0f);
    store(p.num_edges, l.edges, int64_t{0});
    if (!p.pools) continue;
    const int64_t d = p.message.in;
    for (int64_t k = lane; k < d; k += kWarp) {
      float sum = 0;
      for (int64_t slot = begin; slot < end; ++slot) sum += l.pooled[slot * d + k];
      p.pooled[g * d + k] = sum;
    }
  }
}

// Hidden unit and component of a word of a matrix of sums.
struct Place {
  int unit, component;
};
template <int Inner>
__device__ __forceinline__ Place place_of(int word) {
  const int part = word % 4, lane = word / 4 % kWarp, fragment = word / (4 * kWarp);
  return {fragment / Inner * kUnits + part / 2 * 8 + lane / 4,
          fragment % Inner * kComponents + lane % 4 * 2 + part % 2};
}

// Adds up the warps' partial sums in a fixed order, and writes the gradients of the weights. The sums are
// over *ordered* pairs, see weights.h: hidden layers take half. A block takes a warp's width of words, each
// of its warps every kSlices-th partial sum.
template <class Shape>
__global__ void __launch_bounds__(kSumThreads) finish_sums(TileLaunch l) {
  const CompleteGraph<float>& p = l.problem;
  const TileSums& at = l.at;
  float* const slices = dynamic_shared<float>();  // [kSlices, kWarp]
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int word = static_cast<int>(blockIdx.x) * kWarp + lane;
  const int64_t rows = l.blocks * kTileWarps;
  float sum = 0;
  if (word < at.size && word <= at.logit)
    for (int64_t row = slice; row < rows; row += kSlices) sum += l.partials[row * at.size + word];
  slices[slice * kWarp + lane] = sum;
  __syncthreads();
  if (slice != 0 || word > at.logit) return;
  for (int other = 1; other < kSlices; ++other) sum += slices[other * kWarp + lane];
  const auto H = static_cast<int>(p.message.hidden), d = static_cast<int>(p.message.in);
  const auto He = static_cast<int>(p.edge.hidden), b = static_cast<int>(p.edge.in);
  const float half = 0.5f * sum;
  if (word < at.message_out) {
    const Place to = place_of<Shape::kMessageInner>(word - at.message_hidden);
    if (to.unit < H && to.component < d) p.grad_message.hidden_weight[to.unit * d + to.component] = half;
  } else if (word < at.edge_hidden) {
    const Place to = place_of<Shape::kMessageInner>(word - at.message_out);
    if (to.unit < H && to.component < d) p.grad_message.out_weight[to.component * H + to.unit] = sum;
  } else if (word >= at.message_bias && word < at.edge_bias) {
    if (const int h = word - at.message_bias; h < H) p.grad_message.hidden_bias[h] = half;
  } else if (word >= at.out_bias && word < at.logit) {
    if (const int k = word - at.out_bias; k < d) p.grad_message.out_bias[k] = sum;
  } else if (!p.edge_nodes) {
    return;
  } else if (word < at.message_bias) {
    const Place to = place_of<Shape::kEdgeInner>(word - at.edge_hidden);
    if (to.unit < He && to.component < b)
      p.grad_edge.hidden_weight[to.unit * b + to.component] = p.edge.out_weight[to.unit] * half;
  } else if (word < at.edge_out) {
    if (const int h = word - at.edge_bias; h < He) p.grad_edge.hidden_bias[h] = p.edge.out_weight[h] * half;
  } else if (word < at.out_bias) {
    if (const int h = word - at.edge_out; h < He) p.grad_edge.out_weight[h] = half;
  } else {
    p.grad_edge.out_bias[0] = half;
  }
}

// Shared memory that a block may ask for.
size_t most_shared_bytes() {
#ifdef L0SIGN_SIMT
  return simt::most_shared_bytes();
#else
  int device = 0, bytes = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return 0;
  return bytes;
#endif
}

// Small graphs of one size that a warp takes together: as its shared memory has places for, and as leave
// every warp of a usual grid some.
int graphs_together(const CompleteGraph<float>& p) {
  bool pairwise = false;
  with_shape(p, [&](auto shape) { pairwise = kPairwise<decltype(shape)>; });
  if (!pairwise || p.l2 || p.grad_l2) return 1;
  const int64_t n = p.graphs.graph_size,
                places = std::min(kTogetherNodes / n, (kSmallPairs - 1) / pair_count(n));
  return static_cast<int>(std::max(std::min(places, p.graphs.count / (kMaxBlocks * kTileWarps)), int64_t{1}));
}

// pairs: the kernels are over all pairs, which go graph by graph; given edges go row by row.
TileLaunch plan(const CompleteGraph<float>& p, bool backward, bool pairs, Arena& arena) {
  TileLaunch l = {};
  l.problem = p;
  l.gate = GateFunction<float>(p.gate);
  const int64_t N = p.graphs.num_nodes;
  l.turn = backward ? kBackwardRows : kForwardRows;
  l.together = 1;
  if (pairs && all_small(p.graphs)) {
    l.together = graphs_together(p);
    const int64_t several = std::max(l.turn / p.graphs.graph_size, int64_t{1});
    l.turn = (l.together > 1 ? l.together : several) * p.graphs.graph_size;
  }
  const int64_t rows = kTileWarps * l.turn, units = (N + rows - 1) / rows;
  if (!p.nodes) l.pair_offsets = arena.take<int64_t>(graph_totals_size(p.graphs.count));
  if (!backward) {
    const int64_t turns = pairs ? kForwardTurns : 1;
    l.blocks = std::min(std::max(std::min(units, kMaxBlocks), (units + turns - 1) / turns), kMaxFreeBlocks);
    const int64_t kept = all_small(p.graphs) ? 0 : sums_slots(p.graphs);
    l.pooled = arena.take<float>(p.pools ? kept * p.message.in : 0);
    l.l0 = arena.take<float>(p.l0 ? kept : 0);
    l.l2 = arena.take<float>(p.l2 ? kept : 0);
    l.edges = arena.take<int32_t>(p.num_edges ? kept : 0);
  } else {
    with_shape(p, [&](auto shape) {
      using Shape = decltype(shape);
      l.at = sums_layout<Shape>(p);
      const size_t most = std::min(kSharedForSums, most_shared_bytes());
      l.sums_shared = !Shape::kFixedUnits &&
                      tile_starters<Shape>().shared_bytes(p, precision_of(p), true, l.at.size) <= most;
    });
    l.blocks = blocks_for(units, kTileWarps * l.at.size * sizeof(float));
    l.partials = arena.take<float>(l.blocks * kTileWarps * l.at.size);
    // Where a warp has no more than one turn, there is nothing to share.
    if (pairs && p.graphs.offsets && units > l.blocks)
      l.first_step = arena.take<int64_t>(graph_totals_size(p.graphs.count));
  }
  l.bytes = arena.used();
  return l;
}

TileLaunch plan(const CompleteGraph<float>& p, bool backward, void* memory) {
  Arena arena(memory);
  return plan(p, backward, true, arena);
}

template <class Shape>
cudaError_t launch_finish_sums(const TileLaunch& l, cudaStream_t stream) {
  return launch(finish_sums<Shape>, (l.at.logit + kWarp) / kWarp, kSumThreads, kSumThreads * sizeof(float),
                stream, l);
}

// What a list of edges has in common with all pairs, as far as the kernels read it.
CompleteGraph<float> rows_of(const EdgeList<float>& p) {
  CompleteGraph<float> rows = {};
  rows.graphs = p.graphs;
  rows.aggregation = p.aggregation;
  rows.message = p.message;
  rows.nodes = p.nodes;
  rows.out = p.out;
  rows.grad_out = p.grad_out;
  rows.grad_nodes = p.grad_nodes;
  rows.grad_message = p.grad_message;
  rows.tf32 = p.tf32;
  rows.half = p.half;
  return rows;
}

struct EdgeLaunch {
  TileLaunch rows;
  float* scale;  // [N] (backward)
  int64_t bytes;
};

EdgeLaunch plan(const EdgeList<float>& p, bool backward, void* memory) {
  Arena arena(memory);
  const TileLaunch rows = plan(rows_of(p), backward, false, arena);
  float* const scale = arena.take<float>(backward ? p.graphs.num_nodes : 0);
  return {rows, scale, arena.used()};
}

}  // namespace

bool tiles_take(const CompleteGraph<float>& p, bool backward) {
  if (!p.nodes) {
    if (!p.edge_nodes || p.ids) return false;
    if (backward ? p.grad_l0 != nullptr : !p.gates || p.l0 || p.num_edges || p.degree) return false;
  } else {
    if (p.gates || (p.pools && p.half != HalfType::none)) return false;
    if (backward && (!(p.pools ? p.grad_pooled : p.grad_out) || p.grad_gates || p.grad_logits)) return false;
  }
  bool fits = false;
  with_shape(p, [&](auto shape) {
    const auto bytes = tile_starters<decltype(shape)>().shared_bytes;
    fits = bytes(p, precision_of(p), backward, 0) <= most_shared_bytes();
  });
  return fits;
}

int64_t tiles_workspace(const CompleteGraph<float>& problem, bool backward) {
  return plan(problem, backward, nullptr).bytes;
}

cudaError_t tiles_forward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream) {
  const TileLaunch l = plan(problem, false, workspace);
  if (l.pair_offsets) L0SIGN_TRY(first_pairs(problem.graphs, l.pair_offsets, stream));
  cudaError_t error = cudaSuccess;
  if (problem.graphs.num_nodes)
    with_shape(problem, [&](auto shape) {
      using Shape = decltype(shape);
      const auto forward =
          problem.nodes ? tile_starters<Shape>().forward : tile_gate_starters<Shape>().forward;
      error = forward(l, precision_of(problem), stream);
    });
  const bool sums = problem.pools || problem.l0 || problem.l2 || problem.num_edges;
  if (error != cudaSuccess || !sums || !problem.graphs.count || all_small(problem.graphs)) return error;
  const int64_t warps = kThreads / kWarp;
  return launch(sum_large_graphs, blocks_for((problem.graphs.count + warps - 1) / warps, 0), kThreads, 0,
                stream, l);
}

cudaError_t tiles_backward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream) {
  const TileLaunch l = plan(problem, true, workspace);
  if (l.pair_offsets) L0SIGN_TRY(first_pairs(problem.graphs, l.pair_offsets, stream));
  cudaError_t error = cudaSuccess;
  with_shape(problem, [&](auto shape) {
    using Shape = decltype(shape);
    if (l.first_step) error = first_steps(problem.graphs, kPairwise<Shape>, l.first_step, stream);
    if (error != cudaSuccess) return;
    const auto backward =
        problem.nodes ? tile_starters<Shape>().backward : tile_gate_starters<Shape>().backward;
    error = backward(l, precision_of(problem), stream);
    if (error != cudaSuccess) return;
    error = launch_finish_sums<Shape>(l, stream);
  });
  return error;
}

bool tiles_take(const EdgeList<float>& p, bool backward) {
  return p.graphs.num_nodes <= INT32_MAX && tiles_take(rows_of(p), backward);
}

int64_t tiles_workspace(const EdgeList<float>& problem, bool backward) {
  return plan(problem, backward, nullptr).bytes;
}

cudaError_t tiles_forward(const EdgeList<float>& problem, const EdgeOrder& by_target, void* workspace,
                          cudaStream_t stream) {
  const EdgeLaunch l = plan(problem, false, workspace);
  const TileEdges edges = {problem, by_target, {}, nullptr};
  cudaError_t error = cudaSuccess;
  if (problem.graphs.num_nodes)
    with_shape(l.rows.problem, [&](auto shape) {
      error =
          tile_edge_starters<decltype(shape)>().forward(l.rows, edges, precision_of(l.rows.problem), stream);
    });
  return error;
}

cudaError_t tiles_backward(const EdgeList<float>& problem, const EdgeOrder& by_target,
                           const EdgeOrder& by_source, void* workspace, cudaStream_t stream) {
  const EdgeLaunch l = plan(problem, true, workspace);
  L0SIGN_TRY(edge_scales(problem, by_target, l.scale, stream));
  const TileEdges edges = {problem, by_target, by_source, l.scale};
  cudaError_t error = cudaSuccess;
  with_shape(l.rows.problem, [&](auto shape) {
    using Shape = decltype(shape);
    error = tile_edge_starters<Shape>().backward(l.rows, edges, precision_of(l.rows.problem), stream);
    if (error == cudaSuccess) error = launch_finish_sums<Shape>(l.rows, stream);
  });
  return error;
}

}  // namespace l0sign::cuda
