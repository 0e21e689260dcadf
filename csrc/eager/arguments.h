// Reading a call from Python. The functions in this folder are shortcuts for the ordinary call: plain tensors, Python
// integers, nothing switched on around it that changes what a call means. They return None for every other one, right
// or wrong, and plantops/functional.py takes it from there in Python: it casts, traces, or says what is wrong.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace plantops::eager {

using OptionalTensor = std::optional<at::Tensor>;

enum class Autocast { must_be_off, means_nothing };

// No tracing, inference mode, functional transform, no mode that wants to see the call, and no autocast.
bool ordinary_thread(Autocast autocast);

// Reads positional arguments one by one. After something unexpected `ordinary()` is false and the values mean nothing.
class Arguments {
 public:
  Arguments(PyObject* const* values, Py_ssize_t count, Autocast autocast)
      : values_(values, static_cast<size_t>(count)), ordinary_(ordinary_thread(autocast)) {}

  bool ordinary() const { return ordinary_; }

  at::Tensor tensor();  // a plain dense one on a CPU or a CUDA device, without a forward-mode tangent
  OptionalTensor optional_tensor();
  int64_t integer();
  std::optional<int64_t> optional_integer();
  std::array<int64_t, 2> pair();  // an integer stands for two
  double number();
  std::string_view text();

 private:
  PyObject* next() { return next_ < values_.size() ? values_[next_++] : (ordinary_ = false, Py_None); }
  int64_t integer(PyObject* value);

  std::span<PyObject* const> values_;
  size_t next_ = 0;
  bool ordinary_;
};

// What the checks of several ops ask. An absent tensor passes all of them.
bool is_float(const at::Tensor& t);  // of a dtype that the ops compute in
inline bool alike(const OptionalTensor& t, const at::Tensor& first) {
  return !t || (t->scalar_type() == first.scalar_type() && t->device() == first.device());
}
inline bool has_shape(const OptionalTensor& t, at::IntArrayRef shape) { return !t || t->sizes() == shape; }
bool frozen(const OptionalTensor& t);  // no gradient is wanted of it

pybind11::object wrapped(const OptionalTensor& t);  // as Python sees it

// The entries of the module's table of functions, METH_FASTCALL.
PyObject* planted_conv2d(PyObject* self, PyObject* const* values, Py_ssize_t count);
PyObject* planted_linear(PyObject* self, PyObject* const* values, Py_ssize_t count);
PyObject* kl_div_logits(PyObject* self, PyObject* const* values, Py_ssize_t count);
PyObject* kl_div_logits_value_and_grad(PyObject* self, PyObject* const* values, Py_ssize_t count);
PyObject* distillation_loss(PyObject* self, PyObject* const* values, Py_ssize_t count);
PyObject* forget_choices(PyObject* self, PyObject* none);

}  // namespace plantops::eager
