// All pairs of each graph on the GPU: gated, ungated, or gates only. The counterpart of cpu/run.h.
#pragma once
#include "cuda/device.h"
#include "problem.h"

namespace l0sign::cuda {

// Device memory that a call works in: O(nodes) and O(weights), never O(pairs).
template <class A>
int64_t forward_workspace(const CompleteGraph<A>& problem);
template <class A>
int64_t backward_workspace(const CompleteGraph<A>& problem);

// Enqueue the work on `stream`. Nothing is read back, and every pointer is on the device.
template <class A>
cudaError_t forward(const CompleteGraph<A>& problem, void* workspace, cudaStream_t stream);
template <class A>
cudaError_t backward(const CompleteGraph<A>& problem, void* workspace, cudaStream_t stream);

}  // namespace l0sign::cuda
