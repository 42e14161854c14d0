// The message network of a chunk of pairs, and where its results go: to the nodes (NodeMessages), or to one
// sum a graph (PooledMessages). Included inside an anonymous namespace by each instruction-set file.

// What both share: the product, the hidden layer's scratch and the penalty |z|^2.
template <class A>
class MessageNetwork {
 protected:
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int W = S::W, kChunk = S::kChunk;

 public:
  void begin_gradients() {
    if (present_) grad_message_.clear_all();
  }

  void add_gradients(A* gradients) const {
    if (present_) grad_message_.add_to(gradients, problem_.message);
  }

 protected:
  MessageNetwork(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
                 EdgeGates<A>& gates, Arena<A>& arena, int64_t slots, bool backward)
      : problem_(problem), weights_(weights.message), block_(block), gates_(gates) {
    present_ = problem.nodes && (!backward || problem.grad_out || problem.grad_pooled || problem.grad_l2);
    if (!present_) return;
    d_ = padded(problem.message.in), h_ = padded(problem.message.hidden);
    nodes_ = arena.take((slots + 1) * d_);
    product_ = arena.take(kChunk * d_);
    relu_ = arena.take(kChunk * h_);
    if (!backward) return;
    grad_nodes_ = arena.take((slots + 1) * d_);
    grad_hidden_ = arena.take(kChunk * h_);
    grad_z_ = arena.take(kChunk * d_);
    grad_message_.take(arena, problem.message);
  }

  void load() {
    l2_.clear();
    if (present_)
      block_.load_rows(problem_.nodes, problem_.ids, problem_.values, problem_.message.in, nodes_, d_);
  }

  void begin_backward() {
    load();
    if (!present_) return;
    clear(grad_nodes_, (block_.slots + 1) * d_);
    grad_l2_ = problem_.grad_l2 ? block_.load_graph(problem_.grad_l2) : V{};
  }

  // A closed pair has no message.
  template <int C>
  ALWAYS_INLINE void multiply_ends() {
    I counts[C];
    for (int c = 0; c < C; ++c) counts[c] = gates_.gate[c] != 0;
    block_.template multiply_ends<C>(nodes_, d_, counts, product_);
  }

  // Calls use(h0, y) with the hidden layer's values before the relu, kRows units at a time.
  template <int C, class Use>
  ALWAYS_INLINE void hidden_layer(Use use) {
    const V* product = product_;
    multiply<A, C>(
        weights_.hidden, weights_.hidden_bias, h_, problem_.message.in,
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; }, use);
  }

  // For the penalty, which reads them as a whole.
  template <int C>
  ALWAYS_INLINE void store_relu(int64_t h0, const V (&y)[kRows][C]) {
    for (int m = 0; m < kRows; ++m)
      for (int c = 0; c < C; ++c) relu_[(h0 + m) * C + c] = relu(y[m][c]);
  }

  // |z|^2 of the open pairs, from relu_.
  template <int C>
  ALWAYS_INLINE void add_l2() {
    const V* relus = relu_;
    V square[C];
    for (int c = 0; c < C; ++c) square[c] = V{};
    multiply<A, C>(
        weights_.out, weights_.out_bias, d_, problem_.message.hidden,
        [&](int64_t k, int c) LAMBDA_INLINE { return relus[k * C + c]; },
        [&](int64_t, V(&z)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) square[c] += z[m][c] * z[m][c];
        });
    for (int c = 0; c < C; ++c) l2_.add(gates_.open_mask[c] ? square[c] : V{});
  }

  // Its gradient, through the whole network; adds to grad_hidden_ = dL/d(hidden).
  template <int C>
  ALWAYS_INLINE void l2_backward() {
    V *relus = relu_, *grad_z = grad_z_, *grad_hidden = grad_hidden_;
    V factor[C];
    for (int c = 0; c < C; ++c) factor[c] = gates_.open_mask[c] ? 2 * grad_l2_ : V{};
    multiply<A, C>(
        weights_.out, weights_.out_bias, d_, problem_.message.hidden,
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
        weights_.out_transposed, nullptr, h_, problem_.message.out,
        [&](int64_t k, int c) LAMBDA_INLINE { return grad_z[k * C + c]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m)
            for (int c = 0; c < C; ++c) {
              const int64_t at = (h0 + m) * C + c;
              const V grad = relus[at] > 0 ? y[m][c] : V{};
              grad_hidden[at] += grad;
              grad_message_.hidden_bias[h0 + m] += grad;
            }
        });
  }

  // dL/dW1 and dL/du from grad_hidden_; its gradient is factor[c] times that, where factors are given.
  template <int C>
  ALWAYS_INLINE void product_backward(const V* factor) {
    V* product = product_;
    const V* grad_hidden = grad_hidden_;
    if (factor)
      for (int64_t k = 0; k < d_; ++k)
        for (int c = 0; c < C; ++c) product[k * C + c] *= factor[c];
    accumulate_outer<A, C>(
        grad_message_.hidden_weight, h_, d_,
        [&](int64_t h, int c) LAMBDA_INLINE { return grad_hidden[h * C + c]; },
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; });
    block_.template add_to_ends<C>(weights_.hidden_transposed, problem_.message.hidden, grad_hidden, factor,
                                   nodes_, grad_nodes_, d_);
  }

  void store_grad_nodes() const {
    block_.store_rows(problem_.grad_nodes, problem_.values, problem_.message.in, grad_nodes_, d_);
  }

  const CompleteGraph<A>& problem_;
  const PackedPerceptron<A>& weights_;
  GraphBlock<A>& block_;
  EdgeGates<A>& gates_;
  bool present_;
  int64_t d_ = 0, h_ = 0;  // padded sizes

  V *nodes_ = nullptr, *grad_nodes_ = nullptr;  // a vector for each slot and component
  V *product_ = nullptr, *relu_ = nullptr, *grad_hidden_ = nullptr,
    *grad_z_ = nullptr;  // for each component and pair of the chunk
  CompensatedSum<V> l2_;
  V grad_l2_ = {};
  GradientLanes<A> grad_message_;
};

// v'_i = scale_i sum_j g_ij z_ij for every node. The second layer leaves the sum over pairs.
template <class A>
class NodeMessages : public MessageNetwork<A> {
  using Base = MessageNetwork<A>;
  using Base::block_, Base::d_, Base::gates_, Base::grad_hidden_, Base::grad_message_, Base::grad_nodes_,
      Base::h_, Base::kChunk, Base::nodes_, Base::present_, Base::problem_, Base::W, Base::weights_;
  using typename Base::I;
  using typename Base::V;

 public:
  NodeMessages(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
               EdgeGates<A>& gates, Arena<A>& arena, int64_t slots, bool backward)
      : Base(problem, weights, block, gates, arena, slots, backward) {
    if (!present_) return;
    const int64_t all = slots + 1;
    hidden_sum_ = arena.take(all * h_);
    gate_sum_ = arena.take(all);
    if (!backward) return;
    grad_out_ = arena.take(all * d_);
    grad_sum_ = arena.take(all * h_);
    grad_bias_ = arena.take(all);
  }

  // ---- Forward ----

  void begin_forward() {
    Base::load();
    clear_sums();
  }

  void begin_row_forward(int64_t i) {
    if (present_) block_.copy_to_extra(nodes_, d_, i);
  }

  template <int C, bool Diagonal>
  ALWAYS_INLINE void forward() {
    if (!present_ || !gates_.template any_open<C>()) return;
    Base::template multiply_ends<C>();
    V* sum = hidden_sum_;
    const int64_t H = h_;
    const bool l2 = problem_.l2 != nullptr;
    V gate[C], right_gate[C];
    V *left[C], *right[C];
    for (int c = 0; c < C; ++c) {
      gate[c] = gates_.gate[c];
      right_gate[c] = block_.template right_part<Diagonal>(gate[c]);
      left[c] = sum + block_.left[c] * H;
      right[c] = sum + block_.right_sum[c] * H;
      gate_sum_[block_.left[c]] += gate[c];
      gate_sum_[block_.right_sum[c]] += right_gate[c];
    }
    Base::template hidden_layer<C>([&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const V r = relu(y[m][c]);
          left[c][h0 + m] += gate[c] * r;
          right[c][h0 + m] += right_gate[c] * r;
        }
      if (l2) Base::template store_relu<C>(h0, y);
    });
    if (l2) Base::template add_l2<C>();
  }

  void end_row_forward(int64_t i) {
    if (present_) block_.flush_extra(hidden_sum_, h_, i), block_.flush_extra(gate_sum_, 1, i);
  }

  // v'_i = scale_i (W2 sum_j g_ij relu(...) + b2 sum_j g_ij), written over the slots of the nodes.
  void end_forward() {
    if (problem_.l2) block_.store_graph(problem_.l2, Base::l2_.sum);
    if (!problem_.out) return;
    for_chunks<A>(block_.slots, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      V scale[C];
      for (int c = 0; c < C; ++c) scale[c] = gates_.slot_scale(first + c, false);
      const A* bias = weights_.out_bias;
      multiply<A, C>(
          weights_.out, nullptr, d_, problem_.message.hidden,
          [&](int64_t h, int c) LAMBDA_INLINE { return hidden_sum_[(first + c) * h_ + h]; },
          [&](int64_t k0, V(&y)[kRows][C]) LAMBDA_INLINE {
            for (int m = 0; m < kRows; ++m)
              for (int c = 0; c < C; ++c)
                nodes_[(first + c) * d_ + k0 + m] =
                    scale[c] * (y[m][c] + bias[k0 + m] * gate_sum_[first + c]);
          });
    });
    block_.store_rows(problem_.out, nullptr, problem_.message.out, nodes_, d_);
  }

  // ---- Backward ----

  void begin_backward() {
    Base::begin_backward();
    if (!present_) return;
    clear_sums();
    load_grad_out();
  }

  void begin_row_backward(int64_t i) {
    if (!present_) return;
    block_.copy_to_extra(nodes_, d_, i);
    block_.copy_to_extra(grad_sum_, h_, i);
    block_.copy_to_extra(grad_bias_, 1, i);
  }

  template <int C, bool Diagonal>
  ALWAYS_INLINE void backward() {
    if (!present_ || !gates_.template any_open<C>()) return;
    Base::template multiply_ends<C>();
    const int64_t H = h_;
    V *grad_hidden = grad_hidden_, *grad_hidden_bias = grad_message_.hidden_bias;
    const bool l2 = problem_.grad_l2 != nullptr;
    V gate[C], right_gate[C], grad_gate[C];
    V *left_sum[C], *right_sum[C];
    const V *left_grad[C], *right_grad[C];
    for (int c = 0; c < C; ++c) {
      const int64_t left = block_.left[c], right = block_.right_sum[c];
      gate[c] = gates_.gate[c];
      right_gate[c] = block_.template right_part<Diagonal>(gate[c]);
      left_sum[c] = hidden_sum_ + left * H;
      right_sum[c] = hidden_sum_ + right * H;
      left_grad[c] = grad_sum_ + left * H;
      right_grad[c] = grad_sum_ + right * H;
      grad_gate[c] = grad_bias_[left] + block_.template right_part<Diagonal>(grad_bias_[right]);
      gate_sum_[left] += gate[c];
      gate_sum_[right] += right_gate[c];
    }
    Base::template hidden_layer<C>([&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const int64_t h = h0 + m;
        V bias = grad_hidden_bias[h];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const V r = relu(y[m][c]);
          const V both = left_grad[c][h] + block_.template right_part<Diagonal>(right_grad[c][h]);
          grad_gate[c] += both * r;
          left_sum[c][h] += gate[c] * r;
          right_sum[c][h] += right_gate[c] * r;
          const V grad = y[m][c] > 0 ? gate[c] * both : V{};
          grad_hidden[h * C + c] = grad;
          bias += grad;
        }
        grad_hidden_bias[h] = bias;
      }
      if (l2) Base::template store_relu<C>(h0, y);
    });
    for (int c = 0; c < C; ++c) gates_.grad_gate[c] = grad_gate[c];
    if (l2) Base::template l2_backward<C>();
    Base::template product_backward<C>(nullptr);
  }

  void end_row_backward(int64_t i) {
    if (!present_) return;
    block_.flush_extra(hidden_sum_, h_, i), block_.flush_extra(gate_sum_, 1, i);
    block_.flush_extra(grad_nodes_, d_, i);
  }

  // dW2 = sum_i D_i (sum_j g_ij relu_ij)^T and db2 = sum_i D_i sum_j g_ij: once a node, not once a pair.
  void end_backward() {
    if (!present_) return;
    for_chunks<A>(block_.slots, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      accumulate_outer<A, C>(
          grad_message_.out_weight, d_, h_,
          [&](int64_t k, int c) LAMBDA_INLINE { return grad_out_[(first + c) * d_ + k]; },
          [&](int64_t h, int c) LAMBDA_INLINE { return hidden_sum_[(first + c) * h_ + h]; });
      for (int c = 0; c < C; ++c)
        for (int64_t k = 0; k < d_; ++k)
          grad_message_.out_bias[k] += grad_out_[(first + c) * d_ + k] * gate_sum_[first + c];
    });
    Base::store_grad_nodes();
  }

 private:
  void clear_sums() {
    if (!present_) return;
    clear(hidden_sum_, (block_.slots + 1) * h_);
    clear(gate_sum_, block_.slots + 1);
  }

  // D_i = scale_i dL/dv'_i, and what every pair of node i needs of it: W2^T D_i and b2 . D_i.
  void load_grad_out() {
    const int64_t slots = block_.slots, all = slots + 1;
    clear(grad_sum_ + slots * h_, h_);
    grad_bias_[slots] = V{};
    if (!problem_.grad_out) {
      clear(grad_out_, all * d_);
      clear(grad_sum_, all * h_);
      clear(grad_bias_, all);
      return;
    }
    block_.load_rows(problem_.grad_out, nullptr, nullptr, problem_.message.out, grad_out_, d_);
    const A* bias = weights_.out_bias;
    for (int64_t slot = 0; slot < slots; ++slot) {
      const V scale = gates_.slot_scale(slot, true);
      V dot = {};
      for (int64_t k = 0; k < d_; ++k) {
        grad_out_[slot * d_ + k] *= scale;
        dot += bias[k] * grad_out_[slot * d_ + k];
      }
      grad_bias_[slot] = dot;
    }
    for_chunks<A>(slots, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      multiply<A, C>(
          weights_.out_transposed, nullptr, h_, problem_.message.out,
          [&](int64_t k, int c) LAMBDA_INLINE { return grad_out_[(first + c) * d_ + k]; },
          [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
            for (int m = 0; m < kRows; ++m)
              for (int c = 0; c < C; ++c) grad_sum_[(first + c) * h_ + h0 + m] = y[m][c];
          });
    });
  }

  // Of a node: sum_j g_ij relu(...) and sum_j g_ij; D_i, W2^T D_i and b2 . D_i.
  V *hidden_sum_ = nullptr, *gate_sum_ = nullptr;
  V *grad_out_ = nullptr, *grad_sum_ = nullptr, *grad_bias_ = nullptr;
};

// The sum over a graph's nodes of x_i v'_i / n. It is linear in the messages, so a pair adds to it once:
//   sum_i x_i v'_i / n = W2 R + b2 r  with  R = sum_(i <= j) w_ij relu(...),  r = sum_(i <= j) w_ij,
//   w_ij = g_ij (alpha_i + [i != j] alpha_j),  alpha_i = x_i scale_i / n.
// No node has a sum of its own, and the gradient of relu(...) is w_ij W2^T D for all pairs of a graph.
template <class A>
class PooledMessages : public MessageNetwork<A> {
  using Base = MessageNetwork<A>;
  using Base::block_, Base::d_, Base::gates_, Base::grad_hidden_, Base::grad_message_, Base::grad_nodes_,
      Base::h_, Base::kChunk, Base::nodes_, Base::present_, Base::problem_, Base::W, Base::weights_;
  using typename Base::I;
  using typename Base::V;

 public:
  PooledMessages(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
                 EdgeGates<A>& gates, Arena<A>& arena, int64_t slots, bool backward)
      : Base(problem, weights, block, gates, arena, slots, backward) {
    if (!present_) return;
    alpha_ = arena.take(slots + 1);
    hidden_sum_ = arena.take(h_);
    row_sum_ = arena.take(h_);
    if (!backward) return;
    grad_pooled_ = arena.take(d_);
    grad_sum_ = arena.take(h_);
    mask_sum_ = arena.take(h_);
  }

  // ---- Forward ----

  void begin_forward() {
    Base::load();
    begin_sums();
  }

  void begin_row_forward(int64_t i) {
    if (present_) block_.copy_to_extra(nodes_, d_, i), block_.copy_to_extra(alpha_, 1, i);
  }

  template <int C, bool Diagonal>
  ALWAYS_INLINE void forward() {
    if (!present_ || !gates_.template any_open<C>()) return;
    Base::template multiply_ends<C>();
    const bool l2 = problem_.l2 != nullptr;
    V weight[C];
    for (int c = 0; c < C; ++c) {
      weight[c] = gates_.gate[c] * share<Diagonal>(c);
      weight_sum_ += weight[c];
    }
    V* sums = row_sum_;
    Base::template hidden_layer<C>([&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        V sum = sums[h0 + m];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum += weight[c] * relu(y[m][c]);
        sums[h0 + m] = sum;
      }
      if (l2) Base::template store_relu<C>(h0, y);
    });
    if (l2) Base::template add_l2<C>();
  }

  // A row's sum is added to the graph's: adding every pair of a large graph to one sum would lose digits.
  void end_row_forward(int64_t) { add_row(); }

  void end_forward() {
    if (problem_.l2) block_.store_graph(problem_.l2, Base::l2_.sum);
    if (!problem_.pooled) return;
    add_row();
    const A* bias = weights_.out_bias;
    const int64_t d = problem_.message.out;
    multiply<A, 1>(
        weights_.out, nullptr, d_, problem_.message.hidden,
        [&](int64_t h, int) LAMBDA_INLINE { return hidden_sum_[h]; },
        [&](int64_t k0, V(&y)[kRows][1]) LAMBDA_INLINE {
          for (int m = 0; m < kRows && k0 + m < d; ++m)
            block_.store_graph(problem_.pooled, y[m][0] + bias[k0 + m] * weight_sum_, d, k0 + m);
        });
  }

  // ---- Backward ----

  void begin_backward() {
    Base::begin_backward();
    if (!present_) return;
    begin_sums();
    clear(mask_sum_, h_);
    clear(grad_pooled_, d_);
    const int64_t d = problem_.message.out;
    grad_bias_ = V{};
    if (problem_.grad_pooled)
      for (int64_t k = 0; k < d; ++k) {
        grad_pooled_[k] = block_.load_graph(problem_.grad_pooled, d, k);
        grad_bias_ += weights_.out_bias[k] * grad_pooled_[k];
      }
    multiply<A, 1>(
        weights_.out_transposed, nullptr, h_, d,
        [&](int64_t k, int) LAMBDA_INLINE { return grad_pooled_[k]; },
        [&](int64_t h0, V(&y)[kRows][1]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m) grad_sum_[h0 + m] = y[m][0];
        });
  }

  void begin_row_backward(int64_t i) { begin_row_forward(i); }

  template <int C, bool Diagonal>
  ALWAYS_INLINE void backward() {
    if (!present_ || !gates_.template any_open<C>()) return;
    Base::template multiply_ends<C>();
    V *grad_hidden = grad_hidden_, *sums = row_sum_, *mask_sums = mask_sum_;
    const V* grad_sum = grad_sum_;
    const bool l2 = problem_.grad_l2 != nullptr;
    V part[C], weight[C], dot[C];
    for (int c = 0; c < C; ++c) {
      part[c] = share<Diagonal>(c);
      weight[c] = gates_.gate[c] * part[c];
      weight_sum_ += weight[c];
      dot[c] = grad_bias_;
    }
    Base::template hidden_layer<C>([&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const int64_t h = h0 + m;
        const V grad = grad_sum[h];
        V sum = sums[h], mask_sum = mask_sums[h];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const I on = y[m][c] > 0;
          const V masked = on ? grad : V{};
          dot[c] += masked * y[m][c];
          sum += weight[c] * (on ? y[m][c] : V{});
          mask_sum += on ? weight[c] : V{};
          grad_hidden[h * C + c] = masked;
        }
        sums[h] = sum;
        mask_sums[h] = mask_sum;
      }
      if (l2) Base::template store_relu<C>(h0, y);
    });
    for (int c = 0; c < C; ++c) gates_.grad_gate[c] = part[c] * dot[c];
    if (!l2) {
      Base::template product_backward<C>(weight);
      return;
    }
    for (int64_t h = 0; h < h_; ++h)
      for (int c = 0; c < C; ++c) grad_hidden[h * C + c] *= weight[c];
    Base::template l2_backward<C>();
    Base::template product_backward<C>(nullptr);
  }

  void end_row_backward(int64_t i) {
    add_row();
    if (present_) block_.flush_extra(grad_nodes_, d_, i);
  }

  void end_backward() {
    if (!present_) return;
    add_row();
    accumulate_outer<A, 1>(
        grad_message_.out_weight, d_, h_, [&](int64_t k, int) LAMBDA_INLINE { return grad_pooled_[k]; },
        [&](int64_t h, int) LAMBDA_INLINE { return hidden_sum_[h]; });
    for (int64_t k = 0; k < d_; ++k) grad_message_.out_bias[k] += grad_pooled_[k] * weight_sum_;
    for (int64_t h = 0; h < h_; ++h) grad_message_.hidden_bias[h] += grad_sum_[h] * mask_sum_[h];
    Base::store_grad_nodes();
  }

 private:
  void begin_sums() {
    if (!present_) return;
    clear(hidden_sum_, h_);
    clear(row_sum_, h_);
    weight_sum_ = V{};
    for (int64_t slot = 0; slot < block_.slots; ++slot) {
      V alpha = gates_.slot_scale(slot, true);
      for (int l = 0; l < W; ++l) {
        const int64_t r = block_.row(slot, l);
        if (r >= 0) alpha[l] *= (problem_.values ? problem_.values[r] : A(1)) / A(block_.lane_nodes[l]);
      }
      alpha_[slot] = alpha;
    }
    alpha_[block_.extra] = V{};
  }

  void add_row() {
    if (!present_) return;
    for (int64_t h = 0; h < h_; ++h) hidden_sum_[h] += row_sum_[h];
    clear(row_sum_, h_);
  }

  // w_ij / g_ij of pair c.
  template <bool Diagonal>
  ALWAYS_INLINE V share(int c) const {
    return alpha_[block_.left[c]] + block_.template right_part<Diagonal>(alpha_[block_.right_sum[c]]);
  }

  V* alpha_ = nullptr;                              // of a slot
  V *hidden_sum_ = nullptr, *row_sum_ = nullptr;    // R of the rows before, and of this one
  V *grad_pooled_ = nullptr, *grad_sum_ = nullptr;  // D and W2^T D
  V* mask_sum_ = nullptr;                           // sum of w_ij over the pairs whose unit h is on
  V weight_sum_ = {}, grad_bias_ = {};              // r and b2 . D
};
