// The CUDA kernels between the forward and the backward of a risk, on the host executor under
// AddressSanitizer and UndefinedBehaviorSanitizer: against plain loops, and in several orders of the threads,
// which must not change a bit.
#include <cmath>
#include <random>
#include <string>

#include "arrays.h"
#include "cuda/risk.h"

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

}  // namespace

int main() {
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
