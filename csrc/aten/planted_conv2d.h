// planted_conv2d in ATen calls, on any device: impl="aten" of ungrouped convolutions. It makes the calls of
// plantops/ops/planted_conv2d/aten.py, which serves where there is no compiled module, and spares the interpreter
// between them: most of what a small convolution costs the host.
#pragma once

#include <array>
#include <tuple>

#include "../tensors/planted_conv2d.h"

namespace plantops::aten {

// Whether `impl` with these groups is computed here.
inline bool computes(std::string_view impl, int64_t groups) { return impl == "aten" && groups == 1; }

// The arguments of the ops, without groups and impl.
std::tuple<at::Tensor, at::Tensor> forward(
    const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
    const OptionalTensor& bias, const OptionalTensor& bias_out, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t in_start, const OptionalTensor& addend, std::string_view activation,
    int64_t max_pool, bool save_indices);
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward(
    const at::Tensor& grad_output, const OptionalTensor& input, const at::Tensor& weight,
    const OptionalTensor& weight_out, const OptionalTensor& weight_in, const OptionalTensor& output,
    const OptionalTensor& indices, at::IntArrayRef input_size, at::IntArrayRef conv_size, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t in_start, std::string_view activation, int64_t max_pool,
    std::string_view input_grad, const std::array<bool, 5>& output_mask);

}  // namespace plantops::aten
