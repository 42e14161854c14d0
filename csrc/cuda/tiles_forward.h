// The forward on the matrix units; instantiated by tiles_*.cu. The sum over
// partners is a product as well: with G [nodes, pairs], the gate of a pair at
// its end or, in a small graph, at both,
//   S [nodes, units] = G positive(hidden)^T,   v' = scale (S W2^T + b2 sum of
//   G's row),
// and hidden is the right operand of it as it lies in the registers.
#pragma once
#include "cuda/tiles_small.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// What lies where in a block's shared memory, in words.
template <class Shape, Precision P>
struct ForwardShared {
  using T = Tiles<Shape, P, false>;
  int units, steps, out_fragments, out_steps;
  int bias, out, out_bias, edge, warps, end;
  static constexpr int kCacheWords =
      T::kSlots * (RowCache<T::kMI>::kStride > RowCache<T::kEI>::kStride ? RowCache<T::kMI>::kStride
                                                                         : RowCache<T::kEI>::kStride);
  static constexpr int kPairRows = sizeof(typename T::Memory) / 4 + (kCacheWords + 3) / 4 * 4;
  static constexpr int kWarpWords = kPairRows + (kPairwise<Shape> ? PairRows::kWords : 0);

  __host__ __device__ __forceinline__ explicit ForwardShared(const CompleteGraph<float>& p)
      : units(Shape::units(p.message.hidden)),
        steps(T::template steps<T::kMI>(p.message.in)),
        out_fragments(T::out_fragments(p.message.in)),
        out_steps(units * 2 / parts_of(P)),
        bias(T::Weights::shared_words(units, steps)),
        out(bias + (kRowWords + kColumnWords) * units * kUnits),
        out_bias(out + T::RowWeights::shared_words(out_fragments, out_steps)),
        edge(out_bias + T::kMI * kComponents),
        warps(edge + T::Edge::shared_words(p.edge)),
        end(warps + kTileWarps * kWarpWords) {}
  size_t bytes() const { return end * sizeof(float); }
};

template <class Shape, Precision P, bool L2>
class Forward {
  using T = Tiles<Shape, P, false>;
  using Shared = ForwardShared<Shape, P>;
  static constexpr int kMI = T::kMI;
  // Fragments of C, 8 units each, that make an operand.
  static constexpr int kParts = parts_of(P);

 public:
  __device__ __forceinline__ Forward(const TileLaunch& l, float* shared, const Shared& at, int lane, int warp)
      : l_(l),
        p_(l.problem),
        lane_(lane),
        place_(lane),
        d_(static_cast<int>(p_.message.in)),
        units_(T::kFixed ? T::kFixed : at.units),
        steps_(kMI <= 2 ? steps_of(P, kMI) : at.steps),
        weights_(p_.message.hidden_weight, p_.message.hidden, d_, false, at.units, at.steps, shared, lane,
                 warp),
        bias_(shared + at.bias),
        bias_columns_(bias_ + at.units * kUnits * kRowWords),
        out_weights_(p_.message.out_weight, d_, p_.message.hidden, false, at.out_fragments, at.out_steps,
                     shared + at.out, lane, warp),
        out_bias_(shared + at.out_bias),
        edge_(p_.edge, shared + at.edge, lane, warp),
        memory_(*reinterpret_cast<typename T::Memory*>(shared + at.warps + warp * Shared::kWarpWords)),
        cache_(shared + at.warps + warp * Shared::kWarpWords + sizeof(typename T::Memory) / 4),
        counts_degrees_(p_.aggregation == Aggregation::neighbor_mean) {
    float* const bias = shared + at.bias;
    share_rows(p_.message.hidden_bias, p_.message.hidden, at.units * kUnits, bias);
    share_columns(p_.message.hidden_bias, p_.message.hidden, at.units * kUnits,
                  bias + at.units * kUnits * kRowWords);
    share_vector(p_.message.out_bias, d_, kMI * kComponents, shared + at.out_bias);
    memory_.clear(lane);
  }

  __device__ __forceinline__ void operator()(const Piece& piece, bool first, bool last) {
    if (first) begin_rows();
    T::number_pairs(piece, memory_, lane_);
    T::gates(l_, edge_, piece, memory_, nullptr, {cache_}, lane_, l0_, edges_);
    const RowCache<kMI> nodes = {cache_};
    if constexpr (kPairwise<Shape>)
      if (piece.small) {
        small_graph(piece, nodes);
        return;
      }
    const int open = list_pairs(
        T::pairs(piece), slot_pair(T::kZeroSlot, T::kZeroSlot), memory_, lane_,
        [&](int at) { return memory_.gate[at]; }, [&](int at) { return T::slots(piece, memory_, at); });
    T::cache_piece(piece, nodes, T::Rows::nodes(p_), lane_);
    T::for_passes(units_, [&](int unit) { messages(nodes, open, unit); });
    if constexpr (L2) l2_ += squares(piece, nodes, open);
    __syncwarp();
    if (last) store(piece);
  }

  // The messages of given edges to the `rows` rows from `first` on; in tiles_edges.h.
  __device__ __forceinline__ void edges_into(const TileEdges& edges, int64_t first, int rows);

 private:
  __device__ __forceinline__ void begin_rows() {
    l0_ = l2_ = 0, edges_ = 0;
#pragma unroll
    for (int n = 0; n < kMI; ++n) out_[n] = {};
    gate_sum_[0] = gate_sum_[1] = 0;
    degree_[0] = degree_[1] = 0;
  }

  // The messages of each open pair of small graphs, which the nodes gather.
  __device__ __forceinline__ void small_graph(const Piece& piece, const RowCache<kMI>& nodes) {
    const PairRows messages(cache_ - sizeof(typename T::Memory) / 4 + Shared::kPairRows, place_);
    const int n = piece.small;
    const int open = T::list_small_pairs(piece, memory_, lane_, messages, 0, T::pairs(piece));
    T::cache_piece(piece, nodes, T::Rows::nodes(p_), lane_);
    const typename T::template UnitOperands<true> hidden(weights_);
    Right<P> out[kUnitEights / kParts];
#pragma unroll
    for (int o = 0; o < kUnitEights / kParts; ++o) {
      Right<P> w[2];
      out_weights_.rows(0, o, w);
      out[o] = w[0];
    }
    const Two out_bias = two_at(out_bias_ + place_.in_group * 2);
    const auto lane_nodes = nodes.of_lane(place_);
    FragmentC bias[kUnitEights];
#pragma unroll
    for (int e = 0; e < kUnitEights; ++e) bias[e] = columns_at(bias_columns_, e, place_);
#pragma unroll 1
    for (int at = 0; at < open; at += kStepPairs) {
      const int own = at + place_.group;
      int number[2];
      Right<P> pairs[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        number[half] = memory_.list_pair[own + half * 8];
        const SlotPair pair = memory_.small_pairs[number[half]];
        pairs[half] = T::template product<kMI>(lane_nodes.row(pair & 0xFF), lane_nodes.row(pair >> 8), 0);
      }
      Left<P> x(pairs[0], pairs[1]);
      FragmentC c[kUnitEights];
      multiply_add_to<kUnitEights>(
          [&](int e) -> FragmentC& { return c[e]; }, [&](int) -> const Left<P>& { return x; },
          [&](int e) { return hidden.at(e); }, [&](int e) -> const FragmentC& { return bias[e]; });
      // Two sums, which do not wait for each other.
      FragmentC z = {{out_bias.x[0], out_bias.x[1], out_bias.x[0], out_bias.x[1]}}, rest = {};
#pragma unroll
      for (int o = 0; o < kUnitEights / kParts; o += 2) {
        Left<P> on[2];
#pragma unroll
        for (int k = 0; k < 2 * kParts; ++k)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const FragmentC& of = c[o * kParts + k];
            on[k / kParts].set(half, k % kParts, positive(of.x[half * 2]), positive(of.x[half * 2 + 1]));
          }
        multiply_add_each<2>([&](int k) -> FragmentC& { return k ? rest : z; },
                             [&](int k) -> const Left<P>& { return on[k]; },
                             [&](int k) -> const Right<P>& { return out[o + k]; });
      }
#pragma unroll
      for (int part = 0; part < 4; ++part) z.x[part] += rest.x[part];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (own + half * 8 >= open) continue;
        const float gate = memory_.list_value[own + half * 8];
        messages.set(number[half], half, gate, z);
        if (L2 && gate > 0)
#pragma unroll
          for (int part = 0; part < 2; ++part) l2_ = fmaf(z.x[half * 2 + part], z.x[half * 2 + part], l2_);
      }
      __syncwarp();  // the next product takes the whole warp
    }
    const bool pools = T::kBags && p_.pools;
#pragma unroll 1
    for (int first = 0; first < piece.rows; first += Gathered::kTogether) {
      const Gathered to(piece, memory_, first, lane_);
      FragmentC x = messages.gather(piece, to, [](int) { return FragmentC{{1, 1, 1, 1}}; });
      if (!to.exists) continue;
      const int64_t row = piece.graph.begin + to.node;
      int degree = 0;
      if (counts_degrees_) {
        const float* const gates = memory_.gate + to.graph * piece.small_pairs();
        for (int j = 0; j < n; ++j) degree += gates[small_pair(to.own, j, n)] > 0;
        if (p_.degree && to.component == 0) p_.degree[row] = degree;
      }
      float scale = aggregation_scale<float>(p_.aggregation, n, degree);
      if (pools) scale *= pooled_share(piece.graph, T::Rows::nodes(p_).scale(row));
#pragma unroll
      for (int c = 0; c < 4; ++c) x.x[c] *= scale;
      if (pools) {
        *reinterpret_cast<FragmentC*>(nodes.rows + to.node * kComponents + to.component) = x;
      } else {
        store_four(p_.out + row * d_ + to.component, d_ - to.component, x);
      }
    }
    __syncwarp();
    if (pools) pool_small(piece, nodes);
    store_sums(piece);
  }

  // The sums over the nodes of small graphs, whose parts are in the cache.
  __device__ __forceinline__ void pool_small(const Piece& piece, const RowCache<kMI>& parts) const {
#pragma unroll 1
    for (int e = lane_; e < piece.graphs * kComponents; e += kWarp) {
      const int graph = e / kComponents, component = e % kComponents;
      const float* part = parts.rows + graph * piece.small * kComponents + component;
      float sum = 0;
#pragma unroll 4
      for (int i = 0; i < piece.small; ++i) sum += part[i * kComponents];
      if (component < d_) p_.pooled[(piece.graph.graph + graph) * d_ + component] = sum;
    }
    __syncwarp();
  }

  // Adds what the listed pairs send through the units of a pass.
  __device__ __forceinline__ void messages(const RowCache<kMI>& nodes, int open, int unit) {
    FragmentC sum[kPassUnits * 2] = {};  // S [nodes, 8 units]
#pragma unroll 1
    for (int at = 0; at < open; at += kStepPairs) add_step<false>(nodes, at, unit, unit == 0, sum);
    through_out(unit, sum);
  }

  // The same of the 16 pairs from `at` on, to S; `count`: also to the sums of gates. The sum over pairs is a
  // product, in which 0 times a pair's NaN or infinity would reach every row. kApart: such a pair makes the
  // rows that it belongs to NaN, and no other.
  template <bool kApart>
  __device__ __forceinline__ void add_step(const RowCache<kMI>& nodes, int at, int unit, bool count,
                                           FragmentC (&sum)[kPassUnits * 2]) {
    FragmentC c[kPassUnits][2];  // [units, 8 pairs]
#pragma unroll
    for (int m = 0; m < kPassUnits; ++m) c[m][0] = c[m][1] = rows_at(bias_, unit + m, place_);
    const SlotPair pair[2] = {memory_.list_pair[at + place_.group], memory_.list_pair[at + 8 + place_.group]};
    const auto lane_nodes = nodes.of_lane(place_);
#pragma unroll(kMI <= 2 ? 2 : 1)
    for (int k = 0; k < steps_; ++k) {
      Right<P> b[2];
#pragma unroll
      for (int t = 0; t < 2; ++t)
        b[t] = T::template product<kMI>(lane_nodes.row(pair[t] & 0xFF), lane_nodes.row(pair[t] >> 8), k);
#pragma unroll
      for (int m = 0; m < kPassUnits; ++m) {
        Left<P> w = weights_.get(unit + m, k);
        multiply_add_each<2>([&](int t) -> FragmentC& { return c[m][t]; },
                             [&](int) -> const Left<P>& { return w; },
                             [&](int t) -> const Right<P>& { return b[t]; });
      }
    }
    bool apart[2][2] = {};
    if constexpr (kApart)
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          bool finite = true;
#pragma unroll
          for (int m = 0; m < kPassUnits; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              finite = finite && positive(c[m][t].x[half * 2 + j]) <= largest(P);
          // The units of a pair lie in the lanes of one place in their groups.
          apart[t][j] = __ballot_sync(kAllLanes, !finite) & (0x11111111u << place_.in_group);
#pragma unroll
          for (int m = 0; m < kPassUnits; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float& x = c[m][t].x[half * 2 + j];
              x = apart[t][j] ? 0.0f : x;
            }
        }
    Left<P> gates[2 / kParts];
#pragma unroll
    for (int t = 0; t < 2; ++t) incidence(at + t * 8, apart[t], gates[t / kParts], t % kParts, count);
#pragma unroll
    for (int m = 0; m < kPassUnits; ++m)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        Right<P> on[2 / kParts];
#pragma unroll
        for (int t = 0; t < 2; ++t)
          on[t / kParts].set(t % kParts, positive(c[m][t].x[half * 2]), positive(c[m][t].x[half * 2 + 1]));
#pragma unroll
        for (int o = 0; o < 2 / kParts; ++o) multiply_add(sum[m * 2 + half], gates[o], on[o]);
      }
  }

  // S W2^T of the units of a pass.
  __device__ __forceinline__ void through_out(int unit, const FragmentC (&sum)[kPassUnits * 2]) {
#pragma unroll
    for (int f = 0; f < kPassUnits * 2; f += kParts) {
      Left<P> x;
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          x.set(half, part, sum[f + part].x[half * 2], sum[f + part].x[half * 2 + 1]);
      T::through_out_weights(x, (unit * 2 + f) / kParts, out_weights_, d_, out_);
    }
  }

  // G of eight listed pairs: this lane's are two of them, at nodes group and
  // group + 8. What is `apart` has a NaN for its gate.
  __device__ __forceinline__ void incidence(int at, const bool (&apart)[2], Left<P>& gates, int part,
                                            bool count) {
    at += place_.in_group * 2;
    Two value = two_at(memory_.list_value + at);
#pragma unroll
    for (int j = 0; j < 2; ++j) value.x[j] = apart[j] ? NAN : value.x[j];
    Right<P> whole;
    whole.set(part, value.x[0], value.x[1]);
    bool meets[2][2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const SlotPair pair = memory_.list_pair[at + j];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int node = place_.group + half * 8;
        meets[half][j] = (pair & 0xFF) == node || pair >> 8 == node;
        if (!count) continue;
        gate_sum_[half] += meets[half][j] ? value.x[j] : 0.0f;
        if (counts_degrees_) degree_[half] += meets[half][j] && value.x[j] > 0;
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if constexpr (is_half(P)) {
        const uint32_t mask = (meets[half][0] ? 0xFFFFu : 0) | (meets[half][1] ? 0xFFFF0000u : 0);
        gates.high.x[part * 2 + half] = whole.high.x[part] & mask;
      } else {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          gates.high.x[j * 2 + half] = meets[half][j] ? whole.high.x[j] : 0;
          if constexpr (P == Precision::tf32x3)
            gates.low.x[j * 2 + half] = meets[half][j] ? whole.low.x[j] : 0;
        }
      }
    }
  }

  // This lane's part of the sum of |z|^2 over the listed pairs.
  __device__ __forceinline__ float squares(const Piece& piece, const RowCache<kMI>& nodes, int open) const {
    const auto lane_nodes = nodes.of_lane(place_);
    float squared = 0;
#pragma unroll 1
    for (int at = 0; at < open; at += kStepPairs) {
      const SlotPair pair[2] = {memory_.list_pair[at + place_.group],
                                memory_.list_pair[at + 8 + place_.group]};
      FragmentC z[kMI];
      T::messages_of({lane_nodes.row(pair[0] & 0xFF), lane_nodes.row(pair[1] & 0xFF)},
                     {lane_nodes.row(pair[0] >> 8), lane_nodes.row(pair[1] >> 8)}, weights_, bias_columns_,
                     out_weights_, out_bias_, units_, steps_, d_, place_, z);
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int64_t i = piece.row + (pair[t] & 0xFF), j = piece.column + (pair[t] >> 8) - 16;
        if (!(memory_.list_value[at + t * 8 + place_.group] > 0) || (!piece.small && j < i)) continue;
#pragma unroll
        for (int n = 0; n < kMI; ++n)
#pragma unroll
          for (int part = 0; part < 2; ++part) {
            const float x = z[n].x[t * 2 + part];
            squared = fmaf(x, x, squared);
          }
      }
      __syncwarp();  // the next product takes the whole warp
    }
    return squared;
  }

  __device__ __forceinline__ void store(const Piece& piece) {
    const int64_t row = piece.graph.begin + piece.row;
    const bool pools = T::kBags && p_.pools;
    finish_rows(row, piece.rows, [&](int) { return piece.graph; });
    if (pools)
      pool(piece.small ? p_.pooled + piece.graph.graph * d_
                       : l_.pooled + sums_slot(piece.graph.graph, row) * d_);
    store_sums(piece);
  }

  // v' of `rows` rows from `row` on, row k of the graph `graph_of(k)`: written, or kept for the pooled sum.
  template <class GraphOf>
  __device__ __forceinline__ void finish_rows(int64_t row, int rows, GraphOf graph_of) {
    const bool pools = T::kBags && p_.pools;
    const float gates[2] = {sum_in_group(gate_sum_[0]), sum_in_group(gate_sum_[1])};
    int degree[2] = {0, 0};
    if (counts_degrees_)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        degree[half] = degree_[half] + __shfl_xor_sync(kAllLanes, degree_[half], 1);
        degree[half] += __shfl_xor_sync(kAllLanes, degree[half], 2);
      }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = place_.group + half * 8;
      const bool exists = r < rows;
      const GraphOfRow graph = graph_of(r);
      float scale = aggregation_scale<float>(p_.aggregation, graph.end - graph.begin, degree[half]);
      if (pools && exists) scale *= pooled_share(graph, T::Rows::nodes(p_).scale(row + r));
      if (exists && counts_degrees_ && p_.degree && place_.in_group == 0) p_.degree[row + r] = degree[half];
#pragma unroll
      for (int k = 0; k < kMI; ++k)
#pragma unroll
        for (int part = 0; part < 2; ++part) {
          const int component = k * kComponents + place_.in_group * 2 + part;
          float& x = out_[k].x[half * 2 + part];
          x = exists ? scale * fmaf(out_bias_[component], gates[half], x) : 0.0f;
          if (!pools && exists && component < d_) p_.out[(row + r) * d_ + component] = x;
        }
    }
  }

  // To the graphs, or to what is added up of a large one.
  __device__ __forceinline__ void store_sums(const Piece& piece) const {
    const auto store = [&](auto* of_graphs, auto* of_slots, auto sum_of_lane, bool summed) {
      if (!of_graphs) return;
      const auto all = summed ? sum_of_lane : warp_sum(sum_of_lane);
      if (piece.small) {
        const int lanes = summed ? memory_.lanes_each : kWarp, graph = lane_ / lanes;
        if (lane_ % lanes == 0 && graph < piece.graphs) of_graphs[piece.graph.graph + graph] = all;
      } else if (lane_ == 0) {
        of_slots[sums_slot(piece.graph.graph, piece.graph.begin + piece.row)] = all;
      }
    };
    const bool summed = piece.small;  // see Tiles::count_gates
    store(p_.l0, l_.l0, l0_, summed);
    store(p_.num_edges, l_.edges, edges_, summed);
    if (L2) store(p_.l2, l_.l2, l2_, false);
  }

  // The sum over the rows, what each adds to its graph's pooled sum.
  __device__ __forceinline__ void pool(float* to) const {
#pragma unroll
    for (int k = 0; k < kMI; ++k)
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const int component = k * kComponents + place_.in_group * 2 + part;
        const float sum = sum_over_groups(out_[k].x[part] + out_[k].x[2 + part]);
        if (place_.group == 0 && component < d_) to[component] = sum;
      }
  }

  const TileLaunch& l_;
  const CompleteGraph<float>& p_;
  const int lane_;
  const LanePlace place_;
  const int d_, units_, steps_;
  const typename T::Weights weights_;
  const float *const bias_,
      *const bias_columns_;  // in shared memory, see share_rows and share_columns
  const typename T::RowWeights out_weights_;
  const float* const out_bias_;  // [d] in shared memory
  const typename T::Edge edge_;
  typename T::Memory& memory_;
  float* const cache_;
  const bool counts_degrees_;
  // Of the rows that are at work.
  FragmentC out_[kMI];  // [nodes, 8 components]
  float gate_sum_[2];
  int degree_[2];
  float l0_, l2_;
  int edges_;
};

template <class Shape, Precision P, bool L2>
__global__ void __launch_bounds__(kTileThreads, Shape::kForwardBlocks - L2) tile_forward(TileLaunch l) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  Forward<Shape, P, L2> run(l, dynamic_shared<float>(), ForwardShared<Shape, P>(l.problem), lane, warp);
  __syncthreads();
  for_pieces<kForwardRows, 16, false, kPairwise<Shape>>(
      l, static_cast<int64_t>(blockIdx.x) * kTileWarps + warp, grid_warps(), run);
}

#endif

}  // namespace l0sign::cuda
