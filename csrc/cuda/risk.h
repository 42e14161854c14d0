// The risk of a head on the pooled sums of a complete graph, with all its gradients: the pooled forward, then
// predictions, losses and what the backward receives, then the pooled backward. No torch in here.
#pragma once
#include "cuda/device.h"
#include "problem.h"

namespace l0sign::cuda {

template <class A>
int64_t risk_workspace(const CompleteGraph<A>& problem);

// `problem` as cpu::risk wants it.
template <class A>
cudaError_t risk(const CompleteGraph<A>& problem, const Risk<A>& head, void* workspace, cudaStream_t stream);

// What lies between the two.
template <class A>
int64_t judge_workspace(int64_t num_graphs, int64_t d);

// From pooled [G, d] and l0 [G] everything that `head` wants, and grad_pooled [G, d] and grad_l0 [G].
template <class A>
cudaError_t judge(const Risk<A>& head, const A* pooled, const A* l0, int64_t num_graphs, int64_t d,
                  A* grad_pooled, A* grad_l0, void* workspace, cudaStream_t stream);

}  // namespace l0sign::cuda
