#define L0SIGN_KERNELS(type) kernels_avx512_##type
#include "kernels.inc"
