// The gradients of planted_conv2d's kernels and biases: sums over pixels, split among blocks, the partial sums added in
// order by a second kernel.
#include "planted_conv2d.h"
#include "planted_conv2d_device.cuh"

namespace plantops::cuda {
namespace {

constexpr int kSumThreads = 256, kPixels = 32;

// How the threads of a block share [rows, columns]: each has kTile rows of one column.
struct Division {
  static constexpr int kMostGroups = 8;
  int columns, groups;  // of the block: columns, and groups of kTile rows
  __host__ __device__ explicit Division(int all_columns)
      : columns(all_columns < kSumThreads ? all_columns : kSumThreads), groups(kSumThreads / columns) {
    if (groups > kMostGroups) groups = kMostGroups;
  }
  __host__ __device__ int rows() const { return groups * kTile; }
};

// A pixel of the convolution's output: where its image begins in the input, and its window's corner in that image.
struct Corner {
  int64_t n, image;
  int out_h, out_w, h, w;
};

template <class W>
__host__ __device__ size_t shared_bytes(const Division& division) {
  return kPixels * (sizeof(Corner) + size_t(division.rows()) * sizeof(W));
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) weight_grad_kernel(const ConvWeightGrad a) {
  using W = Wide<T>;
  const ConvGeometry& g = a.geometry;
  const int all_columns = a.columns(), taps = g.taps();
  const Division division(all_columns);
  Corner* const corners = reinterpret_cast<Corner*>(shared_memory());
  W* const gradients = reinterpret_cast<W*>(corners + kPixels);  // [kPixels, rows of the block]
  const int row = int(blockIdx.y) * division.rows(), rows = division.rows();
  const int group = int(threadIdx.x) / division.columns;
  const int column = int(blockIdx.x) * division.columns + int(threadIdx.x) % division.columns;
  const bool active = group < division.groups && column < all_columns;
  const bool ones = column == a.channels * taps;
  // Neighbouring threads read neighbouring channels where these lie side by side, else the taps of one channel.
  const bool side_by_side = a.input.c == 1, channels_fastest = a.gradient.values.c == 1;
  const int c = ones ? 0 : side_by_side ? column % a.channels : column / taps;
  const int tap = ones ? 0 : side_by_side ? column / a.channels : column % taps;
  const int down = tap / g.kernel_w * g.dilation_h, right = tap % g.kernel_w * g.dilation_w;

  const int64_t pixels = g.batch * g.out_h * g.out_w;
  const int64_t begin = pixels * blockIdx.z / a.splits, end = pixels * (blockIdx.z + 1) / a.splits;
  W sums[kTile] = {};
  for (int64_t from = begin; from < end; from += kPixels) {
    const int count = end - from < kPixels ? int(end - from) : kPixels;
    __syncthreads();
    if (int(threadIdx.x) < count) {
      const Pixel pixel(from + threadIdx.x, g.out_h, g.out_w);
      corners[threadIdx.x] = {pixel.n, pixel.n * a.input.n, pixel.h, pixel.w, pixel.h * g.stride_h - g.pad_h,
                              pixel.w * g.stride_w - g.pad_w};
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < count * rows; i += kSumThreads) {
      const int p = channels_fastest ? i / rows : i % count, r = channels_fastest ? i % rows : i / count;
      const Corner& at = corners[p];
      gradients[p * rows + r] =
          row + r < a.rows ? read_gradient<T>(a.gradient, g, at.n, a.first + row + r, at.out_h, at.out_w) : W(0);
    }
    __syncthreads();
    if (!active) continue;
    for (int p = 0; p < count; ++p) {
      const int y = corners[p].h + down, x = corners[p].w + right;
      W value = 1;
      if (!ones) {
        if (y < 0 || y >= g.in_h || x < 0 || x >= g.in_w) continue;
        value = widen(
            static_cast<const T*>(a.input.data)[corners[p].image + c * a.input.c + y * a.input.h + x * a.input.w]);
      }
      add_products(sums, value, gradients + p * rows + group * kTile);
    }
  }
  if (!active) return;
  const int place = ones ? column : c * taps + tap;
  W* const to = static_cast<W*>(a.workspace) + int64_t(blockIdx.z) * a.rows * all_columns + place;
  PLANTOPS_UNROLL
  for (int k = 0; k < kTile; ++k) {
    const int r = row + group * kTile + k;
    if (r < a.rows) to[int64_t(r) * all_columns] = sums[k];
  }
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) add_partial_sums(const ConvWeightGrad a) {
  using W = Wide<T>;
  const int columns = a.columns(), kernels = a.channels * a.geometry.taps();
  const int64_t count = int64_t(a.rows) * columns, index = int64_t(blockIdx.x) * kSumThreads + threadIdx.x;
  if (index >= count) return;
  const W* const partial = static_cast<const W*>(a.workspace) + index;
  W sum = 0;
  for (int s = 0; s < a.splits; ++s) sum += partial[s * count];
  const int64_t row = index / columns;
  const int column = int(index % columns);
  if (column == kernels)
    narrow(sum, static_cast<T*>(a.bias)[row]);
  else
    narrow(sum, static_cast<T*>(a.weight)[row * kernels + column]);
}

template <class T>
cudaError_t launch_weight_grad(const ConvWeightGrad& a, cudaStream_t stream) {
  const Division division(a.columns());
  const auto divide_up = [](int64_t x, int64_t y) { return unsigned((x + y - 1) / y); };
  const Shape shape{{divide_up(a.columns(), division.columns), divide_up(a.rows, division.rows()), unsigned(a.splits)},
                    kSumThreads,
                    shared_bytes<Wide<T>>(division)};
  const cudaError_t error = launch_kernel(weight_grad_kernel<T>, shape, stream, a);
  if (error != cudaSuccess) return error;
  const int64_t values = int64_t(a.rows) * a.columns();
  return launch_kernel(add_partial_sums<T>, {{divide_up(values, kSumThreads), 1, 1}, kSumThreads}, stream, a);
}

}  // namespace

int weight_grad_splits(const ConvGeometry& geometry) {
  constexpr int64_t kPixelsOfSplit = 1024, kMost = 256;
  const int64_t splits = geometry.batch * geometry.out_h * geometry.out_w / kPixelsOfSplit;
  return int(splits < 1 ? 1 : splits > kMost ? kMost : splits);
}

cudaError_t launch(const ConvWeightGrad& a, cudaStream_t stream) {
  switch (a.type) {
    case Scalar::f64: return launch_weight_grad<double>(a, stream);
    case Scalar::f32: return launch_weight_grad<float>(a, stream);
    case Scalar::bf16: return launch_weight_grad<Bfloat16>(a, stream);
    default: return launch_weight_grad<Float16>(a, stream);
  }
}

}  // namespace plantops::cuda
