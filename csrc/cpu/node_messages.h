// v'_i = scale_i sum_j g_ij z_ij for every node. The second layer leaves the sum over pairs.
// Included inside an anonymous namespace by each instruction-set file.

template <class A>
class NodeMessages : public MessageNetwork<A, 3> {
  using Base = MessageNetwork<A, 3>;
  using Base::block_, Base::d_, Base::gates_, Base::grad_hidden_, Base::grad_message_, Base::grad_nodes_,
      Base::h_, Base::kept_, Base::kWaiting, Base::nodes_, Base::present_, Base::problem_, Base::weights_;
  using Base::reads_kept;
  using typename Base::V;

 public:
  NodeMessages(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
               EdgeGates<A>& gates, const Kept<A>& kept, Arena<A>& arena, int64_t slots, bool backward)
      : Base(problem, weights, block, gates, kept, arena, slots, backward) {
    if (!present_) return;
    hidden_sum_ = arena.take(slots * h_);
    gate_sum_ = arena.take(slots);
    if (!backward) return;
    grad_out_ = arena.take(slots * d_);
    grad_sum_ = arena.take(slots * h_);
    grad_bias_ = arena.take(slots);
  }

  // hidden_sum_ and gate_sum_ of the nodes.
  static int64_t kept_sums(const CompleteGraph<A>& problem, const Block& block) {
    return problem.nodes ? GraphBlock<A>::count_slots(block) * (padded(problem.message.hidden) + 1) : 0;
  }

  // ---- Forward ----

  void begin_forward() {
    Base::load();
    clear_sums();
  }

  void begin_band_forward() {
    if (present_) block_.copy_to_extra(nodes_, d_);
  }

  void forward() {
    if (!present_) return;
    kept_ ? forward_panel<true>() : forward_panel<false>();
  }

  void end_band_forward() {
    if (present_) block_.flush_extra(hidden_sum_, h_), block_.flush_extra(gate_sum_, 1);
  }

  // v'_i = scale_i (W2 sum_j g_ij relu(...) + b2 sum_j g_ij), written over the slots of the nodes.
  void end_forward() {
    if (kept_) {
      copy(kept_.sums(), hidden_sum_, block_.slots * h_);
      copy(kept_.sums() + block_.slots * h_, gate_sum_, block_.slots);
    }
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

  void begin_gradients() {
    Base::begin_gradients();
    waiting_ = 0;
  }

  void add_gradients(A* gradients) {
    add_waiting();
    Base::add_gradients(gradients);
  }

  void begin_backward() {
    Base::begin_backward();
    if (!present_) return;
    if (!reads_kept()) clear_sums();
    load_grad_out();
  }

  void begin_band_backward() {
    if (!present_) return;
    block_.copy_to_extra(nodes_, d_);
    block_.copy_to_extra(grad_sum_, h_);
    block_.copy_to_extra(grad_bias_, 1);
  }

  // Fills the gates' grad_gate.
  void backward() {
    if (!present_) return;
    if (reads_kept())
      backward_panel<true>();
    else
      backward_panel<false>();
  }

  void end_band_backward() {
    if (!present_) return;
    if (!reads_kept()) block_.flush_extra(hidden_sum_, h_), block_.flush_extra(gate_sum_, 1);
    block_.flush_extra(grad_nodes_, d_);
  }

  // dW2 = sum_i D_i (sum_j g_ij relu_ij)^T and db2 = sum_i D_i sum_j g_ij: once a node, not once a pair.
  void end_backward() {
    if (!present_) return;
    const V* hidden_sum = reads_kept() ? kept_.sums() : hidden_sum_;
    const V* gate_sum = reads_kept() ? hidden_sum + block_.slots * h_ : gate_sum_;
    accumulate_outer<A>(
        grad_message_.out_weight, nullptr, d_, h_, block_.slots,
        [&](int64_t k, int64_t slot) LAMBDA_INLINE { return grad_out_[slot * d_ + k]; },
        [&](int64_t h, int64_t slot) LAMBDA_INLINE { return hidden_sum[slot * h_ + h]; });
    for (int64_t slot = 0; slot < block_.slots; ++slot)
      for (int64_t k = 0; k < d_; ++k) grad_message_.out_bias[k] += grad_out_[slot * d_ + k] * gate_sum[slot];
    Base::store_grad_nodes();
  }

 private:
  // One function each: together they are slower, and more than GCC optimizes in reasonable time.
  template <bool Keeps>
  __attribute__((noinline)) void forward_panel() {
    PackedBits<A>* on = Keeps ? kept_.units_on() : nullptr;
    for_chunks<A>(gates_.open.count, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      block_.template by_runs<C>(gates_.open.pair + first, [&](auto run) LAMBDA_INLINE {
        forward_chunk<C, decltype(run)::value, Keeps>(first, on);
      });
    });
  }

  template <bool Reads>
  __attribute__((noinline)) void backward_panel() {
    for_chunks<A>(gates_.open.count, [&](auto size, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(size)::value;
      if (waiting_ + C > kWaiting) add_waiting();
      // Not by runs as in the forward: more kernels of this size are slower.
      if (C > 1 && same_left<C>(first))
        Reads ? kept_chunk<C, true>(first) : backward_chunk<C, true>(first);
      else
        Reads ? kept_chunk<C, false>(first) : backward_chunk<C, false>(first);
      waiting_ += C;
    });
  }

  // The weight gradients of the pairs that wait.
  void add_waiting() {
    if (waiting_) Base::add_weight_gradients(0, waiting_);
    waiting_ = 0;
  }

  void clear_sums() {
    if (!present_) return;
    clear(hidden_sum_, block_.all * h_);
    clear(gate_sum_, block_.all);
  }

  // Whether the pairs of a chunk share their left end, whose sums then stay in registers.
  template <int C>
  ALWAYS_INLINE bool same_left(int64_t first) const {
    const int* pair = gates_.open.pair + first;
    return block_.left[pair[0]] == block_.left[pair[C - 1]];  // pairs are in order
  }

  template <int C, int R, bool Keeps>
  ALWAYS_INLINE void forward_chunk(int64_t first, PackedBits<A>* on) {
    Base::template multiply_ends<C>(first, 0);
    const int64_t H = h_;
    const bool l2 = problem_.l2 != nullptr;
    V gate[C];
    V *left[C], *right[C];
    for (int c = 0; c < C; ++c) {
      const int pair = gates_.open.pair[first + c];
      const int64_t i = block_.left[pair], j = block_.right_sum[pair];
      gate[c] = gates_.gate[pair];
      left[c] = hidden_sum_ + i * H, right[c] = hidden_sum_ + j * H;
      gate_sum_[i] += gate[c];
      gate_sum_[j] += gate[c];
    }
    Base::template hidden_layer<C>(0, [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        V run_sum[2] = {left[0][h0 + m]};
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const V r = relu(y[m][c]);
          // Not before: the second left end may be a right end of the first run.
          if (R && c == R) run_sum[1] = left[C - 1][h0 + m];
          if (R)
            run_sum[c >= R] += gate[c] * r;
          else
            left[c][h0 + m] += gate[c] * r;
          right[c][h0 + m] += gate[c] * r;
        }
        if (R) left[0][h0 + m] = run_sum[0];
        if (R && R < C) left[C - 1][h0 + m] = run_sum[1];
      }
      if (Keeps) Base::template store_on<C>(on + first, h0, y);
      if (l2) Base::template store_relu<C>(h0, y);
    });
    if (l2) Base::template add_l2<C>(first);
  }

  template <int C, bool SameLeft>
  ALWAYS_INLINE void backward_chunk(int64_t first) {
    V* grad_hidden = grad_hidden_ + waiting_;
    Base::template multiply_ends<C>(first, waiting_);
    const int64_t H = h_;
    const bool l2 = problem_.grad_l2 != nullptr;
    V gate[C], grad_gate[C];
    V *left_sum[C], *right_sum[C];
    const V *left_grad[C], *right_grad[C];
    for (int c = 0; c < C; ++c) {
      const int pair = gates_.open.pair[first + c];
      const int64_t i = block_.left[pair], j = block_.right_sum[pair];
      gate[c] = gates_.gate[pair];
      left_sum[c] = hidden_sum_ + i * H, right_sum[c] = hidden_sum_ + j * H;
      left_grad[c] = grad_sum_ + i * H, right_grad[c] = grad_sum_ + j * H;
      grad_gate[c] = grad_bias_[i] + grad_bias_[j];
      gate_sum_[i] += gate[c];
      gate_sum_[j] += gate[c];
    }
    Base::template hidden_layer<C>(waiting_, [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const int64_t h = h0 + m;
        const V shared_grad = left_grad[0][h];
        V shared_sum = left_sum[0][h];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) {
          const V r = relu(y[m][c]);
          const V of_left = SameLeft ? shared_grad : left_grad[c][h];
          const V both = of_left + right_grad[c][h];
          grad_gate[c] += both * r;
          if (SameLeft)
            shared_sum += gate[c] * r;
          else
            left_sum[c][h] += gate[c] * r;
          right_sum[c][h] += gate[c] * r;
          grad_hidden[h * kWaiting + c] = select(above_zero(y[m][c]), gate[c] * both);
        }
        if (SameLeft) left_sum[0][h] = shared_sum;
      }
      if (l2) Base::template store_relu<C>(h0, y);
    });
    for (int c = 0; c < C; ++c) gates_.grad_gate[gates_.open.pair[first + c]] = grad_gate[c];
    if (l2) Base::template l2_backward<C>(first, grad_hidden);
    Base::template add_node_gradients<C>(first, waiting_, grad_hidden, nullptr);
  }

  // The same from the units that are on, without relu(...) and the sums: with both_h = (W2^T (D_i + D_j))_h,
  //   both . relu(...) = p . W1^T m + b1 . m  with  m_h = [unit h is on] both_h,
  // and dL/dp is W1^T m times the gate.
  template <int C, bool SameLeft>
  ALWAYS_INLINE void kept_chunk(int64_t first) {
    const PackedBits<A>* on = kept_.units_on();
    V* grad_hidden = grad_hidden_ + waiting_;
    Base::template multiply_ends<C>(first, waiting_);
    const int64_t H = h_;
    V gate[C], dot[C];
    const V *left_grad[C], *right_grad[C];
    for (int c = 0; c < C; ++c) {
      const int pair = gates_.open.pair[first + c];
      const int64_t i = block_.left[pair], j = block_.right_sum[pair];
      gate[c] = gates_.gate[pair];
      left_grad[c] = grad_sum_ + i * H, right_grad[c] = grad_sum_ + j * H;
      gates_.grad_gate[pair] = grad_bias_[i] + grad_bias_[j];
      dot[c] = V{};
    }
    const A* bias = weights_.hidden_bias;
    for (int64_t h = 0; h < H; ++h) {
      const V shared_grad = left_grad[0][h], b = splat(bias[h]);
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const V of_left = SameLeft ? shared_grad : left_grad[c][h];
        const V both = of_left + right_grad[c][h];
        const Bits<A> is_on = unpack_bits<A>(on + unit_index<A>(h, first + c));
        const V m = select(is_on, gate[c] * both);
        dot[c] = fma_where(is_on, dot[c], m, b);  // a bias of -inf turns a unit off
        grad_hidden[h * kWaiting + c] = m;
      }
    }
    Base::template add_node_gradients<C>(first, waiting_, grad_hidden, dot);
    for (int c = 0; c < C; ++c) gates_.add_grad_times_gate(gates_.open.pair[first + c], dot[c]);
  }

  // D_i = scale_i dL/dv'_i, and what every pair of node i needs of it: W2^T D_i and b2 . D_i.
  void load_grad_out() {
    const int64_t slots = block_.slots, all = block_.all;
    clear(grad_sum_ + slots * h_, (all - slots) * h_);
    clear(grad_bias_ + slots, all - slots);
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

  // Pairs, also of blocks before, whose product_ and grad_hidden_ wait: weight gradients are added up many at
  // a time.
  int64_t waiting_ = 0;
  // Of a node: sum_j g_ij relu(...) and sum_j g_ij; D_i, W2^T D_i and b2 . D_i.
  V *hidden_sum_ = nullptr, *gate_sum_ = nullptr;
  V *grad_out_ = nullptr, *grad_sum_ = nullptr, *grad_bias_ = nullptr;
};
