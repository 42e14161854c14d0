// What lies between the pooled forward and backward of a risk: predictions, losses, and what the backward
// receives. No torch in here.
#pragma once
#include "cuda/device.h"
#include "problem.h"

namespace l0sign::cuda {

template <class A>
int64_t judge_workspace(int64_t num_graphs, int64_t d);

// From pooled [G, d] and l0 [G] everything that `risk` wants, and grad_pooled [G, d] and grad_l0 [G].
template <class A>
cudaError_t judge(const Risk<A>& risk, const A* pooled, const A* l0, int64_t num_graphs, int64_t d,
                  A* grad_pooled, A* grad_l0, void* workspace, cudaStream_t stream);

}  // namespace l0sign::cuda
