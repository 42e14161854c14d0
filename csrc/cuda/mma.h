// The matrix units, m16n8k8 in tf32 with float32 accumulation, and their host twins. The only file with
// inline PTX. Fragments as the PTX manual lays them out ("Matrix Fragments for mma.m16n8k8"); with group =
// lane / 4 and in_group = lane % 4:
//   A [16, 8]: x[0] (group, in_group), x[1] (group + 8, in_group), x[2] (group, in_group + 4),
//              x[3] (group + 8, in_group + 4)
//   B [8, 8]:  x[0] (in_group, group), x[1] (in_group + 4, group)
//   C [16, 8]: x[0] (group, 2 in_group), x[1] (group, 2 in_group + 1), x[2] and x[3] the same in row group +
//   8
#pragma once
#include "device.h"

#ifdef L0SIGN_SIMT
#include <stdexcept>
#endif

namespace l0sign::cuda {

struct alignas(16) FragmentA {
  float x[4];
};
struct FragmentB {
  float x[2];
};
struct FragmentC {
  float x[4];
};

#if defined(__CUDACC__) || defined(L0SIGN_SIMT)

// The nearest tf32 value (10 bits behind the point; ties away from zero).
__device__ __forceinline__ float to_tf32(float value) {
#ifdef L0SIGN_SIMT
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  if ((bits >> 23 & 0xFF) != 0xFF) bits = (bits + 0x1000u) & ~0x1FFFu;
  memcpy(&value, &bits, sizeof(bits));
  return value;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return __uint_as_float(bits);
#endif
}

// c += a b. Operands have been through to_tf32.
__device__ __forceinline__ void mma_tf32(FragmentC& c, const FragmentA& a, const FragmentB& b) {
#ifdef L0SIGN_SIMT
  struct Operands {
    FragmentA a;
    FragmentB b;
  };
  const simt::Site here = {__FILE__, __LINE__};
  for (const float operand : {a.x[0], a.x[1], a.x[2], a.x[3], b.x[0], b.x[1]}) {
    uint32_t bits;
    memcpy(&bits, &operand, sizeof(bits));
    if (operand == operand && bits & 0x1FFFu) throw std::runtime_error("mma_tf32: an operand is not tf32");
  }
  const Operands own = {a, b};
  const auto slots = simt::warp_exchange(&own, sizeof(own), here);
  const int lane = static_cast<int>(threadIdx.x % kWarp);
  const auto held = [&](int by) { return reinterpret_cast<const Operands*>(slots[by]); };
  for (int part = 0; part < 4; ++part) {
    const int row = lane / 4 + part / 2 * 8, column = lane % 4 * 2 + part % 2;
    double sum = 0;  // the hardware's own sum is wider than float32, too
    for (int k = 0; k < 8; ++k)
      sum += static_cast<double>(held(row % 8 * 4 + k % 4)->a.x[row / 8 + k / 4 * 2]) *
             held(column * 4 + k % 4)->b.x[k / 4];
    c.x[part] = static_cast<float>(c.x[part] + sum);
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c.x[0]), "+f"(c.x[1]), "+f"(c.x[2]), "+f"(c.x[3])
      : "r"(__float_as_uint(a.x[0])), "r"(__float_as_uint(a.x[1])), "r"(__float_as_uint(a.x[2])),
        "r"(__float_as_uint(a.x[3])), "r"(__float_as_uint(b.x[0])), "r"(__float_as_uint(b.x[1])));
#endif
}

#endif

}  // namespace l0sign::cuda
