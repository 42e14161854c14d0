// The CUDA kernels on the host executor, under AddressSanitizer and UndefinedBehaviorSanitizer: every array
// has its exact size and is filled with NaNs, results and all gradients are compared with plain double loops,
// and threads run in several orders, which must not change a bit.
#include <array>
#include <limits>
#include <numeric>

#include "arrays.h"
#include "cuda/complete_graph.h"
#include "cuda/edge_list.h"
#include "cuda/gate_noise.h"
#include "cuda/graph_totals.h"
#include "cuda/tiles.h"
#include "cuda/tiles_launch.h"
#include "expect.h"
#include "plain.h"

namespace {

using namespace l0sign;
using plain::Case;
using plain::Values;

// Inputs, results and gradients of one run. What they are called is in `names`, in the order of `results`.
template <class A>
struct Run {
  std::vector<Array<A>> inputs;
  std::vector<Array<int64_t>> indices;
  std::vector<std::string> names;
  std::vector<Array<A>> results;
  Array<int64_t> num_edges;
  Array<int32_t> degree;

  const A* input(const Values& values) {
    inputs.push_back(copy<A>(values));
    return inputs.back().get();
  }
  const int64_t* index(const std::vector<int64_t>& values) {
    indices.push_back(copy<int64_t>(values));
    return indices.back().get();
  }
  A* result(const std::string& name, size_t size) {
    names.push_back(name);
    results.push_back(poisoned<A>(static_cast<int64_t>(size)));
    return results.back().get();
  }
  Perceptron<A> perceptron(const Values (&m)[4], int64_t in, int64_t hidden, int64_t out) {
    return {input(m[0]), input(m[1]), input(m[2]), input(m[3]), in, hidden, out};
  }
  PerceptronGrad<A> gradients(const std::string& name, const Values (&m)[4]) {
    return {result(name + " W1", m[0].size()), result(name + " b1", m[1].size()),
            result(name + " W2", m[2].size()), result(name + " b2", m[3].size())};
  }
  const Array<A>& found(const std::string& name) const {
    return results.at(std::find(names.begin(), names.end(), name) - names.begin());
  }
};

// ---- Comparison ----

// Of the whole array's size, so that single sums that cancel do not count as errors.
template <class A>
void expect_close(const Run<A>& run, const std::string& name, const Values& expected, double tolerance,
                  const std::string& what) {
  const Array<A>& found = run.found(name);
  double size = 1, worst = 0;
  for (double x : expected) size = std::max(size, std::abs(x));
  bool ok = found.size == static_cast<int64_t>(expected.size());
  for (int64_t k = 0; ok && k < found.size; ++k) {
    const double error = std::abs(found.get()[k] - expected[k]) / size;
    worst = std::max(worst, error);
    ok = error <= tolerance;  // also for NaN
    if (!ok) worst = error;
  }
  expect(ok, what + ": " + name + ", error " + std::to_string(worst / tolerance) + " of the tolerance");
}

template <class A>
bool same_bits(const Run<A>& x, const Run<A>& y) {
  bool same = same_bits(x.num_edges, y.num_edges) && same_bits(x.degree, y.degree);
  for (size_t k = 0; k < x.results.size(); ++k) same = same && same_bits(x.results[k], y.results[k]);
  return same;
}

// Runs in every order, expects the same bits, and returns one of the runs.
template <class A, class MakeRun>
Run<A> in_all_orders(const std::string& what, MakeRun make_run) {
  simt::set_order(simt::Order::ascending);
  Run<A> first = make_run();
  for (const simt::Order order : {simt::Order::descending, simt::Order::shuffled}) {
    simt::set_order(order);
    expect(same_bits(first, make_run()), what + ": the order of threads changed a result");
  }
  return first;
}

template <class A>
double tolerance() {
  return sizeof(A) == 8 ? 1e-12 : 1e-5;
}

// What factors of products may be rounded to.
struct Rounded {
  bool tf32 = false;
  HalfType half = HalfType::none;

  std::string name() const {
    const char* halves[] = {"", " bfloat16", " float16"};
    return (tf32 ? " tf32" : "") + std::string(halves[static_cast<int>(half)]);
  }
  // Each factor is off by up to 2^-12 (bfloat16: 2^-9) of itself, and a gradient is a product of several.
  double tolerance() const { return half == HalfType::bfloat16 ? 1e-2 : 1e-3; }
  bool any() const { return tf32 || half != HalfType::none; }
};

// ---- The operators ----

template <class A>
Graphs graphs_of(Run<A>& run, const Case& c, bool dense) {
  if (dense) return {nullptr, c.offsets[1] - c.offsets[0], c.graphs(), c.num_nodes()};
  return {run.index(c.offsets), 0, c.graphs(), c.num_nodes()};
}

// l0_sign or, ungated, sign: forward and backward.
template <class A>
Run<A> run_complete_graph(const Case& c, bool dense, const Rounded& rounded = {}) {
  Run<A> run;
  CompleteGraph<A> p = {};
  p.tf32 = rounded.tf32;
  p.half = rounded.half;
  p.graphs = graphs_of(run, c, dense);
  p.aggregation = c.aggregation;
  p.message = run.perceptron(c.leaves.message, c.d, c.H, c.d);
  p.nodes = run.input(c.leaves.nodes);
  if (c.gated) {
    p.gate = {plain::kTemperature, plain::kGamma, plain::kZeta, c.noisy ? run.index({c.seed}) : nullptr};
    p.edge = run.perceptron(c.leaves.edge, c.b, c.He, 1);
    p.edge_nodes = run.input(c.leaves.edge_nodes);
    p.l0 = run.result("l0", c.graphs());
    run.num_edges = poisoned<int64_t>(c.graphs());
    p.num_edges = run.num_edges.get();
    if (c.aggregation == Aggregation::neighbor_mean) run.degree = poisoned<int32_t>(c.num_nodes());
    p.degree = run.degree.get();
  }
  p.out = run.result("out", c.num_nodes() * c.d);
  if (c.l2) p.l2 = run.result("l2", c.graphs());
  in_workspace(cuda::forward_workspace(p), [&](void* w, cudaStream_t s) { return cuda::forward(p, w, s); });

  p.grad_out = c.grad_out.empty() ? nullptr : run.input(c.grad_out);
  p.grad_l0 = c.gated && !c.grad_l0.empty() ? run.input(c.grad_l0) : nullptr;
  p.grad_l2 = c.grad_l2.empty() ? nullptr : run.input(c.grad_l2);
  if (p.grad_out || p.grad_l2) p.grad_nodes = run.result("nodes", c.leaves.nodes.size());
  p.grad_message = run.gradients("message", c.leaves.message);
  if (c.gated) {
    p.grad_edge_nodes = run.result("edge_nodes", c.leaves.edge_nodes.size());
    p.grad_edge = run.gradients("edge", c.leaves.edge);
  }
  in_workspace(cuda::backward_workspace(p), [&](void* w, cudaStream_t s) { return cuda::backward(p, w, s); });
  return run;
}

template <class A>
void expect_gradients(const Run<A>& run, const std::string& name, const Values (&expected)[4],
                      const std::string& what, double allowed = tolerance<A>()) {
  const char* parts[] = {" W1", " b1", " W2", " b2"};
  for (int k = 0; k < 4; ++k) expect_close(run, name + parts[k], expected[k], allowed, what);
}

template <class A>
void check_complete_graph(const Case& c, const plain::Results& expected, bool dense,
                          const Rounded& rounded = {}) {
  const double allowed = rounded.any() ? rounded.tolerance() : tolerance<A>();
  const std::string what =
      c.name + (sizeof(A) == 8 ? " float64" : " float32") + (dense ? " dense" : "") + rounded.name();
  const Run<A> run = in_all_orders<A>(what, [&] { return run_complete_graph<A>(c, dense, rounded); });
  expect_close(run, "out", expected.out, allowed, what);
  if (c.l2) expect_close(run, "l2", expected.l2, allowed, what);
  if (!c.grad_out.empty() || !c.grad_l2.empty())
    expect_close(run, "nodes", expected.grad.nodes, allowed, what);
  expect_gradients(run, "message", expected.grad.message, what, allowed);
  if (!c.gated) return;
  expect_close(run, "l0", expected.l0, allowed, what);
  expect(std::equal(expected.num_edges.begin(), expected.num_edges.end(), run.num_edges.get()),
         what + ": num_edges");
  if (run.degree.size)
    expect(std::equal(expected.degree.begin(), expected.degree.end(), run.degree.get()), what + ": degree");
  expect_close(run, "edge_nodes", expected.grad.edge_nodes, allowed, what);
  expect_gradients(run, "edge", expected.grad.edge, what, allowed);
}

// l0_sign_bag or, ungated, sign_bag: forward and backward.
template <class A>
Run<A> run_bag(const plain::Bag& bag, bool dense, const Rounded& rounded = {}) {
  const Case& c = bag.nodes;
  Run<A> run;
  CompleteGraph<A> p = {};
  p.tf32 = rounded.tf32;
  p.graphs = graphs_of(run, c, dense);
  p.aggregation = c.aggregation;
  p.message = run.perceptron(c.leaves.message, c.d, c.H, c.d);
  p.pools = true;
  p.nodes = run.input(bag.node_table), p.ids = run.index(bag.ids), p.num_rows = bag.num_rows;
  p.values = bag.values.empty() ? nullptr : run.input(bag.values);
  if (c.gated) {
    p.gate = {plain::kTemperature, plain::kGamma, plain::kZeta, c.noisy ? run.index({c.seed}) : nullptr};
    p.edge = run.perceptron(c.leaves.edge, c.b, c.He, 1);
    p.edge_nodes = run.input(bag.edge_table);
    p.l0 = run.result("l0", c.graphs());
    run.num_edges = poisoned<int64_t>(c.graphs());
    p.num_edges = run.num_edges.get();
    if (c.aggregation == Aggregation::neighbor_mean) run.degree = poisoned<int32_t>(c.num_nodes());
    p.degree = run.degree.size ? run.degree.get() : nullptr;
  }
  p.pooled = run.result("pooled", c.graphs() * c.d);
  if (c.l2) p.l2 = run.result("l2", c.graphs());
  in_workspace(cuda::forward_workspace(p), [&](void* w, cudaStream_t s) { return cuda::forward(p, w, s); });

  p.grad_pooled = bag.grad_pooled.empty() ? nullptr : run.input(bag.grad_pooled);
  p.grad_l0 = c.gated && !c.grad_l0.empty() ? run.input(c.grad_l0) : nullptr;
  p.grad_l2 = c.grad_l2.empty() ? nullptr : run.input(c.grad_l2);
  if (p.grad_pooled || p.grad_l2) p.grad_nodes = run.result("nodes", c.leaves.nodes.size());
  p.grad_message = run.gradients("message", c.leaves.message);
  if (c.gated) {
    p.grad_edge_nodes = run.result("edge_nodes", c.leaves.edge_nodes.size());
    p.grad_edge = run.gradients("edge", c.leaves.edge);
  }
  in_workspace(cuda::backward_workspace(p), [&](void* w, cudaStream_t s) { return cuda::backward(p, w, s); });
  return run;
}

template <class A>
void check_bag(const plain::Bag& bag, bool dense, const Rounded& rounded = {}) {
  const Case& c = bag.nodes;
  const double allowed = rounded.any() ? rounded.tolerance() : tolerance<A>();
  const std::string what =
      c.name + (sizeof(A) == 8 ? " float64" : " float32") + (dense ? " dense" : "") + rounded.name();
  const plain::BagResults expected = plain::bag(bag);
  const Run<A> run = in_all_orders<A>(what, [&] { return run_bag<A>(bag, dense, rounded); });
  expect_close(run, "pooled", expected.pooled, allowed, what);
  if (c.l2) expect_close(run, "l2", expected.nodes.l2, allowed, what);
  if (!bag.grad_pooled.empty() || !c.grad_l2.empty())
    expect_close(run, "nodes", expected.nodes.grad.nodes, allowed, what);
  expect_gradients(run, "message", expected.nodes.grad.message, what, allowed);
  if (!c.gated) return;
  expect_close(run, "l0", expected.nodes.l0, allowed, what);
  expect(std::equal(expected.nodes.num_edges.begin(), expected.nodes.num_edges.end(), run.num_edges.get()),
         what + ": num_edges");
  if (run.degree.size)
    expect(std::equal(expected.nodes.degree.begin(), expected.nodes.degree.end(), run.degree.get()),
           what + ": degree");
  expect_close(run, "edge_nodes", expected.nodes.grad.edge_nodes, allowed, what);
  expect_gradients(run, "edge", expected.nodes.grad.edge, what, allowed);
}

// edge_gates: forward and backward.
template <class A>
Run<A> run_gates(const Case& c, bool dense, const Rounded& rounded = {}) {
  Run<A> run;
  CompleteGraph<A> p = {};
  p.tf32 = rounded.tf32;
  p.half = rounded.half;
  p.graphs = graphs_of(run, c, dense);
  p.gate = {plain::kTemperature, plain::kGamma, plain::kZeta, c.noisy ? run.index({c.seed}) : nullptr};
  p.edge = run.perceptron(c.leaves.edge, c.b, c.He, 1);
  p.edge_nodes = run.input(c.leaves.edge_nodes);
  p.num_pairs = c.grad_gates.empty() ? c.num_pairs() : static_cast<int64_t>(c.grad_gates.size());
  p.gates = run.result("gates", p.num_pairs);
  p.logits = run.result("logits", p.num_pairs);
  in_workspace(cuda::forward_workspace(p), [&](void* w, cudaStream_t s) { return cuda::forward(p, w, s); });
  p.gates = p.logits = nullptr;
  p.grad_gates = c.grad_gates.empty() ? nullptr : run.input(c.grad_gates);
  p.grad_logits = c.grad_logits.empty() ? nullptr : run.input(c.grad_logits);
  p.grad_edge_nodes = run.result("edge_nodes", c.leaves.edge_nodes.size());
  p.grad_edge = run.gradients("edge", c.leaves.edge);
  in_workspace(cuda::backward_workspace(p), [&](void* w, cudaStream_t s) { return cuda::backward(p, w, s); });
  return run;
}

Case with_gate_gradients(Case c, bool of_gates = true, bool of_logits = true) {
  c.grad_out.clear(), c.grad_l0.clear(), c.grad_l2.clear();
  for (int64_t p = 0; p < c.num_pairs(); ++p) {
    if (of_gates) c.grad_gates.push_back(static_cast<double>(p % 7 - 3) / 4);
    if (of_logits) c.grad_logits.push_back(static_cast<double>(p % 5 - 2) / 8);
  }
  return c;
}

template <class A>
void check_gates(const Case& c, bool dense, const Rounded& rounded = {}) {
  const double allowed = rounded.any() ? rounded.tolerance() : tolerance<A>();
  const std::string what = c.name + " gates" + (sizeof(A) == 8 ? " float64" : " float32") +
                           (dense ? " dense" : "") + rounded.name();
  const plain::Results expected = plain::complete_graph(c, false);
  const Run<A> run = in_all_orders<A>(what, [&] { return run_gates<A>(c, dense, rounded); });
  expect_close(run, "gates", expected.gates, allowed, what);
  expect_close(run, "logits", expected.logits, allowed, what);
  expect_close(run, "edge_nodes", expected.grad.edge_nodes, allowed, what);
  expect_gradients(run, "edge", expected.grad.edge, what, allowed);
}

// The edges by one end, as the operators sort them.
struct Sorted {
  std::vector<int64_t> row, order;
  explicit Sorted(const std::vector<int64_t>& ends) : row(ends), order(ends.size()) {
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ends[a] < ends[b]; });
    for (size_t k = 0; k < order.size(); ++k) row[k] = ends[order[k]];
  }
};

template <class A>
Run<A> run_edges(const Case& c, const Rounded& rounded = {}) {
  Run<A> run;
  EdgeList<A> p = {};
  p.tf32 = rounded.tf32;
  p.half = rounded.half;
  p.graphs = graphs_of(run, c, false);
  p.aggregation = c.aggregation;
  p.message = run.perceptron(c.leaves.message, c.d, c.H, c.d);
  p.nodes = run.input(c.leaves.nodes);
  p.source = run.index(c.source), p.target = run.index(c.target);
  p.weight = c.leaves.weight.empty() ? nullptr : run.input(c.leaves.weight);
  p.num_edges = static_cast<int64_t>(c.source.size());
  p.out = run.result("out", c.num_nodes() * c.d);
  const Sorted target(c.target), source(c.source);
  const cuda::EdgeOrder by_target = {run.index(target.row), run.index(target.order)};
  const cuda::EdgeOrder by_source = {run.index(source.row), run.index(source.order)};
  in_workspace(cuda::forward_workspace(p),
               [&](void* w, cudaStream_t s) { return cuda::forward(p, by_target, w, s); });
  p.grad_out = run.input(c.grad_out);
  p.grad_nodes = run.result("nodes", c.leaves.nodes.size());
  if (p.weight) p.grad_weight = run.result("weight", c.leaves.weight.size());
  p.grad_message = run.gradients("message", c.leaves.message);
  in_workspace(cuda::backward_workspace(p),
               [&](void* w, cudaStream_t s) { return cuda::backward(p, by_target, by_source, w, s); });
  return run;
}

template <class A>
void check_edges(const Case& c, const plain::Results& expected, const Rounded& rounded = {}) {
  const double allowed = rounded.any() ? rounded.tolerance() : tolerance<A>();
  const std::string what = c.name + " edges" + (sizeof(A) == 8 ? " float64" : " float32") + rounded.name();
  const Run<A> run = in_all_orders<A>(what, [&] { return run_edges<A>(c, rounded); });
  expect_close(run, "out", expected.out, allowed, what);
  expect_close(run, "nodes", expected.grad.nodes, allowed, what);
  if (!c.leaves.weight.empty()) expect_close(run, "weight", expected.grad.weight, allowed, what);
  expect_gradients(run, "message", expected.grad.message, what, allowed);
}

// ---- The cases ----

Case make(const std::vector<int64_t>& sizes, int64_t d, int64_t H, int64_t b, int64_t He, int options) {
  Case c;
  c.d = d, c.H = H, c.b = b, c.He = He;
  c.gated = options & 1, c.noisy = options & 2, c.l2 = options & 4;
  c.aggregation = static_cast<Aggregation>(options / 8 % 3);
  c.offsets = {0};
  c.name = "d=" + std::to_string(d) + " H=" + std::to_string(H) + " b=" + std::to_string(b) +
           " He=" + std::to_string(He) + " options=" + std::to_string(options) + " n=";
  for (int64_t n : sizes) {
    c.offsets.push_back(c.offsets.back() + n);
    if (c.offsets.size() < 8) c.name += std::to_string(n) + ",";
  }
  plain::fill(c, static_cast<unsigned>(d * 7 + H * 3 + options));
  return c;
}

Case as_operators_pass(Case c) {
  if (!c.gated) c.grad_l0.clear();
  // Every neighbour is open: the operator has turned it into mean.
  if (!c.gated && c.aggregation == Aggregation::neighbor_mean) c.aggregation = Aggregation::mean;
  return c;
}

void check_case(const Case& given, bool dense) {
  const Case c = as_operators_pass(given);
  const plain::Results expected = plain::complete_graph(c);
  check_complete_graph<float>(c, expected, dense);
  check_complete_graph<double>(c, expected, dense);
}

// Every other bag has values.
plain::Bag next_bag(const Case& given) {
  static int bags = 0;
  return plain::as_bag(as_operators_pass(given), 7, ++bags % 2, 5);
}

void check_bags(const Case& given, bool dense) {
  const plain::Bag bag = next_bag(given);
  check_bag<float>(bag, dense);
  check_bag<double>(bag, dense);
}

void check_float(const Case& given, bool dense) {
  const Case c = as_operators_pass(given);
  check_complete_graph<float>(c, plain::complete_graph(c), dense);
}

// Half of all ordered pairs of each graph, in no order, some of them twice.
Case with_edges(Case c) {
  std::mt19937 random(3);
  for (int64_t g = 0; g < c.graphs(); ++g)
    for (int64_t i = c.offsets[g]; i < c.offsets[g + 1]; ++i)
      for (int64_t j = c.offsets[g]; j < c.offsets[g + 1]; ++j)
        for (unsigned times = random() % 4; times > 1; --times) c.source.push_back(i), c.target.push_back(j);
  for (size_t k = c.source.size(); k > 1; --k) {
    const size_t other = random() % k;
    std::swap(c.source[k - 1], c.source[other]), std::swap(c.target[k - 1], c.target[other]);
  }
  return c;
}

// Weights of both signs, and zeros.
Case with_weights(Case c) {
  for (size_t e = 0; e < c.source.size(); ++e)
    c.leaves.weight.push_back(static_cast<double>(static_cast<int>(e * 5 % 9) - 2) / 4);
  return c;
}

template <class A>
void check_edge_case(const Case& c, const Rounded& rounded = {}) {
  for (const Case& some : {c, with_weights(c)}) check_edges<A>(some, plain::edge_list(some), rounded);
}

// Edges on the matrix units: every size, rows with more edges than are listed at a time, in both directions,
// and rows of several graphs in one turn of a warp.
void check_tile_edges() {
  const int64_t inner[] = {4, 8, 16, 32, 64}, hidden[] = {16, 32, 64, 128};
  for (int k = 0; k < 20; ++k)
    check_edge_case<float>(with_edges(make({4, 1, 18}, inner[k % 5], hidden[k / 5], 1, 1, k % 3 * 8)));
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {5, 20}, {13, 50}, {27, 100}})
    for (const int options : {0, 8, 16})
      check_edge_case<float>(with_edges(make({2, 0, 3, 1, 1, 7, 20, 2}, s[0], s[1], 1, 1, options)));
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {16, 64}})
    for (const int options : {0, 8, 16}) {
      Case c = with_edges(make({3, 30}, s[0], s[1], 1, 1, options));
      for (int64_t e = 0; e < 700; ++e) {
        c.source.push_back(e % 3 ? 3 + e % 30 : 8), c.target.push_back(e % 3 ? 8 : 3 + e % 29);
      }
      check_edge_case<float>(c);
    }
  check_edge_case<float>(make({3, 0, 20}, 8, 32, 1, 1, 8));  // no edge at all
  const Rounded all[] = {{true, HalfType::none}, {false, HalfType::bfloat16}, {false, HalfType::float16}};
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {16, 64}, {32, 16}, {64, 64}})
    for (const Rounded& rounded : all)
      check_edge_case<float>(with_edges(make({10, 18, 1}, s[0], s[1], 1, 1, 8)), rounded);
}

// Small graphs of one size, so many of each that a warp takes several together, as many as it can or fewer,
// and at the end of the batch fewer.
std::vector<std::vector<int64_t>> many_small_graphs() {
  std::vector<std::vector<int64_t>> batches;
  for (const auto& [count, nodes] : {std::array<int64_t, 2>{21, 3},
                                     {85, 3},
                                     {17, 10},
                                     {26, 8},
                                     {25, 9},
                                     {257, 1},
                                     {130, 2},
                                     {50, 5},
                                     {18, 11}})
    batches.emplace_back(count, nodes);
  return batches;
}

// The sizes of the kernels on the matrix units, at and beside their limits: up to 16 nodes a graph is small,
// a row of a larger one is taken in parts of 256, and a warp takes 8 rows at a time.
void check_tiles() {
  const int64_t shapes[][4] = {
      {8, 32, 8, 32}, {4, 16, 4, 16}, {5, 20, 3, 9}, {16, 64, 8, 32}, {13, 50, 7, 17}};
  for (const auto& s : shapes)
    for (const int options : {0, 5, 7, 11, 19, 20})
      check_float(make({10, 1, 16, 0, 17, 3, 8}, s[0], s[1], s[2], s[3], options), false);
  for (const int options : {1, 3, 11}) {
    check_float(make({9, 9, 9}, 8, 32, 8, 32, options), true);
    check_float(make({18, 18}, 8, 32, 8, 32, options), true);
  }
  for (const auto& sizes : many_small_graphs())
    for (const int options : {0, 1, 3, 11, 19, 20}) check_float(make(sizes, 8, 32, 8, 32, options), true);
  check_float(make({2, 260}, 8, 32, 8, 32, 11), false);
  check_float(make({40}, 16, 64, 8, 32, 7), false);
  // Every size, with the other sizes in turn.
  const int64_t inner[] = {4, 8, 16, 32, 64}, hidden[] = {16, 32, 64, 128};
  for (int k = 0; k < 20; ++k)
    check_float(make({4, 1, 18}, inner[k % 5], hidden[k % 4], inner[k / 4], hidden[(k + k / 5) % 4], 3),
                false);
  for (const auto& s : {std::array<int64_t, 4>{64, 128, 64, 128}, {32, 64, 16, 128}, {27, 100, 50, 33}})
    check_float(make({3, 17}, s[0], s[1], s[2], s[3], 15), false);
  // With a gradient of the messages' norms, which has kernels of its own.
  for (int k = 0; k < 20; ++k)
    check_float(make({4, 1, 18}, inner[k % 5], hidden[k % 4], inner[k / 4], hidden[(k + k / 5) % 4], 7),
                false);
  for (const int options : {4, 15, 23})
    for (const auto& s : {std::array<int64_t, 4>{8, 32, 8, 32}, {16, 64, 8, 32}, {27, 100, 50, 33}})
      check_float(make({16, 16}, s[0], s[1], s[2], s[3], options), true);
  check_float(make({2, 260}, 8, 32, 8, 32, 15), false);
}

// On a device whose blocks have 99 KB of shared memory no kernel asks for more, and the sums of the weight
// gradients, which then may lie in device memory, are the same to the bit. 163 KB are enough for all sizes.
void check_less_shared_memory() {
  const size_t all = simt::most_shared_bytes();
  for (const HalfType half : {HalfType::none, HalfType::bfloat16, HalfType::float16})
    for (const bool backward : {false, true}) {
      CompleteGraph<float> p = {};
      p.message.in = p.message.out = p.edge.in = 64, p.message.hidden = p.edge.hidden = 128, p.edge.out = 1;
      p.half = half;
      Array<float> something = poisoned<float>(1);
      p.nodes = something.get(), p.grad_out = something.get();
      simt::set_most_shared_bytes(163 << 10);
      expect(cuda::tiles_take(p, backward), "the largest sizes in 163 KB of shared memory");
      simt::set_most_shared_bytes(all);
    }
  for (const HalfType half : {HalfType::none, HalfType::bfloat16, HalfType::float16})
    for (const bool tf32 : {false, true})
      for (const auto& s :
           {std::array<int64_t, 4>{16, 32, 16, 32}, {8, 96, 8, 96}, {16, 96, 8, 96}, {64, 16, 4, 128}})
        for (const int options : {0, 1, 5}) {
          if (options & 4 && s[0] == 64) continue;  // takes more: goes the general way there
          const Case c = as_operators_pass(make({4, 18}, s[0], s[1], s[2], s[3], options));
          const size_t much = simt::most_shared_bytes();
          const Run<float> expected = run_complete_graph<float>(c, false, {tf32, half});
          simt::set_most_shared_bytes(99 << 10);
          const Run<float> found = run_complete_graph<float>(c, false, {tf32, half});
          simt::set_most_shared_bytes(much);
          expect(same_bits(expected, found),
                 c.name + Rounded{tf32, half}.name() + ", with less shared memory");
        }
  for (const auto& s : {std::array<int64_t, 2>{16, 32}, {8, 96}, {64, 16}}) {
    const Case c = with_weights(with_edges(make({4, 18}, s[0], s[1], 1, 1, 8)));
    const size_t much = simt::most_shared_bytes();
    const Run<float> expected = run_edges<float>(c);
    simt::set_most_shared_bytes(99 << 10);
    const Run<float> found = run_edges<float>(c);
    simt::set_most_shared_bytes(much);
    expect(same_bits(expected, found), c.name + " edges, with less shared memory");
  }
}

// The same of bags: every aggregation, with and without values and noise, and with a penalty (options & 4)
// with and without a gradient.
void check_tile_bags() {
  const auto check = [](const std::vector<int64_t>& sizes, const std::array<int64_t, 4>& s, int options,
                        bool dense = false) {
    plain::Bag bag = next_bag(make(sizes, s[0], s[1], s[2], s[3], options));
    const bool rounded = options == 3 || options == 7 || options == 19;
    if (options & 4) {
      check_bag<float>(bag, dense);
      if (rounded) check_bag<float>(bag, dense, {true, HalfType::none});
      bag.nodes.grad_l2.clear();
    }
    check_bag<float>(bag, dense);
    if (rounded) check_bag<float>(bag, dense, {true, HalfType::none});
  };
  for (const auto& s : {std::array<int64_t, 4>{8, 32, 8, 32}, {5, 20, 3, 9}, {16, 64, 8, 32}})
    for (const int options : {0, 1, 3, 4, 7, 11, 15, 16, 19, 23}) check({10, 1, 16, 0, 17, 3, 8}, s, options);
  for (const int options : {3, 11, 16})
    for (const auto& sizes : {std::vector<int64_t>{9, 9, 9}, {16, 16}, {17, 17}, {0, 0}})
      check(sizes, {8, 32, 8, 32}, options, true);
  for (const auto& sizes : many_small_graphs())
    for (const int options : {1, 3, 11, 16, 19}) check(sizes, {8, 32, 8, 32}, options, true);
  check({2, 70}, {8, 32, 8, 32}, 11);
  check({3, 17, 0, 5}, {27, 100, 50, 33}, 3);
  check({3, 17, 0, 5}, {32, 64, 16, 128}, 15);
  check({3, 17, 0, 5}, {64, 128, 64, 128}, 15);
}

// The largest error of an array of the size of the array; infinite where a number is NaN.
double relative_error(const Run<float>& run, const std::string& name, const Values& expected) {
  const Array<float>& found = run.found(name);
  double worst = 0, size = 0;
  for (size_t k = 0; k < expected.size(); ++k) {
    const double error = std::abs(found.get()[k] - expected[k]);
    worst = std::max(worst, std::isnan(error) ? INFINITY : error);
    size = std::max(size, std::abs(expected[k]));
  }
  return worst / size;
}

// How far a type of factors may err, and how far it does err if it is what is used.
struct Factors {
  const char* name;
  Rounded rounded;
  double least, most;

  void expect_error(double error, const std::string& what) const {
    expect(error >= least && error <= most,
           what + " " + name + ": error " + std::to_string(error * 1e6) + "e-6");
  }
};

// Numbers with all the bits of a float.
class Normal {
 public:
  void refill(Values& values, double deviation) {
    for (double& x : values) x = static_cast<float>(deviation * normal_(random_));
  }
  void refill_weights(plain::Leaves& leaves) {
    for (int k = 0; k < 4; ++k) refill(leaves.message[k], 0.4), refill(leaves.edge[k], 0.4);
  }

 private:
  std::mt19937 random_{5};
  std::normal_distribution<double> normal_;
};

// 3xTF32 errs like float32, the other types of factors by their own rounding.
void check_precision() {
  const Factors all[] = {{"3xTF32", {}, 0, 2e-6},
                         {"TF32", {true, HalfType::none}, 1e-5, 2e-3},
                         {"bfloat16", {true, HalfType::bfloat16}, 3e-4, 2e-2},
                         {"float16", {true, HalfType::float16}, 1e-5, 2e-3}};
  for (const auto& s :
       {std::array<int64_t, 4>{8, 32, 8, 32}, {16, 64, 8, 32}, {32, 32, 16, 16}, {64, 128, 32, 32}}) {
    Case c = make({10, 20}, s[0], s[1], s[2], s[3], 3);
    Normal normal;
    normal.refill(c.leaves.nodes, 1), normal.refill(c.leaves.edge_nodes, 1);
    normal.refill_weights(c.leaves);
    const Values expected = plain::complete_graph(c).out;
    for (const Factors& factors : all)
      factors.expect_error(
          relative_error(run_complete_graph<float>(c, false, factors.rounded), "out", expected), c.name);
  }
}

// The same of given edges, the gradients of nodes and weights among them.
void check_edge_precision() {
  const Factors all[] = {{"3xTF32", {}, 0, 3e-6},
                         {"TF32", {true, HalfType::none}, 1e-5, 5e-3},
                         {"bfloat16", {true, HalfType::bfloat16}, 3e-4, 5e-2},
                         {"float16", {true, HalfType::float16}, 1e-5, 5e-3}};
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {16, 64}, {32, 32}, {64, 128}}) {
    Case c = with_weights(with_edges(make({10, 20}, s[0], s[1], 1, 1, 0)));
    Normal normal;
    normal.refill(c.leaves.nodes, 0.5), normal.refill(c.grad_out, 1e-5), normal.refill(c.leaves.weight, 1);
    normal.refill_weights(c.leaves);
    const plain::Results expected = plain::edge_list(c);
    for (const Factors& factors : all) {
      const Run<float> run = run_edges<float>(c, factors.rounded);
      const std::string what = c.name + " edges, ";
      factors.expect_error(relative_error(run, "out", expected.out), what + "out");
      factors.expect_error(relative_error(run, "weight", expected.grad.weight), what + "weight");
      factors.expect_error(relative_error(run, "message W2", expected.grad.message[2]), what + "W2");
      // These jump where a unit is near its kink, which other roundings cross: see check_rounded.
      if (factors.rounded.any()) continue;
      factors.expect_error(relative_error(run, "nodes", expected.grad.nodes), what + "nodes");
      factors.expect_error(relative_error(run, "message W1", expected.grad.message[0]), what + "W1");
    }
  }
}

// Of all gradients the largest error, with its name.
std::pair<double, std::string> gradient_error(const Run<float>& run, const plain::Leaves& expected) {
  std::pair<double, std::string> worst{-1, ""};
  const auto compare = [&](const std::string& name, const Values& values) {
    worst = std::max(worst, {relative_error(run, name, values), name});
  };
  const char* parts[] = {" W1", " b1", " W2", " b2"};
  for (int k = 0; k < 4; ++k) {
    compare(std::string("message") + parts[k], expected.message[k]);
    compare(std::string("edge") + parts[k], expected.edge[k]);
  }
  compare("nodes", expected.nodes), compare("edge_nodes", expected.edge_nodes);
  return worst;
}

// The same for gradients, of small graphs and of others, however small what comes in: the loss is a mean over
// many graphs. (Numbers with all their bits come near kinks, which roundings of another kind cross.)
void check_gradient_precision() {
  const Factors all[] = {{"3xTF32", {}, 0, 3e-6},
                         {"TF32", {true, HalfType::none}, 1e-5, 5e-3},
                         {"float16", {false, HalfType::float16}, 1e-5, 5e-3}};
  for (const auto& sizes : {std::vector<int64_t>{10, 7, 16}, {20}})
    for (const double scale : {1.0, 1e-3, 1e-5, 1e-7})
      for (const bool bags : {false, true})
        for (const int options : {3, 7}) {
          plain::Bag bag = plain::as_bag(make(sizes, 8, 32, 8, 32, options), 7, false, 5);
          Case& c = bag.nodes;
          Normal normal;
          normal.refill(bag.node_table, 0.5), normal.refill(bag.edge_table, 0.5);
          normal.refill(c.grad_l0, scale), normal.refill(c.grad_out, scale);
          normal.refill(bag.grad_pooled, scale);
          normal.refill_weights(c.leaves);
          // Last: rows and weights are the same with it and without, clear of where a relu flips in TF32.
          normal.refill(c.grad_l2, scale);
          for (size_t k = 0; k < c.leaves.nodes.size(); ++k) {
            c.leaves.nodes[k] = bag.node_table[bag.ids[k / 8] * 8 + k % 8];
            c.leaves.edge_nodes[k] = bag.edge_table[bag.ids[k / 8] * 8 + k % 8];
          }
          const plain::Leaves expected = bags ? plain::bag(bag).nodes.grad : plain::complete_graph(c).grad;
          for (const Factors& factors : all) {
            if (bags && factors.rounded.half != HalfType::none) continue;
            const auto [error, name] =
                gradient_error(bags ? run_bag<float>(bag, false, factors.rounded)
                                    : run_complete_graph<float>(c, false, factors.rounded),
                               expected);
            factors.expect_error(error, c.name + (bags ? " bag, " : ", ") + name + " of " +
                                            std::to_string(scale * 1e7) + "e-7");
          }
        }
}

// Inputs and weights that half types hold exactly: what is left is the rounding of products and hidden
// values.
void check_rounded() {
  const Rounded all[] = {{true, HalfType::none}, {false, HalfType::bfloat16}, {false, HalfType::float16}};
  for (const auto& s :
       {std::array<int64_t, 4>{8, 32, 8, 32}, {16, 64, 8, 32}, {32, 16, 32, 16}, {64, 64, 64, 32}})
    for (const int options : {3, 7}) {
      const Case c = make({10, 18, 1}, s[0], s[1], s[2], s[3], options);
      const plain::Results expected = plain::complete_graph(c);
      for (const Rounded& rounded : all) check_complete_graph<float>(c, expected, false, rounded);
    }
}

// Only one gradient comes in, or none for the messages at all.
void check_missing_gradients() {
  for (int missing = 1; missing < 8; ++missing) {
    Case c = make({5, 3}, 3, 4, 2, 5, 7);
    if (missing & 1) c.grad_out.clear();
    if (missing & 2) c.grad_l0.clear();
    if (missing & 4) c.grad_l2.clear();
    c.name += " missing=" + std::to_string(missing);
    const plain::Results expected = plain::complete_graph(c);
    check_complete_graph<double>(c, expected, false);
  }
}

// The same of a bag.
void check_missing_bag_gradients() {
  for (int missing = 1; missing < 8; ++missing) {
    plain::Bag bag = plain::as_bag(make({5, 3}, 3, 4, 2, 5, 7), 4, true, 3);
    if (missing & 1) bag.grad_pooled.clear();
    if (missing & 2) bag.nodes.grad_l0.clear();
    if (missing & 4) bag.nodes.grad_l2.clear();
    bag.nodes.name += " missing=" + std::to_string(missing);
    check_bag<float>(bag, false);
    check_bag<double>(bag, false);
  }
}

// An id that is in no table reads nothing out of bounds, and shows in its graph and its gradient alone.
template <class A>
void check_wrong_ids() {
  for (const int options : {0, 3, 4, 7, 11, 15})
    for (const int64_t wrong : {int64_t{-1}, int64_t{6}, int64_t{1} << 60})
      for (const bool in_large : {false, true}) {
        plain::Bag bag =
            plain::as_bag(as_operators_pass(make({4, 0, 3, 20}, 3, 5, 2, 4, options)), 6, true, 9);
        bag.ids[in_large ? 22 : 5] = wrong;
        const Run<A> run = run_bag<A>(bag, false);
        const auto result = [&](const char* name) {
          return run.results.at(std::find(run.names.begin(), run.names.end(), name) - run.names.begin())
              .get();
        };
        const A *pooled = result("pooled"), *grads = result("nodes");
        bool shown = true;
        for (int64_t k = 0; k < 12; ++k)
          shown = shown && std::isnan(pooled[k]) == (k / 3 == (in_large ? 3 : 2));
        for (int64_t k = 0; k < 27 * 3; ++k) {
          const int64_t node = k / 3;
          const bool of_graph = in_large ? node >= 7 : node >= 4 && node < 7;
          if (!of_graph || bag.ids[node] == wrong) shown = shown && std::isnan(grads[k]) == of_graph;
        }
        expect(shown, bag.nodes.name + ": an id out of range gives NaNs in its graph");
      }
}

// Offsets that are none read and write nothing out of bounds. (What comes out means nothing.)
void check_wrong_offsets() {
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0, 90, -5, 0}, {5, 2, 1, 0}, {0, int64_t{1} << 50, 40, 0}, {-9, -7, 60, 0}}) {
    plain::Bag bag = plain::as_bag(make({18, 2, 20}, 3, 5, 2, 4, 15), 6, true, 9);
    Case& c = bag.nodes;
    const std::vector<int64_t> right = c.offsets;
    c = with_weights(with_edges(c));
    c.offsets = {offsets[0], offsets[1], offsets[2], right[3]};  // the last one says how many nodes there are
    run_edges<float>(c);
    run_edges<double>(c);
    c.grad_out.clear();
    run_bag<float>(bag, false);
    c.grad_gates.assign(30, 1.0), c.grad_logits.assign(30, 1.0);
    run_gates<float>(c, false);
    run_gates<double>(c, false);
  }
}

// An edge that leaves its graph, or the batch, reads nothing out of bounds, and shows: forward where it
// arrives, backward at the end that it has in range.
template <class A>
void check_wrong_edges(int64_t hidden) {
  Case c = make({2, 2}, 3, hidden, 2, 3, 0);
  c.source = {0, 1, 3, 4, -1, 2, 0, 1};
  c.target = {1, 0, 1, 0, 3, 2, 4, -2};
  c = with_weights(c);
  const Run<A> run = run_edges<A>(c);
  const auto nan = [&](const char* name, const std::vector<int64_t>& at) {
    const auto& found = run.found(name);
    bool ok = true;
    for (int64_t k = 0; k < found.size; ++k)
      ok = ok && std::isnan(found.get()[k]) == std::count(at.begin(), at.end(), found.size == 8 ? k : k / 3);
    return ok;
  };
  expect(nan("out", {0, 1, 3}), "edges out of range give NaNs where they arrive");
  expect(nan("nodes", {0, 1, 3}), "and in the gradients of the ends that they have");
  expect(nan("weight", {2, 3, 4, 6, 7}), "and in those of their weights");
}

// What is NaN or infinite in one graph is in no other, though a warp takes rows of several.
void check_apart() {
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {32, 64}})
    for (const auto& [rounded, value] : {std::pair<Rounded, double>{{}, NAN},
                                         {{}, INFINITY},
                                         {{true, HalfType::none}, NAN},
                                         {{false, HalfType::bfloat16}, NAN},
                                         {{false, HalfType::float16}, NAN},
                                         {{false, HalfType::float16}, 6e4}}) {
      Case c = with_weights(with_edges(make({4, 5, 3}, s[0], s[1], 1, 1, 8)));
      const Run<float> clean = run_edges<float>(c, rounded);
      for (int64_t k = 0; k < s[0]; ++k) c.leaves.nodes[6 * s[0] + k] = value;  // of the second graph
      const Run<float> run = run_edges<float>(c, rounded);
      bool same = true, shown = false;
      for (const char* name : {"out", "nodes"})
        for (int64_t k = 0; k < run.found(name).size; ++k) {
          const bool inside = k / s[0] >= 4 && k / s[0] < 9;
          const float x = run.found(name).get()[k];
          same = same && (inside || x == clean.found(name).get()[k]);
          shown = shown || (inside && !std::isfinite(x));
        }
      expect(same && shown, c.name + rounded.name() + ": " + std::to_string(value) + " in one graph's node");
    }
  // Small graphs of one size, several of which a warp takes together.
  for (const double value : {NAN, INFINITY}) {
    Case c = as_operators_pass(make(std::vector<int64_t>(17, 10), 8, 32, 8, 32, 3));
    const Run<float> clean = run_complete_graph<float>(c, true);
    const int64_t graph = 4;
    c.leaves.nodes[(graph * 10 + 7) * 8 + 2] = value, c.leaves.edge_nodes[(graph * 10 + 3) * 8] = value;
    const Run<float> run = run_complete_graph<float>(c, true);
    bool same = true, shown = false;
    for (const char* name : {"out", "l0", "nodes", "edge_nodes"}) {
      const auto& found = run.found(name);
      for (int64_t k = 0; k < found.size; ++k) {
        const bool inside = k / (found.size / 17) == graph;
        same = same && (inside || found.get()[k] == clean.found(name).get()[k]);
        shown = shown || (inside && !std::isfinite(found.get()[k]));
      }
    }
    expect(same && shown, c.name + ": " + std::to_string(value) + " in one of many small graphs");
  }
}

void check_noise() {
  const std::vector<int64_t> sizes = {0, 3, 1, 70, 0, 2};
  std::vector<int64_t> offsets = {0};
  std::vector<float> expected;
  for (size_t g = 0; g < sizes.size(); ++g) {
    offsets.push_back(offsets.back() + sizes[g]);
    for (int64_t p = 0; p < pair_count(sizes[g]); ++p) expected.push_back(gate_uniform(-5, g, p));
  }
  const Array<int64_t> device_offsets = copy<int64_t>(offsets),
                       seed = copy<int64_t>(std::vector<int64_t>{-5});
  const Array<int64_t> first = poisoned<int64_t>(cuda::graph_totals_size(static_cast<int64_t>(sizes.size())));
  const auto pairs = static_cast<int64_t>(expected.size());
  const Array<float> noise = poisoned<float>(pairs);
  // As the operator calls it, which has no nodes.
  const Graphs graphs = {device_offsets.get(), 0, static_cast<int64_t>(sizes.size()), 0};
  cuda::gate_noise(graphs, seed.get(), first.get(), pairs, noise.get(), nullptr);
  expect(std::equal(expected.begin(), expected.end(), noise.get()), "the noise, bit for bit");
}

// Sizes of graphs as of a ragged batch: small and large ones, and some that are empty.
std::vector<int64_t> ragged_sizes(int64_t count, int64_t most) {
  std::mt19937 random(5);
  std::vector<int64_t> sizes;
  for (int64_t g = 0; g < count; ++g)
    sizes.push_back(random() % 8 == 0 ? 0 : random() % 40 == 0 ? random() % most : random() % 24);
  return sizes;
}

// More graphs than a block counts, and several blocks' turns.
void check_totals() {
  for (const int64_t count : {0, 1, 1024, 5000}) {
    const std::vector<int64_t> sizes = ragged_sizes(count, 100);
    std::vector<int64_t> offsets = {0}, pairs = {0}, steps = {0};
    for (const int64_t n : sizes) {
      offsets.push_back(offsets.back() + n);
      pairs.push_back(pairs.back() + pair_count(n));
      steps.push_back(steps.back() + cuda::tile_steps(n, true));
    }
    const Array<int64_t> device_offsets = copy<int64_t>(offsets);
    const Graphs graphs = {device_offsets.get(), 0, count, offsets.back()};
    const Array<int64_t> totals = poisoned<int64_t>(cuda::graph_totals_size(count));
    cuda::first_pairs(graphs, totals.get(), nullptr);
    expect(std::equal(pairs.begin(), pairs.end(), totals.get()), "totals of pairs");
    cuda::first_steps(graphs, true, totals.get(), nullptr);
    expect(std::equal(steps.begin(), steps.end(), totals.get()), "totals of steps");
  }
}

// Warps take all rows, each once, and no small graph in parts; and none has more than its share and what
// can't be parted.
void check_shares() {
  for (const int64_t count : {1, 3, 400})
    for (const bool pairs_once : {false, true})
      for (const int64_t warps : {1, 7, 64, 1000}) {
        std::vector<int64_t> sizes = ragged_sizes(count, 900);
        sizes[count / 2] = 300;
        std::vector<int64_t> offsets = {0}, first = {0};
        int64_t largest = 0;
        for (const int64_t n : sizes) {
          offsets.push_back(offsets.back() + n);
          first.push_back(first.back() + cuda::tile_steps(n, pairs_once));
          const bool small = cuda::is_small(n);
          largest = std::max(largest, small ? cuda::tile_steps(n, pairs_once) : cuda::row_steps(n));
        }
        const Graphs graphs = {offsets.data(), 0, count, offsets.back()};
        int64_t row = 0, most = 0;
        bool whole = true;
        for (int64_t warp = 0; warp < warps; ++warp) {
          int64_t from, to;
          cuda::rows_of_warp(graphs, first.data(), warp, warps, from, to);
          whole = whole && from == row && to >= row;
          int64_t work = 0;
          for (int64_t g = 0; g < count; ++g) {
            const int64_t begin = std::max(offsets[g], from), end = std::min(offsets[g + 1], to);
            if (begin >= end) continue;
            const int64_t n = sizes[g];
            work += (end - begin) * cuda::tile_steps(n, pairs_once) / n;
            whole = whole && (end == offsets[g + 1] || !cuda::is_small(n));
          }
          most = std::max(most, work);
          row = to;
        }
        const std::string what = std::to_string(count) + " graphs for " + std::to_string(warps) + " warps";
        expect(whole && row == offsets.back(), what + ": every row once, nothing in parts");
        expect(most <= first.back() / warps + 1 + largest, what + ": even shares");
      }
}

// A ragged batch of many turns, small graphs and large ones: the warps share it by its steps.
void check_shared_batch() {
  for (const auto& s : {std::array<int64_t, 4>{8, 32, 8, 32}, {16, 32, 8, 16}}) {
    check_float(make(ragged_sizes(40, 70), s[0], s[1], s[2], s[3], 7), false);
    check_bag<float>(plain::as_bag(make(ragged_sizes(40, 70), s[0], s[1], s[2], s[3], 7), 7, true, 5), false);
  }
}

// The gates alone on the matrix units: every size, small graphs and others, with either gradient missing.
void check_tile_gates() {
  const int64_t inner[] = {4, 8, 16, 32, 64}, hidden[] = {16, 32, 64, 128};
  for (int k = 0; k < 20; ++k)
    check_gates<float>(
        with_gate_gradients(make({4, 1, 18}, 1, 1, inner[k % 5], hidden[k / 5], 1 + k % 2 * 2)), false);
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {5, 20}, {13, 50}, {27, 100}})
    for (const int gradients : {0, 1, 2, 3})
      check_gates<float>(with_gate_gradients(make({10, 1, 16, 0, 17, 40, 3}, 1, 1, s[0], s[1], 3),
                                             gradients & 1, gradients & 2),
                         false);
  check_gates<float>(with_gate_gradients(make({9, 9, 9}, 1, 1, 8, 32, 3)), true);
  for (const auto& sizes : many_small_graphs())
    for (const int options : {1, 3})
      check_gates<float>(with_gate_gradients(make(sizes, 1, 1, 8, 32, options)), true);
  check_gates<float>(with_gate_gradients(make({18, 18}, 1, 1, 8, 32, 3)), true);
  check_gates<float>(with_gate_gradients(make({2, 260}, 1, 1, 8, 32, 3)), false);
  check_gates<float>(with_gate_gradients(make(ragged_sizes(40, 70), 1, 1, 8, 32, 3)), false);
  const Rounded all[] = {{true, HalfType::none}, {false, HalfType::bfloat16}, {false, HalfType::float16}};
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {16, 64}, {32, 16}, {64, 64}})
    for (const Rounded& rounded : all)
      check_gates<float>(with_gate_gradients(make({10, 18, 1}, 1, 1, s[0], s[1], 3)), false, rounded);
}

// They are the gates that messages are multiplied by: the same are open.
void check_same_gates() {
  const Rounded all[] = {{}, {true, HalfType::none}, {false, HalfType::bfloat16}, {false, HalfType::float16}};
  for (const auto& s : {std::array<int64_t, 2>{8, 32}, {16, 64}, {64, 128}})
    for (const Rounded& rounded : all) {
      Case c =
          make({10, 40, 7, 16, 100}, 16, 64, s[0], s[1], 11);  // neighbor_mean: counts the gates of each node
      Normal normal;
      normal.refill(c.leaves.edge_nodes, 1), normal.refill_weights(c.leaves);
      const Run<float> layer = run_complete_graph<float>(c, false, rounded);
      const Run<float> alone = run_gates<float>(with_gate_gradients(c), false, rounded);
      const float* gate = alone.found("gates").get();
      std::vector<int32_t> degree(c.num_nodes(), 0);
      for (int64_t g = 0; g < c.graphs(); ++g)
        for (int64_t i = c.offsets[g]; i < c.offsets[g + 1]; ++i)
          for (int64_t j = i; j < c.offsets[g + 1]; ++j)
            if (*gate++ > 0) ++degree[i], degree[j] += i != j;
      const bool same = std::equal(degree.begin(), degree.end(), layer.degree.get());
      expect(same, c.name + rounded.name() + ": the gates alone are those of the layer");
    }
}

// ---- All of it, in three parts that may run side by side ----

void check_pairs() {
  check_totals();
  check_shares();
  check_shared_batch();
  const std::vector<std::vector<int64_t>> batches = {{},        {0},        {1},
                                                     {2, 0, 3}, {9, 1, 33}, {5, 17, 2, 0, 1, 12}};
  // The last is too large for the matrix units: in float32, too, it goes the general way.
  const int64_t shapes[][4] = {{8, 32, 8, 32}, {1, 1, 1, 1}, {3, 130, 3, 35}};
  for (const auto& sizes : batches)
    for (const auto& s : shapes)
      for (const int options : {0, 1, 3, 4, 7, 8, 9, 11, 15, 16, 20, 23})
        check_case(make(sizes, s[0], s[1], s[2], s[3], options), false);
  for (const int options : {4, 7, 15}) check_case(make({6, 6, 6}, 4, 16, 4, 16, options), true);
  for (const auto& sizes : batches)
    for (const auto& s : shapes)
      for (const int options : {0, 3, 4, 7, 11, 15, 19})
        check_bags(make(sizes, s[0], s[1], s[2], s[3], options), false);
  for (const int options : {0, 3, 4, 7, 15}) {
    check_bags(make({6, 6, 6}, 4, 16, 4, 16, options), true);
    check_bags(make({17, 17}, 4, 16, 4, 16, options), true);
  }
  check_missing_gradients();
  check_missing_bag_gradients();
  check_wrong_ids<float>();
  check_wrong_ids<double>();
  check_wrong_offsets();
  check_noise();
}

void check_matrix_units() {
  check_tiles();
  check_tile_bags();
  check_rounded();
  check_precision();
  check_gradient_precision();
  check_less_shared_memory();
}

// Given edges, and gates alone. The largest sizes are too large for the matrix units.
void check_edges_and_gates() {
  for (const int options : {0, 8, 16})
    for (const auto& sizes : {std::vector<int64_t>{}, {2, 0, 3}, {9, 1, 20}})
      for (const int64_t H : {37, 130}) {
        const Case c = with_edges(make(sizes, 5, H, 1, 1, options));
        check_edge_case<float>(c);
        check_edge_case<double>(c);
      }
  check_tile_edges();
  check_edge_precision();
  check_apart();
  check_wrong_edges<float>(4);
  check_wrong_edges<float>(130);
  check_wrong_edges<double>(4);
  for (const int options : {1, 3}) {
    check_gates<float>(with_gate_gradients(make({2, 0, 35}, 1, 1, 3, 130, options)), false);
    check_gates<double>(with_gate_gradients(make({2, 0, 35}, 1, 1, 3, 9, options)), false);
    check_gates<double>(with_gate_gradients(make({4, 4}, 1, 1, 8, 32, options)), true);
    check_gates<float>(with_gate_gradients(make({}, 1, 1, 8, 32, options)), false);
  }
  check_tile_gates();
  check_same_gates();
}

}  // namespace

// Arguments: the parts to run; none: all.
int main(int count, char** names) {
  const std::pair<std::string, void (*)()> parts[] = {
      {"pairs", check_pairs}, {"tiles", check_matrix_units}, {"lists", check_edges_and_gates}};
  const std::vector<std::string> wanted(names + 1, names + count);
  for (const auto& [name, run] : parts)
    if (wanted.empty() || std::count(wanted.begin(), wanted.end(), name)) run();
  return summary();  // fails where no part has the name
}
