// planted_conv2d on a GPU: reads torch tensors, refuses what the direct kernels are not for, and launches them.
#include "planted_conv2d.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <limits>

#include "../aten/planted_conv2d.h"
#include "../tensors/planted_conv2d.h"
#include "../tensors/python_fallback.h"
#include "../tensors/rows.h"

namespace plantops::cuda {
namespace {

using at::Tensor;
using std::string_view;

bool given(const OptionalTensor& t) { return t && t->defined(); }

void check_devices(const Tensor& first, std::initializer_list<std::pair<const char*, const OptionalTensor*>> others) {
  for (const auto& [name, tensor] : others)
    if (given(*tensor))
      TORCH_CHECK_VALUE((*tensor)->device() == first.device(), name, ": expected the device ", first.device(),
                        ", got ", (*tensor)->device());
}

// The kernels sum directly: right for any size, fast where channels are too few for the tiles of tensor cores.
void check_supported(const Tensor& weight, const Convolution& c, int64_t groups, at::IntArrayRef image) {
  constexpr int64_t kMostPlanted = 8, kFewInputs = 4, kMostPool = 15, kMostChannels = 65535;
  constexpr int64_t kMostPixels = std::numeric_limits<int>::max() / 2;
  const auto& n = c.channels;
  const auto type = weight.scalar_type();
  TORCH_CHECK_NOT_IMPLEMENTED(
      type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf,
      "planted_conv2d: impl='native' on a GPU computes float64, float32, bfloat16 and float16, got ", type);
  TORCH_CHECK_NOT_IMPLEMENTED(groups == 1, "planted_conv2d: impl='native' on a GPU computes groups 1, got ", groups);
  TORCH_CHECK_NOT_IMPLEMENTED(
      (n.planted_in <= kMostPlanted && n.planted_out <= kMostPlanted) || n.in() <= kFewInputs,
      "planted_conv2d: impl='native' on a GPU is for up to ", kMostPlanted, " planted channels, or ", kFewInputs,
      " input channels, got ", n.planted_in, " planted inputs and ", n.planted_out,
      " planted filters; wider blocks are for tensor cores: impl='triton' or 'aten'");
  TORCH_CHECK_NOT_IMPLEMENTED(
      c.pool <= kMostPool, "planted_conv2d: impl='native' pools up to 15 x 15, got ", c.pool);
  TORCH_CHECK_NOT_IMPLEMENTED(
      c.taps() <= kMostTaps, "planted_conv2d: impl='native' on a GPU computes kernels of up to ", kMostTaps,
      " taps, got ", at::IntArrayRef(c.kernel));
  TORCH_CHECK_NOT_IMPLEMENTED(n.in() <= kMostChannels && n.out() <= kMostChannels,
                              "planted_conv2d: impl='native' on a GPU computes up to ", kMostChannels,
                              " channels, got ", n.in(), " and ", n.out());
  for (int axis = 0; axis < 2; ++axis)
    TORCH_CHECK_NOT_IMPLEMENTED(
        image[axis] + 2 * c.padding[axis] + c.kernel[axis] * c.dilation[axis] <= kMostPixels,
        "planted_conv2d: impl='native' on a GPU computes images of up to ", kMostPixels, " pixels a side, got ", image);
}

Image image_of(const Tensor& t, int64_t channel = 0) {
  return {static_cast<char*>(const_cast<void*>(t.const_data_ptr())) + channel * t.stride(1) * t.element_size(),
          t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

ConvGeometry geometry_of(const Convolution& c, int64_t batch, at::IntArrayRef input, const Size2& conv) {
  const auto axis = [](const Size2& size, int i) { return int(size[i]); };
  return {batch, int(input[0]), int(input[1]), axis(conv, 0), axis(conv, 1), axis(c.kernel, 0), axis(c.kernel, 1),
          axis(c.stride, 0), axis(c.stride, 1), axis(c.padding, 0), axis(c.padding, 1), axis(c.dilation, 0),
          axis(c.dilation, 1), int(c.pool)};
}

// Contiguous weights, kept alive until their kernels are launched.
struct Weights {
  Tensor trunk, in, out;
  PlantedChannels channels;

  Weights(const Convolution& c, const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in)
      : trunk(weight.contiguous()), channels(c.channels) {
    if (given(weight_in)) in = weight_in->contiguous();
    if (given(weight_out)) out = weight_out->contiguous();
  }
  ConvWeights pointers() const {
    const auto pointer = [](const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; };
    return {channels, pointer(trunk), pointer(in), pointer(out)};
  }
};

Tensor contiguous_bias(const char* name, const OptionalTensor& bias, int64_t count, at::ScalarType type) {
  if (!given(bias)) return {};
  check_tensor(name, *bias, type, {count});
  return bias->contiguous();
}

std::tuple<Tensor, Tensor> forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
    const OptionalTensor& bias, const OptionalTensor& bias_out, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, int64_t in_start, const OptionalTensor& addend, string_view activation,
    int64_t max_pool, bool save_indices, string_view impl) {
  if (aten::computes(impl, groups))
    return aten::forward(input, weight, weight_out, weight_in, bias, bias_out, stride, padding, dilation, in_start,
                         addend, activation, max_pool, save_indices);
  if (impl != "native")
    return call_python<decltype(forward)>(
        "planted_conv2d", input, weight, weight_out, weight_in, bias, bias_out, stride, padding, dilation, groups,
        in_start, addend, activation, max_pool, save_indices, impl);
  TORCH_CHECK_VALUE(groups >= 1, "groups: expected an integer >= 1, got ", groups);
  TORCH_CHECK_NOT_IMPLEMENTED(groups == 1, "planted_conv2d: impl='native' on a GPU computes groups 1, got ", groups);
  const Convolution c =
      convolution_of(weight, weight_out, weight_in, stride, padding, dilation, in_start, activation, max_pool);
  const auto& n = c.channels;
  const at::ScalarType type = weight.scalar_type();
  const Size2 conv = check_input(c, input, type);
  check_supported(weight, c, groups, input.sizes().slice(2));
  const OptionalTensor frozen = weight;
  check_devices(input, {{"weight", &frozen}, {"weight_out", &weight_out}, {"weight_in", &weight_in}, {"bias", &bias},
                        {"bias_out", &bias_out}, {"addend", &addend}});
  const c10::cuda::CUDAGuard device(input.device());
  const std::array<int64_t, 4> shape{
      input.size(0), n.out(), pool_output_size(conv[0], c.pool), pool_output_size(conv[1], c.pool)};
  const auto format = memory_format(input);
  const Tensor output = at::empty(shape, input.options(), format);
  const bool indexed = c.pool > 1 && save_indices;
  const Tensor indices = indexed ? at::empty(shape, input.options().dtype(at::kByte), format)
                                 : at::empty({0}, input.options().dtype(at::kByte));
  const Tensor old_bias = contiguous_bias("bias", bias, n.trunk_out, type);
  const Tensor new_bias = contiguous_bias("bias_out", bias_out, n.planted_out, type);
  if (given(addend)) check_tensor("addend", *addend, type, {input.size(0), n.out(), conv[0], conv[1]});
  if (output.numel() == 0) return {output, indices};

  const Weights weights(c, weight, weight_out, weight_in);
  ConvForward arguments{};
  arguments.geometry = geometry_of(c, input.size(0), input.sizes().slice(2), conv);
  arguments.weights = weights.pointers();
  arguments.type = scalar_of(type);
  arguments.input = image_of(input);
  if (given(addend)) arguments.addend = image_of(*addend);
  arguments.output = image_of(output);
  if (indexed) arguments.indices = image_of(indices);
  if (old_bias.defined()) arguments.bias = old_bias.const_data_ptr();
  if (new_bias.defined()) arguments.bias_out = new_bias.const_data_ptr();
  arguments.relu = c.relu;
  C10_CUDA_CHECK(launch(arguments, c10::cuda::getCurrentCUDAStream()));
  return {output, indices};
}

ConvGradient gradient_of(const ConvBackward& b) {
  ConvGradient g{};
  g.values = image_of(b.grad_output);
  if (b.c.relu) {
    g.output = image_of(*b.output);
    g.output_missing = b.missing(*b.output);
  }
  if (b.c.pool > 1) {
    g.indices = image_of(*b.indices);
    g.indices_missing = b.missing(*b.indices);
  }
  return g;
}

ConvGeometry geometry_of(const ConvBackward& b) {
  return geometry_of(b.c, b.grad_output.size(0), b.input_size, b.conv_size);
}

// The gradients to a block of kernels over the channels of `input` from `input_channel` on, and to its biases; either
// result may be null.
void weight_gradient(
    const ConvBackward& b, const Tensor* input, int64_t input_channel, int64_t channels, int64_t first, int64_t rows,
    const Tensor* weight, const Tensor* bias) {
  if (weight != nullptr && (b.grad_output.numel() == 0 || weight->numel() == 0)) weight->zero_();
  if (bias != nullptr && b.grad_output.numel() == 0) bias->zero_();
  ConvWeightGrad arguments{};
  arguments.geometry = geometry_of(b);
  arguments.type = scalar_of(b.grad_output.scalar_type());
  arguments.gradient = gradient_of(b);
  if (input != nullptr) arguments.input = image_of(*input, input_channel);
  arguments.first = first;
  arguments.rows = int(rows);
  arguments.channels = int(channels);
  if (weight != nullptr) arguments.weight = weight->mutable_data_ptr();
  if (bias != nullptr) arguments.bias = bias->mutable_data_ptr();
  if (rows == 0 || arguments.columns() == 0 || b.grad_output.numel() == 0) return;
  arguments.splits = weight_grad_splits(arguments.geometry);
  const Tensor workspace = at::empty(
      {arguments.splits, rows, arguments.columns()}, b.grad_output.options().dtype(compute_type(b.grad_output)));
  arguments.workspace = workspace.mutable_data_ptr();
  C10_CUDA_CHECK(launch(arguments, c10::cuda::getCurrentCUDAStream()));
}

Tensor input_gradient(const ConvBackward& b, const Weights& weights, bool planted_only) {
  const auto& n = b.c.channels;
  const std::array<int64_t, 4> shape{b.grad_output.size(0), n.in(), b.input_size[0], b.input_size[1]};
  const Tensor grad = at::empty(shape, b.grad_output.options(), memory_format(b.grad_output));
  const int64_t first = planted_only ? n.in_start : 0, count = planted_only ? n.planted_in : n.in();
  if (count < n.in() || n.out() == 0) grad.zero_();
  if (grad.numel() == 0 || count == 0 || n.out() == 0) return grad;
  const ConvInputGrad arguments{
      geometry_of(b), weights.pointers(), scalar_of(grad.scalar_type()), gradient_of(b), image_of(grad), int(first),
      int(count), 0};
  C10_CUDA_CHECK(launch(arguments, c10::cuda::getCurrentCUDAStream()));
  return grad;
}

Tensor addend_gradient(const ConvBackward& b) {
  const int64_t channels = b.c.channels.out();
  const Tensor grad = at::empty(
      {b.grad_output.size(0), channels, b.conv_size[0], b.conv_size[1]}, b.grad_output.options(),
      memory_format(b.grad_output));
  if (grad.numel() == 0) return grad;
  const ConvAddendGrad arguments{
      geometry_of(b), scalar_of(grad.scalar_type()), gradient_of(b), image_of(grad), int(channels)};
  C10_CUDA_CHECK(launch(arguments, c10::cuda::getCurrentCUDAStream()));
  return grad;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Tensor& grad_output, const OptionalTensor& input, const Tensor& weight, const OptionalTensor& weight_out,
    const OptionalTensor& weight_in, const OptionalTensor& output, const OptionalTensor& indices,
    at::IntArrayRef input_size, at::IntArrayRef conv_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, int64_t in_start, int64_t planted_in, string_view activation,
    int64_t max_pool, string_view input_grad, std::array<bool, 5> output_mask, string_view impl) {
  if (aten::computes(impl, groups))
    return aten::backward(grad_output, input, weight, weight_out, weight_in, output, indices, input_size, conv_size,
                          stride, padding, dilation, in_start, activation, max_pool, input_grad, output_mask);
  if (impl != "native")
    return call_python<decltype(backward)>(
        "planted_conv2d_backward", grad_output, input, weight, weight_out, weight_in, output, indices, input_size,
        conv_size, stride, padding, dilation, groups, in_start, planted_in, activation, max_pool, input_grad,
        output_mask, impl);
  TORCH_CHECK_VALUE(groups >= 1, "groups: expected an integer >= 1, got ", groups);
  TORCH_CHECK_NOT_IMPLEMENTED(groups == 1, "planted_conv2d: impl='native' on a GPU computes groups 1, got ", groups);
  const Convolution c =
      convolution_of(weight, weight_out, weight_in, stride, padding, dilation, in_start, activation, max_pool);
  check_supported(weight, c, groups, input_size);
  const auto& n = c.channels;
  const at::ScalarType type = weight.scalar_type();
  const ConvBackward b{
      c, grad_output, output, indices, {input_size[0], input_size[1]}, {conv_size[0], conv_size[1]}};
  const OptionalTensor frozen = weight;
  check_devices(grad_output, {{"input", &input}, {"weight", &frozen}, {"weight_out", &weight_out},
                              {"weight_in", &weight_in}, {"output", &output}, {"indices", &indices}});
  const c10::cuda::CUDAGuard device(grad_output.device());
  const auto [want_input, want_out, want_in, want_bias, want_addend] = output_mask;
  b.check(type);
  if (want_input || want_in || want_addend) b.check_all_rows();
  const int64_t planted_from = want_out || want_in ? check_saved_input(b, input, type, want_out) : 0;
  const auto options = grad_output.options();
  Tensor grad_input, grad_out, grad_in, grad_bias, grad_addend;
  if (want_out) grad_out = at::empty({n.planted_out, n.in(), c.kernel[0], c.kernel[1]}, options);
  if (want_bias) grad_bias = at::empty({n.planted_out}, options);
  if (want_out || want_bias)
    weight_gradient(b, want_out ? &*input : nullptr, 0, want_out ? n.in() : 0, n.trunk_out, n.planted_out,
                    want_out ? &grad_out : nullptr, want_bias ? &grad_bias : nullptr);
  if (want_out) grad_out = with_strides_of(grad_out, weight_out);
  if (want_in) {
    grad_in = at::empty({n.trunk_out, n.planted_in, c.kernel[0], c.kernel[1]}, options);
    weight_gradient(b, &*input, planted_from, n.planted_in, 0, n.trunk_out, &grad_in, nullptr);
    grad_in = with_strides_of(grad_in, weight_in);
  }
  if (want_input) {
    TORCH_CHECK_VALUE(input_grad == "full" || input_grad == "planted",
                      "input_grad: expected 'full' or 'planted' when the input's gradient is requested, got '",
                      input_grad, "'");
    grad_input = input_gradient(b, Weights(c, weight, weight_out, weight_in), input_grad == "planted");
  }
  if (want_addend) grad_addend = addend_gradient(b);
  // The results of an op may not alias: one empty tensor for each gradient that was not asked for.
  const auto or_empty = [&](const Tensor& result) { return result.defined() ? result : at::empty({0}, options); };
  return {or_empty(grad_input), or_empty(grad_out), or_empty(grad_in), or_empty(grad_bias), or_empty(grad_addend)};
}

}  // namespace

TORCH_LIBRARY_IMPL(plantops, CUDA, m) {
  m.impl("planted_conv2d", &forward);
  m.impl("planted_conv2d_backward", &backward);
}

}  // namespace plantops::cuda
