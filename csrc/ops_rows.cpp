// The operators on the rows of embedding tables: sparse gradients, and the optimizers that apply them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "checks.h"
#include "cpu/rows.h"
#include "row_sums.h"
#include "tensors.h"
#ifdef L0SIGN_HAVE_CUDA
#include "cuda/registration.h"
#endif

namespace l0sign {
namespace {

// ---- Gradients ----

// The sums of the gradients [N, width] of each row, in float32 at least, in the type of `grad`.
Tensor sum_of_rows(const RowSums& sums, int64_t num_positions, const Tensor& grad, const char* name) {
  L0SIGN_EXPECT(grad.dim() == 2 && grad.sizes()[0] == num_positions && grad.sizes()[1] > 0,
                std::string(name) + ": expected shape [" + std::to_string(num_positions) + ", width], got " +
                    shape_of(grad));
  return by_type(grad, [&](auto type) {
    using A = decltype(type);
    return as(sums.of<A>(torch::stable::contiguous(in_type(grad, kType<A>))), grad);
  });
}

std::tuple<Tensor, Tensor, Tensor> embedding_rows(const Tensor& ids, const Tensor& grad_node,
                                                  const OptionalTensor& grad_edge, int64_t num_rows) {
  expect_type(ids, "ids", ScalarType::Long);
  L0SIGN_EXPECT(ids.dim() == 1, "ids: expected shape [N], got " + shape_of(ids));
  expect_device(grad_node, "grad_node", ids, "ids");
  if (grad_edge) expect_device(*grad_edge, "grad_edge", ids, "ids");
  const int64_t N = ids.numel();
  const RowSums sums(torch::stable::contiguous(ids), num_rows, true);
  const Tensor node_rows = sum_of_rows(sums, N, grad_node, "grad_node");
  const Tensor edge_rows = grad_edge ? sum_of_rows(sums, N, *grad_edge, "grad_edge")
                                     : empty_of(grad_node, {0}, grad_node.scalar_type());
  return {sums.rows, node_rows, edge_rows};
}

// ---- Optimizers ----

constexpr int64_t kGrainRows = 1 << 16;  // row_step of so many rows is worth a thread

// The parameters of a step, one after another in every list. The first `rows.size()` have gradients of rows;
// those of the others are dense.
struct Group {
  const std::vector<Tensor>&params, &steps, &row_steps, &rows, &grads;
  double weight_decay;

  bool is_dense(size_t k) const { return k >= rows.size(); }
};

// The rows of a tensor [J, ..] and the numbers of each; a scalar is one row.
struct Table {
  int64_t rows = 1, width = 1;
  explicit Table(const Tensor& t) {
    for (int64_t k = 0; k < t.dim(); ++k) (k ? width : rows) *= t.sizes()[k];
  }
};

void expect_like(const Tensor& t, const char* name, const Tensor& param) {
  expect_device(t, name, param, "its parameter");
  expect_type(t, name, param.scalar_type());
  const bool same =
      t.dim() == param.dim() && std::equal(t.sizes().begin(), t.sizes().end(), param.sizes().begin());
  L0SIGN_EXPECT(same, std::string(name) + ": expected shape " + shape_of(param) + ", got " + shape_of(t));
}

// Of parameter k and of its states; before anything is changed.
void check(const Group& group, size_t k, std::initializer_list<const Tensor*> states) {
  const Tensor &param = group.params[k], &grad = group.grads[k], &row_step = group.row_steps[k];
  L0SIGN_EXPECT(param.scalar_type() == ScalarType::Float || param.scalar_type() == ScalarType::Double,
                "param: expected dtype float32 or float64");
  L0SIGN_EXPECT(param.is_contiguous(), "param: expected a contiguous tensor");
  L0SIGN_EXPECT(param.is_cpu() || !group.is_dense(k), "param: expected gradients of rows for a CUDA tensor");
  for (const Tensor* state : states) {
    expect_like(*state, "state", param);
    L0SIGN_EXPECT(state->is_contiguous(), "state: expected a contiguous tensor");
  }
  L0SIGN_EXPECT(group.steps[k].is_cpu(), "step: expected a tensor on the CPU");
  expect_type(group.steps[k], "step", ScalarType::Long);
  L0SIGN_EXPECT(group.steps[k].numel() == 1, "step: expected one number, got " + shape_of(group.steps[k]));
  L0SIGN_EXPECT(*read<int64_t>(group.steps[k]) >= 0, "step: expected at least 0");
  L0SIGN_EXPECT(grad.is_contiguous(), "grad: expected a contiguous tensor");
  expect_type(row_step, "row_step", ScalarType::Int);
  L0SIGN_EXPECT(row_step.is_contiguous(), "row_step: expected a contiguous tensor");
  if (row_step.numel()) expect_device(row_step, "row_step", param, "its parameter");
  if (group.is_dense(k)) return expect_like(grad, "grad", param);

  const Table table(param);
  const Tensor& rows = group.rows[k];
  if (row_step.numel()) expect_shape(row_step, "row_step", {table.rows});
  expect_device(rows, "rows", param, "its parameter");
  expect_device(grad, "grad", param, "its parameter");
  expect_type(rows, "rows", ScalarType::Long);
  L0SIGN_EXPECT(rows.dim() == 1 && rows.is_contiguous(),
                "rows: expected a contiguous tensor [U], got " + shape_of(rows));
  const int64_t U = rows.sizes()[0];
  expect_type(grad, "grad", param.scalar_type());
  expect_shape(grad, "grad", {U, table.width});
  if (!rows.is_cpu()) return;  // nobody waits for a GPU: kernels stay in bounds by themselves
  const int64_t* row = read<int64_t>(rows);
  // Ascending, so each is there once: threads never meet in a row.
  bool valid = U == 0 || (row[0] >= 0 && row[U - 1] < table.rows);
  for (int64_t u = 1; u < U; ++u) valid = valid & (row[u - 1] < row[u]);
  L0SIGN_EXPECT(valid,
                "rows: expected ascending values in 0.." + std::to_string(table.rows - 1) + ", each once");
}

// Updates the rows of a parameter where it is.
template <class A, class Rule>
void update_rows(const cpu::RowGradient<A>& gradient, const Rule& rule, const Tensor& param) {
#ifdef L0SIGN_HAVE_CUDA
  if (param.is_cuda()) return cuda::update_rows(gradient, rule, param);
#endif
  cpu::update_rows(gradient, rule);
}

// Calls apply(gradient, weight decay) with the next step of parameter k, and counts it.
template <class A, class Apply>
void update(const Group& group, size_t k, Apply apply) {
  const Tensor& row_step = group.row_steps[k];
  const Table table(group.params[k]);
  const bool dense = group.is_dense(k);
  int64_t& step = *data<int64_t>(group.steps[k]);
  ++step;
  cpu::RowGradient<A> gradient = {nullptr, read<A>(group.grads[k]), table.rows, table.width};
  cpu::WeightDecay decay = {group.weight_decay, step, nullptr};
  int32_t* last = row_step.numel() ? data<int32_t>(row_step) : nullptr;
  if (!dense) {
    gradient.rows = read<int64_t>(group.rows[k]);
    gradient.count = group.rows[k].numel();
    decay.row_step = last;
  }
  if (gradient.width) apply(gradient, decay);
  if (!dense || !last) return;
  // Every row has had its decay; without any, a row that never had it still has none to make up for.
  const bool decayed = group.weight_decay != 0;
  torch::stable::parallel_for(0, row_step.numel(), kGrainRows, [&](int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row)
      if (decayed || last[row] > 0) last[row] = static_cast<int32_t>(step);
  });
}

void check_lengths(const Group& group, std::initializer_list<const std::vector<Tensor>*> states) {
  const size_t count = group.params.size();
  bool same = group.steps.size() == count && group.row_steps.size() == count && group.grads.size() == count &&
              group.rows.size() <= count;
  for (const std::vector<Tensor>* state : states) same = same && state->size() == count;
  L0SIGN_EXPECT(same, "params: expected lists of one length, and no more rows than that");
}

void row_adagrad(const std::vector<Tensor>& params, const std::vector<Tensor>& sums,
                 const std::vector<Tensor>& steps, const std::vector<Tensor>& row_steps,
                 const std::vector<Tensor>& rows, const std::vector<Tensor>& grads, double lr,
                 double lr_decay, double weight_decay, double eps) {
  const Group group = {params, steps, row_steps, rows, grads, weight_decay};
  check_lengths(group, {&sums});
  for (size_t k = 0; k < params.size(); ++k) check(group, k, {&sums[k]});
  for (size_t k = 0; k < params.size(); ++k)
    by_type(params[k], [&](auto type) {
      using A = decltype(type);
      update<A>(group, k, [&](const cpu::RowGradient<A>& gradient, const cpu::WeightDecay& decay) {
        const double decayed_lr = lr / (1 + static_cast<double>(decay.step - 1) * lr_decay);
        update_rows(gradient, cpu::Adagrad<A>{data<A>(params[k]), data<A>(sums[k]), decayed_lr, eps, decay},
                    params[k]);
      });
    });
}

void row_adam(const std::vector<Tensor>& params, const std::vector<Tensor>& exp_avgs,
              const std::vector<Tensor>& exp_avg_sqs, const std::vector<Tensor>& steps,
              const std::vector<Tensor>& row_steps, const std::vector<Tensor>& rows,
              const std::vector<Tensor>& grads, double lr, double beta1, double beta2, double weight_decay,
              double eps) {
  const Group group = {params, steps, row_steps, rows, grads, weight_decay};
  check_lengths(group, {&exp_avgs, &exp_avg_sqs});
  for (size_t k = 0; k < params.size(); ++k) check(group, k, {&exp_avgs[k], &exp_avg_sqs[k]});
  for (size_t k = 0; k < params.size(); ++k)
    by_type(params[k], [&](auto type) {
      using A = decltype(type);
      update<A>(group, k, [&](const cpu::RowGradient<A>& gradient, const cpu::WeightDecay& decay) {
        const cpu::Adam<A> rule = {
            data<A>(params[k]), data<A>(exp_avgs[k]), data<A>(exp_avg_sqs[k]), lr, beta1, beta2, eps, decay};
        update_rows(gradient, rule, params[k]);
      });
    });
}

}  // namespace
}  // namespace l0sign

STABLE_TORCH_LIBRARY_FRAGMENT(l0sign_cuda, m) {
  m.def(
      "embedding_rows(Tensor ids, Tensor grad_node, Tensor? grad_edge, SymInt num_rows) -> (Tensor rows, "
      "Tensor "
      "node_rows, Tensor edge_rows)");
  m.def(
      "row_adagrad_(Tensor(a!)[] params, Tensor(b!)[] sums, Tensor(c!)[] steps, Tensor(d!)[] row_steps, "
      "Tensor[] rows, Tensor[] grads, float lr, float lr_decay, float weight_decay, float eps) -> ()");
  m.def(
      "row_adam_(Tensor(a!)[] params, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] steps, "
      "Tensor(e!)[] row_steps, Tensor[] rows, Tensor[] grads, float lr, float beta1, float beta2, "
      "float weight_decay, float eps) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(l0sign_cuda, CPU, m) {
  m.impl("embedding_rows", TORCH_BOX(&l0sign::embedding_rows));
  m.impl("row_adagrad_", TORCH_BOX(&l0sign::row_adagrad));
  m.impl("row_adam_", TORCH_BOX(&l0sign::row_adam));
}

#ifdef L0SIGN_HAVE_CUDA
namespace {

const l0sign::OperatorOnCuda kOnCuda[] = {
    {"embedding_rows", TORCH_BOX(&l0sign::embedding_rows)},
    {"row_adagrad_", TORCH_BOX(&l0sign::row_adagrad)},
    {"row_adam_", TORCH_BOX(&l0sign::row_adam)},
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(l0sign_cuda, CUDA, m) {
  for (const l0sign::OperatorOnCuda& op : kOnCuda) l0sign::register_on_cuda(m, op);
}
#endif
