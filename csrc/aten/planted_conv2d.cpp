#include "planted_conv2d.h"

#include <ATen/ops/add.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/ge.h>
#include <ATen/ops/max_pool2d_with_indices.h>
#include <ATen/ops/max_pool2d_with_indices_backward.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>

#include <vector>

#include "../tensors/rows.h"
#include "joined_bias.h"

namespace plantops::aten {
namespace {

using at::Tensor;

// All filters over all input channels in the input's order: [F_out + P_out, F_in + P_in, kH, kW].
Tensor joined_weight(const PlantedChannels& n, const Tensor& weight, const OptionalTensor& weight_out,
                     const OptionalTensor& weight_in, at::MemoryFormat format) {
  Tensor joined = weight;
  if (n.planted_in > 0) {
    const Tensor behind = weight.narrow(1, n.in_start, n.trunk_in - n.in_start);
    joined = n.in_start == n.trunk_in ? at::cat({weight, *weight_in}, 1)
                                      : at::cat({weight.narrow(1, 0, n.in_start), *weight_in, behind}, 1);
  }
  if (n.planted_out > 0) joined = at::cat({joined, *weight_out});
  return joined.contiguous(format);
}

Tensor convolve(const Convolution& c, const Tensor& x, const Tensor& weight, const OptionalTensor& bias,
                const Size2& size) {
  if (weight.numel() == 0 || x.size(0) == 0) {
    // No filter, no image, or no input channel, where ATen's result has no output channels.
    Tensor y = at::zeros({x.size(0), weight.size(0), size[0], size[1]}, x.options());
    return bias ? y.add_(bias->view({-1, 1, 1})) : y;
  }
  return at::convolution(x, weight, bias, c.stride, c.padding, c.dilation, false, {0, 0}, 1);
}

// The flat position of each pooling window's first pixel, [H', W'].
Tensor corners(int64_t height, int64_t width, int64_t m, int64_t row, const at::TensorOptions& options) {
  const auto ints = options.dtype(at::kInt);
  return at::add(at::arange(height, ints).mul_(m * row).unsqueeze(1), at::arange(width, ints).mul_(m));
}

// The maxima, and when asked for the row-major position of each in its window as uint8.
std::tuple<Tensor, Tensor> pool(const Tensor& y, int64_t m, bool save_indices) {
  if (y.numel() == 0) {  // no channel, which ATen refuses
    const Tensor none = at::empty({y.size(0), y.size(1), y.size(2) / m, y.size(3) / m}, y.options());
    return {none, save_indices ? none.to(at::kByte) : at::empty({0}, y.options().dtype(at::kByte))};
  }
  auto [maxima, flat] = at::max_pool2d_with_indices(y, {m, m}, {m, m});
  if (!save_indices) return {maxima, at::empty({0}, y.options().dtype(at::kByte))};
  const int64_t width = y.size(3);
  // flat = corner + dy * width + dx. Comparisons are far cheaper than integer division.
  Tensor offset = flat.to(at::kInt).sub_(corners(maxima.size(2), maxima.size(3), m, width, y.options()));
  std::vector<Tensor> below;
  for (int64_t dy = 1; dy < m; ++dy) below.push_back(at::ge(offset, dy * width));
  for (const Tensor& rows : below) offset.add_(rows, m - width);
  return {maxima, offset.to(at::kByte)};
}

// The gradient before pooling, in the memory format of `indices`: each window's at its maximum, else zero.
Tensor unpool(const Tensor& grad, const Tensor& indices, int64_t m, const Size2& size) {
  const auto format = memory_format(indices);
  const Tensor before = at::empty({grad.size(0), grad.size(1), size[0], size[1]}, grad.options(), format);
  if (before.numel() == 0) return before;  // no channel, which ATen refuses
  Tensor flat = indices.to(at::kInt);
  for (int64_t dy = 1; dy < m; ++dy) flat.add_(at::ge(indices, dy * m), size[1] - m);
  flat.add_(corners(indices.size(2), indices.size(3), m, size[1], grad.options()));
  return at::max_pool2d_with_indices_backward(grad.contiguous(format), before, {m, m}, {m, m}, {0, 0}, {1, 1}, false,
                                              flat.to(at::kLong));
}

// Kernels of one pixel, a stride and no border on a CPU: see plantops/ops/_strided.py.
bool stepped(const Convolution& c, const Tensor& x) {
  const auto [rows, columns] = c.stride;
  return x.is_cpu() && c.taps() == 1 && (rows > 1 || columns > 1) && c.padding == Size2{0, 0};
}

// The gradient to one block of filters.
Tensor weight_grad(const Convolution& c, const Tensor& grad, const Tensor& x, const Tensor& weight) {
  if (weight.numel() == 0 || grad.numel() == 0) return at::zeros_like(weight);
  const bool step = stepped(c, x);
  const Tensor read = step ? x.slice(2, 0, {}, c.stride[0]).slice(3, 0, {}, c.stride[1]) : x;
  const Tensor result = std::get<1>(at::convolution_backward(
      grad, read, weight, at::OptionalIntArrayRef(), step ? Size2{1, 1} : c.stride, c.padding, c.dilation, false,
      {0, 0}, 1, {false, true, false}));
  return with_strides_of(result, weight);
}

// The gradient to the input channels that `weight` reads.
Tensor input_grad_of(const ConvBackward& b, const Tensor& grad, const Tensor& weight, at::MemoryFormat format) {
  const std::array<int64_t, 4> shape{grad.size(0), weight.size(1), b.input_size[0], b.input_size[1]};
  Tensor like = at::empty(shape, grad.options(), format);
  if (weight.numel() == 0 || grad.numel() == 0) return like.zero_();
  const Tensor result = std::get<0>(at::convolution_backward(
      grad, like, weight.contiguous(format), at::OptionalIntArrayRef(), b.c.stride, b.c.padding, b.c.dilation, false,
      {0, 0}, 1, {true, false, false}));
  return result.contiguous(format);
}

// Only the planted input channels get a gradient; the others' is zero by definition.
Tensor planted_input_grad(const ConvBackward& b, const Tensor& grad, const OptionalTensor& weight_out,
                          const OptionalTensor& weight_in, at::MemoryFormat format) {
  const auto& n = b.c.channels;
  Tensor result = at::empty({grad.size(0), n.in(), b.input_size[0], b.input_size[1]}, grad.options(), format).zero_();
  if (n.planted_in == 0) return result;
  Tensor columns = *weight_in;
  if (weight_out) columns = at::cat({columns, weight_out->narrow(1, n.in_start, n.planted_in)});
  result.narrow(1, n.in_start, n.planted_in).copy_(input_grad_of(b, grad, columns, format));
  return result;
}

}  // namespace

std::tuple<Tensor, Tensor> forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
    const OptionalTensor& bias, const OptionalTensor& bias_out, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t in_start, const OptionalTensor& addend, std::string_view activation,
    int64_t max_pool, bool save_indices) {
  const c10::AutoGradMode no_grad(false);  // an op has no graph of its own
  const Convolution c =
      convolution_of(weight, weight_out, weight_in, stride, padding, dilation, in_start, activation, max_pool);
  const auto type = weight.scalar_type();
  const Size2 size = check_input(c, input, type);
  const auto format = memory_format(input);
  // Half precision would round before the addition; one rounding only.
  const auto wide = addend ? compute_type(input) : type;
  const Tensor joined = joined_weight(c.channels, weight, weight_out, weight_in, format).to(wide);
  OptionalTensor biases = joined_bias(bias, bias_out, c.channels.trunk_out, c.channels.planted_out, weight.options());
  if (biases) biases = biases->to(wide);
  Tensor y = convolve(c, input.to(wide), joined, biases, size);
  if (addend) y.add_(*addend);
  Tensor indices = at::empty({0}, input.options().dtype(at::kByte));
  if (c.pool > 1) std::tie(y, indices) = pool(y, c.pool, save_indices);
  // Behind the pooling, on fewer pixels: it keeps the maximum, and where all are negative the gradient is 0.
  if (c.relu) at::relu_(y);
  if (indices.dim() == 4) indices = indices.contiguous(format);
  return {y.to(type).contiguous(format), indices};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const OptionalTensor& input, const Tensor& weight, const OptionalTensor& weight_out,
    const OptionalTensor& weight_in, const OptionalTensor& output, const OptionalTensor& indices,
    at::IntArrayRef input_size, at::IntArrayRef conv_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t in_start, std::string_view activation, int64_t max_pool,
    std::string_view input_grad, const std::array<bool, 5>& mask) {
  const c10::AutoGradMode no_grad(false);
  const ConvBackward b{
      convolution_of(weight, weight_out, weight_in, stride, padding, dilation, in_start, activation, max_pool),
      grad_output, output, indices, {input_size[0], input_size[1]}, {conv_size[0], conv_size[1]}};
  const auto [want_input, want_out, want_in, want_bias, want_addend] = mask;
  const auto& n = b.c.channels;
  b.check(weight.scalar_type());
  if (want_input || want_in || want_addend) b.check_all_rows();
  TORCH_CHECK_VALUE(!want_out || weight_out, "weight_out: its gradient is asked for, and it is not given");
  TORCH_CHECK_VALUE(!want_in || weight_in, "weight_in: its gradient is asked for, and it is not given");
  const int64_t planted_from = want_out || want_in ? check_saved_input(b, input, weight.scalar_type(), want_out) : 0;
  const auto format = memory_format(b.grad_output);
  const int64_t first = want_input || want_in || want_addend ? 0 : n.trunk_out, count = n.out() - first;
  const auto rows = [&](const Tensor& t) { return t.size(1) == count ? t : t.narrow(1, t.size(1) - count, count); };
  Tensor grad = rows(b.grad_output);
  if (b.c.relu) grad = at::threshold_backward(grad, rows(*b.output), 0);
  const auto planted = [&] { return first == n.trunk_out ? grad : grad.narrow(1, n.trunk_out, n.planted_out); };
  Tensor grad_input, grad_out, grad_in, grad_bias, grad_addend;
  if (want_bias) grad_bias = at::sum(planted(), {0, 2, 3});
  if (b.c.pool > 1 && (want_input || want_out || want_in || want_addend))
    grad = unpool(grad, rows(*b.indices), b.c.pool, b.conv_size);
  if (want_input)
    grad_input = input_grad == "planted"
                     ? planted_input_grad(b, grad, weight_out, weight_in, format)
                     : input_grad_of(b, grad, joined_weight(n, weight, weight_out, weight_in, format), format);
  if (want_out) grad_out = weight_grad(b.c, planted(), *input, *weight_out);
  if (want_in)
    grad_in = weight_grad(b.c, grad.narrow(1, 0, n.trunk_out), input->narrow(1, planted_from, n.planted_in), *weight_in);
  // An op does not return what it was given.
  if (want_addend) grad_addend = (!b.c.relu && b.c.pool == 1 ? grad.clone() : grad).contiguous(format);
  const auto or_empty = [&](const Tensor& t) { return t.defined() ? t : at::empty({0}, b.grad_output.options()); };
  return {or_empty(grad_input), or_empty(grad_out), or_empty(grad_in), or_empty(grad_bias), or_empty(grad_addend)};
}

}  // namespace plantops::aten
