// The pairs of a given list on the GPU. The counterpart of cpu/run.h.
#pragma once
#include "cuda/device.h"
#include "problem.h"

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

}  // namespace l0sign::cuda
