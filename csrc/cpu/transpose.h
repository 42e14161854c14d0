// Rows of memory to lanes and back. Included inside an anonymous namespace by each instruction-set file.
//
// S vectors hold W rows of S components, W / S rows in each, one after the other. As bits, an element's place
// is (vector, lane) = (a, h k), with row (a h) and component k. One round of taking the even and the odd
// lanes of neighbours moves the last bit of the place to its front; log2(S) rounds give (k, a h): a vector
// for each component, a lane for each row. Interleaving is the way back.

template <class A>
struct Transpose {
  using V = typename Simd<A>::V;
  using I = typename Simd<A>::I;
  static constexpr int W = Simd<A>::W;

  template <int S>
  static ALWAYS_INLINE void rows_to_lanes(V (&v)[S]) {
    I even, odd;
    for (int l = 0; l < W; ++l) even[l] = 2 * l, odd[l] = 2 * l + 1;
    V next[S];
#pragma GCC unroll 4
    for (int round = 1; round < S; round *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < S / 2; ++i) {
        next[i] = __builtin_shuffle(v[2 * i], v[2 * i + 1], even);
        next[i + S / 2] = __builtin_shuffle(v[2 * i], v[2 * i + 1], odd);
      }
#pragma GCC unroll 16
      for (int i = 0; i < S; ++i) v[i] = next[i];
    }
  }

  template <int S>
  static ALWAYS_INLINE void lanes_to_rows(V (&v)[S]) {
    I low, high;
    for (int l = 0; l < W; ++l) low[l] = l / 2 + l % 2 * W, high[l] = low[l] + W / 2;
    V next[S];
#pragma GCC unroll 4
    for (int round = 1; round < S; round *= 2) {
#pragma GCC unroll 8
      for (int i = 0; i < S / 2; ++i) {
        next[2 * i] = __builtin_shuffle(v[i], v[i + S / 2], low);
        next[2 * i + 1] = __builtin_shuffle(v[i], v[i + S / 2], high);
      }
#pragma GCC unroll 16
      for (int i = 0; i < S; ++i) v[i] = next[i];
    }
  }

  // to[k] = component k of the rows that `rows` points to, one a lane, for k < size; zero for the others of
  // the `padded_size`.
  static ALWAYS_INLINE void load(const A* const* rows, int64_t size, int64_t padded_size, V* to) {
    for_groups(size, padded_size, [&](auto group, int64_t k, int64_t count) LAMBDA_INLINE {
      constexpr int S = decltype(group)::value;
      V v[S];
      if (count == S) {
        for (int i = 0; i < S; ++i) v[i] = join<S>(rows + i * (W / S), k);
      } else {
        A* memory = reinterpret_cast<A*>(v);
        for (int l = 0; l < W; ++l, memory += S)
          for (int64_t m = 0; m < S; ++m) memory[m] = m < count ? rows[l][k + m] : A(0);
      }
      rows_to_lanes<S>(v);
      for (int m = 0; m < S; ++m) to[k + m] = v[m];
    });
  }

  // The way back, to the rows that there are.
  static ALWAYS_INLINE void store(const V* from, int64_t size, int64_t padded_size, A* const* rows) {
    for_groups(size, padded_size, [&](auto group, int64_t k, int64_t count) LAMBDA_INLINE {
      constexpr int S = decltype(group)::value;
      V v[S];
      for (int m = 0; m < S; ++m) v[m] = from[k + m];
      lanes_to_rows<S>(v);
      const A* memory = reinterpret_cast<const A*>(v);
      for (int l = 0; l < W; ++l, memory += S) {
        if (!rows[l]) continue;
        if (count == S)
          __builtin_memcpy(rows[l] + k, memory, S * sizeof(A));
        else
          for (int64_t m = 0; m < count; ++m) rows[l][k + m] = memory[m];
      }
    });
  }

 private:
  // One vector of S components, from k on, of W / S rows. Not by way of memory: a load of what several stores
  // wrote waits for all of them.
  template <int S>
  static ALWAYS_INLINE V join(const A* const* rows, int64_t k) {
    V v;
#if defined(__AVX512F__)
    if constexpr (2 * S == W) {
      return (V)_mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256((const __m256i*)(rows[0] + k))),
                                   _mm256_loadu_si256((const __m256i*)(rows[1] + k)), 1);
    } else if constexpr (4 * S == W) {
      __m512i quarters = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i*)(rows[0] + k)));
      quarters = _mm512_inserti32x4(quarters, _mm_loadu_si128((const __m128i*)(rows[1] + k)), 1);
      quarters = _mm512_inserti32x4(quarters, _mm_loadu_si128((const __m128i*)(rows[2] + k)), 2);
      quarters = _mm512_inserti32x4(quarters, _mm_loadu_si128((const __m128i*)(rows[3] + k)), 3);
      return (V)quarters;
    }
#elif defined(__AVX2__)
    if constexpr (2 * S == W) {
      const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i*)(rows[0] + k)));
      return (V)_mm256_inserti128_si256(low, _mm_loadu_si128((const __m128i*)(rows[1] + k)), 1);
    }
#endif
    for (int row = 0; row < W / S; ++row)
      __builtin_memcpy(reinterpret_cast<A*>(&v) + row * S, rows[row] + k, S * sizeof(A));
    return v;
  }

  // Calls run(Int<S>, k, count) for groups of S components from k on, `count` of which exist.
  template <class Run>
  static ALWAYS_INLINE void for_groups(int64_t size, int64_t padded_size, Run run) {
    constexpr int kLarge = W, kMiddle = W > 8 ? 8 : kLarge, kSmall = W > 4 ? 4 : kLarge;
    const auto next = [&](auto group, int64_t k) LAMBDA_INLINE {
      constexpr int64_t S = decltype(group)::value;
      const int64_t rest = size > k ? size - k : 0;
      run(group, k, rest < S ? rest : S);
    };
    int64_t k = 0;
    for (; k + kLarge <= padded_size; k += kLarge) next(Int<kLarge>{}, k);
    if (kMiddle < kLarge && k + kMiddle <= padded_size) next(Int<kMiddle>{}, k), k += kMiddle;
    if (kSmall < kMiddle && k + kSmall <= padded_size) next(Int<kSmall>{}, k), k += kSmall;
  }
};
