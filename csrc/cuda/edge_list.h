// The pairs of a given list on the GPU. The counterpart of cpu/run.h.
#pragma once
#include "cuda/gate.h"

namespace l0sign::cuda {

// The edges by one of their ends: order[k] is the edge that comes k-th, of node row[k], and rows do not fall.
// Edges of one node come in the list's order, so that sums do not depend on the sort.
struct EdgeOrder {
  const int64_t* row;    // [E]
  const int64_t* order;  // [E]
};

template <class A>
int64_t forward_workspace(const EdgeList<A>& problem);
template <class A>
int64_t backward_workspace(const EdgeList<A>& problem);

// An edge that leaves its graph gives NaNs to the end that it has in range: nobody waits for the GPU to say
// so.
template <class A>
cudaError_t forward(const EdgeList<A>& problem, const EdgeOrder& by_target, void* workspace,
                    cudaStream_t stream);
template <class A>
cudaError_t backward(const EdgeList<A>& problem, const EdgeOrder& by_target, const EdgeOrder& by_source,
                     void* workspace, cudaStream_t stream);

// Before a backward. scale: [N] what the aggregation multiplies the sum of each node's messages by. An edge
// whose target is no node comes to no row, and so the gradient of its weight is written here: NaN.
template <class A>
cudaError_t edge_scales(const EdgeList<A>& problem, const EdgeOrder& by_target, A* scale,
                        cudaStream_t stream);

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// The first place in an ascending list that holds `row` or more.
__device__ __forceinline__ int64_t lower_bound(const int64_t* rows, int64_t count, int64_t row) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (rows[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// What node `row` meets at the other end of edge `edge`. An end outside of its graph reads nothing that is
// not there: it is the row itself, and the weight a NaN.
template <class A>
struct EdgeEnd {
  int64_t partner;
  A weight;
};
template <class A>
__device__ __forceinline__ EdgeEnd<A> edge_end(const EdgeList<A>& p, const int64_t* partners, int64_t edge,
                                               int64_t row, const GraphOfRow& graph) {
  const int64_t partner = partners[edge];
  if (partner < graph.begin || partner >= graph.end) return {row, static_cast<A>(NAN)};
  return {partner, p.weight ? p.weight[edge] : A(1)};
}

// What the weight of an edge into a row receives, whose edge_end was at `partner`: NaN where that is not its
// source.
template <class A>
__device__ __forceinline__ A weight_gradient(const EdgeList<A>& p, int64_t edge, int64_t partner,
                                             A gradient) {
  return p.source[edge] == partner ? gradient : static_cast<A>(NAN);
}

#endif

}  // namespace l0sign::cuda
