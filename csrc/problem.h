// The plain structs that every kernel receives: pointers, sizes, options. No torch in here.
// N nodes in all, G graphs, P unordered pairs; A is the type of computation, float or double.
#pragma once
#include <stdint.h>

namespace l0sign {

enum class Aggregation : int64_t { mean = 0, neighbor_mean = 1, sum = 2 };

struct Graphs {
  const int64_t* offsets;  // [G + 1], or null: every graph has graph_size nodes
  int64_t graph_size;
  int64_t count;      // G
  int64_t num_nodes;  // N
};

// A perceptron with one hidden layer: out = W2 relu(W1 x + b1) + b2.
template <class A>
struct Perceptron {
  const A* hidden_weight;  // [hidden, in]
  const A* hidden_bias;    // [hidden]
  const A* out_weight;     // [out, hidden]
  const A* out_bias;       // [out]
  int64_t in, hidden, out;
};

template <class A>
struct PerceptronGrad {
  A* hidden_weight;
  A* hidden_bias;
  A* out_weight;
  A* out_bias;
};

struct HardConcrete {
  double temperature, gamma, zeta;
  const int64_t* seed;  // one element on the problem's device: the noise's key; null: no noise
};

// All pairs i <= j of every graph. What is null is neither read nor computed:
//   edge_nodes null: no gates, every pair counts (SIGN); nodes null: gates only.
template <class A>
struct CompleteGraph {
  Graphs graphs;
  Aggregation aggregation;
  HardConcrete gate;
  Perceptron<A> message, edge;
  const A* nodes;       // [N, d]
  const A* edge_nodes;  // [N, b]

  // Results.
  A* out;              // [N, d]
  A* l0;               // [G] sum of the open probabilities
  A* l2;               // [G] sum of |z|^2 over the open pairs
  int64_t* num_edges;  // [G] open pairs
  int32_t* degree;     // [N] open neighbours, written (forward) and read (backward) for neighbor_mean
  A* gates;            // [P]
  A* logits;           // [P]
  const int64_t* pair_offsets;  // [G] first pair of each graph, where gates or logits are wanted

  // Gradients that come in, and those that go out.
  const A* grad_out;     // [N, d]
  const A* grad_l0;      // [G]
  const A* grad_l2;      // [G]
  const A* grad_gates;   // [P]
  const A* grad_logits;  // [P]
  A* grad_nodes;         // [N, d]
  A* grad_edge_nodes;    // [N, b]
  PerceptronGrad<A> grad_message, grad_edge;

  int64_t num_pairs;  // P, where gates or logits are wanted on CUDA; pair_offsets are made there
  bool tf32;          // CUDA may round factors to tf32
};

// The pairs of a given list: the message of edge e goes from source[e] to target[e], times weight[e].
template <class A>
struct EdgeList {
  Graphs graphs;
  Aggregation aggregation;
  Perceptron<A> message;
  const A* nodes;         // [N, d]
  const int64_t* source;  // [E]
  const int64_t* target;  // [E]
  const A* weight;        // [E], or null: all ones
  int64_t num_edges;      // E

  A* out;             // [N, d]
  const A* grad_out;  // [N, d]
  A* grad_nodes;      // [N, d]
  A* grad_weight;     // [E]
  PerceptronGrad<A> grad_message;
};

}  // namespace l0sign
