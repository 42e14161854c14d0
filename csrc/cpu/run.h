// Runs a problem on the CPU: packs weights, plans blocks, spreads them over torch's threads and adds up the
// weight gradients in a fixed order, so that no result depends on the number of threads.
#pragma once
#include "../problem.h"

namespace l0sign {
namespace cpu {

template <class A>
void forward(const CompleteGraph<A>& problem);
template <class A>
void backward(const CompleteGraph<A>& problem);

// The risk and all its gradients, in one pass over the graphs. `problem` has what a pooled backward has, but
// for grad_pooled and grad_l0; its l0 and num_edges are written as by the forward.
template <class A>
void risk(const CompleteGraph<A>& problem, const Risk<A>& head);

// Throw std::runtime_error where an edge leaves its graph.
template <class A>
void forward(const EdgeList<A>& problem);
template <class A>
void backward(const EdgeList<A>& problem);

// U of all pairs, in canonical order; first_pair [G] is each graph's first pair.
void gate_noise(const Graphs& graphs, int64_t seed, const int64_t* first_pair, float* noise);

}  // namespace cpu
}  // namespace l0sign
