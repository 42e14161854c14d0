// The general path, one warp a row: a warp owns node i and walks over its partners j. What it adds up belongs
// to i alone, so that nothing is scattered and no sum depends on who comes first. Every unordered pair is met
// twice, from either end, and
//   M_i = sum_j m_ij u_j^T,  m_ij = [unit on] dL/d(hidden)
// gives both gradients of the first layer without a product per pair: du_i = sum_h W1_h o M_ih, and half of
// u_i o M_i is node i's share of dW1. A self-pair counts twice in M_i, as it should in both.
#pragma once
#include "cuda/node_rows.h"
#include "cuda/weights.h"

namespace l0sign::cuda {

constexpr int kRowThreads = 128;
constexpr int kRowWarps = kRowThreads / kWarp;
constexpr int kChunk = 8;  // pairs that go through a layer together

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// Up to kChunk partners; the same in all lanes.
template <class A>
struct Chunk {
  int count;
  int lane[kChunk];         // who holds the pair
  int64_t partner[kChunk];  // row
  A factor[kChunk];         // gate, edge weight or logit gradient
};

// Takes the next partners from the lanes whose bits are set, and clears those.
template <class A>
__device__ __forceinline__ Chunk<A> take_chunk(unsigned& lanes, int64_t partner, A factor) {
  Chunk<A> chunk;
  chunk.count = 0;
#pragma unroll
  for (int c = 0; c < kChunk; ++c) {
    const int lane = lanes ? __ffs(static_cast<int>(lanes)) - 1 : 0;
    chunk.count += lanes != 0;
    lanes &= lanes - 1;
    chunk.lane[c] = lane;
    chunk.partner[c] = __shfl_sync(kAllLanes, partner, lane);
    chunk.factor[c] = __shfl_sync(kAllLanes, factor, lane);
  }
  return chunk;
}

// The partners' rows. Those of a table are looked up once.
template <class A, class Rows>
class PartnerRows {
 public:
  __device__ __forceinline__ PartnerRows(const Rows& rows, const Chunk<A>& chunk) {
#pragma unroll
    for (int c = 0; c < kChunk; ++c)
      row_[c] = rows.row(chunk.partner[c]), scale_[c] = rows.scale(chunk.partner[c]);
  }
  __device__ __forceinline__ A operator()(int c, int64_t k) const { return scale_[c] * row_[c][k]; }

 private:
  const A* row_[kChunk];
  A scale_[kChunk];
};
template <class A>
class PartnerRows<A, NodeRows<A>> {
 public:
  __device__ __forceinline__ PartnerRows(const NodeRows<A>& rows, const Chunk<A>& chunk)
      : rows_(rows), chunk_(chunk) {}
  __device__ __forceinline__ A operator()(int c, int64_t k) const {
    return rows_.rows[chunk_.partner[c] * rows_.width + k];
  }

 private:
  const NodeRows<A>& rows_;
  const Chunk<A>& chunk_;
};

// Unit h of the hidden layer, before the relu, for each pair (row, partner).
template <class A, class Rows>
__device__ __forceinline__ void hidden_unit(const Network<A>& n, int h, const Rows& rows, int64_t row,
                                            const Chunk<A>& chunk, A (&y)[kChunk]) {
  const A *own = rows.row(row), own_scale = rows.scale(row);
  const PartnerRows<A, Rows> partners(rows, chunk);
#pragma unroll
  for (int c = 0; c < kChunk; ++c) y[c] = n.hidden_bias[h];
  for (int k = 0; k < n.in_size; ++k) {
    const A weight = n.hidden_transposed[static_cast<int64_t>(k) * n.hidden_size + h], x = own_scale * own[k];
#pragma unroll
    for (int c = 0; c < kChunk; ++c) y[c] = std::fma(weight, x * partners(c, k), y[c]);
  }
}

// The logit of one pair of nodes, by one lane. Unit by unit the same operations as hidden_unit, and so the
// same bits: the rows of edges are not scaled, a scale says no more than whether there is a row.
template <class A, class Rows>
__device__ __forceinline__ A edge_logit(const Network<A>& n, const Rows& rows, int64_t i, int64_t j) {
  constexpr int kUnits = 4;
  const A *left = rows.row(i), *right = rows.row(j);
  A logit = n.out_bias[0];
  for (int h = 0; h < n.hidden_size; h += kUnits) {
    A y[kUnits];
#pragma unroll
    for (int m = 0; m < kUnits; ++m) y[m] = h + m < n.hidden_size ? n.hidden_bias[h + m] : A(0);
    for (int k = 0; k < n.in_size; ++k) {
      const A product = left[k] * right[k];
#pragma unroll
      for (int m = 0; m < kUnits; ++m)
        if (h + m < n.hidden_size)
          y[m] = std::fma(n.hidden[static_cast<int64_t>(h + m) * n.in_size + k], product, y[m]);
    }
#pragma unroll
    for (int m = 0; m < kUnits; ++m)
      if (h + m < n.hidden_size) logit = std::fma(n.out[h + m], relu(y[m]), logit);
  }
  return rows.scale(i) * rows.scale(j) * logit;
}

// This lane's part of |z|^2 for one pair, from its hidden units relu(...) [H].
template <class A>
__device__ __forceinline__ A squared_norm(const Network<A>& n, const A* hidden, int lane) {
  A sum = 0;
  for (int64_t k = lane; k < n.out_size; k += kWarp) {
    A z = n.out_bias[k];
    for (int64_t h = 0; h < n.hidden_size; ++h)
      z = std::fma(n.out_transposed[h * n.out_size + k], hidden[h], z);
    sum = std::fma(z, z, sum);
  }
  return sum;
}

template <class T>
__device__ __forceinline__ void clear(T* array, int64_t size, int lane) {
  for (int64_t k = lane; k < size; k += kWarp) array[k] = 0;
}

// out_i = scale (W2 S + b2 sum_j g_ij), with S = sum_j g_ij relu_ij.
template <class A>
__device__ __forceinline__ void write_out(const Network<A>& n, const A* hidden_sum, A gate_sum, A scale,
                                          A* out, int lane) {
  __syncwarp();  // the lanes wrote hidden_sum
  for (int k = lane; k < n.out_size; k += kWarp) {
    A sum = n.out_bias[k] * gate_sum;
    for (int h = 0; h < n.hidden_size; ++h)
      sum = std::fma(n.out_transposed[static_cast<int64_t>(h) * n.out_size + k], hidden_sum[h], sum);
    out[k] = scale * sum;
  }
  __syncwarp();  // and will write it again
}

// A warp's memory in the backward of the message network. Unit h belongs to lane h mod 32 everywhere, and so
// does component k of an output.
template <class A>
struct MessageScratch {
  A* hidden_sum;  // [H] S
  A* bias_sum;    // [H] sum_j m_ij
  A* outer;       // [in, H] M_i
  A* hidden;      // [kChunk, H] pre-activations
  A* grad_z;      // [kChunk, d]
  A* gradients;   // partial sums, GradientLayout

  static __host__ __device__ int64_t size(int64_t in, int64_t hidden, int64_t out) {
    return hidden * (2 + in + kChunk) + kChunk * out;
  }
  static __device__ MessageScratch at(A* memory, A* gradients, int64_t in, int64_t hidden) {
    A* const outer = memory + 2 * hidden;
    A* const pre_activations = outer + in * hidden;
    return {memory, memory + hidden, outer, pre_activations, pre_activations + kChunk * hidden, gradients};
  }
};

// Adds a chunk of pairs of `row` to the sums. grad_hidden(c, h): what unit h of pair c receives, but for the
// pair's factor: W2^T D of the ends that the message goes to. l2_factor(c): what d|z_c|^2 receives. Returns
// in `grad_factor` what the factor of each pair receives through the hidden units, in all lanes.
template <class A, class Rows, class GradHidden, class L2Factor>
__device__ __forceinline__ void message_backward(const Network<A>& n, const GradientLayout& at,
                                                 const MessageScratch<A>& s, const Rows& nodes, int64_t row,
                                                 const Chunk<A>& chunk, GradHidden grad_hidden,
                                                 bool add_to_sum, bool l2, L2Factor l2_factor, int lane,
                                                 A (&grad_factor)[kChunk]) {
  const int64_t H = n.hidden_size, d = n.out_size;
  for (int h = lane; h < H; h += kWarp) {
    A y[kChunk];
    hidden_unit(n, h, nodes, row, chunk, y);
#pragma unroll
    for (int c = 0; c < kChunk; ++c) s.hidden[c * H + h] = y[c];
  }
  if (l2) {
    __syncwarp();
    for (int k = lane; k < d; k += kWarp)
      for (int c = 0; c < chunk.count; ++c) {
        A z = n.out_bias[k];
        for (int64_t h = 0; h < H; ++h)
          z = std::fma(n.out_transposed[h * d + k], relu(s.hidden[c * H + h]), z);
        const A grad = l2_factor(c) * z;
        s.grad_z[c * d + k] = grad;
        s.gradients[at.out_bias + k] += A(0.5) * grad;
      }
    __syncwarp();
  }
#pragma unroll
  for (int c = 0; c < kChunk; ++c) grad_factor[c] = 0;
  for (int h = lane; h < H; h += kWarp) {
    A grads[kChunk], bias = 0, sum = 0;
#pragma unroll
    for (int c = 0; c < kChunk; ++c) {
      grads[c] = 0;
      if (c >= chunk.count) continue;
      const A y = s.hidden[c * H + h], on = relu(y), received = grad_hidden(c, h);
      grad_factor[c] += received * on;
      A grad = chunk.factor[c] * received;
      if (l2)
        for (int64_t k = 0; k < d; ++k) {
          grad = std::fma(n.out[k * H + h], s.grad_z[c * d + k], grad);
          s.gradients[at.out + k * H + h] += A(0.5) * s.grad_z[c * d + k] * on;
        }
      grads[c] = y > 0 ? grad : A(0);
      bias += grads[c];
      sum = std::fma(chunk.factor[c], on, sum);
    }
    s.bias_sum[h] += bias;
    if (add_to_sum) s.hidden_sum[h] += sum;
    const PartnerRows<A, Rows> partners(nodes, chunk);
    for (int k = 0; k < n.in_size; ++k) {
      A outer = 0;
#pragma unroll
      for (int c = 0; c < kChunk; ++c)
        if (c < chunk.count) outer = std::fma(grads[c], partners(c, k), outer);
      s.outer[k * H + h] += outer;
    }
  }
#pragma unroll
  for (int c = 0; c < kChunk; ++c) grad_factor[c] = warp_sum(grad_factor[c]);
}

// From M_i, i the node of `row`: writes the gradient of its row, x_i sum_h w_h W1_h o M_ih (w null: ones; x_i
// its scale), and adds u_i o M_i to `sums`. Clears M_i.
template <class A, class Rows>
__device__ __forceinline__ void finish_outer(const Network<A>& n, const A* unit_weight, A* outer,
                                             const Rows& rows, int64_t row, A* sums, A* grad, int lane) {
  const int64_t H = n.hidden_size;
  const A *own = rows.row(row), scale = rows.scale(row);
  for (int64_t k = 0; k < n.in_size; ++k) {
    A sum = 0;
    for (int64_t h = lane; h < H; h += kWarp) {
      const A m = outer[k * H + h];
      outer[k * H + h] = 0;
      sum = std::fma((unit_weight ? unit_weight[h] : A(1)) * n.hidden_transposed[k * H + h], m, sum);
      sums[k * H + h] = std::fma(scale * own[k], m, sums[k * H + h]);
    }
    sum = warp_sum(sum);
    if (lane == 0) grad[k] = scale * sum;
  }
}

// Moves [size] from one array to the sums, and clears it.
template <class A>
__device__ __forceinline__ void move_to(A* sums, A* from, int64_t size, int lane) {
  for (int64_t k = lane; k < size; k += kWarp) {
    sums[k] += from[k];
    from[k] = 0;
  }
}

// What row i adds to the gradients of W2 and b2: D_i S_i^T and D_i sum_j g_ij. Clears S_i.
template <class A>
__device__ __forceinline__ void finish_out_gradients(const Network<A>& n, const GradientLayout& at,
                                                     const MessageScratch<A>& s, const A* grad_out, A scale,
                                                     A gate_sum, int lane) {
  const int64_t H = n.hidden_size, d = n.out_size;
  for (int64_t h = lane; h < H; h += kWarp) {
    const A sum = s.hidden_sum[h];
    s.hidden_sum[h] = 0;
    for (int64_t k = 0; k < d; ++k)
      s.gradients[at.out + k * H + h] = std::fma(scale * grad_out[k], sum, s.gradients[at.out + k * H + h]);
  }
  for (int64_t k = lane; k < d; k += kWarp)
    s.gradients[at.out_bias + k] = std::fma(scale * grad_out[k], gate_sum, s.gradients[at.out_bias + k]);
}

#endif

}  // namespace l0sign::cuda
