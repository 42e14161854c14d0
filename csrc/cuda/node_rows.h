// What kernels over all pairs read of a node: its row, and what its messages are multiplied by.
#pragma once
#include "cuda/gate.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// The rows that pairs are products of: row k is node k's, times scale(k).
template <class A>
struct NodeRows {
  static constexpr bool kOfTable = false;
  const A* rows;  // [N, width]
  int width;

  static __device__ NodeRows nodes(const CompleteGraph<A>& p) {
    return {p.nodes, static_cast<int>(p.message.in)};
  }
  static __device__ NodeRows edges(const CompleteGraph<A>& p) {
    return {p.edge_nodes, static_cast<int>(p.edge.in)};
  }
  __device__ __forceinline__ const A* row(int64_t k) const { return rows + k * width; }
  __device__ __forceinline__ A scale(int64_t) const { return 1; }
};

// The same for nodes that are rows of a table. An id out of range reads none that is not there, and makes
// everything that depends on it NaN: nobody waits for the GPU to say so.
template <class A>
struct TableRows {
  static constexpr bool kOfTable = true;
  const A* table;      // [J, width]
  const int64_t* ids;  // [N]
  const A* values;     // [N], or null: all ones
  int64_t count;       // J
  int width;

  static __device__ TableRows nodes(const CompleteGraph<A>& p) {
    return {p.nodes, p.ids, p.values, p.num_rows, static_cast<int>(p.message.in)};
  }
  static __device__ TableRows edges(const CompleteGraph<A>& p) {
    return {p.edge_nodes, p.ids, nullptr, p.num_rows, static_cast<int>(p.edge.in)};
  }
  __device__ __forceinline__ const A* row(int64_t k) const {
    const int64_t id = ids[k];
    return table + (is_row(id) ? id : 0) * width;
  }
  __device__ __forceinline__ A scale(int64_t k) const {
    return !is_row(ids[k]) ? static_cast<A>(NAN) : values ? values[k] : A(1);
  }

 private:
  __device__ __forceinline__ bool is_row(int64_t id) const {
    return static_cast<uint64_t>(id) < static_cast<uint64_t>(count);
  }
};

// What the sum over the partners of node `row` is multiplied by.
template <class A>
__device__ __forceinline__ A node_scale(const CompleteGraph<A>& p, const GraphOfRow& graph, int64_t row) {
  const bool counted = p.aggregation == Aggregation::neighbor_mean;
  return aggregation_scale<A>(p.aggregation, graph.end - graph.begin, counted ? p.degree[row] : 0);
}

// How much of v' of a node goes into the pooled sum of its graph. x: the scale of its row.
template <class A>
__device__ __forceinline__ A pooled_share(const GraphOfRow& graph, A x) {
  return x / static_cast<A>(graph.end - graph.begin);
}

#endif

}  // namespace l0sign::cuda
