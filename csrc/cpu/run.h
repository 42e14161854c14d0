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

// Throw std::runtime_error where an edge leaves its graph.
template <class A>
void forward(const EdgeList<A>& problem);
template <class A>
void backward(const EdgeList<A>& problem);

// U of all pairs, in canonical order; first_pair [G] is each graph's first pair.
void gate_noise(const Graphs& graphs, int64_t seed, const int64_t* first_pair, float* noise);

}  // namespace cpu
}  // namespace l0sign
