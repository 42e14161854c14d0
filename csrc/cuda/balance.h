// Which rows a warp of the backward on the matrix units takes of a ragged batch: so many that each warp has
// about the same work, as counted by pairs.
#pragma once
#include "cuda/gate.h"
#include "cuda/tile_config.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

__host__ __device__ inline bool is_small(int64_t nodes) { return nodes <= kSmallGraph; }

// Whether all graphs are small, and of one size.
inline bool all_small(const Graphs& graphs) {
  return !graphs.offsets && graphs.graph_size > 0 && is_small(graphs.graph_size);
}

// Work is counted in steps of kStepPairs pairs. What is done once a small graph, or once a row of a larger
// one, weighs about as much as one more.
__device__ __forceinline__ int64_t row_steps(int64_t n) { return (n + kStepPairs - 1) / kStepPairs + 1; }

// Of a whole graph. pairs_once: of a small one each pair goes through the networks once, not row by row.
__device__ __forceinline__ int64_t tile_steps(int64_t n, bool pairs_once) {
  if (!pairs_once || !is_small(n)) return n * row_steps(n);
  return n ? (pair_count(n) + kStepPairs - 1) / kStepPairs + 1 : 0;
}

// The first row that has at least so many steps before it, of a small graph its first.
__device__ __forceinline__ int64_t row_after(const Graphs& graphs, const int64_t* first_step, int64_t steps) {
  const int64_t low = last_up_to(first_step, graphs.count, steps);
  const GraphOfRow rows = graph_at(graphs, low);
  const int64_t n = rows.end - rows.begin, inside = steps - first_step[low];
  if (inside <= 0) return rows.begin;
  if (is_small(n)) return rows.end;
  const int64_t of_row = row_steps(n), row = rows.begin + (inside + of_row - 1) / of_row;
  return row < rows.end ? row : rows.end;
}

// The rows [begin, end) of one of `warps` warps: those of all warps follow each other. first_step: [G + 1].
__device__ __forceinline__ void rows_of_warp(const Graphs& graphs, const int64_t* first_step, int64_t warp,
                                             int64_t warps, int64_t& begin, int64_t& end) {
  const int64_t all = first_step[graphs.count], each = all / warps, rest = all % warps;
  const auto steps_before = [&](int64_t w) { return w * each + (w < rest ? w : rest); };
  begin = row_after(graphs, first_step, steps_before(warp));
  end = warp + 1 < warps ? row_after(graphs, first_step, steps_before(warp + 1)) : graphs.num_nodes;
}

#endif

}  // namespace l0sign::cuda
