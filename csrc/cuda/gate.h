// The hard concrete gate of one pair, and the graph of one row: device
// functions that every kernel shares.
#pragma once
#include <cmath>

#include "core/pair.h"
#include "core/philox.h"
#include "cuda/device.h"
#include "problem.h"

namespace l0sign::cuda {

// A gate, the probability that it is open, and their derivatives by the logit.
template <class A>
struct Gate {
  A value, slope, open, open_slope;
};

// Constants of HardConcrete in the type of computation; made on the host.
template <class A>
struct GateFunction {
  A span, low, steepness, shift;
  const int64_t* seed;

  GateFunction() = default;
  explicit GateFunction(const HardConcrete& gate)
      : span(static_cast<A>(gate.zeta - gate.gamma)),
        low(static_cast<A>(gate.gamma)),
        steepness(static_cast<A>(gate.seed ? 1 / gate.temperature : 1)),
        shift(static_cast<A>(gate.temperature * std::log(-gate.gamma / gate.zeta))),
        seed(gate.seed) {}

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)
  // In float32 by the GPU's own functions. Their logarithm errs by at most 2^-21.4 near 1, absolutely, which
  // moves a gate by less than 2e-7; their exponential by 2 + |x| units in the last place.
  static __device__ __forceinline__ A sigmoid(A x) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(A) == 4) return __fdividef(1, 1 + __expf(-x));
#endif
    return 1 / (1 + std::exp(-x));
  }
  static __device__ __forceinline__ A log_odds(A u) {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(A) == 4) return __logf(u) - __logf(1 - u);
#endif
    return std::log(u) - std::log(1 - u);
  }

  // pair: the canonical index in the graph.
  __device__ __forceinline__ Gate<A> operator()(A logit, int64_t graph, int64_t pair) const {
    return at(logit, seed ? A(gate_uniform(*seed, graph, pair)) : A(0.5));
  }

  // u: the pair's noise, where there is any.
  __device__ __forceinline__ Gate<A> at(A logit, A u) const {
    const A x = seed ? (log_odds(u) + logit) * steepness : logit;
    const A s = sigmoid(x), open = sigmoid(logit - shift);
    const A stretched = s * span + low;
    Gate<A> gate;
    gate.value = stretched > 1 ? A(1) : stretched < 0 ? A(0) : stretched;  // a NaN stays one
    gate.slope = stretched > 0 && stretched < 1 ? span * steepness * s * (1 - s) : A(0);
    gate.open = open;
    gate.open_slope = open * (1 - open);
    return gate;
  }
#endif
};

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

struct GraphOfRow {
  int64_t graph, begin, end;  // the rows [begin, end)
};

// The last of `count` ascending starts that is not behind `at`; the first where
// all are. Of equal ones (an empty graph begins where the next one does) the
// last.
__device__ __forceinline__ int64_t last_up_to(const int64_t* starts, int64_t count, int64_t at) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (starts[middle] <= at) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Both stay in bounds whatever the offsets hold: they are on the device, and nobody has read them.
__device__ __forceinline__ GraphOfRow graph_at(const Graphs& graphs, int64_t graph) {
  int64_t begin = graph * graphs.graph_size, end = begin + graphs.graph_size;
  if (graphs.offsets) begin = graphs.offsets[graph], end = graphs.offsets[graph + 1];
  begin = begin < 0 ? 0 : begin > graphs.num_nodes ? graphs.num_nodes : begin;
  return {graph, begin, end < begin ? begin : end > graphs.num_nodes ? graphs.num_nodes : end};
}

__device__ __forceinline__ GraphOfRow graph_of_row(const Graphs& graphs, int64_t row) {
  if (!graphs.offsets) {
    const int64_t graph = row / graphs.graph_size;
    return {graph, graph * graphs.graph_size, (graph + 1) * graphs.graph_size};
  }
  const int64_t low = last_up_to(graphs.offsets, graphs.count, row);
  const int64_t begin = graphs.offsets[low], end = graphs.offsets[low + 1];
  return {low, begin < 0 || begin > row ? row : begin, end <= row || end > graphs.num_nodes ? row + 1 : end};
}

// Whether there is such a pair of the batch; offsets that are none may give any number.
__device__ __forceinline__ bool is_pair(int64_t pair, int64_t num_pairs) {
  return static_cast<uint64_t>(pair) < static_cast<uint64_t>(num_pairs);
}

// Canonical index of an unordered pair of nodes of a graph of n.
__device__ __forceinline__ int64_t unordered_pair(int64_t i, int64_t j, int64_t n) {
  return i < j ? pair_index(i, j, n) : pair_index(j, i, n);
}

// What the sum over a node's partners is multiplied by: n nodes in its graph,
// `degree` open partners.
template <class A>
__device__ __forceinline__ A aggregation_scale(Aggregation aggregation, int64_t n, int64_t degree) {
  const int64_t divisor = aggregation == Aggregation::sum ? 1 : aggregation == Aggregation::mean ? n : degree;
  return divisor > 0 ? A(1) / static_cast<A>(divisor) : A(0);
}

// As torch.relu: a NaN stays one.
template <class A>
__device__ __forceinline__ A relu(A x) {
  return x < 0 ? A(0) : x;
}

#endif

}  // namespace l0sign::cuda
