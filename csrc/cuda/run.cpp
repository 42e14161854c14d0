#include "cuda/run.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <atomic>
#include <optional>
#include <stdexcept>

#include "cuda/complete_graph.h"
#include "cuda/edge_list.h"
#include "cuda/gate_noise.h"
#include "cuda/graph_totals.h"
#include "cuda/risk.h"
#include "cuda/rows.h"
#include "cuda/stream.h"

namespace l0sign::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::atomic<bool (*)()> tf32_source{nullptr};

template <class Problem>
Problem with_precision(Problem problem) {
  bool (*const allowed)() = tf32_source;
  problem.tf32 = allowed && allowed();
  return problem;
}

// The device, its current stream, and memory from torch's allocator. That memory may be given back before the
// work is done: the allocator hands it out again in the stream's order.
class Place {
 public:
  explicit Place(const Tensor& like) : like_(like), guard_(like.get_device_index()) {}

  // Calls run(workspace, stream).
  template <class Run>
  void operator()(int64_t workspace_bytes, Run run) const {
    const Tensor workspace = torch::stable::new_empty(like_, {workspace_bytes}, ScalarType::Byte);
    const cudaError_t error =
        run(workspace.mutable_data_ptr(), current_stream(static_cast<int32_t>(like_.get_device_index())));
    if (error != cudaSuccess)
      throw std::runtime_error(std::string("l0sign_cuda: a kernel was not started: ") +
                               cudaGetErrorString(error));
  }

 private:
  const Tensor& like_;
  torch::stable::accelerator::DeviceGuard guard_;
};

const int64_t* indices(const Tensor& t) { return static_cast<const int64_t*>(t.const_data_ptr()); }

// Keys in ascending order, and where each of them was.
struct Sorted {
  Tensor keys, order;

  EdgeOrder pointers() const { return {indices(keys), indices(order)}; }
};

// Stable, so that sums over what has the same key keep the given order. keys: [N], contiguous.
Sorted sorted(const Tensor& keys, const char* name) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack = {from(keys), from(std::optional<bool>(true)), from(int64_t{0}),
                                       from(false)};
  if (torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error(std::string("l0sign_cuda: torch could not sort ") + name);
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

// The edges by their sources (end 0) or their targets (end 1).
Sorted sorted_edges(const Tensor& edge_index, int64_t end) {
  return sorted(torch::stable::contiguous(torch::stable::select(edge_index, 0, end)), "edge_index");
}

// What differs in sorted keys [N], and for each key where that stands. Waits for the device.
struct Unique {
  Tensor values, place;
};

Unique unique(const Tensor& keys) {
  using torch::stable::detail::from;
  std::array<StableIValue, 4> stack = {from(keys), from(true), from(false), from(std::optional<int64_t>())};
  if (torch_call_dispatcher("aten::unique_consecutive", "", stack.data(), TORCH_ABI_VERSION) !=
      AOTI_TORCH_SUCCESS)
    throw std::runtime_error("l0sign_cuda: torch could not count the different ids");
  const Tensor counts = torch::stable::detail::to<Tensor>(stack[2]);  // empty, but to be given back
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

int64_t number_at(const Tensor& values, int64_t at) {
  const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return *indices(torch::stable::to(torch::stable::select(values, 0, at), cpu));
}

}  // namespace

void set_tf32_source(bool (*allowed)()) { tf32_source = allowed; }

std::vector<std::string>& operators() {
  static std::vector<std::string> names;
  return names;
}

template <class A>
void forward(const CompleteGraph<A>& given, const Tensor& like) {
  const auto problem = with_precision(given);
  const Place place(like);
  place(forward_workspace(problem),
        [&](void* workspace, cudaStream_t stream) { return forward(problem, workspace, stream); });
}

template <class A>
void backward(const CompleteGraph<A>& given, const Tensor& like) {
  const auto problem = with_precision(given);
  const Place place(like);
  place(backward_workspace(problem),
        [&](void* workspace, cudaStream_t stream) { return backward(problem, workspace, stream); });
}

template <class A>
void risk(const CompleteGraph<A>& given, const Risk<A>& head, const Tensor& like) {
  const auto problem = with_precision(given);
  const Place place(like);
  place(risk_workspace(problem),
        [&](void* workspace, cudaStream_t stream) { return risk(problem, head, workspace, stream); });
}

template <class A>
void forward(const EdgeList<A>& given, const Tensor& edge_index) {
  const auto problem = with_precision(given);
  const Place place(edge_index);
  const Sorted by_target = sorted_edges(edge_index, 1);
  place(forward_workspace(problem), [&](void* workspace, cudaStream_t stream) {
    return forward(problem, by_target.pointers(), workspace, stream);
  });
}

template <class A>
void backward(const EdgeList<A>& given, const Tensor& edge_index) {
  const auto problem = with_precision(given);
  const Place place(edge_index);
  const Sorted by_target = sorted_edges(edge_index, 1), by_source = sorted_edges(edge_index, 0);
  place(backward_workspace(problem), [&](void* workspace, cudaStream_t stream) {
    return backward(problem, by_target.pointers(), by_source.pointers(), workspace, stream);
  });
}

RowGroups group_rows(const Tensor& ids, int64_t num_rows, bool unique_rows) {
  const torch::stable::accelerator::DeviceGuard guard(ids.get_device_index());
  const Sorted by_id = sorted(ids, "ids");
  if (!unique_rows || ids.numel() == 0) return {by_id.keys, by_id.order, by_id.keys};
  const Unique found = unique(by_id.keys);
  for (const int64_t at : {int64_t{0}, found.values.numel() - 1}) {
    const int64_t id = number_at(found.values, at);
    if (id < 0 || id >= num_rows) throw std::runtime_error(cpu::out_of_range(&id, 1, num_rows));
  }
  return {found.place, by_id.order, found.values};
}

template <class A>
void sum_rows(const RowGroups& groups, const A* grads, int64_t width, A* out, int64_t num_rows) {
  const Place place(groups.order);
  const RowOrder order = {indices(groups.place), indices(groups.order), groups.order.numel()};
  place(sum_rows_workspace<A>(order.count, width), [&](void* workspace, cudaStream_t stream) {
    return sum_rows(order, grads, width, out, num_rows, workspace, stream);
  });
}

template <class A, class Rule>
void update_rows(const RowGradient<A>& gradient, const Rule& rule, const Tensor& param) {
  const Place place(param);
  place(0, [&](void*, cudaStream_t stream) { return update_rows(gradient, rule, param.sizes()[0], stream); });
}

void gate_noise(const Graphs& graphs, const int64_t* seed, int64_t num_pairs, float* noise,
                const Tensor& like) {
  const int64_t pair_offsets = graphs.offsets ? graph_totals_size(graphs.count) : 0;
  const Place place(like);
  place(pair_offsets * sizeof(int64_t), [&](void* workspace, cudaStream_t stream) {
    return gate_noise(graphs, seed, static_cast<int64_t*>(workspace), num_pairs, noise, stream);
  });
}

#define INSTANTIATE(A)                                                                \
  template void forward(const CompleteGraph<A>&, const Tensor&);                      \
  template void backward(const CompleteGraph<A>&, const Tensor&);                     \
  template void risk(const CompleteGraph<A>&, const Risk<A>&, const Tensor&);         \
  template void forward(const EdgeList<A>&, const Tensor&);                           \
  template void backward(const EdgeList<A>&, const Tensor&);                          \
  template void sum_rows(const RowGroups&, const A*, int64_t, A*, int64_t);           \
  template void update_rows(const RowGradient<A>&, const Adagrad<A>&, const Tensor&); \
  template void update_rows(const RowGradient<A>&, const Adam<A>&, const Tensor&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
