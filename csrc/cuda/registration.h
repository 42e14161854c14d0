// The operators for CUDA tensors: what torch knows, and what build_info() tells of them, is one list.
#pragma once
#include <torch/csrc/stable/library.h>

#include "cuda/run.h"

namespace l0sign {

struct OperatorOnCuda {
  const char* name;
  void (*boxed)(StableIValue*, uint64_t, uint64_t);
};

template <class Library>
void register_on_cuda(Library& library, const OperatorOnCuda& op) {
  library.impl(op.name, op.boxed);
  cuda::operators().emplace_back(op.name);
}

}  // namespace l0sign
