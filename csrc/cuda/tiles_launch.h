// The path over the matrix units, for the problems that it takes.
#pragma once
#include "cuda/device.h"
#include "problem.h"

namespace l0sign::cuda {

// Messages between all pairs, gated or not, of a size of tile_config.h, in float32 or rounded to the half
// types (bags: in float32), where a block may have the shared memory that it takes. A backward with a
// gradient for the messages' norms goes the general way.
bool tiles_take(const CompleteGraph<float>& problem, bool backward);

int64_t tiles_workspace(const CompleteGraph<float>& problem, bool backward);
cudaError_t tiles_forward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream);
cudaError_t tiles_backward(const CompleteGraph<float>& problem, void* workspace, cudaStream_t stream);

}  // namespace l0sign::cuda
