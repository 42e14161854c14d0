// The kernels over a given list of edges: lanes are edges, the nodes of a block are rows of memory.
// Included inside an anonymous namespace by each instruction-set file.

template <class A>
class EdgeListKernel {
  using V = typename Simd<A>::V;
  static constexpr int W = Simd<A>::W, kChunk = Simd<A>::kChunk;

 public:
  EdgeListKernel(const EdgeList<A>& problem, const PackedWeights<A>& weights, void* memory, int64_t nodes,
                 bool backward)
      : problem_(problem), weights_(weights.message) {
    Arena<A> arena{static_cast<V*>(memory)};
    d_ = padded(problem.message.in), h_ = padded(problem.message.hidden);
    product_ = arena.take(kChunk * d_);
    hidden_ = arena.take(kChunk * h_);
    scattered_ = arena.take(kChunk * h_);
    sums_ = arena.take(h_);
    tile_ = arena.take(d_);
    if (backward) grad_message_.take(arena, problem.message);
    const auto rows = [&](int64_t size) {
      return reinterpret_cast<A*>(arena.take((nodes * size + W - 1) / W));
    };
    hidden_sum_ = rows(h_);
    weight_sum_ = rows(1);
    if (backward) {
      grad_out_ = rows(d_);
      grad_hidden_ = rows(h_);
      grad_bias_ = rows(1);
    }
    scratch_vectors_ = arena.used;
  }

  int64_t scratch_vectors() const { return scratch_vectors_; }

  void forward(const EdgeBlock<A>& block) {
    begin(block);
    for_edges([&](auto size) LAMBDA_INLINE { forward_chunk<decltype(size)::value>(); });
    const int64_t d = problem_.message.out;
    for_tiles([&](int64_t node) LAMBDA_INLINE {
      gather_rows(hidden_sum_, h_, node, sums_);
      V bias_sum, scale;
      for (int l = 0; l < W; ++l) {
        const bool inside = node + l < nodes_;
        bias_sum[l] = inside ? weight_sum_[node + l] : A(0);
        scale[l] = inside ? block.scale[block.node_begin + node + l] : A(0);
      }
      multiply<A, 1>(
          weights_.out, nullptr, d_, problem_.message.hidden,
          [&](int64_t h, int) LAMBDA_INLINE { return sums_[h]; },
          [&](int64_t k0, V(&y)[kRows][1]) LAMBDA_INLINE {
            for (int m = 0; m < kRows; ++m)
              tile_[k0 + m] = scale * (y[m][0] + weights_.out_bias[k0 + m] * bias_sum);
          });
      for (int l = 0; l < W && node + l < nodes_; ++l)
        for (int64_t k = 0; k < d; ++k) problem_.out[(block.node_begin + node + l) * d + k] = tile_[k][l];
    });
  }

  void begin_gradients() { grad_message_.clear_all(); }

  void backward(const EdgeBlock<A>& block) {
    begin(block);
    load_grad_out();
    const int64_t d = problem_.message.in;
    for (int64_t k = block.node_begin * d; k < block.node_end * d; ++k) problem_.grad_nodes[k] = 0;
    for_edges([&](auto size) LAMBDA_INLINE { backward_chunk<decltype(size)::value>(); });
    V* grads = product_;
    for_tiles([&](int64_t node) LAMBDA_INLINE {
      gather_rows(hidden_sum_, h_, node, sums_);
      gather_rows(grad_out_, d_, node, grads);
      V weight_sum;
      for (int l = 0; l < W; ++l) weight_sum[l] = node + l < nodes_ ? weight_sum_[node + l] : A(0);
      accumulate_outer<A>(
          grad_message_.out_weight, nullptr, d_, h_, 1,
          [&](int64_t k, int64_t) LAMBDA_INLINE { return grads[k]; },
          [&](int64_t h, int64_t) LAMBDA_INLINE { return sums_[h]; });
      for (int64_t k = 0; k < d_; ++k) grad_message_.out_bias[k] += grads[k] * weight_sum;
    });
  }

  void add_gradients(A* gradients) { grad_message_.add_to(gradients, problem_.message); }

 private:
  void begin(const EdgeBlock<A>& block) {
    block_ = &block;
    nodes_ = block.node_end - block.node_begin;
    for (int64_t k = 0; k < nodes_ * h_; ++k) hidden_sum_[k] = 0;
    for (int64_t k = 0; k < nodes_; ++k) weight_sum_[k] = 0;
  }

  template <class Run>
  ALWAYS_INLINE void for_tiles(Run run) {
    for (int64_t node = 0; node < nodes_; node += W) run(node);
  }

  // Rows node .. node + W - 1 as lanes; zero past the last node.
  void gather_rows(const A* rows, int64_t size, int64_t node, V* to) const {
    for (int64_t k = 0; k < size; ++k)
      for (int l = 0; l < W; ++l) to[k][l] = node + l < nodes_ ? rows[(node + l) * size + k] : A(0);
  }

  // Calls run(Int<C>) with the next C * W edges (fewer in the last call: then edge_[i] is -1) described.
  template <class Run>
  ALWAYS_INLINE void for_edges(Run run) {
    for_chunks<A>((block_->count + W - 1) / W, [&](auto size, int64_t first) LAMBDA_INLINE {
      for (int i = 0; i < decltype(size)::value * W; ++i) {
        const int64_t at = first * W + i;
        edge_[i] = at < block_->count ? block_->order[at] : -1;
        source_[i] = edge_[i] < 0 ? block_->node_begin : problem_.source[edge_[i]];
        target_[i] = edge_[i] < 0 ? block_->node_begin : problem_.target[edge_[i]];
        weight_[i] = edge_[i] < 0 ? A(0) : problem_.weight ? problem_.weight[edge_[i]] : A(1);
      }
      run(size);
    });
  }

  // product_ = u_source o u_target.
  template <int C>
  ALWAYS_INLINE void message_product() {
    const int64_t d = problem_.message.in;
    A* lanes = reinterpret_cast<A*>(product_);
    for (int64_t k = d; k < d_; ++k)
      for (int c = 0; c < C; ++c) product_[k * C + c] = V{};
    for (int i = 0; i < C * W; ++i) {
      const A *source = problem_.nodes + source_[i] * d, *target = problem_.nodes + target_[i] * d;
      for (int64_t k = 0; k < d; ++k) lanes[k * C * W + i] = source[k] * target[k];
    }
  }

  template <int C>
  ALWAYS_INLINE void hidden_layer() {
    const V* product = product_;
    V* hidden = hidden_;
    multiply<A, C>(
        weights_.hidden, weights_.hidden_bias, h_, problem_.message.in,
        [&](int64_t k, int c) LAMBDA_INLINE { return product[k * C + c]; },
        [&](int64_t h0, V(&y)[kRows][C]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m)
            for (int c = 0; c < C; ++c) hidden[(h0 + m) * C + c] = relu(y[m][c]);
        });
  }

  // Adds weight * relu(...) to the sums of each target, one edge after the other.
  template <int C>
  ALWAYS_INLINE void add_to_targets(const V* hidden) {
    const A* lanes = reinterpret_cast<const A*>(hidden);
    for (int i = 0; i < C * W; ++i) {
      const A w = weight_[i];
      if (edge_[i] < 0) break;
      A* sum = hidden_sum_ + (target_[i] - block_->node_begin) * h_;
      for (int64_t h = 0; h < h_; ++h) sum[h] += w * lanes[h * C * W + i];
      weight_sum_[target_[i] - block_->node_begin] += w;
    }
  }

  template <int C>
  ALWAYS_INLINE void forward_chunk() {
    message_product<C>();
    hidden_layer<C>();
    add_to_targets<C>(hidden_);
  }

  void load_grad_out() {
    const int64_t d = problem_.message.out;
    for (int64_t node = 0; node < nodes_; ++node) {
      const int64_t row = block_->node_begin + node;
      A dot = 0;
      for (int64_t k = 0; k < d_; ++k) {
        const A grad = k < d ? problem_.grad_out[row * d + k] * block_->scale[row] : A(0);
        grad_out_[node * d_ + k] = grad;
        dot += weights_.out_bias[k] * grad;
      }
      grad_bias_[node] = dot;
    }
    for_tiles([&](int64_t node) LAMBDA_INLINE {
      gather_rows(grad_out_, d_, node, tile_);
      multiply<A, 1>(
          weights_.out_transposed, nullptr, h_, problem_.message.out,
          [&](int64_t k, int) LAMBDA_INLINE { return tile_[k]; },
          [&](int64_t h0, V(&y)[kRows][1]) LAMBDA_INLINE {
            for (int m = 0; m < kRows; ++m)
              for (int l = 0; l < W && node + l < nodes_; ++l)
                grad_hidden_[(node + l) * h_ + h0 + m] = y[m][0][l];
          });
    });
  }

  template <int C>
  ALWAYS_INLINE void backward_chunk() {
    message_product<C>();
    hidden_layer<C>();
    add_to_targets<C>(hidden_);
    // dL/d(relu of edge e) = w_e W2^T D_target; dL/dw_e is its product with the relu, plus b2 . D_target.
    A* scattered = reinterpret_cast<A*>(scattered_);
    for (int i = 0; i < C * W; ++i) {
      const A* grad = grad_hidden_ + (target_[i] - block_->node_begin) * h_;
      for (int64_t h = 0; h < h_; ++h) scattered[h * C * W + i] = grad[h];
    }
    V weight[C] = {}, grad_weight[C] = {};
    for (int c = 0; c < C; ++c) {
      for (int l = 0; l < W; ++l) {
        weight[c][l] = weight_[c * W + l];
        grad_weight[c][l] = grad_bias_[target_[c * W + l] - block_->node_begin];
      }
    }
    for (int64_t h = 0; h < h_; ++h) {
      V sum = {};
      for (int c = 0; c < C; ++c) {
        const V relus = hidden_[h * C + c], grad = scattered_[h * C + c];
        grad_weight[c] += grad * relus;
        hidden_[h * C + c] = relus > 0 ? weight[c] * grad : V{};
        sum += hidden_[h * C + c];
      }
      grad_message_.hidden_bias[h] += sum;
    }
    if (problem_.grad_weight)
      for (int i = 0; i < C * W; ++i)
        if (edge_[i] >= 0) problem_.grad_weight[edge_[i]] = grad_weight[i / W][i % W];
    const V *hidden = hidden_, *product = product_;
    accumulate_outer<A>(
        grad_message_.hidden_weight, nullptr, h_, d_, C,
        [&](int64_t h, int64_t c) LAMBDA_INLINE { return hidden[h * C + c]; },
        [&](int64_t k, int64_t c) LAMBDA_INLINE { return product[k * C + c]; });
    V* grad_product = product_;  // its last reader was the line above
    multiply<A, C>(
        weights_.hidden_transposed, nullptr, d_, problem_.message.hidden,
        [&](int64_t h, int c) LAMBDA_INLINE { return hidden[h * C + c]; },
        [&](int64_t k0, V(&y)[kRows][C]) LAMBDA_INLINE {
          for (int m = 0; m < kRows; ++m)
            for (int c = 0; c < C; ++c) grad_product[(k0 + m) * C + c] = y[m][c];
        });
    const A* lanes = reinterpret_cast<const A*>(grad_product);
    const int64_t d = problem_.message.in;
    for (int i = 0; i < C * W; ++i) {
      if (edge_[i] < 0) break;
      const A *source = problem_.nodes + source_[i] * d, *target = problem_.nodes + target_[i] * d;
      A *source_grad = problem_.grad_nodes + source_[i] * d,
        *target_grad = problem_.grad_nodes + target_[i] * d;
      for (int64_t k = 0; k < d; ++k) {
        source_grad[k] += lanes[k * C * W + i] * target[k];
        target_grad[k] += lanes[k * C * W + i] * source[k];
      }
    }
  }

  const EdgeList<A>& problem_;
  const PackedPerceptron<A>& weights_;
  int64_t scratch_vectors_ = 0;
  int64_t d_ = 0, h_ = 0;  // padded sizes
  const EdgeBlock<A>* block_ = nullptr;
  int64_t nodes_ = 0;

  V *product_ = nullptr, *hidden_ = nullptr, *scattered_ = nullptr, *sums_ = nullptr, *tile_ = nullptr;
  A *hidden_sum_ = nullptr, *weight_sum_ = nullptr, *grad_out_ = nullptr, *grad_hidden_ = nullptr,
    *grad_bias_ = nullptr;
  int64_t edge_[kChunk * W], source_[kChunk * W], target_[kChunk * W];
  A weight_[kChunk * W];
  GradientLanes<A> grad_message_;
};
