#define L0SIGN_KERNELS(type) kernels_avx2_##type
#include "kernels.inc"
