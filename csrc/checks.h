// Checks of operators' arguments: what memory safety rests on, since compiled graphs call the operators
// directly.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace l0sign {

inline void expect(bool condition, const std::string& message) {
  if (!condition) throw std::runtime_error(message);
}

inline std::string shape_of(const torch::stable::Tensor& t) {
  std::string text = "[";
  for (int64_t k = 0; k < t.dim(); ++k) text += (k ? ", " : "") + std::to_string(t.sizes()[k]);
  return text + "]";
}

inline void expect_shape(const torch::stable::Tensor& t, const char* name,
                         const std::vector<int64_t>& shape) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  std::string wanted;
  for (size_t k = 0; k < shape.size(); ++k) {
    same = same && t.sizes()[k] == shape[k];
    wanted += (k ? ", " : "") + std::to_string(shape[k]);
  }
  expect(same, std::string(name) + ": expected shape [" + wanted + "], got " + shape_of(t));
}

inline void expect_type(const torch::stable::Tensor& t, const char* name,
                        torch::headeronly::ScalarType type) {
  expect(t.scalar_type() == type, std::string(name) + ": unexpected dtype");
}

}  // namespace l0sign
