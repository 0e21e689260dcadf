// The weight gradient from scratch: a matrix product over pixels, gradient channels x (input channel, tap), where a
// column is the input channel's scratch read from the tap's offset.
#pragma once

#include "planted_conv2d_forward.h"

namespace plantops::PLANTOPS_ISA {
namespace {

// Adds into out[row][column] the sums over `count` vectors; `pixels` are their offsets in the input's scratch.
template <class T, int Rows>
void grad_tile(
    const T* gradient, int64_t gradient_stride, const T* const (&columns)[kGradColumns], const int32_t* pixels,
    int64_t count, T* out, int64_t out_stride, int64_t used) {
  Vector<T> sum[Rows][kGradColumns];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kGradColumns; ++j) sum[r][j] = Vector<T>{};
  for (int64_t p = 0; p < count; ++p) {
    const int64_t pixel = pixels[p];
    Vector<T> g[Rows];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) g[r] = load(gradient + r * gradient_stride + p * kLanes<T>);
#pragma GCC unroll 8
    for (int j = 0; j < kGradColumns; ++j) {
      const Vector<T> x = load(columns[j] + pixel);
#pragma GCC unroll 8
      for (int r = 0; r < Rows; ++r) sum[r][j] += g[r] * x;
    }
  }
  T lanes[Rows][kGradColumns][kLanes<T>];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
    for (int j = 0; j < kGradColumns; ++j) store(lanes[r][j], sum[r][j]);
  for (int r = 0; r < Rows; ++r)
    for (int j = 0; j < kGradColumns && j < used; ++j) out[r * out_stride + j] += lane_sum(lanes[r][j]);
}

template <class T>
using GradTile = void (*)(
    const T*, int64_t, const T* const (&)[kGradColumns], const int32_t*, int64_t, T*, int64_t, int64_t);

template <class T>
constexpr GradTile<T> kGradTiles[kGradRows + 1] = {
    nullptr, grad_tile<T, 1>, grad_tile<T, 2>, grad_tile<T, 3>, grad_tile<T, 4>};

// How a chunk of cells lies in scratch.
template <class T>
struct ChunkLayout {
  int64_t input_cell, input_stride;        // elements of a cell, of a channel
  int64_t gradient_cell, gradient_stride;
  int64_t pixels;                          // most vectors in a chunk

  explicit ChunkLayout(const WeightGradJob<T>& job) {
    const Geometry& g = job.geometry;
    input_cell = (job.band_rows + g.halo()) * g.row_stride;
    input_stride = job.chunk_cells * input_cell;
    gradient_cell = job.band_rows * g.row_vectors * kLanes<T>;
    gradient_stride = job.chunk_cells * gradient_cell;
    pixels = job.chunk_cells * job.band_rows * g.row_vectors;
  }
};

template <class T>
int64_t weight_grad_scratch(const WeightGradJob<T>& job) {
  const ChunkLayout<T> layout(job);
  const int64_t pixel_elements = (layout.pixels * sizeof(int32_t) + kVectorBytes) / sizeof(T) + kLanes<T>;
  return job.gradient_tile * layout.gradient_stride + job.input_tile * layout.input_stride + pixel_elements;
}

template <class T>
struct Chunk {
  int64_t begin, end;  // cells
  T* input;
  T* gradient;
  int32_t* pixels;
};

template <class T>
void fill_gradient(const WeightGradJob<T>& job, const ChunkLayout<T>& layout, const Chunk<T>& chunk, int64_t begin, int64_t count) {
  const Geometry& g = job.geometry;
  for (int64_t cell = chunk.begin; cell < chunk.end; ++cell) {
    const int64_t image = cell / job.bands * g.interleave, row = cell % job.bands * job.band_rows;
    T* to = chunk.gradient + (cell - chunk.begin) * layout.gradient_cell;
    // Rows of the band beyond the image count as zero.
    fill(job.gradient, Filling<T>{to, layout.gradient_stride, g.row_vectors * kLanes<T>, g.interleave, image,
                                  least(g.interleave, g.batch - image), begin, count, row, job.band_rows, 0, g.out_width});
  }
}

template <class T>
void fill_input(const WeightGradJob<T>& job, const ChunkLayout<T>& layout, const Chunk<T>& chunk, int64_t begin, int64_t count) {
  const Geometry& g = job.geometry;
  const int64_t columns = g.out_width + (g.kernel_w - 1) * g.dilation_w;
  for (int64_t cell = chunk.begin; cell < chunk.end; ++cell) {
    const int64_t image = cell / job.bands * g.interleave, row = cell % job.bands * job.band_rows;
    T* to = chunk.input + (cell - chunk.begin) * layout.input_cell;
    fill(job.input, Filling<T>{to, layout.input_stride, g.row_stride, g.interleave, image,
                               least(g.interleave, g.batch - image), begin, count, row - g.pad_h,
                               job.band_rows + g.halo(), g.pad_w, columns});
  }
}

// The tile of gradient channels [0, rows) and input channels [0, channels) now in scratch, into `out`.
template <class T>
void multiply(
    const WeightGradJob<T>& job, const ChunkLayout<T>& layout, const Chunk<T>& chunk, int64_t rows, int64_t channels,
    T* out) {
  const Geometry& g = job.geometry;
  const int64_t taps = g.kernel_h * g.kernel_w, columns = channels * taps;
  const int64_t count = (chunk.end - chunk.begin) * job.band_rows * g.row_vectors;
  for (int64_t b = 0; b < block_count(rows, kGradRows); ++b) {
    const int64_t begin = block_begin(rows, kGradRows, b), block = block_begin(rows, kGradRows, b + 1) - begin;
    const T* gradient = chunk.gradient + begin * layout.gradient_stride;
    for (int64_t j = 0; j < columns; j += kGradColumns) {
      const T* at[kGradColumns];
      for (int k = 0; k < kGradColumns; ++k) {
        const int64_t column = least(j + k, columns - 1);
        const int64_t channel = column / taps, tap = column % taps;
        at[k] = chunk.input + channel * layout.input_stride + tap / g.kernel_w * g.dilation_h * g.row_stride +
                tap % g.kernel_w * g.dilation_w * g.interleave;
      }
      kGradTiles<T>[block](gradient, layout.gradient_stride, at, chunk.pixels, count, out + begin * job.out_stride + j,
                           job.out_stride, columns - j);
    }
  }
}

template <class T>
void add_bias(const ChunkLayout<T>& layout, const Chunk<T>& chunk, int64_t rows, T* bias) {
  constexpr int kChains = 4;  // sums that do not wait for one another
  const int64_t count = (chunk.end - chunk.begin) * layout.gradient_cell;
  for (int64_t r = 0; r < rows; ++r) {
    const T* const gradient = chunk.gradient + r * layout.gradient_stride;
    Vector<T> sums[kChains] = {};
    int64_t p = 0;
    for (; p + kChains * kLanes<T> <= count; p += kChains * kLanes<T>)
#pragma GCC unroll 4
      for (int k = 0; k < kChains; ++k) sums[k] += load(gradient + p + k * kLanes<T>);
    for (; p < count; p += kLanes<T>) sums[0] += load(gradient + p);
    T lanes[kLanes<T>];
    store(lanes, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    bias[r] += lane_sum(lanes);
  }
}

template <class T>
void weight_grad(const WeightGradJob<T>& job, int64_t begin, int64_t end, T* scratch, T* weight, T* bias) {
  const Geometry& g = job.geometry;
  const ChunkLayout<T> layout(job);
  const int64_t taps = g.kernel_h * g.kernel_w;
  T* const input = scratch + job.gradient_tile * layout.gradient_stride;
  T* const after = input + job.input_tile * layout.input_stride;
  int32_t* const pixels = reinterpret_cast<int32_t*>(after);
  for (int64_t p = 0; p < layout.pixels; ++p) {
    const int64_t vectors = job.band_rows * g.row_vectors, cell = p / vectors, v = p % vectors;
    pixels[p] = static_cast<int32_t>(
        cell * layout.input_cell + v / g.row_vectors * g.row_stride + v % g.row_vectors * kLanes<T>);
  }
  for (int64_t cell = begin; cell < end; cell += job.chunk_cells) {
    const Chunk<T> chunk{cell, least(end, cell + job.chunk_cells), input, scratch, pixels};
    // The side that fits one tile is filled once per chunk; the other streams past it.
    const bool input_stays = g.channels <= job.input_tile;
    if (input_stays) fill_input(job, layout, chunk, 0, g.channels);
    for (int64_t r = 0; r < job.out_channels; r += job.gradient_tile) {
      const int64_t rows = least(job.gradient_tile, job.out_channels - r);
      fill_gradient(job, layout, chunk, r, rows);
      if (job.bias) add_bias(layout, chunk, rows, bias + r);
      for (int64_t c = 0; c < g.channels; c += job.input_tile) {
        const int64_t channels = least(job.input_tile, g.channels - c);
        if (!input_stays) fill_input(job, layout, chunk, c, channels);
        multiply(job, layout, chunk, rows, channels, weight + r * job.out_stride + c * taps);
      }
    }
  }
}

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
