// The sole home of tile sizes: what the kernels on the matrix units (tiles.h) are built for.
#pragma once
#include <stdint.h>

#include "problem.h"

namespace l0sign::cuda {

// The matrix units multiply [kUnits, kInner] by [kInner, kPairs].
constexpr int kUnits = 16;  // hidden units of a fragment
constexpr int kInner = 8;   // components of a node
constexpr int kPairs = 8;   // pairs

constexpr int kTileWarps = 4;
constexpr int kTileThreads = 32 * kTileWarps;
constexpr int kTileRows = 8;     // consecutive rows that a warp takes at a time
constexpr int kSmallGraph = 16;  // nodes: up to here a warp takes the graph, and evaluates each gate once
constexpr int kTileGates = 256;  // of a warp: those of a small graph, or one row of a larger one, in parts
constexpr int kPassUnits = 2;    // fragments of units whose sums a backward pass keeps in registers

static_assert(kTileGates <= 256 && kTileGates >= kSmallGraph * kSmallGraph, "columns are kept as bytes");

// Whether weights of so many fragments stay in registers: a backward has other uses for them.
constexpr bool weights_in_registers(int fragments, bool backward) { return !backward && fragments <= 2; }

// Kernels for up to Inner * 8 components and Units * 16 hidden units of either network; smaller sizes are
// padded with zeros. A multiprocessor has to hold so many blocks of the forward and of the backward: their
// launch bounds.
template <int MessageInner, int MessageUnits, int EdgeInner, int EdgeUnits, int ForwardBlocks,
          int BackwardBlocks>
struct TileShape {
  static constexpr int kMessageInner = MessageInner, kMessageUnits = MessageUnits;
  static constexpr int kEdgeInner = EdgeInner, kEdgeUnits = EdgeUnits;
  static constexpr int kForwardBlocks = ForwardBlocks, kBackwardBlocks = BackwardBlocks;

  template <class A>
  static bool fits(const CompleteGraph<A>& p) {
    return p.message.in <= MessageInner * kInner && p.message.hidden <= MessageUnits * kUnits &&
           p.edge.in <= EdgeInner * kInner && p.edge.hidden <= EdgeUnits * kUnits;
  }
};

// From the smallest: the first that fits is taken. Each is compiled by the tiles_*.cu of its name.
using TileShape8x32 = TileShape<1, 2, 1, 2, 4, 3>;
using TileShape16x32 = TileShape<2, 2, 1, 2, 3, 2>;
using TileShape16x64 = TileShape<2, 4, 1, 2, 2, 2>;

}  // namespace l0sign::cuda
