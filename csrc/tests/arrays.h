// Arrays as a kernel gets them: of their exact size, and filled with NaNs.
#pragma once
#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "cuda/device.h"
#include "expect.h"

template <class T>
struct Array {
  std::unique_ptr<T[]> values;
  int64_t size = 0;
  T* get() const { return values.get(); }
};

template <class T>
Array<T> poisoned(int64_t size) {
  Array<T> a = {std::unique_ptr<T[]>(new T[size]), size};
  std::memset(static_cast<void*>(a.get()), 0xFF, size * sizeof(T));
  return a;
}

template <class T, class From>
Array<T> copy(const std::vector<From>& from) {
  Array<T> a = poisoned<T>(static_cast<int64_t>(from.size()));
  std::transform(from.begin(), from.end(), a.get(), [](From x) { return static_cast<T>(x); });
  return a;
}

template <class T>
bool same_bits(const Array<T>& x, const Array<T>& y) {
  return x.size == y.size && (x.size == 0 || std::memcmp(x.get(), y.get(), x.size * sizeof(T)) == 0);
}

template <class Launch>
void in_workspace(int64_t bytes, Launch launch) {
  const Array<unsigned char> workspace = poisoned<unsigned char>(bytes);
  expect(launch(workspace.get(), cudaStream_t{}) == cudaSuccess, "a launch");
}
