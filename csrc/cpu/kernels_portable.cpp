#define L0SIGN_KERNELS(type) kernels_portable_##type
#include "kernels.inc"
