// Checks of operators' arguments: what memory safety rests on, since compiled graphs call the operators
// directly.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace l0sign {

// A macro, so that a message is made only where it is thrown: many are checked at each call.
#define expect(condition, message) ((condition) ? void() : throw std::runtime_error(message))

inline std::string shape_of(const torch::stable::Tensor& t) {
  std::string text = "[";
  for (int64_t k = 0; k < t.dim(); ++k) text += (k ? ", " : "") + std::to_string(t.sizes()[k]);
  return text + "]";
}

inline bool has_shape(const torch::stable::Tensor& t, std::initializer_list<int64_t> shape) {
  return t.dim() == static_cast<int64_t>(shape.size()) &&
         std::equal(shape.begin(), shape.end(), t.sizes().begin());
}

inline void expect_shape(const torch::stable::Tensor& t, const char* name,
                         std::initializer_list<int64_t> shape) {
  if (has_shape(t, shape)) return;
  std::string wanted;
  for (int64_t size : shape) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
  throw std::runtime_error(std::string(name) + ": expected shape [" + wanted + "], got " + shape_of(t));
}

inline void expect_type(const torch::stable::Tensor& t, const char* name,
                        torch::headeronly::ScalarType type) {
  expect(t.scalar_type() == type, std::string(name) + ": unexpected dtype");
}

}  // namespace l0sign
