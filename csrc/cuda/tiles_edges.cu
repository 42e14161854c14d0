#include "cuda/tiles_edges.h"

#include "cuda/tiles_instance.h"

namespace l0sign::cuda {
namespace {

template <class Shape>
cudaError_t forward_edges(const TileLaunch& l, const TileEdges& edges, Precision precision,
                          cudaStream_t stream) {
  return TileKernels<Shape>::with_precision(precision, [&](auto of) {
    return launch(tile_edges_forward<Shape, of.value>, l.blocks, kTileThreads,
                  ForwardShared<Shape, of.value>(l.problem).bytes(), stream, l, edges);
  });
}

template <class Shape>
cudaError_t backward_edges(const TileLaunch& l, const TileEdges& edges, Precision precision,
                           cudaStream_t stream) {
  const size_t bytes =
      TileKernels<Shape>::shared_bytes(l.problem, precision, true, l.sums_shared ? l.at.size : 0);
  return TileKernels<Shape>::with_precision(precision, [&](auto of) {
    return launch(tile_edges_backward<Shape, backward_precision(of.value)>, l.blocks, kTileThreads, bytes,
                  stream, l, edges);
  });
}

}  // namespace

#define INSTANTIATE_TILE_EDGES(Shape)                     \
  template <>                                             \
  TileEdgeStarters tile_edge_starters<Shape>() {          \
    return {forward_edges<Shape>, backward_edges<Shape>}; \
  }
INSTANTIATE_TILE_EDGES(TileShape8)
INSTANTIATE_TILE_EDGES(TileShape16)
INSTANTIATE_TILE_EDGES(TileShape32)
INSTANTIATE_TILE_EDGES(TileShape64)

}  // namespace l0sign::cuda
