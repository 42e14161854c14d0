// Work on the rows of embedding tables that a batch touches: which rows those are, the sums of their
// gradients, and optimizer updates in place. Nothing here takes time or memory in proportion to a table.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace l0sign {
namespace cpu {

// The positions of every id in a batch.
struct RowGroups {
  std::vector<int64_t> rows;   // [U] the ids, once each, ascending
  std::vector<int64_t> begin;  // [U + 1]
  std::vector<int64_t>
      positions;  // [N] those of rows[u] are positions[begin[u]] to [begin[u + 1] - 1], ascending
  int64_t count() const { return static_cast<int64_t>(rows.size()); }
};

// Says which id is outside 0 .. num_rows - 1.
std::string out_of_range(const int64_t* ids, int64_t count, int64_t num_rows);

// Throws std::runtime_error with that for such an id.
RowGroups group_rows(const int64_t* ids, int64_t count, int64_t num_rows);

// Adds up the gradients [N, width] of each row's positions, in the order of the positions: no sum depends on
// the number of threads. Row u of the sums goes to row u of `out` [U, width].
template <class A>
void sum_rows(const RowGroups& groups, const A* grads, int64_t width, A* out);
// The same, with the sums of row u in row groups.rows[u] of a dense `table` [J, width]; other rows stay.
template <class A>
void sum_rows_to_table(const RowGroups& groups, const A* grads, int64_t width, A* table);

// `count` different rows of a table [J, width], and the gradient [count, width] of each.
template <class A>
struct RowGradient {
  const int64_t* rows;  // null: all rows, in their order
  const A* grad;
  int64_t count, width;
};

// Weight decay (L2). Each step decays the rows it touches through their gradient. What the steps since a
// row's last one missed, `missed` of them, is made up for at first, with the row's rate r of learning (lr
// over the root of its squared gradients) as it was all the time: param /= 1 + missed r value, which cannot
// overshoot.
struct WeightDecay {
  double value;
  int64_t step;       // the number of this step, from 1
  int32_t* row_step;  // [J] the last step that touched a row, 0 before the first; null without weight decay
};

// sum += g^2, param -= lr g / (sqrt(sum) + eps), where g = grad + weight_decay param.
template <class A>
struct Adagrad {
  A *param, *state_sum;  // [J, width]
  double lr, eps;
  WeightDecay decay;
};

// m += (1 - beta1) (g - m), v = beta2 v + (1 - beta2) g^2, param -= step_size m / (sqrt(v) / correction +
// eps), where g = grad + weight_decay param, step_size = lr / (1 - beta1^step) and correction = sqrt(1 -
// beta2^step).
template <class A>
struct Adam {
  A *param, *exp_avg, *exp_avg_sq;  // [J, width]
  double lr, beta1, beta2, eps;
  WeightDecay decay;
};

template <class A>
void update_rows(const RowGradient<A>& gradient, const Adagrad<A>& rule);
template <class A>
void update_rows(const RowGradient<A>& gradient, const Adam<A>& rule);

}  // namespace cpu
}  // namespace l0sign
