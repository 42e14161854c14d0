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
#define L0SIGN_EXPECT(condition, message) ((condition) ? void() : throw std::runtime_error(message))

inline std::string shape_of(const torch::stable::Tensor& t) {
  std::string text = "[";
  for (int64_t k = 0; k < t.dim(); ++k) text += (k ? ", " : "") + std::to_string(t.sizes()[k]);
  return text + "]";
}

inline std::string device_of(const torch::stable::Tensor& t) {
  if (t.is_cpu()) return "cpu";
  return t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : "another kind of device";
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

inline void expect_same_shape(const torch::stable::Tensor& t, const char* name,
                              const torch::stable::Tensor& as) {
  L0SIGN_EXPECT(t.dim() == as.dim() && std::equal(t.sizes().begin(), t.sizes().end(), as.sizes().begin()),
                std::string(name) + ": expected shape " + shape_of(as) + ", got " + shape_of(t));
}

// Not by the strings, which cost more than a small update.
inline bool same_device(const torch::stable::Tensor& a, const torch::stable::Tensor& b) {
  if (a.is_cpu() || b.is_cpu()) return a.is_cpu() && b.is_cpu();
  return a.is_cuda() && b.is_cuda() && a.get_device_index() == b.get_device_index();
}

inline void expect_device(const torch::stable::Tensor& t, const char* name, const torch::stable::Tensor& of,
                          const char* name_of) {
  if (same_device(t, of)) return;
  throw std::runtime_error(std::string(name) + ": expected a tensor on the device of " + name_of + ", " +
                           device_of(of) + ", got one on " + device_of(t));
}

inline void expect_type(const torch::stable::Tensor& t, const char* name,
                        torch::headeronly::ScalarType type) {
  L0SIGN_EXPECT(t.scalar_type() == type, std::string(name) + ": unexpected dtype");
}

}  // namespace l0sign
