// The matrix units, with float32 accumulation, and some functions that are one
// instruction, with their host twins. The only file with inline PTX. A lane holds 32-bit words of the
// operands, as the PTX manual lays them out ("Matrix Fragments for mma.m16n8k8" and
// "... m16n8k16"); with group = lane / 4 and in_group = lane % 4:
//   tf32, m16n8k8:  A [16, 8]: (group, in_group), (group + 8, in_group), then
//   both in column in_group + 4
//                   B [8, 8]:  (in_group, group), (in_group + 4, group)
//   half, m16n8k16: A [16, 16]: words of two columns, 2 in_group and the next,
//   of rows group and group + 8, then
//                   both of the columns + 8
//                   B [16, 8]:  words of two rows, 2 in_group and the next, of
//                   column group, then of the rows
//                   + 8
//   C [16, 8]: (group, 2 in_group), (group, 2 in_group + 1), then both in row
//   group + 8
#pragma once
#include "device.h"

#ifdef L0SIGN_SIMT
#include <stdexcept>
#endif

namespace l0sign::cuda {

struct alignas(16) FragmentA {
  uint32_t x[4];
};
struct FragmentB {
  uint32_t x[2];
};
struct alignas(16) FragmentC {
  float x[4];
};

// The type of the factors of a product.
enum class Factor { tf32, bf16, fp16 };

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

__device__ __forceinline__ uint32_t bits_of(float value) {
#ifdef L0SIGN_SIMT
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
#else
  return __float_as_uint(value);
#endif
}

__device__ __forceinline__ float float_of(uint32_t bits) {
#ifdef L0SIGN_SIMT
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
#else
  return __uint_as_float(bits);
#endif
}

// x, of which the compiler does not know how it came about: it stays in a register, instead of being put
// together anew for each address that it is a part of.
__device__ __forceinline__ int opaque(int x) {
#ifndef L0SIGN_SIMT
  asm("" : "+r"(x));
#endif
  return x;
}

constexpr uint32_t kTf32Bits = ~0x1FFFu, kTf32Half = 0x1000u;

// As torch.relu: a NaN stays one. One instruction.
__device__ __forceinline__ float positive(float x) {
#ifdef L0SIGN_SIMT
  return x < 0 ? 0 : x;
#else
  float y;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Functions of the GPU in one instruction each. They err by 2^-22 of the result, and the logarithm of a
// number near 1 by 2^-22; what is less than the normal numbers is 0.
#ifdef L0SIGN_SIMT
inline float fast_log2(float x) { return log2f(x); }
inline float fast_exp2(float x) { return exp2f(x); }
inline float fast_reciprocal(float x) { return 1 / x; }
#else
#define L0SIGN_FUNCTION(name, instruction)                         \
  __device__ __forceinline__ float name(float x) {                 \
    float y;                                                       \
    asm(instruction ".approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x)); \
    return y;                                                      \
  }
L0SIGN_FUNCTION(fast_log2, "lg2")
L0SIGN_FUNCTION(fast_exp2, "ex2")
L0SIGN_FUNCTION(fast_reciprocal, "rcp")
#undef L0SIGN_FUNCTION
#endif

// x in [0, 1]; a NaN stays one.
__device__ __forceinline__ float between_0_and_1(float x) {
#ifdef L0SIGN_SIMT
  return x < 0 ? 0 : x > 1 ? 1 : x;
#else
  float y;
  asm("min.NaN.f32 %0, %1, 0f3F800000;" : "=f"(y) : "f"(positive(x)));
  return y;
#endif
}

// The nearest tf32 value (10 bits behind the point; of two that are as near either).
__device__ __forceinline__ uint32_t to_tf32(float value) {
#ifdef L0SIGN_SIMT
  const uint32_t bits = bits_of(value);
  return (bits >> 23 & 0xFF) == 0xFF ? bits : (bits + kTf32Half) & kTf32Bits;
#else
  uint32_t bits;
#if __CUDA_ARCH__ >= 900
  asm("cvt.rn.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#else
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
#endif
  return bits;
#endif
}

#ifdef L0SIGN_SIMT

// The nearest half with `exponent_bits`, ties to even, as its 16 bits; too
// large a number is infinite.
inline uint32_t round_to_half(float value, int exponent_bits) {
  const int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const uint32_t sign = bits_of(value) >> 31 << 15, infinite = ((1u << exponent_bits) - 1) << fraction_bits;
  if (value != value) return sign | infinite | 1u << (fraction_bits - 1);
  const double x = fabs(static_cast<double>(value));
  if (x == 0) return sign;
  if (x > 1e39) return sign | infinite;
  const int exponent = ilogb(x) < 1 - bias ? 1 - bias : ilogb(x);  // subnormal numbers share the smallest
  // Carries from the fraction into the exponent are as they should be.
  const auto steps = static_cast<uint32_t>(nearbyint(ldexp(x, fraction_bits - exponent)));
  const uint32_t bits = (static_cast<uint32_t>(exponent + bias - 1) << fraction_bits) + steps;
  return sign | (bits > infinite ? infinite : bits);
}

inline double half_value(uint32_t bits, int exponent_bits) {
  const int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits & ((1u << exponent_bits) - 1));
  const double fraction = bits & ((1u << fraction_bits) - 1), sign = bits & 0x8000u ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) return fraction > 0 ? NAN : sign * INFINITY;
  const double whole = exponent ? 1 << fraction_bits : 0;
  return sign * ldexp(whole + fraction, (exponent ? exponent : 1) - bias - fraction_bits);
}

// Element `at` of an operand whose words hold 32 / bits elements each.
inline double element(Factor factor, const uint32_t* words, int word, int at) {
  if (factor == Factor::tf32) return float_of(words[word]);
  return half_value(words[word] >> 16 * at & 0xFFFFu, factor == Factor::bf16 ? 8 : 5);
}

#endif

// Two numbers as a word of two halves, the first in the low one.
template <Factor kFactor>
__device__ __forceinline__ uint32_t to_halves(float first, float second) {
  static_assert(kFactor != Factor::tf32, "halves only");
#ifdef L0SIGN_SIMT
  const int exponent_bits = kFactor == Factor::bf16 ? 8 : 5;
  return round_to_half(first, exponent_bits) | round_to_half(second, exponent_bits) << 16;
#else
  uint32_t word;
  if (kFactor == Factor::bf16) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(second), "f"(first));
  }
  return word;
#endif
}

// One of them again.
template <Factor kFactor>
__device__ __forceinline__ float from_halves(uint32_t word, int at) {
  static_assert(kFactor != Factor::tf32, "halves only");
#ifdef L0SIGN_SIMT
  return static_cast<float>(half_value(word >> 16 * at & 0xFFFFu, kFactor == Factor::bf16 ? 8 : 5));
#else
  if (kFactor == Factor::bf16) return float_of(at ? word & 0xFFFF0000u : word << 16);
  float value;
  const auto half = static_cast<unsigned short>(at ? word >> 16 : word);
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#endif
}

// d = a b + c. Operands of tf32 have been through to_tf32.
template <Factor kFactor>
__device__ __forceinline__ void mma(FragmentC& d, const FragmentA& a, const FragmentB& b,
                                    const FragmentC& c) {
#ifdef L0SIGN_SIMT
  struct Operands {
    FragmentA a;
    FragmentB b;
  };
  if (kFactor == Factor::tf32)
    for (const uint32_t bits : {a.x[0], a.x[1], a.x[2], a.x[3], b.x[0], b.x[1]})
      if (float_of(bits) == float_of(bits) && bits & ~kTf32Bits)
        throw std::runtime_error("mma: an operand is not tf32");
  const Operands own = {a, b};
  const simt::Site here = {__FILE__, __LINE__};
  const auto slots = simt::warp_exchange(&own, sizeof(own), here);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const auto held = [&](int by) { return reinterpret_cast<const Operands*>(slots[by]); };
  constexpr int kElements = kFactor == Factor::tf32 ? 1 : 2;  // of a word
  for (int part = 0; part < 4; ++part) {
    const int row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
    double sum = 0;                       // the hardware's own sum is wider than float32, too
    for (int word = 0; word < 8; ++word)  // of the inner index
      for (int at = 0; at < kElements; ++at)
        sum += element(kFactor, held(row % 8 * 4 + word % 4)->a.x, row / 8 + word / 4 * 2, at) *
               element(kFactor, held(column * 4 + word % 4)->b.x, word / 4, at);
    d.x[part] = static_cast<float>(c.x[part] + sum);
  }
#else
#define L0SIGN_MMA(shape_and_types)                                                                         \
  asm volatile("mma.sync.aligned." shape_and_types                                                          \
               " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"                       \
               : "=f"(d.x[0]), "=f"(d.x[1]), "=f"(d.x[2]), "=f"(d.x[3])                                     \
               : "r"(a.x[0]), "r"(a.x[1]), "r"(a.x[2]), "r"(a.x[3]), "r"(b.x[0]), "r"(b.x[1]), "f"(c.x[0]), \
                 "f"(c.x[1]), "f"(c.x[2]), "f"(c.x[3]))
  if (kFactor == Factor::tf32) {
    L0SIGN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  } else if (kFactor == Factor::bf16) {
    L0SIGN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else {
    L0SIGN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  }
#undef L0SIGN_MMA
#endif
}

#endif

}  // namespace l0sign::cuda
