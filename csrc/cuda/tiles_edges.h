// The kernels on the matrix units over the pairs of a given list; instantiated by tiles_edges.cu. The edges
// are sorted by either end, so that a warp finds those of its rows one after the other. Forward: 16 rows, the
// edges into them 16 at a time, their sources' rows staged; a message counts at its target alone. Backward:
// one row, the edges into it and out of it in one list, as the partners of a row of the pair matrix are.
#pragma once
#include "cuda/tiles_backward.h"
#include "cuda/tiles_forward.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// D_i of every node.
struct EdgeGradRows {
  const float *grad, *scales;
  int size;
  __device__ __forceinline__ int width() const { return size; }
  __device__ __forceinline__ const float* row(int64_t k) const { return grad + k * size; }
  __device__ __forceinline__ float scale(int64_t k) const { return scales[k]; }
};

template <class Shape, Precision P, bool L2>
__device__ __forceinline__ void Forward<Shape, P, L2>::edges_into(const TileEdges& edges, int64_t first,
                                                                  int rows) {
  const EdgeList<float>& list = edges.list;
  const EdgeOrder& order = edges.by_target;
  const RowCache<kMI> nodes = {cache_};
  const typename T::Rows node_rows = T::Rows::nodes(p_);
  begin_rows();
  nodes.load(0, rows, node_rows, lane_, [&](int k) { return first + k; });
  nodes.clear(T::kZeroSlot, lane_);
  // Of row `lane`; and where the edges begin that come to the rows, and where they end.
  const GraphOfRow own = graph_of_row(p_.graphs, first + (lane_ < rows ? lane_ : 0));
  const auto graph_of = [&](int r) {
    return GraphOfRow{0, __shfl_sync(kAllLanes, own.begin, r), __shfl_sync(kAllLanes, own.end, r)};
  };
  const int64_t bound = lower_bound(order.row, list.num_edges, lane_ == 0 ? first : first + rows);
  const int64_t end = __shfl_sync(kAllLanes, bound, 1);
#pragma unroll 1
  for (int64_t begin = __shfl_sync(kAllLanes, bound, 0); begin < end; begin += kTileGates) {
    const int count = end - begin < kTileGates ? static_cast<int>(end - begin) : kTileGates;
#pragma unroll 1
    for (int at = lane_; at - lane_ < count; at += kWarp) {
      const bool exists = at < count;
      const int r = exists ? static_cast<int>(order.row[begin + at] - first) : 0;
      const GraphOfRow graph = graph_of(r);
      EdgeEnd<float> edge = {-1, 0};
      if (exists) edge = edge_end(list, list.source, order.order[begin + at], first + r, graph);
      memory_.partner[at] = static_cast<int32_t>(edge.partner);
      memory_.list_value[at] = edge.weight;
      memory_.list_pair[at] =
          exists ? slot_pair(r, kForwardRows + at % kStepPairs) : slot_pair(T::kZeroSlot, T::kZeroSlot);
    }
    __syncwarp();
    T::for_passes(units_, [&](int unit) {
      FragmentC sum[kPassUnits * 2] = {};
      const auto add_steps = [&](auto apart, bool counts) {
#pragma unroll 1
        for (int at = 0; at < count; at += kStepPairs) {
          nodes.load(kForwardRows, kStepPairs, node_rows, lane_,
                     [&](int k) { return int64_t{memory_.partner[at + k]}; });
          __syncwarp();
          add_step<decltype(apart)::value>(nodes, at, unit, counts, sum);
          __syncwarp();  // the next rows come to the same place
        }
      };
      add_steps(std::false_type{}, unit == 0);
      bool finite = true;
#pragma unroll
      for (FragmentC& of_units : sum)
#pragma unroll
        for (const float x : of_units.x) finite = finite && fabsf(x) <= largest(Precision::tf32);
      // The rows may be of several graphs, of which one has nothing to do with another.
      if (__ballot_sync(kAllLanes, !finite)) {
#pragma unroll
        for (FragmentC& of_units : sum) of_units = {};
        add_steps(std::true_type{}, false);
      }
      through_out(unit, sum);
    });
  }
  finish_rows(first, rows, graph_of);
  __syncwarp();
}

template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::edges_of(const TileEdges& edges, int64_t first,
                                                                       int rows) {
  constexpr int kHalf = kWarp / 2;
  static_assert(kBackwardRows < kHalf, "a half of the lanes has the bounds of all rows");
  const EdgeList<float>& list = edges.list;
  const RowCache<kMI> nodes = {cache_}, grads = {cache_ + Shared::kMessageCache};
  const EdgeGradRows grad_rows = {list.grad_out, edges.scale, d_};
  nodes.clear(T::kZeroSlot, lane_);
  grads.clear(T::kZeroSlot, lane_);
  // Where the edges begin that come to row `lane`, and, in the other half of the lanes, those that leave it.
  const int of = lane_ % kHalf < rows ? lane_ % kHalf : rows;
  const int64_t bound =
      lower_bound(lane_ < kHalf ? edges.by_target.row : edges.by_source.row, list.num_edges, first + of);
#pragma unroll 1
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first + r;
    const GraphOfRow graph = graph_of_row(p_.graphs, row);
    const int64_t into_begin = __shfl_sync(kAllLanes, bound, r);
    const int64_t out_begin = __shfl_sync(kAllLanes, bound, kHalf + r);
    const int64_t all_into = __shfl_sync(kAllLanes, bound, r + 1) - into_begin;
    const int64_t all = all_into + __shfl_sync(kAllLanes, bound, kHalf + r + 1) - out_begin;
    gate_sum_ = 0;
#pragma unroll
    for (int k = 0; k < kMI; ++k) grad_row_[k][0] = grad_row_[k][1] = 0;
    nodes.load(T::kOwnSlot, 1, T::Rows::nodes(p_), lane_, [&](int) { return row; });
    grads.load(T::kOwnSlot, 1, grad_rows, lane_, [&](int) { return row; });
#pragma unroll 1
    for (int64_t begin = 0; begin < all; begin += kTileGates) {
      const int64_t rest = all_into - begin;
      const int count = all - begin < kTileGates ? static_cast<int>(all - begin) : kTileGates;
      const int into = rest < 0 ? 0 : rest < count ? static_cast<int>(rest) : count;
#pragma unroll 1
      for (int at = lane_; at < whole_steps(count); at += kWarp) {
        EdgeEnd<float> edge = {-1, 0};
        if (at < into) {
          edge = edge_end(list, list.source, edges.by_target.order[into_begin + begin + at], row, graph);
          gate_sum_ += edge.weight;
        } else if (at < count) {
          edge = edge_end(list, list.target, edges.by_source.order[out_begin + begin + at - all_into], row,
                          graph);
        }
        memory_.partner[at] = static_cast<int32_t>(edge.partner);
        memory_.list_value[at] = edge.weight;
        gradients_.grad_gate[at] = 0;
      }
      __syncwarp();
      const EdgePartners partners = {row, into, edges};
      T::for_passes(units_,
                    [&](int unit) { message_pass(partners, nodes, grads, T::kOwnSlot, 0, count, unit); });
      __syncwarp();
      if (list.grad_weight)
#pragma unroll 1
        for (int at = lane_; at < into; at += kWarp) {
          const int64_t edge = edges.by_target.order[into_begin + begin + at];
          list.grad_weight[edge] = weight_gradient(list, edge, memory_.partner[at], gradients_.grad_gate[at]);
        }
    }
    __syncwarp();
    const float weights = warp_sum(gate_sum_);
#pragma unroll
    for (int k = 0; k < kComponentsOfLane; ++k)
      if (const int component = k * kWarp + lane_; component < kMI * kComponents)
        out_bias_[k] = fmaf(grads.row(T::kOwnSlot)[component], weights, out_bias_[k]);
    store_row(grad_row_, 1.0f, p_.grad_nodes + row * d_, d_);
    __syncwarp();  // the next row comes to the same place
  }
}

// A message receives D of its target: of the row, for those that arrive there. A self-edge is met as both.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::stage_partners(const EdgePartners& partners,
                                                                             const RowCache<kMI>& nodes,
                                                                             const RowCache<kMI>& grads,
                                                                             int at) const {
  const EdgeList<float>& list = partners.edges.list;
  const EdgeGradRows grad_rows = {list.grad_out, partners.edges.scale, d_};
  __syncwarp();
  nodes.load(0, kStepPairs, T::Rows::nodes(p_), lane_,
             [&](int k) { return int64_t{memory_.partner[at + k]}; });
  grads.load(0, kStepPairs, grad_rows, lane_,
             [&](int k) { return at + k < partners.into ? partners.row : int64_t{memory_.partner[at + k]}; });
  __syncwarp();
  if (!list.grad_weight) return;
  dot_out_bias(grads, 0, kStepPairs);
  __syncwarp();
}

// What the weights of a step's arriving edges receive through the units of a pass.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::add_grad_gates(const EdgePartners& partners,
                                                                             const float (&grad_gate)[2][2],
                                                                             const int (&slot)[2][2], int,
                                                                             int at, int unit) {
  if (!partners.edges.list.grad_weight) return;
#pragma unroll
  for (int t = 0; t < 2; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float sum = sum_over_groups(grad_gate[t][j]);
      const int edge = at + t * 8 + place_.in_group * 2 + j;
      if (place_.group != 0 || edge >= partners.into) continue;
      gradients_.grad_gate[edge] += sum + (unit == 0 ? row_numbers_[slot[t][j]] : 0.0f);
    }
  __syncwarp();  // the next product takes the whole warp
}

// Calls run(first, rows) for the rows of a warp, `Turn` at a time.
template <int Turn, class Run>
__device__ __forceinline__ void for_turns(int64_t num_nodes, int64_t warp, int64_t warps, Run run) {
#pragma unroll 1
  for (int64_t first = warp * Turn; first < num_nodes; first += warps * Turn)
    run(first, num_nodes - first < Turn ? static_cast<int>(num_nodes - first) : Turn);
}

template <class Shape, Precision P>
__global__ void __launch_bounds__(kTileThreads, Shape::kForwardBlocks)
    tile_edges_forward(TileLaunch l, TileEdges edges) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Forward<Shape, P, false> run(l, dynamic_shared<float>(), ForwardShared<Shape, P>(l.problem), lane, warp);
  __syncthreads();
  for_turns<kForwardRows>(l.problem.graphs.num_nodes, static_cast<int64_t>(blockIdx.x) * kTileWarps + warp,
                          static_cast<int64_t>(gridDim.x) * kTileWarps,
                          [&](int64_t first, int rows) { run.edges_into(edges, first, rows); });
}

template <class Shape, Precision P>
__global__ void __launch_bounds__(kTileThreads, Shape::kBackwardBlocks)
    tile_edges_backward(TileLaunch l, TileEdges edges) {
  run_backward<Shape, P, false, false>(l, [&](auto& run, int64_t warp) {
    for_turns<kBackwardRows>(l.problem.graphs.num_nodes, warp, grid_warps(),
                             [&](int64_t first, int rows) { run.edges_of(edges, first, rows); });
  });
}

#endif

}  // namespace l0sign::cuda
