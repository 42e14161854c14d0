// The edge network of a panel of pairs: gates, penalties, counts, and their gradients.
// Included inside an anonymous namespace by each instruction-set file.

template <class A>
class EdgeGates {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  using U = typename S::U;
  static constexpr int W = S::W, kPanel = S::kPanel;
  static constexpr bool kWordsFillLanes = sizeof(U) == sizeof(V);  // float32

 public:
  // The panel's gates. Without an edge network every pair is open.
  V gate[kPanel];
  V grad_gate[kPanel];  // backward: dL/dg, from the messages
  OpenPairs<A> open;

  EdgeGates(const CompleteGraph<A>& problem, const PackedWeights<A>& weights, GraphBlock<A>& block,
            Arena<A>& arena, int64_t slots, bool backward)
      : problem_(problem),
        block_(block),
        gated_(problem.edge_nodes != nullptr),
        network_(problem.edge, weights.edge, block) {
    if (!backward) degree_ = arena.take(slots);
    if (gated_) network_.take(arena, slots, backward);
  }

  // ---- Forward ----

  void begin_forward() {
    load();
    clear(degree_, block_.all);
    begin_sums();
  }

  // Of penalties and open pairs.
  void begin_sums() {
    l0_.clear();
    open_ = I{};
    open_rows_ = 0;
  }

  void forward(const Kept<A>& kept) {
    if (kept && gated_) {
      evaluate<true>(kept.edge_units());
      save(kept.gates());
    } else {
      evaluate<false>(Units<A>{});
    }
    count_open();
    if (problem_.aggregation != Aggregation::neighbor_mean) return;
    for (int64_t c = 0; c < block_.count; ++c) {
      const V one = gate[c] > 0 ? splat(A(1)) : V{};
      degree_[block_.left[c]] += one;
      degree_[block_.right_sum[c]] += one;
    }
  }

  void begin_band() {
    if (gated_) network_.begin_band();
  }

  void count_open() {
    for (int64_t c = 0; c < block_.count; ++c) open_ -= gate[c] > 0;
  }

  void end_band_forward() {
    end_band_sums();
    block_.flush_extra(degree_, 1);
  }

  void end_band_sums() {
    open_rows_ += sum_lanes(open_, int64_t{0});
    open_ = I{};
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
    V divisor;
    if (problem_.aggregation == Aggregation::sum) return splat(A(1));
    if (problem_.aggregation == Aggregation::mean) {
      divisor = __builtin_convertvector(block_.lane_nodes, V);
    } else if (!saved_degree) {
      divisor = degree_[slot];
    } else {
      for (int l = 0; l < W; ++l) {
        const int64_t r = block_.row(slot, l);
        divisor[l] = r < 0 ? A(0) : static_cast<A>(problem_.degree[r]);
      }
    }
    return divisor > 0 ? 1 / divisor : V{};
  }

  // alpha_i = x_i scale_i / n of the slots: node i's share in the pooled sum; nothing of the slot
  // that swallows other ends of self-pairs.
  void find_alpha(V* alpha) const {
    const V nodes = __builtin_convertvector(block_.lane_nodes, V);
    for (int64_t slot = 0; slot < block_.slots; ++slot)
      alpha[slot] = block_.load_values(slot, problem_.values) * slot_scale(slot, true) /
                    (nodes > 0 ? nodes : splat(A(1)));
    alpha[block_.sink] = V{};
  }

  // ---- Backward ----

  void begin_gradients() {
    if (gated_) network_.begin_gradients();
  }

  void begin_backward() {
    load();
    if (!gated_) return;
    network_.begin_backward();
    grad_l0_ = problem_.grad_l0 ? block_.load_graph(problem_.grad_l0) : V{};
  }

  // The gates again, with what `backward` needs of them.
  void find_again(const Kept<A>& kept) {
    if (kept && gated_)
      restore(kept.gates(), network_.unpack(kept.edge_units(), block_.count));
    else
      evaluate_into(gated_ ? network_.place_of_next(block_.count) : Units<A>{});
    clear(grad_gate, block_.count);
  }

  // The same with the units that are on kept in `units`, and with the sums of the forward.
  void evaluate_into(const Units<A>& units) {
    units_ = units;
    evaluate<true>(units);
  }

  // What evaluate_into() made of a panel, but for the units, to memory and back: gates have their slopes in
  // them.
  static constexpr int64_t kSavedVectors = 2 * kPanel;
  void save(V* to) const {
    for (int64_t c = 0; c < block_.count; ++c) to[c] = gate[c], to[kPanel + c] = open_slope_[c];
  }
  void restore(const V* from, const Units<A>& units) {
    const A low = A(problem_.gate.gamma), factor = A(1 / (problem_.gate.zeta - problem_.gate.gamma));
    for (int64_t c = 0; c < block_.count; ++c) {
      gate[c] = from[c], open_slope_[c] = from[kPanel + c];
      gate_slope_[c] = gate_slope((gate[c] - low) * factor, (gate[c] > 0) & (gate[c] < 1));
    }
    units_ = units;
    find_open();
  }

  // Adds to grad_gate what is given times the gate; that of a closed one matters to nobody.
  ALWAYS_INLINE void add_grad_times_gate(int pair, V given) {
    grad_gate[pair] += gate[pair] != 0 ? given / gate[pair] : V{};
  }

  void backward() {
    if (!gated_) return;
    V grad_logit[kPanel];
    for (int64_t c = 0; c < block_.count; ++c) {
      V of_gate = grad_gate[c];
      if (problem_.grad_gates) of_gate += load_pairs(problem_.grad_gates, c);
      of_gate = of_gate * gate_slope_[c] + grad_l0_ * open_slope_[c];
      if (problem_.grad_logits) of_gate += load_pairs(problem_.grad_logits, c);
      grad_logit[c] = of_gate;
    }
    network_.backward(block_.count, all_pairs, all_lanes, units_, grad_logit);
  }

  void end_band_backward() {
    if (gated_) network_.end_band_backward();
  }

  void end_backward() {
    if (gated_) network_.store_grad_nodes(problem_.grad_edge_nodes, nullptr);
  }

  void add_gradients(A* gradients) {
    if (gated_) network_.add_gradients(gradients);
  }

 private:
  // Every pair has a logit.
  static ALWAYS_INLINE int64_t all_pairs(int64_t c) { return c; }
  static ALWAYS_INLINE AllLanes all_lanes(int64_t) { return {}; }

  void load() {
    for (int64_t& cached : cached_noise_) cached = -1;
    if (gated_) network_.load(problem_.edge_nodes, problem_.ids, nullptr);
  }

  // The gates of the panel's pairs, and which of them have a message; with Backward also gate_slope_ = dg/da,
  // open_slope_ = dpi/da and the units that are on, in `units`.
  template <bool Backward, class Bit>
  ALWAYS_INLINE void evaluate(const Units<A, Bit>& units) {
    if (gated_) {
      for_chunks<A>(block_.count, [&](auto size, int64_t first) LAMBDA_INLINE {
        network_.template compute<decltype(size)::value, Backward>(first, all_pairs, all_lanes, units,
                                                                   logit_);
      });
      compute_gates<Backward>();
    } else {
      for (int64_t c = 0; c < block_.count; ++c) gate[c] = block_.active[c] ? splat(A(1)) : V{};
    }
    find_open();
  }

  void find_open() {
    open.count = 0;
    if (!problem_.nodes) return;
    // A NaN has a message, so that it is seen in the result.
    for (int64_t c = 0; c < block_.count; ++c)
      if (any(gate[c] != 0)) open.pair[open.count++] = c;
  }

  // From the panel's logits, in short loops one after the other: each has a long chain of dependent
  // instructions, and the processor overlaps those of several pairs only where they follow closely.
  template <bool Backward>
  ALWAYS_INLINE void compute_gates() {
    const HardConcrete& hard = problem_.gate;
    const A span = A(hard.zeta - hard.gamma), low = A(hard.gamma);
    const A steepness = this->steepness();
    const A to_open = A(__builtin_pow(-hard.gamma / hard.zeta, hard.temperature));
    const int64_t count = block_.count;
    V odds[kPanel];  // e^-a
    for (int64_t c = 0; c < count; ++c) odds[c] = exp_lanes(-logit_[c]);
    // gate becomes (1 - s) / s = (e^-a (1 - U) / U)^(1 / temperature). At the paper's temperature, 2/3, a
    // root is cheaper than a logarithm and an exponential.
    if (!hard.seed) {
      for (int64_t c = 0; c < count; ++c) gate[c] = odds[c];
    } else {
      for (int64_t c = 0; c < count; ++c) gate[c] = uniform(c);
      if (hard.temperature == 2.0 / 3) {
        for (int64_t c = 0; c < count; ++c) {
          const V x = odds[c] * ((1 - gate[c]) / gate[c]);
          gate[c] = x * sqrt_lanes(x);
        }
      } else {
        for (int64_t c = 0; c < count; ++c)
          gate[c] = exp_lanes((log_lanes((1 - gate[c]) / gate[c]) - logit_[c]) * steepness);
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      const I active = block_.active[c];
      const V s = 1 / (1 + gate[c]);
      const V stretched = s * span + low;
      gate[c] = active ? at_most(splat(A(1)), relu(stretched)) : V{};
      if (!Backward) continue;
      const I inside = active & (stretched > 0) & (stretched < 1);
      gate_slope_[c] = gate_slope(s, inside);
    }
    if (Backward || problem_.l0)
      for (int64_t c = 0; c < count; ++c) {
        const V pi = 1 / (1 + odds[c] * to_open);
        odds[c] = block_.active[c] ? pi : V{};
        if (Backward) open_slope_[c] = odds[c] * (1 - odds[c]);
      }
    if (problem_.l0) {
      V sum = {};
      for (int64_t c = 0; c < count; ++c) sum += odds[c];
      l0_.add(sum);
    }
    if (!Backward && problem_.gates) {
      for (int64_t c = 0; c < count; ++c) {
        store_pairs(problem_.gates, gate[c], c);
        store_pairs(problem_.logits, logit_[c], c);
      }
    }
  }

  A steepness() const { return problem_.gate.seed ? A(1 / problem_.gate.temperature) : A(1); }

  // dg/da of the sigmoid s that is stretched.
  ALWAYS_INLINE V gate_slope(V s, I inside) const {
    const A span = A(problem_.gate.zeta - problem_.gate.gamma);
    return inside ? span * steepness() * s * (1 - s) : V{};
  }

  void store_pairs(A* pairs, V v, int64_t c) const {
    int64_t index[W];
    block_.lane_pairs(c, index);
    for (int l = 0; l < W; ++l)
      if (block_.active[c][l]) pairs[problem_.pair_offsets[block_.lane_graph[l]] + index[l]] = v[l];
  }

  V load_pairs(const A* pairs, int64_t c) const {
    int64_t index[W];
    block_.lane_pairs(c, index);
    V v = {};
    for (int l = 0; l < W; ++l)
      if (block_.active[c][l]) v[l] = pairs[problem_.pair_offsets[block_.lane_graph[l]] + index[l]];
    return v;
  }

  // ---- Noise ----

  // U of pair c.
  ALWAYS_INLINE V uniform(int64_t c) {
    const uint64_t seed = static_cast<uint64_t>(*problem_.gate.seed);
    U word;
    if (!block_.over_nodes && block_.uniform) {
      const int64_t pair = pair_index(block_.left[c], block_.right[c], block_.slots);
      if (pair >> 2 != cached_noise_[0]) {
        cached_noise_[0] = pair >> 2;
        Philox4<U> counter;
        counter.x[0] = U{} + static_cast<uint32_t>(cached_noise_[0]);
        counter.x[1] = U{} + static_cast<uint32_t>(static_cast<uint64_t>(cached_noise_[0]) >> 32);
        set_graph_words(counter);
        noise_words_ = random_words(counter, seed);
      }
      word = noise_words_.x[pair & 3];
    } else if (kWordsFillLanes && block_.over_nodes && !block_.turn) {
      word = consecutive_words(block_.row_of(c), block_.first_lane_pair(c), seed);
    } else {
      int64_t pairs[W];
      block_.lane_pairs(c, pairs);
      Philox4<U> counter;
      U which;
      for (int l = 0; l < W; ++l) {
        const uint64_t pair = static_cast<uint64_t>(pairs[l]);
        counter.x[0][l] = static_cast<uint32_t>(pair >> 2);
        counter.x[1][l] = static_cast<uint32_t>(pair >> 34);
        which[l] = static_cast<uint32_t>(pair & 3);
      }
      set_graph_words(counter);
      const Philox4<U> words = random_words(counter, seed);
      word = which == 0 ? words.x[0] : which == 1 ? words.x[1] : which == 2 ? words.x[2] : words.x[3];
    }
    typedef int32_t Bits __attribute__((vector_size(sizeof(U))));
    return (__builtin_convertvector((Bits)(word >> 9), V) + A(0.5)) * A(1.0 / 8388608.0);
  }

  static ALWAYS_INLINE Philox4<U> random_words(const Philox4<U>& counter, uint64_t seed) {
    using P = VectorPhilox<A>;
    Philox4<typename P::Word> words;
    for (int k = 0; k < 4; ++k) words.x[k] = P::from_lanes(counter.x[k]);
    words = philox4x32<P>(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    Philox4<U> lanes;
    for (int k = 0; k < 4; ++k) lanes.x[k] = P::to_lanes(words.x[k]);
    return lanes;
  }

  // The words of pairs `pair` to pair + W - 1 of one graph, in a row of the band. A counter gives four: W
  // counters at a time give those of the next pairs, too.
  ALWAYS_INLINE U consecutive_words(int64_t row, int64_t pair, uint64_t seed) {
    int64_t& cached = cached_noise_[row];
    if (cached < 0 || pair < cached || pair + W > cached + 4 * W) {
      const uint64_t first = static_cast<uint64_t>(pair) >> 2;
      cached = pair & ~int64_t{3};
      Philox4<U> counter;
      for (int l = 0; l < W; ++l) {
        counter.x[0][l] = static_cast<uint32_t>(first + l);
        counter.x[1][l] = static_cast<uint32_t>((first + l) >> 32);
      }
      set_graph_words(counter);
      const Philox4<U> words = random_words(counter, seed);
      V rows[4];
      for (int k = 0; k < 4; ++k) __builtin_memcpy(&rows[k], &words.x[k], sizeof(U));
      static_assert(!kWordsFillLanes || sizeof(cached_words_[0]) == sizeof(rows));
      Transpose<A>::template lanes_to_rows<4>(rows);
      __builtin_memcpy(cached_words_[row], rows, sizeof(rows));
    }
    U word;
    __builtin_memcpy(&word, cached_words_[row] + (pair - cached), sizeof(U));
    return word;
  }

  ALWAYS_INLINE void set_graph_words(Philox4<U>& counter) const {
    for (int l = 0; l < W; ++l) {
      counter.x[2][l] = static_cast<uint32_t>(block_.lane_graph[l]);
      counter.x[3][l] = static_cast<uint32_t>(static_cast<uint64_t>(block_.lane_graph[l]) >> 32);
    }
  }

  const CompleteGraph<A>& problem_;
  GraphBlock<A>& block_;
  const bool gated_;
  ScalarNetwork<A> network_;

  V* degree_ = nullptr;  // of a slot
  Units<A> units_;
  V logit_[kPanel], gate_slope_[kPanel], open_slope_[kPanel];
  // Lanes over graphs: the words of the pairs 4 c to 4 c + 3 with c = cached_noise_[0]. Lanes over nodes: in
  // each row of the band those of the 4 W pairs from cached_noise_ on.
  int64_t cached_noise_[GraphBlock<A>::kBand];
  Philox4<U> noise_words_;
  uint32_t cached_words_[GraphBlock<A>::kBand][4 * W];

  CompensatedSum<V> l0_;
  V grad_l0_ = {};
  I open_ = {};
  int64_t open_rows_ = 0;  // lanes over nodes: the open pairs of the bands that are done
};
