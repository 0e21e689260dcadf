// What the kernels of planted_conv2d share: reading of images, of weights, and of the gradient behind pool and ReLU.
#pragma once

#include "../ops/numbers.h"
#include "device.cuh"
#include "planted_conv2d_arguments.h"

namespace plantops::cuda {

constexpr int kConvThreads = 128;
constexpr int kTile = 8;  // channels that a thread accumulates at once
constexpr size_t kConvShared = 32 * 1024;

template <class T>
__device__ __forceinline__ T* at(const Image& image, int64_t n, int64_t c, int64_t h, int64_t w) {
  return static_cast<T*>(image.data) + n * image.n + c * image.c + h * image.h + w * image.w;
}

// Pixel `index` of images of a height and a width, in row-major order.
struct Pixel {
  int64_t n;
  int h, w;
  __device__ __forceinline__ Pixel(int64_t index, int height, int width)
      : n(index / (int64_t(height) * width)), h(int(index / width % height)), w(int(index % width)) {}
};

// The gradient of the convolution's output at a pixel.
template <class T>
__device__ __forceinline__ Wide<T> read_gradient(
    const ConvGradient& g, const ConvGeometry& geometry, int64_t n, int64_t c, int h, int w) {
  const int m = geometry.pool;
  const int y = m == 1 ? h : h / m, x = m == 1 ? w : w / m;
  if (y >= geometry.pooled_h() || x >= geometry.pooled_w()) return 0;
  if (g.indices.data != nullptr &&
      *at<uint8_t>(g.indices, n, c - g.indices_missing, y, x) != (h - y * m) * m + (w - x * m))
    return 0;
  const Wide<T> value = widen(*at<T>(g.values, n, c, y, x));
  if (g.output.data == nullptr) return value;
  return relu_backward(value, widen(*at<T>(g.output, n, c - g.output_missing, y, x)));
}

template <class T>
__device__ __forceinline__ const T* kernel_of(const ConvWeights& w, int64_t taps, int64_t out, int64_t in) {
  return planted_kernel(
      w.channels, static_cast<const T*>(w.trunk), static_cast<const T*>(w.in), static_cast<const T*>(w.out), taps, out,
      in);
}

// sums[k] += value * weights[k]
template <class W>
__device__ __forceinline__ void add_products(W (&sums)[kTile], W value, const W* weights) {
  PLANTOPS_UNROLL
  for (int k = 0; k < kTile; ++k) sums[k] += value * weights[k];
}

}  // namespace plantops::cuda
