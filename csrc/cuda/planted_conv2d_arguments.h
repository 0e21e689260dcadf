// What the kernels of planted_conv2d are given. W is the type that is computed in: double for float64, else float.
#pragma once

#include "../ops/planted_conv2d.h"
#include "../ops/rows.h"

namespace plantops::cuda {

// A tensor [n, c, h, w] in memory, its strides in elements; data null: there is none.
struct Image {
  void* data;
  int64_t n, c, h, w;
};

struct ConvGeometry {
  int64_t batch;
  int in_h, in_w;    // of the input
  int out_h, out_w;  // of the convolution, before pooling
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, pool;

  PLANTOPS_INLINE int taps() const { return kernel_h * kernel_w; }
  PLANTOPS_INLINE int pooled_h() const { return out_h / pool; }
  PLANTOPS_INLINE int pooled_w() const { return out_w / pool; }
};

// The three weights, contiguous; see planted_kernel.
struct ConvWeights {
  PlantedChannels channels;
  const void *trunk, *in, *out;
};

struct ConvForward {
  ConvGeometry geometry;
  ConvWeights weights;
  Scalar type;
  Image input, addend, output, indices;  // indices uint8
  const void *bias, *bias_out;           // contiguous or null
  bool relu;
  int chunk;  // input channels whose weights are in shared memory at once; set by the launch
};

// The gradient of the convolution's output: that of the op's output through pool and ReLU, looked up wherever it is
// read. Channel c of it is channel c of `values`; `output` and `indices` may lack the first `missing` channels.
struct ConvGradient {
  Image values, output, indices;  // output null: no ReLU; indices null: no pooling
  int64_t output_missing, indices_missing;
};

// The gradient of kernels [rows, columns] between gradient channels [first, first + rows) and the channels of `input`;
// columns = channels x taps, and one more of ones when `bias` is asked for.
struct ConvWeightGrad {
  ConvGeometry geometry;
  Scalar type;
  ConvGradient gradient;
  Image input;
  int64_t first;
  int rows, channels;
  void *weight, *bias;  // contiguous results; either may be null
  void* workspace;      // W [splits, rows, columns]
  int splits;

  PLANTOPS_INLINE int columns() const { return channels * geometry.taps() + (bias != nullptr ? 1 : 0); }
};

// The gradient of input channels [first, first + count), written to the channels of `result` from `first` on.
struct ConvInputGrad {
  ConvGeometry geometry;
  ConvWeights weights;
  Scalar type;
  ConvGradient gradient;
  Image result;
  int first, count;
  int chunk;  // gradient channels whose weights are in shared memory at once; set by the launch
};

struct ConvAddendGrad {
  ConvGeometry geometry;
  Scalar type;
  ConvGradient gradient;
  Image result;
  int channels;
};

}  // namespace plantops::cuda
