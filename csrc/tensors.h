// Tensors and the type that kernels compute in: what the operators' files share.
#pragma once
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
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

// An uninitialised, contiguous tensor, on the device of `like`. (torch::stable::new_empty goes through
// torch's dispatcher, which takes about a microsecond: a small batch would wait longer for its results than
// for their values.)
inline Tensor empty_of(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size());
  int64_t stride = 1;
  for (size_t k = shape.size(); k-- > 0; stride *= shape[k] > 0 ? shape[k] : 1) strides[k] = stride;
  int32_t device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(),
                                                         strides.data(), dtype, device_type, device_index,
                                                         &made));
  return Tensor(made);
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
