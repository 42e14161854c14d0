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
#include "cuda/stream.h"

namespace l0sign::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

std::atomic<bool (*)()> tf32_source{nullptr};

template <class A>
CompleteGraph<A> with_precision(CompleteGraph<A> problem) {
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

// The edges by one of their ends.
struct Sorted {
  Tensor row, order;

  EdgeOrder pointers() const {
    return {static_cast<const int64_t*>(row.const_data_ptr()),
            static_cast<const int64_t*>(order.const_data_ptr())};
  }
};

// Stable, so that the sums over a node's edges keep the list's order.
Sorted sorted(const Tensor& edge_index, int64_t end) {
  using torch::stable::detail::from;
  const Tensor ends = torch::stable::contiguous(torch::stable::select(edge_index, 0, end));
  std::array<StableIValue, 4> stack = {from(ends), from(std::optional<bool>(true)), from(int64_t{0}),
                                       from(false)};
  if (torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
    throw std::runtime_error("l0sign_cuda: torch could not sort edge_index");
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace

void set_tf32_source(bool (*allowed)()) { tf32_source = allowed; }

template <class A>
void forward(const CompleteGraph<A>& given, const Tensor& like) {
  const CompleteGraph<A> problem = with_precision(given);
  const Place place(like);
  place(forward_workspace(problem),
        [&](void* workspace, cudaStream_t stream) { return forward(problem, workspace, stream); });
}

template <class A>
void backward(const CompleteGraph<A>& given, const Tensor& like) {
  const CompleteGraph<A> problem = with_precision(given);
  const Place place(like);
  place(backward_workspace(problem),
        [&](void* workspace, cudaStream_t stream) { return backward(problem, workspace, stream); });
}

template <class A>
void forward(const EdgeList<A>& problem, const Tensor& edge_index) {
  const Place place(edge_index);
  const Sorted by_target = sorted(edge_index, 1);
  place(forward_workspace(problem), [&](void* workspace, cudaStream_t stream) {
    return forward(problem, by_target.pointers(), workspace, stream);
  });
}

template <class A>
void backward(const EdgeList<A>& problem, const Tensor& edge_index) {
  const Place place(edge_index);
  const Sorted by_target = sorted(edge_index, 1), by_source = sorted(edge_index, 0);
  place(backward_workspace(problem), [&](void* workspace, cudaStream_t stream) {
    return backward(problem, by_target.pointers(), by_source.pointers(), workspace, stream);
  });
}

void gate_noise(const Graphs& graphs, const int64_t* seed, int64_t num_pairs, float* noise,
                const Tensor& like) {
  const int64_t pair_offsets = graphs.offsets ? graphs.count + 1 : 0;
  const Place place(like);
  place(pair_offsets * sizeof(int64_t), [&](void* workspace, cudaStream_t stream) {
    return gate_noise(graphs, seed, static_cast<int64_t*>(workspace), num_pairs, noise, stream);
  });
}

#define INSTANTIATE(A)                                            \
  template void forward(const CompleteGraph<A>&, const Tensor&);  \
  template void backward(const CompleteGraph<A>&, const Tensor&); \
  template void forward(const EdgeList<A>&, const Tensor&);       \
  template void backward(const EdgeList<A>&, const Tensor&);
INSTANTIATE(float)
INSTANTIATE(double)

}  // namespace l0sign::cuda
