// Running totals over the graphs of a batch: where the pairs of each begin, and how much work lies before it.
#pragma once
#include "cuda/device.h"
#include "problem.h"

namespace l0sign::cuda {

// Numbers that the totals of so many graphs take: [G + 1], and what is needed to make them.
int64_t graph_totals_size(int64_t count);

// Writes the index of the first pair of each graph, and at the end that of all pairs: [G + 1].
//   totals: [graph_totals_size(G)]
cudaError_t first_pairs(const Graphs& graphs, int64_t* totals, cudaStream_t stream);

// The same of the steps that the kernels on the matrix units take for a graph (tile_steps), with each pair of
// a small one once or twice.
cudaError_t first_steps(const Graphs& graphs, bool pairs_once, int64_t* totals, cudaStream_t stream);

}  // namespace l0sign::cuda
