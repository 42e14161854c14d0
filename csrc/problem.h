// The plain structs that every kernel receives: pointers, sizes, options. No torch in here.
// N nodes in all, G graphs, P unordered pairs; A is the type of computation, float or double.
#pragma once
#include <stdint.h>

namespace l0sign {

enum class Aggregation : int64_t { mean = 0, neighbor_mean = 1, sum = 2 };

enum class HalfType { none, bfloat16, float16 };

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
//   edge_nodes null: no gates, every pair counts (SIGN); nodes null: gates only;
//   ids null: row k of nodes and edge_nodes is node k; else they are tables, and its row is ids[k];
//   values null: all ones.
template <class A>
struct CompleteGraph {
  Graphs graphs;
  Aggregation aggregation;
  HardConcrete gate;
  Perceptron<A> message, edge;
  const A* nodes;       // [N, d], or [J, d] with ids
  const A* edge_nodes;  // [N, b], or [J, b] with ids
  const int64_t* ids;   // [N] in 0..J-1
  int64_t num_rows;     // J; at least 1 where there are nodes
  const A* values;      // [N], x: u_k = x_k nodes[..]
  bool pools;           // the result is `pooled`, not `out`

  // Results.
  A* out;              // [N, d]
  A* pooled;           // [G, d] the sum over nodes of x_i v'_i / n
  A* l0;               // [G] sum of the open probabilities
  A* l2;               // [G] sum of |z|^2 over the open pairs
  int64_t* num_edges;  // [G] open pairs
  // [N] open neighbours, for neighbor_mean: written by the forward, read by the backward. The CPU's kernels
  // write it with out or without nodes, and read it with pooled.
  int32_t* degree;
  A* gates;                     // [P]
  A* logits;                    // [P]
  const int64_t* pair_offsets;  // [G] first pair of each graph, where gates or logits are wanted

  // Gradients that come in, and those that go out.
  const A* grad_out;     // [N, d]
  const A* grad_pooled;  // [G, d]
  const A* grad_l0;      // [G]
  const A* grad_l2;      // [G]
  const A* grad_gates;   // [P]
  const A* grad_logits;  // [P]
  A* grad_nodes;         // [N, d] of node k, with ids too
  A* grad_edge_nodes;    // [N, b]
  PerceptronGrad<A> grad_message, grad_edge;

  // CPU: memory of so many bytes for what the forward leaves for the backward, 64-byte aligned. Null: nothing
  // is left, and the backward computes it again.
  void* kept;
  int64_t kept_bytes;

  int64_t num_pairs;  // P, where gates or logits are wanted on CUDA; pair_offsets are made there
  bool tf32;          // CUDA may round factors to tf32
  HalfType half;      // the type that its tensors had: CUDA may round factors to it
};

enum class Loss : int64_t { bce = 0, mse = 1 };

// The empirical risk of a linear head of one output on the pooled sums of a complete graph (Eq. 6 without the
// L2 penalty): y_g = head . pooled_g + bias, risk = mean over graphs of loss(y_g, target_g) + l0_weight_g
// l0_g.
template <class A>
struct Risk {
  Loss loss;
  const A* head_weight;  // [d]
  const A* head_bias;    // [1], or null: 0
  const A* target;       // [G]
  const A* l0_weight;    // [G]

  A* risk;    // [1]; 0 without graphs
  A* logits;  // [G] y
  // Gradients of the risk; those of nodes and networks go where the complete graph says.
  A* grad_logits;       // [G]
  A* grad_head_weight;  // [d]
  A* grad_head_bias;    // [1], or null
  A* losses = nullptr;  // [G]; the CPU's kernels leave each graph's loss here
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
  bool tf32;              // CUDA may round factors to tf32
  HalfType half;          // the type that its tensors had: CUDA may round factors to it

  A* out;             // [N, d]
  const A* grad_out;  // [N, d]
  A* grad_nodes;      // [N, d]
  A* grad_weight;     // [E]
  PerceptronGrad<A> grad_message;
};

}  // namespace l0sign
