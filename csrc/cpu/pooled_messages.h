// The sum over a graph's nodes of x_i v'_i / n. It is linear in the messages, so a pair adds to it once:
//   sum_i x_i v'_i / n = W2 R + b2 r  with  R = sum_(i <= j) w_ij relu(...),  r = sum_(i <= j) w_ij,
//   w_ij = g_ij (alpha_i + [i != j] alpha_j),  alpha_i = x_i scale_i / n.
// No node has a sum of its own, and with D the gradient of the result, that of every relu(...) is w_ij W2^T
// D: a panel's weight gradient needs only w_ij and which units are on. Included inside an anonymous namespace
// by each instruction-set file.

template <class A>
class PooledMessages : public MessageNetwork<A, 1> {
  using Base = MessageNetwork<A, 1>;
  using Base::block_, Base::d_, Base::gates_, Base::grad_hidden_, Base::grad_message_, Base::grad_nodes_,
      Base::h_, Base::kept_, Base::kPanel, Base::nodes_, Base::present_, Base::problem_, Base::product_,
      Base::weights_;
  using Base::reads_kept;
  using typename Base::V;

 public:
  PooledMessages(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
                 EdgeGates<A>& gates, const Kept<A>& kept, Arena<A>& arena, int64_t slots, bool backward)
      : Base(problem, weights, block, gates, kept, arena, slots, backward) {
    if (!present_) return;
    alpha_ = arena.take(slots);
    hidden_sum_ = arena.take(h_);
    hidden_total_ = reinterpret_cast<CompensatedSum<V>*>(arena.take(2 * h_));
    if (!backward) return;
    grad_pooled_ = arena.take(d_);
    grad_sum_ = arena.take(h_);
    bias_grad_ = arena.take(h_);
    weight_ = arena.take(kPanel);
    unit_on_ = take_bits(arena, h_);
  }

  // R and r.
  static int64_t kept_sums(const CompleteGraph<A>& problem, const Block&) {
    return problem.nodes ? padded(problem.message.hidden) + 1 : 0;
  }

  // ---- Forward ----

  void begin_forward() {
    Base::load();
    begin_sums();
  }

  void begin_band_forward() {
    if (present_) block_.copy_to_extra(nodes_, d_), block_.copy_to_extra(alpha_, 1);
  }

  void forward() {
    if (!present_) return;
    if (kept_)
      keep_chunks(kept_.units_on());
    else
      for_chunks<A>(gates_.open.count, [&](auto size, int64_t first) LAMBDA_INLINE {
        forward_chunk<decltype(size)::value, false>(first, nullptr);
      });
    if (block_.count == kPanel) add_sums();  // else it is the last of its band or block
  }

  void end_band_forward() { add_sums(); }

  void end_forward() {
    if (problem_.l2) block_.store_graph(problem_.l2, Base::l2_.sum);
    if (!problem_.pooled) return;
    add_sums();
    if (kept_) {
      for (int64_t h = 0; h < h_; ++h) kept_.sums()[h] = hidden_total_[h].sum;
      kept_.sums()[h_] = weight_total_.sum;
    }
    const A* bias = weights_.out_bias;
    V* pooled = nodes_;  // no longer needed
    multiply<A, 1>(
        weights_.out, nullptr, d_, problem_.message.hidden,
        [&](int64_t h, int) LAMBDA_INLINE { return hidden_total_[h].sum; },
        [&](int64_t k0, V(&y)[kRows][1]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m) pooled[k0 + m] = y[m][0] + bias[k0 + m] * weight_total_.sum;
        });
    block_.store_graph_rows(problem_.pooled, problem_.message.out, pooled, d_);
  }

  // ---- Backward ----

  void begin_backward() {
    Base::begin_backward();
    if (!present_) return;
    begin_sums();
    const int64_t d = problem_.message.out;
    if (problem_.grad_pooled)
      block_.load_graph_rows(problem_.grad_pooled, d, grad_pooled_, d_);
    else
      clear(grad_pooled_, d_);
    grad_bias_ = V{};
    for (int64_t k = 0; k < d; ++k) grad_bias_ += weights_.out_bias[k] * grad_pooled_[k];
    multiply<A, 1>(
        weights_.out_transposed, nullptr, h_, d,
        [&](int64_t k, int) LAMBDA_INLINE { return grad_pooled_[k]; },
        [&](int64_t h0, V(&y)[kRows][1]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m) grad_sum_[h0 + m] = y[m][0];
        });
    if (!reads_kept()) return;
    for (int64_t h = 0; h < h_; ++h) {
      hidden_total_[h].sum = kept_.sums()[h];
      bias_grad_[h] = grad_sum_[h] * weights_.hidden_bias[h];
    }
    weight_total_.sum = kept_.sums()[h_];
  }

  void begin_band_backward() { begin_band_forward(); }

  // Fills the gates' grad_gate.
  void backward() {
    if (!present_) return;
    const V *product = product_, *grad_sum = grad_sum_, *weight = weight_;
    const bool reads = reads_kept();
    const Bits<A>* on = unit_on_;
    if (reads) on = unpack_units<A>(kept_.units_on(), unit_on_, h_, gates_.open.count);
    const int64_t d = d_;
    for_chunks<A>(gates_.open.count, [&](auto size, int64_t first) LAMBDA_INLINE {
      if (reads)
        kept_chunk<decltype(size)::value>(first, on);
      else
        backward_chunk<decltype(size)::value>(first);
    });
    if (block_.count == kPanel) add_sums();
    if (problem_.grad_l2) return;  // each chunk did the rest
    accumulate_where<A>(
        grad_message_.hidden_weight, grad_message_.hidden_bias, h_, d, gates_.open.count,
        [&](int64_t h, int64_t c) LAMBDA_INLINE { return load_bits(on + unit_index<A>(h, c)); },
        [&](int64_t h) LAMBDA_INLINE { return grad_sum[h]; },
        [&](int64_t k, int64_t c) LAMBDA_INLINE { return product[c * d + k]; },
        [&](int64_t c) LAMBDA_INLINE { return weight[c]; });
    for_chunks<A>(gates_.open.count, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      V dot[C] = {};
      block_.template add_to_ends<C>(
          gates_.open.pair + first, weight + first, nodes_, grad_nodes_, d, [&](auto use) LAMBDA_INLINE {
            multiply_where<A, C>(
                weights_.hidden_transposed, d, problem_.message.hidden,
                [&](int64_t h, int c) LAMBDA_INLINE { return load_bits(on + unit_index<A>(h, first + c)); },
                [&](int64_t h) LAMBDA_INLINE { return grad_sum[h]; },
                [&](int64_t k0, V(&dp)[kRows][C]) LAMBDA_INLINE {
                  if (reads) Base::template add_dot<C>(dot, dp, first, k0);
                  use(k0, dp);
                });
          });
      for (int c = 0; reads && c < C; ++c) gates_.add_grad_times_gate(gates_.open.pair[first + c], dot[c]);
    });
  }

  void end_band_backward() {
    add_sums();
    if (present_) block_.flush_extra(grad_nodes_, d_);
  }

  void end_backward() {
    if (!present_) return;
    add_sums();
    accumulate_outer<A>(
        grad_message_.out_weight, nullptr, d_, h_, 1,
        [&](int64_t k, int64_t) LAMBDA_INLINE { return grad_pooled_[k]; },
        [&](int64_t h, int64_t) LAMBDA_INLINE { return hidden_total_[h].sum; });
    for (int64_t k = 0; k < d_; ++k) grad_message_.out_bias[k] += grad_pooled_[k] * weight_total_.sum;
    Base::store_grad_nodes();
  }

 private:
  void begin_sums() {
    if (!present_) return;
    clear(hidden_sum_, h_);
    for (int64_t h = 0; h < h_; ++h) hidden_total_[h].clear();
    weight_sum_ = V{};
    weight_total_.clear();
    gates_.find_alpha(alpha_);
  }

  // To the graph's totals: adding every pair of a large graph to one sum would lose digits.
  void add_sums() {
    if (!present_) return;
    for (int64_t h = 0; h < h_; ++h) hidden_total_[h].add(hidden_sum_[h]);
    clear(hidden_sum_, h_);
    weight_total_.add(weight_sum_);
    weight_sum_ = V{};
  }

  // w_ij / g_ij of a pair.
  ALWAYS_INLINE V share(int pair) const { return alpha_[block_.left[pair]] + alpha_[block_.right_sum[pair]]; }

  // A function of its own: inlined, it makes the forward without it slower.
  __attribute__((noinline)) void keep_chunks(PackedBits<A>* on) {
    for_chunks<A>(gates_.open.count, [&](auto size, int64_t first) LAMBDA_INLINE {
      forward_chunk<decltype(size)::value, true>(first, on);
    });
  }

  template <int C, bool Keeps>
  ALWAYS_INLINE void forward_chunk(int64_t first, PackedBits<A>* on) {
    Base::template multiply_ends<C>(first, first);
    const bool l2 = problem_.l2 != nullptr;
    V weight[C];
    for (int c = 0; c < C; ++c) {
      const int pair = gates_.open.pair[first + c];
      weight[c] = gates_.gate[pair] * share(pair);
      weight_sum_ += weight[c];
    }
    V* sums = hidden_sum_;
    Base::template hidden_layer<C>(first, [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        V sum = sums[h0 + m];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum += weight[c] * relu(y[m][c]);
        sums[h0 + m] = sum;
      }
      if (Keeps) Base::template store_on<C>(on + first, h0, y);
      if (l2) Base::template store_relu<C>(h0, y);
    });
    if (l2) Base::template add_l2<C>(first);
  }

  // The gradients of the gates, and R. Without the penalty also what `backward` makes the rest of, for the
  // whole panel.
  template <int C>
  ALWAYS_INLINE void backward_chunk(int64_t first) {
    Base::template multiply_ends<C>(first, first);
    V* sums = hidden_sum_;
    const V* grad_sum = grad_sum_;
    Bits<A>* on = unit_on_;
    const bool l2 = problem_.grad_l2 != nullptr;
    V part[C], weight[C], dot[C];
    for (int c = 0; c < C; ++c) {
      const int pair = gates_.open.pair[first + c];
      part[c] = share(pair);
      weight[c] = gates_.gate[pair] * part[c];
      weight_sum_ += weight[c];
      dot[c] = grad_bias_;
    }
    Base::template hidden_layer<C>(first, [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const V grad = grad_sum[h0 + m];
        V sum = sums[h0 + m];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const Bits<A> bits = above_zero(y[m][c]);
          const V r = select(bits, y[m][c]);
          dot[c] += grad * r;
          sum += weight[c] * r;
          on[unit_index<A>(h0 + m, first + c)] = bits;
        }
        sums[h0 + m] = sum;
      }
      if (l2) Base::template store_relu<C>(h0, y);
    });
    for (int c = 0; c < C; ++c) gates_.grad_gate[gates_.open.pair[first + c]] = part[c] * dot[c];
    if (l2) {
      for (int64_t h = 0; h < h_; ++h)
        for (int c = 0; c < C; ++c)
          grad_hidden_[h * Base::kWaiting + c] =
              weight[c] * select(on[unit_index<A>(h, first + c)], grad_sum[h]);
      Base::template l2_backward<C>(first, grad_hidden_);
      Base::template add_node_gradients<C>(first, first, grad_hidden_, nullptr);
      Base::add_weight_gradients(first, C);
      return;
    }
    for (int c = 0; c < C; ++c) {
      weight_[first + c] = weight[c];
      for (int64_t k = 0; k < d_; ++k) product_[(first + c) * d_ + k] *= weight[c];
    }
  }

  // The same from the units that are on, but for what `backward` adds to the gradients of the gates: with
  // p = x_i o x_j,  D . W2 relu(...) = p . W1^T m + b1 . m,  m_h = [unit h is on] (W2^T D)_h.
  template <int C>
  ALWAYS_INLINE void kept_chunk(int64_t first, const Bits<A>* on) {
    Base::template multiply_ends<C>(first, first);
    const V* bias_grad = bias_grad_;
    V dot[C];
    for (int c = 0; c < C; ++c) dot[c] = grad_bias_;
    for (int64_t h = 0; h < h_; ++h)
      for (int c = 0; c < C; ++c)
        dot[c] = add_where(load_bits(on + unit_index<A>(h, first + c)), dot[c], bias_grad[h]);
    for (int c = 0; c < C; ++c) {
      const int pair = gates_.open.pair[first + c];
      const V part = share(pair);
      gates_.grad_gate[pair] = part * dot[c];
      weight_[first + c] = gates_.gate[pair] * part;
      for (int64_t k = 0; k < d_; ++k) product_[(first + c) * d_ + k] *= weight_[first + c];
    }
  }

  V* alpha_ = nullptr;                              // of a slot
  V *grad_pooled_ = nullptr, *grad_sum_ = nullptr;  // D and W2^T D
  V* bias_grad_ = nullptr;                          // b1 o W2^T D
  V* weight_ = nullptr;                             // w_ij of the panel's open pairs
  Bits<A>* unit_on_ = nullptr;                      // and which of their hidden units are on
  V grad_bias_ = {};                                // b2 . D
  // R and r: of the last pairs, and of all before.
  V* hidden_sum_ = nullptr;
  V weight_sum_ = {};
  CompensatedSum<V>* hidden_total_ = nullptr;
  CompensatedSum<V> weight_total_;
};
