// Starts the kernels of one shape; tiles_8.cu to tiles_64.cu instantiate it for their own.
#pragma once
#include "cuda/tiles_backward.h"
#include "cuda/tiles_forward.h"
#include "cuda/tiles_launch.h"

namespace l0sign::cuda {

// Starts a forward. Of small graphs of one size all turns take as long, and so no more blocks are started
// than work at a time: each reads the weights once.
inline cudaError_t launch_forward(void (*kernel)(TileLaunch), const TileLaunch& l, size_t bytes,
                                  cudaStream_t stream) {
  int64_t blocks = l.blocks;
  if (all_small(l.problem.graphs)) {
    int64_t resident = 0;
    L0SIGN_TRY(resident_blocks(kernel, kTileThreads, bytes, resident));
    if (resident && resident < blocks) blocks = resident;
  }
  return launch(kernel, blocks, kTileThreads, bytes, stream, l);
}

template <class Shape>
struct TileKernels {
  // Calls run(constant) with the precision as a type.
  template <class Run>
  static auto with_precision(Precision precision, Run run) {
    switch (precision) {
      case Precision::tf32:
        return run(std::integral_constant<Precision, Precision::tf32>{});
      case Precision::bf16:
        return run(std::integral_constant<Precision, Precision::bf16>{});
      case Precision::fp16:
        return run(std::integral_constant<Precision, Precision::fp16>{});
      default:
        return run(std::integral_constant<Precision, Precision::tf32x3>{});
    }
  }

  static size_t shared_bytes(const CompleteGraph<float>& p, Precision precision, bool backward, int sums) {
    return with_precision(precision, [&](auto of) {
      constexpr Precision kBackward = backward_precision(of.value);
      if (!backward) return ForwardShared<Shape, of.value>(p).bytes();
      return p.grad_l2 ? BackwardShared<Shape, kBackward, true>(p, sums).bytes()
                       : BackwardShared<Shape, kBackward, false>(p, sums).bytes();
    });
  }

  static cudaError_t forward(const TileLaunch& l, Precision precision, cudaStream_t stream) {
    return with_precision(precision, [&](auto of) {
      const auto kernel =
          l.problem.l2 ? tile_forward<Shape, of.value, true> : tile_forward<Shape, of.value, false>;
      return launch_forward(kernel, l, ForwardShared<Shape, of.value>(l.problem).bytes(), stream);
    });
  }

  static cudaError_t backward(const TileLaunch& l, Precision precision, cudaStream_t stream) {
    return with_precision(precision, [&](auto of) {
      constexpr Precision kPrecision = backward_precision(of.value);
      constexpr bool kBags = takes_bags(kPrecision);
      auto kernel = tile_backward<Shape, kPrecision, kBags, false>;
      if constexpr (kBags && kPairwise<Shape>)
        if (!l.problem.pools) kernel = tile_backward<Shape, kPrecision, false, false>;
      if (l.problem.grad_l2) kernel = tile_backward<Shape, kPrecision, kBags, true>;
      const size_t bytes = shared_bytes(l.problem, precision, true, l.sums_shared ? l.at.size : 0);
      return launch(kernel, l.blocks, kTileThreads, bytes, stream, l);
    });
  }
};

#define INSTANTIATE_TILES(Shape)                                                                          \
  template <>                                                                                             \
  TileStarters tile_starters<Shape>() {                                                                   \
    return {TileKernels<Shape>::shared_bytes, TileKernels<Shape>::forward, TileKernels<Shape>::backward}; \
  }

}  // namespace l0sign::cuda
