// What happens to weights around the kernels of the general path: transposed copies before, sums of their
// gradients after.
#pragma once
#include "cuda/device.h"
#include "cuda/workspace.h"
#include "problem.h"

namespace l0sign::cuda {

// A perceptron as warps read it: neighbouring lanes take neighbouring units.
template <class A>
struct Network {
  const A* hidden;             // W1 [hidden, in]
  const A* hidden_transposed;  // W1^T [in, hidden]
  const A* hidden_bias;        // b1
  const A* out;                // W2 [out, hidden]
  const A* out_transposed;     // W2^T [hidden, out]
  const A* out_bias;           // b2
  int in_size, hidden_size, out_size;
};

// Where the gradients of a perceptron lie in a warp's partial sums.
struct GradientLayout {
  int64_t hidden;       // [in, hidden]: of W1^T. Of the edge network: of the masks, see finish_gradients
  int64_t hidden_bias;  // [hidden]
  int64_t out;          // [out, hidden]; not of the edge network
  int64_t out_bias;     // [out]
  int64_t end;
};

template <class A>
GradientLayout gradient_layout(int64_t begin, const Perceptron<A>& m) {
  const int64_t hidden_bias = begin + m.hidden * m.in, out = hidden_bias + m.hidden;
  const int64_t out_bias = out + m.out * m.hidden;
  return {begin, hidden_bias, out, out_bias, out_bias + m.out};
}

// Reserves the transposed copies; write_transposed fills them.
template <class A>
Network<A> network(const Perceptron<A>& m, Arena& arena);
template <class A>
cudaError_t write_transposed(const Network<A>& network, cudaStream_t stream);

// How many blocks share work in `units`, each with so many bytes of memory of its own: a function of the
// problem alone, so that sums over blocks are too.
int64_t blocks_for(int64_t units, int64_t bytes_per_block);

// Adds up [count, layout.end] partial sums into [layout.end], in a fixed order.
template <class A>
cudaError_t sum_partials(const A* partials, int64_t count, int64_t size, A* sums, cudaStream_t stream);

// Writes gradients from the sums over *ordered* pairs: every unordered pair came twice there, a self-pair
// with twice its gradient, and so hidden layers take half.
template <class A>
cudaError_t finish_message_gradients(const A* sums, const GradientLayout& layout, const Perceptron<A>& m,
                                     const PerceptronGrad<A>& grad, cudaStream_t stream);
// With S[k][h] = sum of [unit h is on] da (e_i o e_j)_k, and s[h] the same without the product:
//   dW1[h][k] = W2[h] S[k][h],  db1[h] = W2[h] s[h],  dW2[h] = sum_k W1[h][k] S[k][h] + b1[h] s[h].
template <class A>
cudaError_t finish_edge_gradients(const A* sums, const GradientLayout& layout, const Perceptron<A>& m,
                                  const PerceptronGrad<A>& grad, cudaStream_t stream);

// grad_hidden [N, H] = W2^T D_i and grad_gate [N] = b2 . D_i of every row, with D_i = scale_i grad_out_i
// (scale null: ones).
template <class A>
cudaError_t hidden_gradients(const Network<A>& message, const A* grad_out, const A* scale, int64_t num_nodes,
                             A* grad_hidden, A* grad_gate, cudaStream_t stream);

}  // namespace l0sign::cuda
