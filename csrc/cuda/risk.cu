#include "cuda/risk.h"

#include <algorithm>
#include <cmath>

#include "cuda/complete_graph.h"
#include "cuda/loss.h"
#include "cuda/weights.h"
#include "cuda/workspace.h"

namespace l0sign::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

int64_t blocks_of(int64_t num_graphs) { return blocks_for((num_graphs + kThreads - 1) / kThreads, 0); }

// A thread for each graph. Of its graphs a warp leaves in its row of partials [warps, d + 2] the sums of the
// gradients of their logits times pooled, of their parts of the risk, and of these gradients.
template <class A>
__global__ void __launch_bounds__(kThreads)
    judge_graphs(Risk<A> risk, const A* pooled, const A* l0, int64_t num_graphs, int d, A* grad_pooled,
                 A* grad_l0, A* partials) {
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp;
  A* own = partials + warp * (d + 2);  // its first lane's
  if (lane == 0)
    for (int k = 0; k < d + 2; ++k) own[k] = 0;
  const A share = 1 / static_cast<A>(num_graphs);
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t first = warp * kWarp; first < num_graphs; first += stride) {
    const int64_t graph = first + lane;
    const bool exists = graph < num_graphs;
    const A* row = pooled + (exists ? graph : first) * d;
    A part = 0, grad = 0;
    if (exists) {
      A y = risk.head_bias ? *risk.head_bias : A(0);
      for (int k = 0; k < d; ++k) y = std::fma(risk.head_weight[k], row[k], y);
      const A target = risk.target[graph], weight = risk.l0_weight[graph];
      part = share * (loss_of(risk.loss, y, target) + weight * l0[graph]);
      grad = share * slope_of(risk.loss, y, target);
      risk.logits[graph] = y;
      risk.grad_logits[graph] = grad;
      grad_l0[graph] = share * weight;
      for (int k = 0; k < d; ++k) grad_pooled[graph * d + k] = grad * risk.head_weight[k];
    }
    for (int k = 0; k < d + 2; ++k) {
      const A sum = warp_sum(k == d ? part : k == d + 1 ? grad : exists ? grad * row[k] : A(0));
      if (lane == 0) own[k] += sum;
    }
  }
}

// Adds up the sums of `count` warps, a warp for each of them.
template <class A>
__global__ void __launch_bounds__(kThreads) finish(Risk<A> risk, const A* partials, int64_t count, int d) {
  const int lane = threadIdx.x % kWarp;
  for (int k = threadIdx.x / kWarp; k < d + 2; k += kWarps) {
    A sum = 0;
    for (int64_t row = lane; row < count; row += kWarp) sum += partials[row * (d + 2) + k];
    sum = warp_sum(sum);
    if (lane != 0) continue;
    if (k < d) risk.grad_head_weight[k] = sum;
    if (k == d) *risk.risk = sum;
    if (k == d + 1 && risk.grad_head_bias) *risk.grad_head_bias = sum;
  }
}

}  // namespace

template <class A>
int64_t judge_workspace(int64_t num_graphs, int64_t d) {
  Arena arena(nullptr);
  arena.take<A>(blocks_of(num_graphs) * kWarps * (d + 2));
  return arena.used();
}

template <class A>
cudaError_t judge(const Risk<A>& risk, const A* pooled, const A* l0, int64_t num_graphs, int64_t d,
                  A* grad_pooled, A* grad_l0, void* workspace, cudaStream_t stream) {
  const int64_t blocks = blocks_of(num_graphs);  // at least one, so that without graphs all sums are 0
  A* partials = Arena(workspace).take<A>(blocks * kWarps * (d + 2));
  const int size = static_cast<int>(d);
  L0SIGN_TRY(launch(judge_graphs<A>, blocks, kThreads, 0, stream, risk, pooled, l0, num_graphs, size,
                    grad_pooled, grad_l0, partials));
  return launch(finish<A>, 1, kThreads, 0, stream, risk, partials, blocks * kWarps, size);
}

namespace {

// The passes and what lies between them, which take the same memory, one after the other.
template <class A>
struct Passes {
  CompleteGraph<A> forward, backward;
  A *pooled, *grad_pooled, *grad_l0;

  Passes(const CompleteGraph<A>& problem, Arena& arena) : forward(problem), backward(problem) {
    const int64_t G = problem.graphs.count, d = problem.message.in;
    pooled = arena.take<A>(G * d), grad_pooled = arena.take<A>(G * d), grad_l0 = arena.take<A>(G);
    forward.pooled = pooled;
    backward.grad_pooled = grad_pooled, backward.grad_l0 = grad_l0;
    backward.l0 = nullptr, backward.num_edges = nullptr;
  }
};

}  // namespace

template <class A>
int64_t risk_workspace(const CompleteGraph<A>& problem) {
  Arena arena(nullptr);
  Passes<A> passes(problem, arena);
  // What the passes need depends on what is there, not on where it is.
  A somewhere;
  passes.forward.pooled = &somewhere;
  passes.backward.grad_pooled = passes.backward.grad_l0 = &somewhere;
  return arena.used() + std::max({forward_workspace(passes.forward), backward_workspace(passes.backward),
                                  judge_workspace<A>(problem.graphs.count, problem.message.in)});
}

template <class A>
cudaError_t risk(const CompleteGraph<A>& problem, const Risk<A>& head, void* workspace, cudaStream_t stream) {
  Arena arena(workspace);
  const Passes<A> passes(problem, arena);
  void* const memory = static_cast<unsigned char*>(workspace) + arena.used();
  L0SIGN_TRY(forward(passes.forward, memory, stream));
  L0SIGN_TRY(judge(head, passes.pooled, problem.l0, problem.graphs.count, problem.message.in,
                   passes.grad_pooled, passes.grad_l0, memory, stream));
  return backward(passes.backward, memory, stream);
}

#define INSTANTIATE(A)                                                                            \
  template int64_t risk_workspace(const CompleteGraph<A>&);                                       \
  template cudaError_t risk(const CompleteGraph<A>&, const Risk<A>&, void*, cudaStream_t);        \
  template int64_t judge_workspace<A>(int64_t, int64_t);                                          \
  template cudaError_t judge(const Risk<A>&, const A*, const A*, int64_t, int64_t, A*, A*, void*, \
                             cudaStream_t);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
