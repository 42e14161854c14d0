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
  // Columns in the outer loop: four of them, of all vectors, stay in the L1 cache while the rows pass.
  for (int64_t k0 = 0; k0 < columns; k0 += kColumns)
    for (int64_t m0 = 0; m0 < rows; m0 += kRows)
      if (bias && k0 == 0)
        tile(m0, k0, Int<1>{});
      else
        tile(m0, k0, Int<0>{});
}
