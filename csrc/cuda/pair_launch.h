// What the kernels of the general path over all pairs work on.
#pragma once
#include "cuda/row.h"

namespace l0sign::cuda {

constexpr int64_t kSmallBag = 16;  // nodes of a graph whose pairs a warp meets once, in the backward of a bag

template <class A>
struct PairLaunch {
  CompleteGraph<A> problem;
  GateFunction<A> gate;
  Network<A> message, edge;
  int64_t* pair_offsets;  // [G + 1], where single pairs are read or written
  // Forward: what each row adds to its graph's sums.
  A *l0, *l2;      // [N]
  int32_t* edges;  // [N]
  // Backward. D_i = scale_i grad_out_i, or of a bag scale_i grad_pooled, of the node's graph. W2^T D_i and
  // b2 . D_i of each node; of a bag without scale_i, of each graph.
  A *scale, *grad_hidden, *grad_gate;  // [N], [N, H], [N]; of a bag [N], [G, H], [G]
  GradientLayout message_gradients, edge_gradients;
  A *partials, *sums;  // [warps, size], [size]
  A* scratch;          // [warps, scratch_size]
  int64_t scratch_size;
  bool small_apart;  // small graphs are left to pooled_backward
  int64_t blocks, bytes;

  int64_t warps() const { return blocks * kRowWarps; }
};

}  // namespace l0sign::cuda
