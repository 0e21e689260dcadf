// What the autograd functions of the ops share. Their Python twins, for every call that is not ordinary and where there
// is no compiled module, are plantops/ops/<op>/autograd.py.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/csrc/autograd/custom_function.h>

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

// A gradient as it is, connected to a tensor that it depends on; taking a derivative raises.
struct Refused : torch::autograd::Function<Refused> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gradient, const at::Tensor& /*on*/,
                            const char* op) {
    context->saved_data["op"] = std::string(op);
    return gradient.detach();
  }

  static variable_list backward(AutogradContext* context, const variable_list& /*gradients*/) {
    TORCH_CHECK_NOT_IMPLEMENTED(false, context->saved_data["op"].toStringRef(),
                                ": double backward is not supported; its gradient has no gradient of its own");
  }
};

// Under create_graph every gradient carries an error, connected through the saved tensors and the upstream gradient to
// what a second derivative would be taken to. (torch's once_differentiable is silent where the upstream gradient needs
// none.)
inline void refuse_double_backward(const char* op, const at::Tensor& upstream, variable_list& gradients,
                                   const variable_list& saved) {
  if (!at::GradMode::is_enabled()) return;
  for (auto& gradient : gradients) {
    if (!gradient.defined()) continue;
    gradient = Refused::apply(gradient.detach().requires_grad_(), upstream, op);
    for (const auto& t : saved)
      if (t.defined() && t.requires_grad()) gradient = Refused::apply(gradient, t, op);
  }
}

// What is saved of a tensor when only a slice is needed: a compact copy of at most a quarter, else the tensor.
inline at::Tensor compact(const at::Tensor& t, int64_t dim, int64_t start, int64_t length) {
  if (4 * length > t.size(dim)) return t;
  return t.narrow(dim, start, length).clone(t.dim() == 4 ? memory_format(t) : at::MemoryFormat::Contiguous);
}

}  // namespace plantops::eager
