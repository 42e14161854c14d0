// CUDA entry points of the operators whose schemas are in ops.cpp. Arguments are validated before, in Python.
#include "cuda/ops_cuda.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>

#include "cuda/gate_noise.h"
#include "cuda/stream.h"

namespace l0sign::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

void check(cudaError_t error, const char* name) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("l0sign_cuda: ") + name + " on CUDA: " + cudaGetErrorString(error));
}

Tensor gate_noise_op(const Tensor& seed, const std::optional<Tensor>& offsets, int64_t graph_size,
                     int64_t num_graphs, int64_t num_pairs) {
  const int32_t device = seed.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor out = torch::stable::new_empty(seed, {num_pairs}, ScalarType::Float);
  Graphs graphs{};
  graphs.graph_size = graph_size;
  graphs.count = num_graphs;
  std::optional<Tensor> pair_offsets;
  if (offsets) {
    graphs.offsets = offsets->const_data_ptr<int64_t>();
    pair_offsets = torch::stable::new_empty(seed, {num_graphs + 1}, ScalarType::Long);
  }
  check(gate_noise(graphs, seed.const_data_ptr<int64_t>(),
                   pair_offsets ? pair_offsets->mutable_data_ptr<int64_t>() : nullptr, num_pairs,
                   out.mutable_data_ptr<float>(), current_stream(device)),
        "gate_noise");
  return out;
}

struct Operator {
  const char* name;
  void (*boxed)(StableIValue*, uint64_t, uint64_t);
};

const Operator kOperators[] = {
    {"gate_noise", TORCH_BOX(&gate_noise_op)},
};

}  // namespace

std::vector<std::string> operators() {
  std::vector<std::string> names;
  for (const Operator& op : kOperators) names.emplace_back(op.name);
  return names;
}

STABLE_TORCH_LIBRARY_IMPL(l0sign_cuda, CUDA, m) {
  for (const Operator& op : kOperators) m.impl(op.name, op.boxed);
}

}  // namespace l0sign::cuda
