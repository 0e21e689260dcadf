// planted_conv2d by direct summation, for channels too few to fill the tiles of tensor cores.
#include "planted_conv2d.h"

#include "planted_conv2d_device.cuh"

namespace plantops::cuda {
namespace {

// A thread computes one output pixel, behind pooling, of kTile output channels.
template <class T>
__global__ void __launch_bounds__(kConvThreads, 4) forward_kernel(const ConvForward a) {
  using W = Wide<T>;
  const ConvGeometry& g = a.geometry;
  W* const weights = reinterpret_cast<W*>(shared_memory());  // [chunk, taps, kTile]
  const int taps = g.taps(), first = int(blockIdx.y) * kTile;
  const int channels = int(a.weights.channels.in()), outputs = int(a.weights.channels.out());
  const int64_t index = int64_t(blockIdx.x) * kConvThreads + threadIdx.x;
  const bool active = index < g.batch * g.pooled_h() * g.pooled_w();
  const Pixel to(active ? index : 0, g.pooled_h(), g.pooled_w());
  const bool once = channels <= a.chunk;

  W best[kTile];
  int place[kTile];
  for (int position = 0; position < g.pool * g.pool; ++position) {
    const int h = to.h * g.pool + position / g.pool, w = to.w * g.pool + position % g.pool;
    W sums[kTile] = {};
    for (int begin = 0; begin < channels; begin += a.chunk) {
      const int count = channels - begin < a.chunk ? channels - begin : a.chunk;
      if (!once || position == 0) {
        __syncthreads();
        for (int i = int(threadIdx.x); i < count * taps * kTile; i += kConvThreads) {
          const int k = i % kTile, tap = i / kTile % taps, c = i / kTile / taps;
          weights[i] = first + k < outputs ? widen(kernel_of<T>(a.weights, taps, first + k, begin + c)[tap]) : W(0);
        }
        __syncthreads();
      }
      if (!active) continue;
      for (int c = 0; c < count; ++c) {
        const T* const plane = at<T>(a.input, to.n, begin + c, 0, 0);
        for (int i = 0; i < g.kernel_h; ++i) {
          const int y = h * g.stride_h - g.pad_h + i * g.dilation_h;
          if (y < 0 || y >= g.in_h) continue;
          for (int j = 0; j < g.kernel_w; ++j) {
            const int x = w * g.stride_w - g.pad_w + j * g.dilation_w;
            if (x < 0 || x >= g.in_w) continue;
            add_products(
                sums, widen(plane[y * a.input.h + x * a.input.w]), weights + (c * taps + i * g.kernel_w + j) * kTile);
          }
        }
      }
    }
    if (!active) continue;
    PLANTOPS_UNROLL
    for (int k = 0; k < kTile; ++k) {
      const int out = first + k;
      if (out >= outputs) continue;
      const int trunk = int(a.weights.channels.trunk_out);
      W value = sums[k];
      if (out < trunk && a.bias != nullptr) value += widen(static_cast<const T*>(a.bias)[out]);
      if (out >= trunk && a.bias_out != nullptr) value += widen(static_cast<const T*>(a.bias_out)[out - trunk]);
      if (a.addend.data != nullptr) value += widen(*at<T>(a.addend, to.n, out, h, w));
      if (a.relu && value <= W(0)) value = W(0);  // NaN stays
      if (position == 0 || pool_replaces(value, best[k])) {
        best[k] = value;
        place[k] = position;
      }
    }
  }
  if (!active) return;
  PLANTOPS_UNROLL
  for (int k = 0; k < kTile; ++k) {
    if (first + k >= outputs) continue;
    narrow(best[k], *at<T>(a.output, to.n, first + k, to.h, to.w));
    if (a.indices.data != nullptr) *at<uint8_t>(a.indices, to.n, first + k, to.h, to.w) = uint8_t(place[k]);
  }
}

// A thread computes one pixel of kTile input channels.
template <class T>
__global__ void __launch_bounds__(kConvThreads, 4) input_grad_kernel(const ConvInputGrad a) {
  using W = Wide<T>;
  const ConvGeometry& g = a.geometry;
  W* const weights = reinterpret_cast<W*>(shared_memory());  // [chunk, taps, kTile]
  const int taps = g.taps(), tile = int(blockIdx.y) * kTile;
  const int outputs = int(a.weights.channels.out());
  const int64_t index = int64_t(blockIdx.x) * kConvThreads + threadIdx.x;
  const bool active = index < g.batch * g.in_h * g.in_w;
  const Pixel to(active ? index : 0, g.in_h, g.in_w);
  W sums[kTile] = {};
  for (int begin = 0; begin < outputs; begin += a.chunk) {
    const int count = outputs - begin < a.chunk ? outputs - begin : a.chunk;
    __syncthreads();
    for (int i = int(threadIdx.x); i < count * taps * kTile; i += kConvThreads) {
      const int k = i % kTile, tap = i / kTile % taps, o = i / kTile / taps;
      const bool inside = tile + k < a.count;
      weights[i] = inside ? widen(kernel_of<T>(a.weights, taps, begin + o, a.first + tile + k)[tap]) : W(0);
    }
    __syncthreads();
    if (!active) continue;
    for (int i = 0; i < g.kernel_h; ++i) {
      const int from_h = to.h + g.pad_h - i * g.dilation_h, h = from_h / g.stride_h;
      if (from_h < 0 || from_h % g.stride_h != 0 || h >= g.out_h) continue;
      for (int j = 0; j < g.kernel_w; ++j) {
        const int from_w = to.w + g.pad_w - j * g.dilation_w, w = from_w / g.stride_w;
        if (from_w < 0 || from_w % g.stride_w != 0 || w >= g.out_w) continue;
        for (int o = 0; o < count; ++o)
          add_products(
              sums, read_gradient<T>(a.gradient, g, to.n, begin + o, h, w),
              weights + (o * taps + i * g.kernel_w + j) * kTile);
      }
    }
  }
  if (!active) return;
  PLANTOPS_UNROLL
  for (int k = 0; k < kTile; ++k)
    if (tile + k < a.count) narrow(sums[k], *at<T>(a.result, to.n, a.first + tile + k, to.h, to.w));
}

template <class T>
__global__ void __launch_bounds__(kConvThreads, 4) addend_grad_kernel(const ConvAddendGrad a) {
  const ConvGeometry& g = a.geometry;
  const int64_t index = int64_t(blockIdx.x) * kConvThreads + threadIdx.x;
  if (index >= g.batch * g.out_h * g.out_w) return;
  const Pixel to(index, g.out_h, g.out_w);
  const int c = int(blockIdx.y);
  narrow(read_gradient<T>(a.gradient, g, to.n, c, to.h, to.w), *at<T>(a.result, to.n, c, to.h, to.w));
}

unsigned blocks_of(int64_t pixels) { return unsigned((pixels + kConvThreads - 1) / kConvThreads); }
unsigned tiles_of(int64_t channels) { return unsigned((channels + kTile - 1) / kTile); }

// As many channels' weights as fit, evenly many in each turn.
template <class W>
int chunk_of(int channels, int taps) {
  const int bytes = taps * kTile * int(sizeof(W)), most = int(kConvShared) / bytes < 1 ? 1 : int(kConvShared) / bytes;
  const int turns = (channels + most - 1) / most;
  return turns == 0 ? 1 : (channels + turns - 1) / turns;
}

template <class T>
cudaError_t launch_forward(ConvForward& a, cudaStream_t stream) {
  const ConvGeometry& g = a.geometry;
  a.chunk = chunk_of<Wide<T>>(int(a.weights.channels.in()), g.taps());
  const Shape shape{{blocks_of(g.batch * g.pooled_h() * g.pooled_w()), tiles_of(a.weights.channels.out()), 1},
                    kConvThreads,
                    size_t(a.chunk) * g.taps() * kTile * sizeof(Wide<T>)};
  return launch_kernel(forward_kernel<T>, shape, stream, a);
}

template <class T>
cudaError_t launch_input_grad(ConvInputGrad& a, cudaStream_t stream) {
  const ConvGeometry& g = a.geometry;
  a.chunk = chunk_of<Wide<T>>(int(a.weights.channels.out()), g.taps());
  const Shape shape{{blocks_of(g.batch * g.in_h * g.in_w), tiles_of(a.count), 1},
                    kConvThreads,
                    size_t(a.chunk) * g.taps() * kTile * sizeof(Wide<T>)};
  return launch_kernel(input_grad_kernel<T>, shape, stream, a);
}

template <class T>
cudaError_t launch_addend_grad(const ConvAddendGrad& a, cudaStream_t stream) {
  const ConvGeometry& g = a.geometry;
  const Shape shape{{blocks_of(g.batch * g.out_h * g.out_w), unsigned(a.channels), 1}, kConvThreads};
  return launch_kernel(addend_grad_kernel<T>, shape, stream, a);
}

}  // namespace

cudaError_t launch(ConvForward a, cudaStream_t stream) {
  switch (a.type) {
    case Scalar::f64: return launch_forward<double>(a, stream);
    case Scalar::f32: return launch_forward<float>(a, stream);
    case Scalar::bf16: return launch_forward<Bfloat16>(a, stream);
    default: return launch_forward<Float16>(a, stream);
  }
}

cudaError_t launch(ConvInputGrad a, cudaStream_t stream) {
  switch (a.type) {
    case Scalar::f64: return launch_input_grad<double>(a, stream);
    case Scalar::f32: return launch_input_grad<float>(a, stream);
    case Scalar::bf16: return launch_input_grad<Bfloat16>(a, stream);
    default: return launch_input_grad<Float16>(a, stream);
  }
}

cudaError_t launch(const ConvAddendGrad& a, cudaStream_t stream) {
  switch (a.type) {
    case Scalar::f64: return launch_addend_grad<double>(a, stream);
    case Scalar::f32: return launch_addend_grad<float>(a, stream);
    case Scalar::bf16: return launch_addend_grad<Bfloat16>(a, stream);
    default: return launch_addend_grad<Float16>(a, stream);
  }
}

}  // namespace plantops::cuda
