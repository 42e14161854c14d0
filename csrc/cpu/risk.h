// Forward, loss and backward of one block of graphs after the other: what the forward found of a block is
// still in the cache when its backward comes, and is not computed again. A prediction is linear in the
// messages, so that with the head folded into their second layer (w = W2^T head, b = b2 . head) the message
// network has one output, too:
//   y = head bias + sum_(i <= j) w_ij s_ij,  s_ij = w . relu(...) + b,
//   w_ij = g_ij (alpha_i + [i != j] alpha_j),  alpha_i = x_i scale_i / n.
// Included inside an anonymous namespace by each instruction-set file.

template <class A>
class RiskKernel {
  using S = Simd<A>;
  using V = typename S::V;
  static constexpr int kPanel = S::kPanel;
  static constexpr int64_t kPanelBytes = 4 << 20;  // of what is kept; panels beyond are computed again

 public:
  // problem.message is the folded network. Without memory, `scratch_vectors` tells how much is needed.
  RiskKernel(const CompleteGraph<A>& problem, const Risk<A>& risk, const PackedWeights<A>& weights,
             void* memory, int64_t slots)
      : problem_(problem),
        risk_(risk),
        arena_{static_cast<V*>(memory)},
        block_(problem.graphs),
        gates_(problem, weights, block_, arena_, slots + GraphBlock<A>::kExtra, true),
        network_(problem.message, weights.message, block_) {
    const int64_t all = slots + GraphBlock<A>::kExtra;
    network_.take(arena_, all, true);
    alpha_ = arena_.take(all);
    edge_units_at_ = kScoreAt + kPanel;
    units_at_ = edge_units_at_ + Units<A>::vectors(problem.edge.hidden);
    kept_vectors_ = units_at_ + Units<A>::vectors(problem.message.hidden);
    panels_ = kPanelBytes / kVectorBytes / kept_vectors_ + 1;
    kept_ = arena_.take(panels_ * kept_vectors_);
  }

  int64_t scratch_vectors() const { return arena_.used; }

  void prefetch(const Block& next) const {
    block_.prefetch(next, problem_.nodes, problem_.ids, problem_.message.in);
    block_.prefetch(next, problem_.edge_nodes, problem_.ids, problem_.edge.in);
  }

  void begin_gradients() { gates_.begin_gradients(), network_.begin_gradients(); }

  void run(const Block& block) {
    block_.begin(block);
    gates_.begin_sums();
    gates_.begin_backward();
    gates_.find_alpha(alpha_);
    network_.load(problem_.nodes, problem_.ids, problem_.values);
    network_.begin_backward();
    score_sum_.clear();
    int64_t panel = 0;
    block_.for_panels([&] { begin_band(); }, [&] { find(panel++); }, [&] { gates_.end_band_sums(); });
    gates_.end_forward();
    judge();
    panel = 0;
    block_.for_panels([&] { begin_band(); }, [&] { find_again(panel++), backward(); },
                      [&] { gates_.end_band_backward(), network_.end_band_backward(); });
    gates_.end_backward();
    network_.store_grad_nodes(problem_.grad_nodes, problem_.values);
  }

  // Adds this call's gradients to `gradients`: of the folded network, then of the edge network.
  void add_gradients(A* gradients) {
    const Perceptron<A>& m = problem_.message;
    network_.add_gradients(gradients);
    gates_.add_gradients(gradients + gradient_layout(0, m.in, m.hidden, 1).end);
  }

 private:
  void begin_band() {
    gates_.begin_band();
    network_.begin_band();
    block_.copy_to_extra(alpha_, 1);
  }

  // Gates, scores and sums of a panel.
  void find(int64_t panel) {
    go_to(panel);
    gates_.evaluate_into(edge_units_);
    gates_.count_open();
    for_chunks<A>(gates_.open.count, [&](auto size, int64_t first) LAMBDA_INLINE {
      network_.template compute<decltype(size)::value, true>(first, open_pair(), open_lanes(), units_,
                                                             score_);
    });
    V sum = {};
    for (int c = 0; c < gates_.open.count; ++c) {
      const int pair = gates_.open.pair[c];
      sum += gates_.gate[pair] * share(pair) * score_[c];
    }
    score_sum_.add(sum);
    gates_.save(kept(panel));
  }

  // The same after all panels of the block, from memory where it was kept. The sums were read before.
  void find_again(int64_t panel) {
    if (panel == panel_) return;
    if (panel >= panels_ - 1) return find(panel);
    go_to(panel);
    gates_.restore(kept(panel), edge_units_);
  }

  // The last place is that of all panels without one of their own.
  V* kept(int64_t panel) const { return kept_ + (panel < panels_ ? panel : panels_ - 1) * kept_vectors_; }

  void go_to(int64_t panel) {
    panel_ = panel;
    V* const memory = kept(panel);
    score_ = memory + kScoreAt;
    edge_units_ = Units<A>::at(memory + edge_units_at_, problem_.edge.hidden);
    units_ = Units<A>::at(memory + units_at_, problem_.message.hidden);
  }

  // The predictions, and the gradients that they receive.
  void judge() {
    V y = score_sum_.sum;
    if (block_.over_nodes) y = splat(sum_lanes(y, A(0)));
    if (risk_.head_bias) y += splat(*risk_.head_bias);
    const V target = block_.load_graph(risk_.target);
    V loss, slope;
    if (risk_.loss == Loss::mse) {
      loss = (y - target) * (y - target);
      slope = 2 * (y - target);
    } else {  // as torch does it, so that infinities go the same way
      loss = (1 - target) * y - (at_most(V{}, y) - log1p_lanes(exp_lanes(at_most(-y, y))));
      slope = 1 / (1 + exp_lanes(-y)) - target;
    }
    grad_logit_ = slope / splat(static_cast<A>(problem_.graphs.count));
    for (int64_t l = 0; l < block_.block->lanes; ++l) {
      risk_.logits[block_.lane_graph[l]] = y[l];
      risk_.losses[block_.lane_graph[l]] = loss[l];
      risk_.grad_logits[block_.lane_graph[l]] = grad_logit_[l];
    }
  }

  void backward() {
    V weight[kPanel];
    clear(gates_.grad_gate, block_.count);
    for (int c = 0; c < gates_.open.count; ++c) {
      const int pair = gates_.open.pair[c];
      const V part = grad_logit_ * share(pair);
      gates_.grad_gate[pair] = part * score_[c];
      weight[c] = part * gates_.gate[pair];
    }
    network_.backward(gates_.open.count, open_pair(), open_lanes(), units_, weight);
    gates_.backward();
  }

  // w_ij / g_ij.
  ALWAYS_INLINE V share(int pair) const { return alpha_[block_.left[pair]] + alpha_[block_.right_sum[pair]]; }

  // Pairs with a message, and their lanes with one.
  ALWAYS_INLINE auto open_pair() const {
    return [this](int64_t c) LAMBDA_INLINE { return gates_.open.pair[c]; };
  }
  ALWAYS_INLINE auto open_lanes() const {
    return [this](int64_t pair) LAMBDA_INLINE { return gates_.gate[pair] != 0; };
  }

  const CompleteGraph<A>& problem_;
  const Risk<A>& risk_;
  Arena<A> arena_;
  GraphBlock<A> block_;
  EdgeGates<A> gates_;
  ScalarNetwork<A> network_;

  V* alpha_ = nullptr;  // of a slot
  CompensatedSum<V> score_sum_;
  V grad_logit_ = {};

  // Panels in memory, each: what EdgeGates saves, scores of the open pairs, units of the edge network and of
  // the message network.
  static constexpr int64_t kScoreAt = EdgeGates<A>::kSavedVectors;
  int64_t edge_units_at_, units_at_, kept_vectors_, panels_;
  V* kept_ = nullptr;
  // The panel at hand.
  int64_t panel_ = -1;
  V* score_ = nullptr;
  Units<A> edge_units_, units_;
};
