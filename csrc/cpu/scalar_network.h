// A network of one output on the products of a panel's pairs, a_ij = W2 relu(W1 (x_i o x_j) + b1) + b2, and
// its gradients: of the hidden units they need only which are on. With the masked sums over all pairs
//   S[h][k] = sum of [unit h is on] da (x_i o x_j)_k,  S[h] likewise without the product,
//   dW1[h][k] = W2[h] S[h][k],  db1[h] = W2[h] S[h],  dW2[h] = sum_k W1[h][k] S[h][k] + b1[h] S[h],
//   d(x_i o x_j) = da (W2 o W1)^T [units that are on].
// Included inside an anonymous namespace by each instruction-set file.

// The lanes of a pair that count: all of them.
struct AllLanes {};
template <class V>
ALWAYS_INLINE V where(AllLanes, V v) {
  return v;
}
template <class I, class V>
ALWAYS_INLINE V where(I counts, V v) {
  return counts ? v : V{};
}

template <class A>
class ScalarNetwork {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int kPanel = S::kPanel;

 public:
  ScalarNetwork(const Perceptron<A>& network, const PackedPerceptron<A>& weights, GraphBlock<A>& block)
      : network_(network), weights_(weights), block_(block) {}

  void take(Arena<A>& arena, int64_t slots, bool backward) {
    size_ = padded(network_.in), hidden_ = padded(network_.hidden);
    nodes_ = arena.take(slots * size_);
    chunk_product_ = arena.take(S::kChunk * size_);
    if (!backward) return;
    product_ = arena.take(kPanel * size_);
    waiting_units_ = Units<A>::at(arena.take(Units<A>::vectors(hidden_)), hidden_);
    grad_nodes_ = arena.take(slots * size_);
    mask_sum_ = arena.take(hidden_ * size_);
    mask_bias_ = arena.take(hidden_);
  }

  void load(const A* rows, const int64_t* ids, const A* values) {
    block_.load_rows(rows, ids, values, network_.in, nodes_, size_);
  }

  void begin_band() { block_.copy_to_extra(nodes_, size_); }

  // a of pairs first to first + C - 1 of those that pair(c) tells, to out[first ...]; with Keep which units
  // are on, to `units`. Lanes that do not count have a product of zero: nothing can overflow.
  template <int C, bool Keep, class Pair, class Counts, class Bit>
  ALWAYS_INLINE void compute(int64_t first, Pair pair, Counts counts, const Units<A, Bit>& units, V* out) {
    V* product = chunk_product_;
    const int64_t size = size_;
    for (int c = 0; c < C; ++c)
      multiply_ends(pair(first + c), counts, product + c * size, [](V p) LAMBDA_INLINE { return p; });
    V sum[C];
    for (int c = 0; c < C; ++c) sum[c] = splat(weights_.out_bias[0]);
    const A* out_weight = weights_.out;
    Bit* on = units.on;
    [[maybe_unused]] typename S::U word[C] = {};
    multiply<A, C>(
        weights_.hidden, weights_.hidden_bias, hidden_, network_.in,
        [&](int64_t k, int c) LAMBDA_INLINE { return product[c * size + k]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m) {
            const V w = splat(out_weight[h0 + m]);
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
              sum[c] += w * relu(y[m][c]);
              if (!Keep) continue;
              const Bits<A> is_on[1] = {above_zero(y[m][c])};
              store_bits<1>(on + unit_index<A>(h0 + m, first + c), is_on);
#if defined(__AVX512F__)
              if constexpr (kLooksUp<A>)
                word[c] = or_where(is_on[0], m ? word[c] : word[c] >> 4, bit(28 + m));
#endif
            }
          }
          if constexpr (Keep && kLooksUp<A>) {
            const int64_t next = h0 + kRows, missing = next == hidden_ ? -next & 31 : 0;
            if (next % 32 && !missing) return;
            for (int c = 0; c < C; ++c) units.words[unit_index<A>(h0 / 32, first + c)] = word[c] >> missing;
          }
        });
    for (int c = 0; c < C; ++c) out[first + c] = sum[c];
  }

  // ---- Backward ----

  void begin_gradients() {
    clear(mask_sum_, hidden_ * size_);
    clear(mask_bias_, hidden_);
    grad_out_sum_.clear();
    waiting_ = 0;
  }

  void begin_backward() { clear(grad_nodes_, block_.all * size_); }

  // Where the units of the next pairs, `count` of them, may be kept without a copy until `backward`.
  Units<A> place_of_next(int64_t count) {
    if (waiting_ + count > kPanel) add_waiting(waiting_units_.on);
    return waiting_units_.from(waiting_);
  }

  // Of the next pairs, `count` of them, what compute() left packed: as `backward` takes it.
  Units<A> unpack(const Units<A, PackedBits<A>>& units, int64_t count) {
    return {unpack_units<A>(units.on, place_of_next(count).on, hidden_, count), units.words};
  }

  // The gradients of `count` pairs from those of their outputs. `units` are what compute() kept.
  template <class Pair, class Counts>
  ALWAYS_INLINE void backward(int64_t count, Pair pair, Counts counts, const Units<A>& units,
                              const V* grad_out) {
    Bits<A>* waiting_on = place_of_next(count).on;
    const Bits<A>* on = units.on;
    const bool alone = waiting_ == 0 && 2 * count > kPanel;  // no others will wait with these
    const int64_t size = size_;
    V* product = product_ + waiting_ * size;
    V sum = {};
    for (int64_t c = 0; c < count; ++c) {
      const V grad = grad_out[c];
      multiply_ends(pair(c), counts, product + c * size, [&](V p) LAMBDA_INLINE { return p * grad; });
      waiting_grad_[waiting_ + c] = grad;
      sum += grad;
    }
    grad_out_sum_.add(sum);
    if (on != waiting_on && !alone)
      for (int64_t h = 0; h < hidden_; ++h)
        copy_bits(waiting_on + unit_index<A>(h, 0), on + unit_index<A>(h, 0), count);
    for_chunks<A>(count, [&](auto of_chunk, int64_t first) LAMBDA_INLINE {
      constexpr int C = decltype(of_chunk)::value;
      int pairs[C];
      for (int c = 0; c < C; ++c) pairs[c] = pair(first + c);
      block_.template add_to_ends<C>(
          pairs, grad_out + first, nodes_, grad_nodes_, size, [&](auto use) LAMBDA_INLINE {
#if defined(__AVX512F__)
            if constexpr (kLooksUp<A>)
              return multiply_subsets<A, C>(
                  weights_.subsets, size, hidden_,
                  [&](int64_t w, int c) LAMBDA_INLINE { return units.words[unit_index<A>(w, first + c)]; },
                  use);
#endif
            multiply_where<A, C>(
                weights_.hidden_transposed, size, network_.hidden,
                [&](int64_t h, int c) LAMBDA_INLINE { return load_bits(on + unit_index<A>(h, first + c)); },
                [](int64_t) LAMBDA_INLINE { return splat(A(1)); }, use);
          });
    });
    waiting_ += count;
    if (waiting_ + count > kPanel) add_waiting(alone ? on : waiting_units_.on);  // still in the L1 cache
  }

  void end_band_backward() { block_.flush_extra(grad_nodes_, size_); }

  void store_grad_nodes(A* to, const A* values) {
    block_.store_rows(to, values, network_.in, grad_nodes_, size_);
  }

  // Adds the weights' gradients to `gradients`, laid out as GradientLayout(0, ...).
  void add_gradients(A* gradients) {
    add_waiting(waiting_units_.on);
    const Perceptron<A>& network = network_;
    const GradientLayout at = gradient_layout(0, network.in, network.hidden, 1);
    const A *sums = sum_all_lanes<A>(mask_sum_, hidden_ * size_),
            *biases = sum_all_lanes<A>(mask_bias_, hidden_);
    for (int64_t h = 0; h < network.hidden; ++h) {
      A out = network.hidden_bias[h] * biases[h];
      for (int64_t k = 0; k < network.in; ++k) {
        const A sum = sums[h * size_ + k];
        gradients[at.hidden_weight + h * network.in + k] += network.out_weight[h] * sum;
        out += network.hidden_weight[h * network.in + k] * sum;
      }
      gradients[at.hidden_bias + h] += network.out_weight[h] * biases[h];
      gradients[at.out_weight + h] += out;
    }
    gradients[at.out_bias] += sum_lanes(grad_out_sum_.sum, A(0));
  }

 private:
  static ALWAYS_INLINE typename S::U bit(int k) { return typename S::U{} + (1u << k); }

  template <class Counts, class Use>
  ALWAYS_INLINE void multiply_ends(int64_t pair, Counts counts, V* product, Use use) const {
    const V *x = nodes_ + block_.left[pair] * size_, *y = nodes_ + block_.right[pair] * size_;
    const auto lanes = counts(pair);
    for (int64_t k = 0; k < size_; ++k) product[k] = use(where(lanes, x[k] * y[k]));
  }

  // The masked sums of the pairs that wait, whose units are `on`.
  void add_waiting(const Bits<A>* on) {
    const V *product = product_, *grad_out = waiting_grad_;
    const int64_t size = size_;
    accumulate_where<A>(
        mask_sum_, mask_bias_, hidden_, size, waiting_,
        [&](int64_t h, int64_t c) LAMBDA_INLINE { return load_bits(on + unit_index<A>(h, c)); },
        [](int64_t) LAMBDA_INLINE { return splat(A(1)); },
        [&](int64_t k, int64_t c) LAMBDA_INLINE { return product[c * size + k]; },
        [&](int64_t c) LAMBDA_INLINE { return grad_out[c]; });
    waiting_ = 0;
  }

  const Perceptron<A>& network_;
  const PackedPerceptron<A>& weights_;
  GraphBlock<A>& block_;
  int64_t size_ = 0, hidden_ = 0;               // padded
  V *nodes_ = nullptr, *grad_nodes_ = nullptr;  // a vector for each slot and component
  V* chunk_product_ = nullptr;
  // Pairs, also of blocks before, that are still to be added to the masked sums, as many as make a panel: the
  // sums of more pairs go to memory no more often. Their products times da, their units, da.
  V* product_ = nullptr;
  Units<A> waiting_units_;
  V waiting_grad_[kPanel];
  int64_t waiting_ = 0;
  V *mask_sum_ = nullptr, *mask_bias_ = nullptr;
  CompensatedSum<V> grad_out_sum_;  // of a call: millions of pairs may go into it
};
