// The edge network of a chunk of pairs: gates, penalties, counts, and their gradients.
// Included inside an anonymous namespace by each instruction-set file.

template <class A>
class EdgeGates {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  using U = typename S::U;
  static constexpr int W = S::W, kChunk = S::kChunk;

 public:
  // The chunk's gates; open_mask is g > 0. Without an edge network every pair is open.
  V gate[kChunk];
  I open_mask[kChunk];
  V grad_gate[kChunk];  // backward: dL/dg, from the messages

  EdgeGates(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
            Arena<A>& arena, int64_t slots, bool backward)
      : problem_(problem), weights_(weights.edge), block_(block), gated_(problem.edge_nodes != nullptr) {
    const int64_t all = slots + 1;
    if (!backward) degree_ = arena.take(all);
    if (!gated_) return;
    b_ = padded(problem.edge.in), he_ = padded(problem.edge.hidden);
    nodes_ = arena.take(all * b_);
    product_ = arena.take(kChunk * b_);
    hidden_ = arena.take(kChunk * he_);
    if (!backward) return;
    grad_nodes_ = arena.take(all * b_);
    mask_sum_ = arena.take(he_ * b_);
    mask_bias_ = arena.take(he_);
  }

  // ---- Forward ----

  void begin_forward() {
    load();
    clear(degree_, block_.slots + 1);
    l0_.clear();
    open_ = I{};
    open_rows_ = 0;
  }

  template <int C, bool Diagonal>
  ALWAYS_INLINE void forward() {
    evaluate<C, false>();
    for (int c = 0; c < C; ++c) open_ -= open_mask[c];
    if (problem_.aggregation != Aggregation::neighbor_mean) return;
    for (int c = 0; c < C; ++c) {
      const V one = open_mask[c] ? splat(A(1)) : V{};
      degree_[block_.left[c]] += one;
      degree_[block_.right_sum[c]] += block_.template right_part<Diagonal>(one);
    }
  }

  void begin_row(int64_t i) {
    if (gated_) block_.copy_to_extra(nodes_, b_, i);
  }

  void end_row_forward(int64_t i) {
    open_rows_ += sum_lanes(open_, int64_t{0});
    open_ = I{};
    block_.flush_extra(degree_, 1, i);
  }

  void end_forward() const {
    if (problem_.l0) block_.store_graph(problem_.l0, l0_.sum);
    if (problem_.num_edges && block_.over_nodes) problem_.num_edges[block_.lane_graph[0]] = open_rows_;
    if (problem_.num_edges && !block_.over_nodes) block_.store_graph(problem_.num_edges, open_);
    const bool writes_degree = problem_.degree && (problem_.out || !problem_.nodes);
    if (problem_.aggregation != Aggregation::neighbor_mean || !writes_degree) return;
    for (int64_t slot = 0; slot < block_.slots; ++slot)
      for (int l = 0; l < W; ++l)
        if (const int64_t r = block_.row(slot, l); r >= 0)
          problem_.degree[r] = static_cast<int32_t>(degree_[slot][l]);
  }

  // What the aggregation multiplies the sums of a slot's nodes by.
  V slot_scale(int64_t slot, bool saved_degree) const {
    V scale = {};
    for (int l = 0; l < W; ++l) {
      const int64_t r = block_.row(slot, l);
      if (r < 0) continue;
      const int64_t divisor = problem_.aggregation == Aggregation::sum    ? 1
                              : problem_.aggregation == Aggregation::mean ? block_.lane_nodes[l]
                              : saved_degree ? problem_.degree[r]
                                             : static_cast<int64_t>(degree_[slot][l]);
      scale[l] = divisor > 0 ? A(1) / static_cast<A>(divisor) : A(0);
    }
    return scale;
  }

  // Whether any message counts. A NaN does, so that it is seen in the result.
  template <int C>
  ALWAYS_INLINE bool any_open() const {
    I open = gate[0] != 0;
    for (int c = 1; c < C; ++c) open |= gate[c] != 0;
    return any(open);
  }

  // ---- Backward ----

  void begin_gradients() {
    if (!gated_) return;
    clear(mask_sum_, he_ * b_);
    clear(mask_bias_, he_);
    grad_logit_sum_.clear();
  }

  void begin_backward() {
    load();
    if (!gated_) return;
    clear(grad_nodes_, (block_.slots + 1) * b_);
    grad_l0_ = problem_.grad_l0 ? block_.load_graph(problem_.grad_l0) : V{};
  }

  // The gates again, with what `backward` needs of them.
  template <int C>
  ALWAYS_INLINE void recompute() {
    evaluate<C, true>();
    for (int c = 0; c < C; ++c) grad_gate[c] = V{};
  }

  template <int C>
  ALWAYS_INLINE void backward() {
    if (!gated_) return;
    V grad_logit[C];
    for (int c = 0; c < C; ++c) {
      V of_gate = grad_gate[c];
      if (problem_.grad_gates) of_gate += load_pairs(problem_.grad_gates, c);
      grad_logit[c] = of_gate * gate_slope_[c] + grad_l0_ * open_slope_[c];
      if (problem_.grad_logits) grad_logit[c] += load_pairs(problem_.grad_logits, c);
      grad_logit_sum_.add(grad_logit[c]);
    }
    const V* product = product_;
    V* masked = hidden_;
    for (int64_t h = 0; h < he_; ++h) {
      V sum = {};
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const V m = masked[h * C + c] > 0 ? grad_logit[c] : V{};
        masked[h * C + c] = m;
        sum += m;
      }
      mask_bias_[h] += sum;
    }
    accumulate_outer<A, C>(
        mask_sum_, he_, b_, [&](int64_t h, int c) LAMBDA_INLINE { return masked[h * C + c]; },
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; });
    block_.template add_to_ends<C>(weights_.hidden_transposed, problem_.edge.hidden, masked, nullptr, nodes_,
                                   grad_nodes_, b_);
  }

  void end_row_backward(int64_t i) {
    if (gated_) block_.flush_extra(grad_nodes_, b_, i);
  }

  void end_backward() const {
    if (gated_) block_.store_rows(problem_.grad_edge_nodes, nullptr, problem_.edge.in, grad_nodes_, b_);
  }

  // With S[h][k] = sum of [unit h is on] da (e_i o e_j)_k over all pairs, and S[h] likewise without the
  // product:
  //   dW1[h][k] = W2[h] S[h][k],  db1[h] = W2[h] S[h],  dW2[h] = sum_k W1[h][k] S[h][k] + b1[h] S[h].
  void add_gradients(A* gradients) const {
    if (!gated_) return;
    const Perceptron<A>& edge = problem_.edge;
    const GradientLayout at = gradient_layout(0, edge.in, edge.hidden, 1);
    for (int64_t h = 0; h < edge.hidden; ++h) {
      const A bias = sum_lanes(mask_bias_[h], A(0));
      A out = edge.hidden_bias[h] * bias;
      for (int64_t k = 0; k < edge.in; ++k) {
        const A sum = sum_lanes(mask_sum_[h * b_ + k], A(0));
        gradients[at.hidden_weight + h * edge.in + k] += edge.out_weight[h] * sum;
        out += edge.hidden_weight[h * edge.in + k] * sum;
      }
      gradients[at.hidden_bias + h] += edge.out_weight[h] * bias;
      gradients[at.out_weight + h] += out;
    }
    gradients[at.out_bias] += sum_lanes(grad_logit_sum_.sum, A(0));
  }

 private:
  void load() {
    cached_noise_ = -1;
    if (gated_) block_.load_rows(problem_.edge_nodes, problem_.ids, nullptr, problem_.edge.in, nodes_, b_);
  }

  // gate and open_mask of C pairs; with Backward also gate_slope_ = dg/da, open_slope_ = dpi/da and hidden_ =
  // relu(...).
  template <int C, bool Backward>
  ALWAYS_INLINE void evaluate() {
    if (!gated_) {
      for (int c = 0; c < C; ++c) {
        open_mask[c] = block_.active[c];
        gate[c] = block_.active[c] ? splat(A(1)) : V{};
      }
      return;
    }
    V* product = product_;
    block_.template multiply_ends<C>(nodes_, b_, nullptr, product);
    V logit[C];
    for (int c = 0; c < C; ++c) logit[c] = splat(weights_.out_bias[0]);
    const A* out = weights_.out;
    V* hidden = hidden_;
    multiply<A, C>(
        weights_.hidden, weights_.hidden_bias, he_, problem_.edge.in,
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m) {
            const V w = splat(out[h0 + m]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
              const V t = relu(y[m][c]);
              logit[c] += w * t;
              if (Backward) hidden[(h0 + m) * C + c] = t;
            }
          }
        });
    const HardConcrete& hard = problem_.gate;
    const A span = A(hard.zeta - hard.gamma), low = A(hard.gamma);
    const A steepness = hard.seed ? A(1 / hard.temperature) : A(1);
    const A shift = A(hard.temperature * __builtin_log(-hard.gamma / hard.zeta));
    for (int c = 0; c < C; ++c) {
      const I active = block_.active[c];
      const V s = sigmoid<V>(hard.seed ? (noise(c) + logit[c]) * steepness : logit[c]);
      const V stretched = s * span + low;
      const V g = stretched > 1 ? splat(A(1)) : relu(stretched);
      gate[c] = active ? g : V{};
      open_mask[c] = gate[c] > 0;
      if (Backward || problem_.l0) {
        const V open = sigmoid<V>(logit[c] - shift);
        if (Backward) {
          const I inside = active & (stretched > 0) & (stretched < 1);
          gate_slope_[c] = inside ? span * steepness * s * (1 - s) : V{};
          open_slope_[c] = active ? open * (1 - open) : V{};
        } else {
          l0_.add(active ? open : V{});
        }
      }
    }
    if (!Backward && problem_.gates) {
      for (int c = 0; c < C; ++c) {
        store_pairs(problem_.gates, gate[c], c);
        store_pairs(problem_.logits, logit[c], c);
      }
    }
  }

  void store_pairs(A* pairs, V v, int c) const {
    for (int l = 0; l < W; ++l)
      if (block_.active[c][l])
        pairs[problem_.pair_offsets[block_.lane_graph[l]] + block_.lane_pair(c, l)] = v[l];
  }

  V load_pairs(const A* pairs, int c) const {
    V v = {};
    for (int l = 0; l < W; ++l)
      if (block_.active[c][l])
        v[l] = pairs[problem_.pair_offsets[block_.lane_graph[l]] + block_.lane_pair(c, l)];
    return v;
  }

  // ---- Noise ----

  // ln U - ln(1 - U) of pair c.
  ALWAYS_INLINE V noise(int c) {
    const uint64_t seed = static_cast<uint64_t>(*problem_.gate.seed);
    U word;
    if (!block_.over_nodes && block_.uniform) {
      const int64_t pair = pair_index(block_.left[c], block_.right[c], block_.slots);
      if (pair >> 2 != cached_noise_) {
        cached_noise_ = pair >> 2;
        Philox4<U> counter;
        counter.x[0] = U{} + static_cast<uint32_t>(cached_noise_);
        counter.x[1] = U{} + static_cast<uint32_t>(static_cast<uint64_t>(cached_noise_) >> 32);
        set_graph_words(counter);
        noise_words_ = philox4x32<VectorPhilox<A>>(counter, static_cast<uint32_t>(seed),
                                                   static_cast<uint32_t>(seed >> 32));
      }
      word = noise_words_.x[pair & 3];
    } else {
      Philox4<U> counter;
      U which;
      for (int l = 0; l < W; ++l) {
        const uint64_t pair = static_cast<uint64_t>(block_.lane_pair(c, l));
        counter.x[0][l] = static_cast<uint32_t>(pair >> 2);
        counter.x[1][l] = static_cast<uint32_t>(pair >> 34);
        which[l] = static_cast<uint32_t>(pair & 3);
      }
      set_graph_words(counter);
      const Philox4<U> words = philox4x32<VectorPhilox<A>>(counter, static_cast<uint32_t>(seed),
                                                           static_cast<uint32_t>(seed >> 32));
      word = which == 0 ? words.x[0] : which == 1 ? words.x[1] : which == 2 ? words.x[2] : words.x[3];
    }
    typedef int32_t Bits __attribute__((vector_size(sizeof(U))));
    const V u = (__builtin_convertvector((Bits)(word >> 9), V) + A(0.5)) * A(1.0 / 8388608.0);
    return log_lanes(u) - log_lanes(1 - u);
  }

  ALWAYS_INLINE void set_graph_words(Philox4<U>& counter) const {
    for (int l = 0; l < W; ++l) {
      counter.x[2][l] = static_cast<uint32_t>(block_.lane_graph[l]);
      counter.x[3][l] = static_cast<uint32_t>(static_cast<uint64_t>(block_.lane_graph[l]) >> 32);
    }
  }

  const CompleteGraph<A>& problem_;
  const PackedPerceptron<A>& weights_;
  GraphBlock<A>& block_;
  const bool gated_;
  int64_t b_ = 0, he_ = 0;  // padded sizes

  V *nodes_ = nullptr, *degree_ = nullptr, *grad_nodes_ = nullptr;  // a vector for each slot and component
  V *product_ = nullptr, *hidden_ = nullptr;  // a vector for each component and pair of the chunk
  V gate_slope_[kChunk], open_slope_[kChunk];
  int64_t cached_noise_ = -1;
  Philox4<U> noise_words_;

  // Sums of the block or of the call. Millions of pairs may go into a compensated one: it keeps what rounding
  // takes from a plain float32 sum.
  CompensatedSum<V> l0_, grad_logit_sum_;
  V grad_l0_ = {};
  I open_ = {};
  int64_t open_rows_ = 0;  // lanes over nodes: the open pairs of the rows that are done
  V *mask_sum_ = nullptr, *mask_bias_ = nullptr;
};
