// A block of graphs in the lanes: its nodes, and its pairs chunk by chunk.
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
struct GraphBlock {
  using S = Simd<A>;
  using V = typename S::V;
  using I = typename S::I;
  static constexpr int W = S::W, kChunk = S::kChunk;

  const Graphs& graphs;
  const Block* block = nullptr;
  bool over_nodes = false, uniform = false;  // uniform: all graphs of the block have `slots` nodes
  int64_t slots = 0, extra = 0;
  int64_t lane_graph[W], lane_begin[W];
  I lane_nodes;

  // The chunk's pairs of slots: the two ends, where sums of the right end go, and the lanes that hold a pair.
  int64_t left[kChunk], right[kChunk], right_sum[kChunk];
  I active[kChunk];
  int64_t row_index = 0;  // lanes over nodes: i
  I not_self;             // of the tile on the diagonal

  explicit GraphBlock(const Graphs& of) : graphs(of) {}

  void begin(const Block& of) {
    block = &of;
    over_nodes = of.lanes_over_nodes;
    slots = over_nodes ? (of.nodes + W - 1) / W : of.nodes;
    extra = slots;
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
  }

  // ---- Rows of memory and lanes ----

  // Row of the node in lane l of a slot, or -1.
  ALWAYS_INLINE int64_t row(int64_t slot, int l) const {
    const int64_t node = over_nodes ? slot * W + l : slot;
    return node < lane_nodes[l] ? lane_begin[l] + node : -1;
  }

  // The nodes' rows of `from`, scaled, as vectors of slots; zero where there is no node.
  void load_rows(const A* from, const int64_t* ids, const A* values, int64_t size, V* to,
                 int64_t stride) const {
    for (int64_t slot = 0; slot < slots; ++slot) {
      V* v = to + slot * stride;
      clear(v, stride);
      A* lanes = reinterpret_cast<A*>(v);
      for (int l = 0; l < W; ++l) {
        const int64_t r = row(slot, l);
        if (r < 0) continue;
        const A* x = from + (ids ? ids[r] : r) * size;
        const A scale = values ? values[r] : A(1);
        for (int64_t k = 0; k < size; ++k) lanes[k * W + l] = scale * x[k];
      }
    }
    clear(to + slots * stride, stride);
  }

  void store_rows(A* to, const A* values, int64_t size, const V* from, int64_t stride) const {
    for (int64_t slot = 0; slot < slots; ++slot) {
      const A* lanes = reinterpret_cast<const A*>(from + slot * stride);
      for (int l = 0; l < W; ++l) {
        const int64_t r = row(slot, l);
        if (r < 0) continue;
        const A scale = values ? values[r] : A(1);
        for (int64_t k = 0; k < size; ++k) to[r * size + k] = scale * lanes[k * W + l];
      }
    }
  }

  // What belongs to each lane's graph.
  V load_graph(const A* per_graph, int64_t size = 1, int64_t k = 0) const {
    V v;
    for (int l = 0; l < W; ++l) v[l] = per_graph[lane_graph[l] * size + k];
    return v;
  }

  template <class T, class Lanes>
  void store_graph(T* per_graph, Lanes v, int64_t size = 1, int64_t k = 0) const {
    if (over_nodes) {
      per_graph[lane_graph[0] * size + k] = sum_lanes(v, T(0));
    } else {
      for (int64_t l = 0; l < block->lanes; ++l) per_graph[lane_graph[l] * size + k] = static_cast<T>(v[l]);
    }
  }

  // ---- Pairs ----

  // Calls chunk(Int<C>, Int<diagonal>) with the first C pairs described, for all pairs i <= j of the block's
  // slots. Lanes over nodes: begin_row(i) and end_row(i) around the pairs of node i.
  template <class BeginRow, class RunChunk, class EndRow>
  ALWAYS_INLINE void for_pairs(BeginRow begin_row, RunChunk chunk, EndRow end_row) {
    if (over_nodes) {
      for (int64_t i = 0; i < block->nodes; ++i) {
        begin_row(i);
        row_index = i;
        const int64_t first = i / W;
        set_tile(0, first);
        not_self = lane_index<A>() + splat_index<A>(first * W) != splat_index<A>(i);
        active[0] = active[0] & (lane_index<A>() + splat_index<A>(first * W) >= splat_index<A>(i));
        chunk(Int<1>{}, Int<1>{});
        for_chunks<A>(slots - first - 1, [&](auto size, int64_t t) LAMBDA_INLINE {
          for (int c = 0; c < decltype(size)::value; ++c) set_tile(c, first + 1 + t + c);
          chunk(size, Int<0>{});
        });
        end_row(i);
      }
      return;
    }
    int filled = 0;
    for (int64_t i = 0; i < slots; ++i)
      for (int64_t j = i; j < slots; ++j) {
        left[filled] = i;
        right[filled] = j;
        right_sum[filled] = i == j ? extra : j;
        active[filled] = splat_index<A>(j) < lane_nodes;
        if (++filled == kChunk) chunk(Int<kChunk>{}, Int<0>{}), filled = 0;
      }
    if (kChunk > 2 && filled & 2) {
      chunk(Int<2>{}, Int<0>{});
      constexpr int last = kChunk - 2;
      left[0] = left[last], right[0] = right[last], right_sum[0] = right_sum[last], active[0] = active[last];
    }
    if (filled & 1) chunk(Int<1>{}, Int<0>{});
  }

  ALWAYS_INLINE void set_tile(int c, int64_t slot) {
    left[c] = extra;
    right[c] = right_sum[c] = slot;
    active[c] = lane_index<A>() + splat_index<A>(slot * W) < lane_nodes;
  }

  // Canonical index of pair c in the graph of lane l.
  ALWAYS_INLINE int64_t lane_pair(int c, int l) const {
    return over_nodes ? pair_index(row_index, right[c] * W + l, lane_nodes[l])
                      : pair_index(left[c], right[c], lane_nodes[l]);
  }

  // What the right end of a pair receives: not that of the self-pair on the diagonal tile.
  template <bool Diagonal>
  ALWAYS_INLINE V right_part(V v) const {
    return Diagonal ? (not_self ? v : V{}) : v;
  }

  // Lanes over nodes: node i to all lanes of the extra slot.
  void copy_to_extra(V* v, int64_t stride, int64_t i) const {
    for (int64_t k = 0; k < stride; ++k) v[extra * stride + k] = splat<A>(v[i / W * stride + k][i % W]);
  }

  // Adds the extra slot's lanes to node i, and clears them.
  void flush_extra(V* v, int64_t stride, int64_t i) const {
    A* lanes = reinterpret_cast<A*>(v + i / W * stride);
    for (int64_t k = 0; k < stride; ++k) {
      lanes[k * W + i % W] += sum_lanes(v[extra * stride + k], A(0));
      v[extra * stride + k] = V{};
    }
  }

  // x_i o x_j of the chunk's pairs; zero where `counts` is not set, so that nothing there can overflow.
  template <int C>
  ALWAYS_INLINE void multiply_ends(const V* nodes, int64_t size, const I* counts, V* product) const {
    for (int c = 0; c < C; ++c) {
      const V *x = nodes + left[c] * size, *y = nodes + right[c] * size;
      for (int64_t k = 0; k < size; ++k) {
        const V p = x[k] * y[k];
        product[k * C + c] = counts ? (counts[c] ? p : V{}) : p;
      }
    }
  }

  // With dp = factor W^T grad, of p = x_i o x_j: adds its gradient to both ends.
  template <int C>
  ALWAYS_INLINE void add_to_ends(const A* packed, int64_t hidden, const V* grad, const V* factor,
                                 const V* nodes, V* grad_nodes, int64_t size) const {
    const V *x[C], *y[C];
    V *grad_x[C], *grad_y[C];
    for (int c = 0; c < C; ++c) {
      x[c] = nodes + left[c] * size, y[c] = nodes + right[c] * size;
      grad_x[c] = grad_nodes + left[c] * size, grad_y[c] = grad_nodes + right[c] * size;
    }
    multiply<A, C>(
        packed, nullptr, size, hidden, [&](int64_t h, int c) LAMBDA_INLINE { return grad[h * C + c]; },
        [&](int64_t k0, V(&dp)[kRows][C]) LAMBDA_INLINE {
#pragma GCC unroll 4
          for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
            for (int c = 0; c < C; ++c) {
              const V g = factor ? factor[c] * dp[m][c] : dp[m][c];
              grad_x[c][k0 + m] += g * y[c][k0 + m];
              grad_y[c][k0 + m] += g * x[c][k0 + m];
            }
        });
  }
};
