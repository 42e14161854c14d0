// Vectors of the widest registers that this file is compiled for, and the elementary functions on them.
// Included inside an anonymous namespace by each instruction-set file. No C++ library in here.

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kRows = 4;  // rows of one register tile: kRows x 4 accumulators
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kRows = 2;
#else
constexpr int kVectorBytes = 16;
constexpr int kRows = 2;
#endif
static_assert(kPadding % kRows == 0, "a tile's rows must divide the padding");

#define ALWAYS_INLINE inline __attribute__((always_inline))
#define LAMBDA_INLINE __attribute__((always_inline))

// A number that a generic lambda can take as a type.
template <int N>
struct Int {
  static constexpr int value = N;
};

template <class A>
struct Simd;

// Whether registers look up tables of 16 entries, each lane its own: float32 with AVX-512.
template <class A>
constexpr bool kLooksUp = kVectorBytes == 64 && sizeof(A) == 4;

template <>
struct Simd<float> {
  static constexpr int W = kVectorBytes / 4;
  static constexpr int kChunk = 4;  // pair vectors that go through a layer together
  // Pair vectors whose gradients are summed in registers.
  static constexpr int kPanel = kVectorBytes == 64 ? 32 : 16;
  typedef float V __attribute__((vector_size(kVectorBytes)));
  typedef int32_t I __attribute__((vector_size(kVectorBytes)));   // lane masks (0 or -1) and lane counts
  typedef uint32_t U __attribute__((vector_size(kVectorBytes)));  // one random word a lane
};

template <>
struct Simd<double> {
  static constexpr int W = kVectorBytes / 8;
  // float64 serves gradient checks: half the code to compile counts for more
  static constexpr int kChunk = 2;
  static constexpr int kPanel = 16;
  typedef double V __attribute__((vector_size(kVectorBytes)));
  typedef int64_t I __attribute__((vector_size(kVectorBytes)));
  typedef uint32_t U __attribute__((vector_size(kVectorBytes / 2)));
};

using F32 = Simd<float>;
using F64 = Simd<double>;

template <class A>
ALWAYS_INLINE typename Simd<A>::V splat(A x) {
  return x - typename Simd<A>::V{};
}

template <class A>
ALWAYS_INLINE typename Simd<A>::I splat_index(int64_t x) {
  using I = typename Simd<A>::I;
  return static_cast<decltype(I{}[0] + 0)>(x) + I{};
}

template <class A>
ALWAYS_INLINE typename Simd<A>::I lane_index() {
  typename Simd<A>::I lanes;
  for (int l = 0; l < Simd<A>::W; ++l) lanes[l] = l;
  return lanes;
}

template <class V, class T>
ALWAYS_INLINE T sum_lanes(V v, T zero) {
  T sum = zero;
  for (unsigned l = 0; l < sizeof(V) / sizeof(v[0]); ++l) sum += v[l];
  return sum;
}

// x, but no less or no more than a bound. A NaN stays one: the instructions return their second operand then.
ALWAYS_INLINE F32::V at_least(F32::V low, F32::V x) {
#if defined(__AVX512F__)
  return (F32::V)_mm512_max_ps((__m512)low, (__m512)x);
#elif defined(__AVX2__)
  return (F32::V)_mm256_max_ps((__m256)low, (__m256)x);
#else
  return x < low ? low : x;
#endif
}
ALWAYS_INLINE F32::V at_most(F32::V high, F32::V x) {
#if defined(__AVX512F__)
  return (F32::V)_mm512_min_ps((__m512)high, (__m512)x);
#elif defined(__AVX2__)
  return (F32::V)_mm256_min_ps((__m256)high, (__m256)x);
#else
  return x > high ? high : x;
#endif
}
ALWAYS_INLINE F64::V at_least(F64::V low, F64::V x) { return x < low ? low : x; }
ALWAYS_INLINE F64::V at_most(F64::V high, F64::V x) { return x > high ? high : x; }

template <class V>
ALWAYS_INLINE V relu(V x) {
  return at_least(V{}, x);
}

// One bit a lane where registers for it exist: which units of a hidden layer are on is kept as these.
// load_bits reads them from memory straight to such a register: GCC goes by way of a general one, and that
// move takes a unit of multiply-adds.
#if defined(__AVX512F__)
template <class A>
using Bits = uint16_t;
ALWAYS_INLINE uint16_t above_zero(F32::V x) {  // a NaN is on
  return _mm512_cmp_ps_mask((__m512)x, _mm512_setzero_ps(), _CMP_NLE_UQ);
}
ALWAYS_INLINE uint16_t above_zero(F64::V x) {
  return _mm512_cmp_pd_mask((__m512d)x, _mm512_setzero_pd(), _CMP_NLE_UQ);
}
ALWAYS_INLINE uint16_t load_bits(const uint16_t* from) {
  __mmask16 bits;
  __asm__("kmovw %1, %0" : "=k"(bits) : "m"(*from));
  return bits;
}
// Those of neighbouring vectors; four in one store, which is a third faster.
template <int C>
ALWAYS_INLINE void store_bits(uint16_t* to, const uint16_t (&bits)[C]) {
  if constexpr (C == 4) {
    const __mmask64 all =
        _mm512_kunpackd(_mm512_kunpackw(bits[3], bits[2]), _mm512_kunpackw(bits[1], bits[0]));
    __asm__("kmovq %1, %0" : "=m"(*reinterpret_cast<uint16_t (*)[4]>(to)) : "k"(all));
  } else {
    for (int c = 0; c < C; ++c) to[c] = bits[c];
  }
}
// At most 32 of them, in two instructions: of a handful the C library would take longer.
ALWAYS_INLINE void copy_bits(uint16_t* to, const uint16_t* from, int64_t count) {
  const auto some = static_cast<__mmask32>((uint64_t{1} << count) - 1);
  _mm512_mask_storeu_epi16(to, some, _mm512_maskz_loadu_epi16(some, from));
}
// Lane by lane: word | bit where the mask has the lane; entry `index` (its low four bits) of a table of 16.
ALWAYS_INLINE F32::U or_where(uint16_t lanes, F32::U word, F32::U bit) {
  return (F32::U)_mm512_mask_or_epi32((__m512i)word, lanes, (__m512i)word, (__m512i)bit);
}
ALWAYS_INLINE F32::V entry(F32::U index, F32::V table) {
  return (F32::V)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
}
// sum + x on the units of multiply-adds: written as one with a factor of 1, GCC would make it an addition.
ALWAYS_INLINE F32::V fma_add(F32::V sum, F32::V x, F32::V one) {
  return (F32::V)_mm512_fmadd_ps((__m512)x, (__m512)one, (__m512)sum);
}
// x where the bit is set, else zero.
ALWAYS_INLINE F32::V select(uint16_t bits, F32::V x) { return (F32::V)_mm512_maskz_mov_ps(bits, (__m512)x); }
ALWAYS_INLINE F64::V select(uint16_t bits, F64::V x) {
  return (F64::V)_mm512_maskz_mov_pd(static_cast<__mmask8>(bits), (__m512d)x);
}
// sum + x, and sum + x y, where the bit is set.
ALWAYS_INLINE F32::V add_where(uint16_t bits, F32::V sum, F32::V x) {
  return (F32::V)_mm512_mask_add_ps((__m512)sum, bits, (__m512)sum, (__m512)x);
}
ALWAYS_INLINE F64::V add_where(uint16_t bits, F64::V sum, F64::V x) {
  return (F64::V)_mm512_mask_add_pd((__m512d)sum, static_cast<__mmask8>(bits), (__m512d)sum, (__m512d)x);
}
ALWAYS_INLINE F32::V fma_where(uint16_t bits, F32::V sum, F32::V x, F32::V y) {
  return (F32::V)_mm512_mask3_fmadd_ps((__m512)x, (__m512)y, (__m512)sum, bits);
}
ALWAYS_INLINE F64::V fma_where(uint16_t bits, F64::V sum, F64::V x, F64::V y) {
  return (F64::V)_mm512_mask3_fmadd_pd((__m512d)x, (__m512d)y, (__m512d)sum, static_cast<__mmask8>(bits));
}
#else
template <class A>
using Bits = typename Simd<A>::I;
template <class V>
ALWAYS_INLINE auto above_zero(V x) {
  return ~(x <= 0);
}
template <class I>
ALWAYS_INLINE I load_bits(const I* from) {
  return *from;
}
template <int C, class I>
ALWAYS_INLINE void store_bits(I* to, const I (&bits)[C]) {
  for (int c = 0; c < C; ++c) to[c] = bits[c];
}
template <class I>
ALWAYS_INLINE void copy_bits(I* to, const I* from, int64_t count) {
  for (int64_t c = 0; c < count; ++c) to[c] = from[c];
}
template <class I, class V>
ALWAYS_INLINE V select(I bits, V x) {
  return (V)(bits & (I)x);
}
template <class I, class V>
ALWAYS_INLINE V add_where(I bits, V sum, V x) {
  return sum + select(bits, x);
}
template <class I, class V>
ALWAYS_INLINE V fma_where(I bits, V sum, V x, V y) {
  return sum + select(bits, x) * select(bits, y);
}
#endif

// Packed to a bit a lane, for rooms; unpack_bits makes of it what the kernels take.
#if defined(__AVX2__) && !defined(__AVX512F__)
template <class A>
using PackedBits = uint8_t;
template <int C>
ALWAYS_INLINE void store_bits(uint8_t* to, const F32::I (&bits)[C]) {
  for (int c = 0; c < C; ++c) to[c] = static_cast<uint8_t>(_mm256_movemask_ps((__m256)bits[c]));
}
template <int C>
ALWAYS_INLINE void store_bits(uint8_t* to, const F64::I (&bits)[C]) {
  for (int c = 0; c < C; ++c) to[c] = static_cast<uint8_t>(_mm256_movemask_pd((__m256d)bits[c]));
}
template <class A>
ALWAYS_INLINE Bits<A> unpack_bits(const uint8_t* from) {
  const Bits<A> all = (Bits<A>)_mm256_set1_epi8(static_cast<char>(*from));
  const Bits<A> of_lane = splat_index<A>(1) << lane_index<A>();
  return (all & of_lane) == of_lane;
}
#else
template <class A>
using PackedBits = Bits<A>;
template <class A>
ALWAYS_INLINE Bits<A> unpack_bits(const Bits<A>* from) {
  return load_bits(from);
}
#endif

// Whether any lane of the mask is set.
template <class I>
ALWAYS_INLINE bool any(I mask) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  int64_t words[sizeof(I) / 8];
  __builtin_memcpy(words, &mask, sizeof(I));
  int64_t bits = 0;
  for (unsigned k = 0; k < sizeof(I) / 8; ++k) bits |= words[k];
  return bits != 0;
#endif
}

// e^x: 2^k e^r with |r| <= ln2/2 and a minimax polynomial, relative error below 2 ulp; clamped to the finite
// range.
ALWAYS_INLINE F32::V exp_lanes(F32::V x) {
  x = at_most(splat(88.0f), at_least(splat(-87.0f), x));
  const F32::V magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, in the lowest bits
  const F32::V shifted = x * 1.44269504f + magic;
  const F32::V k = shifted - magic;
  F32::V r = x - k * 0.693359375f;
  r = r + k * 2.12194440e-4f;
  F32::V q = splat(0.00138146128f);
  q = q * r + 0.00836871006f;
  q = q * r + 0.041668389f;
  q = q * r + 0.166665211f;
  q = q * r + 0.49999994f;
  const F32::V power = (F32::V)(((F32::I)shifted << 23) + 0x3F800000);
  return (1.0f + (r + r * r * q)) * power;
}

// ln x for positive normal x: m in [sqrt(1/2), sqrt(2)), a minimax polynomial of m - 1.
ALWAYS_INLINE F32::V log_lanes(F32::V x) {
  const F32::I bits = (F32::I)x - 0x3F3504F3;
  const F32::I exponent = bits >> 23;
  const F32::V f = (F32::V)((bits & 0x007FFFFF) + 0x3F3504F3) - 1.0f;
  const F32::V k = __builtin_convertvector(exponent, F32::V);
  F32::V q = splat(-0.0763449669f);
  q = q * f + 0.127615765f;
  q = q * f - 0.131601825f;
  q = q * f + 0.142017573f;
  q = q * f - 0.166233569f;
  q = q * f + 0.200012267f;
  q = q * f - 0.250008196f;
  q = q * f + 0.333333313f;
  const F32::V f2 = f * f;
  return k * 0.693359375f + (f + (f2 * f * q - 0.5f * f2 - k * 2.12194440e-4f));
}

// The C library's: exact, not fast.
ALWAYS_INLINE F64::V exp_lanes(F64::V x) {
  F64::V y;
  for (int l = 0; l < F64::W; ++l) y[l] = __builtin_exp(x[l]);
  return y;
}
ALWAYS_INLINE F64::V log_lanes(F64::V x) {
  F64::V y;
  for (int l = 0; l < F64::W; ++l) y[l] = __builtin_log(x[l]);
  return y;
}

// ln(1 + x) for x in [0, 1]; the factor makes up for what rounding takes from 1 + x.
template <class V>
ALWAYS_INLINE V log1p_lanes(V x) {
  const V above = (1 + x) - 1;
  return above > 0 ? log_lanes(1 + x) * (x / above) : x;
}

ALWAYS_INLINE F32::V sqrt_lanes(F32::V x) {
#if defined(__AVX512F__)
  return (F32::V)_mm512_sqrt_ps((__m512)x);
#elif defined(__AVX2__)
  return (F32::V)_mm256_sqrt_ps((__m256)x);
#else
  for (int l = 0; l < F32::W; ++l) x[l] = __builtin_sqrtf(x[l]);
  return x;
#endif
}
ALWAYS_INLINE F64::V sqrt_lanes(F64::V x) {
  for (int l = 0; l < F64::W; ++l) x[l] = __builtin_sqrt(x[l]);
  return x;
}

// Philox on lanes: words of lanes to Word and back, and their 64-bit products.
template <class A>
struct VectorPhilox {
  using U = typename Simd<A>::U;
  using Word = U;
  static ALWAYS_INLINE Word from_lanes(U x) { return x; }
  static ALWAYS_INLINE U to_lanes(Word x) { return x; }
  static ALWAYS_INLINE void multiply(uint32_t a, Word b, Word& high, Word& low) {
    for (unsigned l = 0; l < sizeof(Word) / 4; ++l) {
      const uint64_t product = static_cast<uint64_t>(a) * b[l];
      high[l] = static_cast<uint32_t>(product >> 32);
      low[l] = static_cast<uint32_t>(product);
    }
  }
};

#if defined(__AVX2__)
// The lower half of 64 bits is a lane's word, and the upper half anything: that of a product costs nothing to
// keep, and a multiplication does not read it.
template <>
struct VectorPhilox<float> {
  using U = F32::U;
  typedef uint64_t Wide __attribute__((vector_size(kVectorBytes)));
  struct Word {
    Wide even, odd;
    ALWAYS_INLINE Word operator^(const Word& b) const { return {even ^ b.even, odd ^ b.odd}; }
    ALWAYS_INLINE Word operator^(uint32_t b) const { return {even ^ b, odd ^ b}; }
  };
  static ALWAYS_INLINE Word from_lanes(U x) { return {(Wide)x, (Wide)x >> 32}; }
  static ALWAYS_INLINE U to_lanes(const Word& x) {
    const Wide lower = Wide{} + 0xFFFFFFFFu;
    return (U)((x.even & lower) | x.odd << 32);
  }
  static ALWAYS_INLINE void multiply(uint32_t a, const Word& b, Word& high, Word& low) {
    const Wide constant = Wide{} + a;
#if defined(__AVX512F__)
    low.even = (Wide)_mm512_mul_epu32((__m512i)b.even, (__m512i)constant);
    low.odd = (Wide)_mm512_mul_epu32((__m512i)b.odd, (__m512i)constant);
#else
    low.even = (Wide)_mm256_mul_epu32((__m256i)b.even, (__m256i)constant);
    low.odd = (Wide)_mm256_mul_epu32((__m256i)b.odd, (__m256i)constant);
#endif
    high = {low.even >> 32, low.odd >> 32};
  }
};
#endif
