// Work on the rows of embedding tables that a batch touches, on the GPU: sums of gradients, and optimizer
// updates in place. The counterpart of cpu/rows.h; no atomics, and sums in a fixed order.
#pragma once
#include "cpu/rows.h"
#include "cuda/device.h"

namespace l0sign::cuda {

// What is updated, and by which rule: the same for both.
using cpu::Adagrad;
using cpu::Adam;
using cpu::RowGradient;
using cpu::WeightDecay;

// The positions of a batch, sorted by their ids and, of one id, by themselves: the gradient of position
// order[k] goes to row place[k], which does not fall.
struct RowOrder {
  const int64_t* place;  // [count]
  const int64_t* order;  // [count]
  int64_t count;
};

// Device memory that sum_rows works in.
template <class A>
int64_t sum_rows_workspace(int64_t count, int64_t width);

// Adds up the gradients [count, width] of each place into that row of `out` [num_rows, width]; rows without
// one stay, and places out of range are left out.
template <class A>
cudaError_t sum_rows(const RowOrder& order, const A* grads, int64_t width, A* out, int64_t num_rows,
                     void* workspace, cudaStream_t stream);

// Rows outside of the table, 0 .. num_rows - 1, are left out; that the others are there once each is for the
// caller to see to.
template <class A>
cudaError_t update_rows(const RowGradient<A>& gradient, const Adagrad<A>& rule, int64_t num_rows,
                        cudaStream_t stream);
template <class A>
cudaError_t update_rows(const RowGradient<A>& gradient, const Adam<A>& rule, int64_t num_rows,
                        cudaStream_t stream);

}  // namespace l0sign::cuda
