// Starts the kernels of one shape; each tiles_*.cu instantiates it for its own.
#pragma once
#include "cuda/tiles_backward.h"
#include "cuda/tiles_forward.h"
#include "cuda/tiles_launch.h"

namespace l0sign::cuda {

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
      return backward ? BackwardShared<Shape, backward_precision(of.value)>(p, sums).bytes()
                      : ForwardShared<Shape, of.value>(p).bytes();
    });
  }

  static cudaError_t forward(const TileLaunch& l, Precision precision, cudaStream_t stream) {
    return with_precision(precision, [&](auto of) {
      const auto kernel =
          l.problem.l2 ? tile_forward<Shape, of.value, true> : tile_forward<Shape, of.value, false>;
      return launch(kernel, l.blocks, kTileThreads, ForwardShared<Shape, of.value>(l.problem).bytes(), stream,
                    l);
    });
  }

  static cudaError_t backward(const TileLaunch& l, Precision precision, cudaStream_t stream) {
    return with_precision(precision, [&](auto of) {
      constexpr Precision kPrecision = backward_precision(of.value);
      const BackwardShared<Shape, kPrecision> shared(l.problem, l.sums_shared ? l.at.size : 0);
      constexpr bool kBags = takes_bags(kPrecision);
      auto kernel = tile_backward<Shape, kPrecision, kBags>;
      if constexpr (kBags && kPairwise<Shape>)
        if (!l.problem.pools) kernel = tile_backward<Shape, kPrecision, false>;
      return launch(kernel, l.blocks, kTileThreads, shared.bytes(), stream, l);
    });
  }
};

#define INSTANTIATE_TILES(Shape)                                                                          \
  template <>                                                                                             \
  TileStarters tile_starters<Shape>() {                                                                   \
    return {TileKernels<Shape>::shared_bytes, TileKernels<Shape>::forward, TileKernels<Shape>::backward}; \
  }

}  // namespace l0sign::cuda
