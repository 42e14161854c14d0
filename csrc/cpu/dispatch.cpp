#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace l0sign {
namespace cpu {

#define L0SIGN_DECLARE(name)                          \
  extern const Kernels<float> kernels_##name##_float; \
  extern const Kernels<double> kernels_##name##_double;
L0SIGN_DECLARE(portable)
#ifdef L0SIGN_HAVE_AVX2
L0SIGN_DECLARE(avx2)
#endif
#ifdef L0SIGN_HAVE_AVX512
L0SIGN_DECLARE(avx512)
#endif
#undef L0SIGN_DECLARE

namespace {

struct Choice {
  std::string name;
  const Kernels<float>* f32;
  const Kernels<double>* f64;
};

// Those that can run here, the best first.
std::vector<Choice> runnable() {
  std::vector<Choice> found;
#ifdef L0SIGN_HAVE_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma"))
    found.push_back({"avx512", &kernels_avx512_float, &kernels_avx512_double});
#endif
#ifdef L0SIGN_HAVE_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    found.push_back({"avx2", &kernels_avx2_float, &kernels_avx2_double});
#endif
  found.push_back({"portable", &kernels_portable_float, &kernels_portable_double});
  return found;
}

const Choice& chosen() {
  static const Choice choice = [] {
    const std::vector<Choice> found = runnable();
    const char* wanted = std::getenv("L0SIGN_CPU_CAPABILITY");
    if (!wanted || !*wanted) return found.front();
    std::string names;
    for (const Choice& c : found) {
      if (c.name == wanted) return c;
      names += (names.empty() ? "" : ", ") + c.name;
    }
    throw std::runtime_error("L0SIGN_CPU_CAPABILITY: expected one of " + names + " on this processor, got " +
                             wanted);
  }();
  return choice;
}

}  // namespace

const std::string& capability() { return chosen().name; }

template <>
const Kernels<float>& kernels<float>() {
  return *chosen().f32;
}

template <>
const Kernels<double>& kernels<double>() {
  return *chosen().f64;
}

}  // namespace cpu
}  // namespace l0sign
