// The definition in plain double loops, one pair after the other: Eq. 4 and Eq. 6 with all gradients, and a
// given list of edges. Independent of every kernel; nothing in here is fast.
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/pair.h"
#include "core/philox.h"
#include "problem.h"

namespace l0sign::plain {

using Values = std::vector<double>;

constexpr double kTemperature = 2.0 / 3, kGamma = -0.1, kZeta = 1.1;

// The float arguments, in the order of the operators; also their gradients.
struct Leaves {
  Values nodes, edge_nodes;    // of a bag as they are looked up and scaled
  Values message[4], edge[4];  // W1, b1, W2, b2
  Values weight;               // of the edges of a list
};

struct Case {
  std::string name;
  int64_t d, H, b, He;
  std::vector<int64_t> offsets;
  std::vector<int64_t> source, target;  // a list of edges, instead of all pairs
  bool gated = true, noisy = true, l2 = true;
  Aggregation aggregation = Aggregation::mean;
  int64_t seed = 0x123456789ABCDEF;
  Leaves leaves;
  // What the results receive.
  Values grad_out, grad_l0, grad_l2, grad_gates, grad_logits;

  int64_t graphs() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t num_nodes() const { return offsets.back(); }
  int64_t num_pairs() const {
    int64_t pairs = 0;
    for (int64_t g = 0; g < graphs(); ++g) pairs += pair_count(offsets[g + 1] - offsets[g]);
    return pairs;
  }
};

struct Results {
  Values out, l0, l2, gates, logits;
  std::vector<int64_t> num_edges, degree;
  Leaves grad;
};

// ---- One perceptron on one input ----

struct Pass {
  Values x, hidden, out;  // the input, the hidden layer before the relu, the output
};

inline Pass forward(const Values (&m)[4], Values x) {
  const size_t hidden = m[1].size(), out = m[3].size(), in = x.size();
  Pass pass = {std::move(x), m[1], m[3]};
  for (size_t h = 0; h < hidden; ++h)
    for (size_t k = 0; k < in; ++k) pass.hidden[h] += m[0][h * in + k] * pass.x[k];
  for (size_t k = 0; k < out; ++k)
    for (size_t h = 0; h < hidden; ++h) pass.out[k] += m[2][k * hidden + h] * std::max(0.0, pass.hidden[h]);
  return pass;
}

// Adds to the gradients of the weights; returns that of the input.
inline Values backward(const Values (&m)[4], const Pass& pass, const Values& grad_out, Values (&grad)[4]) {
  const size_t hidden = m[1].size(), in = pass.x.size();
  Values grad_x(in, 0.0);
  for (size_t k = 0; k < grad_out.size(); ++k) {
    grad[3][k] += grad_out[k];
    for (size_t h = 0; h < hidden; ++h)
      grad[2][k * hidden + h] += grad_out[k] * std::max(0.0, pass.hidden[h]);
  }
  for (size_t h = 0; h < hidden; ++h) {
    if (pass.hidden[h] <= 0) continue;
    double sum = 0;
    for (size_t k = 0; k < grad_out.size(); ++k) sum += m[2][k * hidden + h] * grad_out[k];
    grad[1][h] += sum;
    for (size_t k = 0; k < in; ++k) {
      grad[0][h * in + k] += sum * pass.x[k];
      grad_x[k] += sum * m[0][h * in + k];
    }
  }
  return grad_x;
}

inline Values row(const Values& rows, int64_t at, int64_t size) {
  return Values(rows.begin() + at * size, rows.begin() + (at + 1) * size);
}

inline Values product(const Values& rows, int64_t i, int64_t j, int64_t size) {
  Values p = row(rows, i, size);
  for (int64_t k = 0; k < size; ++k) p[k] *= rows[j * size + k];
  return p;
}

inline void add_product_gradient(const Values& rows, int64_t i, int64_t j, const Values& grad, Values& to) {
  const int64_t size = static_cast<int64_t>(grad.size());
  for (int64_t k = 0; k < size; ++k) {
    to[i * size + k] += grad[k] * rows[j * size + k];
    to[j * size + k] += grad[k] * rows[i * size + k];
  }
}

inline double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

inline Leaves zeros_like(const Leaves& leaves) {
  Leaves zeros = leaves;
  const auto clear = [](Values& v) { std::fill(v.begin(), v.end(), 0.0); };
  clear(zeros.nodes), clear(zeros.edge_nodes), clear(zeros.weight);
  for (int k = 0; k < 4; ++k) clear(zeros.message[k]), clear(zeros.edge[k]);
  return zeros;
}

inline double scale(Aggregation aggregation, int64_t n, int64_t degree) {
  const int64_t divisor = aggregation == Aggregation::sum ? 1 : aggregation == Aggregation::mean ? n : degree;
  return divisor > 0 ? 1.0 / static_cast<double>(divisor) : 0.0;
}

// ---- All pairs ----

// Forward, and backward for the gradients in the case. `message` false: gates only, as edge_gates.
inline Results complete_graph(const Case& c, bool message = true) {
  Results r;
  const Leaves& v = c.leaves;
  r.grad = zeros_like(v);
  r.out.assign(c.num_nodes() * c.d, 0.0);
  r.degree.assign(c.num_nodes(), 0);
  int64_t pair_index = 0;
  for (int64_t g = 0; g < c.graphs(); ++g) {
    const int64_t begin = c.offsets[g], end = c.offsets[g + 1], n = end - begin;
    struct Pair {
      int64_t i, j, index;
      Pass edge, message;
      double gate, slope, open;
    };
    std::vector<Pair> pairs;
    double l0 = 0, l2 = 0;
    int64_t edges = 0;
    for (int64_t i = begin; i < end; ++i)
      for (int64_t j = i; j < end; ++j, ++pair_index) {
        Pair p = {i, j, pair_index, {}, {}, 1, 0, 0};
        if (c.gated) {
          p.edge = forward(v.edge, product(v.edge_nodes, i, j, c.b));
          const double a = p.edge.out[0];
          const double u = gate_uniform(c.seed, g, l0sign::pair_index(i - begin, j - begin, n));
          const double beta = c.noisy ? kTemperature : 1;
          const double s = sigmoid(((c.noisy ? std::log(u) - std::log(1 - u) : 0) + a) / beta);
          const double stretched = s * (kZeta - kGamma) + kGamma;
          p.gate = std::min(1.0, std::max(0.0, stretched));
          p.slope = stretched > 0 && stretched < 1 ? (kZeta - kGamma) * s * (1 - s) / beta : 0;
          p.open = sigmoid(a - kTemperature * std::log(-kGamma / kZeta));
          l0 += p.open;
          r.gates.push_back(p.gate), r.logits.push_back(a);
        }
        if (p.gate > 0) {
          ++edges, ++r.degree[i];
          if (i != j) ++r.degree[j];
          if (message) {
            p.message = forward(v.message, product(v.nodes, i, j, c.d));
            for (double z : p.message.out) l2 += z * z;
          }
        }
        pairs.push_back(p);
      }
    r.l0.push_back(l0), r.l2.push_back(l2), r.num_edges.push_back(edges);
    const auto scaled = [&](int64_t i) { return scale(c.aggregation, n, r.degree[i]); };
    for (const Pair& p : pairs) {
      if (message && p.gate > 0)
        for (int64_t k = 0; k < c.d; ++k) {
          r.out[p.i * c.d + k] += scaled(p.i) * p.gate * p.message.out[k];
          if (p.i != p.j) r.out[p.j * c.d + k] += scaled(p.j) * p.gate * p.message.out[k];
        }
      double grad_gate = c.grad_gates.empty() ? 0 : c.grad_gates[p.index];
      if (message && p.gate > 0) {
        Values grad_z(c.d, 0.0);
        for (int64_t k = 0; k < c.d; ++k) {
          double both = 0;
          if (!c.grad_out.empty()) {
            both = scaled(p.i) * c.grad_out[p.i * c.d + k];
            if (p.i != p.j) both += scaled(p.j) * c.grad_out[p.j * c.d + k];
          }
          grad_gate += both * p.message.out[k];
          grad_z[k] = p.gate * both + (c.grad_l2.empty() ? 0 : 2 * c.grad_l2[g] * p.message.out[k]);
        }
        add_product_gradient(v.nodes, p.i, p.j, backward(v.message, p.message, grad_z, r.grad.message),
                             r.grad.nodes);
      }
      if (!c.gated) continue;
      double grad_logit = grad_gate * p.slope;
      if (!c.grad_l0.empty()) grad_logit += c.grad_l0[g] * p.open * (1 - p.open);
      if (!c.grad_logits.empty()) grad_logit += c.grad_logits[p.index];
      add_product_gradient(v.edge_nodes, p.i, p.j, backward(v.edge, p.edge, {grad_logit}, r.grad.edge),
                           r.grad.edge_nodes);
    }
  }
  return r;
}

// ---- A bag ----

// Nodes of tables: node k is row ids[k], times values[k] where there are values.
struct Bag {
  Case nodes;  // leaves.nodes and leaves.edge_nodes: what is looked up, a row a node
  int64_t num_rows;
  std::vector<int64_t> ids;
  Values node_table, edge_table, values;
  Values grad_pooled;

  double value(int64_t k) const { return values.empty() ? 1 : values[k]; }
};

struct BagResults {
  Results nodes;  // grad.nodes and grad.edge_nodes: of the looked-up row of each node
  Values pooled;
};

// The pooled sum is the mean of x_i v'_i, so that every v'_i receives x_i / n of its gradient.
inline BagResults bag(const Bag& bag) {
  Case c = bag.nodes;
  const auto for_nodes = [&](auto run) {
    for (int64_t g = 0; g < c.graphs(); ++g)
      for (int64_t i = c.offsets[g]; i < c.offsets[g + 1]; ++i)
        run(g, i, bag.value(i) / static_cast<double>(c.offsets[g + 1] - c.offsets[g]));
  };
  c.grad_out.clear();
  if (!bag.grad_pooled.empty()) {
    c.grad_out.assign(c.num_nodes() * c.d, 0.0);
    for_nodes([&](int64_t g, int64_t i, double share) {
      for (int64_t k = 0; k < c.d; ++k) c.grad_out[i * c.d + k] = share * bag.grad_pooled[g * c.d + k];
    });
  }
  BagResults r = {complete_graph(c), Values(c.graphs() * c.d, 0.0)};
  for_nodes([&](int64_t g, int64_t i, double share) {
    for (int64_t k = 0; k < c.d; ++k) {
      r.pooled[g * c.d + k] += share * r.nodes.out[i * c.d + k];
      r.nodes.grad.nodes[i * c.d + k] *= bag.value(i);
    }
  });
  return r;
}

// ---- A list of edges ----

inline Results edge_list(const Case& c) {
  Results r;
  const Leaves& v = c.leaves;
  r.grad = zeros_like(v);
  r.out.assign(c.num_nodes() * c.d, 0.0);
  r.degree.assign(c.num_nodes(), 0);
  std::vector<int64_t> size(c.num_nodes());
  for (int64_t g = 0; g < c.graphs(); ++g)
    for (int64_t i = c.offsets[g]; i < c.offsets[g + 1]; ++i) size[i] = c.offsets[g + 1] - c.offsets[g];
  const auto weight = [&](size_t e) { return v.weight.empty() ? 1.0 : v.weight[e]; };
  for (size_t e = 0; e < c.source.size(); ++e) r.degree[c.target[e]] += weight(e) > 0;
  for (size_t e = 0; e < c.source.size(); ++e) {
    const int64_t s = c.source[e], t = c.target[e];
    const Pass pass = forward(v.message, product(v.nodes, s, t, c.d));
    const double factor = scale(c.aggregation, size[t], r.degree[t]);
    Values grad_z(c.d);
    double grad_weight = 0;
    for (int64_t k = 0; k < c.d; ++k) {
      r.out[t * c.d + k] += factor * weight(e) * pass.out[k];
      grad_z[k] = factor * weight(e) * c.grad_out[t * c.d + k];
      grad_weight += factor * c.grad_out[t * c.d + k] * pass.out[k];
    }
    if (!v.weight.empty()) r.grad.weight[e] = grad_weight;
    add_product_gradient(v.nodes, s, t, backward(v.message, pass, grad_z, r.grad.message), r.grad.nodes);
  }
  return r;
}

// ---- Inputs ----

// Numbers on a coarse binary grid, and hidden biases half a step off the grid of the sums: no pre-activation
// comes near the kink of its relu, and kernels can be held to rounding errors, gradients included.
inline void fill(Case& c, unsigned at) {
  std::mt19937 random(at);
  const auto grid = [&](int64_t size, int64_t reach, double step) {
    Values v(size);
    for (double& x : v)
      x = step * static_cast<double>(static_cast<int64_t>(random() % (2 * reach + 1)) - reach);
    return v;
  };
  const auto network = [&](Values(&m)[4], int64_t in, int64_t hidden, int64_t out) {
    m[0] = grid(hidden * in, 8, 1.0 / 16);
    m[1] = grid(hidden, 128, 1.0 / 256);
    for (double& x : m[1]) x += 1.0 / 512;
    m[2] = grid(out * hidden, 8, 1.0 / 16);
    m[3] = grid(out, 8, 1.0 / 16);
  };
  c.leaves.nodes = grid(c.num_nodes() * c.d, 4, 1.0 / 4);
  c.leaves.edge_nodes = grid(c.num_nodes() * c.b, 4, 1.0 / 4);
  network(c.leaves.message, c.d, c.H, c.d);
  network(c.leaves.edge, c.b, c.He, 1);
  c.grad_out = grid(c.num_nodes() * c.d, 8, 1.0 / 8);
  c.grad_l0 = grid(c.graphs(), 8, 1.0 / 8);
  if (c.l2) c.grad_l2 = grid(c.graphs(), 8, 1.0 / 64);
}

// Nodes that are rows of tables, many of them the same, with values of both signs, on the same grid.
inline Bag as_bag(Case c, int64_t num_rows, bool valued, unsigned at) {
  std::mt19937 random(at);
  const int64_t N = c.num_nodes();
  Bag bag = {{}, num_rows, std::vector<int64_t>(N), Values(num_rows * c.d), Values(num_rows * c.b), {}, {}};
  const auto draw = [&](Values& values, int64_t reach, double step) {
    for (double& x : values)
      x = step * static_cast<double>(static_cast<int64_t>(random() % (2 * reach + 1)) - reach);
  };
  draw(bag.node_table, 4, 1.0 / 4), draw(bag.edge_table, 4, 1.0 / 4);
  if (valued) bag.values.resize(N), draw(bag.values, 2, 1.0);
  bag.grad_pooled.resize(c.graphs() * c.d), draw(bag.grad_pooled, 8, 1.0 / 8);
  for (int64_t k = 0; k < N; ++k) {
    const int64_t id = bag.ids[k] = static_cast<int64_t>(random() % static_cast<unsigned>(num_rows));
    for (int64_t m = 0; m < c.d; ++m)
      c.leaves.nodes[k * c.d + m] = bag.value(k) * bag.node_table[id * c.d + m];
    for (int64_t m = 0; m < c.b; ++m) c.leaves.edge_nodes[k * c.b + m] = bag.edge_table[id * c.b + m];
  }
  c.name += " bag of " + std::to_string(num_rows) + (valued ? " rows, valued" : " rows");
  bag.nodes = std::move(c);
  return bag;
}

}  // namespace l0sign::plain
