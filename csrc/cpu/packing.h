// Weights in the layout that the kernels read: tiles of `rows` rows, each tile column by column, padded with
// zeros.
#pragma once
#include <vector>

#include "kernels.h"

namespace l0sign {
namespace cpu {

template <class A>
class Packing {
 public:
  Packing(const CompleteGraph<A>& problem, const Kernels<A>& kernels, bool backward)
      : rows_(kernels.rows), looks_up_(backward && kernels.looks_up) {
    if (problem.nodes) message(problem.message);
    if (problem.edge_nodes) scalar(problem.edge, weights_.edge);
  }
  // Of a message network with the head folded in, and an edge network.
  Packing(const Perceptron<A>& folded, const Perceptron<A>& edge, const Kernels<A>& kernels)
      : rows_(kernels.rows), looks_up_(kernels.looks_up) {
    scalar(folded, weights_.message);
    scalar(edge, weights_.edge);
  }
  Packing(const EdgeList<A>& problem, const Kernels<A>& kernels) : rows_(kernels.rows), looks_up_(false) {
    message(problem.message);
  }

  const PackedWeights<A>& weights() const { return weights_; }

 private:
  void message(const Perceptron<A>& m) {
    const int64_t in = m.in, hidden = m.hidden, out = m.out;
    PackedPerceptron<A>& packed = weights_.message;
    packed.hidden = matrix(hidden, in, [&](int64_t h, int64_t k) { return m.hidden_weight[h * in + k]; });
    packed.hidden_bias = vector(m.hidden_bias, hidden);
    packed.out = matrix(out, hidden, [&](int64_t k, int64_t h) { return m.out_weight[k * hidden + h]; });
    packed.out_bias = vector(m.out_bias, out);
    packed.out_transposed =
        matrix(hidden, out, [&](int64_t h, int64_t k) { return m.out_weight[k * hidden + h]; });
    packed.hidden_transposed =
        matrix(in, hidden, [&](int64_t k, int64_t h) { return m.hidden_weight[h * in + k]; });
  }

  // A network of one output.
  void scalar(const Perceptron<A>& m, PackedPerceptron<A>& packed) {
    const int64_t in = m.in, hidden = m.hidden;
    packed.hidden = matrix(hidden, in, [&](int64_t h, int64_t k) { return m.hidden_weight[h * in + k]; });
    packed.hidden_bias = vector(m.hidden_bias, hidden);
    packed.out = vector(m.out_weight, hidden);
    packed.out_bias = vector(m.out_bias, 1);
    packed.hidden_transposed = matrix(
        in, hidden, [&](int64_t k, int64_t h) { return m.hidden_weight[h * in + k] * m.out_weight[h]; });
    if (looks_up_) packed.subsets = subsets(m);
  }

  // Of every component k and four units h0 .. h0 + 3 the sums of W2[h] W1[h][k] over all subsets of the
  // units, by tiles of `rows` components.
  const A* subsets(const Perceptron<A>& m) {
    constexpr int64_t kLine = 64 / sizeof(A);
    std::vector<A> memory(padded(m.in) * padded(m.hidden) * 4 + kLine);
    const A* const begin = keep(std::move(memory));
    A* next = storage_.back().data() + (-reinterpret_cast<uintptr_t>(begin) % 64) / sizeof(A);
    const A* const aligned = next;
    for (int64_t k0 = 0; k0 < padded(m.in); k0 += rows_)
      for (int64_t h0 = 0; h0 < padded(m.hidden); h0 += 4)
        for (int64_t k = k0; k < k0 + rows_; ++k, next += 16)
          for (int64_t h = h0, size = 1; size < 16; ++h, size *= 2) {
            const bool exists = h < m.hidden && k < m.in;
            const A element = exists ? m.hidden_weight[h * m.in + k] * m.out_weight[h] : A(0);
            for (int64_t subset = 0; subset < size; ++subset) next[size + subset] = next[subset] + element;
          }
    return aligned;
  }

  template <class Element>
  const A* matrix(int64_t rows, int64_t columns, Element element) {
    std::vector<A> packed(padded(rows) * columns);
    A* next = packed.data();
    for (int64_t m0 = 0; m0 < padded(rows); m0 += rows_)
      for (int64_t k = 0; k < columns; ++k)
        for (int64_t m = m0; m < m0 + rows_; ++m) *next++ = m < rows ? element(m, k) : A(0);
    return keep(std::move(packed));
  }

  const A* vector(const A* values, int64_t size) {
    std::vector<A> packed(values, values + size);
    packed.resize(padded(size), A(0));
    return keep(std::move(packed));
  }

  const A* keep(std::vector<A> packed) {
    storage_.push_back(std::move(packed));
    return storage_.back().data();
  }

  int64_t rows_;
  bool looks_up_;
  PackedWeights<A> weights_ = {};
  std::vector<std::vector<A>> storage_;
};

}  // namespace cpu
}  // namespace l0sign
