// The CUDA kernels of a risk on the host executor, under AddressSanitizer and UndefinedBehaviorSanitizer:
// those between forward and backward against plain loops, and in several orders of the threads, which must
// not change a bit; and all three, in one workspace, against each in its own.
#include <cmath>
#include <random>
#include <string>

#include "arrays.h"
#include "cuda/complete_graph.h"
#include "cuda/risk.h"
#include "plain.h"

namespace {

using namespace l0sign;

const simt::Order kOrders[] = {simt::Order::ascending, simt::Order::descending, simt::Order::shuffled};

using Values = std::vector<double>;

struct Given {
  int64_t graphs, d;
  Loss loss;
  bool biased;
  Values pooled, l0, head, bias, target, weight;
};

template <class A>
struct Results {
  Array<A> risk, logits, grad_logits, grad_head, grad_bias, grad_pooled, grad_l0;

  explicit Results(const Given& given)
      : risk(poisoned<A>(1)),
        logits(poisoned<A>(given.graphs)),
        grad_logits(poisoned<A>(given.graphs)),
        grad_head(poisoned<A>(given.d)),
        grad_bias(poisoned<A>(given.biased)),
        grad_pooled(poisoned<A>(given.graphs * given.d)),
        grad_l0(poisoned<A>(given.graphs)) {}
};

template <class A>
Results<A> judged(const Given& given) {
  Results<A> results(given);
  const Array<A> pooled = copy<A>(given.pooled), l0 = copy<A>(given.l0), head = copy<A>(given.head),
                 bias = copy<A>(given.bias), target = copy<A>(given.target), weight = copy<A>(given.weight);
  const Risk<A> risk = {given.loss,
                        head.get(),
                        given.biased ? bias.get() : nullptr,
                        target.get(),
                        weight.get(),
                        results.risk.get(),
                        results.logits.get(),
                        results.grad_logits.get(),
                        results.grad_head.get(),
                        given.biased ? results.grad_bias.get() : nullptr};
  in_workspace(cuda::judge_workspace<A>(given.graphs, given.d), [&](void* workspace, cudaStream_t stream) {
    return cuda::judge(risk, pooled.get(), l0.get(), given.graphs, given.d, results.grad_pooled.get(),
                       results.grad_l0.get(), workspace, stream);
  });
  return results;
}

template <class A>
void expect_close(const Array<A>& actual, const Values& expected, const std::string& what) {
  bool close = actual.size == static_cast<int64_t>(expected.size());
  for (size_t k = 0; k < expected.size() && close; ++k)
    close = std::abs(actual.get()[k] - expected[k]) <=
            (sizeof(A) == 8 ? 1e-13 : 4e-6) * (1 + std::abs(expected[k]));  // also false for NaN
  expect(close, what);
}

template <class A>
void check(const Given& given) {
  const std::string what = std::to_string(given.graphs) + " graphs of " + std::to_string(given.d) +
                           (given.loss == Loss::mse ? ", mse" : ", bce") + (given.biased ? ", bias" : "") +
                           (sizeof(A) == 8 ? ", float64: " : ", float32: ");
  const auto G = static_cast<double>(given.graphs);
  Values logits, grad_logits, grad_head(given.d, 0.0), grad_bias(given.biased, 0.0), grad_pooled, grad_l0;
  double risk = 0;
  for (int64_t g = 0; g < given.graphs; ++g) {
    double y = given.biased ? given.bias[0] : 0;
    for (int64_t k = 0; k < given.d; ++k) y += given.head[k] * given.pooled[g * given.d + k];
    const double t = given.target[g];
    const double bce = t * std::log1p(std::exp(-y)) + (1 - t) * std::log1p(std::exp(y));
    const double mse = (y - t) * (y - t);
    risk += ((given.loss == Loss::mse ? mse : bce) + given.weight[g] * given.l0[g]) / G;
    const double grad = (given.loss == Loss::mse ? 2 * (y - t) : 1 / (1 + std::exp(-y)) - t) / G;
    for (int64_t k = 0; k < given.d; ++k) {
      grad_head[k] += grad * given.pooled[g * given.d + k];
      grad_pooled.push_back(grad * given.head[k]);
    }
    if (given.biased) grad_bias[0] += grad;
    logits.push_back(y), grad_logits.push_back(grad), grad_l0.push_back(given.weight[g] / G);
  }
  simt::set_order(simt::Order::ascending);
  const Results<A> results = judged<A>(given);
  expect_close(results.risk, {risk}, what + "risk");
  expect_close(results.logits, logits, what + "logits");
  expect_close(results.grad_logits, grad_logits, what + "gradient of the logits");
  expect_close(results.grad_head, grad_head, what + "gradient of the head");
  expect_close(results.grad_bias, grad_bias, what + "gradient of the bias");
  expect_close(results.grad_pooled, grad_pooled, what + "gradient of the pooled sums");
  expect_close(results.grad_l0, grad_l0, what + "gradient of the L0 penalties");
  for (const simt::Order order : kOrders) {
    simt::set_order(order);
    const Results<A> again = judged<A>(given);
    expect(same_bits(results.risk, again.risk) && same_bits(results.grad_head, again.grad_head) &&
               same_bits(results.grad_bias, again.grad_bias),
           what + "the order of threads changed a sum");
  }
}

// ---- The whole ----

// The gradients of a problem.
template <class A>
struct Gradients {
  std::vector<Array<A>> arrays;

  A* take(size_t size) {
    arrays.push_back(poisoned<A>(static_cast<int64_t>(size)));
    return arrays.back().get();
  }
  PerceptronGrad<A> take(const Values (&m)[4]) {
    return {take(m[0].size()), take(m[1].size()), take(m[2].size()), take(m[3].size())};
  }
  Gradients(CompleteGraph<A>& p, const plain::Leaves& like) {
    p.grad_nodes = take(like.nodes.size());
    p.grad_edge_nodes = take(like.edge_nodes.size());
    p.grad_message = take(like.message);
    p.grad_edge = take(like.edge);
  }
};

template <class A>
void check_whole(const plain::Bag& bag) {
  const plain::Case& c = bag.nodes;
  const int64_t G = c.graphs();
  std::vector<Array<A>> inputs;
  const auto input = [&](const Values& values) {
    inputs.push_back(copy<A>(values));
    return inputs.back().get();
  };
  const auto perceptron = [&](const Values(&m)[4], int64_t in, int64_t hidden, int64_t out) {
    return Perceptron<A>{input(m[0]), input(m[1]), input(m[2]), input(m[3]), in, hidden, out};
  };
  const Array<int64_t> offsets = copy<int64_t>(c.offsets), ids = copy<int64_t>(bag.ids),
                       seed = copy<int64_t>(std::vector<int64_t>{c.seed});
  const Array<A> l0 = poisoned<A>(G);
  const Array<int64_t> num_edges = poisoned<int64_t>(G);
  const Array<int32_t> degree = poisoned<int32_t>(c.num_nodes());
  CompleteGraph<A> p = {};
  p.graphs = {offsets.get(), 0, G, c.num_nodes()};
  p.aggregation = c.aggregation;
  p.gate = {plain::kTemperature, plain::kGamma, plain::kZeta, seed.get()};
  p.message = perceptron(c.leaves.message, c.d, c.H, c.d);
  p.edge = perceptron(c.leaves.edge, c.b, c.He, 1);
  p.pools = true;
  p.nodes = input(bag.node_table), p.edge_nodes = input(bag.edge_table);
  p.ids = ids.get(), p.num_rows = bag.num_rows, p.values = input(bag.values);
  p.l0 = l0.get(), p.num_edges = num_edges.get();
  p.degree = c.aggregation == Aggregation::neighbor_mean ? degree.get() : nullptr;

  Given given = {
      G, c.d, Loss::bce, true, {}, {}, Values(c.d, 0.5), {0.25}, Values(G, 0.75), Values(G, 0.125)};
  const A* const head = input(given.head);
  const A* const bias = input(given.bias);
  const A* const target = input(given.target);
  const A* const weight = input(given.weight);
  const auto risk_of = [&](Results<A>& to) {
    return Risk<A>{Loss::bce,
                   head,
                   bias,
                   target,
                   weight,
                   to.risk.get(),
                   to.logits.get(),
                   to.grad_logits.get(),
                   to.grad_head.get(),
                   to.grad_bias.get()};
  };
  Results<A> together(given), apart(given);
  Gradients<A> gradients(p, c.leaves);
  in_workspace(cuda::risk_workspace(p), [&](void* workspace, cudaStream_t stream) {
    return cuda::risk(p, risk_of(together), workspace, stream);
  });

  CompleteGraph<A> alone = p;
  const Array<A> pooled = poisoned<A>(G * c.d);
  alone.pooled = pooled.get();
  in_workspace(cuda::forward_workspace(alone),
               [&](void* workspace, cudaStream_t stream) { return cuda::forward(alone, workspace, stream); });
  in_workspace(cuda::judge_workspace<A>(G, c.d), [&](void* workspace, cudaStream_t stream) {
    return cuda::judge(risk_of(apart), pooled.get(), alone.l0, G, c.d, apart.grad_pooled.get(),
                       apart.grad_l0.get(), workspace, stream);
  });
  Gradients<A> expected(alone, c.leaves);
  alone.pooled = alone.l0 = nullptr, alone.num_edges = nullptr;
  alone.grad_pooled = apart.grad_pooled.get(), alone.grad_l0 = apart.grad_l0.get();
  in_workspace(cuda::backward_workspace(alone), [&](void* workspace, cudaStream_t stream) {
    return cuda::backward(alone, workspace, stream);
  });
  bool same = same_bits(together.risk, apart.risk) && same_bits(together.logits, apart.logits) &&
              same_bits(together.grad_head, apart.grad_head) &&
              same_bits(together.grad_bias, apart.grad_bias);
  for (size_t k = 0; k < expected.arrays.size(); ++k) {
    const Array<A>& x = gradients.arrays[k];
    same = same && same_bits(x, expected.arrays[k]);
    for (int64_t at = 0; at < x.size; ++at) same = same && std::isfinite(x.get()[at]);
  }
  expect(same, c.name + (sizeof(A) == 8 ? ", float64" : ", float32") + ": the passes together and apart");
}

}  // namespace

int main() {
  const int64_t shapes[][4] = {{8, 32, 8, 32}, {40, 70, 5, 9}, {100, 140, 3, 5}};
  for (const std::vector<int64_t>& offsets :
       {std::vector<int64_t>{0}, {0, 0}, {0, 3, 3, 4, 20}, {0, 10, 20, 30}})
    for (const auto& s : shapes)
      for (const Aggregation aggregation : {Aggregation::mean, Aggregation::neighbor_mean}) {
        plain::Case c = {};
        c.name = std::to_string(offsets.size() - 1) + " graphs, " + std::to_string(s[0]) + " x " +
                 std::to_string(s[1]);
        c.d = s[0], c.H = s[1], c.b = s[2], c.He = s[3];
        c.offsets = offsets, c.aggregation = aggregation, c.l2 = false;
        plain::fill(c, 5);
        const plain::Bag bag = plain::as_bag(c, 7, true, 6);
        check_whole<float>(bag), check_whole<double>(bag);
      }
  std::mt19937 random(3);
  std::normal_distribution<float> normal;  // exact in float32 and float64
  std::uniform_real_distribution<float> uniform;
  const auto draw = [&](int64_t size, auto& from) {
    Values values(size);
    for (double& x : values) x = from(random);
    return values;
  };
  for (const int64_t graphs : {0, 1, 31, 256, 1500})
    for (const int64_t d : {1, 8, 40})
      for (const Loss loss : {Loss::bce, Loss::mse})
        for (const bool biased : {false, true}) {
          const Given given = {graphs,
                               d,
                               loss,
                               biased,
                               draw(graphs * d, uniform),
                               draw(graphs, uniform),
                               draw(d, normal),
                               draw(biased, normal),
                               draw(graphs, uniform),
                               draw(graphs, uniform)};
          check<float>(given), check<double>(given);
        }
  return summary();
}
