#include "cuda/graph_totals.h"

#include "cuda/balance.h"
#include "cuda/gate.h"

namespace l0sign::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kOfThread = 4;                    // consecutive graphs
constexpr int kOfBlock = kThreads * kOfThread;  // graphs whose sum a block takes

int64_t chunks_of(int64_t count) { return (count + kOfBlock - 1) / kOfBlock; }

struct Pairs {
  __device__ __forceinline__ int64_t operator()(int64_t n) const { return pair_count(n); }
};
struct Steps {
  bool pairs_once;
  __device__ __forceinline__ int64_t operator()(int64_t n) const { return tile_steps(n, pairs_once); }
};

template <class Measure>
__device__ __forceinline__ int64_t measured(const Graphs& graphs, const Measure& measure, int64_t graph) {
  if (graph >= graphs.count) return 0;
  const GraphOfRow rows = graph_at(graphs, graph);
  return measure(rows.end - rows.begin);
}

// What the threads before this one have, and in `all` what all of them have.
__device__ __forceinline__ int64_t before_in_block(int64_t own, int64_t* shared, int64_t& all) {
  const int thread = threadIdx.x;
  shared[thread] = own;
  __syncthreads();
  for (int step = 1; step < kThreads; step *= 2) {
    const int64_t left = thread >= step ? shared[thread - step] : 0;
    __syncthreads();
    shared[thread] += left;
    __syncthreads();
  }
  all = shared[kThreads - 1];
  const int64_t before = shared[thread] - own;
  __syncthreads();  // `shared` is free again
  return before;
}

// The sum over each block's graphs.
template <class Measure>
__global__ void __launch_bounds__(kThreads) sum_chunks(Graphs graphs, Measure measure, int64_t* sums) {
  __shared__ int64_t shared[kThreads];
  for (int64_t chunk = blockIdx.x; chunk * kOfBlock < graphs.count; chunk += gridDim.x) {
    int64_t own = 0, all;
    for (int k = 0; k < kOfThread; ++k)
      own += measured(graphs, measure, chunk * kOfBlock + threadIdx.x * kOfThread + k);
    before_in_block(own, shared, all);
    if (threadIdx.x == 0) sums[chunk] = all;
  }
}

// The totals before each graph, from the sums of the chunks before its own.
template <class Measure>
__global__ void __launch_bounds__(kThreads)
    write_totals(Graphs graphs, Measure measure, const int64_t* __restrict__ sums, int64_t* totals) {
  __shared__ int64_t shared[kThreads];
  for (int64_t chunk = blockIdx.x; chunk == 0 || chunk * kOfBlock < graphs.count; chunk += gridDim.x) {
    int64_t own = 0, earlier, all;
    for (int64_t before = threadIdx.x; before < chunk; before += kThreads) own += sums[before];
    before_in_block(own, shared, earlier);
    const int64_t first = chunk * kOfBlock + threadIdx.x * kOfThread;
    int64_t of_graph[kOfThread];
    own = 0;
    for (int k = 0; k < kOfThread; ++k) own += of_graph[k] = measured(graphs, measure, first + k);
    int64_t total = earlier + before_in_block(own, shared, all);
    for (int k = 0; k < kOfThread; ++k) {
      if (first + k < graphs.count) totals[first + k] = total;
      total += of_graph[k];
    }
    if (threadIdx.x == 0 && (chunk + 1) * kOfBlock >= graphs.count) totals[graphs.count] = earlier + all;
  }
}

template <class Measure>
cudaError_t write(const Graphs& graphs, Measure measure, int64_t* totals, cudaStream_t stream) {
  const int64_t chunks = chunks_of(graphs.count);
  const int64_t blocks = chunks < kMaxFreeBlocks ? chunks : kMaxFreeBlocks;
  int64_t* const sums = totals + graphs.count + 1;
  L0SIGN_TRY(launch(sum_chunks<Measure>, blocks, kThreads, 0, stream, graphs, measure, sums));
  return launch(write_totals<Measure>, blocks ? blocks : 1, kThreads, 0, stream, graphs, measure, sums,
                totals);
}

}  // namespace

int64_t graph_totals_size(int64_t count) { return count + 1 + chunks_of(count); }

cudaError_t first_pairs(const Graphs& graphs, int64_t* totals, cudaStream_t stream) {
  return write(graphs, Pairs{}, totals, stream);
}

cudaError_t first_steps(const Graphs& graphs, bool pairs_once, int64_t* totals, cudaStream_t stream) {
  return write(graphs, Steps{pairs_once}, totals, stream);
}

}  // namespace l0sign::cuda
