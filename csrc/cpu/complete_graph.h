// The kernels over all pairs of each graph: gated in training and evaluation, ungated, or gates only.
// Included inside an anonymous namespace by each instruction-set file.
//
// A "slot" is a vector of nodes: the same node of W graphs (lanes over graphs), or W consecutive nodes of one
// graph (lanes over nodes). Pairs of slots go through the two perceptrons in chunks of up to kChunk, so that
// every weight that is loaded serves that many vectors. Nothing is kept for a pair; sums live in the slots.
//
// One slot is extra. Lanes over graphs: a self-pair is added to one end only, and the extra slot swallows the
// other end. Lanes over nodes: it holds node i, copied to all lanes, while row i of the pairs runs; its sums
// are then added to node i.

template <class A>
class CompleteGraphKernel {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  using U = typename S::U;
  static constexpr int W = S::W, kChunk = S::kChunk;

 public:
  // Without memory, `scratch_vectors` tells how much is needed.
  CompleteGraphKernel(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, void* memory,
                      int64_t slots, bool backward)
      : problem_(problem), weights_(weights), gated_(problem.edge_nodes != nullptr) {
    Arena<A> arena{static_cast<V*>(memory)};
    const int64_t all = slots + 1;
    has_message_ =
        problem.nodes != nullptr && (!backward || problem.grad_out != nullptr || problem.grad_l2 != nullptr);
    if (has_message_) {
      d_ = padded(problem.message.in), h_ = padded(problem.message.hidden);
      nodes_ = arena.take(all * d_);
      hidden_sum_ = arena.take(all * h_);
      gate_sum_ = arena.take(all);
      degree_ = arena.take(all);
      product_ = arena.take(kChunk * d_);
      hidden_ = arena.take(kChunk * h_);
      if (backward) {
        grad_out_ = arena.take(all * d_);
        grad_hidden_ = arena.take(all * h_);
        grad_gate_ = arena.take(all);
        grad_nodes_ = arena.take(all * d_);
        relu_ = arena.take(kChunk * h_);
        grad_z_ = arena.take(kChunk * d_);
        grad_message_.take(arena, problem.message);
      }
    }
    if (gated_) {
      b_ = padded(problem.edge.in), he_ = padded(problem.edge.hidden);
      edge_nodes_ = arena.take(all * b_);
      edge_product_ = arena.take(kChunk * b_);
      edge_hidden_ = arena.take(kChunk * he_);
      if (backward) {
        grad_edge_nodes_ = arena.take(all * b_);
        mask_sum_ = arena.take(he_ * b_);
        mask_bias_ = arena.take(he_);
      }
    }
    scratch_vectors_ = arena.used;
  }

  int64_t scratch_vectors() const { return scratch_vectors_; }

  void forward(const Block& block) {
    begin(block);
    if (has_message_) {
      clear(hidden_sum_, (slots_ + 1) * h_);
      clear(gate_sum_, slots_ + 1);
      clear(degree_, slots_ + 1);
    }
    l0_.clear();
    l2_.clear();
    open_ = I{};
    open_rows_ = 0;
    for_pairs([&](auto size, auto diagonal)
                  LAMBDA_INLINE { forward_chunk<decltype(size)::value, decltype(diagonal)::value>(); },
              [&](int64_t i) { flush_row_sums(i); });
    if (problem_.l0) store_graph(problem_.l0, l0_.sum);
    if (problem_.l2) store_graph(problem_.l2, l2_.sum);
    if (problem_.num_edges && over_nodes_) problem_.num_edges[lane_graph_[0]] = open_rows_;
    if (problem_.num_edges && !over_nodes_) store_graph(problem_.num_edges, open_);
    if (problem_.out) store_out();
  }

  void begin_gradients() {
    if (has_message_) grad_message_.clear_all();
    if (gated_) {
      clear(mask_sum_, he_ * b_);
      clear(mask_bias_, he_);
      grad_logit_sum_.clear();
    }
  }

  void backward(const Block& block) {
    begin(block);
    if (has_message_) {
      clear(hidden_sum_, (slots_ + 1) * h_);
      clear(gate_sum_, slots_ + 1);
      clear(grad_nodes_, (slots_ + 1) * d_);
      load_grad_out();
    }
    if (gated_) clear(grad_edge_nodes_, (slots_ + 1) * b_);
    grad_l0_ = problem_.grad_l0 ? load_graph(problem_.grad_l0) : V{};
    grad_l2_ = problem_.grad_l2 ? load_graph(problem_.grad_l2) : V{};
    for_pairs([&](auto size, auto diagonal)
                  LAMBDA_INLINE { backward_chunk<decltype(size)::value, decltype(diagonal)::value>(); },
              [&](int64_t i) { flush_row_gradients(i); });
    if (has_message_) {
      finish_out_gradients();
      store_nodes(problem_.grad_nodes, problem_.message.in, grad_nodes_, d_);
    }
    if (gated_) store_nodes(problem_.grad_edge_nodes, problem_.edge.in, grad_edge_nodes_, b_);
  }

  // Adds this call's weight gradients to `gradients`: the message perceptron, then the edge perceptron.
  void add_gradients(A* gradients) {
    const Perceptron<A>& message = problem_.message;
    if (has_message_) grad_message_.add_to(gradients, message);
    if (!gated_) return;
    // With S[h][k] = sum of [unit h is on] da (e_i o e_j)_k over all pairs, and S[h] likewise without the
    // product:
    //   dW1[h][k] = W2[h] S[h][k],  db1[h] = W2[h] S[h],  dW2[h] = sum_k W1[h][k] S[h][k] + b1[h] S[h].
    const Perceptron<A>& edge = problem_.edge;
    const GradientLayout at = gradient_layout(gradient_layout(0, message.in, message.hidden, message.out).end,
                                              edge.in, edge.hidden, 1);
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
  // ---- The nodes of a block and where they are in memory ----

  void begin(const Block& block) {
    block_ = &block;
    over_nodes_ = block.lanes_over_nodes;
    slots_ = over_nodes_ ? (block.nodes + W - 1) / W : block.nodes;
    extra_ = slots_;
    uniform_ = true;
    lane_nodes_ = I{};
    for (int l = 0; l < W; ++l) {
      lane_graph_[l] = block.graphs[over_nodes_ || l >= block.lanes ? 0 : l];
      const Graphs& graphs = problem_.graphs;
      const int64_t g = lane_graph_[l];
      lane_begin_[l] = graphs.offsets ? graphs.offsets[g] : g * graphs.graph_size;
      const int64_t n = graphs.offsets ? graphs.offsets[g + 1] - graphs.offsets[g] : graphs.graph_size;
      const bool used = over_nodes_ || l < block.lanes;
      lane_nodes_[l] = used ? n : 0;
      uniform_ = uniform_ && (!used || n == block.nodes);
    }
    cached_noise_ = -1;
    if (gated_) load_nodes(problem_.edge_nodes, problem_.edge.in, edge_nodes_, b_);
    if (has_message_) load_nodes(problem_.nodes, problem_.message.in, nodes_, d_);
  }

  // Row of the node in lane l of a slot, or -1.
  ALWAYS_INLINE int64_t row(int64_t slot, int l) const {
    const int64_t node = over_nodes_ ? slot * W + l : slot;
    return node < lane_nodes_[l] ? lane_begin_[l] + node : -1;
  }

  void load_nodes(const A* from, int64_t size, V* to, int64_t stride) {
    for (int64_t slot = 0; slot < slots_; ++slot) {
      V* v = to + slot * stride;
      clear(v, stride);
      A* lanes = reinterpret_cast<A*>(v);
      for (int l = 0; l < W; ++l) {
        const int64_t r = row(slot, l);
        if (r < 0) continue;
        for (int64_t k = 0; k < size; ++k) lanes[k * W + l] = from[r * size + k];
      }
    }
    clear(to + slots_ * stride, stride);
  }

  void store_nodes(A* to, int64_t size, const V* from, int64_t stride) const {
    for (int64_t slot = 0; slot < slots_; ++slot) {
      const A* lanes = reinterpret_cast<const A*>(from + slot * stride);
      for (int l = 0; l < W; ++l) {
        const int64_t r = row(slot, l);
        if (r < 0) continue;
        for (int64_t k = 0; k < size; ++k) to[r * size + k] = lanes[k * W + l];
      }
    }
  }

  V load_graph(const A* per_graph) const {
    V v;
    for (int l = 0; l < W; ++l) v[l] = per_graph[lane_graph_[l]];
    return v;
  }

  template <class T, class Lanes>
  void store_graph(T* per_graph, Lanes v) const {
    if (over_nodes_) {
      T sum = 0;
      for (int l = 0; l < W; ++l) sum += static_cast<T>(v[l]);
      per_graph[lane_graph_[0]] = sum;
    } else {
      for (int64_t l = 0; l < block_->lanes; ++l) per_graph[lane_graph_[l]] = static_cast<T>(v[l]);
    }
  }

  // ---- The pairs of a block ----

  // Calls chunk(Int<C>, Int<diagonal>) with the first C of left_, right_, ... set, for all pairs i <= j of
  // the block's slots; lanes over nodes: end_row(i) when all pairs of node i have passed.
  template <class RunChunk, class EndRow>
  ALWAYS_INLINE void for_pairs(RunChunk chunk, EndRow end_row) {
    if (over_nodes_) {
      for (int64_t i = 0; i < block_->nodes; ++i) {
        copy_to_extra(i);
        row_ = i;
        const int64_t first = i / W;
        set_tile(0, first);
        not_self_[0] = lane_index<A>() + splat_index<A>(first * W) != splat_index<A>(i);
        active_[0] = active_[0] & (lane_index<A>() + splat_index<A>(first * W) >= splat_index<A>(i));
        chunk(Int<1>{}, Int<1>{});
        for_chunks<A>(slots_ - first - 1, [&](auto size, int64_t t) LAMBDA_INLINE {
          for (int c = 0; c < decltype(size)::value; ++c) set_tile(c, first + 1 + t + c);
          chunk(size, Int<0>{});
        });
        end_row(i);
      }
      return;
    }
    int filled = 0;
    for (int64_t i = 0; i < slots_; ++i)
      for (int64_t j = i; j < slots_; ++j) {
        left_[filled] = i;
        right_[filled] = j;
        right_sum_[filled] = i == j ? extra_ : j;
        active_[filled] = splat_index<A>(j) < lane_nodes_;
        if (++filled == kChunk) chunk(Int<kChunk>{}, Int<0>{}), filled = 0;
      }
    if (kChunk > 2 && filled & 2) {
      chunk(Int<2>{}, Int<0>{});
      constexpr int last = kChunk - 2;
      left_[0] = left_[last], right_[0] = right_[last], right_sum_[0] = right_sum_[last],
      active_[0] = active_[last];
    }
    if (filled & 1) chunk(Int<1>{}, Int<0>{});
  }

  ALWAYS_INLINE void set_tile(int c, int64_t slot) {
    left_[c] = extra_;
    right_[c] = right_sum_[c] = slot;
    active_[c] = lane_index<A>() + splat_index<A>(slot * W) < lane_nodes_;
  }

  void copy_to_extra(int64_t i) {
    const int64_t slot = i / W, lane = i % W;
    const auto copy = [&](V* v, int64_t stride) LAMBDA_INLINE {
      for (int64_t k = 0; k < stride; ++k) v[extra_ * stride + k] = splat<A>(v[slot * stride + k][lane]);
    };
    if (gated_) copy(edge_nodes_, b_);
    if (!has_message_) return;
    copy(nodes_, d_);
    if (grad_out_) copy(grad_hidden_, h_), copy(grad_gate_, 1);
  }

  // Adds the extra slot's lanes to node i, and clears them.
  ALWAYS_INLINE void flush(V* v, int64_t stride, int64_t i) {
    A* lanes = reinterpret_cast<A*>(v + (i / W) * stride);
    for (int64_t k = 0; k < stride; ++k) {
      lanes[k * W + i % W] += sum_lanes(v[extra_ * stride + k], A(0));
      v[extra_ * stride + k] = V{};
    }
  }

  void flush_row_sums(int64_t i) {
    open_rows_ += sum_lanes(open_, int64_t{0});
    open_ = I{};
    if (!has_message_) return;
    flush(hidden_sum_, h_, i), flush(gate_sum_, 1, i), flush(degree_, 1, i);
  }

  void flush_row_gradients(int64_t i) {
    if (gated_) flush(grad_edge_nodes_, b_, i);
    if (!has_message_) return;
    flush(hidden_sum_, h_, i), flush(gate_sum_, 1, i), flush(grad_nodes_, d_, i);
  }

  // Canonical index of pair c in the graph of lane l.
  ALWAYS_INLINE int64_t lane_pair(int c, int l) const {
    return over_nodes_ ? pair_index(row_, right_[c] * W + l, lane_nodes_[l])
                       : pair_index(left_[c], right_[c], lane_nodes_[l]);
  }

  // ---- Gates ----

  // ln U - ln(1 - U) of pair c.
  ALWAYS_INLINE V noise(int c) {
    const uint64_t seed = static_cast<uint64_t>(*problem_.gate.seed);
    U word;
    if (!over_nodes_ && uniform_) {
      const int64_t pair = pair_index(left_[c], right_[c], slots_);
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
        const uint64_t pair = static_cast<uint64_t>(lane_pair(c, l));
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
      counter.x[2][l] = static_cast<uint32_t>(lane_graph_[l]);
      counter.x[3][l] = static_cast<uint32_t>(static_cast<uint64_t>(lane_graph_[l]) >> 32);
    }
  }

  // gate_[c] of C pairs; with Backward also gate_slope_ = dg/da, open_slope_ = dpi/da and edge_hidden_ =
  // relu(...).
  template <int C, bool Backward>
  ALWAYS_INLINE void gates() {
    if (!gated_) {
      for (int c = 0; c < C; ++c) {
        open_mask_[c] = active_[c];
        gate_[c] = active_[c] ? splat(A(1)) : V{};
      }
      return;
    }
    const int64_t b = b_;
    V* product = edge_product_;
    for (int c = 0; c < C; ++c) {
      const V *left = edge_nodes_ + left_[c] * b, *right = edge_nodes_ + right_[c] * b;
      for (int64_t k = 0; k < b; ++k) product[k * C + c] = left[k] * right[k];
    }
    V logit[C];
    for (int c = 0; c < C; ++c) logit[c] = splat(weights_.edge.out_bias[0]);
    const A* out = weights_.edge.out;
    V* hidden = edge_hidden_;
    multiply<A, C>(
        weights_.edge.hidden, weights_.edge.hidden_bias, he_, problem_.edge.in,
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
    const HardConcrete& gate = problem_.gate;
    const A span = A(gate.zeta - gate.gamma), low = A(gate.gamma);
    const A steepness = gate.seed ? A(1 / gate.temperature) : A(1);
    const A shift = A(gate.temperature * __builtin_log(-gate.gamma / gate.zeta));
    for (int c = 0; c < C; ++c) {
      const V s = sigmoid<V>(gate.seed ? (noise(c) + logit[c]) * steepness : logit[c]);
      const V stretched = s * span + low;
      const V g = stretched > 1 ? splat(A(1)) : relu(stretched);
      gate_[c] = active_[c] ? g : V{};
      open_mask_[c] = gate_[c] > 0;
      if (Backward || problem_.l0) {
        const V open = sigmoid<V>(logit[c] - shift);
        if (Backward) {
          const I inside = active_[c] & (stretched > 0) & (stretched < 1);
          gate_slope_[c] = inside ? span * steepness * s * (1 - s) : V{};
          open_slope_[c] = active_[c] ? open * (1 - open) : V{};
        } else {
          l0_.add(active_[c] ? open : V{});
        }
      }
    }
    if (!Backward && problem_.gates) {
      for (int c = 0; c < C; ++c) {
        store_pairs(problem_.gates, gate_[c], c);
        store_pairs(problem_.logits, logit[c], c);
      }
    }
  }

  void store_pairs(A* pairs, V v, int c) const {
    for (int l = 0; l < W; ++l)
      if (active_[c][l]) pairs[problem_.pair_offsets[lane_graph_[l]] + lane_pair(c, l)] = v[l];
  }

  V load_pairs(const A* pairs, int c) const {
    V v = {};
    for (int l = 0; l < W; ++l)
      if (active_[c][l]) v[l] = pairs[problem_.pair_offsets[lane_graph_[l]] + lane_pair(c, l)];
    return v;
  }

  // Whether any message counts. A NaN does, so that it is seen in the result.
  template <int C>
  ALWAYS_INLINE bool any_open() const {
    I open = gate_[0] != 0;
    for (int c = 1; c < C; ++c) open |= gate_[c] != 0;
    return any(open);
  }

  // A closed pair has no message: its product is zero, so that nothing in it can overflow.
  template <int C>
  ALWAYS_INLINE void message_product() {
    for (int c = 0; c < C; ++c) {
      const V *left = nodes_ + left_[c] * d_, *right = nodes_ + right_[c] * d_;
      const I counts = gate_[c] != 0;
      for (int64_t k = 0; k < d_; ++k) product_[k * C + c] = counts ? left[k] * right[k] : V{};
    }
  }

  // A gate that the right end of the pair receives: not the self-pair on the diagonal tile.
  template <bool Diagonal>
  ALWAYS_INLINE V right_part(V v) const {
    return Diagonal ? (not_self_[0] ? v : V{}) : v;
  }

  // ---- Forward ----

  template <int C, bool Diagonal>
  ALWAYS_INLINE void forward_chunk() {
    gates<C, false>();
    for (int c = 0; c < C; ++c) open_ -= open_mask_[c];
    if (!has_message_ || !any_open<C>()) return;
    for (int c = 0; c < C; ++c) {
      const V one = open_mask_[c] ? splat(A(1)) : V{};
      gate_sum_[left_[c]] += gate_[c];
      gate_sum_[right_sum_[c]] += right_part<Diagonal>(gate_[c]);
      degree_[left_[c]] += one;
      degree_[right_sum_[c]] += right_part<Diagonal>(one);
    }
    message_product<C>();
    const V* product = product_;
    V* sum = hidden_sum_;
    V* relus = hidden_;
    const int64_t H = h_;
    const bool l2 = problem_.l2 != nullptr;
    V gate[C], right_gate[C];
    V *left[C], *right[C];
    for (int c = 0; c < C; ++c) {
      gate[c] = gate_[c];
      right_gate[c] = right_part<Diagonal>(gate_[c]);
      left[c] = sum + left_[c] * H;
      right[c] = sum + right_sum_[c] * H;
    }
    multiply<A, C>(
        weights_.message.hidden, weights_.message.hidden_bias, H, problem_.message.in,
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
              const V r = relu(y[m][c]);
              left[c][h0 + m] += gate[c] * r;
              right[c][h0 + m] += right_gate[c] * r;
              if (l2) relus[(h0 + m) * C + c] = r;
            }
        });
    if (!l2) return;
    V square[C];
    for (int c = 0; c < C; ++c) square[c] = V{};
    multiply<A, C>(
        weights_.message.out, weights_.message.out_bias, d_, problem_.message.hidden,
        [&](int64_t k, int c) LAMBDA_INLINE { return relus[k * C + c]; },
        [&](int64_t, V(&z)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) square[c] += z[m][c] * z[m][c];
        });
    for (int c = 0; c < C; ++c) l2_.add(open_mask_[c] ? square[c] : V{});
  }

  V slot_scale(int64_t slot, bool saved_degree) const {
    V scale = {};
    for (int l = 0; l < W; ++l) {
      const int64_t r = row(slot, l);
      if (r < 0) continue;
      const int64_t divisor = problem_.aggregation == Aggregation::sum    ? 1
                              : problem_.aggregation == Aggregation::mean ? lane_nodes_[l]
                              : saved_degree ? problem_.degree[r]
                                             : static_cast<int64_t>(degree_[slot][l]);
      scale[l] = divisor > 0 ? A(1) / static_cast<A>(divisor) : A(0);
    }
    return scale;
  }

  // v'_i = scale_i (W2 sum_j g_ij relu(...) + b2 sum_j g_ij), written over the slots of the nodes.
  void store_out() {
    for_chunks<A>(slots_, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      V scale[C];
      for (int c = 0; c < C; ++c) scale[c] = slot_scale(first + c, false);
      const A* bias = weights_.message.out_bias;
      multiply<A, C>(
          weights_.message.out, nullptr, d_, problem_.message.hidden,
          [&](int64_t h, int c) LAMBDA_INLINE { return hidden_sum_[(first + c) * h_ + h]; },
          [&](int64_t k0, V(&y)[kRows][C]) LAMBDA_INLINE {
            for (int m = 0; m < kRows; ++m)
              for (int c = 0; c < C; ++c)
                nodes_[(first + c) * d_ + k0 + m] =
                    scale[c] * (y[m][c] + bias[k0 + m] * gate_sum_[first + c]);
          });
    });
    store_nodes(problem_.out, problem_.message.out, nodes_, d_);
    if (problem_.aggregation != Aggregation::neighbor_mean || !problem_.degree) return;
    for (int64_t slot = 0; slot < slots_; ++slot)
      for (int l = 0; l < W; ++l)
        if (const int64_t r = row(slot, l); r >= 0)
          problem_.degree[r] = static_cast<int32_t>(degree_[slot][l]);
  }

  // ---- Backward ----

  // D_i = scale_i dL/dv'_i, and what every pair of node i needs of it: W2^T D_i and b2 . D_i.
  void load_grad_out() {
    const int64_t all = slots_ + 1;
    clear(grad_hidden_ + slots_ * h_, h_);
    grad_gate_[slots_] = V{};
    if (!problem_.grad_out) {
      clear(grad_out_, all * d_);
      clear(grad_hidden_, all * h_);
      clear(grad_gate_, all);
      return;
    }
    load_nodes(problem_.grad_out, problem_.message.out, grad_out_, d_);
    const A* bias = weights_.message.out_bias;
    for (int64_t slot = 0; slot < slots_; ++slot) {
      const V scale = slot_scale(slot, true);
      V dot = {};
      for (int64_t k = 0; k < d_; ++k) {
        grad_out_[slot * d_ + k] *= scale;
        dot += bias[k] * grad_out_[slot * d_ + k];
      }
      grad_gate_[slot] = dot;
    }
    for_chunks<A>(slots_, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      multiply<A, C>(
          weights_.message.out_transposed, nullptr, h_, problem_.message.out,
          [&](int64_t k, int c) LAMBDA_INLINE { return grad_out_[(first + c) * d_ + k]; },
          [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
            for (int m = 0; m < kRows; ++m)
              for (int c = 0; c < C; ++c) grad_hidden_[(first + c) * h_ + h0 + m] = y[m][c];
          });
    });
  }

  // dW2 = sum_i D_i (sum_j g_ij relu_ij)^T and db2 = sum_i D_i sum_j g_ij: once a node, not once a pair.
  void finish_out_gradients() {
    for_chunks<A>(slots_, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      accumulate_outer<A, C>(
          grad_message_.out_weight, d_, h_,
          [&](int64_t k, int c) LAMBDA_INLINE { return grad_out_[(first + c) * d_ + k]; },
          [&](int64_t h, int c) LAMBDA_INLINE { return hidden_sum_[(first + c) * h_ + h]; });
      for (int c = 0; c < C; ++c)
        for (int64_t k = 0; k < d_; ++k)
          grad_message_.out_bias[k] += grad_out_[(first + c) * d_ + k] * gate_sum_[first + c];
    });
  }

  template <int C, bool Diagonal>
  ALWAYS_INLINE void backward_chunk() {
    gates<C, true>();
    for (int c = 0; c < C; ++c) grad_of_gate_[c] = V{};
    if (has_message_ && any_open<C>()) message_backward<C, Diagonal>();
    if (gated_) edge_backward<C>();
  }

  // Fills grad_of_gate_ = dL/dg.
  template <int C, bool Diagonal>
  ALWAYS_INLINE void message_backward() {
    message_product<C>();
    const int64_t H = h_;
    const V* product = product_;
    V* grad_hidden = hidden_;
    V* relus = relu_;
    const bool l2 = problem_.grad_l2 != nullptr;
    V gate[C], right_gate[C], grad_gate[C];
    V *left_sum[C], *right_sum[C];
    const V *left_grad[C], *right_grad[C];
    for (int c = 0; c < C; ++c) {
      gate[c] = gate_[c];
      right_gate[c] = right_part<Diagonal>(gate_[c]);
      left_sum[c] = hidden_sum_ + left_[c] * H;
      right_sum[c] = hidden_sum_ + right_sum_[c] * H;
      left_grad[c] = grad_hidden_ + left_[c] * H;
      right_grad[c] = grad_hidden_ + right_sum_[c] * H;
      grad_gate[c] = grad_gate_[left_[c]] + right_part<Diagonal>(grad_gate_[right_sum_[c]]);
    }
    for (int c = 0; c < C; ++c) {
      gate_sum_[left_[c]] += gate[c];
      gate_sum_[right_sum_[c]] += right_gate[c];
    }
    multiply<A, C>(
        weights_.message.hidden, weights_.message.hidden_bias, H, problem_.message.in,
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
              const int64_t h = h0 + m;
              const V r = relu(y[m][c]);
              const V both = left_grad[c][h] + right_part<Diagonal>(right_grad[c][h]);
              grad_gate[c] += both * r;
              left_sum[c][h] += gate[c] * r;
              right_sum[c][h] += right_gate[c] * r;
              grad_hidden[h * C + c] = y[m][c] > 0 ? gate[c] * both : V{};
              if (l2) relus[h * C + c] = r;
            }
        });
    for (int c = 0; c < C; ++c) grad_of_gate_[c] = grad_gate[c];
    if (l2) l2_backward<C>();

    accumulate_outer<A, C>(
        grad_message_.hidden_weight, H, d_,
        [&](int64_t h, int c) LAMBDA_INLINE { return grad_hidden[h * C + c]; },
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; });
    for (int64_t h = 0; h < H; ++h) {
      V sum = grad_hidden[h * C];
      for (int c = 1; c < C; ++c) sum += grad_hidden[h * C + c];
      grad_message_.hidden_bias[h] += sum;
    }
    add_product_gradients<C>(weights_.message.hidden_transposed, problem_.message.hidden, grad_hidden, nodes_,
                             grad_nodes_, d_);
  }

  // d/dz of c |z|^2 over the open pairs, through the whole perceptron; adds to hidden_ = dL/d(hidden).
  template <int C>
  ALWAYS_INLINE void l2_backward() {
    V *relus = relu_, *grad_z = grad_z_, *grad_hidden = hidden_;
    V factor[C];
    for (int c = 0; c < C; ++c) factor[c] = open_mask_[c] ? 2 * grad_l2_ : V{};
    multiply<A, C>(
        weights_.message.out, weights_.message.out_bias, d_, problem_.message.hidden,
        [&](int64_t h, int c) LAMBDA_INLINE { return relus[h * C + c]; },
        [&](int64_t k0, V(&z)[kRows][C]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m)
            for (int c = 0; c < C; ++c) {
              const V grad = factor[c] * z[m][c];
              grad_z[(k0 + m) * C + c] = grad;
              grad_message_.out_bias[k0 + m] += grad;
            }
        });
    accumulate_outer<A, C>(
        grad_message_.out_weight, d_, h_, [&](int64_t k, int c) LAMBDA_INLINE { return grad_z[k * C + c]; },
        [&](int64_t h, int c) LAMBDA_INLINE { return relus[h * C + c]; });
    multiply<A, C>(
        weights_.message.out_transposed, nullptr, h_, problem_.message.out,
        [&](int64_t k, int c) LAMBDA_INLINE { return grad_z[k * C + c]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m)
            for (int c = 0; c < C; ++c) {
              const int64_t at = (h0 + m) * C + c;
              grad_hidden[at] += relus[at] > 0 ? y[m][c] : V{};
            }
        });
  }

  template <int C>
  ALWAYS_INLINE void edge_backward() {
    V grad_logit[C];
    for (int c = 0; c < C; ++c) {
      V grad_gate = grad_of_gate_[c];
      if (problem_.grad_gates) grad_gate += load_pairs(problem_.grad_gates, c);
      grad_logit[c] = grad_gate * gate_slope_[c] + grad_l0_ * open_slope_[c];
      if (problem_.grad_logits) grad_logit[c] += load_pairs(problem_.grad_logits, c);
      grad_logit_sum_.add(grad_logit[c]);
    }
    const V* product = edge_product_;
    V* masked = edge_hidden_;
    for (int64_t h = 0; h < he_; ++h) {
      V sum = {};
      for (int c = 0; c < C; ++c) {
        masked[h * C + c] = masked[h * C + c] > 0 ? grad_logit[c] : V{};
        sum += masked[h * C + c];
      }
      mask_bias_[h] += sum;
    }
    accumulate_outer<A, C>(
        mask_sum_, he_, b_, [&](int64_t h, int c) LAMBDA_INLINE { return masked[h * C + c]; },
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; });
    add_product_gradients<C>(weights_.edge.hidden_transposed, problem_.edge.hidden, masked, edge_nodes_,
                             grad_edge_nodes_, b_);
  }

  // With dp = W^T grad: the gradient of p = x_i o x_j goes to both ends.
  template <int C>
  ALWAYS_INLINE void add_product_gradients(const A* packed, int64_t hidden, const V* grad, const V* nodes,
                                           V* grad_nodes, int64_t stride) {
    const V *left[C], *right[C];
    V *left_grad[C], *right_grad[C];
    for (int c = 0; c < C; ++c) {
      left[c] = nodes + left_[c] * stride, right[c] = nodes + right_[c] * stride;
      left_grad[c] = grad_nodes + left_[c] * stride, right_grad[c] = grad_nodes + right_[c] * stride;
    }
    multiply<A, C>(
        packed, nullptr, stride, hidden, [&](int64_t h, int c) LAMBDA_INLINE { return grad[h * C + c]; },
        [&](int64_t k0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
              const int64_t k = k0 + m;
              left_grad[c][k] += y[m][c] * right[c][k];
              right_grad[c][k] += y[m][c] * left[c][k];
            }
        });
  }

  const CompleteGraph<A>& problem_;
  const PackedWeights<A>& weights_;
  const bool gated_;
  bool has_message_ = false;
  int64_t scratch_vectors_ = 0;
  int64_t d_ = 0, h_ = 0, b_ = 0, he_ = 0;  // padded sizes

  // The block.
  const Block* block_ = nullptr;
  bool over_nodes_ = false, uniform_ = false;
  int64_t slots_ = 0, extra_ = 0;
  int64_t lane_graph_[W], lane_begin_[W];
  I lane_nodes_;

  // A vector for each slot and component.
  V *nodes_ = nullptr, *hidden_sum_ = nullptr, *gate_sum_ = nullptr, *degree_ = nullptr,
    *edge_nodes_ = nullptr;
  V *grad_out_ = nullptr, *grad_hidden_ = nullptr, *grad_gate_ = nullptr, *grad_nodes_ = nullptr;
  V* grad_edge_nodes_ = nullptr;

  // A vector for each component and pair of the chunk.
  V *product_ = nullptr, *hidden_ = nullptr, *relu_ = nullptr, *grad_z_ = nullptr;
  V *edge_product_ = nullptr, *edge_hidden_ = nullptr;

  // The chunk's pairs.
  int64_t left_[kChunk], right_[kChunk], right_sum_[kChunk];
  int64_t row_ = 0;
  I active_[kChunk], not_self_[1], open_mask_[kChunk];
  V gate_[kChunk], gate_slope_[kChunk], open_slope_[kChunk], grad_of_gate_[kChunk];
  int64_t cached_noise_ = -1;
  Philox4<U> noise_words_;

  // Sums of the block or of the call.
  // Millions of pairs may go into one of these: they keep what rounding takes from a plain float32 sum.
  CompensatedSum<V> l0_, l2_, grad_logit_sum_;
  V grad_l0_, grad_l2_;
  I open_;
  int64_t open_rows_ = 0;  // lanes over nodes: the open pairs of the rows that are done
  GradientLanes<A> grad_message_;
  V *mask_sum_ = nullptr, *mask_bias_ = nullptr;
};
