// Small things both kernels use. Included inside an anonymous namespace by each instruction-set file.

// Calls run(Int<C>, first) for chunks that cover [0, count): of kChunk and, where a rest would be less, of
// kChunk - 1; of one where nothing else is left.
template <class A, class Run>
ALWAYS_INLINE void for_chunks(int64_t count, Run run) {
  constexpr int kChunk = Simd<A>::kChunk, kLess = kChunk > 2 ? kChunk - 1 : 1;
  const int64_t missing = (kChunk - count % kChunk) % kChunk;
  int64_t lesser = kLess * missing <= count ? missing : count % kChunk / kLess;
  int64_t first = 0;
  for (; count - first >= kChunk + kLess * lesser; first += kChunk) run(Int<kChunk>{}, first);
  if (kLess > 1)
    for (; lesser > 0; --lesser, first += kLess) run(Int<kLess>{}, first);
  for (; first < count; ++first) run(Int<1>{}, first);
}

// Takes vectors from one block of scratch memory; without memory it only counts.
template <class A>
struct Arena {
  using V = typename Simd<A>::V;
  V* memory;
  int64_t used = 0;

  V* take(int64_t vectors) {
    V* begin = memory ? memory + used : nullptr;
    used += vectors;
    return begin;
  }
};

// Kahan's sum, lane by lane: it keeps what rounding takes from a plain float32 sum of millions of pairs.
template <class V>
struct CompensatedSum {
  V sum, lost;

  void clear() { sum = lost = V{}; }
  ALWAYS_INLINE void add(V x) {
    const V y = x - lost;
    const V next = sum + y;
    const V error = (next - sum) - y;
    lost = error == error ? error : V{};  // infinity loses nothing, and stays
    sum = next;
  }
};

template <class V>
ALWAYS_INLINE void clear(V* v, int64_t count) {
  for (int64_t k = 0; k < count; ++k) v[k] = V{};
}

template <class V>
ALWAYS_INLINE void copy(V* to, const V* from, int64_t count) {
  for (int64_t k = 0; k < count; ++k) to[k] = from[k];
}

// The sums over the lanes of each of `count` vectors, in their own memory.
template <class A>
const A* sum_all_lanes(typename Simd<A>::V* v, int64_t count) {
  constexpr int W = Simd<A>::W;
  A* sums = reinterpret_cast<A*>(v);
  int64_t first = 0;
  for (; first + W <= count; first += W) {
    typename Simd<A>::V rows[W];
    for (int k = 0; k < W; ++k) rows[k] = v[first + k];
    Transpose<A>::template rows_to_lanes<W>(rows);
    typename Simd<A>::V sum = rows[0];
    for (int k = 1; k < W; ++k) sum += rows[k];
    __builtin_memcpy(sums + first, &sum, sizeof(sum));
  }
  for (; first < count; ++first) sums[first] = sum_lanes(v[first], A(0));
  return sums;
}

// Sums over lanes of the gradients of one perceptron, each element a vector until the end of a call.
template <class A>
struct GradientLanes {
  using V = typename Simd<A>::V;
  int64_t in, hidden, out;                                 // padded
  V *hidden_weight, *hidden_bias, *out_weight, *out_bias;  // [hidden][in], [hidden], [out][hidden], [out]

  void take(Arena<A>& arena, const Perceptron<A>& mlp) {
    in = padded(mlp.in), hidden = padded(mlp.hidden), out = padded(mlp.out);
    hidden_weight = arena.take(size());
    hidden_bias = hidden_weight + hidden * in;
    out_weight = hidden_bias + hidden;
    out_bias = out_weight + out * hidden;
  }
  int64_t size() const { return hidden * in + hidden + out * hidden + out; }
  void clear_all() { clear(hidden_weight, size()); }

  // Adds to `gradients`, laid out as GradientLayout(0, ...). Overwrites the sums.
  void add_to(A* gradients, const Perceptron<A>& mlp) {
    const A* sums = sum_all_lanes<A>(hidden_weight, size());
    const auto add = [&](const V* from, int64_t rows, int64_t columns, int64_t stride) {
      const A* sum = sums + (from - hidden_weight);
      for (int64_t m = 0; m < rows; ++m)
        for (int64_t k = 0; k < columns; ++k) *gradients++ += sum[m * stride + k];
    };
    add(hidden_weight, mlp.hidden, mlp.in, in);
    add(hidden_bias, 1, mlp.hidden, hidden);
    add(out_weight, mlp.out, mlp.hidden, hidden);
    add(out_bias, 1, mlp.out, out);
  }
};
