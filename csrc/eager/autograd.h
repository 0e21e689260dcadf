// What the autograd functions of the ops share. Their Python twins, for every call that is not ordinary and where there
// is no compiled module, are plantops/ops/<op>/autograd.py.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/basic_ops.h>

#include <string>
#include <utility>

#include "../tensors/planted_conv2d.h"

namespace plantops::eager {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Calls an op as torch would call it from inside a kernel: past autograd and autocast, seen by profilers and modes.
template <class Signature>
class Op {
 public:
  explicit Op(const char* name)
      : handle_(c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>()) {}

  template <class... Args>
  auto operator()(Args&&... args) const {
    const at::AutoDispatchBelowAutograd below;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    return handle_.call(std::forward<Args>(args)...);
  }

 private:
  c10::TypedOperatorHandle<Signature> handle_;
};

// Under create_graph every gradient carries an error, connected through the saved tensors to what a second derivative
// would be taken to. (torch's once_differentiable is silent where the upstream gradient needs none.)
inline void refuse_double_backward(const char* op, variable_list& gradients, const variable_list& saved) {
  if (!at::GradMode::is_enabled()) return;
  variable_list connected{at::Tensor()};  // the gradient comes first
  for (const auto& t : saved)
    if (t.defined() && t.requires_grad()) connected.push_back(t);
  torch::autograd::DelayedError refuse(
      std::string(op) + ": double backward is not supported; its gradient has no gradient of its own",
      int64_t(connected.size()));
  for (auto& gradient : gradients) {
    if (!gradient.defined()) continue;
    variable_list inputs = connected;
    inputs[0] = gradient.detach().requires_grad_();
    gradient = refuse.apply(std::move(inputs))[0];
  }
}

// What is saved of a tensor when only a slice is needed: a compact copy of at most a quarter, else the tensor.
inline at::Tensor compact(const at::Tensor& t, int64_t dim, int64_t start, int64_t length) {
  if (4 * length > t.size(dim)) return t;
  return t.narrow(dim, start, length).clone(t.dim() == 4 ? memory_format(t) : at::MemoryFormat::Contiguous);
}

}  // namespace plantops::eager
