// What the autograd functions of the ops share. Their Python twins, for every call that is not ordinary and where there
// is no compiled module, are plantops/ops/<op>/autograd.py.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <string>
#include <string_view>

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

// A gradient whose own gradient raises.
struct SingleBackward : torch::autograd::Function<SingleBackward> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gradient, const at::TensorList& /*connected*/,
                            const std::string& op) {
    context->saved_data["op"] = op;
    return gradient;
  }
  static variable_list backward(AutogradContext* context, const variable_list&) {
    TORCH_CHECK(false, context->saved_data["op"].toStringView(),
                ": double backward is not supported; its gradient has no gradient of its own");
  }
};

// Under create_graph every gradient carries that error, connected through the saved tensors to what a second
// derivative would be taken to. (torch's once_differentiable is silent where the upstream gradient needs none.)
inline void refuse_double_backward(const char* op, variable_list& gradients, const variable_list& saved) {
  if (!at::GradMode::is_enabled()) return;
  variable_list connected;
  for (const auto& t : saved)
    if (t.defined() && t.requires_grad()) connected.push_back(t);
  for (auto& gradient : gradients)
    if (gradient.defined())
      gradient = SingleBackward::apply(gradient.detach().requires_grad_(), at::TensorList(connected), std::string(op));
}

}  // namespace plantops::eager
