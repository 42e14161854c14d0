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

// sum[m][k] += sum_c a(m, c) b(k, c), lane by lane; rows and columns are padded.
template <class A, int C, class Left, class Right>
ALWAYS_INLINE void accumulate_outer(typename Simd<A>::V* sum, int64_t rows, int64_t columns, Left a,
                                    Right b) {
  using V = typename Simd<A>::V;
  constexpr int kColumns = 4;
  for (int64_t m0 = 0; m0 < rows; m0 += kRows)
    for (int64_t k0 = 0; k0 < columns; k0 += kColumns) {
      V tile[kRows][kColumns];
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
        for (int k = 0; k < kColumns; ++k) tile[m][k] = sum[(m0 + m) * columns + k0 + k];
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        V right[kColumns];
#pragma GCC unroll 4
        for (int k = 0; k < kColumns; ++k) right[k] = b(k0 + k, c);
#pragma GCC unroll 4
        for (int m = 0; m < kRows; ++m) {
          const V left = a(m0 + m, c);
#pragma GCC unroll 4
          for (int k = 0; k < kColumns; ++k) tile[m][k] += left * right[k];
        }
      }
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 4
        for (int k = 0; k < kColumns; ++k) sum[(m0 + m) * columns + k0 + k] = tile[m][k];
    }
}
