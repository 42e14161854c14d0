// The CUDA kernels on the rows of tables, on the host executor under AddressSanitizer and
// UndefinedBehaviorSanitizer: against plain loops, and in several orders of the threads, which must not
// change a bit.
#include <cmath>
#include <map>
#include <numeric>
#include <random>
#include <string>

#include "arrays.h"
#include "cuda/rows.h"

namespace {

using namespace l0sign;
using namespace l0sign::cuda;

const simt::Order kOrders[] = {simt::Order::ascending, simt::Order::descending, simt::Order::shuffled};

template <class A>
double tolerance() {
  return sizeof(A) == 8 ? 1e-14 : 4e-6;
}

std::vector<double> normal(int64_t size, std::mt19937& random) {
  std::normal_distribution<float> distribution;  // exact in float32 and float64
  std::vector<double> values(size);
  for (double& x : values) x = distribution(random);
  return values;
}

template <class A>
bool close(A actual, double expected) {
  return std::abs(actual - expected) <= tolerance<A>() * (1 + std::abs(expected));  // also false for NaN
}

// ---- Sums ----

// Positions by their ids, as torch's stable sort has them.
struct Sorted {
  std::vector<int64_t> id, order, place;  // place: where the id stands among those that occur
  int64_t unique = 0;

  explicit Sorted(const std::vector<int64_t>& ids) : id(ids), order(ids.size()), place(ids.size()) {
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return ids[a] < ids[b]; });
    for (size_t k = 0; k < order.size(); ++k) {
      id[k] = ids[order[k]];
      place[k] = (unique += k == 0 || id[k] != id[k - 1]) - 1;
    }
  }
};

template <class A>
Array<A> sums(const std::vector<int64_t>& place, const std::vector<int64_t>& order, const Array<A>& grads,
              int64_t width, int64_t num_rows) {
  const Array<int64_t> place_array = copy<int64_t>(place), order_array = copy<int64_t>(order);
  Array<A> out = copy<A>(std::vector<double>(num_rows * width, 7.0));
  const auto count = static_cast<int64_t>(place.size());
  in_workspace(cuda::sum_rows_workspace<A>(count, width), [&](void* workspace, cudaStream_t stream) {
    return cuda::sum_rows(cuda::RowOrder{place_array.get(), order_array.get(), count}, grads.get(), width,
                          out.get(), num_rows, workspace, stream);
  });
  return out;
}

template <class A>
void check_sums(const std::vector<int64_t>& ids, int64_t num_rows, int64_t width, std::mt19937& random) {
  const std::string what = std::to_string(ids.size()) + " ids of " + std::to_string(num_rows) + " rows of " +
                           std::to_string(width) + (sizeof(A) == 8 ? ", float64" : ", float32");
  const std::vector<double> given = normal(static_cast<int64_t>(ids.size()) * width, random);
  const Array<A> grads = copy<A>(given);
  std::map<int64_t, std::vector<double>> expected;
  for (size_t k = 0; k < ids.size(); ++k) {
    std::vector<double>& row = expected[ids[k]];
    row.resize(width, 0.0);
    for (int64_t m = 0; m < width; ++m) row[m] += given[k * width + m];
  }
  const Sorted sorted(ids);
  simt::set_order(simt::Order::ascending);
  const Array<A> table = sums(sorted.id, sorted.order, grads, width, num_rows);
  const Array<A> rows = sums(sorted.place, sorted.order, grads, width, sorted.unique);
  for (const simt::Order order : kOrders) {
    simt::set_order(order);
    expect(same_bits(table, sums(sorted.id, sorted.order, grads, width, num_rows)) &&
               same_bits(rows, sums(sorted.place, sorted.order, grads, width, sorted.unique)),
           what + ": the order of threads changed a sum");
  }
  bool in_table = true, in_rows = true, same = true;
  int64_t u = 0;
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto found = expected.find(row);
    for (int64_t m = 0; m < width; ++m) {
      const A sum = table.get()[row * width + m];
      in_table = in_table && (found == expected.end() ? sum == A(7) : close(sum, found->second[m]));
    }
  }
  for (const auto& [id, row] : expected) {
    for (int64_t m = 0; m < width; ++m) {
      const A sum = rows.get()[u * width + m];
      in_rows = in_rows && close(sum, row[m]);
      if (id >= 0 && id < num_rows) same = same && sum == table.get()[id * width + m];
    }
    ++u;
  }
  expect(in_table, what + ": sums in a table, whose other rows stay");
  expect(in_rows, what + ": sums of the rows that occur");
  expect(same, what + ": the same sums in both");
}

// ---- Updates ----

template <class A>
struct Tables {
  Array<A> adagrad, squares, adam, means, variances;
  Array<int32_t> row_step;
};

template <class A>
void check_updates(const std::vector<int64_t>& rows, int64_t num_rows, int64_t width, bool counted,
                   std::mt19937& random) {
  const std::string what = std::to_string(rows.size()) + " of " + std::to_string(num_rows) + " rows of " +
                           std::to_string(width) + (sizeof(A) == 8 ? ", float64" : ", float32") +
                           (counted ? ", counted" : "");
  const auto U = static_cast<int64_t>(rows.size());
  const std::vector<double> grad = normal(U * width, random), param = normal(num_rows * width, random);
  const std::vector<double> means = normal(num_rows * width, random);
  std::vector<double> squares = normal(num_rows * width, random);
  for (double& x : squares) x = static_cast<float>(x * x);
  const double lr = 0.1, decay = 0.01, eps = 1e-8, beta1 = 0.9, beta2 = 0.999;
  const int64_t step = 7;
  std::vector<int32_t> row_step(num_rows);
  for (int64_t row = 0; row < num_rows; ++row) row_step[row] = static_cast<int32_t>(row % step);

  const Array<int64_t> touched = copy<int64_t>(rows);
  const Array<A> gradient = copy<A>(grad);
  const auto run = [&] {
    Tables<A> t = {copy<A>(param), copy<A>(squares), copy<A>(param),
                   copy<A>(means), copy<A>(squares), copy<int32_t>(row_step)};
    const RowGradient<A> g = {touched.get(), gradient.get(), U, width};
    const WeightDecay with_steps = {decay, step, counted ? t.row_step.get() : nullptr};
    expect(cuda::update_rows(g,
                             Adam<A>{t.adam.get(),
                                     t.means.get(),
                                     t.variances.get(),
                                     lr,
                                     beta1,
                                     beta2,
                                     eps,
                                     {decay, step, nullptr}},
                             num_rows, cudaStream_t{}) == cudaSuccess &&
               cuda::update_rows(g, Adagrad<A>{t.adagrad.get(), t.squares.get(), lr, eps, with_steps},
                                 num_rows, cudaStream_t{}) == cudaSuccess,
           what + ": launches");
    return t;
  };
  simt::set_order(simt::Order::ascending);
  const Tables<A> t = run();
  for (const simt::Order order : kOrders) {
    simt::set_order(order);
    const Tables<A> other = run();
    expect(same_bits(t.adagrad, other.adagrad) && same_bits(t.squares, other.squares) &&
               same_bits(t.adam, other.adam) && same_bits(t.means, other.means) &&
               same_bits(t.variances, other.variances) && same_bits(t.row_step, other.row_step),
           what + ": the order of threads changed an update");
  }
  const double step_size = lr / (1 - std::pow(beta1, step)),
               correction = std::sqrt(1 - std::pow(beta2, step));
  bool right = true, others = true;
  for (int64_t row = 0; row < num_rows; ++row) {
    const auto u = std::find(rows.begin(), rows.end(), row) - rows.begin();
    const bool is_touched = u < U;
    others = others && t.row_step.get()[row] == (is_touched && counted ? step : row_step[row]);
    for (int64_t m = 0; m < width; ++m) {
      const int64_t at = row * width + m;
      const A found[] = {t.adagrad.get()[at], t.squares.get()[at], t.adam.get()[at], t.means.get()[at],
                         t.variances.get()[at]};
      const double before[] = {param[at], squares[at], param[at], means[at], squares[at]};
      if (!is_touched) {
        for (int k = 0; k < 5; ++k) others = others && found[k] == static_cast<A>(before[k]);
        continue;
      }
      const int64_t missed = counted && row_step[row] ? step - 1 - row_step[row] : 0;
      double x = param[at] / (1 + static_cast<double>(missed) * lr * decay / (std::sqrt(squares[at]) + eps));
      double g = grad[u * width + m] + decay * x;
      const double sum = squares[at] + g * g;
      right = right && close(found[0], x - lr * g / (std::sqrt(sum) + eps)) && close(found[1], sum);
      x = param[at], g = grad[u * width + m] + decay * x;
      const double mean = beta1 * means[at] + (1 - beta1) * g;
      const double square = beta2 * squares[at] + (1 - beta2) * g * g;
      right = right && close(found[2], x - step_size * mean / (std::sqrt(square) / correction + eps)) &&
              close(found[3], mean) && close(found[4], square);
    }
  }
  expect(right, what + ": updates");
  expect(others, what + ": other rows stay");
}

}  // namespace

int main() {
  std::mt19937 random(3);
  // Half of the ids are of a few rows, and run over many parts of the sorted positions.
  for (const int64_t count : {0, 1, 2, 31, 32, 33, 64, 65, 500})
    for (const int64_t num_rows : {1, 2, 9, 400}) {
      std::vector<int64_t> ids(count);
      for (int64_t k = 0; k < count; ++k)
        ids[k] = static_cast<int64_t>(random() % (k % 2 ? num_rows : std::min<int64_t>(num_rows, 2)));
      for (const int64_t width : {1, 5, 8}) {
        check_sums<float>(ids, num_rows, width, random);
        check_sums<double>(ids, num_rows, width, random);
      }
      if (count < 4) continue;
      ids[0] = ids[3] = -1, ids[1] = num_rows, ids[2] = int64_t{1} << 60;  // out of range: left out
      check_sums<float>(ids, num_rows, 3, random);
    }
  for (const bool counted : {false, true})
    for (const int64_t width : {1, 5, 8})
      for (const std::vector<int64_t>& rows :
           {std::vector<int64_t>{}, {0}, {0, 1, 5, 39}, {-1, 3, 40, int64_t{1} << 60}}) {
        check_updates<float>(rows, 40, width, counted, random);
        check_updates<double>(rows, 40, width, counted, random);
      }
  std::vector<int64_t> all(300);
  std::iota(all.begin(), all.end(), int64_t{0});
  check_updates<float>(all, 300, 3, true, random);
  return summary();
}
