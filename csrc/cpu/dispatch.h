// Which kernels run on this processor.
#pragma once
#include <string>

#include "kernels.h"

namespace l0sign {
namespace cpu {

// "avx512", "avx2" or "portable": the best that this build has and this processor runs, or the one that the
// environment variable L0SIGN_CPU_CAPABILITY names. Throws std::runtime_error if that one is unknown or
// cannot run here.
const std::string& capability();

// The kernel table of that instruction set.
template <class A>
const Kernels<A>& kernels();

}  // namespace cpu
}  // namespace l0sign
