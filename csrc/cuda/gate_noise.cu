#include "cuda/gate_noise.h"

#include "core/pair.h"
#include "core/philox.h"
#include "cuda/gate.h"
#include "cuda/graph_totals.h"

namespace l0sign::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    draw(const int64_t* __restrict__ pair_offsets, int64_t num_graphs, int64_t pairs_per_graph,
         const int64_t* __restrict__ seed, int64_t num_pairs, float* __restrict__ out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < num_pairs; p += stride) {
    const int64_t graph = pair_offsets ? last_up_to(pair_offsets, num_graphs, p) : p / pairs_per_graph;
    const int64_t first = pair_offsets ? pair_offsets[graph] : graph * pairs_per_graph;
    out[p] = gate_uniform(*seed, graph, p - first);
  }
}

}  // namespace

cudaError_t gate_noise(const Graphs& graphs, const int64_t* seed, int64_t* pair_offsets, int64_t num_pairs,
                       float* out, cudaStream_t stream) {
  if (num_pairs == 0) return cudaSuccess;
  if (graphs.offsets) {
    Graphs bounded = graphs;
    bounded.num_nodes = num_pairs;  // there are no nodes here, but never more of them than pairs
    L0SIGN_TRY(first_pairs(bounded, pair_offsets, stream));
  }
  const int64_t wanted = (num_pairs + kThreads - 1) / kThreads;
  return launch(draw, wanted < kMaxFreeBlocks ? wanted : kMaxFreeBlocks, kThreads, 0, stream,
                graphs.offsets ? pair_offsets : nullptr, graphs.count, pair_count(graphs.graph_size), seed,
                num_pairs, out);
}

}  // namespace l0sign::cuda
