#include "arguments.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>

#include <limits>

namespace plantops::eager {
namespace {

bool plain(const at::Tensor& t) {
  using enum c10::DispatchKey;
  constexpr c10::DispatchKeySet known(
      {CPU, CUDA, AutogradCPU, AutogradCUDA, AutocastCPU, AutocastCUDA, ADInplaceOrView});
  const auto keys = t.key_set();
  return (keys.raw_repr() & ~known.raw_repr()) == 0 && keys.has(ADInplaceOrView) && !t._fw_grad(0).defined();
}

// `with torch.device(...)` and torch.set_default_device are modes too, but ones that only calls without a device feel.
bool only_default_devices() {
  using at::impl::PythonTorchFunctionTLS;
  for (int64_t i = 0; i < PythonTorchFunctionTLS::stack_len(); ++i) {
    const PyObject* mode = PythonTorchFunctionTLS::get_stack_at(i)->ptr(getPyInterpreter());
    if (std::string_view(Py_TYPE(mode)->tp_name) != "DeviceContext") return false;
  }
  return true;
}

}  // namespace

bool ordinary_thread(Autocast autocast) {
  const auto keys = c10::impl::tls_local_dispatch_key_set();
  // What torch excludes by default are the keys of autocast: switched on, they are missing there.
  const auto excluded = autocast == Autocast::must_be_off ? keys.excluded_ : keys.excluded_ | c10::default_excluded_set;
  return keys.included_ == c10::default_included_set && excluded == c10::default_excluded_set &&
         (!at::impl::torch_function_mode_enabled() || only_default_devices());
}

bool is_float(const at::Tensor& t) {
  const auto type = t.scalar_type();
  return type == at::kFloat || type == at::kBFloat16 || type == at::kHalf || type == at::kDouble;
}

bool frozen(const OptionalTensor& t) { return !t || !t->requires_grad() || !c10::GradMode::is_enabled(); }

pybind11::object wrapped(const OptionalTensor& t) {
  if (!t || !t->defined()) return pybind11::none();
  return pybind11::reinterpret_steal<pybind11::object>(THPVariable_Wrap(*t));
}

at::Tensor Arguments::tensor() {
  PyObject* value = next();
  if (ordinary_ && THPVariable_CheckExact(value)) {
    const at::Tensor& t = THPVariable_Unpack(value);
    if (plain(t)) return t;
  }
  ordinary_ = false;
  return {};
}

OptionalTensor Arguments::optional_tensor() {
  if (next_ < values_.size() && values_[next_] == Py_None) {
    ++next_;
    return std::nullopt;
  }
  return tensor();
}

int64_t Arguments::integer(PyObject* value) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // sums and products of sizes stay far from overflow
  int overflow = 0;
  const int64_t number = PyLong_CheckExact(value) ? PyLong_AsLongLongAndOverflow(value, &overflow) : kMost + 1;
  if (overflow != 0 || number > kMost || number < -kMost) ordinary_ = false;
  return number;
}

int64_t Arguments::integer() { return integer(next()); }

std::optional<int64_t> Arguments::optional_integer() {
  PyObject* value = next();
  if (value == Py_None) return std::nullopt;
  return integer(value);
}

std::array<int64_t, 2> Arguments::pair() {
  PyObject* value = next();
  if (PyTuple_CheckExact(value) && PyTuple_GET_SIZE(value) == 2)
    return {integer(PyTuple_GET_ITEM(value, 0)), integer(PyTuple_GET_ITEM(value, 1))};
  const int64_t both = integer(value);
  return {both, both};
}

double Arguments::number() {
  PyObject* value = next();
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  return static_cast<double>(integer(value));
}

std::string_view Arguments::text() {
  PyObject* value = next();
  Py_ssize_t length = 0;
  const char* letters = PyUnicode_CheckExact(value) ? PyUnicode_AsUTF8AndSize(value, &length) : nullptr;
  if (letters == nullptr) {
    PyErr_Clear();
    ordinary_ = false;
    return {};
  }
  return {letters, static_cast<size_t>(length)};
}

}  // namespace plantops::eager
