// Runs a problem on the GPU of a tensor, on torch's current stream there. The counterpart of cpu/run.h: the
// operators in ops.cpp are the same for both.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "problem.h"

namespace l0sign::cuda {

// `like`: any tensor of the problem; workspaces are allocated beside it.
template <class A>
void forward(const CompleteGraph<A>& problem, const torch::stable::Tensor& like);
template <class A>
void backward(const CompleteGraph<A>& problem, const torch::stable::Tensor& like);

// edge_index: [2, E], sorted here by either end.
template <class A>
void forward(const EdgeList<A>& problem, const torch::stable::Tensor& edge_index);
template <class A>
void backward(const EdgeList<A>& problem, const torch::stable::Tensor& edge_index);

// U of all pairs, in canonical order. seed: one element, on the device.
void gate_noise(const Graphs& graphs, const int64_t* seed, int64_t num_pairs, float* noise,
                const torch::stable::Tensor& like);

// Whether float32 products may be rounded to tf32. Asked anew for each launch; without a source they may not.
void set_tf32_source(bool (*allowed)());

// Names of the operators that have a CUDA kernel in this build; defined beside their registration.
std::vector<std::string> operators();

}  // namespace l0sign::cuda
