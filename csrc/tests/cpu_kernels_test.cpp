// The CPU kernels without torch or Python, to be run under AddressSanitizer and UndefinedBehaviorSanitizer:
// every array is allocated to its exact size and filled with NaN, results are compared with a plain double
// loop over pairs, and gradients with central differences of that loop's objective.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "../core/pair.h"
#include "../core/philox.h"
#include "../cpu/dispatch.h"
#include "../cpu/run.h"

// The one function of torch that the CPU code calls: here, in order and on one thread.
extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t,
                                      void (*run)(int64_t, int64_t, void*), void* context) {
  for (int64_t k = begin; k < end; ++k) run(k, k + 1, context);
  return 0;
}

namespace {

using namespace l0sign;

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED: %s\n", what.c_str());
}

template <class A>
using Array = std::unique_ptr<A[]>;

template <class A>
Array<A> poisoned(int64_t size) {
  Array<A> a(new A[size]);
  for (int64_t k = 0; k < size; ++k) a[k] = std::numeric_limits<A>::quiet_NaN();
  return a;
}

// Central differences of small steps need more digits than double has: the smaller the step, the less likely
// that a kink lies in it.
using Real = long double;

// The inputs, exact; a problem is made from them in either type.
struct Inputs {
  std::vector<int64_t> offsets = {0};
  int64_t d, H, b, He;
  bool gated, noisy, l2;
  // Pooled: node k has row ids[k] of the nodes and edge nodes, a permutation, and the value x[k].
  bool pooled = false;
  std::vector<int64_t> ids;
  std::vector<Real> x;
  // The risk of a head, the last two of the values, on the pooled sums; the L0 penalty weighs weight_l0.
  bool risk = false;
  Loss loss = Loss::bce;
  std::vector<Real> target;
  Aggregation aggregation;
  int64_t seed = 0x123456789ABCDEF;
  // nodes, edge nodes, message (W1, b1, W2, b2), edge (W1, b1, W2, b2), with a risk head and bias
  std::vector<std::vector<Real>> values;
  // weights of the objective: of out (or pooled), l0, l2
  std::vector<Real> weight_out, weight_l0, weight_l2;

  int64_t graphs() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int64_t nodes() const { return offsets.back(); }
  int64_t row(int64_t node) const { return pooled ? ids[node] : node; }
  Real value(int64_t node) const { return pooled ? x[node] : 1; }
};

struct Results {
  std::vector<Real> out, pooled, l0, l2;
  std::vector<int64_t> num_edges;
};

std::vector<Real> perceptron(const Inputs& in, int first, const std::vector<Real>& x, int64_t hidden,
                             int64_t out) {
  const auto &w1 = in.values[first], &b1 = in.values[first + 1], &w2 = in.values[first + 2],
             &b2 = in.values[first + 3];
  const int64_t size = static_cast<int64_t>(x.size());
  std::vector<Real> z = b2;
  for (int64_t h = 0; h < hidden; ++h) {
    Real y = b1[h];
    for (int64_t k = 0; k < size; ++k) y += w1[h * size + k] * x[k];
    for (int64_t k = 0; k < out && y > 0; ++k) z[k] += w2[k * hidden + h] * y;
  }
  return z;
}

// Eq. 4 and Eq. 6, pair by pair.
Results plain(const Inputs& in) {
  Results r;
  r.out.assign(in.nodes() * in.d, 0);
  for (int64_t g = 0; g < in.graphs(); ++g) {
    const int64_t begin = in.offsets[g], n = in.offsets[g + 1] - begin;
    std::vector<int64_t> degree(n, 0);
    Real l0 = 0, l2 = 0;
    int64_t edges = 0;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i; j < n; ++j) {
        const auto product = [&](const std::vector<Real>& rows, int64_t size) {
          std::vector<Real> p(size);
          for (int64_t k = 0; k < size; ++k)
            p[k] = rows[in.row(begin + i) * size + k] * rows[in.row(begin + j) * size + k];
          return p;
        };
        Real gate = 1;
        if (in.gated) {
          const Real a = perceptron(in, 6, product(in.values[1], in.b), in.He, 1)[0];
          const Real u = gate_uniform(in.seed, g, pair_index(i, j, n));
          const Real s = in.noisy ? (std::log(u) - std::log1p(-u) + a) / (Real(2) / 3) : a;
          gate = std::min(Real(1), std::max(Real(0), Real(12) / 10 / (1 + std::exp(-s)) - Real(1) / 10));
          l0 += 1 / (1 + std::exp(-(a - Real(2) / 3 * std::log(Real(1) / 11))));
        }
        if (gate == 0) continue;
        ++edges;
        ++degree[i];
        if (i != j) ++degree[j];
        std::vector<Real> of_nodes = product(in.values[0], in.d);
        for (Real& p : of_nodes) p *= in.value(begin + i) * in.value(begin + j);
        const std::vector<Real> z = perceptron(in, 2, of_nodes, in.H, in.d);
        for (int64_t k = 0; k < in.d; ++k) {
          r.out[(begin + i) * in.d + k] += gate * z[k];
          if (i != j) r.out[(begin + j) * in.d + k] += gate * z[k];
          l2 += z[k] * z[k];
        }
      }
    for (int64_t i = 0; i < n; ++i) {
      const Real divisor = in.aggregation == Aggregation::sum    ? 1
                           : in.aggregation == Aggregation::mean ? static_cast<Real>(n)
                                                                 : static_cast<Real>(degree[i]);
      for (int64_t k = 0; k < in.d; ++k) r.out[(begin + i) * in.d + k] *= divisor > 0 ? 1 / divisor : 0;
    }
    for (int64_t k = 0; k < in.d && in.pooled; ++k) {
      r.pooled.push_back(0);
      for (int64_t i = begin; i < begin + n; ++i) r.pooled.back() += in.x[i] * r.out[i * in.d + k] / n;
    }
    r.l0.push_back(l0);
    r.l2.push_back(l2);
    r.num_edges.push_back(edges);
  }
  return r;
}

std::vector<Real> logits(const Inputs& in, const Results& r) {
  std::vector<Real> y(in.graphs(), in.values[11][0]);
  for (int64_t g = 0; g < in.graphs(); ++g)
    for (int64_t k = 0; k < in.d; ++k) y[g] += in.values[10][k] * r.pooled[g * in.d + k];
  return y;
}

Real empirical_risk(const Inputs& in, const Results& r) {
  const std::vector<Real> y = logits(in, r);
  Real sum = 0;
  for (int64_t g = 0; g < in.graphs(); ++g) {
    const Real t = in.target[g];
    const Real bce = t * std::log1p(std::exp(-y[g])) + (1 - t) * std::log1p(std::exp(y[g]));
    sum += (in.loss == Loss::mse ? (y[g] - t) * (y[g] - t) : bce) + in.weight_l0[g] * r.l0[g];
  }
  return in.graphs() ? sum / in.graphs() : 0;
}

Real objective(const Inputs& in) {
  const Results r = plain(in);
  if (in.risk) return empirical_risk(in, r);
  Real sum = 0;
  const std::vector<Real>& out = in.pooled ? r.pooled : r.out;
  for (size_t k = 0; k < out.size(); ++k) sum += in.weight_out[k] * out[k];
  for (size_t g = 0; g < r.l0.size(); ++g) {
    if (in.gated) sum += in.weight_l0[g] * r.l0[g];
    if (in.l2) sum += in.weight_l2[g] * r.l2[g];
  }
  return sum;
}

template <class A>
Array<A> copy(const std::vector<Real>& from) {
  Array<A> a(new A[from.size()]);
  for (size_t k = 0; k < from.size(); ++k) a[k] = static_cast<A>(from[k]);
  return a;
}

bool close(Real x, Real y, Real scale, Real tolerance) { return std::abs(x - y) <= tolerance * (1 + scale); }

template <class A>
bool all_close(const A* x, const std::vector<Real>& y, Real tolerance) {
  Real scale = 0;
  for (Real v : y) scale = std::max(scale, std::abs(v));
  for (size_t k = 0; k < y.size(); ++k)
    if (!close(x[k], y[k], scale, tolerance)) return false;  // also for NaN
  return true;
}

// A random direction through input v: the derivative along it against central differences. A kink
// of a relu or a clamp may lie inside a step, but hardly inside all of them.
template <class A>
void check_gradient(const Inputs& in, size_t v, const A* gradient, const std::string& name,
                    std::mt19937& random) {
  std::normal_distribution<double> normal;
  std::vector<Real> direction(in.values[v].size());
  Real derivative = 0, size = 0;
  for (size_t k = 0; k < direction.size(); ++k) {
    direction[k] = normal(random);
    derivative += direction[k] * gradient[k];
    size += std::abs(direction[k] * gradient[k]);
  }
  bool ok = false;
  for (Real step = 1e-6; step > 5e-11 && !ok; step /= 10) {
    Inputs up = in, down = in;
    for (size_t k = 0; k < direction.size(); ++k) {
      up.values[v][k] += step * direction[k];
      down.values[v][k] -= step * direction[k];
    }
    ok =
        close(derivative, (objective(up) - objective(down)) / (2 * step), size, sizeof(A) == 8 ? 1e-6 : 1e-4);
  }
  check(ok, name + ": gradient of input " + std::to_string(v));
}

// A problem of these inputs, and the arrays that it points to; no results yet.
template <class A>
struct Arrays {
  std::vector<Array<A>> values, gradients;
  Array<int64_t> offsets;
  Array<A> x;
  CompleteGraph<A> problem = {};

  explicit Arrays(const Inputs& in) : offsets(new int64_t[in.graphs() + 1]), x(copy<A>(in.x)) {
    for (const auto& v : in.values) values.push_back(copy<A>(v));
    std::copy(in.offsets.begin(), in.offsets.end(), offsets.get());
    const auto mlp = [&](int first, int64_t size, int64_t hidden, int64_t out) {
      return Perceptron<A>{values[first].get(),
                           values[first + 1].get(),
                           values[first + 2].get(),
                           values[first + 3].get(),
                           size,
                           hidden,
                           out};
    };
    CompleteGraph<A>& p = problem;
    p.graphs = {offsets.get(), 0, in.graphs(), in.nodes()};
    p.aggregation = in.aggregation;
    p.gate = {2.0 / 3, -0.1, 1.1, in.noisy ? &in.seed : nullptr};
    p.message = mlp(2, in.d, in.H, in.d);
    p.nodes = values[0].get();
    if (in.gated) {
      p.edge = mlp(6, in.b, in.He, 1);
      p.edge_nodes = values[1].get();
    }
    if (in.pooled) p.pools = true, p.ids = in.ids.data(), p.values = x.get();
  }

  void want_gradients(const Inputs& in) {
    for (const auto& v : in.values) gradients.push_back(poisoned<A>(static_cast<int64_t>(v.size())));
    problem.grad_nodes = gradients[0].get();
    problem.grad_message = {gradients[2].get(), gradients[3].get(), gradients[4].get(), gradients[5].get()};
    if (!in.gated) return;
    problem.grad_edge_nodes = gradients[1].get();
    problem.grad_edge = {gradients[6].get(), gradients[7].get(), gradients[8].get(), gradients[9].get()};
  }

  void check_gradients(const Inputs& in, const std::string& name, std::mt19937& random) {
    for (int v = 0; v < 2 && in.pooled; ++v) {
      // Gradients come by position: to the rows of the tables.
      const int64_t size = v == 0 ? in.d : in.b;
      auto rows = poisoned<A>(in.nodes() * size);
      for (int64_t k = 0; k < in.nodes(); ++k)
        std::copy_n(gradients[v].get() + k * size, size, rows.get() + in.ids[k] * size);
      gradients[v] = std::move(rows);
    }
    for (size_t v = 0; v < in.values.size(); ++v) {
      const bool edge = v == 1 || (v >= 6 && v < 10);
      if (!edge || in.gated) check_gradient(in, v, gradients[v].get(), name, random);
    }
  }
};

template <class A>
constexpr double kTolerance = sizeof(A) == 8 ? 1e-11 : 2e-5;

// `kept_bytes`: of memory for what the forward leaves for the backward.
template <class A>
void run(const Inputs& in, const std::string& name, std::mt19937& random, int64_t kept_bytes) {
  const double tolerance = kTolerance<A>;
  const int64_t N = in.nodes(), G = in.graphs();
  Arrays<A> arrays(in);
  CompleteGraph<A>& p = arrays.problem;
  auto out = poisoned<A>((in.pooled ? G : N) * in.d), l0 = poisoned<A>(G), l2 = poisoned<A>(G);
  std::vector<int64_t> num_edges(G, -1);
  std::vector<int32_t> degree(N, -1);
  (in.pooled ? p.pooled : p.out) = out.get();
  p.l0 = l0.get();
  p.l2 = in.l2 ? l2.get() : nullptr;
  p.num_edges = num_edges.data();
  // A pooled sum has one pass over the gates more where it needs the degrees.
  p.degree = in.pooled && in.aggregation != Aggregation::neighbor_mean ? nullptr : degree.data();
  const std::unique_ptr<void, decltype(&std::free)> kept(std::aligned_alloc(64, kept_bytes + 64), std::free);
  std::memset(kept.get(), 0xFF, kept_bytes);  // NaN
  if (kept_bytes > 0) p.kept = kept.get(), p.kept_bytes = kept_bytes;
  cpu::forward(p);
  const Results expected = plain(in);
  check(all_close(out.get(), in.pooled ? expected.pooled : expected.out, tolerance), name + ": out");
  if (in.gated) check(all_close(l0.get(), expected.l0, tolerance), name + ": l0");
  if (in.l2) check(all_close(l2.get(), expected.l2, tolerance), name + ": l2");
  check(num_edges == expected.num_edges, name + ": num_edges");

  const auto weight_out = copy<A>(in.weight_out), weight_l0 = copy<A>(in.weight_l0),
             weight_l2 = copy<A>(in.weight_l2);
  (in.pooled ? p.grad_pooled : p.grad_out) = weight_out.get();
  p.grad_l0 = in.gated ? weight_l0.get() : nullptr;
  p.grad_l2 = in.l2 ? weight_l2.get() : nullptr;
  arrays.want_gradients(in);
  cpu::backward(p);
  arrays.check_gradients(in, name, random);
}

template <class A>
void run_risk(const Inputs& in, const std::string& name, std::mt19937& random) {
  const int64_t N = in.nodes(), G = in.graphs();
  Arrays<A> arrays(in);
  CompleteGraph<A>& p = arrays.problem;
  auto l0 = poisoned<A>(G), y = poisoned<A>(G), grad_y = poisoned<A>(G), risk = poisoned<A>(1);
  std::vector<int64_t> num_edges(G, -1);
  std::vector<int32_t> degree(N, -1);
  p.l0 = l0.get();
  p.num_edges = num_edges.data();
  p.degree = in.aggregation == Aggregation::neighbor_mean ? degree.data() : nullptr;
  arrays.want_gradients(in);
  const auto target = copy<A>(in.target), weight_l0 = copy<A>(in.weight_l0);
  cpu::risk(p, {in.loss, arrays.values[10].get(), arrays.values[11].get(), target.get(), weight_l0.get(),
                risk.get(), y.get(), grad_y.get(), arrays.gradients[10].get(), arrays.gradients[11].get()});
  const Results expected = plain(in);
  check(all_close(y.get(), logits(in, expected), kTolerance<A>), name + ": logits");
  check(all_close(l0.get(), expected.l0, kTolerance<A>), name + ": l0");
  check(all_close(risk.get(), {empirical_risk(in, expected)}, kTolerance<A>), name + ": risk");
  check(num_edges == expected.num_edges, name + ": num_edges");
  arrays.check_gradients(in, name, random);
}

template <class A>
void run_edges(const Inputs& in, const std::string& name, std::mt19937& random) {
  // All ordered pairs of each graph, shuffled: the complete graph again, by another road.
  std::vector<int64_t> source, target;
  for (int64_t g = 0; g < in.graphs(); ++g)
    for (int64_t i = in.offsets[g]; i < in.offsets[g + 1]; ++i)
      for (int64_t j = in.offsets[g]; j < in.offsets[g + 1]; ++j) source.push_back(i), target.push_back(j);
  for (size_t k = source.size(); k > 1; --k) {
    const size_t other = random() % k;
    std::swap(source[k - 1], source[other]);
    std::swap(target[k - 1], target[other]);
  }
  const int64_t N = in.nodes(), E = static_cast<int64_t>(source.size());
  std::vector<Array<A>> values;
  for (const auto& v : in.values) values.push_back(copy<A>(v));
  EdgeList<A> p = {};
  p.graphs = {in.offsets.data(), 0, in.graphs(), N};
  p.aggregation = in.aggregation;
  p.message = {values[2].get(), values[3].get(), values[4].get(), values[5].get(), in.d, in.H, in.d};
  p.nodes = values[0].get();
  p.source = source.data();
  p.target = target.data();
  p.num_edges = E;
  auto out = poisoned<A>(N * in.d);
  p.out = out.get();
  cpu::forward(p);
  Inputs ungated = in;
  ungated.gated = ungated.l2 = false;
  check(all_close(out.get(), plain(ungated).out, sizeof(A) == 8 ? 1e-11 : 2e-5), name + ": out by edge list");

  const auto grad_out = copy<A>(in.weight_out);
  auto grad_nodes = poisoned<A>(N * in.d), grad_weight = poisoned<A>(E);
  const auto ones = copy<A>(std::vector<Real>(E, 1));
  p.weight = ones.get();
  p.grad_out = grad_out.get();
  p.grad_nodes = grad_nodes.get();
  p.grad_weight = grad_weight.get();
  std::vector<Array<A>> gradients;
  for (int v = 2; v < 6; ++v) gradients.push_back(poisoned<A>(static_cast<int64_t>(in.values[v].size())));
  p.grad_message = {gradients[0].get(), gradients[1].get(), gradients[2].get(), gradients[3].get()};
  cpu::backward(p);
  check_gradient(ungated, 0, grad_nodes.get(), name + " by edge list", random);
  // The output is linear in the weights, and they are all one: sum_e w_e dL/dw_e = L.
  Real of_weights = 0, size = 0;
  for (int64_t e = 0; e < E; ++e) of_weights += grad_weight[e], size += std::abs(grad_weight[e]);
  check(close(of_weights, objective(ungated), size, sizeof(A) == 8 ? 1e-9 : 1e-4),
        name + ": gradient of edge weights");
}

void run_case(const std::vector<int64_t>& sizes, int64_t d, int64_t H, int64_t b, int64_t He, int options,
              std::mt19937& random) {
  Inputs in;
  in.d = d, in.H = H, in.b = b, in.He = He;
  in.gated = options & 1, in.noisy = options & 2, in.l2 = options & 4;
  in.aggregation = static_cast<Aggregation>(options / 8);
  for (int64_t n : sizes) in.offsets.push_back(in.offsets.back() + n);
  std::normal_distribution<double> normal;
  const auto fill = [&](int64_t size, double deviation) {
    std::vector<Real> v(size);
    // Exact in float32, so that both types see the same inputs.
    for (Real& x : v) x = static_cast<float>(deviation * normal(random));
    return v;
  };
  const int64_t N = in.nodes();
  for (int64_t size : {N * d, N * b, H * d, H, d * H, d, He * b, He, He, int64_t{1}})
    in.values.push_back(fill(size, 0.7));
  in.weight_out = fill(N * d, 1), in.weight_l0 = fill(in.graphs(), 1), in.weight_l2 = fill(in.graphs(), 0.1);
  std::string name = cpu::capability() + " d=" + std::to_string(d) + " H=" + std::to_string(H) +
                     " b=" + std::to_string(b) + " He=" + std::to_string(He) +
                     " options=" + std::to_string(options) + " n=";
  for (size_t k = 0; k < sizes.size() && k < 6; ++k) name += (k ? "," : "") + std::to_string(sizes[k]);
  // With room for nothing, some graphs, all.
  for (int64_t kept : {0, 64 << 10, 4 << 20}) {
    run<double>(in, name + " kept=" + std::to_string(kept) + " float64", random, kept);
    run<float>(in, name + " kept=" + std::to_string(kept) + " float32", random, kept);
  }
  Inputs pooled = in;
  pooled.pooled = true;
  pooled.ids.resize(N);
  std::iota(pooled.ids.begin(), pooled.ids.end(), int64_t{0});
  for (int64_t k = N; k > 1; --k) std::swap(pooled.ids[k - 1], pooled.ids[random() % k]);
  pooled.x = fill(N, 1);
  pooled.weight_out = fill(in.graphs() * d, 1);
  for (int64_t kept : {0, 64 << 10, 4 << 20}) {
    run<double>(pooled, name + " pooled kept=" + std::to_string(kept) + " float64", random, kept);
    run<float>(pooled, name + " pooled kept=" + std::to_string(kept) + " float32", random, kept);
  }
  if (in.gated && !in.l2) {
    pooled.risk = true;
    pooled.loss = options / 8 % 2 ? Loss::mse : Loss::bce;
    pooled.values.push_back(fill(d, 1)), pooled.values.push_back(fill(1, 1));
    pooled.target = fill(in.graphs(), 1);
    run_risk<double>(pooled, name + " risk float64", random);
    run_risk<float>(pooled, name + " risk float32", random);
  }
  if (options % 8 == 0) {
    run_edges<double>(in, name + " float64", random);
    run_edges<float>(in, name + " float32", random);
  }
}

}  // namespace

int main() {
  std::mt19937 random(7);
  const std::vector<std::vector<int64_t>> batches = {{},
                                                     {0},
                                                     {1},
                                                     {2, 0, 3},
                                                     std::vector<int64_t>(17, 3),
                                                     {9, 9, 9, 9, 9, 9, 9, 1},
                                                     {33, 70},
                                                     {5, 40, 2, 17, 0, 1, 16},
                                                     {2, 9, 15, 16, 18, 25, 32, 34, 47, 48}};
  const int64_t shapes[][4] = {{8, 32, 8, 32}, {1, 1, 1, 1}, {5, 7, 3, 9}, {16, 12, 4, 6}};
  for (const auto& sizes : batches)
    for (const auto& s : shapes)
      for (int options = 0; options < 24; ++options) {
        if (options & 2 && !(options & 1)) continue;  // noise only with gates
        run_case(sizes, s[0], s[1], s[2], s[3], options, random);
      }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
