// What the driver hands to the kernels of one instruction set. Plain data: no C++ library in the kernel
// files.
#pragma once
#include <stdint.h>

#include "../core/macros.h"
#include "../problem.h"

namespace l0sign {
namespace cpu {

// Inner sizes are padded with zeros to a multiple of this.
constexpr int kPadding = 4;
L0SIGN_HD int64_t padded(int64_t n) { return (n + kPadding - 1) / kPadding * kPadding; }

// A unit of work on W lanes. Lanes over graphs: each lane is one graph, a vector holds the same node of W
// graphs. Lanes over nodes: one graph, a vector holds W consecutive nodes of it.
struct Block {
  const int64_t* graphs;  // the graph of each lane (lanes over graphs), or the one graph
  int64_t lanes;          // graphs in this block
  int64_t nodes;          // nodes of the largest of them
  bool lanes_over_nodes;
  void* kept;  // where the forward leaves what the backward needs, aligned for vectors, or null
};

// The edges order[0..count) of a list: those of the graphs that own the nodes [node_begin, node_end).
template <class A>
struct EdgeBlock {
  const int64_t* order;
  int64_t count;
  int64_t node_begin, node_end;
  const A* scale;  // [N] what the aggregation multiplies each node's sum by
};

// A perceptron's weights in the tiles that multiply() reads (packing.h); every size padded with zeros.
template <class A>
struct PackedPerceptron {
  const A* hidden;             // W1, rows H, columns in
  const A* hidden_bias;        // b1
  const A* out;                // W2, rows out, columns H
  const A* out_bias;           // b2
  const A* out_transposed;     // W2^T, rows H, columns out
  const A* hidden_transposed;  // W1^T, rows in, columns H; of a network of one output (W2 o W1)^T
  const A* subsets;            // of the latter, where kernels look up: see multiply_subsets
};

template <class A>
struct PackedWeights {
  PackedPerceptron<A> message, edge;
};

// The kernels of one instruction set for one type. `scratch` is private to the thread, 64-byte aligned, of
// the size that the matching *_scratch function tells; `gradients` are the sums of this call, message then
// edge, laid out as GradientLayout tells; of `risk` the message network is the folded one.
template <class A>
struct Kernels {
  int64_t lanes;
  int64_t rows;  // rows of a tile of PackedPerceptron
  bool looks_up;
  int64_t (*scratch)(const CompleteGraph<A>&, int64_t slots, bool backward);
  int64_t (*kept)(const CompleteGraph<A>&, const Block&);  // bytes at Block::kept; 0: nothing is kept
  void (*forward)(const CompleteGraph<A>&, const PackedWeights<A>&, const Block*, int64_t count,
                  void* scratch);
  void (*backward)(const CompleteGraph<A>&, const PackedWeights<A>&, const Block*, int64_t count,
                   void* scratch, A* gradients);
  int64_t (*risk_scratch)(const CompleteGraph<A>&, int64_t slots);
  void (*risk)(const CompleteGraph<A>&, const Risk<A>&, const PackedWeights<A>&, const Block*, int64_t count,
               void* scratch, A* gradients);
  int64_t (*edges_scratch)(const EdgeList<A>&, int64_t nodes, bool backward);
  void (*edges_forward)(const EdgeList<A>&, const PackedWeights<A>&, const EdgeBlock<A>&, void* scratch);
  void (*edges_backward)(const EdgeList<A>&, const PackedWeights<A>&, const EdgeBlock<A>&, void* scratch,
                         A* gradients);
};

// Where the gradients of one perceptron lie in a flat array.
struct GradientLayout {
  int64_t hidden_weight, hidden_bias, out_weight, out_bias, end;
};

L0SIGN_HD GradientLayout gradient_layout(int64_t begin, int64_t in, int64_t hidden, int64_t out) {
  const int64_t hidden_bias = begin + hidden * in, out_weight = hidden_bias + hidden;
  const int64_t out_bias = out_weight + out * hidden;
  return {begin, hidden_bias, out_weight, out_bias, out_bias + out};
}

}  // namespace cpu
}  // namespace l0sign
