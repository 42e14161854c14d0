// The backward by rows. In the place where a lane held `hidden` [units, pairs],
// it gets W2^T (D_i + D_j) from a second product, and from both m = [unit on] g
// W2^T (D_i + D_j), which is the left operand of M_i += m U as it lies there.
#pragma once
#include "cuda/tiles_backward.h"

namespace l0sign::cuda {

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// Everything that goes through the message network, and the gates' gradients.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::messages(const Piece& piece, bool first,
                                                                       bool last) {
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
  if constexpr (!L2) dot_out_bias(grads, begin, piece.rows);
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
    const RowPartners partners = {piece, r, open};
    if constexpr (L2) {
#pragma unroll 1
      for (int at = 0; at < open; at += kStepPairs) {
        stage_partners(partners, nodes, grads, at);
        receive(piece, nodes, grads, r, own, at, open);
        T::for_passes(
            units_, [&](int unit) { message_pass(partners, nodes, grads, own, at, at + kStepPairs, unit); });
        __syncwarp();  // the next step receives in the same place
      }
    } else {
      T::for_passes(units_, [&](int unit) { message_pass(partners, nodes, grads, own, 0, open, unit); });
    }
    __syncwarp();  // the next row makes a new list
    if (!last) continue;
    if constexpr (!L2) {
      const float gates = warp_sum(gate_sum_);
#pragma unroll
      for (int k = 0; k < kComponentsOfLane; ++k)
        if (const int component = k * kWarp + lane_; component < kMI * kComponents)
          out_bias_[k] = fmaf(grads.row(own)[component], gates, out_bias_[k]);
    }
    store_row(grad_row_, node_rows.scale(row + r), p_.grad_nodes + (row + r) * d_, d_);
  }
}

// What the listed pairs [begin, end) of a row add through the units of a pass.
template <class Shape, Precision P, bool Bags, bool L2>
template <class Partners>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::message_pass(const Partners& partners,
                                                                           const RowCache<kMI>& nodes,
                                                                           const RowCache<kMI>& grads,
                                                                           int own, int begin, int end,
                                                                           int unit) {
  FragmentC outer[kPassUnits][kMI] = {};  // M_i
  float hidden_sum[kPassUnits][2] = {}, bias_sum[kPassUnits][2] = {};
  const auto lane_nodes = nodes.of_lane(place_), lane_grads = grads.of_lane(place_);
#pragma unroll 1
  for (int at = begin; at < end; at += kStepPairs) {
    if constexpr (!L2) stage_partners(partners, nodes, grads, at);
    const int partner[2] = {partner_slot(partners, at + place_.group),
                            partner_slot(partners, at + 8 + place_.group)};
    int slot[2][2];
    Two gate[2];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int pair = at + t * 8 + place_.in_group * 2;
      slot[t][0] = partner_slot(partners, pair), slot[t][1] = partner_slot(partners, pair + 1);
      gate[t] = two_at(memory_.list_value + pair);
    }
    const auto operands = [&](int k, Right<P>(&b)[2], Right<P>(&grad)[2]) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        b[t] = T::template product<kMI>(lane_nodes.row(own), lane_nodes.row(partner[t]), k);
        grad[t] = L2 ? received_of(t * 8 + place_.group, k)
                     : sum_of(lane_grads.row(grad_slot(partners, own)), lane_grads.row(partner[t]), k);
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
          const auto add = [&](const typename T::Weights& weights, FragmentC(&sum)[2],
                               const Right<P>(&y)[2]) {
            Left<P> w = weights.get(unit + first + m, k);
            multiply_add_each<2>([&](int t) -> FragmentC& { return sum[t]; },
                                 [&](int) -> const Left<P>& { return w; },
                                 [&](int t) -> const Right<P>& { return y[t]; });
          };
          add(weights_, c[m], b), add(out_weights_, both[m], grad);
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
      Left<P> left[kTogether][2 / kParts], relu[L2 ? kTogether : 1][2 / kParts];
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int m = 0; m < kTogether; ++m)
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            float grad[2], on[2];
#pragma unroll
            for (int j = 0; j < 2; ++j) {
              const float x = c[m][t].x[half * 2 + j], y = both[m][t].x[half * 2 + j];
              on[j] = positive(x);
              if constexpr (!L2) {
                grad_gate[t][j] = fmaf(y, on[j], grad_gate[t][j]);
                const float sum = fmaf(gate[t].x[j], on[j], hidden_sum[first + m][half]);
                const bool counts = arrives(partners, at + t * 8 + place_.in_group * 2 + j);
                hidden_sum[first + m][half] = counts ? sum : hidden_sum[first + m][half];
              }
              grad[j] = x > 0 ? (L2 ? y : gate[t].x[j] * y) : 0.0f;
              bias_sum[first + m][half] += grad[j];
            }
            if constexpr (L2) relu[m][t / kParts].set(half, t % kParts, on[0], on[1]);
            left[m][t / kParts].set(half, t % kParts, grad[0], grad[1]);
          }
      add_partners(nodes, slot, d_, left, first, outer);
      if constexpr (L2) add_received(relu, unit + first);
    }
    if constexpr (!L2) add_grad_gates(partners, grad_gate, slot, own, at, unit);
  }
  finish_outer(outer, unit, weights_, nullptr, nodes.row(own), d_, hidden_weight_, grad_row_);
#pragma unroll
  for (int m = 0; m < kPassUnits; ++m) {
    hidden_bias_.add(unit + m, bias_sum[m], place_);
    if constexpr (!L2) add_hidden_sum(hidden_sum[m], unit + m, grads.row(own));
  }
}

// What the gates of a step's pairs receive through the units of a pass.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::add_grad_gates(const RowPartners& partners,
                                                                             const float (&grad_gate)[2][2],
                                                                             const int (&slot)[2][2], int own,
                                                                             int at, int unit) {
  if (!p_.edge_nodes) return;
#pragma unroll
  for (int t = 0; t < 2; ++t)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const float sum = sum_over_groups(grad_gate[t][j]);
      const int pair = at + t * 8 + place_.in_group * 2 + j;
      if (place_.group != 0 || pair >= partners.open) continue;
      const int column = memory_.list_pair[pair];
      if (partners.piece.small && column < partners.r) continue;  // that row has it, too
      const float biases = unit == 0 ? row_numbers_[own] + row_numbers_[slot[t][j]] : 0.0f;
      gradients_.grad_gate[pair_number(partners.piece, partners.r, column)] += sum + biases;
    }
  __syncwarp();  // the next product takes the whole warp
}

// dW2^T += S_i D_i^T, for the units of a fragment.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::add_hidden_sum(const float (&hidden_sum)[2],
                                                                             int unit, const float* own) {
  const float sum[2] = {sum_in_group(hidden_sum[0]), sum_in_group(hidden_sum[1])};
#pragma unroll
  for (int n = 0; n < kMI; ++n) {
    if (kMI > 2 && n * kComponents >= d_) break;
    const Two grad = two_at(own + n * kComponents + place_.in_group * 2);
    FragmentC x = out_weight_.get(unit, n);
#pragma unroll
    for (int part = 0; part < 4; ++part) x.x[part] = fmaf(grad.x[part % 2], sum[part / 2], x.x[part]);
    out_weight_.set(unit, n, x);
  }
}

// The columns of a large graph's row that a step works with, into the first
// slots.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::stage_partners(const RowPartners& partners,
                                                                             const RowCache<kMI>& nodes,
                                                                             const RowCache<kMI>& grads,
                                                                             int at) const {
  if (partners.piece.small) return;
  __syncwarp();
  stage(partners.piece, nodes, T::Rows::nodes(p_), at, partners.open);
  stage(partners.piece, grads, GradRows(p_, partners.piece.graph), at, partners.open);
  __syncwarp();
  if constexpr (L2) return;
  dot_out_bias(grads, 0, kStepPairs);
  __syncwarp();
}

// With a gradient c of the sum of |z|^2 a message receives
//   Q_ij = g (D_i + D_j) + 2 c z_ij,  of a self-pair, which is met once, 4 c z,
// and the gate (D_i + D_j) . z_ij. Writes Q of a step's pairs to `received_`.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::receive(const Piece& piece,
                                                                      const RowCache<kMI>& nodes,
                                                                      const RowCache<kMI>& grads, int r,
                                                                      int own, int at, int open) {
  const int partner[2] = {partner_slot(piece, at + place_.group), partner_slot(piece, at + 8 + place_.group)};
  const auto lane_nodes = nodes.of_lane(place_);
  FragmentC z[kMI];
  T::messages_of({lane_nodes.row(own), lane_nodes.row(own)},
                 {lane_nodes.row(partner[0]), lane_nodes.row(partner[1])}, weights_, bias_columns_, out_rows_,
                 out_bias_at_, units_, steps_, d_, place_, z);
  const float grad_l2 = p_.grad_l2[piece.graph.graph];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int listed = at + half * 8 + place_.group, column = memory_.list_pair[listed];
    const float gate = memory_.list_value[listed];
    const bool self = piece.column + column == piece.row + r;
    const float of_norm = gate > 0 ? (self ? 4 : 2) * grad_l2 : 0.0f;
    float grad_gate = 0;
#pragma unroll
    for (int n = 0; n < kMI; ++n) {
      const int component = n * kComponents + place_.in_group * 2;
      const Two D[2] = {two_at(grads.row(own) + component), two_at(grads.row(partner[half]) + component)};
      Two received;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float sum = D[0].x[c] + D[1].x[c], x = z[n].x[half * 2 + c];
        grad_gate = fmaf(sum, x, grad_gate);
        received.x[c] = fmaf(gate, sum, of_norm * x);
      }
      *reinterpret_cast<Two*>(received_.rows + (half * 8 + place_.group) * RowCache<kMI>::kStride +
                              component) = received;
    }
    grad_gate = sum_in_group(grad_gate);
    if (!p_.edge_nodes || place_.in_group != 0 || listed >= open) continue;
    if (piece.small && column < r) continue;  // that row has it, too
    gradients_.grad_gate[pair_number(piece, r, column)] = grad_gate;
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kComponentsOfLane; ++k)
    if (const int component = k * kWarp + lane_; component < kMI * kComponents)
#pragma unroll 4
      for (int pair = 0; pair < kStepPairs; ++pair)
        out_bias_[k] = fmaf(0.5f, received_.row(pair)[component], out_bias_[k]);
}

// dW2^T += relu(hidden) Q / 2 over the pairs of a step: `relu` is of some
// fragments of units, from `unit` on.
template <class Shape, Precision P, bool Bags, bool L2>
template <int Fragments>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::add_received(
    const Left<P> (&relu)[Fragments][2 / kParts], int unit) {
#pragma unroll
  for (int n = 0; n < kMI; ++n) {
    if (kMI > 2 && n * kComponents >= d_) break;
    Right<P> rows[2 / kParts];
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int pair = t * 8 + place_.in_group * 2, component = n * kComponents + place_.group;
      rows[t / kParts].set(t % kParts, 0.5f * received_.row(pair)[component],
                           0.5f * received_.row(pair + 1)[component]);
    }
#pragma unroll
    for (int m = 0; m < Fragments; ++m) {
      FragmentC sum = out_weight_.get(unit + m, n);
#pragma unroll
      for (int o = 0; o < 2 / kParts; ++o) multiply_add(sum, relu[m][o], rows[o]);
      out_weight_.set(unit + m, n, sum);
    }
  }
}

// From the gates' gradients to the edge network's.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::gates(const Piece& piece, bool first,
                                                                    bool last) {
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

template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::edge_pass(const Piece& piece,
                                                                        const RowCache<kEI>& nodes, int own,
                                                                        int listed, int unit) {
  FragmentC outer[kPassUnits][kEI] = {};
  float bias_sum[kPassUnits][2] = {};
  const auto lane_nodes = nodes.of_lane(place_);
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
        b[t] = T::template product<kEI>(lane_nodes.row(own), lane_nodes.row(partner[t]), k);
#pragma unroll
      for (int m = 0; m < kPassUnits; ++m) {
        Left<P> w = edge_.hidden.get(unit + m, k);
        multiply_add_each<2>([&](int t) -> FragmentC& { return c[m][t]; },
                             [&](int) -> const Left<P>& { return w; },
                             [&](int t) -> const Right<P>& { return b[t]; });
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

template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ Right<P> Backward<Shape, P, Bags, L2>::sum_of(const float* x, const float* y,
                                                                         int k) const {
  Right<P> b;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int inner = k * kParts + part;
    if (inner >= kMI) {
      b.set(part, 0, 0);
      continue;
    }
    const Two own = two_at(x + inner * kComponents), other = two_at(y + inner * kComponents);
    b.set(part, own.x[0] + other.x[0], own.x[1] + other.x[1]);
  }
  return b;
}

// The same of what a pair of the step receives.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ Right<P> Backward<Shape, P, Bags, L2>::received_of(int pair, int k) const {
  Right<P> b;
#pragma unroll
  for (int part = 0; part < kParts; ++part) {
    const int inner = k * kParts + part;
    const Two x =
        inner < kMI ? two_at(received_.row(pair) + inner * kComponents + place_.in_group * 2) : Two{};
    b.set(part, x.x[0], x.x[1]);
  }
  return b;
}

// b2 . D of `count` slots.
template <class Shape, Precision P, bool Bags, bool L2>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::dot_out_bias(const RowCache<kMI>& grads,
                                                                           int first, int count) const {
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
template <class Shape, Precision P, bool Bags, bool L2>
template <int Inner, class Source>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::stage(const Piece& piece,
                                                                    const RowCache<Inner>& cache,
                                                                    const Source& source, int at,
                                                                    int listed) const {
  const int64_t first = piece.graph.begin + piece.column;
  cache.load(0, kStepPairs, source, lane_,
             [&](int k) { return at + k < listed ? first + memory_.list_pair[at + k] : int64_t{-1}; });
}

// M_i += m U over the pairs of a step: `left` is m of some fragments of units,
// the first of which is outer[first].
template <class Shape, Precision P, bool Bags, bool L2>
template <int Inner, int Fragments>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::add_partners(
    const RowCache<Inner>& cache, const int (&slot)[2][2], int size,
    const Left<P> (&left)[Fragments][2 / kParts], int first, FragmentC (&outer)[kPassUnits][Inner]) const {
#pragma unroll
  for (int n = 0; n < Inner; ++n) {
    if (Inner > 2 && n * kComponents >= size) break;
    Right<P> rows[2 / kParts];
#pragma unroll
    for (int t = 0; t < 2; ++t)
      rows[t / kParts].set(t % kParts, cache.row(slot[t][0])[n * kComponents + place_.group],
                           cache.row(slot[t][1])[n * kComponents + place_.group]);
#pragma unroll
    for (int o = 0; o < 2 / kParts; ++o)
      multiply_add_each<Fragments>([&](int m) -> FragmentC& { return outer[first + m][n]; },
                                   [&](int m) -> const Left<P>& { return left[m][o]; },
                                   [&](int) -> const Right<P>& { return rows[o]; });
  }
}

// From M_i of the units of a pass: x += sum_h w_h W1_h o M_ih (`unit_weight`
// null: ones), and x_i o M_i to the sums.
template <class Shape, Precision P, bool Bags, bool L2>
template <int Inner, class Weights, class Sums>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::finish_outer(
    const FragmentC (&outer)[kPassUnits][Inner], int unit, const Weights& weights, const float* unit_weight,
    const float* own, int size, Sums& sums, float (&x)[Inner][2]) const {
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
template <class Shape, Precision P, bool Bags, bool L2>
template <int Inner>
__device__ __forceinline__ void Backward<Shape, P, Bags, L2>::store_row(const float (&x)[Inner][2],
                                                                        float scale, float* to,
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

#endif

}  // namespace l0sign::cuda
