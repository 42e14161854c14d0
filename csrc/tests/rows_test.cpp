// The row-wise work on tables without torch or Python, to be run under AddressSanitizer and
// UndefinedBehaviorSanitizer: every array is allocated to its exact size, and results are compared with plain
// loops.
#include "../cpu/rows.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

// The one function of torch that the CPU code calls: here on one thread, in as many parts as `parts` says.
static int64_t parts = 1;
extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t,
                                      void (*run)(int64_t, int64_t, void*), void* context) {
  for (int64_t k = 0; k < parts; ++k)
    run(begin + (end - begin) * k / parts, begin + (end - begin) * (k + 1) / parts, context);
  return 0;
}

namespace {

using namespace l0sign::cpu;

int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  ok ? ++passed : ++failed;
  if (!ok) std::printf("FAILED: %s\n", what.c_str());
}

template <class A>
std::vector<A> normal(int64_t size, std::mt19937& random) {
  std::normal_distribution<A> distribution;
  std::vector<A> values(size);
  for (A& x : values) x = distribution(random);
  return values;
}

std::vector<int64_t> draw_ids(int64_t count, int64_t num_rows, std::mt19937_64& random) {
  std::vector<int64_t> ids(count);
  // Half of them of a few rows, as a field with few values has them.
  for (int64_t k = 0; k < count; ++k)
    ids[k] = static_cast<int64_t>(random() %
                                  static_cast<uint64_t>(k % 2 ? num_rows : std::min<int64_t>(num_rows, 3)));
  if (count) ids.back() = num_rows - 1;
  return ids;
}

std::map<int64_t, std::vector<int64_t>> positions_of(const std::vector<int64_t>& ids) {
  std::map<int64_t, std::vector<int64_t>> positions;
  for (size_t k = 0; k < ids.size(); ++k) positions[ids[k]].push_back(static_cast<int64_t>(k));
  return positions;
}

void check_groups(const std::vector<int64_t>& ids, int64_t num_rows, const std::string& name) {
  const RowGroups groups = group_rows(ids.data(), static_cast<int64_t>(ids.size()), num_rows);
  const auto expected = positions_of(ids);
  bool same = groups.rows.size() == expected.size() && groups.begin.size() == expected.size() + 1 &&
              groups.positions.size() == ids.size() && groups.begin[0] == 0;
  size_t u = 0;
  for (const auto& [row, positions] : expected) {
    if (!same) break;
    same = groups.rows[u] == row &&
           groups.begin[u + 1] - groups.begin[u] == static_cast<int64_t>(positions.size()) &&
           std::equal(positions.begin(), positions.end(), groups.positions.begin() + groups.begin[u]);
    ++u;
  }
  check(same, name + ": groups");
}

template <class A>
void check_sums(const std::vector<int64_t>& ids, int64_t num_rows, int64_t width, const std::string& name,
                std::mt19937& random) {
  const int64_t count = static_cast<int64_t>(ids.size());
  const RowGroups groups = group_rows(ids.data(), count, num_rows);
  const std::vector<A> grads = normal<A>(count * width, random);
  std::vector<A> expected;
  for (const auto& [row, positions] : positions_of(ids))
    for (int64_t k = 0; k < width; ++k) {
      A sum = grads[positions[0] * width + k];
      for (size_t p = 1; p < positions.size(); ++p) sum += grads[positions[p] * width + k];
      expected.push_back(sum);
    }
  for (parts = 1; parts < 8; parts += 3) {
    std::vector<A> out(groups.count() * width, A(NAN)), table(num_rows * width, A(7));
    sum_rows(groups, grads.data(), width, out.data());
    check(out == expected, name + ": sums in " + std::to_string(parts) + " parts");
    sum_rows_to_table(groups, grads.data(), width, table.data());
    bool same = true;
    for (int64_t u = 0; u < groups.count(); ++u)
      for (int64_t k = 0; k < width; ++k) {
        A& entry = table[groups.rows[u] * width + k];
        same = same && entry == expected[u * width + k];
        entry = A(7);
      }
    check(same && std::all_of(table.begin(), table.end(), [](A x) { return x == A(7); }),
          name + ": sums in a table");
  }
  parts = 1;
}

template <class A>
void check_updates(const std::vector<int64_t>& ids, int64_t num_rows, int64_t width, const std::string& name,
                   std::mt19937& random) {
  const RowGroups groups = group_rows(ids.data(), static_cast<int64_t>(ids.size()), num_rows);
  const int64_t U = groups.count();
  const std::vector<A> grad = normal<A>(U * width, random), param = normal<A>(num_rows * width, random);
  std::vector<A> squares = normal<A>(num_rows * width, random), means = normal<A>(num_rows * width, random);
  for (A& x : squares) x *= x;
  const double lr = 0.1, decay = 0.01, eps = 1e-8, beta1 = 0.9, beta2 = 0.999;
  const int64_t step = 7;
  const double step_size = lr / (1 - std::pow(beta1, step)),
               correction = std::sqrt(1 - std::pow(beta2, step));
  const RowGradient<A> gradient = {groups.rows.data(), grad.data(), U, width};
  const double tolerance = sizeof(A) == 8 ? 1e-14 : 2e-6;
  std::vector<int32_t> row_step(num_rows);
  for (int64_t row = 0; row < num_rows; ++row) row_step[row] = static_cast<int32_t>(row % step);
  for (parts = 1; parts < 8; parts += 3) {
    std::vector<A> p = param, s = squares, q = param, m = means, v = squares;
    std::vector<int32_t> seen = row_step;
    update_rows(gradient, Adagrad<A>{p.data(), s.data(), lr, eps, {decay, step, seen.data()}});
    update_rows(gradient,
                Adam<A>{q.data(), m.data(), v.data(), lr, beta1, beta2, eps, {decay, step, nullptr}});
    double worst = 0;
    bool untouched = true;
    for (int64_t row = 0, u = 0; row < num_rows; ++row) {
      const bool touched = u < U && groups.rows[u] == row;
      untouched = untouched && seen[row] == (touched ? step : row_step[row]);
      for (int64_t k = 0; k < width; ++k) {
        const int64_t at = row * width + k;
        if (!touched) {
          untouched = untouched && p[at] == param[at] && s[at] == squares[at] && q[at] == param[at] &&
                      m[at] == means[at] && v[at] == squares[at];
          continue;
        }
        const auto differ = [&](A actual, double expected) {
          worst = std::max(worst, std::abs(actual - expected) / (1 + std::abs(expected)));
        };
        const int64_t missed = row_step[row] ? step - 1 - row_step[row] : 0;
        double x = param[at] / (1 + missed * lr * decay / (std::sqrt(double{squares[at]}) + eps));
        double g = grad[u * width + k] + decay * x;
        const double sum = squares[at] + g * g;
        differ(s[at], sum), differ(p[at], x - lr * g / (std::sqrt(sum) + eps));
        x = param[at], g = grad[u * width + k] + decay * x;
        const double mean = beta1 * means[at] + (1 - beta1) * g;
        const double square = beta2 * squares[at] + (1 - beta2) * g * g;
        differ(m[at], mean), differ(v[at], square);
        differ(q[at], x - step_size * mean / (std::sqrt(square) / correction + eps));
      }
      u += touched;
    }
    check(worst < tolerance, name + ": updates, off by " + std::to_string(worst));

    // All rows without a list of them.
    std::vector<int64_t> every(num_rows);
    std::iota(every.begin(), every.end(), int64_t{0});
    std::vector<A> p1 = param, s1 = squares, p2 = param, s2 = squares;
    update_rows(RowGradient<A>{every.data(), means.data(), num_rows, width},
                Adagrad<A>{p1.data(), s1.data(), lr, eps, {decay, step, nullptr}});
    update_rows(RowGradient<A>{nullptr, means.data(), num_rows, width},
                Adagrad<A>{p2.data(), s2.data(), lr, eps, {decay, step, nullptr}});
    check(p1 == p2 && s1 == s2 && p1 != param, name + ": all rows");
    check(untouched, name + ": other rows stay");
  }
  parts = 1;
}

}  // namespace

int main() {
  std::mt19937_64 ids_random(3);
  std::mt19937 random(7);
  for (int64_t count : {0, 1, 2, 13, 1000, 10240})
    for (int64_t num_rows : {int64_t{1}, int64_t{2}, int64_t{5382}, int64_t{1} << 23, int64_t{1} << 40}) {
      const std::vector<int64_t> ids = draw_ids(count, num_rows, ids_random);
      const std::string name = std::to_string(count) + " ids of " + std::to_string(num_rows);
      check_groups(ids, num_rows, name);
      if (num_rows > 10000 || count > 1000) continue;
      for (int64_t width : {1, 5, 8, 40}) {
        check_sums<float>(ids, num_rows, width, name + " float32", random);
        check_sums<double>(ids, num_rows, width, name + " float64", random);
        check_updates<float>(ids, num_rows, width, name + " float32", random);
        check_updates<double>(ids, num_rows, width, name + " float64", random);
      }
    }
  for (int64_t wrong : {int64_t{-1}, int64_t{5}, int64_t{1} << 40}) {
    const int64_t ids[] = {0, 4, wrong};
    std::string message;
    try {
      group_rows(ids, 3, 5);
    } catch (const std::runtime_error& error) {
      message = error.what();
    }
    check(message == "ids: expected values in 0..4, got " + std::to_string(wrong), "an id out of range");
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
