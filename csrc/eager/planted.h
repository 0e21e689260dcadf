// What the planted ops have in common as Python calls them: which tensors train, the call, and the end of a backward.
// Of a `Call` its file has `resolve(call)`, the implementation or -1, and `shape_of(call)`.
#pragma once

#include <c10/core/GradMode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <utility>

#include "arguments.h"
#include "autograd.h"
#include "choice.h"

namespace plantops::eager {

// Of input, weight_out, weight_in, bias_out, addend.
using Needs = std::array<bool, 5>;
using Gradients = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline bool any(const Needs& needs) { return std::find(needs.begin(), needs.end(), true) != needs.end(); }

inline OptionalTensor given(const at::Tensor& t) { return t.defined() ? OptionalTensor(t) : std::nullopt; }

// Which tensors of a call get a gradient.
template <class Call>
Needs needs_of(const Call& c) {
  const auto trained = [](const OptionalTensor& t) { return t && t->requires_grad(); };
  return {c.input.requires_grad() && c.input_grad != "none", trained(c.weight_out), trained(c.weight_in),
          trained(c.bias_out), trained(c.addend)};
}

// What backward returns: an entry for each of forward's arguments (tensors, call, needs, impl), computed by
// compute(mask). `passes`: the addend's gradient is the one that came in.
template <class Compute>
variable_list planted_gradients(const char* op, Needs mask, bool passes, const at::Tensor& grad,
                                const variable_list& saved, const Compute& compute) {
  passes = passes && mask[4];
  if (passes) mask[4] = false;
  variable_list results(8);
  if (any(mask)) {
    auto [input, out, in, bias, addend] = compute(mask);
    const std::array<at::Tensor*, 5> all{&input, &out, &in, &bias, &addend};
    for (int i = 0; i < 5; ++i)
      if (mask[i]) results[i] = std::move(*all[i]);
  }
  if (passes) results[4] = grad;
  refuse_double_backward(op, grad, results, saved);
  return results;
}

// A call from Python; forward(call, impl) computes one that trains nothing.
template <class Function, class Call, class Forward>
PyObject* planted_call(const char* op, PyObject* const* values, Py_ssize_t count, const Forward& forward) {
  HANDLE_TH_ERRORS
  Arguments arguments(values, count, Autocast::must_be_off);
  if (!arguments.ordinary()) Py_RETURN_NONE;
  const Call call(arguments);
  if (!arguments.ordinary() || !call.valid()) Py_RETURN_NONE;
  const int64_t impl = resolve(call);
  if (impl < 0) Py_RETURN_NONE;
  const Needs needs = needs_of(call);
  const bool trains = c10::GradMode::is_enabled() && any(needs);
  const auto compute = [&](int64_t chosen) -> at::Tensor {
    const pybind11::gil_scoped_release others_run;
    return trains ? Function::apply(call.input, call.weight_out, call.weight_in, call.bias_out, call.addend, call, needs,
                                    chosen)
                  : forward(call, chosen);
  };
  if (call.impl != kImpls[kAuto]) return THPVariable_Wrap(compute(impl));
  return THPVariable_Wrap(computed(impl, op, [&] { return shape_of(call); }, compute));
  END_HANDLE_TH_ERRORS
}

}  // namespace plantops::eager
