// The operators on the rows of embedding tables: sparse gradients, and the optimizers that apply them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>
#include <tuple>

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
  expect(grad.dim() == 2 && grad.sizes()[0] == num_positions && grad.sizes()[1] > 0,
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
  expect(ids.dim() == 1, "ids: expected shape [N], got " + shape_of(ids));
  const int64_t N = ids.numel();
  const RowSums sums(torch::stable::contiguous(ids), num_rows, true);
  const Tensor node_rows = sum_of_rows(sums, N, grad_node, "grad_node");
  const Tensor edge_rows = grad_edge ? sum_of_rows(sums, N, *grad_edge, "grad_edge")
                                     : empty_of(grad_node, {0}, grad_node.scalar_type());
  return {sums.rows, node_rows, edge_rows};
}

// ---- Optimizers ----

// What an optimizer applies to `param`, whose other tensors are `states`.
template <class A>
cpu::RowGradient<A> row_gradient(const Tensor& param, std::initializer_list<const Tensor*> states,
                                 const Tensor& rows, const Tensor& grad) {
  expect(param.dim() == 2 && param.is_contiguous(),
         "param: expected a contiguous tensor [J, width], got " + shape_of(param));
  const int64_t J = param.sizes()[0], width = param.sizes()[1];
  expect_type(param, "param", kType<A>);
  for (const Tensor* state : states) {
    expect_type(*state, "state", kType<A>);
    expect_shape(*state, "state", {J, width});
    expect(state->is_contiguous(), "state: expected a contiguous tensor");
  }
  expect_type(rows, "rows", ScalarType::Long);
  expect(rows.dim() == 1 && rows.is_contiguous(),
         "rows: expected a contiguous tensor [U], got " + shape_of(rows));
  const int64_t U = rows.sizes()[0];
  expect_type(grad, "grad", kType<A>);
  expect_shape(grad, "grad", {U, width});
  expect(grad.is_contiguous(), "grad: expected a contiguous tensor");
  const int64_t* row = read<int64_t>(rows);
  const cpu::RowGradient<A> gradient = {row, read<A>(grad), U, width};
  if (!rows.is_cpu()) return gradient;  // nobody waits for a GPU: kernels stay in bounds by themselves
  // Ascending, so each is there once: threads never meet in a row.
  bool valid = U == 0 || (row[0] >= 0 && row[U - 1] < J);
  for (int64_t u = 1; u < U; ++u) valid = valid & (row[u - 1] < row[u]);
  expect(valid, "rows: expected ascending values in 0.." + std::to_string(J - 1) + ", each once");
  return gradient;
}

cpu::WeightDecay weight_decay_of(double value, int64_t step, const Tensor& param,
                                 const OptionalTensor& row_step) {
  expect(step >= 1, "step: expected at least 1, got " + std::to_string(step));
  if (!row_step) return {value, step, nullptr};
  expect_type(*row_step, "row_step", ScalarType::Int);
  expect_shape(*row_step, "row_step", {param.sizes()[0]});
  expect(row_step->is_contiguous(), "row_step: expected a contiguous tensor");
  return {value, step, data<int32_t>(*row_step)};
}

// Updates rows where their table is.
template <class A, class Rule>
void update(const cpu::RowGradient<A>& gradient, const Rule& rule, const Tensor& param) {
  if (!gradient.width) return;
#ifdef L0SIGN_HAVE_CUDA
  if (param.is_cuda()) return cuda::update_rows(gradient, rule, param);
#endif
  expect(param.is_cpu(), "expected tensors on the CPU or a CUDA device");
  cpu::update_rows(gradient, rule);
}

void row_adagrad(const Tensor& param, const Tensor& state_sum, const OptionalTensor& row_step,
                 const Tensor& rows, const Tensor& grad, int64_t step, double lr, double weight_decay,
                 double eps) {
  by_type(param, [&](auto type) {
    using A = decltype(type);
    const auto gradient = row_gradient<A>(param, {&state_sum}, rows, grad);
    const auto decay = weight_decay_of(weight_decay, step, param, row_step);
    update(gradient, cpu::Adagrad<A>{data<A>(param), data<A>(state_sum), lr, eps, decay}, param);
  });
}

void row_adam(const Tensor& param, const Tensor& exp_avg, const Tensor& exp_avg_sq,
              const OptionalTensor& row_step, const Tensor& rows, const Tensor& grad, int64_t step, double lr,
              double beta1, double beta2, double weight_decay, double eps) {
  by_type(param, [&](auto type) {
    using A = decltype(type);
    const auto gradient = row_gradient<A>(param, {&exp_avg, &exp_avg_sq}, rows, grad);
    const auto decay = weight_decay_of(weight_decay, step, param, row_step);
    update(gradient,
           cpu::Adam<A>{data<A>(param), data<A>(exp_avg), data<A>(exp_avg_sq), lr, beta1, beta2, eps, decay},
           param);
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
      "row_adagrad_(Tensor(a!) param, Tensor(b!) state_sum, Tensor(c!)? row_step, Tensor rows, Tensor grad, "
      "int "
      "step, float lr, float weight_decay, float eps) -> ()");
  m.def(
      "row_adam_(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor(d!)? row_step, Tensor "
      "rows, "
      "Tensor grad, int step, float lr, float beta1, float beta2, float weight_decay, float eps) -> ()");
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
