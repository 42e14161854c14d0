#include "cuda/weights.h"

namespace l0sign::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kSlices = kThreads / kWarp;  // of the partial sums of one element

template <class A>
__global__ void __launch_bounds__(kThreads) transpose(const A* from, int rows, int columns, A* to) {
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       at < static_cast<int64_t>(rows) * columns; at += static_cast<int64_t>(gridDim.x) * kThreads)
    to[at % columns * rows + at / columns] = from[at];
}

// A block takes a warp's width of elements; each of its warps adds up every kSlices-th partial sum.
template <class A>
__global__ void __launch_bounds__(kThreads)
    sum_rows(const A* partials, int64_t count, int64_t size, A* sums) {
  A* slices = dynamic_shared<A>();  // [kSlices, kWarp]
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp;
  const int64_t element = static_cast<int64_t>(blockIdx.x) * kWarp + lane;
  A sum = 0;
  if (element < size)
    for (int64_t row = slice; row < count; row += kSlices) sum += partials[row * size + element];
  slices[slice * kWarp + lane] = sum;
  __syncthreads();
  if (slice != 0 || element >= size) return;
  for (int other = 1; other < kSlices; ++other) sum += slices[other * kWarp + lane];
  sums[element] = sum;
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    finish_message(const A* sums, GradientLayout at, Perceptron<A> m, PerceptronGrad<A> grad) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t e = first; e < m.hidden * m.in; e += stride)
    grad.hidden_weight[e] = A(0.5) * sums[at.hidden + e % m.in * m.hidden + e / m.in];
  for (int64_t h = first; h < m.hidden; h += stride) grad.hidden_bias[h] = A(0.5) * sums[at.hidden_bias + h];
  for (int64_t e = first; e < m.out * m.hidden; e += stride) grad.out_weight[e] = sums[at.out + e];
  for (int64_t k = first; k < m.out; k += stride) grad.out_bias[k] = sums[at.out_bias + k];
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    finish_edge(const A* sums, GradientLayout at, Perceptron<A> m, PerceptronGrad<A> grad) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  for (int64_t h = first; h < m.hidden; h += static_cast<int64_t>(gridDim.x) * kThreads) {
    const A bias = A(0.5) * sums[at.hidden_bias + h];
    A out = m.hidden_bias[h] * bias;
    for (int64_t k = 0; k < m.in; ++k) {
      const A sum = A(0.5) * sums[at.hidden + k * m.hidden + h];
      grad.hidden_weight[h * m.in + k] = m.out_weight[h] * sum;
      out += m.hidden_weight[h * m.in + k] * sum;
    }
    grad.hidden_bias[h] = m.out_weight[h] * bias;
    grad.out_weight[h] = out;
  }
  if (first == 0) grad.out_bias[0] = A(0.5) * sums[at.out_bias];
}

template <class A>
__global__ void __launch_bounds__(kThreads)
    hidden_gradients_kernel(Network<A> message, const A* grad_out, const A* scale, int64_t num_nodes,
                            A* grad_hidden, A* grad_gate) {
  const int lane = threadIdx.x % kWarp, H = message.hidden_size, d = message.out_size;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t row = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; row < num_nodes;
       row += warps) {
    const A* grad = grad_out + row * d;
    const A factor = scale ? scale[row] : A(1);
    for (int h = lane; h < H; h += kWarp) {
      A sum = 0;
      for (int k = 0; k < d; ++k)
        sum = std::fma(message.out[static_cast<int64_t>(k) * H + h], factor * grad[k], sum);
      grad_hidden[row * H + h] = sum;
    }
    A dot = 0;
    for (int k = lane; k < d; k += kWarp) dot = std::fma(message.out_bias[k], factor * grad[k], dot);
    dot = warp_sum(dot);
    if (lane == 0) grad_gate[row] = dot;
  }
}

}  // namespace

int64_t blocks_for(int64_t units, int64_t bytes_per_block) {
  constexpr int64_t kMaxBytes = int64_t{64} << 20;
  int64_t blocks = units < kMaxBlocks ? units : kMaxBlocks;
  if (bytes_per_block * blocks > kMaxBytes) blocks = kMaxBytes / bytes_per_block;
  return blocks < 1 ? 1 : blocks;
}

template <class A>
Network<A> network(const Perceptron<A>& m, Arena& arena) {
  Network<A> n = {};
  n.in_size = static_cast<int>(m.in), n.hidden_size = static_cast<int>(m.hidden);
  n.out_size = static_cast<int>(m.out);
  n.hidden = m.hidden_weight, n.hidden_bias = m.hidden_bias, n.out = m.out_weight, n.out_bias = m.out_bias;
  n.hidden_transposed = arena.take<A>(m.hidden * m.in);
  n.out_transposed = arena.take<A>(m.out * m.hidden);
  return n;
}

template <class A>
cudaError_t write_transposed(const Network<A>& n, cudaStream_t stream) {
  const auto write = [&](const A* from, int rows, int columns, const A* to) {
    const int64_t blocks = blocks_for((static_cast<int64_t>(rows) * columns + kThreads - 1) / kThreads, 0);
    return launch(transpose<A>, blocks, kThreads, 0, stream, from, rows, columns, const_cast<A*>(to));
  };
  const cudaError_t error = write(n.hidden, n.hidden_size, n.in_size, n.hidden_transposed);
  if (error != cudaSuccess) return error;
  return write(n.out, n.out_size, n.hidden_size, n.out_transposed);
}

template <class A>
cudaError_t sum_partials(const A* partials, int64_t count, int64_t size, A* sums, cudaStream_t stream) {
  return launch(sum_rows<A>, (size + kWarp - 1) / kWarp, kThreads, kThreads * sizeof(A), stream, partials,
                count, size, sums);
}

template <class A>
cudaError_t finish_message_gradients(const A* sums, const GradientLayout& layout, const Perceptron<A>& m,
                                     const PerceptronGrad<A>& grad, cudaStream_t stream) {
  const int64_t blocks = blocks_for((m.hidden * m.in + m.hidden + m.out + kThreads - 1) / kThreads, 0);
  return launch(finish_message<A>, blocks, kThreads, 0, stream, sums, layout, m, grad);
}

template <class A>
cudaError_t finish_edge_gradients(const A* sums, const GradientLayout& layout, const Perceptron<A>& m,
                                  const PerceptronGrad<A>& grad, cudaStream_t stream) {
  const int64_t blocks = blocks_for((m.hidden + kThreads - 1) / kThreads, 0);
  return launch(finish_edge<A>, blocks, kThreads, 0, stream, sums, layout, m, grad);
}

template <class A>
cudaError_t hidden_gradients(const Network<A>& message, const A* grad_out, const A* scale, int64_t num_nodes,
                             A* grad_hidden, A* grad_gate, cudaStream_t stream) {
  if (num_nodes == 0) return cudaSuccess;
  const int64_t warps = kThreads / kWarp;
  return launch(hidden_gradients_kernel<A>, blocks_for((num_nodes + warps - 1) / warps, 0), kThreads, 0,
                stream, message, grad_out, scale, num_nodes, grad_hidden, grad_gate);
}

#define INSTANTIATE(A)                                                                                 \
  template Network<A> network(const Perceptron<A>&, Arena&);                                           \
  template cudaError_t write_transposed(const Network<A>&, cudaStream_t);                              \
  template cudaError_t sum_partials(const A*, int64_t, int64_t, A*, cudaStream_t);                     \
  template cudaError_t finish_message_gradients(const A*, const GradientLayout&, const Perceptron<A>&, \
                                                const PerceptronGrad<A>&, cudaStream_t);               \
  template cudaError_t finish_edge_gradients(const A*, const GradientLayout&, const Perceptron<A>&,    \
                                             const PerceptronGrad<A>&, cudaStream_t);                  \
  template cudaError_t hidden_gradients(const Network<A>&, const A*, const A*, int64_t, A*, A*, cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
