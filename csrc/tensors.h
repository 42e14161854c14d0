// Tensors and the type that kernels compute in: what the operators' files share.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <stdexcept>
#include <type_traits>
#include <vector>

namespace l0sign {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Of a tensor of A, float or double.
template <class A>
constexpr ScalarType kType = std::is_same_v<A, double> ? ScalarType::Double : ScalarType::Float;

template <class A>
const A* read(const Tensor& t) {
  return static_cast<const A*>(t.const_data_ptr());
}

template <class A>
A* data(const Tensor& t) {
  return static_cast<A*>(t.mutable_data_ptr());
}

inline Tensor empty_of(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

template <class A>
Tensor empty(const Tensor& like, const std::vector<int64_t>& shape) {
  return empty_of(like, shape, kType<A>);
}

// A tensor in another type, if it has one.
inline Tensor in_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

// What was computed in A, in the type of the input it belongs to.
inline Tensor as(const Tensor& result, const Tensor& like) { return in_type(result, like.scalar_type()); }

// Runs f(float{}) or f(double{}) by the type of `t`: half types compute in float32.
template <class Run>
auto by_type(const Tensor& t, Run run) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return run(double{});
    case ScalarType::Float:
    case ScalarType::BFloat16:
    case ScalarType::Half:
      return run(float{});
    default:
      throw std::runtime_error("expected a tensor of dtype float64, float32, bfloat16 or float16");
  }
}

}  // namespace l0sign
