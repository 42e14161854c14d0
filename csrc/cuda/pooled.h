// The forward of the bags on the GPU, any size, float32 and float64. The sum over a graph's nodes of
// x_i v'_i / n is linear in the messages:
//   pooled = W2 R + b2 r  with  R = sum_(i <= j) w_ij relu(...),  r = sum_(i <= j) w_ij,
//   w_ij = g_ij (alpha_i + [i != j] alpha_j),  alpha_i = x_i scale_i / n,
// so that every pair is met once, and the second layer once a graph. With D the gradient of `pooled`, node i
// receives alpha_i D, and the backward of the nodes is one (complete_graph.cu). For small graphs there is one
// here that meets a pair once: the gradient of a hidden unit is w_ij W2^T D where the unit is on, and a warp
// that owns a graph adds it to both ends.
#pragma once
#include "cuda/pair_launch.h"

namespace l0sign::cuda {

template <class A>
int64_t pooled_workspace(const CompleteGraph<A>& problem);
// For neighbor_mean `degree` has been written.
template <class A>
cudaError_t pooled_forward(const CompleteGraph<A>& problem, void* workspace, cudaStream_t stream);

// Without a gradient of the L2 penalty, over the graphs of up to kSmallBag nodes: adds to the partial sums,
// and works in so much of a warp's scratch.
template <class A>
int64_t pooled_scratch(const CompleteGraph<A>& problem);
template <class A>
cudaError_t pooled_backward(const PairLaunch<A>& l, cudaStream_t stream);

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// What the sum over the partners of node `row` is multiplied by.
template <class A>
__device__ __forceinline__ A node_scale(const CompleteGraph<A>& p, const GraphOfRow& graph, int64_t row) {
  const bool counted = p.aggregation == Aggregation::neighbor_mean;
  return aggregation_scale<A>(p.aggregation, graph.end - graph.begin, counted ? p.degree[row] : 0);
}

// alpha of node `row`.
template <class A>
__device__ __forceinline__ A pooled_share(const CompleteGraph<A>& p, const TableRows<A>& nodes,
                                          const GraphOfRow& graph, int64_t row) {
  return nodes.scale(row) * node_scale(p, graph, row) / static_cast<A>(graph.end - graph.begin);
}

#endif

}  // namespace l0sign::cuda
