// The Python module _C: what was built, and what it will use. The operators register themselves on loading.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/rooms.h"
#ifdef L0SIGN_HAVE_CUDA
#include "cuda/run.h"
#endif

namespace py = pybind11;

namespace {

#define L0SIGN_STRING_(text) #text
#define L0SIGN_STRING(text) L0SIGN_STRING_(text)
#if defined(__clang__)
constexpr const char* kCompiler = "clang " __clang_version__;
#else
constexpr const char* kCompiler =
    "gcc " L0SIGN_STRING(__GNUC__) "." L0SIGN_STRING(__GNUC_MINOR__) "." L0SIGN_STRING(__GNUC_PATCHLEVEL__);
#endif

[[maybe_unused]] std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

std::string torch_target() {
  constexpr unsigned long long target = TORCH_TARGET_VERSION;
  return std::to_string(target >> 56 & 0xff) + "." + std::to_string(target >> 48 & 0xff);
}

py::dict build_info() {
  std::vector<std::string> instruction_sets{"portable"};
#ifdef L0SIGN_HAVE_AVX2
  instruction_sets.emplace_back("avx2");
#endif
#ifdef L0SIGN_HAVE_AVX512
  instruction_sets.emplace_back("avx512");
#endif

  py::dict info;
  info["version"] = L0SIGN_VERSION;
  info["compiler"] = kCompiler;
  info["torch_target"] = torch_target();
  info["torch_headers"] = L0SIGN_TORCH_VERSION;
  info["cpu_instruction_sets"] = instruction_sets;
#ifdef L0SIGN_HAVE_CUDA
  info["cuda_version"] = L0SIGN_CUDA_VERSION;
  info["cuda_architectures"] = split(L0SIGN_CUDA_ARCHITECTURES, ',');
  info["cuda_operators"] = l0sign::cuda::operators();
#else
  info["cuda_version"] = py::none();
  info["cuda_architectures"] = py::list();
  info["cuda_operators"] = py::list();
#endif
  return info;
}

// What torch has been told about float32 products; the stable ABI does not tell. This setting knows of
// torch.set_float32_matmul_precision and allow_tf32, which do not know of it.
bool tf32_allowed() {
  if (!Py_IsInitialized()) return false;
  const py::gil_scoped_acquire gil;
  const py::object matmul = py::module_::import("torch").attr("backends").attr("cuda").attr("matmul");
  return matmul.attr("fp32_precision").cast<std::string>() == "tf32";
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of l0sign_cuda. Loading it registers torch.ops.l0sign_cuda.*";
  m.def("build_info", &build_info, "What this binary was built with and for.");
  m.def(
      "cpu_capability", [] { return std::string(l0sign::cpu::capability()); },
      "The CPU kernels in use here: avx512, avx2 or portable.");
  py::class_<l0sign::cpu::Room>(m, "Room", "Memory for what a CPU forward leaves for its backward.")
      .def(py::init<>())
      .def_property_readonly("number", &l0sign::cpu::Room::number);
  m.def("tf32_allowed", &tf32_allowed, "Whether CUDA kernels may round float32 products to tf32.");
#ifdef L0SIGN_HAVE_CUDA
  l0sign::cuda::set_tf32_source(&tf32_allowed);
#endif
}
