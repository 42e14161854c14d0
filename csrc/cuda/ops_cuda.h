#pragma once
#include <string>
#include <vector>

namespace l0sign::cuda {

// Names of the operators that have a CUDA kernel in this build.
std::vector<std::string> operators();

}  // namespace l0sign::cuda
