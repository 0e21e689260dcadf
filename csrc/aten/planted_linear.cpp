// planted_linear in ATen calls, on any device: impl="aten". It makes the calls of plantops/ops/planted_linear/aten.py,
// which serves where there is no compiled module, and spares the interpreter between them.
#include <ATen/core/Tensor.h>
#include <ATen/ops/_unsafe_view.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <string_view>
#include <tuple>
#include <vector>

#include "../tensors/planted_conv2d.h"
#include "../tensors/python_fallback.h"
#include "../tensors/rows.h"
#include "joined_bias.h"

namespace plantops::aten {
namespace {

using at::Tensor;
using std::string_view;

// On a GPU Python's table of measurements says what "auto" is; on a CPU there is nothing else.
bool computes(string_view impl, const Tensor& t) { return impl == "aten" || (impl == "auto" && t.is_cpu()); }

// [*, C] as a matrix [rows, C].
Tensor matrix(const Tensor& x) {
  if (x.dim() == 2) return x;
  int64_t rows = 1;
  for (int64_t d = 0; d + 1 < x.dim(); ++d) rows *= x.size(d);
  return x.reshape({rows, x.size(-1)});
}

// `t`, dense, in another shape and not as a view, which autograd would not let anyone change in place.
Tensor as_own(const Tensor& t, at::IntArrayRef leading) {
  std::vector<int64_t> shape(leading.begin(), leading.end());
  shape.push_back(t.size(-1));
  return at::_unsafe_view(t.contiguous(), shape);
}

// All rows over all input features in the input's order: [F_out + P_out, F_in + P_in].
Tensor joined_weight(const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
                     int64_t in_start) {
  Tensor joined = weight;
  if (weight_in) {
    const int64_t behind = weight.size(1) - in_start;
    joined = behind == 0 ? at::cat({weight, *weight_in}, 1)
                         : at::cat({weight.narrow(1, 0, in_start), *weight_in, weight.narrow(1, in_start, behind)}, 1);
  }
  return weight_out ? at::cat({joined, *weight_out}) : joined;
}

// a @ b; in float32 on a CPU a result of a few columns as its transpose (see aten.py for what that gains).
Tensor multiply(const Tensor& a, const Tensor& b) {
  constexpr int64_t kFewest = 2, kMost = 15, kLarge = 1 << 16;
  const bool large = a.size(0) * a.size(1) * b.size(1) >= kLarge;
  const bool narrow = b.size(1) >= kFewest && b.size(1) <= kMost;
  if (large && narrow && a.scalar_type() == at::kFloat && a.is_cpu()) return at::mm(b.t(), a.t()).t();
  return at::mm(a, b);
}

// The gradient to all input features, or to the planted ones with zeros elsewhere; [rows, F_in + P_in].
Tensor input_gradient(const Tensor& grad, const Tensor& weight, const OptionalTensor& weight_out,
                      const OptionalTensor& weight_in, int64_t in_start, bool full) {
  if (full) return at::mm(grad, joined_weight(weight, weight_out, weight_in, in_start));
  const int64_t planted = weight_in ? weight_in->size(1) : 0;
  Tensor result = at::zeros({grad.size(0), weight.size(1) + planted}, grad.options());
  if (!weight_in) return result;
  Tensor columns = *weight_in;
  if (weight_out) columns = at::cat({columns, weight_out->narrow(1, in_start, planted)});
  result.narrow(1, in_start, planted).copy_(multiply(grad, columns));
  return result;
}

Tensor forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
    const OptionalTensor& bias, const OptionalTensor& bias_out, int64_t in_start, const OptionalTensor& addend,
    string_view activation, string_view impl) {
  if (!computes(impl, input))
    return call_python<decltype(forward)>("planted_linear", input, weight, weight_out, weight_in, bias, bias_out,
                                          in_start, addend, activation, impl);
  const c10::AutoGradMode no_grad(false);  // an op has no graph of its own
  // Half precision would round before the addition; one rounding only.
  const auto wide = addend ? compute_type(input) : input.scalar_type();
  OptionalTensor biases =
      joined_bias(bias, bias_out, weight.size(0), weight_out ? weight_out->size(0) : 0, weight.options());
  if (biases) biases = biases->to(wide);
  Tensor y = at::linear(matrix(input).to(wide), joined_weight(weight, weight_out, weight_in, in_start).to(wide), biases);
  if (addend) y.add_(matrix(*addend));
  if (activation == "relu") at::relu_(y);
  return as_own(y.to(input.scalar_type()), input.sizes().slice(0, input.dim() - 1));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const OptionalTensor& input, const Tensor& weight, const OptionalTensor& weight_out,
    const OptionalTensor& weight_in, const OptionalTensor& output, int64_t in_start, string_view activation,
    string_view input_grad, std::array<bool, 5> mask, string_view impl) {
  if (!computes(impl, grad_output))
    return call_python<decltype(backward)>("planted_linear_backward", grad_output, input, weight, weight_out, weight_in,
                                           output, in_start, activation, input_grad, mask, impl);
  const c10::AutoGradMode no_grad(false);
  const auto [want_input, want_out, want_in, want_bias, want_addend] = mask;
  TORCH_CHECK_VALUE(!want_out || weight_out, "weight_out: its gradient is asked for, and it is not given");
  TORCH_CHECK_VALUE(!want_in || weight_in, "weight_in: its gradient is asked for, and it is not given");
  TORCH_CHECK_VALUE(input || !(want_out || want_in), "input: needed for the weight gradients, not given");
  const int64_t trunk_out = weight.size(0), first = want_input || want_in || want_addend ? 0 : trunk_out;
  const at::IntArrayRef leading = grad_output.sizes().slice(0, grad_output.dim() - 1);
  const auto last = [](const Tensor& t, int64_t count) {
    return t.size(1) == count ? t : t.narrow(1, t.size(1) - count, count);
  };
  Tensor grad = last(matrix(grad_output), grad_output.size(-1) - first);
  if (output) grad = at::threshold_backward(grad, last(matrix(*output), grad.size(1)), 0);
  const Tensor planted = last(grad, grad.size(1) - trunk_out + first);
  Tensor grad_input, grad_out, grad_in, grad_bias, grad_addend;
  if (want_input)
    grad_input = as_own(input_gradient(grad, weight, weight_out, weight_in, in_start, input_grad == "full"), leading);
  if (want_out) grad_out = with_strides_of(multiply(planted.t(), matrix(*input)), weight_out);
  if (want_in) {
    const int64_t count = weight_in->size(1);
    const Tensor x = input->size(-1) == count ? *input : input->narrow(-1, in_start, count);
    grad_in = with_strides_of(multiply(grad.narrow(1, 0, trunk_out).t(), matrix(x)), weight_in);
  }
  if (want_bias) grad_bias = at::sum(planted, at::IntArrayRef({0}));
  // An op does not return what it was given.
  if (want_addend) grad_addend = as_own(activation == "none" ? grad.clone(at::MemoryFormat::Contiguous) : grad, leading);
  const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, grad_output.options()); };
  return {or_empty(grad_input), or_empty(grad_out), or_empty(grad_in), or_empty(grad_bias), or_empty(grad_addend)};
}

TORCH_LIBRARY_IMPL(plantops, CPU, m) {
  m.impl("planted_linear", &forward);
  m.impl("planted_linear_backward", &backward);
}

TORCH_LIBRARY_IMPL(plantops, CUDA, m) {
  m.impl("planted_linear", &forward);
  m.impl("planted_linear_backward", &backward);
}

}  // namespace
}  // namespace plantops::aten
