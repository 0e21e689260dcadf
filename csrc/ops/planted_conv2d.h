// Shapes and index maths of planted_conv2d that the CPU and GPU kernels share.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace plantops {

// Output size of a convolution along one axis; 0 when the kernel does not fit.
PLANTOPS_INLINE constexpr int64_t conv_output_size(
    int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t span = dilation * (kernel - 1) + 1;
  return size + 2 * padding < span ? 0 : (size + 2 * padding - span) / stride + 1;
}

// Pooling with kernel = stride = m, floor, no padding.
PLANTOPS_INLINE constexpr int64_t pool_output_size(int64_t size, int64_t m) { return size / m; }

// The input gradient of a stride-1 convolution is a stride-1 convolution of the output gradient with the flipped
// kernel and this padding (negative: a crop).
PLANTOPS_INLINE constexpr int64_t transposed_padding(int64_t kernel, int64_t padding, int64_t dilation) {
  return dilation * (kernel - 1) - padding;
}

// Channels of a planted convolution. Input channel c of all F_in + P_in is planted when it lies in
// [in_start, in_start + P_in); the others count the trunk's channels in order.
struct PlantedChannels {
  int64_t trunk_in, planted_in, trunk_out, planted_out, in_start;

  PLANTOPS_INLINE constexpr int64_t in() const { return trunk_in + planted_in; }
  PLANTOPS_INLINE constexpr int64_t out() const { return trunk_out + planted_out; }
  PLANTOPS_INLINE constexpr bool is_planted(int64_t c) const {
    return c >= in_start && c < in_start + planted_in;
  }
  PLANTOPS_INLINE constexpr int64_t trunk_index(int64_t c) const { return c < in_start ? c : c - planted_in; }
};

// The kernel of output channel `out` over input channel `in`: `taps` consecutive values of one of the three weights
// (all contiguous): weight [trunk_out, trunk_in, taps], weight_in [trunk_out, planted_in, taps],
// weight_out [planted_out, in, taps].
template <class T>
PLANTOPS_INLINE const T* planted_kernel(
    const PlantedChannels& channels, const T* weight, const T* weight_in, const T* weight_out, int64_t taps,
    int64_t out, int64_t in) {
  if (out >= channels.trunk_out) return weight_out + ((out - channels.trunk_out) * channels.in() + in) * taps;
  if (channels.is_planted(in)) return weight_in + (out * channels.planted_in + in - channels.in_start) * taps;
  return weight + (out * channels.trunk_in + channels.trunk_index(in)) * taps;
}

// Whether a value takes the place of the maximum so far in a pooling window read in row-major order: the first of
// equals stays, and NaN counts as the largest value.
template <class T>
PLANTOPS_INLINE constexpr bool pool_replaces(T value, T maximum) {
  return value > maximum || (value != value && maximum == maximum);
}

// Gradient through ReLU, given its output: relu'(0) = 0, and a NaN lets the gradient pass (as in torch).
template <class T>
PLANTOPS_INLINE constexpr T relu_backward(T gradient, T output) {
  return output <= T(0) ? T(0) : gradient;
}

}  // namespace plantops
