// The backward on the matrix units; instantiated by tiles_*.cu. Nothing was
// kept of a pair: gates and hidden values are computed again. A warp walks over
// the pairs of one row at a time: in the place where a lane held `hidden`
// [units, pairs], it gets W2^T (D_i + D_j) from a second product, and from both
// m = [unit on] g W2^T (D_i + D_j), which is the left operand of M_i += m U as
// it lies there. Small graphs in the smallest kernels go pair by pair instead
// (tiles_small.h, small_messages and small_gates).
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
template <class Shape, Precision P>
struct BackwardShared {
  using T = Tiles<Shape, P, true>;
  int units, steps;
  int out, bias, back, edge, edge_back, warps, warp_words, end;
  static constexpr int kEdgeCache = T::kSlots * RowCache<T::kEI>::kStride;
  static constexpr int kMessageCache = T::kSlots * RowCache<T::kMI>::kStride;
  // Nodes and their gradients, or edge nodes.
  static constexpr int kCacheWords =
      (2 * kMessageCache > kEdgeCache ? 2 * kMessageCache : kEdgeCache) + (T::kSlots + 3) / 4 * 4;
  static constexpr int kPairRows =
      (sizeof(TileMemory) + sizeof(TileGradients)) / 4 + (kCacheWords + 3) / 4 * 4;
  static constexpr int kPairSums = kPairRows + (kPairwise<Shape> ? PairRows::kWords : 0);
  static constexpr int kWarpWords = kPairSums + (kPairwise<Shape> ? PairSums<P>::kWords : 0);
  // Operands of W1^T, for small graphs.
  static constexpr int kBackSteps = kUnitEights / parts_of(P);
  static constexpr int kBackWords = kPairwise<Shape> ? T::Weights::shared_words(1, kBackSteps) : 0;

  // sums: words of a warp's sums, if they lie here.
  __host__ __device__ __forceinline__ BackwardShared(const CompleteGraph<float>& p, int sums)
      : units(Shape::units(p.message.hidden)),
        steps(T::template steps<T::kMI>(p.message.in)),
        out(T::Weights::shared_words(units, steps)),
        bias(2 * out),
        back(bias + (kRowWords + (kPairwise<Shape> ? kColumnWords : 0)) * units * kUnits),
        edge(back + kBackWords),
        edge_back(edge + T::Edge::shared_words(p.edge)),
        warps(edge_back + kBackWords),
        warp_words(kWarpWords + sums),
        end(warps + kTileWarps * warp_words) {}
  size_t bytes() const { return end * sizeof(float); }
};

template <class Shape, Precision P, bool Bags>
class Backward {
  using T = Tiles<Shape, P, true, Bags>;
  using Shared = BackwardShared<Shape, P>;
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
        memory_(*reinterpret_cast<TileMemory*>(shared + at.warps + warp * at.warp_words)),
        gradients_(*reinterpret_cast<TileGradients*>(shared + at.warps + warp * at.warp_words +
                                                     sizeof(TileMemory) / 4)),
        cache_(shared + at.warps + warp * at.warp_words + (sizeof(TileMemory) + sizeof(TileGradients)) / 4),
        row_numbers_(cache_ + Shared::kCacheWords - (T::kSlots + 3) / 4 * 4),
        pair_rows_{shared + at.warps + warp * at.warp_words + Shared::kPairRows},
        pair_sums_{shared + at.warps + warp * at.warp_words + Shared::kPairSums},
        partial_(partial),
        sums_(l.sums_shared ? shared + at.warps + warp * at.warp_words + Shared::kWarpWords : partial),
        hidden_weight_(sums_ + l.at.message_hidden, at.units, lane),
        out_weight_(sums_ + l.at.message_out, at.units, lane),
        edge_weight_(sums_ + l.at.edge_hidden, edge_.units, lane),
        hidden_bias_(sums_ + l.at.message_bias, at.units, place_),
        edge_bias_(sums_ + l.at.edge_bias, edge_.units, place_) {
    share_rows(p_.message.hidden_bias, p_.message.hidden, at.units * kUnits, shared + at.bias);
    if constexpr (kPairwise<Shape>)
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
    if (piece.small && piece.small != numbered_) {
      T::number_pairs(piece, memory_, lane_);
      numbered_ = piece.small;
    }
    float l0 = 0;
    int edges = 0;
    T::gates(l_, edge_, piece, memory_, &gradients_, {cache_}, lane_, l0, edges);
    if constexpr (kPairwise<Shape>)
      if (piece.small) {
        if constexpr (Bags) {
          small_bag(piece);
        } else {
          small_messages(piece);
        }
        if (p_.edge_nodes) small_gates(piece);
        return;
      }
    messages(piece, first, last);
    if (p_.edge_nodes) gates(piece, first, last);
  }

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
  // Everything that goes through the message network of a small graph, each
  // pair once. The sums of weight gradients are those over ordered pairs, so
  // that a pair of two nodes weighs twice what a self-pair does, whose
  // D_i + D_j is twice D_i.
  __device__ __forceinline__ void small_messages(const Piece& piece) {
    const RowCache<kMI> nodes = {cache_}, grads = {cache_ + Shared::kMessageCache};
    const typename T::Rows node_rows = T::Rows::nodes(p_);
    const int64_t begin = piece.graph.begin;
    const int n = piece.small;
    const auto cached = [&](int k) { return begin + k; };
    nodes.load(0, n, node_rows, lane_, cached);
    grads.load(0, n, GradRows(p_, piece.graph), lane_, cached);
    nodes.clear(T::kZeroSlot, lane_);
    grads.clear(T::kZeroSlot, lane_);
    const int open = T::list_small_pairs(piece, memory_, lane_, pair_rows_);
    const typename T::template UnitOperands<kKeepsWeights> hidden(weights_), from_out(out_weights_);
#pragma unroll 1
    for (int at = 0; at < open; at += kStepPairs) {
      int number[2];
      float gate[2], grad_gate[2];
      Left<P> x, grad;
      Two sum[2];  // D_i + D_j
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int listed = at + half * 8 + place_.group;
        number[half] = memory_.list_pair[listed];
        const SlotPair pair = memory_.small_pairs[number[half]];
        const int i = pair & 0xFF, j = pair >> 8, component = place_.in_group * 2;
        gate[half] = memory_.list_value[listed];
        const float weight = i == j ? gate[half] : 2 * gate[half];
        const Two u[2] = {two_at(nodes.row(i) + component), two_at(nodes.row(j) + component)};
        const Two D[2] = {two_at(grads.row(i) + component), two_at(grads.row(j) + component)};
        const Two product = {{u[0].x[0] * u[1].x[0], u[0].x[1] * u[1].x[1]}};
        x.set(half, 0, product.x[0], product.x[1]);
        if constexpr (kParts > 1) x.set(half, 1, 0, 0);
        sum[half] = {{D[0].x[0] + D[1].x[0], D[0].x[1] + D[1].x[1]}};
        const Two weighted = {{0.5f * weight * sum[half].x[0], 0.5f * weight * sum[half].x[1]}};
        small_out_bias_[0] += weighted.x[0], small_out_bias_[1] += weighted.x[1];
        pair_sums_.write_factors(0, half, {{weight * product.x[0], weight * product.x[1]}}, place_);
        pair_sums_.write_factors(1, half, weighted, place_);
        pair_sums_.write_weight(half, weight, place_);
      }
      FragmentC on[2][2], m[2][2], received = {};
#pragma unroll
      for (int e = 0; e < kUnitEights; ++e) {
        FragmentC c = columns_at(bias_columns_, e, place_);
        multiply_add(c, x, hidden.at(e));
#pragma unroll
        for (int part = 0; part < 4; ++part) on[part / 2][part % 2].x[e] = positive(c.x[part]);
      }
      pair_sums_.write_values(on, place_);
      pair_sums_.template add<false, false>(1, out_weight_.own, hidden_bias_.own, place_);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        grad.set(half, 0, sum[half].x[0], sum[half].x[1]);
        if constexpr (kParts > 1) grad.set(half, 1, 0, 0);
        grad_gate[half] =
            fmaf(out_bias_columns_.x[0], sum[half].x[0], out_bias_columns_.x[1] * sum[half].x[1]);
      }
#pragma unroll
      for (int o = 0; o < Shared::kBackSteps; ++o) {
        Left<P> masked;
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const int e = o * kParts + part;
          FragmentC both = {};
          multiply_add(both, grad, from_out.at(e));
#pragma unroll
          for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const float y = both.x[half * 2 + j], unit = on[half][j].x[e];
              grad_gate[half] = fmaf(y, unit, grad_gate[half]);
              m[half][j].x[e] = unit > 0 ? y : 0.0f;
            }
            masked.set(half, part, m[half][0].x[e], m[half][1].x[e]);
          }
        }
        Right<P> rows[2];
        back_.rows(0, o, rows);
        multiply_add(received, masked, rows[0]);
      }
      pair_sums_.write_values(m, place_);
      pair_sums_.template add<false, true>(0, hidden_weight_.own, hidden_bias_.own, place_);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        grad_gate[half] = sum_in_group(grad_gate[half]);
        if (at + half * 8 + place_.group >= open) continue;
        pair_rows_.set(number[half], half, gate[half], received, place_);
        if (!p_.edge_nodes || place_.in_group != 0) continue;
        float& grad_logit = gradients_.grad_logit[number[half]];
        grad_logit = fmaf(grad_gate[half], gradients_.slope[number[half]], grad_logit);
      }
      __syncwarp();  // the next product takes the whole warp
    }
    store_gathered(piece, nodes, node_rows, p_.grad_nodes, d_);
  }

  // 16 pairs of a small graph in a network whose hidden layer receives a number
  // of the pair times a vector v of the units: its gradients follow from the masks
  // [hidden > 0], which are exact factors.
  struct MaskedPairs {
    Two x[2];              // x_i o x_j of the pairs in rows group and group + 8
    FragmentC mask[2][2];  // see PairSums::write_values
    FragmentC received;    // masks (v o W1) [16 pairs, 8 components]
  };
  // hidden, bias_columns: W1 and b1; back: (v o W1)^T. With weights of the pairs, adds masks^T (weight x) to
  // `sum` and masks^T weight to `bias_sum`.
  template <class Hidden>
  __device__ __forceinline__ MaskedPairs masked_pairs(const RowCache<1>& nodes, const SlotPair (&pair)[2],
                                                      const float (&weight)[2], const Hidden& hidden,
                                                      const float* bias_columns,
                                                      const Right<P> (&back)[Shared::kBackSteps],
                                                      FragmentC (&sum)[kPassUnits][1],
                                                      float (&bias_sum)[kPassUnits][2]) const {
    MaskedPairs pairs;
    Left<P> x;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int component = place_.in_group * 2;
      const Two u[2] = {two_at(nodes.row(pair[half] & 0xFF) + component),
                        two_at(nodes.row(pair[half] >> 8) + component)};
      const Two product = {{u[0].x[0] * u[1].x[0], u[0].x[1] * u[1].x[1]}};
      pairs.x[half] = product;
      x.set(half, 0, product.x[0], product.x[1]);
      if constexpr (kParts > 1) x.set(half, 1, 0, 0);
      pair_sums_.write_factors(0, half, {{weight[half] * product.x[0], weight[half] * product.x[1]}}, place_);
      pair_sums_.write_weight(half, weight[half], place_);
    }
    pairs.received = {};
#pragma unroll
    for (int o = 0; o < Shared::kBackSteps; ++o) {
      Left<P> masks;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int e = o * kParts + part;
        FragmentC c = columns_at(bias_columns, e, place_);
        multiply_add(c, x, hidden.at(e));
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j) pairs.mask[half][j].x[e] = c.x[half * 2 + j] > 0 ? 1.0f : 0.0f;
          masks.set_exact(half, part, pairs.mask[half][0].x[e], pairs.mask[half][1].x[e]);
        }
      }
      multiply_add_exact(pairs.received, masks, back[o]);
    }
    pair_sums_.write_values(pairs.mask, place_);
    pair_sums_.template add<true, true>(0, sum, bias_sum, place_);
    return pairs;
  }

  // small_messages of a bag, where D_i = c_i D for one vector D of the graph.
  // With q = W2^T D and c_ij = c_i + c_j a pair has
  //   dL/d(hidden) = g_ij c_ij q o [hidden > 0],  dg_ij = c_ij (q . relu(hidden) + b2 . D),
  // as if its network had the one output q . relu(hidden). With sums over the
  // graph's ordered pairs
  //   S[h] = sum [hidden_h > 0] g_ij c_ij u_i o u_j,  s[h] without the product,
  // the weights' gradients, as small_messages adds them up, are q_h S[h] and
  // q_h s[h], and D (W1_h . S[h] + b1_h s[h]) / 2 is the sum of relu(hidden_h).
  __device__ __forceinline__ void small_bag(const Piece& piece) {
    const RowCache<kMI> nodes = {cache_};
    float* const shares = row_numbers_;               // c_i
    float* const q = cache_ + Shared::kMessageCache;  // [32]
    static_assert(!kPairwise<Shape> || kPassUnits * kUnits <= Shared::kMessageCache);
    const typename T::Rows node_rows = T::Rows::nodes(p_);
    const GradRows grads(p_, piece.graph);
    const int64_t begin = piece.graph.begin;
    const int n = piece.small;
    nodes.load(0, n, node_rows, lane_, [&](int k) { return begin + k; });
    nodes.clear(T::kZeroSlot, lane_);
    if (lane_ < T::kSlots) shares[lane_] = lane_ < n ? grads.scale(begin + lane_) : 0.0f;
    const float* const pooled = p_.grad_pooled + piece.graph.graph * d_;
    Two D;  // of components 2 in_group + c
#pragma unroll
    for (int c = 0; c < 2; ++c)
      D.x[c] = place_.in_group * 2 + c < d_ ? pooled[place_.in_group * 2 + c] : 0.0f;
    const typename T::template UnitOperands<false> from_out(out_weights_);
#pragma unroll
    for (int e = 0; e < kUnitEights; ++e) {
      const Two w = from_out.at(e).values(0);
      q[e * 8 + place_.group] = sum_in_group(fmaf(w.x[0], D.x[0], w.x[1] * D.x[1]));
    }
    const float out = fmaf(out_bias_columns_.x[0], D.x[0], out_bias_columns_.x[1] * D.x[1]);
    const int open = T::list_small_pairs(piece, memory_, lane_, pair_rows_);
    const typename T::template UnitOperands<true> hidden(weights_);
    Right<P> back[Shared::kBackSteps];
    Two from_bias[kUnitEights];  // q o b1
#pragma unroll
    for (int e = 0; e < kUnitEights; ++e) {
      const Two of_units = two_at(q + e * 8 + place_.in_group * 2);
      const FragmentC bias = columns_at(bias_columns_, e, place_);
      from_bias[e] = {{of_units.x[0] * bias.x[0], of_units.x[1] * bias.x[1]}};
      Right<P> rows[2];
      back_.rows(0, e, rows);
      const Two w = rows[0].values(0);
      back[e].set(0, of_units.x[0] * w.x[0], of_units.x[1] * w.x[1]);
    }
    FragmentC sum[kPassUnits][1] = {};
    float bias_sum[kPassUnits][2] = {}, weights = 0;
#pragma unroll 1
    for (int at = 0; at < open; at += kStepPairs) {
      int number[2];
      SlotPair pair[2];
      float both[2], gate[2], weight[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int listed = at + half * 8 + place_.group;
        number[half] = memory_.list_pair[listed];
        pair[half] = memory_.small_pairs[number[half]];
        const int i = pair[half] & 0xFF, j = pair[half] >> 8;
        both[half] = shares[i] + shares[j];
        gate[half] = memory_.list_value[listed] * both[half];
        weight[half] = i == j ? gate[half] : 2 * gate[half];
        weights += weight[half];
      }
      const MaskedPairs pairs = masked_pairs(nodes, pair, weight, hidden, bias_columns_, back, sum, bias_sum);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // relu(hidden) = [hidden > 0] o (W1 x + b1)
        float dot = out;
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          dot = fmaf(pairs.x[half].x[j], pairs.received.x[half * 2 + j], dot);
#pragma unroll
          for (int e = 0; e < kUnitEights; ++e) dot = fmaf(pairs.mask[half][j].x[e], from_bias[e].x[j], dot);
        }
        dot = sum_in_group(dot);
        if (at + half * 8 + place_.group >= open) continue;
        pair_rows_.set(number[half], half, gate[half], pairs.received, place_);
        if (!p_.edge_nodes || place_.in_group != 0) continue;
        float& grad_logit = gradients_.grad_logit[number[half]];
        grad_logit = fmaf(both[half] * dot, gradients_.slope[number[half]], grad_logit);
      }
      __syncwarp();  // the next product takes the whole warp
    }
#pragma unroll
    for (int m = 0; m < kPassUnits; ++m) {
      const FragmentC bias = rows_at(bias_, m, place_);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float of_unit = q[m * kUnits + half * 8 + place_.group];
        const Two w = hidden.at(m * 2 + half).values(0);
        float on = bias.x[half * 2] * bias_sum[m][half];
        hidden_bias_.own[m][half] = fmaf(of_unit, bias_sum[m][half], hidden_bias_.own[m][half]);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float x = sum[m][0].x[half * 2 + c];
          on = fmaf(w.x[c], x, on);
          float& hidden_sum = hidden_weight_.own[m][0].x[half * 2 + c];
          hidden_sum = fmaf(of_unit, x, hidden_sum);
        }
        on = sum_in_group(on);
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& out_sum = out_weight_.own[m][0].x[half * 2 + c];
          out_sum = fmaf(0.5f * D.x[c], on, out_sum);
        }
      }
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) small_out_bias_[c] = fmaf(0.5f * D.x[c], weights, small_out_bias_[c]);
    store_gathered(piece, nodes, node_rows, p_.grad_nodes, d_);
  }

  // From the logits' gradients of a small graph to the edge network's. Its second
  // layer has gone into edge_back_.
  __device__ __forceinline__ void small_gates(const Piece& piece) {
    const RowCache<kEI> nodes = {cache_};
    const typename T::Rows edge_rows = T::Rows::edges(p_);
    const int n = piece.small, count = T::pairs(piece);
    nodes.load(0, n, edge_rows, lane_, [&](int k) { return piece.graph.begin + k; });
    nodes.clear(T::kZeroSlot, lane_);
    const typename T::template UnitOperands<true> hidden(edge_.hidden);
    Right<P> back[Shared::kBackSteps];
#pragma unroll
    for (int o = 0; o < Shared::kBackSteps; ++o) {
      Right<P> w[2];
      edge_back_.rows(0, o, w);
      back[o] = w[0];
    }
    __syncwarp();
#pragma unroll 1
    for (int at = 0; at < count; at += kStepPairs) {
      SlotPair pair[2];
      float grad[2], weight[2];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int number = at + half * 8 + place_.group;
        pair[half] = memory_.small_pairs[number];
        grad[half] = number < count ? gradients_.grad_logit[number] : 0.0f;
        weight[half] = (pair[half] & 0xFF) == pair[half] >> 8 ? grad[half] : 2 * grad[half];
        if (place_.in_group == 0) logit_sum_ += weight[half];
      }
      const MaskedPairs pairs =
          masked_pairs(nodes, pair, weight, hidden, edge_.columns, back, edge_weight_.own, edge_bias_.own);
#pragma unroll
      for (int half = 0; half < 2; ++half)
        pair_rows_.set(at + half * 8 + place_.group, half, grad[half], pairs.received, place_);
      __syncwarp();  // the next product takes the whole warp
    }
    store_gathered(piece, nodes, edge_rows, p_.grad_edge_nodes, b_);
  }

  // The gradients of a small graph's rows, from what its pairs have received.
  __device__ __forceinline__ void store_gathered(const Piece& piece, const RowCache<1>& partners,
                                                 const typename T::Rows& rows, float* to, int size) const {
    __syncwarp();
    const int node = gathered_node(lane_), begin = gathered_component(lane_);
    const FragmentC sum = pair_rows_.gather(piece.small, lane_, [&](int j) {
      return *reinterpret_cast<const FragmentC*>(partners.row(j) + begin);
    });
    if (node < piece.small) {
      const int64_t row = piece.graph.begin + node;
      const float scale = rows.scale(row);
#pragma unroll
      for (int c = 0; c < 4; ++c)
        if (begin + c < size) to[row * size + begin + c] = scale * sum.x[c];
    }
    __syncwarp();
  }

  // The number of pair (r, c) of a piece.
  static __device__ __forceinline__ int pair_number(const Piece& piece, int r, int c) {
    return piece.small ? small_pair(r, c, piece.small) : c;
  }

  // The slot of a listed pair's partner.
  __device__ __forceinline__ int partner_slot(const Piece& piece, int at) const {
    return piece.small ? memory_.list_pair[at] : at % kStepPairs;
  }

  // b2 . D of `count` slots.
  __device__ __forceinline__ void dot_out_bias(const RowCache<kMI>& grads, int first, int count) const {
#pragma unroll 1
    for (int slot = first + lane_; slot < first + count; slot += kWarp) {
      float dot = 0;
#pragma unroll 1
      for (int k = 0; k < d_; ++k) dot = fmaf(p_.message.out_bias[k], grads.row(slot)[k], dot);
      row_numbers_[slot] = dot;
    }
  }

  // Columns of a large graph's row that a step works with, from the list, into
  // the first slots.
  template <int Inner, class Source>
  __device__ __forceinline__ void stage(const Piece& piece, const RowCache<Inner>& cache,
                                        const Source& source, int at, int listed) const {
    const int64_t first = piece.graph.begin + piece.column;
    cache.load(0, kStepPairs, source, lane_,
               [&](int k) { return at + k < listed ? first + memory_.list_pair[at + k] : int64_t{-1}; });
  }

  // M_i += m U over the pairs of a step: `left` is m of some fragments of units,
  // the first of which is outer[first].
  template <int Inner, int Fragments>
  __device__ __forceinline__ void add_partners(const RowCache<Inner>& cache, const int (&slot)[2][2],
                                               int size, const Left<P> (&left)[Fragments][2 / kParts],
                                               int first, FragmentC (&outer)[kPassUnits][Inner]) const {
#pragma unroll
    for (int n = 0; n < Inner; ++n) {
      if (Inner > 2 && n * kComponents >= size) break;
      Right<P> rows[2 / kParts];
#pragma unroll
      for (int t = 0; t < 2; ++t)
        rows[t / kParts].set(t % kParts, cache.row(slot[t][0])[n * kComponents + place_.group],
                             cache.row(slot[t][1])[n * kComponents + place_.group]);
#pragma unroll
      for (int m = 0; m < Fragments; ++m)
#pragma unroll
        for (int o = 0; o < 2 / kParts; ++o) multiply_add(outer[first + m][n], left[m][o], rows[o]);
    }
  }

  // From M_i of the units of a pass: x += sum_h w_h W1_h o M_ih (`unit_weight`
  // null: ones), and x_i o M_i to the sums.
  template <int Inner, class Weights, class Sums>
  __device__ __forceinline__ void finish_outer(const FragmentC (&outer)[kPassUnits][Inner], int unit,
                                               const Weights& weights, const float* unit_weight,
                                               const float* own, int size, Sums& sums,
                                               float (&x)[Inner][2]) const {
#pragma unroll
    for (int m = 0; m < kPassUnits; ++m) {
      float factor[2] = {1, 1};
      if (unit_weight)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          factor[half] = unit_weight[(unit + m) * kUnits + half * 8 + place_.group];
#pragma unroll
      for (int n = 0; n < Inner; ++n) {
        if (Inner > 2 && n * kComponents >= size) break;
        const Left<P> w = weights.get(unit + m, n / kParts);
        const Two components = two_at(own + n * kComponents + place_.in_group * 2);
        FragmentC sum = sums.get(unit + m, n);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Two value = w.values(half, n % kParts);
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float part = outer[m][n].x[half * 2 + j];
            x[n][j] = fmaf(unit_weight ? factor[half] * value.x[j] : value.x[j], part, x[n][j]);
            sum.x[half * 2 + j] = fmaf(components.x[j], part, sum.x[half * 2 + j]);
          }
        }
        sums.set(unit + m, n, sum);
      }
    }
  }

  // scale: of the node's row, for the gradient is that of the row.
  template <int Inner>
  __device__ __forceinline__ void store_row(const float (&x)[Inner][2], float scale, float* to,
                                            int size) const {
#pragma unroll
    for (int n = 0; n < Inner; ++n) {
      if (Inner > 2 && n * kComponents >= size) break;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float sum = sum_over_groups(x[n][j]);
        const int component = n * kComponents + place_.in_group * 2 + j;
        if (place_.group == 0 && component < size) to[component] = scale * sum;
      }
    }
  }

  // Everything that goes through the message network, and the gates' gradients.
  __device__ __forceinline__ void messages(const Piece& piece, bool first, bool last) {
    const RowCache<kMI> nodes = {cache_}, grads = {cache_ + Shared::kMessageCache};
    const typename T::Rows node_rows = T::Rows::nodes(p_);
    const int64_t row = piece.graph.begin + piece.row;
    const int begin = piece.small ? 0 : T::kOwnSlot;
    const auto cached = [&](int k) { return row + k; };
    nodes.load(begin, piece.rows, node_rows, lane_, cached);
    grads.load(begin, piece.rows, GradRows(p_, piece.graph), lane_, cached);
    nodes.clear(T::kZeroSlot, lane_);
    grads.clear(T::kZeroSlot, lane_);
#pragma unroll 1
    for (int at = lane_; at < T::pairs(piece); at += kWarp) gradients_.grad_gate[at] = 0;
    __syncwarp();
    dot_out_bias(grads, begin, piece.rows);
#pragma unroll 1
    for (int r = 0; r < piece.rows; ++r) {
      const int own = begin + r;
      if (first) {
        gate_sum_ = 0;
#pragma unroll
        for (int k = 0; k < kMI; ++k) grad_row_[k][0] = grad_row_[k][1] = 0;
      }
      const int open = list_pairs(
          piece.columns, T::kZeroSlot, memory_, lane_,
          [&](int c) {
            const float gate = memory_.gate[pair_number(piece, r, c)];
            gate_sum_ += gate;
            return gate;
          },
          [](int c) { return static_cast<SlotPair>(c); });
      T::for_passes(units_, [&](int unit) { message_pass(piece, nodes, grads, r, own, open, unit); });
      __syncwarp();  // the next row makes a new list
      if (!last) continue;
      const float gates = warp_sum(gate_sum_);
#pragma unroll
      for (int k = 0; k < kComponentsOfLane; ++k)
        if (const int component = k * kWarp + lane_; component < kMI * kComponents)
          out_bias_[k] = fmaf(grads.row(own)[component], gates, out_bias_[k]);
      store_row(grad_row_, node_rows.scale(row + r), p_.grad_nodes + (row + r) * d_, d_);
    }
  }

  __device__ __forceinline__ void message_pass(const Piece& piece, const RowCache<kMI>& nodes,
                                               const RowCache<kMI>& grads, int r, int own, int open,
                                               int unit) {
    FragmentC outer[kPassUnits][kMI] = {};  // M_i
    float hidden_sum[kPassUnits][2] = {}, bias_sum[kPassUnits][2] = {};
#pragma unroll 1
    for (int at = 0; at < open; at += kStepPairs) {
      if (!piece.small) {
        __syncwarp();
        stage(piece, nodes, T::Rows::nodes(p_), at, open);
        stage(piece, grads, GradRows(p_, piece.graph), at, open);
        __syncwarp();
        dot_out_bias(grads, 0, kStepPairs);
        __syncwarp();
      }
      const int partner[2] = {partner_slot(piece, at + place_.group),
                              partner_slot(piece, at + 8 + place_.group)};
      int slot[2][2];
      Two gate[2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int pair = at + t * 8 + place_.in_group * 2;
        slot[t][0] = partner_slot(piece, pair), slot[t][1] = partner_slot(piece, pair + 1);
        gate[t] = two_at(memory_.list_value + pair);
      }
      const auto operands = [&](int k, Right<P>(&b)[2], Right<P>(&grad)[2]) {
#pragma unroll
        for (int t = 0; t < 2; ++t) {
          b[t] = T::template product<kMI>(nodes.row(own), nodes.row(partner[t]), k, place_.in_group);
          grad[t] = sum_of(grads.row(own), grads.row(partner[t]), k);
        }
      };
      constexpr int kSteps = steps_of(P, kMI);
      Right<P> kept_b[kKept ? kSteps : 1][2], kept_grad[kKept ? kSteps : 1][2];
      if constexpr (kKept)
#pragma unroll
        for (int k = 0; k < kSteps; ++k) operands(k, kept_b[k], kept_grad[k]);
      float grad_gate[2][2] = {};
#pragma unroll
      for (int first = 0; first < kPassUnits; first += kTogether) {
        FragmentC c[kTogether][2], both[kTogether][2] = {};
#pragma unroll
        for (int m = 0; m < kTogether; ++m) {
          c[m][0] = c[m][1] = rows_at(bias_, unit + first + m, place_);
        }
        const auto multiply = [&](int k, const Right<P>(&b)[2], const Right<P>(&grad)[2]) {
#pragma unroll
          for (int m = 0; m < kTogether; ++m) {
            const Left<P> w = weights_.get(unit + first + m, k), v = out_weights_.get(unit + first + m, k);
#pragma unroll
            for (int t = 0; t < 2; ++t) {
              multiply_add(c[m][t], w, b[t]);
              multiply_add(both[m][t], v, grad[t]);
            }
          }
        };
        if constexpr (kKept) {
#pragma unroll
          for (int k = 0; k < kSteps; ++k) multiply(k, kept_b[k], kept_grad[k]);
        } else {
#pragma unroll 1
          for (int k = 0; k < steps_; ++k) {
            Right<P> b[2], grad[2];
            operands(k, b, grad);
            multiply(k, b, grad);
          }
        }
        Left<P> left[kTogether][2 / kParts];
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
          for (int m = 0; m < kTogether; ++m)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
              float grad[2];
#pragma unroll
              for (int j = 0; j < 2; ++j) {
                const float x = c[m][t].x[half * 2 + j], y = both[m][t].x[half * 2 + j], on = positive(x);
                grad_gate[t][j] = fmaf(y, on, grad_gate[t][j]);
                hidden_sum[first + m][half] = fmaf(gate[t].x[j], on, hidden_sum[first + m][half]);
                grad[j] = x > 0 ? gate[t].x[j] * y : 0.0f;
                bias_sum[first + m][half] += grad[j];
              }
              left[m][t / kParts].set(half, t % kParts, grad[0], grad[1]);
            }
        add_partners(nodes, slot, d_, left, first, outer);
      }
      if (!p_.edge_nodes) continue;
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float sum = sum_over_groups(grad_gate[t][j]);
          const int pair = at + t * 8 + place_.in_group * 2 + j;
          if (place_.group != 0 || pair >= open) continue;
          const int column = memory_.list_pair[pair];
          if (piece.small && column < r) continue;  // that row has it, too
          const float biases = unit == 0 ? row_numbers_[own] + row_numbers_[slot[t][j]] : 0.0f;
          gradients_.grad_gate[pair_number(piece, r, column)] += sum + biases;
        }
      __syncwarp();  // the next product takes the whole warp
    }
    finish_outer(outer, unit, weights_, nullptr, nodes.row(own), d_, hidden_weight_, grad_row_);
#pragma unroll
    for (int m = 0; m < kPassUnits; ++m) {
      hidden_bias_.add(unit + m, bias_sum[m], place_);
      const float sum[2] = {sum_in_group(hidden_sum[m][0]), sum_in_group(hidden_sum[m][1])};
#pragma unroll
      for (int n = 0; n < kMI; ++n) {
        if (kMI > 2 && n * kComponents >= d_) break;
        const Two grad = two_at(grads.row(own) + n * kComponents + place_.in_group * 2);
        FragmentC x = out_weight_.get(unit + m, n);
#pragma unroll
        for (int part = 0; part < 4; ++part) x.x[part] = fmaf(grad.x[part % 2], sum[part / 2], x.x[part]);
        out_weight_.set(unit + m, n, x);
      }
    }
  }

  __device__ __forceinline__ Right<P> sum_of(const float* x, const float* y, int k) const {
    Right<P> b;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int inner = k * kParts + part;
      if (inner >= kMI) {
        b.set(part, 0, 0);
        continue;
      }
      const Two own = two_at(x + inner * kComponents + place_.in_group * 2);
      const Two other = two_at(y + inner * kComponents + place_.in_group * 2);
      b.set(part, own.x[0] + other.x[0], own.x[1] + other.x[1]);
    }
    return b;
  }

  // From the gates' gradients to the edge network's.
  __device__ __forceinline__ void gates(const Piece& piece, bool first, bool last) {
    const RowCache<kEI> nodes = {cache_};
    const int64_t row = piece.graph.begin + piece.row;
#pragma unroll 1
    for (int at = lane_; at < T::pairs(piece); at += kWarp) {
      const float grad = fmaf(gradients_.grad_gate[at], gradients_.slope[at], gradients_.grad_logit[at]);
      gradients_.grad_logit[at] = grad;
      const SlotPair pair = piece.small ? memory_.small_pairs[at] : SlotPair{0};
      logit_sum_ += piece.small && (pair & 0xFF) != pair >> 8 ? 2 * grad : grad;
    }
    const int begin = piece.small ? 0 : T::kOwnSlot;
    const typename T::Rows edge_rows = T::Rows::edges(p_);
    nodes.load(begin, piece.rows, edge_rows, lane_, [&](int k) { return row + k; });
    nodes.clear(T::kZeroSlot, lane_);
    __syncwarp();
#pragma unroll 1
    for (int r = 0; r < piece.rows; ++r) {
      if (first)
#pragma unroll
        for (int k = 0; k < kEI; ++k) grad_edge_row_[k][0] = grad_edge_row_[k][1] = 0;
      const int listed = list_pairs(
          piece.columns, T::kZeroSlot, memory_, lane_,
          [&](int c) { return gradients_.grad_logit[pair_number(piece, r, c)]; },
          [](int c) { return static_cast<SlotPair>(c); });
      T::for_passes(edge_.units, [&](int unit) { edge_pass(piece, nodes, begin + r, listed, unit); });
      __syncwarp();
      if (last) store_row(grad_edge_row_, edge_rows.scale(row + r), p_.grad_edge_nodes + (row + r) * b_, b_);
    }
  }

  __device__ __forceinline__ void edge_pass(const Piece& piece, const RowCache<kEI>& nodes, int own,
                                            int listed, int unit) {
    FragmentC outer[kPassUnits][kEI] = {};
    float bias_sum[kPassUnits][2] = {};
#pragma unroll 1
    for (int at = 0; at < listed; at += kStepPairs) {
      if (!piece.small) {
        __syncwarp();
        stage(piece, nodes, T::Rows::edges(p_), at, listed);
        __syncwarp();
      }
      FragmentC c[kPassUnits][2];
#pragma unroll
      for (int m = 0; m < kPassUnits; ++m) {
        const float* const bias = edge_.bias + (unit + m) * kUnits + place_.group;
        c[m][0] = c[m][1] = {{bias[0], bias[0], bias[8], bias[8]}};
      }
      const int partner[2] = {partner_slot(piece, at + place_.group),
                              partner_slot(piece, at + 8 + place_.group)};
      const int steps = kEI <= 2 ? steps_of(P, kEI) : edge_.steps;
#pragma unroll(kEI <= 2 ? 2 : 1)
      for (int k = 0; k < steps; ++k) {
        Right<P> b[2];
#pragma unroll
        for (int t = 0; t < 2; ++t)
          b[t] = T::template product<kEI>(nodes.row(own), nodes.row(partner[t]), k, place_.in_group);
#pragma unroll
        for (int m = 0; m < kPassUnits; ++m) {
          const Left<P> w = edge_.hidden.get(unit + m, k);
          multiply_add(c[m][0], w, b[0]);
          multiply_add(c[m][1], w, b[1]);
        }
      }
      Left<P> left[kPassUnits][2 / kParts];
      int slot[2][2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const int pair = at + t * 8 + place_.in_group * 2;
        slot[t][0] = partner_slot(piece, pair), slot[t][1] = partner_slot(piece, pair + 1);
        const Two grad = two_at(memory_.list_value + pair);
#pragma unroll
        for (int m = 0; m < kPassUnits; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float masked[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              masked[j] = c[m][t].x[half * 2 + j] > 0 ? grad.x[j] : 0.0f;
              bias_sum[m][half] += masked[j];
            }
            left[m][t / kParts].set(half, t % kParts, masked[0], masked[1]);
          }
      }
      add_partners(nodes, slot, b_, left, 0, outer);
    }
    finish_outer(outer, unit, edge_.hidden, edge_.out, nodes.row(own), b_, edge_weight_, grad_edge_row_);
#pragma unroll
    for (int m = 0; m < kPassUnits; ++m) edge_bias_.add(unit + m, bias_sum[m], place_);
  }

  const TileLaunch& l_;
  const CompleteGraph<float>& p_;
  const int lane_;
  const LanePlace place_;
  const int d_, b_, units_, steps_;
  const typename T::Weights weights_, out_weights_;
  const float *const bias_,
      *const bias_columns_;            // in shared memory, see share_rows and share_columns (small graphs)
  const typename T::RowWeights back_;  // W1^T, for small graphs
  const typename T::Edge edge_;
  const typename T::RowWeights edge_back_;  // W1^T times W2, for small graphs
  TileMemory& memory_;
  TileGradients& gradients_;
  float* const cache_;
  float* const row_numbers_;  // [slots] b2 . D, or of a bag's small graph c_i
  const PairRows pair_rows_;
  const PairSums<P> pair_sums_;
  float *const partial_, *const sums_;
  int numbered_ = 0;
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

// Bags: takes them, and with kPairwise nothing else.
template <class Shape, Precision P, bool Bags>
__global__ void __launch_bounds__(kTileThreads, Shape::kBackwardBlocks) tile_backward(TileLaunch l) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t this_warp = static_cast<int64_t>(blockIdx.x) * kTileWarps + warp;
  Backward<Shape, P, Bags> run(l, dynamic_shared<float>(),
                               BackwardShared<Shape, P>(l.problem, l.sums_shared ? l.at.size : 0),
                               l.partials + this_warp * l.at.size, lane, warp);
  __syncthreads();
  for_pieces(l.problem.graphs, this_warp, static_cast<int64_t>(gridDim.x) * kTileWarps, kBackwardRows, 1,
             kTileGates, run);
  run.finish();
}

#endif

}  // namespace l0sign::cuda
