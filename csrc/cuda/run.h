// Runs a problem on the GPU of a tensor, on torch's current stream there. The counterpart of cpu/run.h: the
// operators in ops.cpp are the same for both.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "cpu/rows.h"
#include "problem.h"

namespace l0sign::cuda {

// `like`: any tensor of the problem; workspaces are allocated beside it.
template <class A>
void forward(const CompleteGraph<A>& problem, const torch::stable::Tensor& like);
template <class A>
void backward(const CompleteGraph<A>& problem, const torch::stable::Tensor& like);

// The risk and all its gradients; `problem` as cpu::risk wants it.
template <class A>
void risk(const CompleteGraph<A>& problem, const Risk<A>& head, const torch::stable::Tensor& like);

// edge_index: [2, E], sorted here by either end.
template <class A>
void forward(const EdgeList<A>& problem, const torch::stable::Tensor& edge_index);
template <class A>
void backward(const EdgeList<A>& problem, const torch::stable::Tensor& edge_index);

// The positions of a batch by their ids; cuda/rows.h says what place and order are.
struct RowGroups {
  torch::stable::Tensor place, order;  // [N]
  torch::stable::Tensor rows;          // unique: the ids, once each, ascending
};

// ids: [N], contiguous. Places are the ids, or (unique) where they stand in `rows`, whose number the host has
// to wait for; then an id outside 0 .. num_rows - 1 is a std::runtime_error.
RowGroups group_rows(const torch::stable::Tensor& ids, int64_t num_rows, bool unique);

// Adds up the gradients [N, width] of each place into that row of `out` [num_rows, width].
template <class A>
void sum_rows(const RowGroups& groups, const A* grads, int64_t width, A* out, int64_t num_rows);

// param: the table [J, width]. Rule: cpu::Adagrad or cpu::Adam of the same tables.
template <class A, class Rule>
void update_rows(const cpu::RowGradient<A>& gradient, const Rule& rule, const torch::stable::Tensor& param);

// U of all pairs, in canonical order. seed: one element, on the device.
void gate_noise(const Graphs& graphs, const int64_t* seed, int64_t num_pairs, float* noise,
                const torch::stable::Tensor& like);

// Whether float32 products may be rounded to tf32. Asked anew for each launch; without a source they may not.
void set_tf32_source(bool (*allowed)());

// Names of the operators that have a CUDA kernel in this build: their registrations add them.
std::vector<std::string>& operators();

}  // namespace l0sign::cuda
