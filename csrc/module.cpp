// Entry of plantops._C: build information. The op kernels register themselves (TORCH_LIBRARY_IMPL in cpu/*.cpp and cuda/*.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "cpu/simd/isa.h"

#if !defined(PLANTOPS_CUDA_VERSION)
#define PLANTOPS_CUDA_VERSION ""
#define PLANTOPS_CUDA_ARCHITECTURES ""
#endif

namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

std::map<std::string, std::string> build_info() {
  return {
      {"version", PLANTOPS_VERSION},
      {"torch", PLANTOPS_TORCH_VERSION},
      {"compiler", compiler()},
      {"instruction_sets", PLANTOPS_ISA_LEVELS},
      {"instruction_set_in_use", plantops::isa_name(plantops::active_isa())},
      {"cuda_version", PLANTOPS_CUDA_VERSION},
      {"cuda_architectures", PLANTOPS_CUDA_ARCHITECTURES},
  };
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of plantops.";
  m.def("build_info", &build_info, "Compiler, instruction sets, torch version and CUDA architectures of this build.");
}
