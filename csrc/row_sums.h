// Sums of the gradients of a batch's positions by the rows of tables that they belong to, on the CPU or a
// CUDA device: the same bits on each of them every time.
#pragma once
#include <algorithm>
#include <optional>

#include "checks.h"
#include "cpu/rows.h"
#include "tensors.h"
#ifdef L0SIGN_HAVE_CUDA
#include "cuda/run.h"
#endif

namespace l0sign {

class RowSums {
 public:
  Tensor rows;  // int64 [U] the rows that occur, ascending, with sparse; else [0]

  // ids: int64 [N], contiguous. Throws for an id outside 0 .. num_rows - 1, but for CUDA without sparse:
  // there such positions are left out, since nobody waits for the device. With sparse it has to be waited
  // for: the shape of `rows` depends on the ids.
  RowSums(const Tensor& ids, int64_t num_rows, bool sparse)
      : rows(empty_of(ids, {0}, ScalarType::Long)), num_rows_(num_rows), sparse_(sparse) {
#ifdef L0SIGN_HAVE_CUDA
    if (ids.is_cuda()) {
      on_cuda_ = cuda::group_rows(ids, num_rows, sparse);
      if (sparse) rows = on_cuda_->rows;
      return;
    }
#endif
    on_cpu_ = cpu::group_rows(read<int64_t>(ids), ids.numel(), num_rows);
    if (!sparse) return;
    rows = empty_of(ids, {on_cpu_.count()}, ScalarType::Long);
    std::copy(on_cpu_.rows.begin(), on_cpu_.rows.end(), data<int64_t>(rows));
  }

  // The sums of gradients [N, width] in A: [U, width] with sparse, else [num_rows, width].
  template <class A>
  Tensor of(const Tensor& grad) const {
    const int64_t width = grad.sizes()[1];
    Tensor out = empty<A>(grad, {sparse_ ? rows.sizes()[0] : num_rows_, width});
    if (!sparse_) torch::stable::zero_(out);
#ifdef L0SIGN_HAVE_CUDA
    if (on_cuda_) {
      cuda::sum_rows(*on_cuda_, read<A>(grad), width, data<A>(out), out.sizes()[0]);
      return out;
    }
#endif
    if (sparse_) {
      cpu::sum_rows(on_cpu_, read<A>(grad), width, data<A>(out));
    } else {
      cpu::sum_rows_to_table(on_cpu_, read<A>(grad), width, data<A>(out));
    }
    return out;
  }

 private:
  cpu::RowGroups on_cpu_;
#ifdef L0SIGN_HAVE_CUDA
  std::optional<cuda::RowGroups> on_cuda_;
#endif
  int64_t num_rows_;
  bool sparse_;
};

}  // namespace l0sign
