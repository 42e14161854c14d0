#include "rows.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

namespace l0sign {
namespace cpu {
namespace {

constexpr int kMaxDigitBits = 12;          // counters of one digit stay in the L1 cache
constexpr size_t kKeptKeys = 1 << 19;      // sort buffers that a thread keeps between calls
constexpr int64_t kRowsAhead = 64;         // rows that are under way from memory together
constexpr int64_t kGrainValues = 1 << 14;  // numbers that are worth a thread

int bit_count(uint64_t largest) {
  int bits = 0;
  for (; largest; largest >>= 1) ++bits;
  return bits;
}

// Sorts keys by their bits [first, first + bits), stably; `other` is scratch of the same size.
void radix_sort(std::vector<uint64_t>& keys, std::vector<uint64_t>& other, int first, int bits) {
  const int passes = (bits + kMaxDigitBits - 1) / kMaxDigitBits;
  if (!passes) return;
  const int digit_bits = (bits + passes - 1) / passes;
  const uint64_t mask = (uint64_t{1} << digit_bits) - 1;
  std::vector<uint32_t> next(size_t{1} << digit_bits);
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = first + pass * digit_bits;
    std::fill(next.begin(), next.end(), 0);
    for (const uint64_t key : keys) ++next[key >> shift & mask];
    uint32_t sum = 0;
    for (uint32_t& at : next) sum += std::exchange(at, sum);
    for (const uint64_t key : keys) other[next[key >> shift & mask]++] = key;
    keys.swap(other);
  }
}

// Loads every cache line of a row: of many rows one after another, so that the processor waits for all of
// them together. Prefetch instructions take as long in tables of millions of rows, and longer in smaller
// ones.
template <class A>
void touch_row(const A* row, int64_t width) {
  constexpr int64_t kLine = 64;
  const char *begin = reinterpret_cast<const char*>(row), *end = reinterpret_cast<const char*>(row + width);
  for (const char* line = begin; line < end; line += kLine - reinterpret_cast<uintptr_t>(line) % kLine)
    (void)*static_cast<const volatile char*>(line);
}

template <class A>
void sum(const RowGroups& groups, const A* grads, int64_t width, A* out, bool to_table) {
  const int64_t total = static_cast<int64_t>(groups.positions.size());
  // Threads share the positions evenly: a row belongs to the one that has its first.
  torch::stable::parallel_for(0, total, std::max<int64_t>(1, kGrainValues / std::max<int64_t>(1, width)),
                              [&](int64_t first, int64_t last) {
                                const auto at = [&](int64_t position) {
                                  return std::lower_bound(groups.begin.begin(), groups.begin.end() - 1,
                                                          position) -
                                         groups.begin.begin();
                                };
                                const int64_t end = at(last);
                                for (int64_t u = at(first); u < end; ++u) {
                                  A* row = out + (to_table ? groups.rows[u] : u) * width;
                                  const int64_t begin = groups.begin[u], stop = groups.begin[u + 1];
                                  const A* grad = grads + groups.positions[begin] * width;
                                  std::copy(grad, grad + width, row);
                                  for (int64_t p = begin + 1; p < stop; ++p) {
                                    if (p + kRowsAhead < total)
                                      __builtin_prefetch(grads + groups.positions[p + kRowsAhead] * width);
                                    grad = grads + groups.positions[p] * width;
                                    for (int64_t k = 0; k < width; ++k) row[k] += grad[k];
                                  }
                                }
                              });
}

// Calls update(row, gradient's row, steps missed) for all rows, and touch(row) some rows before that.
template <class A, class Touch, class Update>
void for_rows(const RowGradient<A>& gradient, const WeightDecay& decay, Touch touch, Update update) {
  const int64_t grain = std::max<int64_t>(1, kGrainValues / gradient.width);
  torch::stable::parallel_for(0, gradient.count, grain, [&](int64_t first, int64_t last) {
    for (int64_t u = first; u < last; ++u) {
      if (gradient.rows && (u - first) % kRowsAhead == 0)  // all rows in their order are foreseen anyway
        for (int64_t ahead = u; ahead < std::min(u + kRowsAhead, last); ++ahead) {
          touch(gradient.rows[ahead]);
          if (decay.row_step) touch_row(decay.row_step + gradient.rows[ahead], 1);
        }
      const int64_t row = gradient.rows ? gradient.rows[u] : u;
      int64_t missed = 0;
      if (decay.row_step) {
        const int64_t before = decay.row_step[row];
        if (before) missed = std::max<int64_t>(0, decay.step - before - 1);
        decay.row_step[row] = static_cast<int32_t>(decay.step);
      }
      update(row, gradient.grad + u * gradient.width, missed);
    }
  });
}

}  // namespace

std::string out_of_range(const int64_t* ids, int64_t count, int64_t num_rows) {
  if (num_rows < 0) return "num_rows: expected at least 0, got " + std::to_string(num_rows);
  const int64_t* wrong = std::find_if(ids, ids + count, [&](int64_t id) { return id < 0 || id >= num_rows; });
  return "ids: expected values in 0.." + std::to_string(num_rows - 1) + ", got " +
         std::to_string(wrong == ids + count ? 0 : *wrong);
}

RowGroups group_rows(const int64_t* ids, int64_t count, int64_t num_rows) {
  // A key is an id above its position, so that a stable sort of the ids leaves positions ascending.
  const int position_bits = bit_count(count > 0 ? count - 1 : 0);
  const int id_bits = bit_count(num_rows > 0 ? num_rows - 1 : 0);
  if (position_bits > 32 || position_bits + id_bits > 64)
    throw std::runtime_error(
        "ids: expected at most 2^32 that can be indexed together with the table's rows in 64 bits, got " +
        std::to_string(count) + " ids of " + std::to_string(num_rows) + " rows");
  static thread_local std::vector<uint64_t> keys, other;
  keys.resize(count);
  other.resize(count);
  bool valid = num_rows >= 0;
  for (int64_t p = 0; p < count; ++p) {
    valid &= static_cast<uint64_t>(ids[p]) < static_cast<uint64_t>(num_rows);
    keys[p] = (static_cast<uint64_t>(ids[p]) << position_bits) | static_cast<uint64_t>(p);
  }
  if (!valid) throw std::runtime_error(out_of_range(ids, count, num_rows));
  radix_sort(keys, other, position_bits, id_bits);

  RowGroups groups;
  groups.positions.resize(count);
  groups.rows.resize(count);
  groups.begin.resize(count + 1);
  const uint64_t mask = (uint64_t{1} << position_bits) - 1;
  int64_t u = 0, previous = -1;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t id = static_cast<int64_t>(keys[k] >> position_bits);
    groups.positions[k] = static_cast<int64_t>(keys[k] & mask);
    // Written again for each position but the first, instead of a branch that cannot be foreseen.
    u += id != previous;
    previous = id;
    groups.rows[u - 1] = id;
    groups.begin[u] = k + 1;
  }
  groups.rows.resize(u);
  groups.begin.resize(u + 1);
  if (keys.capacity() > kKeptKeys) {
    keys = {};
    other = {};
  }
  return groups;
}

template <class A>
void sum_rows(const RowGroups& groups, const A* grads, int64_t width, A* out) {
  sum(groups, grads, width, out, false);
}

template <class A>
void sum_rows_to_table(const RowGroups& groups, const A* grads, int64_t width, A* table) {
  sum(groups, grads, width, table, true);
}

template <class A>
void update_rows(const RowGradient<A>& gradient, const Adagrad<A>& rule) {
  const int64_t width = gradient.width;
  const A lr = A(rule.lr), weight_decay = A(rule.decay.value), eps = A(rule.eps);
  for_rows(
      gradient, rule.decay,
      [&](int64_t row) {
        touch_row(rule.param + row * width, width);
        touch_row(rule.state_sum + row * width, width);
      },
      [=](int64_t row, const A* __restrict grad, int64_t missed) {
        A* __restrict param = rule.param + row * width, * __restrict sum = rule.state_sum + row * width;
        const A lost = static_cast<A>(missed) * lr * weight_decay;
        if (lost > 0)
          for (int64_t k = 0; k < width; ++k) param[k] /= 1 + lost / (std::sqrt(sum[k]) + eps);
        for (int64_t k = 0; k < width; ++k) {
          const A g = grad[k] + weight_decay * param[k];
          sum[k] += g * g;
          param[k] -= lr * (g / (std::sqrt(sum[k]) + eps));
        }
      });
}

template <class A>
void update_rows(const RowGradient<A>& gradient, const Adam<A>& rule) {
  const int64_t width = gradient.width;
  const double step = static_cast<double>(rule.decay.step);
  const A step_size = A(rule.lr / (1 - std::pow(rule.beta1, step)));
  const A correction = A(std::sqrt(1 - std::pow(rule.beta2, step)));
  // 1 - beta in double: in float32 little would be left of its digits.
  const A share1 = A(1 - rule.beta1), beta2 = A(rule.beta2), share2 = A(1 - rule.beta2);
  const A lr = A(rule.lr), weight_decay = A(rule.decay.value), eps = A(rule.eps);
  for_rows(
      gradient, rule.decay,
      [&](int64_t row) {
        touch_row(rule.param + row * width, width);
        touch_row(rule.exp_avg + row * width, width);
        touch_row(rule.exp_avg_sq + row * width, width);
      },
      [=](int64_t row, const A* __restrict grad, int64_t missed) {
        A* __restrict param = rule.param + row * width, * __restrict m = rule.exp_avg + row * width, * __restrict v = rule.exp_avg_sq + row * width;
        const A lost = static_cast<A>(missed) * lr * weight_decay;
        if (lost > 0)
          for (int64_t k = 0; k < width; ++k) param[k] /= 1 + lost / (std::sqrt(v[k]) / correction + eps);
        for (int64_t k = 0; k < width; ++k) {
          const A g = grad[k] + weight_decay * param[k];
          m[k] += share1 * (g - m[k]);
          v[k] = beta2 * v[k] + share2 * g * g;
          param[k] -= step_size * (m[k] / (std::sqrt(v[k]) / correction + eps));
        }
      });
}

template void sum_rows(const RowGroups&, const float*, int64_t, float*);
template void sum_rows(const RowGroups&, const double*, int64_t, double*);
template void sum_rows_to_table(const RowGroups&, const float*, int64_t, float*);
template void sum_rows_to_table(const RowGroups&, const double*, int64_t, double*);
template void update_rows(const RowGradient<float>&, const Adagrad<float>&);
template void update_rows(const RowGradient<double>&, const Adagrad<double>&);
template void update_rows(const RowGradient<float>&, const Adam<float>&);
template void update_rows(const RowGradient<double>&, const Adam<double>&);

}  // namespace cpu
}  // namespace l0sign
