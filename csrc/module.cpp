// Entry of plantops._C: build information and the shortcuts of eager/. The op kernels register themselves
// (TORCH_LIBRARY_IMPL in cpu/*.cpp and cuda/*.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "cpu/simd/isa.h"
#include "eager/arguments.h"

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

template <PyObject* (*function)(PyObject*, PyObject* const*, Py_ssize_t)>
PyMethodDef shortcut(const char* name, const char* doc) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), METH_FASTCALL, doc};
}

PyMethodDef shortcuts[] = {
    shortcut<plantops::eager::planted_conv2d>(
        "planted_conv2d",
        "(input, weight, weight_out, weight_in, bias, bias_out, stride, padding, dilation, groups, in_start, addend,"
        " activation, max_pool, input_grad, impl) -> Tensor, or None for what is not an ordinary call."),
    shortcut<plantops::eager::planted_linear>(
        "planted_linear",
        "(input, weight, weight_out, weight_in, bias, bias_out, in_start, addend, activation, input_grad, impl)"
        " -> Tensor or None."),
    shortcut<plantops::eager::kl_div_logits>(
        "kl_div_logits", "(student, teacher, temperature, reduction, impl) -> Tensor or None."),
    shortcut<plantops::eager::kl_div_logits_value_and_grad>(
        "kl_div_logits_value_and_grad", "(student, teacher, temperature, reduction, impl) -> (Tensor, Tensor) or None."),
    shortcut<plantops::eager::distillation_loss>(
        "distillation_loss",
        "(student, teacher, target, alpha, temperature, label_smoothing, ignore_index, reduction, impl) -> Tensor or None."),
    {"forget_choices", plantops::eager::forget_choices, METH_NOARGS, "Ask again what impl='auto' stands for."},
    {nullptr, nullptr, 0, nullptr},
};

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of plantops.";
  m.def("build_info", &build_info, "Compiler, instruction sets, torch version and CUDA architectures of this build.");
  if (PyModule_AddFunctions(m.ptr(), shortcuts) != 0) throw pybind11::error_already_set();
}
