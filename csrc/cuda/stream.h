// The current CUDA stream of torch.
#pragma once
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <stdexcept>

// Only a torch with CUDA has this symbol; weak, so that the module loads beside any other too. (It is null
// there.) The header hides its declaration behind USE_CUDA.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace l0sign::cuda {

inline cudaStream_t current_stream(int32_t device_index) {
  void* stream = nullptr;
  if (!aoti_torch_get_current_cuda_stream)
    throw std::runtime_error("l0sign_cuda: this torch is built without CUDA");
  if (aoti_torch_get_current_cuda_stream(device_index, &stream) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("l0sign_cuda: torch did not give its current CUDA stream");
  }
  return static_cast<cudaStream_t>(stream);
}

}  // namespace l0sign::cuda
