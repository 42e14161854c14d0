// A block of graphs in the lanes: its nodes, and its pairs chunk by chunk.
// Included inside an anonymous namespace by each instruction-set file.
//
// A "slot" is a vector of nodes: the same node of W graphs (lanes over graphs), or W consecutive nodes of one
// graph (lanes over nodes). Pairs of slots come in panels of up to kPanel. Within a panel they go through a
// layer in chunks of up to kChunk, so that every weight that is loaded serves that many vectors, while weight
// gradients are added up over the whole panel in registers. Sums live in the slots.
//
// Some slots are extra. A self-pair is added to one end only, and the first extra slot, the sink, swallows
// the other end. With lanes over nodes the pairs of two slots are a tile of W x W, and right ends are copies
// in extra slots, whose sums are then added to the nodes:
// - On the diagonal the two slots are one. It meets itself turned by k lanes, k = 0 .. W / 2, which is every
//   pair once (by the last k half of the lanes).
// - Beside the diagonal rows i of the pairs run in bands of kBand. Each node i of a band is copied to all
//   lanes of an extra slot. The pairs of a band pass slot by slot, so that a slot's sums are read and
//   written once for all its rows, whose own stay in the L1 cache.

template <class A>
struct GraphBlock {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int W = S::W, kPanel = S::kPanel;
  static constexpr int kBand = S::kChunk;  // a slot's pairs with a band make a chunk
  static_assert(W % kBand == 0, "a tile is bands");
  static constexpr int kExtra = 1 + (kBand > W / 2 ? kBand : W / 2);  // slots, at most

  const Graphs& graphs;
  const Block* block = nullptr;
  bool over_nodes = false, uniform = false;  // uniform: all graphs of the block have `slots` nodes
  bool full = false;                         // lanes over graphs, and every lane of every slot holds a node
  // How many slots have nodes, and how many there are; the first two of the extra ones.
  int64_t slots = 0, all = 0, sink = 0, extra = 0;
  int64_t lane_graph[W], lane_begin[W];
  I lane_nodes;

  // The panel's pairs of slots: the two ends, where sums of the right end go, and the lanes that hold a pair.
  int64_t count = 0;
  int64_t left[kPanel], right[kPanel], right_sum[kPanel];
  I active[kPanel];
  // Lanes over nodes: the copies in extra slots are those of node row_begin and the next ones, or of its
  // slot, whose first `turn` lanes go round.
  int64_t row_begin = 0;
  int turn = 0;  // 0: they are rows

  explicit GraphBlock(const Graphs& of) : graphs(of) {}

  static int64_t count_slots(const Block& of) {
    return of.lanes_over_nodes ? (of.nodes + W - 1) / W : of.nodes;
  }

  // As for_panels() makes them.
  static int64_t count_panels(const Block& of) {
    const auto panels = [](int64_t pairs) { return (pairs + kPanel - 1) / kPanel; };
    const int64_t slots = count_slots(of);
    if (!of.lanes_over_nodes) return panels(pair_count(slots));
    int64_t sum = 0;
    for (int64_t slot = 0; slot < slots; ++slot)
      sum += panels(count_turns(of.nodes, slot)) + W / kBand * panels(kBand * (slots - 1 - slot));
    return sum;
  }

  void begin(const Block& of) {
    block = &of;
    over_nodes = of.lanes_over_nodes;
    slots = sink = count_slots(of);
    extra = slots + 1;
    all = slots + (over_nodes ? kExtra : 1);
    uniform = true;
    lane_nodes = I{};
    for (int l = 0; l < W; ++l) {
      lane_graph[l] = of.graphs[over_nodes || l >= of.lanes ? 0 : l];
      const int64_t g = lane_graph[l];
      lane_begin[l] = graphs.offsets ? graphs.offsets[g] : g * graphs.graph_size;
      const int64_t n = graphs.offsets ? graphs.offsets[g + 1] - graphs.offsets[g] : graphs.graph_size;
      const bool used = over_nodes || l < of.lanes;
      lane_nodes[l] = used ? n : 0;
      uniform = uniform && (!used || n == of.nodes);
    }
    full = !over_nodes && uniform && of.lanes == W;
  }

  // ---- Rows of memory and lanes ----

  // Row of the node in lane l of a slot, or -1.
  ALWAYS_INLINE int64_t row(int64_t slot, int l) const {
    const int64_t node = over_nodes ? slot * W + l : slot;
    return node < lane_nodes[l] ? lane_begin[l] + node : -1;
  }

  // The lanes of a slot that hold a node.
  ALWAYS_INLINE I present(int64_t slot) const {
    return (over_nodes ? lane_index<A>() + splat_index<A>(slot * W) : splat_index<A>(slot)) < lane_nodes;
  }

  // The nodes' rows of `from`, scaled, as vectors of slots; zero where there is no node.
  void load_rows(const A* from, const int64_t* ids, const A* values, int64_t size, V* to,
                 int64_t stride) const {
    for (int64_t slot = 0; slot < slots; ++slot, to += stride) {
      const A* rows[W];
      bool all = true;
      if (full) {  // no question for each lane: of small graphs that costs as much as the rows
        for (int l = 0; l < W; ++l)
          rows[l] = from + (ids ? ids[lane_begin[l] + slot] : lane_begin[l] + slot) * size;
      } else {
        for (int l = 0; l < W; ++l) {
          const int64_t r = row(slot, l);
          all = all && r >= 0;
          rows[l] = from + (r < 0 ? 0 : ids ? ids[r] : r) * size;  // where there is no node, any row
        }
      }
      Transpose<A>::load(rows, size, stride, to);
      if (!all)
        for (int64_t k = 0; k < size; ++k) to[k] = present(slot) ? to[k] : V{};
      scale(slot, values, to, stride);
    }
  }

  // Asks for the rows that `next` will load, if they leave room for what this block works on.
  void prefetch(const Block& next, const A* from, const int64_t* ids, int64_t size) const {
    constexpr int64_t kLine = 64 / sizeof(A), kMost = (128 << 10) / sizeof(A);
    if (next.lanes * next.nodes * size > kMost) return;
    const auto ask = [](const A* numbers, int64_t count) {
      for (int64_t k = 0; k < count; k += kLine) __builtin_prefetch(numbers + k, 0, 2);
    };
    for (int64_t l = 0; l < next.lanes; ++l) {
      const int64_t g = next.graphs[l];
      const int64_t begin = graphs.offsets ? graphs.offsets[g] : g * graphs.graph_size;
      const int64_t end = graphs.offsets ? graphs.offsets[g + 1] : begin + graphs.graph_size;
      if (!ids) ask(from + begin * size, (end - begin) * size);
      for (int64_t r = begin; ids && r < end; ++r) ask(from + ids[r] * size, size);
    }
  }

  // Writes over `from`.
  void store_rows(A* to, const A* values, int64_t size, V* from, int64_t stride) const {
    for (int64_t slot = 0; slot < slots; ++slot, from += stride) {
      A* rows[W];
      for (int l = 0; l < W; ++l) {
        const int64_t r = full ? lane_begin[l] + slot : row(slot, l);
        rows[l] = r < 0 ? nullptr : to + r * size;
      }
      scale(slot, values, from, stride);
      Transpose<A>::store(from, size, stride, rows);
    }
  }

  // The values of a slot's nodes; 1 without.
  V load_values(int64_t slot, const A* values) const {
    V x = splat(A(1));
    for (int l = 0; l < W && values; ++l)
      if (const int64_t r = row(slot, l); r >= 0) x[l] = values[r];
    return x;
  }

  void scale(int64_t slot, const A* values, V* v, int64_t size) const {
    if (!values) return;
    const V x = load_values(slot, values);
    for (int64_t k = 0; k < size; ++k) v[k] *= x;
  }

  // What belongs to each lane's graph.
  V load_graph(const A* per_graph) const {
    V v;
    for (int l = 0; l < W; ++l) v[l] = per_graph[lane_graph[l]];
    return v;
  }

  template <class T, class Lanes>
  void store_graph(T* per_graph, Lanes v) const {
    if (over_nodes) {
      per_graph[lane_graph[0]] = sum_lanes(v, T(0));
    } else {
      for (int64_t l = 0; l < block->lanes; ++l) per_graph[lane_graph[l]] = static_cast<T>(v[l]);
    }
  }

  // The same for a row of `size` a graph.
  void load_graph_rows(const A* per_graph, int64_t size, V* to, int64_t stride) const {
    const A* rows[W];
    for (int l = 0; l < W; ++l) rows[l] = per_graph + lane_graph[l] * size;
    Transpose<A>::load(rows, size, stride, to);
  }

  void store_graph_rows(A* per_graph, int64_t size, const V* from, int64_t stride) const {
    if (over_nodes) {
      for (int64_t k = 0; k < size; ++k) per_graph[lane_graph[0] * size + k] = sum_lanes(from[k], A(0));
      return;
    }
    A* rows[W];
    for (int l = 0; l < W; ++l) rows[l] = l < block->lanes ? per_graph + lane_graph[l] * size : nullptr;
    Transpose<A>::store(from, size, stride, rows);
  }

  // ---- Pairs ----

  // Calls panel() with the next pairs described, for all pairs i <= j of the block's slots. Lanes over nodes:
  // begin_band() and end_band() around the pairs that share copies in the extra slots.
  template <class BeginBand, class RunPanel, class EndBand>
  ALWAYS_INLINE void for_panels(BeginBand begin_band, RunPanel panel, EndBand end_band) {
    count = 0;
    const auto next = [&] {
      if (++count == kPanel) panel(), count = 0;
    };
    const auto last = [&] {
      if (count) panel(), count = 0;
    };
    if (!over_nodes) {
      for (int64_t i = 0; i < slots; ++i)
        for (int64_t j = i; j < slots; ++j) {
          left[count] = i;
          right[count] = j;
          right_sum[count] = i == j ? sink : j;
          active[count] = splat_index<A>(j) < lane_nodes;
          next();
        }
      last();
      return;
    }
    for (int64_t slot = 0; slot < slots; ++slot) {
      row_begin = slot * W;
      turn = lanes_in(block->nodes, slot);
      begin_band();
      for (int k = 0; k < count_turns(block->nodes, slot); ++k) {
        left[count] = slot;
        right[count] = k ? extra + k - 1 : slot;
        right_sum[count] = k ? extra + k - 1 : sink;
        active[count] = lane_index<A>() < splat_index<A>(2 * k == turn ? k : turn);
        next();
      }
      last();
      end_band();
      turn = 0;
      for (; slot + 1 < slots && row_begin < (slot + 1) * W; row_begin += kBand) {
        begin_band();
        for (int64_t other = slot + 1; other < slots; ++other)
          for (int r = 0; r < kBand; ++r) {
            left[count] = other;
            right[count] = right_sum[count] = extra + r;
            active[count] = present(other);
            next();
          }
        last();
        end_band();
      }
    }
  }

  // The nodes in a slot, lanes over nodes, and how often it is turned to meet itself.
  static int lanes_in(int64_t nodes, int64_t slot) {
    return static_cast<int>(nodes - slot * W < W ? nodes - slot * W : W);
  }
  static int count_turns(int64_t nodes, int64_t slot) { return lanes_in(nodes, slot) / 2 + 1; }

  // Lanes over nodes, rows: that of pair c, from row_begin on.
  ALWAYS_INLINE int64_t row_of(int64_t c) const { return right[c] - extra; }

  // Canonical index of pair c in the graph of each lane.
  ALWAYS_INLINE void lane_pairs(int64_t c, int64_t (&pairs)[W]) const {
    if (!over_nodes) {
      for (int l = 0; l < W; ++l) pairs[l] = pair_index(left[c], right[c], lane_nodes[l]);
    } else if (!turn) {
      for (int l = 0; l < W; ++l) pairs[l] = first_lane_pair(c) + l;
    } else {
      const int64_t begin = left[c] * W, k = right[c] == left[c] ? 0 : right[c] - extra + 1;
      for (int l = 0; l < W; ++l) {
        const int64_t i = begin + l, j = i + k;
        pairs[l] = l + k < turn ? pair_index(i, j, lane_nodes[l]) : pair_index(j - turn, i, lane_nodes[l]);
      }
    }
  }
  // Lanes over nodes, rows: that of the first lane.
  ALWAYS_INLINE int64_t first_lane_pair(int64_t c) const {
    return pair_index(row_begin + row_of(c), left[c] * W, lane_nodes[0]);
  }

  // Lanes over nodes: fills the extra slots.
  void copy_to_extra(V* v, int64_t stride) const {
    const V* from = v + row_begin / W * stride;
    V* to = v + extra * stride;
    if (turn) {
      for (int k = 1; k <= turn / 2; ++k, to += stride) {
        const I lanes = lanes_turned(k);
        for (int64_t m = 0; m < stride; ++m) to[m] = __builtin_shuffle(from[m], lanes);
      }
      return;
    }
    for (int r = 0; r < kBand; ++r, to += stride)
      for (int64_t m = 0; m < stride; ++m) to[m] = splat<A>(from[m][row_begin % W + r]);
  }

  // Adds the extra slots to the nodes that they are copies of, and clears them.
  void flush_extra(V* v, int64_t stride) const {
    V *slot = v + row_begin / W * stride, *from = v + extra * stride;
    if (turn) {
      for (int k = 1; k <= turn / 2; ++k, from += stride) {
        const I lanes = lanes_turned(turn - k);
        for (int64_t m = 0; m < stride; ++m) slot[m] += __builtin_shuffle(from[m], lanes), from[m] = V{};
      }
      return;
    }
    typedef A Rows __attribute__((vector_size(kBand * sizeof(A))));
    A* to = reinterpret_cast<A*>(slot) + row_begin % W;
    for (int64_t m = 0; m < stride; ++m, to += W) {
      V rows[kBand];
      for (int r = 0; r < kBand; ++r) rows[r] = from[r * stride + m], from[r * stride + m] = V{};
      Transpose<A>::template lanes_to_rows<kBand>(rows);
      V sum = rows[0];
      for (int r = 1; r < kBand; ++r) sum += rows[r];
      Rows parts[W / kBand], total;
      __builtin_memcpy(parts, &sum, sizeof(sum));
      __builtin_memcpy(&total, to, sizeof(total));
      for (const Rows& part : parts) total += part;
      __builtin_memcpy(to, &total, sizeof(total));
    }
  }

  // Calls run(Int<R>) for a chunk of C pairs, which are in order. The first R have one left end, and the
  // others another: the sums of both can stay in registers. The left end of the first is no right end: a
  // self-pair's sum goes to the sink, and lanes over nodes have extra slots for right ends. That of the
  // others may be a right end of the first. 0: not so.
  template <int C, class Run>
  ALWAYS_INLINE void by_runs(const int* pair, Run run) const {
    int length = 1;
    while (length < C && left[pair[length]] == left[pair[0]]) ++length;
    if (length == C) return run(Int<C>{});
    if (left[pair[length]] != left[pair[C - 1]]) return run(Int<0>{});
    static_assert(C <= 4, "a run for each length");
    if constexpr (C > 3)
      if (length == 3) return run(Int<3>{});
    if constexpr (C > 2)
      if (length == 2) return run(Int<2>{});
    return run(Int<1>{});
  }

  // With dp_c the gradient of p = x_i o x_j of pair[c]: adds factor[c] times its share to both ends.
  // products(use) calls use(k0, dp) for all of dp, kRows components at a time.
  template <int C, class Products>
  ALWAYS_INLINE void add_to_ends(const int* pair, const V* factor, const V* nodes, V* grad_nodes,
                                 int64_t size, Products products) const {
    const V *x[C], *y[C];
    V *grad_x[C], *grad_y[C];
    for (int c = 0; c < C; ++c) {
      const int64_t i = left[pair[c]] * size, j = right[pair[c]] * size;
      x[c] = nodes + i, y[c] = nodes + j, grad_x[c] = grad_nodes + i, grad_y[c] = grad_nodes + j;
    }
    by_runs<C>(pair, [&](auto run) LAMBDA_INLINE {
      constexpr int R = decltype(run)::value;
      products([&](int64_t k0, V(&dp)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          V sum[2] = {};  // of the runs; not on top of grad_x, which a self-pair changes as its right end
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) {
            const V g = factor ? factor[c] * dp[m][c] : dp[m][c];
            if (R)
              sum[c >= R] += g * y[c][k0 + m];
            else
              grad_x[c][k0 + m] += g * y[c][k0 + m];
            grad_y[c][k0 + m] += g * x[R == 0 ? c : c >= R ? C - 1 : 0][k0 + m];
          }
          if (R) grad_x[0][k0 + m] += sum[0];
          if (R && R < C) grad_x[C - 1][k0 + m] += sum[1];
        }
      });
    });
  }

 private:
  // Of the first `turn` lanes, which go round, lane l takes lane l + k; the others stay.
  ALWAYS_INLINE I lanes_turned(int k) const {
    const I lane = lane_index<A>(), next = lane + splat_index<A>(k), size = splat_index<A>(turn);
    return lane >= size ? lane : next < size ? next : next - size;
  }
};

// Which hidden units of a panel's pairs are on: where unit h of pair c is.
template <class A>
ALWAYS_INLINE int64_t unit_index(int64_t h, int64_t c) {
  return h * Simd<A>::kPanel + c;
}

template <class A, class Bit = Bits<A>>
int64_t bits_vectors(int64_t hidden) {
  const int64_t bytes = padded(hidden) * Simd<A>::kPanel * sizeof(Bit);
  return (bytes + kVectorBytes - 1) / kVectorBytes;
}

template <class A>
Bits<A>* take_bits(Arena<A>& arena, int64_t hidden) {
  return reinterpret_cast<Bits<A>*>(arena.take(bits_vectors<A>(hidden)));
}

// The same for kernels that look up: bit h % 32 of a lane's word tells whether unit h is on; word w of pair c
// is at unit_index(w, c).
template <class A, class Bit = Bits<A>>
struct Units {
  Bit* on = nullptr;
  typename Simd<A>::U* words = nullptr;  // only where kLooksUp

  static constexpr int64_t words_of(int64_t hidden) { return kLooksUp<A> ? (padded(hidden) + 31) / 32 : 0; }
  static int64_t vectors(int64_t hidden) {
    return bits_vectors<A, Bit>(hidden) + words_of(hidden) * Simd<A>::kPanel;
  }
  // In `vectors` of memory.
  static Units at(typename Simd<A>::V* memory, int64_t hidden) {
    return {reinterpret_cast<Bit*>(memory),
            reinterpret_cast<typename Simd<A>::U*>(memory + bits_vectors<A, Bit>(hidden))};
  }
  // From pair c on.
  Units from(int64_t c) const { return {on + c, words + c}; }
};

// `on` as kernels read them: what is packed is unpacked to `to`.
template <class A>
ALWAYS_INLINE Bits<A>* unpack_units(PackedBits<A>* on, Bits<A>* to, int64_t hidden, int64_t count) {
  if constexpr (sizeof(PackedBits<A>) == sizeof(Bits<A>)) {
    return on;
  } else {
    for (int64_t h = 0; h < hidden; ++h)
      for (int64_t c = 0; c < count; ++c) to[unit_index<A>(h, c)] = unpack_bits<A>(on + unit_index<A>(h, c));
    return to;
  }
}

// The pairs of a panel that have a message: those with an open gate in any lane. Where a whole vector is
// closed, nothing is computed.
template <class A>
struct OpenPairs {
  int count = 0;
  int pair[Simd<A>::kPanel];  // indices in the panel, ascending
};
