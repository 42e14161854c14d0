#include "run.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/pair.h"
#include "../core/philox.h"
#include "dispatch.h"
#include "packing.h"

namespace l0sign {
namespace cpu {
namespace {

constexpr int64_t kMaxTasks = 64;  // partial weight gradients that are kept, whatever the number of threads
constexpr int64_t kCacheBytes = 512 << 10;  // scratch of one block that still runs from the L2 cache
constexpr int64_t kTaskCost = 100;          // vectors of pairs that are worth a task
constexpr int64_t kFewBlocks = 8;  // of graphs side by side: with fewer, some of many threads have no work
constexpr int64_t kScratchBytes = 8 << 20;  // that a thread holds on to between calls
constexpr int64_t kNodesPerEdgeBlock = 256;

int64_t node_count(const Graphs& graphs, int64_t g) {
  return graphs.offsets ? graphs.offsets[g + 1] - graphs.offsets[g] : graphs.graph_size;
}

// Scratch memory of the calling thread. Kept from call to call: fresh pages cost more than the arithmetic on
// them.
class Scratch {
 public:
  void* reserve(int64_t bytes) {
    if (bytes > size_) {
      release();
      memory_ = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
      if (!memory_) throw std::bad_alloc();
      size_ = bytes;
    }
    return memory_;
  }
  void trim() {
    if (size_ > kScratchBytes) release();
  }
  ~Scratch() { release(); }

 private:
  void release() {
    std::free(memory_);
    memory_ = nullptr;
    size_ = 0;
  }
  void* memory_ = nullptr;
  int64_t size_ = 0;
};
thread_local Scratch thread_scratch;

// Consecutive blocks [begin[t], begin[t + 1]) are task t: one thread, one partial sum of the weight
// gradients.
std::vector<int64_t> split_tasks(const std::vector<int64_t>& costs, int64_t min_cost) {
  const int64_t total = std::accumulate(costs.begin(), costs.end(), int64_t{0});
  // A power of two, so that as many threads have equal shares.
  int64_t tasks = 1;
  while (2 * tasks <= std::min(kMaxTasks, total / min_cost)) tasks *= 2;
  std::vector<int64_t> begin = {0};
  int64_t sum = 0;
  for (size_t k = 0; k < costs.size(); ++k) {
    if (sum * tasks >= total * static_cast<int64_t>(begin.size()) && static_cast<int64_t>(k) > begin.back())
      begin.push_back(static_cast<int64_t>(k));
    sum += costs[k];
  }
  begin.push_back(static_cast<int64_t>(costs.size()));
  return begin;
}

template <class Run>
void for_tasks(const std::vector<int64_t>& begin, int64_t scratch_bytes, Run run) {
  const int64_t tasks = static_cast<int64_t>(begin.size()) - 1;
  // An exception cannot leave a worker thread with its message: memory is the only thing that can fail in
  // there.
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    void* memory = thread_scratch.reserve(scratch_bytes);
    for (int64_t t = first; t < last; ++t) {
#ifdef L0SIGN_POISON_SCRATCH
      std::memset(memory, 0xFF,
                  scratch_bytes);  // NaN: what a kernel reads before it wrote shows in its result
#endif
      run(t, memory);
    }
    thread_scratch.trim();
  });
}

// Adds the tasks' partial sums in task order and writes them to the gradients of one perceptron.
template <class A>
void reduce(const std::vector<A>& partials, int64_t size, const GradientLayout& at,
            const PerceptronGrad<A>& to) {
  if (!to.hidden_weight) return;
  const auto sum = [&](int64_t begin, int64_t end, A* out) {
    std::fill(out, out + (end - begin), A(0));
    for (size_t task = 0; task < partials.size(); task += size)
      for (int64_t k = begin; k < end; ++k) out[k - begin] += partials[task + k];
  };
  sum(at.hidden_weight, at.hidden_bias, to.hidden_weight);
  sum(at.hidden_bias, at.out_weight, to.hidden_bias);
  sum(at.out_weight, at.out_bias, to.out_weight);
  sum(at.out_bias, at.end, to.out_bias);
}

// ---- Complete graphs ----

// Graphs in the order of their size, W of them side by side in the lanes of a block; a graph that is large,
// or has too few of its size beside it, or too few large ones in the batch, gets a block of its own with the
// lanes over its nodes.
template <class A>
struct Plan {
  std::vector<int64_t> order;
  std::vector<Block> blocks;
  std::vector<int64_t> task_begin;
  int64_t scratch_bytes = 0;

  // scratch(slots) is what a kernel needs for a block of so many, and slot_bytes for one more.
  template <class ScratchOf>
  Plan(const Graphs& graphs, int64_t W, int64_t slot_bytes, ScratchOf scratch) {
    order.resize(graphs.count);
    std::iota(order.begin(), order.end(), int64_t{0});
    if (graphs.offsets)
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t a, int64_t b) { return node_count(graphs, a) < node_count(graphs, b); });
    std::vector<int64_t> costs;
    int64_t max_slots = 0;
    const auto add = [&](const int64_t* first, int64_t lanes, int64_t nodes, bool lanes_over_nodes,
                         int64_t cost) {
      blocks.push_back({first, lanes, nodes, lanes_over_nodes, nullptr});
      costs.push_back(cost + 1);
      max_slots = std::max(max_slots, lanes_over_nodes ? (nodes + W - 1) / W : nodes);
    };
    for (int64_t first = 0; first < graphs.count; first += W) {
      const int64_t lanes = std::min(W, graphs.count - first);
      const int64_t nodes = node_count(graphs, order[first + lanes - 1]);
      int64_t over_graphs = pair_count(nodes), over_nodes = 0;
      if (nodes * slot_bytes > kCacheBytes) over_graphs += over_graphs / 2;
      for (int64_t l = 0; l < lanes; ++l)
        over_nodes += node_lane_cost(node_count(graphs, order[first + l]), W);
      // Of few large graphs each is better a task of its own, even if it takes a little more work.
      const bool few = graphs.count < kFewBlocks * W && over_nodes >= lanes * kTaskCost;
      const int64_t accepted = few ? over_nodes / 5 : 0;
      if (over_graphs <= over_nodes - accepted) {
        add(&order[first], lanes, nodes, false, over_graphs);
        continue;
      }
      for (int64_t l = 0; l < lanes; ++l) {
        const int64_t n = node_count(graphs, order[first + l]);
        add(&order[first + l], 1, n, true, node_lane_cost(n, W));
      }
    }
    scratch_bytes = scratch(max_slots);
    task_begin = split_tasks(costs, kTaskCost);
  }

  // Gives blocks that need kept(block) bytes their places in memory, as long as there is room.
  template <class KeptOf>
  void keep(KeptOf kept, void* memory, int64_t size) {
    char* next = static_cast<char*>(memory);
    for (Block& block : blocks) {
      const int64_t bytes = kept(block);
      if (bytes == 0 || bytes > size) continue;
      block.kept = next;
      next += bytes, size -= bytes;
    }
  }

  // In vectors of pairs. The rows of a slot meet every slot after it, and a slot itself turned by half its
  // lanes; copies of rows, and the sums over lanes, cost three quarters of a vector a node.
  static int64_t node_lane_cost(int64_t n, int64_t W) {
    const int64_t slots = (n + W - 1) / W, last = n - (slots - 1) * W;
    return W * slots * (slots - 1) / 2 + (slots - 1) * (W / 2 + 1) + last / 2 + 1 + n * 3 / 4;
  }
};

// Calls run(blocks, count, memory, gradients) for each task, and adds up what they add to their gradients.
template <class A, class Run>
void sum_gradients(const Plan<A>& plan, const CompleteGraph<A>& problem,
                   const PerceptronGrad<A>& grad_message, Run run) {
  const Perceptron<A>&m = problem.message, &e = problem.edge;
  const GradientLayout message = gradient_layout(0, m.in, m.hidden, m.out);
  const GradientLayout edge = gradient_layout(message.end, e.in, e.hidden, e.out);
  std::vector<A> partials((plan.task_begin.size() - 1) * edge.end, A(0));
  for_tasks(plan.task_begin, plan.scratch_bytes, [&](int64_t t, void* memory) {
    const int64_t begin = plan.task_begin[t];
    run(plan.blocks.data() + begin, plan.task_begin[t + 1] - begin, memory, partials.data() + t * edge.end);
  });
  reduce(partials, edge.end, message, grad_message);
  reduce(partials, edge.end, edge, problem.grad_edge);
}

// A pair's weight in the pooled sum depends on how many edges its ends keep: gates first.
template <class A>
void find_degrees(const CompleteGraph<A>& problem) {
  CompleteGraph<A> degrees = problem;
  degrees.nodes = nullptr;
  degrees.pools = false;
  degrees.pooled = degrees.l0 = degrees.l2 = nullptr;
  degrees.num_edges = nullptr;
  degrees.kept = nullptr;
  forward(degrees);
}

// Of a forward or a backward. Where something is kept, both need the same blocks, whatever gradients come:
// the bytes of a slot are those of a backward with all of them.
template <class A>
Plan<A> plan_of(const CompleteGraph<A>& problem, bool backward) {
  const Kernels<A>& k = kernels<A>();
  const auto scratch = [&](int64_t slots) { return k.scratch(problem, slots, backward); };
  if (!problem.kept) return Plan<A>(problem.graphs, k.lanes, scratch(1) - scratch(0), scratch);
  CompleteGraph<A> both = problem;
  (both.pools ? both.grad_pooled : both.grad_out) = problem.nodes;  // scratch depends on whether there is one
  const int64_t slot_bytes = k.scratch(both, 1, true) - k.scratch(both, 0, true);
  Plan<A> plan(problem.graphs, k.lanes, slot_bytes, scratch);
  plan.keep([&](const Block& block) { return k.kept(problem, block); }, problem.kept, problem.kept_bytes);
  return plan;
}

}  // namespace

template <class A>
void forward(const CompleteGraph<A>& problem) {
  if (problem.pools && problem.degree) find_degrees(problem);
  const Kernels<A>& k = kernels<A>();
  const Plan<A> plan = plan_of(problem, false);
  const Packing<A> packing(problem, k, false);
  for_tasks(plan.task_begin, plan.scratch_bytes, [&](int64_t t, void* memory) {
    const int64_t begin = plan.task_begin[t];
    k.forward(problem, packing.weights(), plan.blocks.data() + begin, plan.task_begin[t + 1] - begin, memory);
  });
}

template <class A>
void backward(const CompleteGraph<A>& problem) {
  const Kernels<A>& k = kernels<A>();
  const Plan<A> plan = plan_of(problem, true);
  const Packing<A> packing(problem, k, true);
  sum_gradients(plan, problem, problem.grad_message,
                [&](const Block* blocks, int64_t count, void* memory, A* gradients) {
                  k.backward(problem, packing.weights(), blocks, count, memory, gradients);
                });
}

namespace {

// The message network with the head folded into its second layer.
template <class A>
struct FoldedHead {
  const Perceptron<A>& message;
  const A* head;  // [d]
  std::vector<A> out_weight;
  A out_bias = 0;

  FoldedHead(const Perceptron<A>& m, const A* head_weight)
      : message(m), head(head_weight), out_weight(m.hidden, A(0)) {
    for (int64_t k = 0; k < m.out; ++k) {
      for (int64_t h = 0; h < m.hidden; ++h) out_weight[h] += head[k] * m.out_weight[k * m.hidden + h];
      out_bias += head[k] * m.out_bias[k];
    }
  }
  Perceptron<A> network() const {
    const Perceptron<A>& m = message;
    return {m.hidden_weight, m.hidden_bias, out_weight.data(), &out_bias, m.in, m.hidden, 1};
  }

  // From the gradients of the folded second layer those of the message network's, and of the head.
  void unfold(const A* grad_weight, A grad_bias, const PerceptronGrad<A>& to, A* grad_head) const {
    const Perceptron<A>& m = message;
    for (int64_t k = 0; k < m.out; ++k) {
      A sum = m.out_bias[k] * grad_bias;
      for (int64_t h = 0; h < m.hidden; ++h) {
        sum += m.out_weight[k * m.hidden + h] * grad_weight[h];
        to.out_weight[k * m.hidden + h] = head[k] * grad_weight[h];
      }
      to.out_bias[k] = head[k] * grad_bias;
      grad_head[k] = sum;
    }
  }
};

}  // namespace

template <class A>
void risk(const CompleteGraph<A>& given, const Risk<A>& of) {
  CompleteGraph<A> problem = given;
  if (problem.degree) find_degrees(problem);
  const int64_t G = problem.graphs.count;
  std::vector<A> grad_l0(G), losses(G);
  Risk<A> head = of;
  head.losses = losses.data();
  const FoldedHead<A> folded(given.message, head.head_weight);
  for (int64_t g = 0; g < G; ++g) grad_l0[g] = head.l0_weight[g] / static_cast<A>(G);
  problem.message = folded.network();
  problem.grad_l0 = grad_l0.data();
  const Kernels<A>& k = kernels<A>();
  const auto scratch = [&](int64_t slots) { return k.risk_scratch(problem, slots); };
  const Plan<A> plan(problem.graphs, k.lanes, scratch(1) - scratch(0), scratch);
  const Packing<A> packing(problem.message, problem.edge, k);
  std::vector<A> grad_out(problem.message.hidden);
  A grad_out_bias;
  PerceptronGrad<A> of_folded = problem.grad_message;
  of_folded.out_weight = grad_out.data(), of_folded.out_bias = &grad_out_bias;
  sum_gradients(plan, problem, of_folded,
                [&](const Block* blocks, int64_t count, void* memory, A* gradients) {
                  k.risk(problem, head, packing.weights(), blocks, count, memory, gradients);
                });
  folded.unfold(grad_out.data(), grad_out_bias, problem.grad_message, head.grad_head_weight);
  double sum = 0, grad_bias = 0;
  for (int64_t g = 0; g < G; ++g) {
    sum += losses[g] + static_cast<double>(head.l0_weight[g]) * problem.l0[g];
    grad_bias += head.grad_logits[g];
  }
  *head.risk = static_cast<A>(G > 0 ? sum / static_cast<double>(G) : 0);
  if (head.grad_head_bias) *head.grad_head_bias = static_cast<A>(grad_bias);
}

// ---- Edge lists ----

namespace {

// Edges by blocks of whole graphs, in their given order within a block.
template <class A>
struct EdgePlan {
  std::vector<int64_t> order;
  std::vector<A> scale;
  std::vector<EdgeBlock<A>> blocks;
  std::vector<int64_t> task_begin;
  int64_t scratch_bytes = 0;

  EdgePlan(const EdgeList<A>& problem, const Kernels<A>& kernels, bool backward) {
    const Graphs& graphs = problem.graphs;
    std::vector<int64_t> graph_of(graphs.num_nodes), block_of(graphs.count);
    int64_t max_nodes = 0;
    for (int64_t g = 0, node = 0; g < graphs.count; ++g) {
      if (blocks.empty() || node - blocks.back().node_begin >= kNodesPerEdgeBlock)
        blocks.push_back({nullptr, 0, node, node, nullptr});
      block_of[g] = static_cast<int64_t>(blocks.size()) - 1;
      const int64_t end = node + node_count(graphs, g);
      for (; node < end; ++node) graph_of[node] = g;
      blocks.back().node_end = end;
      max_nodes = std::max(max_nodes, end - blocks.back().node_begin);
    }
    std::vector<int64_t> degree(graphs.num_nodes, 0), block_begin(blocks.size() + 1, 0);
    for (int64_t e = 0; e < problem.num_edges; ++e) {
      const int64_t s = problem.source[e], t = problem.target[e];
      if (s < 0 || s >= graphs.num_nodes || t < 0 || t >= graphs.num_nodes || graph_of[s] != graph_of[t])
        throw std::runtime_error("edge_index: expected both ends of edge " + std::to_string(e) +
                                 " in one graph, got " + std::to_string(s) + " -> " + std::to_string(t));
      degree[t] += !problem.weight || problem.weight[e] > 0;
      ++block_begin[block_of[graph_of[t]] + 1];
    }
    scale.resize(graphs.num_nodes);
    for (int64_t node = 0; node < graphs.num_nodes; ++node) {
      const int64_t divisor = problem.aggregation == Aggregation::sum    ? 1
                              : problem.aggregation == Aggregation::mean ? node_count(graphs, graph_of[node])
                                                                         : degree[node];
      scale[node] = divisor > 0 ? A(1) / static_cast<A>(divisor) : A(0);
    }
    std::partial_sum(block_begin.begin(), block_begin.end(), block_begin.begin());
    order.resize(problem.num_edges);
    std::vector<int64_t> next(block_begin.begin(), block_begin.end());
    for (int64_t e = 0; e < problem.num_edges; ++e) order[next[block_of[graph_of[problem.target[e]]]]++] = e;
    std::vector<int64_t> costs;
    for (size_t b = 0; b < blocks.size(); ++b) {
      blocks[b].order = order.data() + block_begin[b];
      blocks[b].count = block_begin[b + 1] - block_begin[b];
      blocks[b].scale = scale.data();
      costs.push_back(blocks[b].count + 1);
    }
    scratch_bytes = kernels.edges_scratch(problem, max_nodes, backward);
    task_begin = split_tasks(costs, 2000);
  }
};

}  // namespace

template <class A>
void forward(const EdgeList<A>& problem) {
  const Kernels<A>& k = kernels<A>();
  const EdgePlan<A> plan(problem, k, false);
  const Packing<A> packing(problem, k);
  for_tasks(plan.task_begin, plan.scratch_bytes, [&](int64_t t, void* memory) {
    for (int64_t b = plan.task_begin[t]; b < plan.task_begin[t + 1]; ++b)
      k.edges_forward(problem, packing.weights(), plan.blocks[b], memory);
  });
}

template <class A>
void backward(const EdgeList<A>& problem) {
  const Kernels<A>& k = kernels<A>();
  const EdgePlan<A> plan(problem, k, true);
  const Packing<A> packing(problem, k);
  const Perceptron<A>& m = problem.message;
  const GradientLayout message = gradient_layout(0, m.in, m.hidden, m.out);
  std::vector<A> partials((plan.task_begin.size() - 1) * message.end, A(0));
  for_tasks(plan.task_begin, plan.scratch_bytes, [&](int64_t t, void* memory) {
    for (int64_t b = plan.task_begin[t]; b < plan.task_begin[t + 1]; ++b)
      k.edges_backward(problem, packing.weights(), plan.blocks[b], memory, partials.data() + t * message.end);
  });
  reduce(partials, message.end, message, problem.grad_message);
}

// ---- Noise ----

void gate_noise(const Graphs& graphs, int64_t seed, const int64_t* first_pair, float* noise) {
  torch::stable::parallel_for(0, graphs.count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const int64_t pairs = pair_count(node_count(graphs, g));
      for (int64_t p = 0; p < pairs; ++p) noise[first_pair[g] + p] = gate_uniform(seed, g, p);
    }
  });
}

template void forward(const CompleteGraph<float>&);
template void forward(const CompleteGraph<double>&);
template void backward(const CompleteGraph<float>&);
template void backward(const CompleteGraph<double>&);
template void risk(const CompleteGraph<float>&, const Risk<float>&);
template void risk(const CompleteGraph<double>&, const Risk<double>&);
template void forward(const EdgeList<float>&);
template void forward(const EdgeList<double>&);
template void backward(const EdgeList<float>&);
template void backward(const EdgeList<double>&);

}  // namespace cpu
}  // namespace l0sign
