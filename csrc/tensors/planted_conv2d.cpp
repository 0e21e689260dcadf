#include "planted_conv2d.h"

#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

namespace plantops {

using at::Tensor;

at::MemoryFormat memory_format(const Tensor& t) {
  if (t.is_contiguous()) return at::MemoryFormat::Contiguous;
  if (t.is_contiguous(at::MemoryFormat::ChannelsLast)) return at::MemoryFormat::ChannelsLast;
  const bool by_pixels = t.stride(1) == 1 && t.stride(3) >= t.size(1) && t.stride(2) >= t.size(3) * t.stride(3) &&
                         t.stride(0) >= t.size(2) * t.stride(2);
  return by_pixels ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Tensor with_strides_of(const Tensor& grad, const OptionalTensor& parameter) {
  if (!parameter || !parameter->defined() || grad.strides() == parameter->strides()) return grad;
  Tensor like = at::empty_like(*parameter);
  return like.strides() == grad.strides() ? grad : like.copy_(grad);
}

void check_tensor(const char* name, const Tensor& t, at::ScalarType dtype, at::IntArrayRef shape) {
  TORCH_CHECK_TYPE(t.scalar_type() == dtype, name, ": expected ", dtype, ", got ", t.scalar_type());
  TORCH_CHECK_VALUE(t.sizes() == shape, name, ": expected shape ", shape, ", got ", t.sizes());
}

Convolution convolution_of(
    const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t in_start, std::string_view activation,
    int64_t max_pool) {
  TORCH_CHECK_VALUE(
      activation == "none" || activation == "relu", "activation: expected 'none' or 'relu', got '", activation, "'");
  TORCH_CHECK_VALUE(max_pool >= 1 && max_pool <= kMostPool, "max_pool: expected an integer from 1 to ", kMostPool,
                    ", got ", max_pool);
  const auto check_integers = [](const char* name, at::IntArrayRef values, int64_t least) {
    TORCH_CHECK_VALUE(values.size() == 2 && values[0] >= least && values[1] >= least, name, ": expected integers >= ",
                      least, ", got ", values);
  };
  check_integers("stride", stride, 1);
  check_integers("padding", padding, 0);
  check_integers("dilation", dilation, 1);
  const bool in = weight_in && weight_in->defined(), out = weight_out && weight_out->defined();
  Convolution c{};
  c.channels = {weight.size(1), in ? weight_in->size(1) : 0, weight.size(0), out ? weight_out->size(0) : 0, in_start};
  c.kernel = {weight.size(2), weight.size(3)};
  c.stride = {stride[0], stride[1]};
  c.padding = {padding[0], padding[1]};
  c.dilation = {dilation[0], dilation[1]};
  c.relu = activation == "relu";
  c.pool = max_pool;
  const auto check = [&](const char* name, const Tensor& w, std::array<int64_t, 4> shape) {
    TORCH_CHECK_TYPE(w.scalar_type() == weight.scalar_type(), name, ": expected ", weight.scalar_type(),
                     " like weight, got ", w.scalar_type());
    TORCH_CHECK_VALUE(w.sizes() == at::IntArrayRef(shape), name, ": expected shape ", at::IntArrayRef(shape), ", got ",
                      w.sizes());
  };
  const auto& n = c.channels;
  if (in) check("weight_in", *weight_in, {n.trunk_out, n.planted_in, c.kernel[0], c.kernel[1]});
  if (out) check("weight_out", *weight_out, {n.planted_out, n.in(), c.kernel[0], c.kernel[1]});
  TORCH_CHECK_VALUE(
      in_start >= 0 && in_start <= n.trunk_in, "in_start: expected 0 to ", n.trunk_in, ", got ", in_start);
  return c;
}

Size2 check_input(const Convolution& c, const Tensor& input, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(input.dim() == 4, "input: expected 4 dimensions, got ", input.dim());
  check_tensor("input", input, dtype, {input.size(0), c.channels.in(), input.size(2), input.size(3)});
  const Size2 size{c.output_size(0, input.size(2)), c.output_size(1, input.size(3))};
  TORCH_CHECK_VALUE(size[0] > 0 && size[1] > 0, "input: a kernel of ", at::IntArrayRef(c.kernel), " with dilation ",
                    at::IntArrayRef(c.dilation), " and padding ", at::IntArrayRef(c.padding),
                    " does not fit images of ", input.sizes().slice(2));
  return size;
}

void ConvBackward::check(at::ScalarType dtype) const {
  const auto& n = c.channels;
  const int64_t batch = grad_output.size(0);
  const Size2 pooled{pool_output_size(conv_size[0], c.pool), pool_output_size(conv_size[1], c.pool)};
  for (int axis = 0; axis < 2; ++axis)
    TORCH_CHECK_VALUE(conv_size[axis] == c.output_size(axis, input_size[axis]), "conv_size: ",
                      at::IntArrayRef(conv_size), " does not follow from input_size ", at::IntArrayRef(input_size));
  check_tensor("grad_output", grad_output, dtype, {batch, n.out(), pooled[0], pooled[1]});
  const auto check_saved = [&](const char* name, const OptionalTensor& t, at::ScalarType type) {
    TORCH_CHECK_VALUE(t && t->defined() && t->dim() == 4, name, ": needed by this backward, not given");
    const bool compact = t->size(1) == n.planted_out;
    check_tensor(name, *t, type, {batch, compact ? n.planted_out : n.out(), pooled[0], pooled[1]});
  };
  if (c.relu) check_saved("output", output, dtype);
  if (c.pool > 1) check_saved("indices", indices, at::kByte);
}

void ConvBackward::check_all_rows() const {
  for (const auto* saved : {&output, &indices})
    if ((saved == &output && c.relu) || (saved == &indices && c.pool > 1))
      TORCH_CHECK_VALUE((*saved)->size(1) == c.channels.out(),
                        "output and indices: the planted rows alone are not enough for the requested gradients");
}

int64_t check_saved_input(const ConvBackward& b, const OptionalTensor& input, at::ScalarType dtype, bool want_out) {
  const auto& n = b.c.channels;
  TORCH_CHECK_VALUE(input && input->defined(), "input: needed for the weight gradients, not given");
  const bool compact = !want_out && input->size(1) == n.planted_in;
  check_tensor("input", *input, dtype,
               {b.grad_output.size(0), compact ? n.planted_in : n.in(), b.input_size[0], b.input_size[1]});
  return input->size(1) == n.planted_in ? 0 : n.in_start;
}

}  // namespace plantops
