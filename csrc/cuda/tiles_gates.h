// The kernels on the matrix units for the gates alone; instantiated by tiles_gates.cu. The gates are the bits
// that the kernels with messages use.
#pragma once
#include "cuda/tiles_backward.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// What lies where in a block's shared memory, in words.
template <class Shape, Precision P>
struct GatesShared {
  using T = Tiles<Shape, P, false, false>;
  int warps, end;
  static constexpr int kWarpWords =
      sizeof(typename T::Memory) / 4 + (T::kSlots * RowCache<T::kEI>::kStride + 3) / 4 * 4;

  __host__ __device__ __forceinline__ explicit GatesShared(const CompleteGraph<float>& p)
      : warps(T::Edge::shared_words(p.edge)), end(warps + kTileWarps * kWarpWords) {}
  size_t bytes() const { return end * sizeof(float); }
};

template <class Shape, Precision P>
__global__ void __launch_bounds__(kTileThreads, Shape::kForwardBlocks) tile_gates_forward(TileLaunch l) {
  using T = Tiles<Shape, P, false, false>;
  using Shared = GatesShared<Shape, P>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  float* const shared = dynamic_shared<float>();
  const typename T::Edge edge(l.problem.edge, shared, lane, warp);
  float* const own = shared + Shared(l.problem).warps + warp * Shared::kWarpWords;
  typename T::Memory& memory = *reinterpret_cast<typename T::Memory*>(own);
  const RowCache<T::kEI> cache = {own + sizeof(typename T::Memory) / 4};
  memory.clear(lane);
  __syncthreads();
  for_pieces<kForwardRows, 16, false, kPairwise<Shape>>(
      l, static_cast<int64_t>(blockIdx.x) * kTileWarps + warp, grid_warps(),
      [&](const Piece& piece, bool, bool) {
        if (!piece.small && piece.column + piece.columns <= piece.row)
          return;  // i > j: another piece has them
        T::number_pairs(piece, memory, lane);
        float l0 = 0;
        int edges = 0;
        T::template gates<true>(l, edge, piece, memory, nullptr, cache, lane, l0, edges);
      });
}

template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::gates_of(const Piece& piece, bool first,
                                                                       bool last) {
  find_gates(piece);
#pragma unroll 1
  for (int at = lane_; at < T::pairs(piece); at += kWarp) {
    const int64_t from = l_.pair_offsets[piece.graph.graph] + T::pair_of(piece, at);
    const SlotPair pair = piece.small ? memory_.small_pairs[at] : SlotPair{0};
    const bool self = piece.small ? (pair & 0xFF) == pair >> 8 : piece.row == piece.column + at;
    float grad = 0;
    if (is_pair(from, p_.num_pairs)) {
      if (p_.grad_gates) grad = p_.grad_gates[from] * gradients_.slope[at];
      if (p_.grad_logits) grad += p_.grad_logits[from];
    }
    gradients_.grad_logit[at] = self ? 2 * grad : grad;
    gradients_.grad_gate[at] = 0;
  }
  __syncwarp();
  if constexpr (kPairwise<Shape>)
    if (piece.small) {
      small_gates(piece);
      return;
    }
  gates(piece, first, last);
}

template <class Shape, Precision P>
__global__ void __launch_bounds__(kTileThreads, Shape::kBackwardBlocks) tile_gates_backward(TileLaunch l) {
  run_backward<Shape, P, false, false>(l, [&](auto& run, int64_t warp) {
    for_pieces<1, kTileGates, true, kPairwise<Shape>>(
        l, warp, grid_warps(),
        [&](const Piece& piece, bool first, bool last) { run.gates_of(piece, first, last); });
  });
}

#endif

}  // namespace l0sign::cuda
