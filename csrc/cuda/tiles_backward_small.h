// The backward of small graphs in the kernels of the smallest sizes, each pair
// once (tiles_small.h).
#pragma once
#include "cuda/tiles_backward.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// Everything that goes through the message network of a small graph, each
// pair once. The sums of weight gradients are those over ordered pairs, so
// that a pair of two nodes weighs twice what a self-pair does, whose
// D_i + D_j is twice D_i. With L2 the message itself is known, and with it
// what it receives, see receive().
template <class Shape, Precision P, bool Bags, bool L2>
template <bool kKeepsWeights>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::small_messages(const Piece& piece) {
  const RowCache<kMI> nodes = {cache_}, grads = {cache_ + Shared::kMessageCache};
  const typename T::Rows node_rows = T::Rows::nodes(p_);
  const auto cached = [&](int k) { return piece.graph.begin + k; };
  nodes.load(0, piece.rows, node_rows, lane_, cached);
  grads.load(0, piece.rows, GradRows(p_, piece.graph), lane_, cached);
  nodes.clear(T::kZeroSlot, lane_);
  grads.clear(T::kZeroSlot, lane_);
  const int open = T::list_small_pairs(piece, memory_, lane_, pair_rows_, 0, T::pairs(piece));
  const typename T::template UnitOperands<kKeepsWeights> hidden(weights_);
  const typename T::template UnitOperands<false> from_out(out_weights_);
  const auto lane_nodes = nodes.of_lane(place_), lane_grads = grads.of_lane(place_);
#pragma unroll 1
  for (int at = 0; at < open; at += kStepPairs) {
    const int own = at + place_.group;
    int number[2];
    float gate[2], grad_gate[2], times[2];
    Left<P> x, grad;
    Two sum[2];  // D_i + D_j
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      number[half] = memory_.list_pair[own + half * 8];
      const SlotPair pair = memory_.small_pairs[number[half]];
      const int i = pair & 0xFF, j = pair >> 8;
      gate[half] = memory_.list_value[own + half * 8];
      times[half] = i == j ? 1 : 2;
      const float weight = L2 ? times[half] : times[half] * gate[half];
      const Two u[2] = {two_at(lane_nodes.row(i)), two_at(lane_nodes.row(j))};
      const Two D[2] = {two_at(lane_grads.row(i)), two_at(lane_grads.row(j))};
      const Two product = {{u[0].x[0] * u[1].x[0], u[0].x[1] * u[1].x[1]}};
      x.set(half, 0, product.x[0], product.x[1]);
      if constexpr (kParts > 1) x.set(half, 1, 0, 0);
      sum[half] = {{D[0].x[0] + D[1].x[0], D[0].x[1] + D[1].x[1]}};
      if constexpr (!L2) add_to_out(half, 0.5f * weight, sum[half]);
      pair_sums_.write_factors(0, half, {{weight * product.x[0], weight * product.x[1]}}, place_);
      pair_sums_.write_weight(half, weight, place_);
    }
    FragmentC on[2][2], m[2][2], received = {};
#pragma unroll
    for (int e = 0; e < kUnitEights; e += 2) {
      FragmentC c[2] = {columns_at(bias_columns_, e, place_), columns_at(bias_columns_, e + 1, place_)};
      multiply_add_each<2>([&](int k) -> FragmentC& { return c[k]; },
                           [&](int) -> const Left<P>& { return x; }, [&](int k) { return hidden.at(e + k); });
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int part = 0; part < 4; ++part) on[part / 2][part % 2].x[e + k] = positive(c[k].x[part]);
    }
    pair_sums_.write_values(on, place_);
    if constexpr (L2) {
      FragmentC z = {
          {out_bias_columns_.x[0], out_bias_columns_.x[1], out_bias_columns_.x[0], out_bias_columns_.x[1]}};
#pragma unroll
      for (int o = 0; o < Shared::kBackSteps; ++o) {
        Left<P> relu;
#pragma unroll
        for (int part = 0; part < kParts; ++part)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            relu.set(half, part, on[half][0].x[o * kParts + part], on[half][1].x[o * kParts + part]);
        Right<P> rows[2];
        out_rows_.rows(0, o, rows);
        multiply_add(z, relu, rows[0]);
      }
      const float grad_l2 = p_.grad_l2[piece.graph.graph];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Two message = {{z.x[half * 2], z.x[half * 2 + 1]}};
        grad_gate[half] = fmaf(message.x[0], sum[half].x[0], message.x[1] * sum[half].x[1]);
        const float of_norm = gate[half] > 0 ? (times[half] == 1 ? 4 : 2) * grad_l2 : 0.0f;
#pragma unroll
        for (int c = 0; c < 2; ++c) sum[half].x[c] = fmaf(gate[half], sum[half].x[c], of_norm * message.x[c]);
        gate[half] = 1;  // is in the sum
        add_to_out(half, 0.5f * times[half], sum[half]);
      }
    }
    pair_sums_.template add<false, false>(1, out_weight_.own, hidden_bias_.own, place_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      grad.set(half, 0, sum[half].x[0], sum[half].x[1]);
      if constexpr (kParts > 1) grad.set(half, 1, 0, 0);
      if constexpr (!L2)
        grad_gate[half] =
            fmaf(out_bias_columns_.x[0], sum[half].x[0], out_bias_columns_.x[1] * sum[half].x[1]);
    }
    FragmentC both[2];  // eights e and e + 1
#pragma unroll
    for (int o = 0; o < Shared::kBackSteps; ++o) {
      if (o * kParts % 2 == 0) {
        both[0] = both[1] = {};
        multiply_add_each<2>([&](int k) -> FragmentC& { return both[k]; },
                             [&](int) -> const Left<P>& { return grad; },
                             [&](int k) { return from_out.at(o * kParts + k); });
      }
      Left<P> masked;
#pragma unroll
      for (int part = 0; part < kParts; ++part) {
        const int e = o * kParts + part;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            const float y = both[e % 2].x[half * 2 + j], unit = on[half][j].x[e];
            if constexpr (!L2) grad_gate[half] = fmaf(y, unit, grad_gate[half]);
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
      if (own + half * 8 >= open) continue;
      pair_rows_.set(number[half], half, gate[half], received);
      if (!p_.edge_nodes || place_.in_group != 0) continue;
      float& grad_logit = gradients_.grad_logit[number[half]];
      grad_logit = fmaf(grad_gate[half], gradients_.slope[number[half]], grad_logit);
    }
    __syncwarp();  // the next product takes the whole warp
  }
  store_gathered(piece, nodes, node_rows, p_.grad_nodes, d_);
}

// What the last layer's weights and bias receive from `weight` times x, of the
// pair in row group + 8 half.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::add_to_out(int half, float weight,
                                                                         const Two& x) {
  const Two weighted = {{weight * x.x[0], weight * x.x[1]}};
  small_out_bias_[0] += weighted.x[0], small_out_bias_[1] += weighted.x[1];
  pair_sums_.write_factors(1, half, weighted, place_);
}

// 16 pairs of a small graph in a network whose hidden layer receives a number
// of the pair times a vector v of the units: its gradients follow from the masks
// [hidden > 0], which are exact factors (PairSums::write_values).
template <class Shape, Precision P, bool Bags, bool L2>
struct Backward<Shape, P, Bags, L2>::MaskedPairs {
  Two x[2];  // x_i o x_j of the pairs in rows group and group + 8
  FragmentC mask[2][2];
  FragmentC received;  // masks (v o W1) [16 pairs, 8 components]
};

// hidden and bias(eight): W1 and b1; back: (v o W1)^T. Adds masks^T (weight x)
// to `sum`, and masks^T weight to `bias_sum`.
template <class Shape, Precision P, bool Bags, bool L2>
template <class Hidden, class Bias>
__device__ __forceinline__ auto Backward<Shape, P, Bags, L2>::masked_pairs(
    const LaneRows<kComponents>& nodes, const SlotPair (&pair)[2], const float (&weight)[2],
    const Hidden& hidden, const Bias& bias, const Right<P> (&back)[Shared::kBackSteps],
    FragmentC (&sum)[kPassUnits][1], float (&bias_sum)[kPassUnits][2]) const -> MaskedPairs {
  MaskedPairs pairs;
  Left<P> x;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Two u[2] = {two_at(nodes.row(pair[half] & 0xFF)), two_at(nodes.row(pair[half] >> 8))};
    const Two product = {{u[0].x[0] * u[1].x[0], u[0].x[1] * u[1].x[1]}};
    pairs.x[half] = product;
    x.set(half, 0, product.x[0], product.x[1]);
    if constexpr (kParts > 1) x.set(half, 1, 0, 0);
    pair_sums_.write_factors(0, half, {{weight[half] * product.x[0], weight[half] * product.x[1]}}, place_);
    pair_sums_.write_weight(half, weight[half], place_);
  }
  FragmentC c[kUnitEights];
  multiply_add_to<kUnitEights>([&](int e) -> FragmentC& { return c[e]; },
                               [&](int) -> const Left<P>& { return x; }, [&](int e) { return hidden.at(e); },
                               bias);
  pairs.received = {};
#pragma unroll
  for (int o = 0; o < Shared::kBackSteps; ++o) {
    Left<P> masks;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int e = o * kParts + part;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int j = 0; j < 2; ++j) pairs.mask[half][j].x[e] = c[e].x[half * 2 + j] > 0 ? 1.0f : 0.0f;
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
// dW1 and db1 are q_h S[h] and q_h s[h], and dW2 is half of D times
//   sum g_ij c_ij relu(hidden_h) = W1_h . S[h] + b1_h s[h]
// (as small_messages adds them up).
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::small_bag_messages(const Piece& piece) {
  const RowCache<kMI> nodes = {cache_};
  float* const shares = row_numbers_;               // c_i
  float* const q = cache_ + Shared::kMessageCache;  // [32]
  static_assert(!kPairwise<Shape> || kPassUnits * kUnits <= Shared::kMessageCache);
  const typename T::Rows node_rows = T::Rows::nodes(p_);
  const GradRows grads(p_, piece.graph);
  const int64_t begin = piece.graph.begin;
  nodes.load(0, piece.rows, node_rows, lane_, [&](int k) { return begin + k; });
  nodes.clear(T::kZeroSlot, lane_);
#pragma unroll 1
  for (int slot = lane_; slot < T::kSlots; slot += kWarp)
    shares[slot] = slot < piece.rows ? grads.scale(begin + slot) : 0.0f;
  __syncwarp();
#pragma unroll 1
  for (int graph = 0; graph < piece.graphs; ++graph) bag_messages(piece, graph, nodes, shares, q);
  store_gathered(piece, nodes, node_rows, p_.grad_nodes, d_);
}

// The same of one of the piece's graphs, to its pairs and to the sums.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::bag_messages(const Piece& piece, int graph,
                                                                           const RowCache<kMI>& nodes,
                                                                           const float* shares, float* q) {
  const float* const pooled = p_.grad_pooled + (piece.graph.graph + graph) * d_;
  Two D;  // of components 2 in_group + c
#pragma unroll
  for (int c = 0; c < 2; ++c) D.x[c] = place_.in_group * 2 + c < d_ ? pooled[place_.in_group * 2 + c] : 0.0f;
  const typename T::template UnitOperands<false> from_out(out_weights_);
#pragma unroll
  for (int e = 0; e < kUnitEights; ++e) {
    const Two w = from_out.at(e).values(0);
    const float of_unit = sum_in_group(fmaf(w.x[0], D.x[0], w.x[1] * D.x[1]));
    if (place_.in_group == 0) q[e * 8 + place_.group] = of_unit;
  }
  const float out = fmaf(out_bias_columns_.x[0], D.x[0], out_bias_columns_.x[1] * D.x[1]);
  const int each = piece.small_pairs();
  const int open = T::list_small_pairs(piece, memory_, lane_, pair_rows_, graph * each, each);
  const typename T::template UnitOperands<true> hidden(weights_);
  Right<P> back[Shared::kBackSteps];
  const auto bias = [&](int eight) { return columns_at(bias_columns_, eight, place_); };
  Two from_bias[kUnitEights];  // q o b1
#pragma unroll
  for (int e = 0; e < kUnitEights; ++e) {
    const Two of_units = two_at(q + e * 8 + place_.in_group * 2);
    const FragmentC of_bias = bias(e);
    from_bias[e] = {{of_units.x[0] * of_bias.x[0], of_units.x[1] * of_bias.x[1]}};
    Right<P> rows[2];
    back_.rows(0, e, rows);
    const Two w = rows[0].values(0);
    back[e].set(0, of_units.x[0] * w.x[0], of_units.x[1] * w.x[1]);
  }
  FragmentC sum[kPassUnits][1] = {};
  float bias_sum[kPassUnits][2] = {}, weights = 0;
  const auto lane_nodes = nodes.of_lane(place_);
#pragma unroll 1
  for (int at = 0; at < open; at += kStepPairs) {
    const int own = at + place_.group;
    int number[2];
    SlotPair pair[2];
    float both[2], gate[2], weight[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      number[half] = memory_.list_pair[own + half * 8];
      pair[half] = memory_.small_pairs[number[half]];
      const int i = pair[half] & 0xFF, j = pair[half] >> 8;
      both[half] = shares[i] + shares[j];
      gate[half] = memory_.list_value[own + half * 8] * both[half];
      weight[half] = i == j ? gate[half] : 2 * gate[half];
      weights += weight[half];
    }
    const MaskedPairs pairs = masked_pairs(lane_nodes, pair, weight, hidden, bias, back, sum, bias_sum);
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
      if (own + half * 8 >= open) continue;
      pair_rows_.set(number[half], half, gate[half], pairs.received);
      if (!p_.edge_nodes || place_.in_group != 0) continue;
      float& grad_logit = gradients_.grad_logit[number[half]];
      grad_logit = fmaf(both[half] * dot, gradients_.slope[number[half]], grad_logit);
    }
    __syncwarp();  // the next product takes the whole warp
  }
#pragma unroll
  for (int m = 0; m < kPassUnits; ++m) {
    const FragmentC unit_bias = rows_at(bias_, m, place_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float of_unit = q[m * kUnits + half * 8 + place_.group];
      const Two w = hidden.at(m * 2 + half).values(0);
      float on = unit_bias.x[half * 2] * bias_sum[m][half];
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
  __syncwarp();
}

// From the logits' gradients of a small graph to the edge network's. Its second
// layer has gone into edge_back_.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::small_gates(const Piece& piece) {
  const RowCache<kEI> nodes = {cache_};
  const typename T::Rows edge_rows = T::Rows::edges(p_);
  const int count = T::pairs(piece);
  nodes.load(0, piece.rows, edge_rows, lane_, [&](int k) { return piece.graph.begin + k; });
  nodes.clear(T::kZeroSlot, lane_);
  const typename T::template UnitOperands<true> hidden(edge_.hidden);
  Right<P> back[Shared::kBackSteps];
#pragma unroll
  for (int o = 0; o < Shared::kBackSteps; ++o) {
    Right<P> w[2];
    edge_back_.rows(0, o, w);
    back[o] = w[0];
  }
  const auto lane_nodes = nodes.of_lane(place_);
  FragmentC bias[kUnitEights];
#pragma unroll
  for (int e = 0; e < kUnitEights; ++e) bias[e] = columns_at(edge_.columns, e, place_);
  __syncwarp();
#pragma unroll 1
  for (int at = 0; at < count; at += kStepPairs) {
    const int own = at + place_.group;
    SlotPair pair[2];
    float grad[2], weight[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int number = own + half * 8;
      pair[half] = memory_.small_pairs[number];
      grad[half] = number < count ? gradients_.grad_logit[number] : 0.0f;
      weight[half] = (pair[half] & 0xFF) == pair[half] >> 8 ? grad[half] : 2 * grad[half];
      if (place_.in_group == 0) logit_sum_ += weight[half];
    }
    const MaskedPairs pairs = masked_pairs(
        lane_nodes, pair, weight, hidden, [&](int e) -> const FragmentC& { return bias[e]; }, back,
        edge_weight_.own, edge_bias_.own);
#pragma unroll
    for (int half = 0; half < 2; ++half) pair_rows_.set(own + half * 8, half, grad[half], pairs.received);
    __syncwarp();  // the next product takes the whole warp
  }
  store_gathered(piece, nodes, edge_rows, p_.grad_edge_nodes, b_);
}

// The gradients of small graphs' rows, from what their pairs have received.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::store_gathered(const Piece& piece,
                                                                             const RowCache<1>& partners,
                                                                             const typename T::Rows& rows,
                                                                             float* grad, int size) const {
  __syncwarp();
#pragma unroll 1
  for (int first = 0; first < piece.rows; first += Gathered::kTogether) {
    const Gathered to(piece, memory_, first, lane_);
    FragmentC x = pair_rows_.gather(piece, to, [&](int j) {
      return *reinterpret_cast<const FragmentC*>(partners.row(j) + to.component);
    });
    if (!to.exists) continue;
    const int64_t row = piece.graph.begin + to.node;
    const float scale = rows.scale(row);
#pragma unroll
    for (int c = 0; c < 4; ++c) x.x[c] *= scale;
    store_four(grad + row * size + to.component, size - to.component, x);
  }
  __syncwarp();
}

#endif

}  // namespace l0sign::cuda
