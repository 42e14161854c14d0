// The hard concrete gate of one pair, and the graph of one row: device
// functions that every kernel shares.
#pragma once
#include <cmath>

#include "core/pair.h"
#include "core/philox.h"
#include "cuda/mma.h"
#include "problem.h"

namespace l0sign::cuda {

// A gate, the probability that it is open, and their derivatives by the logit.
template <class A>
struct Gate {
  A value, slope, open, open_slope;
};

// Constants of HardConcrete in the type of computation; made on the host. Exponents are of 2.
template <class A>
struct GateFunction {
  A span, low, steepness;
  A scale, open_scale, open_shift;  // of a logit to the exponents of a gate and of its probability to be open
  const int64_t* seed;

  GateFunction() = default;
  explicit GateFunction(const HardConcrete& gate) : seed(gate.seed) {
    constexpr double kLog2e = 1.4426950408889634;
    const double steep = gate.seed ? 1 / gate.temperature : 1;
    span = static_cast<A>(gate.zeta - gate.gamma);
    low = static_cast<A>(gate.gamma);
    steepness = static_cast<A>(steep);
    scale = static_cast<A>(steep * kLog2e);
    open_scale = static_cast<A>(kLog2e);
    open_shift = static_cast<A>(gate.temperature * std::log2(-gate.gamma / gate.zeta));
  }

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)
  // pair: the canonical index in the graph.
  __device__ __forceinline__ Gate<A> operator()(A logit, int64_t graph, int64_t pair) const {
    return at(logit, seed ? A(gate_uniform(*seed, graph, pair)) : A(0.5));
  }

  // u: the pair's noise, where there is any.
  __device__ __forceinline__ Gate<A> at(A logit, A u) const {
    A exponent = logit * scale;
    if (seed) exponent = std::fma(log2_of(u) - log2_of(1 - u), steepness, exponent);
    const A s = sigmoid(exponent), open = sigmoid(std::fma(logit, open_scale, -open_shift));
    const A stretched = std::fma(s, span, low);
    Gate<A> gate;
    gate.value = clamped(stretched);
    gate.slope = stretched > 0 && stretched < 1 ? span * steepness * s * (1 - s) : A(0);
    gate.open = open;
    gate.open_slope = open * (1 - open);
    return gate;
  }

 private:
  // 1 / (1 + 2^-x)
  static __device__ __forceinline__ A sigmoid(A x) {
    if constexpr (sizeof(A) == 4) {
      return fast_reciprocal(1 + fast_exp2(-x));
    } else {
      return 1 / (1 + std::exp2(-x));
    }
  }
  static __device__ __forceinline__ A log2_of(A u) {
    if constexpr (sizeof(A) == 4) {
      return fast_log2(u);
    } else {
      return std::log2(u);
    }
  }
  static __device__ __forceinline__ A clamped(A x) {
    if constexpr (sizeof(A) == 4) {
      return between_0_and_1(x);
    } else {
      return x > 1 ? A(1) : x < 0 ? A(0) : x;  // a NaN stays one
    }
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

// guess: a graph that is likely to have the row, or else the next one; -1 for none.
__device__ __forceinline__ GraphOfRow graph_of_row(const Graphs& graphs, int64_t row, int64_t guess = -1) {
  int64_t graph = guess;
  if (!graphs.offsets) {
    const int64_t size = graphs.graph_size, behind = row - guess * size;
    if (guess >= 0 && behind >= 0 && behind < 2 * size) {
      graph += behind >= size;
    } else {  // a division of 64 bits takes five times as long
      graph = static_cast<uint64_t>(row | size) >> 32
                  ? row / size
                  : static_cast<uint32_t>(row) / static_cast<uint32_t>(size);
    }
    return {graph, graph * size, (graph + 1) * size};
  }
  const auto has_row = [&](int64_t g) {
    return g < graphs.count && graphs.offsets[g] <= row && graphs.offsets[g + 1] > row;
  };
  if (guess < 0 || !has_row(graph))
    if (guess < 0 || !has_row(++graph)) graph = last_up_to(graphs.offsets, graphs.count, row);
  const int64_t begin = graphs.offsets[graph], end = graphs.offsets[graph + 1];
  return {graph, begin < 0 || begin > row ? row : begin,
          end <= row || end > graphs.num_nodes ? row + 1 : end};
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
