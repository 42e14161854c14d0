// Device memory that a launch works in: one tensor, made by the operator, divided here.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace l0sign::cuda {

// Hands out arrays one after the other. Without memory it only counts.
class Arena {
 public:
  explicit Arena(void* memory) : memory_(static_cast<unsigned char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    T* array = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
    return array;
  }

  int64_t used() const { return used_; }

 private:
  static constexpr int64_t kAlignment = 256;
  unsigned char* memory_;
  int64_t used_ = 0;
};

}  // namespace l0sign::cuda
