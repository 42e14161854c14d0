// The sole home of tile sizes: what the kernels on the matrix units (tiles.h)
// are built for.
#pragma once
#include <stdint.h>

#include "problem.h"

namespace l0sign::cuda {

// A fragment of a product is [16, 8].
constexpr int kUnits = 16;      // hidden units (or pairs, or nodes) that are its rows
constexpr int kPairs = 8;       // pairs that are its columns
constexpr int kComponents = 8;  // components of a node that are its columns
constexpr int kStepPairs = 16;  // pairs that go through a layer together

constexpr int kTileWarps = 4;
constexpr int kTileThreads = 32 * kTileWarps;
constexpr int kSmallGraph = 16;   // nodes: up to here a warp takes the graph, and
                                  // evaluates each gate once
constexpr int kForwardRows = 16;  // consecutive rows that a warp takes at a time,
constexpr int kBackwardRows = 8;  // or about so many, if they are small graphs of one size
constexpr int kForwardTurns = 4;  // times that a warp of a large grid does so, having read the weights
constexpr int kTileGates = 256;   // pairs whose gates a warp has at a time
constexpr int kPassUnits = 2;     // fragments of hidden units whose sums a pass
                                  // over pairs keeps in registers
constexpr int kMaxUnits = 8;      // fragments of hidden units of a network

// Whether a warp of the backward of small graphs keeps W1 in registers: ptxas
// spills for later architectures, which read it from shared memory each time. On the host every other warp
// does, so that tests see both.
__host__ __device__ constexpr bool keeps_weights([[maybe_unused]] int warp) {
#if defined(L0SIGN_SIMT)
  return warp % 2 == 0;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  return false;
#else
  return true;
#endif
}

constexpr int kTogetherNodes = 32;  // of small graphs of one size that a warp takes together

static_assert(kTileGates >= kSmallGraph * (kSmallGraph + 1) / 2, "a small graph is one piece");
static_assert(kTileGates == kForwardRows * 16, "a piece of a large graph in the forward has 16 columns");

// Factors of products: float32 in three products of tf32 (3xTF32), or rounded.
enum class Precision { tf32x3, tf32, bf16, fp16 };

// Those of the backward. Gradients of a mean over many graphs are too small for
// fp16; tf32 has fractions of the same length.
constexpr Precision backward_precision(Precision p) { return p == Precision::fp16 ? Precision::tf32 : p; }

// Kernels for up to 8 MessageInner and 8 EdgeInner components, padded with
// zeros. Hidden units: of both networks 16 FixedUnits, or, if that is 0, any
// number up to 16 kMaxUnits. A multiprocessor has to hold so many blocks of the
// forward and of the backward: their launch bounds.
template <int MessageInner, int EdgeInner, int FixedUnits, int ForwardBlocks, int BackwardBlocks>
struct TileShape {
  static constexpr int kMessageInner = MessageInner, kEdgeInner = EdgeInner, kFixedUnits = FixedUnits;
  static constexpr int kForwardBlocks = ForwardBlocks, kBackwardBlocks = BackwardBlocks;

  // Fragments of units, a multiple of kPassUnits.
  static constexpr int units(int64_t hidden) {
    return FixedUnits
               ? FixedUnits
               : static_cast<int>((hidden + kUnits * kPassUnits - 1) / (kUnits * kPassUnits)) * kPassUnits;
  }

  template <class A>
  static bool fits(const CompleteGraph<A>& p) {
    const int64_t most = (FixedUnits ? FixedUnits : kMaxUnits) * kUnits;
    return p.message.in <= MessageInner * kComponents && p.edge.in <= EdgeInner * kComponents &&
           p.message.hidden <= most && p.edge.hidden <= most;
  }
};

// From the smallest: the first that fits is taken. Each is compiled by the
// tiles_*.cu of its name, with given edges and gates alone by tiles_edges.cu and
// tiles_gates.cu.
using TileShape8 = TileShape<1, 1, kPassUnits, 3, 2>;
using TileShape16 = TileShape<2, 1, 0, 3, 2>;
using TileShape32 = TileShape<4, 4, 0, 2, 2>;
using TileShape64 = TileShape<8, 8, 0, 2, 2>;

}  // namespace l0sign::cuda
