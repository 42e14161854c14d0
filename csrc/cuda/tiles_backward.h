// The backward on the matrix units; instantiated by tiles_*.cu. Nothing was
// kept of a pair: gates and hidden values are computed again. A warp walks over
// the pairs of one row at a time (tiles_backward_rows.h); in the smallest kernels
// small graphs go pair by pair (tiles_backward_small.h).
#pragma once
#include "cuda/tiles_small.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// Sums over the rows of a warp, a matrix [16 units, 8 Inner] as fragments of C:
// a lane's part stays in registers, or is four words of each fragment in
// `memory`.
template <int FixedUnits, int Inner>
struct MatrixSums {
  static constexpr bool kInRegisters = FixedUnits > 0;
  FragmentC own[kInRegisters ? FixedUnits : 1][Inner];
  float* memory;

  __device__ __forceinline__ MatrixSums(float* sums, int units, int lane) : memory(sums + lane * 4) {
    if constexpr (kInRegisters) {
#pragma unroll
      for (int m = 0; m < FixedUnits; ++m)
#pragma unroll
        for (int n = 0; n < Inner; ++n) own[m][n] = {};
    } else {
#pragma unroll 1
      for (int f = 0; f < units * Inner; ++f) at(0, f) = {};
    }
  }
  __device__ __forceinline__ FragmentC get(int m, int n) const {
    if constexpr (kInRegisters) return own[m][n];
    return at(m, n);
  }
  __device__ __forceinline__ void set(int m, int n, const FragmentC& value) {
    if constexpr (kInRegisters) {
      own[m][n] = value;
    } else {
      at(m, n) = value;
    }
  }
  __device__ __forceinline__ void store(float* to, int lane) const {
    if constexpr (kInRegisters)
#pragma unroll
      for (int m = 0; m < FixedUnits; ++m)
#pragma unroll
        for (int n = 0; n < Inner; ++n)
#pragma unroll
          for (int part = 0; part < 4; ++part)
            to[((m * Inner + n) * kWarp + lane) * 4 + part] = own[m][n].x[part];
  }

 private:
  __device__ __forceinline__ FragmentC& at(int m, int n) const {
    return *reinterpret_cast<FragmentC*>(memory + (m * Inner + n) * kWarp * 4);
  }
};

// The same for one value a unit; in registers a lane has a part of the sum, in
// memory the group's first lane all.
template <int FixedUnits>
struct UnitSums {
  static constexpr bool kInRegisters = FixedUnits > 0;
  float own[kInRegisters ? FixedUnits : 1][2];
  float* memory;

  __device__ __forceinline__ UnitSums(float* sums, int units, const LanePlace& place)
      : memory(sums + place.group) {
#pragma unroll
    for (int m = 0; m < FixedUnits; ++m) own[m][0] = own[m][1] = 0;
    if constexpr (!kInRegisters)
#pragma unroll 1
      for (int h = 0; h < units * 2; ++h)
        if (place.in_group == 0) memory[h * 8] = 0;
  }
  __device__ __forceinline__ void add(int m, const float (&x)[2], const LanePlace& place) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (kInRegisters) {
        own[m][half] += x[half];
      } else {
        const float sum = sum_in_group(x[half]);
        if (place.in_group == 0) memory[m * kUnits + half * 8] += sum;
      }
    }
  }
  // The sum of unit group + 8 half of fragment m, in the group's first lane.
  __device__ __forceinline__ float get(int m, int half, const LanePlace& place) const {
    if constexpr (kInRegisters) return sum_in_group(own[m][half]);
    return place.in_group == 0 ? memory[m * kUnits + half * 8] : 0.0f;
  }
  __device__ __forceinline__ void store(float* to, const LanePlace& place) const {
    if constexpr (kInRegisters)
#pragma unroll
      for (int m = 0; m < FixedUnits; ++m)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float sum = get(m, half, place);
          if (place.in_group == 0) to[m * kUnits + half * 8 + place.group] = sum;
        }
  }
};

// D_i of the nodes of a graph: what the sum over the partners of node i receives.
template <bool Bags>
class TileGradRows {
 public:
  __device__ __forceinline__ TileGradRows(const CompleteGraph<float>& p, const GraphOfRow& graph)
      : p_(p), graph_(graph) {}
  __device__ __forceinline__ int width() const { return static_cast<int>(p_.message.in); }
  __device__ __forceinline__ const float* row(int64_t k) const {
    return Bags && p_.pools ? p_.grad_pooled + graph_.graph * width() : p_.grad_out + k * width();
  }
  __device__ __forceinline__ float scale(int64_t k) const {
    const float scale = node_scale(p_, graph_, k);
    return Bags && p_.pools ? scale * pooled_share(graph_, TileRows<Bags>::nodes(p_).scale(k)) : scale;
  }

 private:
  const CompleteGraph<float>& p_;
  const GraphOfRow& graph_;
};

// What lies where in a block's shared memory, in words.
template <class Shape, Precision P, bool L2>
struct BackwardShared {
  using T = Tiles<Shape, P, true>;
  int units, steps, row_fragments, row_steps;
  int out, bias, rows, out_bias, back, edge, edge_back, warps, warp_words, end;
  static constexpr int kEdgeCache = T::kSlots * RowCache<T::kEI>::kStride;
  static constexpr int kMessageCache = T::kSlots * RowCache<T::kMI>::kStride;
  // Nodes and their gradients, or edge nodes.
  static constexpr int kCacheWords =
      (2 * kMessageCache > kEdgeCache ? 2 * kMessageCache : kEdgeCache) + (T::kSlots + 3) / 4 * 4;
  static constexpr int kPairRows =
      (sizeof(typename T::Memory) + sizeof(TileGradients)) / 4 + (kCacheWords + 3) / 4 * 4;
  static constexpr int kPairSums = kPairRows + (kPairwise<Shape> ? PairRows::kWords : 0);
  static constexpr int kReceived = kPairSums + (kPairwise<Shape> ? PairSums<P>::kWords : 0);
  static constexpr int kWarpWords = kReceived + (L2 ? kStepPairs * RowCache<T::kMI>::kStride : 0);
  // The bias of hidden^T, for small graphs and for z.
  static constexpr bool kBiasColumns = kPairwise<Shape> || L2;
  // Operands of W1^T, for small graphs.
  static constexpr int kBackSteps = kUnitEights / parts_of(P);
  static constexpr int kBackWords = kPairwise<Shape> ? T::RowWeights::shared_words(1, kBackSteps) : 0;

  // sums: words of a warp's sums, if they lie here.
  __host__ __device__ __forceinline__ BackwardShared(const CompleteGraph<float>& p, int sums)
      : units(Shape::units(p.message.hidden)),
        steps(T::template steps<T::kMI>(p.message.in)),
        row_fragments(T::out_fragments(p.message.in)),
        row_steps(units * 2 / parts_of(P)),
        out(T::Weights::shared_words(units, steps)),
        bias(2 * out),
        rows(bias + (kRowWords + (kBiasColumns ? kColumnWords : 0)) * units * kUnits),
        out_bias(rows + (L2 ? T::RowWeights::shared_words(row_fragments, row_steps) : 0)),
        back(out_bias + (L2 ? T::kMI * kComponents : 0)),
        edge(back + kBackWords),
        edge_back(edge + T::Edge::shared_words(p.edge)),
        warps(edge_back + kBackWords),
        warp_words(kWarpWords + sums),
        end(warps + kTileWarps * warp_words) {}
  size_t bytes() const { return end * sizeof(float); }
};

template <class Shape, Precision P, bool Bags, bool L2>
class Backward {
  using T = Tiles<Shape, P, true, Bags>;
  using Shared = BackwardShared<Shape, P, L2>;
  using GradRows = TileGradRows<T::kBags>;
  static constexpr int kMI = T::kMI, kEI = T::kEI, kParts = parts_of(P);
  // With few components the operands of a step are kept, and its units taken
  // one fragment after the other.
  static constexpr bool kKept = kMI <= 2;
  static constexpr int kTogether = kKept ? 1 : kPassUnits;
  static constexpr int kComponentsOfLane = (kMI * kComponents + kWarp - 1) / kWarp;

 public:
  __device__ __forceinline__ Backward(const TileLaunch& l, float* shared, const Shared& at, float* partial,
                                      int lane, int warp)
      : l_(l),
        p_(l.problem),
        lane_(lane),
        warp_(warp),
        place_(lane),
        d_(static_cast<int>(p_.message.in)),
        b_(static_cast<int>(p_.edge.in)),
        units_(T::kFixed ? T::kFixed : at.units),
        steps_(kMI <= 2 ? steps_of(P, kMI) : at.steps),
        weights_(p_.message.hidden_weight, p_.message.hidden, d_, false, at.units, at.steps, shared, lane,
                 warp),
        out_weights_(p_.message.out_weight, p_.message.hidden, d_, true, at.units, at.steps, shared + at.out,
                     lane, warp),
        bias_(shared + at.bias),
        bias_columns_(bias_ + at.units * kUnits * kRowWords),
        out_rows_(p_.message.out_weight, d_, p_.message.hidden, false, L2 ? at.row_fragments : 0,
                  at.row_steps, shared + at.rows, lane, warp),
        out_bias_at_(shared + at.out_bias),
        back_(p_.message.hidden_weight, d_, p_.message.hidden, true, kPairwise<Shape> ? 1 : 0,
              Shared::kBackSteps, shared + at.back, lane, warp),
        edge_(p_.edge, shared + at.edge, lane, warp),
        edge_back_(
            [&](int component, int h) {
              return component < b_ && h < p_.edge.hidden
                         ? p_.edge.out_weight[h] * p_.edge.hidden_weight[h * b_ + component]
                         : 0.0f;
            },
            kPairwise<Shape> ? 1 : 0, Shared::kBackSteps, shared + at.edge_back, lane, warp),
        memory_(*reinterpret_cast<typename T::Memory*>(shared + at.warps + warp * at.warp_words)),
        gradients_(*reinterpret_cast<TileGradients*>(shared + at.warps + warp * at.warp_words +
                                                     sizeof(typename T::Memory) / 4)),
        cache_(shared + at.warps + warp * at.warp_words +
               (sizeof(typename T::Memory) + sizeof(TileGradients)) / 4),
        row_numbers_(cache_ + Shared::kCacheWords - (T::kSlots + 3) / 4 * 4),
        pair_rows_(shared + at.warps + warp * at.warp_words + Shared::kPairRows, place_),
        pair_sums_{shared + at.warps + warp * at.warp_words + Shared::kPairSums},
        received_{shared + at.warps + warp * at.warp_words + Shared::kReceived},
        partial_(partial),
        sums_(l.sums_shared ? shared + at.warps + warp * at.warp_words + Shared::kWarpWords : partial),
        hidden_weight_(sums_ + l.at.message_hidden, at.units, lane),
        out_weight_(sums_ + l.at.message_out, at.units, lane),
        edge_weight_(sums_ + l.at.edge_hidden, edge_.units, lane),
        hidden_bias_(sums_ + l.at.message_bias, at.units, place_),
        edge_bias_(sums_ + l.at.edge_bias, edge_.units, place_) {
    memory_.clear(lane);
    share_rows(p_.message.hidden_bias, p_.message.hidden, at.units * kUnits, shared + at.bias);
    if constexpr (L2) share_vector(p_.message.out_bias, d_, kMI * kComponents, shared + at.out_bias);
    if constexpr (Shared::kBiasColumns)
      share_columns(p_.message.hidden_bias, p_.message.hidden, at.units * kUnits,
                    shared + at.bias + at.units * kUnits * kRowWords);
#pragma unroll
    for (int k = 0; k < kComponentsOfLane; ++k) out_bias_[k] = 0;
    if constexpr (kPairwise<Shape>) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int component = place_.in_group * 2 + c;
        out_bias_columns_.x[c] = component < d_ ? p_.message.out_bias[component] : 0.0f;
      }
    }
  }

  __device__ __forceinline__ void operator()(const Piece& piece, bool first, bool last) {
    find_gates(piece);
    if constexpr (kPairwise<Shape>)
      if (piece.small) {
        if constexpr (L2) {
          small_messages<false>(piece);
        } else if constexpr (Bags) {
          small_bag_messages(piece);
        } else if (keeps_weights(warp_)) {
          small_messages<true>(piece);
        } else {
          small_messages<false>(piece);
        }
        if (p_.edge_nodes) small_gates(piece);
        return;
      }
    messages(piece, first, last);
    if (p_.edge_nodes) gates(piece, first, last);
  }

  // Everything that the given edges into and out of the `rows` rows from `first` on add; in tiles_edges.h.
  __device__ __forceinline__ void edges_of(const TileEdges& edges, int64_t first, int rows);

  // What single gates and logits of a piece receive, to the edge network; in tiles_gates.h.
  __device__ __forceinline__ void gates_of(const Piece& piece, bool first, bool last);

  // Writes this warp's partial sums.
  __device__ __forceinline__ void finish() {
    const TileSums& at = l_.at;
    hidden_weight_.store(partial_ + at.message_hidden, lane_);
    out_weight_.store(partial_ + at.message_out, lane_);
    hidden_bias_.store(partial_ + at.message_bias, place_);
    edge_weight_.store(partial_ + at.edge_hidden, lane_);
    edge_bias_.store(partial_ + at.edge_bias, place_);
    __syncwarp();
    if (!T::kFixed && l_.sums_shared)
#pragma unroll 1
      for (int e = lane_; e < at.edge_out; e += kWarp) partial_[e] = sums_[e];
    if constexpr (kPairwise<Shape>) {
      // The lane of component 2 in_group + c has the rest of its sum.
      const float sums[2] = {sum_over_groups(small_out_bias_[0]), sum_over_groups(small_out_bias_[1])};
      const float even = __shfl_sync(kAllLanes, sums[0], lane_ / 2 % 4);
      const float odd = __shfl_sync(kAllLanes, sums[1], lane_ / 2 % 4);
      out_bias_[0] += lane_ % 2 ? odd : even;
    }
#pragma unroll
    for (int k = 0; k < kComponentsOfLane; ++k)
      if (k * kWarp + lane_ < kMI * kComponents) partial_[at.out_bias + k * kWarp + lane_] = out_bias_[k];
    // dW2[h] = sum_k W1[h][k] S[h][k] + b1[h] s[h]: linear in the sums, and so
    // each warp adds its own.
    const int units = T::kFixed ? T::kFixed : edge_.units;
#pragma unroll(T::kFixed ? T::kFixed : 1)
    for (int m = 0; m < units; ++m) {
      float out[2] = {0, 0};
#pragma unroll
      for (int n = 0; n < kEI; ++n) {
        const FragmentC sum = edge_weight_.get(m, n);
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          const int h = m * kUnits + place_.group + part / 2 * 8;
          const int component = n * kComponents + place_.in_group * 2 + part % 2;
          if (h < p_.edge.hidden && component < b_)
            out[part / 2] = fmaf(p_.edge.hidden_weight[h * b_ + component], sum.x[part], out[part / 2]);
        }
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int h = m * kUnits + place_.group + half * 8;
        const float sum = sum_in_group(out[half]), bias_sum = edge_bias_.get(m, half, place_);
        if (place_.in_group == 0) partial_[at.edge_out + h] = fmaf(edge_.bias[h], bias_sum, sum);
      }
    }
    const float logit_sum = warp_sum(logit_sum_);
    if (lane_ == 0) partial_[at.logit] = logit_sum;
  }

 private:
  // The gates of a piece and their slopes, into the warp's memory.
  __device__ __forceinline__ void find_gates(const Piece& piece) {
    T::number_pairs(piece, memory_, lane_);
    float l0 = 0;
    int edges = 0;
    T::gates(l_, edge_, piece, memory_, &gradients_, {cache_}, lane_, l0, edges);
  }

  // In tiles_backward_small.h.
  struct MaskedPairs;
  template <bool kKeepsWeights>
  __device__ __forceinline__ void small_messages(const Piece& piece);
  __device__ __forceinline__ void add_to_out(int half, float weight, const Two& x);
  __device__ __forceinline__ void small_bag_messages(const Piece& piece);
  __device__ __forceinline__ void bag_messages(const Piece& piece, int graph, const RowCache<kMI>& nodes,
                                               const float* shares, float* q);
  __device__ __forceinline__ void small_gates(const Piece& piece);
  template <class Hidden, class Bias>
  __device__ __forceinline__ MaskedPairs masked_pairs(const LaneRows<kComponents>& nodes,
                                                      const SlotPair (&pair)[2], const float (&weight)[2],
                                                      const Hidden& hidden, const Bias& bias,
                                                      const Right<P> (&back)[Shared::kBackSteps],
                                                      FragmentC (&sum)[kPassUnits][1],
                                                      float (&bias_sum)[kPassUnits][2]) const;
  __device__ __forceinline__ void store_gathered(const Piece& piece, const RowCache<1>& partners,
                                                 const typename T::Rows& rows, float* grad, int size) const;

  // In tiles_backward_rows.h.
  // The partners of a row that are listed: of row r of a piece those of its open pairs, ...
  struct RowPartners {
    const Piece& piece;
    int r, open;
  };
  // ... or the other ends of given edges, the first `into` of which lead to the row; all staged.
  struct EdgePartners {
    int64_t row;
    int into;
    const TileEdges& edges;
  };
  __device__ __forceinline__ void messages(const Piece& piece, bool first, bool last);
  template <class Partners>
  __device__ __forceinline__ void message_pass(const Partners& partners, const RowCache<kMI>& nodes,
                                               const RowCache<kMI>& grads, int own, int begin, int end,
                                               int unit);
  __device__ __forceinline__ void stage_partners(const RowPartners& partners, const RowCache<kMI>& nodes,
                                                 const RowCache<kMI>& grads, int at) const;
  __device__ __forceinline__ void stage_partners(const EdgePartners& partners, const RowCache<kMI>& nodes,
                                                 const RowCache<kMI>& grads, int at) const;
  __device__ __forceinline__ void receive(const Piece& piece, const RowCache<kMI>& nodes,
                                          const RowCache<kMI>& grads, int r, int own, int at, int open);
  __device__ __forceinline__ void gates(const Piece& piece, bool first, bool last);
  __device__ __forceinline__ void edge_pass(const Piece& piece, const RowCache<kEI>& nodes, int own,
                                            int listed, int unit);
  __device__ __forceinline__ Right<P> sum_of(const float* x, const float* y, int k) const;
  __device__ __forceinline__ Right<P> received_of(int pair, int k) const;
  __device__ __forceinline__ void dot_out_bias(const RowCache<kMI>& grads, int first, int count) const;
  __device__ __forceinline__ void add_grad_gates(const RowPartners& partners, const float (&grad_gate)[2][2],
                                                 const int (&slot)[2][2], int own, int at, int unit);
  __device__ __forceinline__ void add_grad_gates(const EdgePartners& partners, const float (&grad_gate)[2][2],
                                                 const int (&slot)[2][2], int own, int at, int unit);
  __device__ __forceinline__ void add_hidden_sum(const float (&hidden_sum)[2], int unit, const float* own);
  template <int Fragments>
  __device__ __forceinline__ void add_received(const Left<P> (&relu)[Fragments][2 / kParts], int unit);
  template <int Inner, class Source>
  __device__ __forceinline__ void stage(const Piece& piece, const RowCache<Inner>& cache,
                                        const Source& source, int at, int listed) const;
  template <int Inner, int Fragments>
  __device__ __forceinline__ void add_partners(const RowCache<Inner>& cache, const int (&slot)[2][2],
                                               int size, const Left<P> (&left)[Fragments][2 / kParts],
                                               int first, FragmentC (&outer)[kPassUnits][Inner]) const;
  template <int Inner, class Weights, class Sums>
  __device__ __forceinline__ void finish_outer(const FragmentC (&outer)[kPassUnits][Inner], int unit,
                                               const Weights& weights, const float* unit_weight,
                                               const float* own, int size, Sums& sums,
                                               float (&x)[Inner][2]) const;
  template <int Inner>
  __device__ __forceinline__ void store_row(const float (&x)[Inner][2], float scale, float* to,
                                            int size) const;

  // The number of pair (r, c) of a piece.
  static __device__ __forceinline__ int pair_number(const Piece& piece, int r, int c) {
    return piece.small ? small_pair(r, c, piece.small) : c;
  }

  // The slot of a listed pair's partner.
  __device__ __forceinline__ int partner_slot(const Piece& piece, int at) const {
    return piece.small ? memory_.list_pair[at] : at % kStepPairs;
  }
  __device__ __forceinline__ int partner_slot(const RowPartners& partners, int at) const {
    return partner_slot(partners.piece, at);
  }
  __device__ __forceinline__ int partner_slot(const EdgePartners&, int at) const { return at % kStepPairs; }

  // What a message's own end receives: with given edges that of the one end where it arrives is staged.
  static __device__ __forceinline__ int grad_slot(const RowPartners&, int own) { return own; }
  static __device__ __forceinline__ int grad_slot(const EdgePartners&, int) { return T::kZeroSlot; }

  // Whether the message of a listed pair comes to the row.
  static __device__ __forceinline__ bool arrives(const RowPartners&, int) { return true; }
  static __device__ __forceinline__ bool arrives(const EdgePartners& partners, int at) {
    return at < partners.into;
  }

  const TileLaunch& l_;
  const CompleteGraph<float>& p_;
  const int lane_, warp_;
  const LanePlace place_;
  const int d_, b_, units_, steps_;
  const typename T::Weights weights_, out_weights_;
  const float *const bias_,
      *const bias_columns_;  // in shared memory, see share_rows and share_columns (small graphs, L2)
  const typename T::RowWeights out_rows_;  // W2, for L2
  const float* const out_bias_at_;         // b2, for L2
  const typename T::RowWeights back_;      // W1^T, for small graphs
  const typename T::Edge edge_;
  const typename T::RowWeights edge_back_;  // W1^T times W2, for small graphs
  typename T::Memory& memory_;
  TileGradients& gradients_;
  float* const cache_;
  float* const row_numbers_;  // [slots] b2 . D, or of a bag's small graph c_i
  const PairRows pair_rows_;
  const PairSums<P> pair_sums_;
  const RowCache<kMI> received_;  // L2: what the messages of a step's pairs receive
  float *const partial_, *const sums_;
  // Sums over all rows of the warp.
  MatrixSums<T::kFixed, kMI> hidden_weight_, out_weight_;
  MatrixSums<T::kFixed, kEI> edge_weight_;
  UnitSums<T::kFixed> hidden_bias_, edge_bias_;
  float out_bias_[kComponentsOfLane];
  float small_out_bias_[2] = {0, 0};  // of components 2 in_group + c, this lane's pairs
  float logit_sum_ = 0;
  Two out_bias_columns_;  // b2 of these components
  // Of the row that is at work.
  float grad_row_[kMI][2], grad_edge_row_[kEI][2];
  float gate_sum_;
};

// A kernel's backward: work(run, warp) by each of them, and its partial sums.
template <class Shape, Precision P, bool Bags, bool L2, class Work>
__device__ __forceinline__ void run_backward(const TileLaunch& l, Work work) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t this_warp = static_cast<int64_t>(blockIdx.x) * kTileWarps + warp;
  Backward<Shape, P, Bags, L2> run(l, dynamic_shared<float>(),
                                   BackwardShared<Shape, P, L2>(l.problem, l.sums_shared ? l.at.size : 0),
                                   l.partials + this_warp * l.at.size, lane, warp);
  __syncthreads();
  work(run, this_warp);
  run.finish();
}

// Bags: for bags; in shapes without kPairwise, and with L2, for nodes as well.
// L2: with a gradient for the messages' norms.
template <class Shape, Precision P, bool Bags, bool L2>
__global__ void __launch_bounds__(kTileThreads, Shape::kBackwardBlocks) tile_backward(TileLaunch l) {
  run_backward<Shape, P, Bags, L2>(l, [&](auto& run, int64_t warp) {
    for_pieces<1, kTileGates, true, kPairwise<Shape>>(l, warp, grid_warps(), run);
  });
}

#endif

}  // namespace l0sign::cuda

#include "cuda/tiles_backward_rows.h"
#include "cuda/tiles_backward_small.h"
