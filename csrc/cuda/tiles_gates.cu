#include "cuda/tiles_gates.h"

#include "cuda/tiles_instance.h"

namespace l0sign::cuda {
namespace {

template <class Shape>
cudaError_t forward_gates(const TileLaunch& l, Precision precision, cudaStream_t stream) {
  return TileKernels<Shape>::with_precision(precision, [&](auto of) {
    return launch_forward(tile_gates_forward<Shape, of.value>, l,
                          GatesShared<Shape, of.value>(l.problem).bytes(), stream);
  });
}

template <class Shape>
cudaError_t backward_gates(const TileLaunch& l, Precision precision, cudaStream_t stream) {
  const size_t bytes =
      TileKernels<Shape>::shared_bytes(l.problem, precision, true, l.sums_shared ? l.at.size : 0);
  return TileKernels<Shape>::with_precision(precision, [&](auto of) {
    return launch(tile_gates_backward<Shape, backward_precision(of.value)>, l.blocks, kTileThreads, bytes,
                  stream, l);
  });
}

}  // namespace

#define INSTANTIATE_TILE_GATES(Shape)                     \
  template <>                                             \
  TileGateStarters tile_gate_starters<Shape>() {          \
    return {forward_gates<Shape>, backward_gates<Shape>}; \
  }
INSTANTIATE_TILE_GATES(TileShape8)
INSTANTIATE_TILE_GATES(TileShape16)
INSTANTIATE_TILE_GATES(TileShape32)
INSTANTIATE_TILE_GATES(TileShape64)

}  // namespace l0sign::cuda
