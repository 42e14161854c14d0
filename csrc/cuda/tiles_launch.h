// The path over the matrix units, for the problems that it takes.
#pragma once
#include "cuda/edge_list.h"

namespace l0sign::cuda {

// Messages between all pairs, gated or not, or the gates alone, of a size of tile_config.h, in float32 or
// rounded to the half types (bags: in float32), where a block may have the shared memory that it takes.
bool tiles_take(const CompleteGraph<float>& problem, bool backward);

int64_t tiles_workspace(const CompleteGraph<float>& problem, bool backward);
cudaError_t tiles_forward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream);
cudaError_t tiles_backward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream);

// The same for the pairs of a list, of up to 2^31 - 1 nodes.
bool tiles_take(const EdgeList<float>& problem, bool backward);

int64_t tiles_workspace(const EdgeList<float>& problem, bool backward);
cudaError_t tiles_forward(const EdgeList<float>& problem, const EdgeOrder& by_target, void* workspace,
                          cudaStream_t stream);
cudaError_t tiles_backward(const EdgeList<float>& problem, const EdgeOrder& by_target,
                           const EdgeOrder& by_source, void* workspace, cudaStream_t stream);

}  // namespace l0sign::cuda
