// What the glue of planted_conv2d shares on all devices: the checks that keep kernels inside their tensors, layouts,
// and which rows a backward was given.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <optional>
#include <string_view>

#include "../ops/planted_conv2d.h"

namespace plantops {

using OptionalTensor = std::optional<at::Tensor>;
using Size2 = std::array<int64_t, 2>;

// The layout that plantops/ops/_layout.py and the fakes give to results: channels_last for what is laid out that way,
// dense or a slice, and is not plain contiguous.
at::MemoryFormat memory_format(const at::Tensor& t);

// The gradient of a parameter has its strides.
at::Tensor with_strides_of(const at::Tensor& grad, const OptionalTensor& parameter);

void check_tensor(const char* name, const at::Tensor& t, at::ScalarType dtype, at::IntArrayRef shape);

constexpr int64_t kMostPool = 15;  // MAX_POOL of plantops/ops/planted_conv2d/checks.py

// What the arguments of the forward and the backward op have in common.
struct Convolution {
  PlantedChannels channels;
  Size2 kernel, stride, padding, dilation;
  bool relu;
  int64_t pool;

  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t output_size(int axis, int64_t size) const {
    return conv_output_size(size, kernel[axis], stride[axis], padding[axis], dilation[axis]);
  }
};

// Raises ValueError or TypeError naming the argument where weights and integers do not fit together.
Convolution convolution_of(
    const at::Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
    at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, int64_t in_start,
    std::string_view activation, int64_t max_pool);

// Raises unless the input has the convolution's channels and leaves at least one pixel; returns the convolution's size.
Size2 check_input(const Convolution& c, const at::Tensor& input, at::ScalarType dtype);

// The gradient that a backward is given and what it needs to take it behind pool and ReLU. `output` and `indices` may
// hold the planted rows alone.
struct ConvBackward {
  Convolution c;
  const at::Tensor& grad_output;
  const OptionalTensor& output;
  const OptionalTensor& indices;
  Size2 input_size, conv_size;

  void check(at::ScalarType dtype) const;
  void check_all_rows() const;  // every channel of the gradient can be read
  int64_t missing(const at::Tensor& saved) const {
    return saved.size(1) == c.channels.out() ? 0 : c.channels.trunk_out;
  }
};

// Raises unless the input is given for the weight gradients, all of it or, without weight_out's, the planted channels.
// Returns the channel where those begin.
int64_t check_saved_input(const ConvBackward& b, const OptionalTensor& input, at::ScalarType dtype, bool want_out);

}  // namespace plantops
