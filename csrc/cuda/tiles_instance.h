// Starts the kernels of one shape; each tiles_*.cu instantiates it for its own.
#pragma once
#include "cuda/tiles_backward.h"
#include "cuda/tiles_forward.h"

namespace l0sign::cuda {

template <class Shape>
cudaError_t start_tile_forward(const TileLaunch& l, cudaStream_t stream);
template <class Shape>
cudaError_t start_tile_backward(const TileLaunch& l, cudaStream_t stream);

#define INSTANTIATE_TILES(Shape)                                                                             \
  template <>                                                                                                \
  cudaError_t start_tile_forward<Shape>(const TileLaunch& l, cudaStream_t stream) {                          \
    if (l.problem.tf32)                                                                                      \
      return launch(tile_forward<Shape, false>, l.blocks, kTileThreads, ForwardShared<Shape, false>::kBytes, \
                    stream, l);                                                                              \
    return launch(tile_forward<Shape, true>, l.blocks, kTileThreads, ForwardShared<Shape, true>::kBytes,     \
                  stream, l);                                                                                \
  }                                                                                                          \
  template <>                                                                                                \
  cudaError_t start_tile_backward<Shape>(const TileLaunch& l, cudaStream_t stream) {                         \
    if (l.problem.tf32)                                                                                      \
      return launch(tile_backward<Shape, false>, l.blocks, kTileThreads,                                     \
                    BackwardShared<Shape, false>::kBytes, stream, l);                                        \
    return launch(tile_backward<Shape, true>, l.blocks, kTileThreads, BackwardShared<Shape, true>::kBytes,   \
                  stream, l);                                                                                \
  }

}  // namespace l0sign::cuda
