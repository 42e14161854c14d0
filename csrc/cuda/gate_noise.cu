#include "cuda/gate_noise.h"

#include "core/pair.h"
#include "core/philox.h"
#include "cuda/gate.h"

namespace l0sign::cuda {
namespace {

constexpr int kThreads = 256;

// pair_offsets[g]: the first pair of graph g; the last entry: all pairs. Runs in one block, tile after tile.
__global__ void __launch_bounds__(kThreads) scan_pairs(Graphs graphs, int64_t* __restrict__ pair_offsets) {
  __shared__ int64_t sums[kThreads];
  const int lane = threadIdx.x;
  int64_t before = 0;  // pairs of all the tiles so far
  for (int64_t tile = 0; tile < graphs.count; tile += kThreads) {
    const int64_t graph = tile + lane;
    int64_t own = 0;
    if (graph < graphs.count) {
      const GraphOfRow rows = graph_at(graphs, graph);
      own = pair_count(rows.end - rows.begin);
    }
    sums[lane] = own;
    __syncthreads();
    for (int step = 1; step < kThreads; step *= 2) {
      const int64_t left = lane >= step ? sums[lane - step] : 0;
      __syncthreads();
      sums[lane] += left;
      __syncthreads();
    }
    if (graph < graphs.count) pair_offsets[graph] = before + sums[lane] - own;
    before += sums[kThreads - 1];
    __syncthreads();  // the next tile overwrites sums
  }
  if (lane == 0) pair_offsets[graphs.count] = before;
}

// The graph that holds pair p: the last one that begins at or before it. (An empty graph begins where the
// next one does.)
__device__ int64_t graph_of_pair(const int64_t* __restrict__ pair_offsets, int64_t num_graphs, int64_t p) {
  int64_t low = 0, high = num_graphs;
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (pair_offsets[middle] <= p) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

__global__ void __launch_bounds__(kThreads)
    draw(const int64_t* __restrict__ pair_offsets, int64_t num_graphs, int64_t pairs_per_graph,
         const int64_t* __restrict__ seed, int64_t num_pairs, float* __restrict__ out) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t p = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; p < num_pairs; p += stride) {
    const int64_t graph = pair_offsets ? graph_of_pair(pair_offsets, num_graphs, p) : p / pairs_per_graph;
    const int64_t first = pair_offsets ? pair_offsets[graph] : graph * pairs_per_graph;
    out[p] = gate_uniform(*seed, graph, p - first);
  }
}

}  // namespace

cudaError_t first_pairs(const Graphs& graphs, int64_t* pair_offsets, cudaStream_t stream) {
  return launch(scan_pairs, 1, kThreads, 0, stream, graphs, pair_offsets);
}

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
