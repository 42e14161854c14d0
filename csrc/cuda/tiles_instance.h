// Starts the kernels of one shape; each tiles_*.cu instantiates it for its own.
#pragma once
#include "cuda/tiles_backward.h"
#include "cuda/tiles_forward.h"

namespace l0sign::cuda {

template <class Shape>
cudaError_t start_tile_forward(const TileLaunch& l, cudaStream_t stream);
template <class Shape>
cudaError_t start_tile_backward(const TileLaunch& l, cudaStream_t stream);

template <class Shape, bool Precise, bool L2>
cudaError_t start_forward(const TileLaunch& l, cudaStream_t stream) {
  return launch(tile_forward<Shape, Precise, L2>, l.blocks, kTileThreads,
                ForwardShared<Shape, Precise, L2>::kBytes, stream, l);
}

template <class Shape, bool Precise>
cudaError_t start_backward(const TileLaunch& l, cudaStream_t stream) {
  return launch(tile_backward<Shape, Precise>, l.blocks, kTileThreads, BackwardShared<Shape, Precise>::kBytes,
                stream, l);
}

#define INSTANTIATE_TILES(Shape)                                                     \
  template <>                                                                        \
  cudaError_t start_tile_forward<Shape>(const TileLaunch& l, cudaStream_t stream) {  \
    if (l.problem.l2)                                                                \
      return l.problem.tf32 ? start_forward<Shape, false, true>(l, stream)           \
                            : start_forward<Shape, true, true>(l, stream);           \
    return l.problem.tf32 ? start_forward<Shape, false, false>(l, stream)            \
                          : start_forward<Shape, true, false>(l, stream);            \
  }                                                                                  \
  template <>                                                                        \
  cudaError_t start_tile_backward<Shape>(const TileLaunch& l, cudaStream_t stream) { \
    return l.problem.tf32 ? start_backward<Shape, false>(l, stream)                  \
                          : start_backward<Shape, true>(l, stream);                  \
  }

}  // namespace l0sign::cuda
