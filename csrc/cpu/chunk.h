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

// Kahan's sum, lane by lane.
template <class V>
struct CompensatedSum {
  V sum, lost;

  void clear() { sum = lost = V{}; }
  ALWAYS_INLINE void add(V x) {
    const V y = x - lost;
    const V next = sum + y;
    lost = (next - sum) - y;
    sum = next;
  }
};

template <class V>
ALWAYS_INLINE void clear(V* v, int64_t count) {
  for (int64_t k = 0; k < count; ++k) v[k] = V{};
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

  // Adds to `gradients`, laid out as GradientLayout(0, ...).
  void add_to(A* gradients, const Perceptron<A>& mlp) const {
    A* g = gradients;
    for (int64_t h = 0; h < mlp.hidden; ++h)
      for (int64_t k = 0; k < mlp.in; ++k) *g++ += sum_lanes(hidden_weight[h * in + k], A(0));
    for (int64_t h = 0; h < mlp.hidden; ++h) *g++ += sum_lanes(hidden_bias[h], A(0));
    for (int64_t k = 0; k < mlp.out; ++k)
      for (int64_t h = 0; h < mlp.hidden; ++h) *g++ += sum_lanes(out_weight[k * hidden + h], A(0));
    for (int64_t k = 0; k < mlp.out; ++k) *g++ += sum_lanes(out_bias[k], A(0));
  }
};
