// The message network of a panel of pairs: what NodeMessages and PooledMessages share.
// Included inside an anonymous namespace by each instruction-set file.

// kWaitingChunks: of how many chunks dL/d(hidden) is kept until it is summed.
template <class A, int kWaitingChunks>
class MessageNetwork {
 protected:
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int kChunk = S::kChunk, kPanel = S::kPanel;
  static constexpr int kWaiting = kWaitingChunks * kChunk;  // pairs

 public:
  void begin_gradients() {
    if (present_) grad_message_.clear_all();
  }

  void add_gradients(A* gradients) {
    if (present_) grad_message_.add_to(gradients, problem_.message);
  }

 protected:
  MessageNetwork(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
                 EdgeGates<A>& gates, const Kept<A>& kept, Arena<A>& arena, int64_t slots, bool backward)
      : problem_(problem), weights_(weights.message), block_(block), gates_(gates), kept_(kept) {
    present_ = problem.nodes && (!backward || problem.grad_out || problem.grad_pooled || problem.grad_l2);
    if (!present_) return;
    d_ = padded(problem.message.in), h_ = padded(problem.message.hidden);
    nodes_ = arena.take(slots * d_);
    product_ = arena.take(kPanel * d_);
    relu_ = arena.take(kChunk * h_);
    if (!backward) return;
    grad_nodes_ = arena.take(slots * d_);
    grad_hidden_ = arena.take(kWaiting * h_);
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
    clear(grad_nodes_, block_.all * d_);
    grad_l2_ = problem_.grad_l2 ? block_.load_graph(problem_.grad_l2) : V{};
  }

  // Whether the backward takes what the forward kept: the penalty's gradient needs relu(...) as a whole.
  bool reads_kept() const { return kept_ && !problem_.grad_l2; }

  // x_i o x_j of the open pairs first .. first + C - 1, to product_ from vector `at` on. A closed lane has no
  // message: zero there, so that nothing can overflow.
  template <int C>
  ALWAYS_INLINE void multiply_ends(int64_t first, int64_t at) {
    const int64_t d = d_;
    for (int c = 0; c < C; ++c) {
      const int pair = gates_.open.pair[first + c];
      const V *x = nodes_ + block_.left[pair] * d, *y = nodes_ + block_.right[pair] * d;
      V* product = product_ + (at + c) * d;
      const I counts = gates_.gate[pair] != 0;
      for (int64_t k = 0; k < d; ++k) product[k] = counts ? x[k] * y[k] : V{};
    }
  }

  // Calls use(h0, y) with the hidden layer's values before the relu, kRows units at a time.
  template <int C, class Use>
  ALWAYS_INLINE void hidden_layer(int64_t at, Use use) {
    const V* product = product_ + at * d_;
    const int64_t d = d_;
    multiply<A, C>(
        weights_.hidden, weights_.hidden_bias, h_, problem_.message.in,
        [&](int64_t k, int c) LAMBDA_INLINE { return product[c * d + k]; }, use);
  }

  template <int C>
  ALWAYS_INLINE void store_on(PackedBits<A>* on, int64_t h0, const V (&y)[kRows][C]) {
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      Bits<A> bits[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) bits[c] = above_zero(y[m][c]);
      store_bits<C>(on + unit_index<A>(h0 + m, 0), bits);
    }
  }

  // For the penalty, which reads them as a whole.
  template <int C>
  ALWAYS_INLINE void store_relu(int64_t h0, const V (&y)[kRows][C]) {
    for (int m = 0; m < kRows; ++m)
      for (int c = 0; c < C; ++c) relu_[(h0 + m) * C + c] = relu(y[m][c]);
  }

  // |z|^2 of a chunk's open pairs, from relu_.
  template <int C>
  ALWAYS_INLINE void add_l2(int64_t first) {
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
    for (int c = 0; c < C; ++c) l2_.add(gates_.gate[gates_.open.pair[first + c]] > 0 ? square[c] : V{});
  }

  // Its gradient, through the second layer; adds to grad_hidden.
  template <int C>
  ALWAYS_INLINE void l2_backward(int64_t first, V* grad_hidden) {
    V *relus = relu_, *grad_z = grad_z_;
    V factor[C];
    for (int c = 0; c < C; ++c) factor[c] = gates_.gate[gates_.open.pair[first + c]] > 0 ? 2 * grad_l2_ : V{};
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
    accumulate_outer<A>(
        grad_message_.out_weight, nullptr, d_, h_, C,
        [&](int64_t k, int64_t c) LAMBDA_INLINE { return grad_z[k * C + c]; },
        [&](int64_t h, int64_t c) LAMBDA_INLINE { return relus[h * C + c]; });
    multiply<A, C>(
        weights_.out_transposed, nullptr, h_, problem_.message.out,
        [&](int64_t k, int c) LAMBDA_INLINE { return grad_z[k * C + c]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m)
            for (int c = 0; c < C; ++c) {
              const V x = relus[(h0 + m) * C + c] > 0 ? y[m][c] : V{};
              grad_hidden[(h0 + m) * kWaiting + c] += x;
            }
        });
  }

  // dL/dW1 and dL/db1 of `count` pairs, from product_ and grad_hidden_.
  ALWAYS_INLINE void add_weight_gradients(int64_t at, int64_t count) {
    const V *product = product_ + at * d_, *grad_hidden = grad_hidden_;
    const int64_t d = d_;
    accumulate_outer<A>(
        grad_message_.hidden_weight, grad_message_.hidden_bias, h_, d, count,
        [&](int64_t h, int64_t c) LAMBDA_INLINE { return grad_hidden[h * kWaiting + c]; },
        [&](int64_t k, int64_t c) LAMBDA_INLINE { return product[c * d + k]; });
  }

  // Components k0 and on of dp . p, with p in product_ from vector `at` on.
  template <int C>
  ALWAYS_INLINE void add_dot(V* dot, const V (&dp)[kRows][C], int64_t at, int64_t k0) const {
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c)  // where no unit is on, p may be infinite
        dot[c] += dp[m][c] != 0 ? dp[m][c] * product_[(at + c) * d_ + k0 + m] : V{};
  }

  // dL/du of a chunk. With `dot`, adds dL/dp . p of its pairs to it.
  template <int C>
  ALWAYS_INLINE void add_node_gradients(int64_t first, int64_t at, const V* grad_hidden, V* dot) {
    const int64_t d = d_;
    block_.template add_to_ends<C>(
        gates_.open.pair + first, nullptr, nodes_, grad_nodes_, d, [&](auto use) LAMBDA_INLINE {
          multiply<A, C>(
              weights_.hidden_transposed, nullptr, d, problem_.message.hidden,
              [&](int64_t h, int c) LAMBDA_INLINE { return grad_hidden[h * kWaiting + c]; },
              [&](int64_t k0, V(&dp)[kRows][C]) LAMBDA_INLINE {
                if (dot) add_dot<C>(dot, dp, at, k0);
                use(k0, dp);
              });
        });
  }

  void store_grad_nodes() {
    block_.store_rows(problem_.grad_nodes, problem_.values, problem_.message.in, grad_nodes_, d_);
  }

  const CompleteGraph<A>& problem_;
  const PackedPerceptron<A>& weights_;
  GraphBlock<A>& block_;
  EdgeGates<A>& gates_;
  const Kept<A>& kept_;
  bool present_;
  int64_t d_ = 0, h_ = 0;  // padded sizes

  V *nodes_ = nullptr, *grad_nodes_ = nullptr;  // a vector for each slot and component
  V* product_ = nullptr;                        // for each pair and component, of a panel or of what waits
  V *relu_ = nullptr, *grad_z_ = nullptr;       // for each component and pair of a chunk
  V* grad_hidden_ = nullptr;                    // dL/d(hidden): kWaiting vectors for each hidden unit
  CompensatedSum<V> l2_;
  V grad_l2_ = {};
  GradientLanes<A> grad_message_;
};
