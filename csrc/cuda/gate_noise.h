// Launcher of the gate noise. No torch in here.
#pragma once
#include "cuda/device.h"
#include "problem.h"

namespace l0sign::cuda {

// Writes U of every unordered pair, in canonical order.
//   seed: one element, on the device.
//   pair_offsets: [graph_totals_size(G)] to work in; may be null where graphs have no offsets.
cudaError_t gate_noise(const Graphs& graphs, const int64_t* seed, int64_t* pair_offsets, int64_t num_pairs,
                       float* out, cudaStream_t stream);

}  // namespace l0sign::cuda
