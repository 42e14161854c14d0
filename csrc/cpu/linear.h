// The two products that all kernels are made of, on lanes: a matrix times a chunk of C vectors, and its
// weight gradient. Included inside an anonymous namespace by each instruction-set file.

// y[m][c] = bias[m] + sum_k w[m][k] x(k, c) for all rows, kRows x C results at a time: use(m0, y).
// The matrix is packed as packing.h does it; bias (padded) may be null.
template <class A, int C, class Input, class Use>
ALWAYS_INLINE void multiply(const A* packed, const A* bias, int64_t rows, int64_t columns, Input x, Use use) {
  using V = typename Simd<A>::V;
  for (int64_t m0 = 0; m0 < rows; m0 += kRows) {
    V y[kRows][C];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const V b = bias ? splat(bias[m0 + m]) : V{};
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) y[m][c] = b;
    }
#pragma GCC unroll 1
    for (int64_t k = 0; k < columns; ++k) {
      V in[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) in[c] = x(k, c);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const V w = splat(packed[m]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) y[m][c] += w * in[c];
      }
      packed += kRows;
    }
    use(m0, y);
  }
}

// sum[m][k] += sum_c a(m, c) b(k, c) over `count` vectors, lane by lane; rows and columns are padded. With
// `bias`, also bias[m] += sum_c a(m, c).
template <class A, class Left, class Right>
ALWAYS_INLINE void accumulate_outer(typename Simd<A>::V* sum, typename Simd<A>::V* bias, int64_t rows,
                                    int64_t columns, int64_t count, Left a, Right b) {
  using V = typename Simd<A>::V;
  constexpr int kColumns = 4;
  const auto tile = [&](int64_t m0, int64_t k0, auto with_bias) LAMBDA_INLINE {
    constexpr bool kBias = decltype(with_bias)::value;
    V t[kRows][kColumns], t_bias[kRows];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      if (kBias) t_bias[m] = bias[m0 + m];
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) t[m][k] = sum[(m0 + m) * columns + k0 + k];
    }
#pragma GCC unroll 1
    for (int64_t c = 0; c < count; ++c) {
      V right[kColumns];
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) right[k] = b(k0 + k, c);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const V left = a(m0 + m, c);
        if (kBias) t_bias[m] += left;
#pragma GCC unroll 4
        for (int k = 0; k < kColumns; ++k) t[m][k] += left * right[k];
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      if (kBias) bias[m0 + m] = t_bias[m];
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) sum[(m0 + m) * columns + k0 + k] = t[m][k];
    }
  };
  // Rows in the outer loop: all columns of a few vectors stay in the L1 cache while the rows pass.
  for (int64_t m0 = 0; m0 < rows; m0 += kRows)
    for (int64_t k0 = 0; k0 < columns; k0 += kColumns)
      if (bias && k0 == 0)
        tile(m0, k0, Int<1>{});
      else
        tile(m0, k0, Int<0>{});
}

// The same two products with a matrix of ones and zeros: which hidden units are on, bits(unit, vector). Where
// there are masked instructions, additions take turns with multiply-adds: they run on different units of some
// processors. Elsewhere a one or a zero is multiplied with.

// y[m][c] = sum_h w[m][h] factor(h) [bits(h, c)], kRows x C results at a time: use(m0, y).
template <class A, int C, class BitsOf, class Factor, class Use>
ALWAYS_INLINE void multiply_where(const A* packed, int64_t rows, int64_t columns, BitsOf bits, Factor factor,
                                  Use use) {
  using V = typename Simd<A>::V;
  for (int64_t m0 = 0; m0 < rows; m0 += kRows) {
    V y[kRows][C];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) y[m][c] = V{};
#pragma GCC unroll 1
    for (int64_t h = 0; h < columns; ++h) {
      const V f = factor(h);
#if defined(__AVX512F__)
      Bits<A> on[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) on[c] = bits(h, c);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const V w = splat(packed[m]);
        const V wf = w * f;
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c)
          y[m][c] = m % 2 ? fma_where(on[c], y[m][c], w, f) : add_where(on[c], y[m][c], wf);
      }
#else
      V in[C];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) in[c] = select(bits(h, c), f);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const V w = splat(packed[m]);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) y[m][c] += w * in[c];
      }
#endif
      packed += kRows;
    }
    use(m0, y);
  }
}

// The same y[m][c] = sum_h w[m][h] [unit h is on], without factors, from the sums of all subsets of four
// units: of rows m0 .. m0 + 3 and units 4 g .. 4 g + 3 the table has four vectors of 16 entries (packing.h).
// In a word of a pair's lane, bit h % 32 tells whether unit h is on; words(h / 32, c).
#if defined(__AVX512F__)
template <class A, int C, class Words, class Use>
ALWAYS_INLINE void multiply_subsets(const A* table, int64_t rows, int64_t columns, Words words, Use use) {
  using V = typename Simd<A>::V;
  using U = typename Simd<A>::U;
  const V* entries = reinterpret_cast<const V*>(table);
  const V one = splat(A(1));
  for (int64_t m0 = 0; m0 < rows; m0 += kRows) {
    V y[kRows][C];
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) y[m][c] = V{};
    for (int64_t h0 = 0; h0 < columns; h0 += 32) {
      U index[C];
      for (int c = 0; c < C; ++c) index[c] = words(h0 / 32, c);
      const int64_t end = h0 + 32 < columns ? h0 + 32 : columns;
#pragma GCC unroll 1
      for (int64_t h = h0; h < end; h += 4) {
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          const V t = entries[m];
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) {  // additions and multiply-adds in turn, as above
            const V x = entry(index[c], t);
            y[m][c] = c % 2 ? fma_add(y[m][c], x, one) : y[m][c] + x;
          }
        }
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) index[c] >>= 4;
        entries += kRows;
      }
    }
    use(m0, y);
  }
}
#endif

// sum[m][k] += factor(m) sum_c [bits(m, c)] x(k, c) and bias[m] += factor(m) sum_c [bits(m, c)] x_bias(c)
// over `count` vectors, lane by lane; rows and columns are padded.
template <class A, class BitsOf, class Factor, class Input, class BiasInput>
ALWAYS_INLINE void accumulate_where(typename Simd<A>::V* sum, typename Simd<A>::V* bias, int64_t rows,
                                    int64_t columns, int64_t count, BitsOf bits, Factor factor, Input x,
                                    BiasInput x_bias) {
  using V = typename Simd<A>::V;
  constexpr int kColumns = 4;
  const auto tile = [&](int64_t m0, int64_t k0, auto with_bias) LAMBDA_INLINE {
    constexpr bool kBias = decltype(with_bias)::value;
    V t[kRows][kColumns], t_bias[kRows];
    const V one = splat(A(1));
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      t_bias[m] = V{};
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) t[m][k] = V{};
    }
#pragma GCC unroll 1
    for (int64_t c = 0; c < count; ++c) {
      V in[kColumns];
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) in[k] = x(k0 + k, c);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m) {
        const Bits<A> on = bits(m0 + m, c);
        if (kBias) t_bias[m] = add_where(on, t_bias[m], x_bias(c));
#if defined(__AVX512F__)
#pragma GCC unroll 4
        for (int k = 0; k < kColumns; ++k)
          t[m][k] = k % 2 ? fma_where(on, t[m][k], in[k], one) : add_where(on, t[m][k], in[k]);
#else
        const V left = select(on, one);
#pragma GCC unroll 4
        for (int k = 0; k < kColumns; ++k) t[m][k] += left * in[k];
#endif
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < kRows; ++m) {
      const V f = factor(m0 + m);
      if (kBias) bias[m0 + m] += f * t_bias[m];
#pragma GCC unroll 4
      for (int k = 0; k < kColumns; ++k) sum[(m0 + m) * columns + k0 + k] += f * t[m][k];
    }
  };
  // Columns in the outer loop: four of them, of all vectors, stay in the L1 cache while the rows pass.
  for (int64_t k0 = 0; k0 < columns; k0 += kColumns)
    for (int64_t m0 = 0; m0 < rows; m0 += kRows)
      if (k0 == 0)
        tile(m0, k0, Int<1>{});
      else
        tile(m0, k0, Int<0>{});
}
