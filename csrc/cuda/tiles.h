// The kernels on the matrix units, for the common sizes: over all pairs of each
// graph, and what the others (tiles_edges.h, tiles_gates.h) share with them. A warp takes some consecutive
// rows of the pair matrix at a time: a graph of up to kSmallGraph nodes as a whole, when its first row is
// among them, and the rows of a larger graph. It works through *pieces* of up to kTileGates pairs, and in a
// piece through steps of 16 pairs at once:
//   hidden [16 units, 16 pairs] = W1 (x_i o x_j)^T + b1
// The rows of nodes that a piece needs are first copied to the warp's shared
// memory, padded with zeros; a pair is two *slots* there. Only open pairs go
// through the message network: they are listed first.
#pragma once
#include <type_traits>

#include "cuda/balance.h"
#include "cuda/edge_list.h"
#include "cuda/fragments.h"
#include "cuda/node_rows.h"

namespace l0sign::cuda {

// Where the sums over a warp's rows lie in its partial sums, [size] floats;
// matrices [16 units, 8 Inner] as fragments of C, four words a lane.
struct TileSums {
  int message_hidden, message_out,
      edge_hidden;                        // matrices: dW1, dW2^T, and sum_i e_i o M_i
  int message_bias, edge_bias, edge_out;  // [16 units]
  int out_bias;                           // [8 Inner]
  int logit;                              // one
  int size;
};

// What a launch of these kernels needs, forward or backward.
struct TileLaunch {
  CompleteGraph<float> problem;
  GateFunction<float> gate;
  // What the rows of large graphs that a warp took together add to their graph's
  // sums (forward); see sums_slot.
  float *pooled, *l0, *l2;  // [slots, d], [slots], [slots]
  int32_t* edges;           // [slots]
  int64_t* pair_offsets;    // [G + 1] the first pair of each graph, where single pairs are read or written
  int64_t turn;             // rows of the batch that a warp takes at a time, see for_pieces
  int together;             // so many small graphs of one size are a piece
  // Backward.
  int64_t* first_step;  // [G + 1] where warps share a batch by its steps, see balance.h; or null
  TileSums at;
  float* partials;   // [warps, size]
  bool sums_shared;  // whether they fit into shared memory while the warp works
  int64_t blocks, bytes;
};

// What the kernels over a list of edges read besides: their TileLaunch has what
// both kinds of problems have.
struct TileEdges {
  EdgeList<float> list;
  EdgeOrder by_target, by_source;
  const float* scale;  // [N] of the sum of each node's messages (backward)
};

// How the kernels of one shape are started; defined by tiles_instance.h, shape
// by shape.
struct TileStarters {
  // Of a block; sums: words of a warp's sums that lie there (backward).
  size_t (*shared_bytes)(const CompleteGraph<float>& p, Precision precision, bool backward, int sums);
  cudaError_t (*forward)(const TileLaunch& l, Precision precision, cudaStream_t stream);
  cudaError_t (*backward)(const TileLaunch& l, Precision precision, cudaStream_t stream);
};
template <class Shape>
TileStarters tile_starters();

// The same over a list of edges; in tiles_edges.cu. The shared memory is as large.
struct TileEdgeStarters {
  cudaError_t (*forward)(const TileLaunch& l, const TileEdges& edges, Precision precision,
                         cudaStream_t stream);
  cudaError_t (*backward)(const TileLaunch& l, const TileEdges& edges, Precision precision,
                          cudaStream_t stream);
};
template <class Shape>
TileEdgeStarters tile_edge_starters();

// The same for gates alone; in tiles_gates.cu.
struct TileGateStarters {
  cudaError_t (*forward)(const TileLaunch& l, Precision precision, cudaStream_t stream);
  cudaError_t (*backward)(const TileLaunch& l, Precision precision, cudaStream_t stream);
};
template <class Shape>
TileGateStarters tile_gate_starters();

// A slot for the rows of each graph among kForwardRows of the batch: they ascend
// with either.
__host__ __device__ inline int64_t sums_slot(int64_t graph, int64_t row) {
  return graph + row / kForwardRows;
}
inline int64_t sums_slots(const Graphs& graphs) { return sums_slot(graphs.count, graphs.num_nodes); }

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// A piece of the pair matrix: rows [row, row + rows) and columns [column,
// column + columns), local to the graph.
struct Piece {
  GraphOfRow graph;
  int small;  // nodes of a small graph, all pairs i <= j of which are the piece;
              // else 0
  int64_t row, column;
  int rows, columns;
  int graphs;  // of so many nodes, one after the other, from `graph` on: 1 unless they are small

  // Unordered pairs of a small graph.
  __device__ __forceinline__ int small_pairs() const { return small * (small + 1) / 2; }
};

// Two slots; the second in the high byte.
using SlotPair = uint16_t;
__device__ __forceinline__ SlotPair slot_pair(int i, int j) { return static_cast<SlotPair>(i | j << 8); }

// The number of the pair of nodes i and j of a small graph of n.
__device__ __forceinline__ int small_pair(int i, int j, int n) {
  const int first = i < j ? i : j, second = i < j ? j : i;
  return first * n - first * (first - 1) / 2 + second - first;
}

// So many pairs, and what is missing to whole steps.
__host__ __device__ constexpr int whole_steps(int count) {
  return (count + kStepPairs - 1) / kStepPairs * kStepPairs;
}

constexpr int kSmallPairs = whole_steps(kSmallGraph * (kSmallGraph + 1) / 2);

// A warp's shared memory. Pairs of a piece are numbered; those of small graphs
// graph by graph in their canonical order. Together: whether a piece may be several small graphs.
template <bool Together>
struct alignas(16) TileMemory {
  union {
    float gate[kTileGates];
    int32_t partner[kTileGates];  // of listed edges: the node at the other end, or -1 past the last
  };
  // Pairs that go through a network, a multiple of kStepPairs: their slots (or
  // column), and the gate or the logit's gradient, 0 past the last. While gates
  // are drawn, the values are their noise, and then how likely each is open.
  float list_value[kTileGates];
  SlotPair list_pair[kTileGates];
  SlotPair small_pairs[kSmallPairs];  // of small graphs
  // Among the graphs of the piece.
  uint8_t graph_of_pair[Together ? kSmallPairs : 1], graph_of_node[Together ? kTogetherNodes : 1];
  int small_nodes, small_graphs;  // of the small graphs whose numbers these are
  int lanes_each;                 // that a graph has where each takes some of the warp's: a power of 2

  __device__ __forceinline__ void clear(int lane) {
    if (lane == 0) small_nodes = small_graphs = 0;
  }
};
static_assert(sizeof(TileMemory<false>) <= 2864, "more, and the largest backward does not fit into 163 KB");

struct TileGradients {
  float slope[kTileGates];       // dg / da
  float grad_logit[kTileGates];  // what the logit receives besides; then its
                                 // gradient
  float grad_gate[kTileGates];
};

// The rows of nodes: of a matrix or, in kernels that take bags, with ids of a
// table.
template <bool Bags>
class TileRows {
 public:
  static __device__ __forceinline__ TileRows nodes(const CompleteGraph<float>& p) {
    return TileRows(TableRows<float>::nodes(p));
  }
  static __device__ __forceinline__ TileRows edges(const CompleteGraph<float>& p) {
    return TileRows(TableRows<float>::edges(p));
  }
  __device__ __forceinline__ int width() const { return rows_.width; }
  __device__ __forceinline__ const float* row(int64_t k) const {
    return Bags && rows_.ids ? rows_.row(k) : rows_.table + k * rows_.width;
  }
  __device__ __forceinline__ float scale(int64_t k) const {
    return Bags && rows_.ids ? rows_.scale(k) : 1.0f;
  }

 private:
  explicit __device__ __forceinline__ TileRows(const TableRows<float>& rows) : rows_(rows) {}
  const TableRows<float> rows_;
};

// `scale` times four numbers, or as many as there are, and zeros: at once, where they lie for that.
__device__ __forceinline__ FragmentC load_four(const float* from, int count, float scale) {
  FragmentC four = {};
  const bool whole = count >= 4 && reinterpret_cast<uintptr_t>(from) % sizeof(four) == 0;
  if (whole) four = *reinterpret_cast<const FragmentC*>(from);
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (c < count) four.x[c] = scale * (whole ? four.x[c] : from[c]);
  return four;
}
__device__ __forceinline__ void store_four(float* to, int count, const FragmentC& four) {
  if (count >= 4 && reinterpret_cast<uintptr_t>(to) % sizeof(FragmentC) == 0) {
    *reinterpret_cast<FragmentC*>(to) = four;
    return;
  }
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (c < count) to[c] = four.x[c];
}

// Rows in the block's shared memory, from the components on that a lane has of an operand.
template <int kStride>
class LaneRows {
  // In the smallest kernels an address is an offset in bytes that stays in a register, and the row's own.
  // Those of more components have no register for it.
  static constexpr bool kKeeps = kStride == kComponents;

 public:
  __device__ __forceinline__ LaneRows(float* rows, const LanePlace& place)
      : rows_(rows), first_(place.in_group * 2) {
    if (kKeeps)
      first_ = opaque(static_cast<int>(reinterpret_cast<char*>(rows + first_) - dynamic_shared<char>()));
  }
  __device__ __forceinline__ float* row(int slot) const {
    if (!kKeeps) return rows_ + slot * kStride + first_;
    return reinterpret_cast<float*>(dynamic_shared<char>() +
                                    (first_ + slot * kStride * static_cast<int>(sizeof(float))));
  }

 private:
  float* rows_;
  int first_;
};

// Rows of nodes in the warp's shared memory, padded with zeros.
template <int Inner>
struct RowCache {
  static constexpr int kWidth = Inner * kComponents;
  static constexpr int kStride = kWidth + (Inner > 1 ? kComponents : 0);  // spreads rows over the banks
  float* rows;

  __device__ __forceinline__ const float* row(int slot) const { return rows + slot * kStride; }

  // The same rows for a lane of a product.
  __device__ __forceinline__ LaneRows<kStride> of_lane(const LanePlace& place) const { return {rows, place}; }

  // Slot first + k gets row from(k) of the source, times its scale, for k <
  // count; a row < 0 is zero. A barrier has to follow.
  template <class Source, class From>
  __device__ __forceinline__ void load(int first, int count, const Source& source, int lane,
                                       From from) const {
    constexpr int kQuads = kWidth / 4;  // of a row; a lane takes one
#pragma unroll 1
    for (int e = lane; e < count * kQuads; e += kWarp) {
      const int k = e / kQuads, begin = e % kQuads * 4;
      const int64_t row = from(k);
      FragmentC four = {};
      if (row >= 0) {
        four = load_four(source.row(row) + begin, source.width() - begin, source.scale(row));
      }
      *reinterpret_cast<FragmentC*>(rows + (first + k) * kStride + begin) = four;
    }
  }
  // Slot `slot` gets zeros.
  __device__ __forceinline__ void clear(int slot, int lane) const {
#pragma unroll 1
    for (int component = lane; component < kWidth; component += kWarp) rows[slot * kStride + component] = 0;
  }
};

// Lists what value(c) is not 0 for (a NaN has to be seen in the result), c <
// count, in order, padded with zeros to whole steps; returns how many there
// are. entry(c) goes along, `none` past the last.
template <class Memory, class Value, class Entry>
__device__ __forceinline__ int list_pairs(int count, SlotPair none, Memory& memory, int lane, Value value,
                                          Entry entry) {
  int listed = 0;
#pragma unroll 1
  for (int c0 = 0; c0 < count; c0 += kWarp) {
    const int c = c0 + lane;
    const float x = c < count ? value(c) : 0.0f;
    const unsigned bits = __ballot_sync(kAllLanes, x != 0);
    if (x != 0) {
      const int at = listed + __popc(bits & ((1u << lane) - 1));
      memory.list_value[at] = x;
      memory.list_pair[at] = entry(c);
    }
    listed += __popc(bits);
  }
  const int at = listed + lane;
  if (at < whole_steps(listed)) {
    memory.list_value[at] = 0;
    memory.list_pair[at] = none;
  }
  __syncwarp();
  return listed;
}

// Whether the kernels of a shape take graphs of up to kSmallGraph nodes pair by
// pair (tiles_small.h). That wants all units in one pass, and the components in
// one fragment.
template <class Shape>
constexpr bool kPairwise =
    Shape::kFixedUnits == kPassUnits && Shape::kMessageInner == 1 && Shape::kEdgeInner == 1;

// Whether kernels for these factors take bags, too: tables have no half type,
// and those kernels no register to spare. Where the backward has a form of its
// own for bags, with kPairwise, it is built for either alone.
constexpr bool takes_bags(Precision p) { return !is_half(p); }

constexpr int kUnitEights = kPassUnits * 2;  // eights of units: fragments of hidden^T

// What both directions have in common.
template <class Shape, Precision P, bool Backward, bool Bags = takes_bags(P)>
class Tiles {
 public:
  static constexpr int kMI = Shape::kMessageInner, kEI = Shape::kEdgeInner;
  static constexpr int kMaxInner = kMI > kEI ? kMI : kEI;
  static constexpr int kFixed = Shape::kFixedUnits;
  static constexpr bool kSplitsFirst = kMaxInner <= 2;
  static constexpr bool kBags = Bags;
  using Rows = TileRows<kBags>;
  using Memory = TileMemory<kPairwise<Shape>>;
  using Weights = BothWeights<P, kSplitsFirst, kPairwise<Shape>>;
  using RowWeights = SharedWeights<P, kSplitsFirst, true>;
  using EdgeWeights = std::conditional_t<Backward, Weights, RowWeights>;

  template <bool kKept, class Of = Weights>
  using UnitOperands = RowOperands<Of, P, kUnitEights, kKept>;

  // Slots of RowCache. Forward: of small graphs their nodes; else the rows and
  // from 16 on the columns. Backward: of small graphs their nodes; else the
  // columns of a step, and the row.
  static constexpr int kSlots = Backward && !kPairwise<Shape> ? 18 : kTogetherNodes + 1;
  static constexpr int kOwnSlot = 16, kZeroSlot = kSlots - 1;
  static constexpr int kColumnShift = Backward ? 8 : 4;  // log2 of a large piece's columns

  // Fragments of 16 components of W2 as RowWeights.
  static __host__ __device__ __forceinline__ int out_fragments(int64_t d) {
    return kMI <= 2 ? 1 : static_cast<int>((d + kUnits - 1) / kUnits);
  }

  // Calls run(first fragment) for each pass over the hidden units.
  template <class Run>
  static __device__ __forceinline__ void for_passes(int units, Run run) {
    static_assert(kFixed == 0 || kFixed == kPassUnits, "fixed units are one pass");
    if constexpr (kFixed != 0) {
      run(0);
    } else {
#pragma unroll 1
      for (int unit = 0; unit < units; unit += kPassUnits) run(unit);
    }
  }

  // Operands of the inner index of a network with so many components.
  template <int Inner>
  static __host__ __device__ __forceinline__ int steps(int64_t in) {
    if (Inner <= 2) return steps_of(P, Inner);
    return static_cast<int>((in + parts_of(P) * kComponents - 1) / (parts_of(P) * kComponents));
  }

  // The network of the gates but for its last bias.
  struct Edge {
    EdgeWeights hidden;
    const float *bias, *columns, *out;  // of the units, in shared memory: twice
                                        // the bias, see share_columns
    int units, steps;

    static __host__ __device__ __forceinline__ int shared_words(const Perceptron<float>& m) {
      const int units = Shape::units(m.hidden);
      return EdgeWeights::shared_words(units, Tiles::steps<kEI>(m.in)) + (2 + kColumnWords) * units * kUnits;
    }
    __device__ __forceinline__ Edge(const Perceptron<float>& m, float* shared, int lane, int warp)
        : hidden(m.hidden_weight, m.hidden, m.in, false, Shape::units(m.hidden), Tiles::steps<kEI>(m.in),
                 shared, lane, warp),
          units(Shape::units(m.hidden)),
          steps(Tiles::steps<kEI>(m.in)) {
      float* const vectors = shared + EdgeWeights::shared_words(units, steps);
      share_vector(m.hidden_bias, m.hidden, units * kUnits, vectors);
      share_vector(m.out_weight, m.hidden, units * kUnits, vectors + units * kUnits);
      share_columns(m.hidden_bias, m.hidden, units * kUnits, vectors + 2 * units * kUnits);
      bias = vectors, out = vectors + units * kUnits, columns = vectors + 2 * units * kUnits;
    }
  };

  // The right operand of components [8 k, ..) of eight pairs: x_i o x_j of this
  // lane's pair, whose rows are LaneRows.
  template <int Inner>
  static __device__ __forceinline__ Right<P> product(const float* x, const float* y, int k) {
    Right<P> b;
#pragma unroll
    for (int part = 0; part < parts_of(P); ++part) {
      const int inner = k * parts_of(P) + part;
      if (inner >= Inner) {
        b.set(part, 0, 0);
        continue;
      }
      const Two own = two_at(x + inner * kComponents);
      const Two other = two_at(y + inner * kComponents);
      b.set(part, own.x[0] * other.x[0], own.x[1] * other.x[1]);
    }
    return b;
  }

  // The slots of pair `at` of a piece.
  static __device__ __forceinline__ SlotPair slots(const Piece& piece, const Memory& memory, int at) {
    return piece.small ? slots<true>(piece, memory, at) : slots<false>(piece, memory, at);
  }
  template <bool kSmall>
  static __device__ __forceinline__ SlotPair slots(const Piece& piece, const Memory& memory, int at) {
    if constexpr (kSmall) return memory.small_pairs[at];
    const int r = at >> kColumnShift, c = at & ((1 << kColumnShift) - 1);
    if (r >= piece.rows || c >= piece.columns) return slot_pair(kZeroSlot, kZeroSlot);
    return Backward ? slot_pair(kOwnSlot, c % kStepPairs) : slot_pair(r, 16 + c);
  }

  // to [16 rows, 8 components] += x W2^T, for the units of one operand.
  static __device__ __forceinline__ void through_out_weights(const Left<P>& x, int step,
                                                             const RowWeights& out_weights, int d,
                                                             FragmentC (&to)[kMI]) {
#pragma unroll
    for (int n = 0; n < kMI; n += 2) {
      if (kMI > 2 && n * kComponents >= d) break;
      Right<P> w[2];
      out_weights.rows(n / 2, step, w);
      multiply_add(to[n], x, w[0]);
      if (n + 1 < kMI) multiply_add(to[n + 1 < kMI ? n + 1 : 0], x, w[1]);
    }
  }

  // The messages z [16 pairs, 8 components] of the pairs of rows x and y: two of
  // this lane's group (LaneRows). Here hidden is [16 pairs, units], the left operand of
  // z = relu(hidden) W2^T + b2. bias_columns, out_bias: in shared memory.
  static __device__ __forceinline__ void messages_of(const float* const (&x)[2], const float* const (&y)[2],
                                                     const Weights& weights, const float* bias_columns,
                                                     const RowWeights& out_weights, const float* out_bias,
                                                     int units, int steps, int d, const LanePlace& place,
                                                     FragmentC (&z)[kMI]) {
#pragma unroll
    for (int n = 0; n < kMI; ++n) {
      const Two bias = two_at(out_bias + n * kComponents + place.in_group * 2);
      z[n] = {{bias.x[0], bias.x[1], bias.x[0], bias.x[1]}};
    }
#pragma unroll 1
    for (int m = 0; m < units; ++m) {
      FragmentC c[2] = {columns_at(bias_columns, m * 2, place), columns_at(bias_columns, m * 2 + 1, place)};
#pragma unroll(kMI <= 2 ? 2 : 1)
      for (int k = 0; k < steps; ++k) {
        Left<P> pairs(product<kMI>(x[0], y[0], k), product<kMI>(x[1], y[1], k));
        const Left<P> w = weights.get(m, k);
        multiply_add_each<2>([&](int half) -> FragmentC& { return c[half]; },
                             [&](int) -> const Left<P>& { return pairs; },
                             [&](int half) { return w.rows(half); });
      }
      Left<P> on[2 / parts_of(P)];
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          on[t / parts_of(P)].set(half, t % parts_of(P), positive(c[t].x[half * 2]),
                                  positive(c[t].x[half * 2 + 1]));
#pragma unroll
      for (int o = 0; o < 2 / parts_of(P); ++o)
        through_out_weights(on[o], m * 2 / parts_of(P) + o, out_weights, d, z);
    }
  }

  // Which pair of its graph pair `at` of a piece is.
  static __device__ __forceinline__ int64_t pair_of(const Piece& piece, int at) {
    if (piece.small) return at;
    return unordered_pair(piece.row + (at >> kColumnShift), piece.column + (at & ((1 << kColumnShift) - 1)),
                          piece.graph.end - piece.graph.begin);
  }

  // How many pairs a piece has, some of which may not exist.
  static __device__ __forceinline__ int pairs(const Piece& piece) {
    return piece.small ? pairs<true>(piece) : pairs<false>(piece);
  }
  template <bool kSmall>
  static __device__ __forceinline__ int pairs(const Piece& piece) {
    if constexpr (kSmall) return piece.graphs * piece.small_pairs();
    return Backward ? piece.columns : piece.rows << kColumnShift;
  }

  // The rows of a whole piece into the cache: not for a large graph in the
  // backward.
  template <int Inner>
  static __device__ __forceinline__ void cache_piece(const Piece& piece, const RowCache<Inner>& cache,
                                                     const Rows& rows, int lane) {
    const int64_t row = piece.graph.begin + piece.row, column = piece.graph.begin + piece.column;
    cache.load(0, piece.rows, rows, lane, [&](int k) { return row + k; });
    if (!piece.small) cache.load(16, piece.columns, rows, lane, [&](int k) { return column + k; });
    cache.clear(kZeroSlot, lane);
    __syncwarp();
  }

  // Lists the numbers of small graphs' open pairs, of the `count` pairs from `first` on, with their gates,
  // and clears the rows of the others; returns how many there are.
  template <class PairRows>
  static __device__ __forceinline__ int list_small_pairs(const Piece& piece, Memory& memory, int lane,
                                                         const PairRows& rows, int first, int count) {
    return list_pairs(
        count, static_cast<SlotPair>(pairs<true>(piece)), memory, lane,
        [&](int at) {
          const float gate = memory.gate[first + at];
          if (gate == 0) rows.clear(first + at);
          return gate;
        },
        [&](int at) { return static_cast<SlotPair>(first + at); });
  }

  // Numbers the pairs of small graphs, where that isn't done.
  static __device__ __forceinline__ void number_pairs(const Piece& piece, Memory& memory, int lane) {
    const int n = piece.small, each = piece.small_pairs(), count = piece.graphs * each;
    if (!n || (n == memory.small_nodes && piece.graphs == memory.small_graphs)) return;
    __syncwarp();
    if (lane == 0) {
      memory.small_nodes = n, memory.small_graphs = piece.graphs;
      int lanes = kWarp;
      while (lanes * piece.graphs > kWarp) lanes /= 2;
      memory.lanes_each = lanes;
    }
#pragma unroll 1
    for (int e = lane; e < piece.graphs * n * n; e += kWarp) {
      const int node = e / n, graph = node / n, i = node % n, j = e % n, first = graph * n;
      if (kPairwise<Shape> && j == 0) memory.graph_of_node[node] = static_cast<uint8_t>(graph);
      if (i > j) continue;
      const int number = graph * each + small_pair(i, j, n);
      memory.small_pairs[number] = slot_pair(first + i, first + j);
      if (kPairwise<Shape>) memory.graph_of_pair[number] = static_cast<uint8_t>(graph);
    }
#pragma unroll 1
    for (int at = count + lane; at < whole_steps(count + 1); at += kWarp)  // `none` of a list is count
      memory.small_pairs[at] = slot_pair(kZeroSlot, kZeroSlot);
    __syncwarp();
  }

  // The logits of a piece, but for the last bias, into memory.gate. The result of
  // a product is [16 pairs, 8 units] here: its sum over units is over few lanes.
  template <bool kSmall>
  static __device__ __forceinline__ void logits(const CompleteGraph<float>& p, const Edge& edge,
                                                const Piece& piece, Memory& memory,
                                                const RowCache<kEI>& cache, int lane) {
    const LanePlace place(lane);
    const int count = pairs<kSmall>(piece);
    const Rows rows = Rows::edges(p);
    constexpr bool kStaged = Backward && !kSmall;
    const int64_t first_column = piece.graph.begin + piece.column;
    if constexpr (kStaged) {
      const int64_t own = piece.graph.begin + piece.row;
      cache.load(kOwnSlot, 1, rows, lane, [&](int) { return own; });
      cache.clear(kZeroSlot, lane);
    } else {
      cache_piece(piece, cache, rows, lane);
    }
    const auto nodes = cache.of_lane(place);
    const UnitOperands<kPairwise<Shape>, EdgeWeights> kept_weights(edge.hidden);
    const auto out_at = [&](int eight) { return two_at(edge.out + eight * 8 + place.in_group * 2); };
    constexpr bool kKeepsOut = kPairwise<Shape> && kSmall;  // else there are too few registers
    Two kept_out[kKeepsOut ? kUnitEights : 1];
    FragmentC kept_bias[kKeepsOut ? kUnitEights : 1];
    if constexpr (kKeepsOut)
#pragma unroll
      for (int e = 0; e < kUnitEights; ++e)
        kept_out[e] = out_at(e), kept_bias[e] = columns_at(edge.columns, e, place);
#pragma unroll 1
    for (int at = 0; at < count; at += kStepPairs) {
      if constexpr (kStaged) {
        cache.load(0, kStepPairs, rows, lane,
                   [&](int k) { return at + k < piece.columns ? first_column + at + k : int64_t{-1}; });
        __syncwarp();
      }
      const int own = at + place.group;
      const SlotPair top = slots<kSmall>(piece, memory, own), bottom = slots<kSmall>(piece, memory, own + 8);
      const auto pairs_at = [&](int k) {
        return Left<P>(product<kEI>(nodes.row(top & 0xFF), nodes.row(top >> 8), k),
                       product<kEI>(nodes.row(bottom & 0xFF), nodes.row(bottom >> 8), k));
      };
      float logit[2] = {0, 0};
      const auto add_units = [&](const FragmentC& c, const Two& out) {
#pragma unroll
        for (int part = 0; part < 4; ++part)
          logit[part / 2] = fmaf(out.x[part % 2], positive(c.x[part]), logit[part / 2]);
      };
      if constexpr (kPairwise<Shape>) {
        FragmentC c[kUnitEights];
        Left<P> x = pairs_at(0);
        multiply_add_to<kUnitEights>(
            [&](int e) -> FragmentC& { return c[e]; }, [&](int) -> const Left<P>& { return x; },
            [&](int e) { return kept_weights.at(e); },
            [&](int e) {
              return kKeepsOut ? kept_bias[kKeepsOut ? e : 0] : columns_at(edge.columns, e, place);
            });
#pragma unroll
        for (int e = 0; e < kUnitEights; ++e)
          add_units(c[e], kKeepsOut ? kept_out[kKeepsOut ? e : 0] : out_at(e));
      } else {
        constexpr bool kKept = kEI <= 2;
        Left<P> kept[kKept ? steps_of(P, kEI) : 1];
        if constexpr (kKept)
#pragma unroll
          for (int k = 0; k < steps_of(P, kEI); ++k) kept[k] = pairs_at(k);
#pragma unroll 1
        for (int m = 0; m < edge.units; ++m) {
          FragmentC c[2] = {columns_at(edge.columns, m * 2, place),
                            columns_at(edge.columns, m * 2 + 1, place)};
          const auto multiply = [&](const Left<P>& x, int k) {
            Right<P> w[2];
            edge.hidden.rows(m, k, w);
            multiply_add_each<2>([&](int half) -> FragmentC& { return c[half]; },
                                 [&](int) -> const Left<P>& { return x; },
                                 [&](int half) -> const Right<P>& { return w[half]; });
          };
          if constexpr (kKept) {
#pragma unroll
            for (int k = 0; k < steps_of(P, kEI); ++k) multiply(kept[k], k);
          } else {
#pragma unroll 1
            for (int k = 0; k < edge.steps; ++k) multiply(pairs_at(k), k);
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) add_units(c[half], out_at(m * 2 + half));
        }
      }
      // Lanes of even places take the first pair, those of odd places the second.
      const bool second = place.in_group & 1;
      float sum = second ? logit[1] : logit[0];
      sum += __shfl_xor_sync(kAllLanes, second ? logit[0] : logit[1], 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (place.in_group < 2) memory.gate[own + place.in_group * 8] = sum;
      __syncwarp();
    }
  }

  // The gates of a piece into `memory.gate`; backward also slopes and what the
  // logits receive from l0. Adds what this lane's pairs count for l0 and for
  // the number of open pairs, each unordered pair once. kWrites: the gates and
  // logits are results, too.
  template <bool kWrites = false>
  static __device__ __forceinline__ void gates(const TileLaunch& l, const Edge& edge, const Piece& piece,
                                               Memory& memory, TileGradients* gradients,
                                               const RowCache<kEI>& cache, int lane, float& l0, int& edges) {
    if (!l.problem.edge_nodes) {
#pragma unroll 1
      for (int at = lane; at < pairs(piece); at += kWarp)
        memory.gate[at] = (slots(piece, memory, at) & 0xFF) == kZeroSlot ? 0.0f : 1.0f;
      __syncwarp();
    } else if (piece.small) {
      draw_gates<true, kWrites>(l, edge, piece, memory, gradients, cache, lane, l0, edges);
    } else {
      draw_gates<false, kWrites>(l, edge, piece, memory, gradients, cache, lane, l0, edges);
    }
  }

 private:
  template <bool kSmall, bool kWrites>
  static __device__ __forceinline__ void draw_gates(const TileLaunch& l, const Edge& edge, const Piece& piece,
                                                    Memory& memory, TileGradients* gradients,
                                                    const RowCache<kEI>& cache, int lane, float& l0,
                                                    int& edges) {
    const CompleteGraph<float>& p = l.problem;
    const int count = pairs<kSmall>(piece);
    logits<kSmall>(p, edge, piece, memory, cache, lane);
    if (kSmall && l.gate.seed) {
      // Four consecutive pairs of a graph share a call.
      const int64_t seed = *l.gate.seed;
      const int each = piece.small_pairs(), calls = (each + 3) / 4;
#pragma unroll 1
      for (int call = lane; call < piece.graphs * calls; call += kWarp) {
        const int graph = call / calls, first = (call - graph * calls) * 4;
        const Philox4<uint32_t> words = gate_words(seed, piece.graph.graph + graph, first);
        float* const noise = memory.list_value + graph * each + first;
#pragma unroll
        for (int k = 0; k < 4; ++k)
          if (first + k < each) noise[k] = uniform_from_word(words.x[k]);
      }
      __syncwarp();
    }
    const float out_bias = p.edge.out_bias[0];
    float grad_l0 = Backward && p.grad_l0 ? p.grad_l0[piece.graph.graph] : 0.0f;
#pragma unroll 1
    for (int at = lane; at < count; at += kWarp) {
      const float logit = memory.gate[at] + out_bias;
      bool self = false, counts = true;
      Gate<float> gate;
      if constexpr (kSmall) {
        gate = l.gate.at(logit, l.gate.seed ? memory.list_value[at] : 0.5f);
        if constexpr (Backward) {
          const SlotPair pair = memory.small_pairs[at];
          self = (pair & 0xFF) == pair >> 8;
          if (kPairwise<Shape> && p.grad_l0)
            grad_l0 = p.grad_l0[piece.graph.graph + memory.graph_of_pair[at]];
        }
      } else {
        if ((slots<false>(piece, memory, at) & 0xFF) == kZeroSlot) {
          memory.gate[at] = 0;
          continue;
        }
        const int64_t i = piece.row + (at >> kColumnShift);
        const int64_t j = piece.column + (at & ((1 << kColumnShift) - 1));
        self = i == j, counts = i <= j;
        gate = l.gate(logit, piece.graph.graph, pair_of(piece, at));
      }
      memory.gate[at] = gate.value;
      if (kSmall && !Backward && !kWrites) memory.list_value[at] = gate.open;
      if (counts) {
        if constexpr (!kSmall) l0 += gate.open, edges += gate.value > 0;
        if constexpr (kWrites)
          if (const int64_t to = l.pair_offsets[piece.graph.graph] + pair_of(piece, at);
              is_pair(to, p.num_pairs))
            p.gates[to] = gate.value, p.logits[to] = logit;
      }
      if constexpr (Backward) {
        gradients->slope[at] = gate.slope;
        gradients->grad_logit[at] = (self ? 2 : 1) * grad_l0 * gate.open_slope;
      }
    }
    __syncwarp();
    if constexpr (kSmall && !Backward && !kWrites) count_gates(piece, memory, lane, l0, edges);
  }

  // The sums of small graphs: each in its memory.lanes_each lanes.
  static __device__ __forceinline__ void count_gates(const Piece& piece, const Memory& memory, int lane,
                                                     float& l0, int& edges) {
    const int lanes = memory.lanes_each, graph = lane / lanes, each = piece.small_pairs();
    if (graph < piece.graphs)
#pragma unroll 1
      for (int pair = lane % lanes; pair < each; pair += lanes) {
        l0 += memory.list_value[graph * each + pair];
        edges += memory.gate[graph * each + pair] > 0;
      }
#pragma unroll 1
    for (int apart = lanes / 2; apart; apart /= 2) {
      l0 += __shfl_xor_sync(kAllLanes, l0, apart);
      edges += __shfl_xor_sync(kAllLanes, edges, apart);
    }
    __syncwarp();
  }
};

// The warps of the grid.
__device__ __forceinline__ int64_t grid_warps() { return static_cast<int64_t>(gridDim.x) * kTileWarps; }

// Rows of a piece while for_pieces counts them: of either type ptxas needs a register less for some
// architectures, and the largest backward has none to spare.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
using PieceRows = int64_t;
#else
using PieceRows = int;
#endif

// Calls run(piece, first, last) for every piece of the pair matrix that this
// warp owns; first and last say whether the piece begins or ends its rows. A
// piece of a large graph has up to `Rows` rows, all of the same Rows rows of
// the batch, and `Columns` columns. A warp takes l.turn rows at a time; kShares:
// or, with l.first_step, the warps share the batch by its steps. kTogether: several small
// graphs may go together, and the next graph is guessed; other kernels have no registers for that.
template <int Rows, int Columns, bool kShares, bool kTogether, class Run>
__device__ __forceinline__ void for_pieces(const TileLaunch& l, int64_t warp, int64_t warps, Run&& run) {
  const Graphs& graphs = l.problem.graphs;
  // Few registers: the largest kernels have none to spare.
  int64_t row = warp * l.turn, end = row + l.turn, last = -1;
  if (kShares && l.first_step) rows_of_warp(graphs, l.first_step, warp, warps, row, end);
#pragma unroll 1
  while (row < graphs.num_nodes) {
#pragma unroll 1
    while (row < end && row < graphs.num_nodes) {
      const GraphOfRow graph = graph_of_row(graphs, row, last);
      if constexpr (kTogether) last = graph.graph;
      const int64_t n = graph.end - graph.begin;
      const int small = is_small(n) ? static_cast<int>(n) : 0;
      if (small && row != graph.begin) {  // another warp's, or this one's already
        row = graph.end;
        continue;
      }
      const int64_t stop = (row / Rows + 1) * Rows;
      PieceRows some = small ? small : static_cast<PieceRows>((graph.end < stop ? graph.end : stop) - row);
      int together = 1;
      if (kTogether && l.together > 1) {
        const int64_t rest = graphs.num_nodes - row;
        some = static_cast<PieceRows>(rest < l.turn ? rest : l.turn);
        together = some == l.turn ? l.together : static_cast<int>(some) / small;
      }
      const int width = small ? small : Columns;
#pragma unroll 1
      for (int64_t column = 0; column < n; column += width) {
        const int64_t rest = n - column;
        run(Piece{graph, small, row - graph.begin, column, static_cast<int>(some),
                  static_cast<int>(rest < width ? rest : width), together},
            column == 0, rest <= width);
      }
      row = kTogether || !small ? row + some : graph.end;  // the same; so ptxas needs a register less
    }
    if (kShares && l.first_step) break;
    row = end + (warps - 1) * l.turn, end = row + l.turn;
  }
}

#endif

}  // namespace l0sign::cuda
