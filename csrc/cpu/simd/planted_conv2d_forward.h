// The convolution from scratch.
#pragma once

#include "planted_conv2d_epilogue.h"

namespace plantops::PLANTOPS_ISA {
namespace {

struct Taps {
  int64_t channels, channel_stride;
  int64_t kernel_h, row_step, kernel_w, column_step;
};

// `Block` output channels at kPixelBlock vectors of pixels, whose first taps lie at `at`. weights: [channel][tap][Block].
template <class T, int Block>
void conv_tile(const T* const (&at)[kPixelBlock], const Taps& taps, const T* weights, T* out, int64_t out_stride) {
  Vector<T> sum[Block][kPixelBlock];
#pragma GCC unroll 8
  for (int o = 0; o < Block; ++o)
#pragma GCC unroll 8
    for (int p = 0; p < kPixelBlock; ++p) sum[o][p] = Vector<T>{};
  for (int64_t c = 0; c < taps.channels; ++c) {
    for (int64_t kh = 0; kh < taps.kernel_h; ++kh) {
      int64_t offset = c * taps.channel_stride + kh * taps.row_step;
      for (int64_t kw = 0; kw < taps.kernel_w; ++kw) {
        Vector<T> pixels[kPixelBlock];
#pragma GCC unroll 8
        for (int p = 0; p < kPixelBlock; ++p) pixels[p] = load(at[p] + offset);
#pragma GCC unroll 8
        for (int o = 0; o < Block; ++o) {
          const Vector<T> weight = broadcast(weights[o]);
#pragma GCC unroll 8
          for (int p = 0; p < kPixelBlock; ++p) sum[o][p] += weight * pixels[p];
        }
        weights += Block;
        offset += taps.column_step;
      }
    }
  }
#pragma GCC unroll 8
  for (int o = 0; o < Block; ++o)
#pragma GCC unroll 8
    for (int p = 0; p < kPixelBlock; ++p) store(out + o * out_stride + p * kLanes<T>, sum[o][p]);
}

template <class T>
using ConvTile = void (*)(const T* const (&)[kPixelBlock], const Taps&, const T*, T*, int64_t);

template <class T>
constexpr ConvTile<T> kConvTiles[kOutBlock + 1] = {
    nullptr, conv_tile<T, 1>, conv_tile<T, 2>, conv_tile<T, 3>, conv_tile<T, 4>, conv_tile<T, 5>, conv_tile<T, 6>};

// Rows per strip: a multiple of the pooling window with at least a few register blocks of pixels, so that a strip of
// kOutBlock channels stays in the first-level cache.
template <class T>
int64_t strip_rows(const ConvJob<T>& job) {
  constexpr int64_t kWanted = 4 * kPixelBlock;
  const int64_t windows = most(1, kWanted / (job.pool * job.geometry.row_vectors));
  return windows * job.pool;
}

template <class T>
int64_t scratch_channel_stride(const Geometry& g, int64_t rows) {
  return (rows + g.halo()) * g.row_stride;
}

template <class T>
int64_t strip_elements(const ConvJob<T>& job) {
  return kOutBlock * (strip_rows(job) * job.geometry.row_vectors + kPixelBlock) * kLanes<T>;
}

// A pooled row and, in the same measure, its indices.
template <class T>
int64_t pooled_elements(const ConvJob<T>& job) {
  return job.pool > 1 ? (job.geometry.row_vectors + 1) * kLanes<T> : 0;
}

template <class T>
int64_t conv_scratch(const ConvJob<T>& job) {
  const Geometry& g = job.geometry;
  return g.channels * scratch_channel_stride<T>(g, job.band_rows) + strip_elements(job) + 2 * pooled_elements(job);
}

// One strip: rows [row, row + rows) of the band for output channels [begin, begin + block).
template <class T>
void conv_strip(
    const ConvJob<T>& job, const T* scratch, const Taps& taps, int64_t row, int64_t rows, int64_t begin, int64_t block,
    T* sums, int64_t sums_stride) {
  const Geometry& g = job.geometry;
  const int64_t vectors = rows * g.row_vectors;
  const T* weights = job.weights + begin * taps.channels * taps.kernel_h * taps.kernel_w;
  const T* line = scratch + row * g.row_stride;
  int64_t column = 0;
  for (int64_t v = 0; v < vectors; v += kPixelBlock) {
    const T* at[kPixelBlock];
    for (int p = 0; p < kPixelBlock; ++p) {
      at[p] = line + column * kLanes<T>;
      if (v + p + 1 >= vectors) continue;  // beyond the end: the last vector again, not used
      if (++column == g.row_vectors) column = 0, line += g.row_stride;
    }
    kConvTiles<T>[block](at, taps, weights, sums + v * kLanes<T>, sums_stride);
  }
}

template <class T>
void conv(const ConvJob<T>& job, int64_t group, int64_t row_begin, T* scratch) {
  const Geometry& g = job.geometry;
  const int64_t rows = least(job.band_rows, g.out_height / job.pool * job.pool - row_begin);
  const int64_t image_begin = group * g.interleave;
  const int64_t images = least(g.interleave, g.batch - image_begin);
  const int64_t channel_stride = scratch_channel_stride<T>(g, job.band_rows);
  const int64_t columns = g.out_width + (g.kernel_w - 1) * g.dilation_w;
  fill(job.source, Filling<T>{scratch, channel_stride, g.row_stride, g.interleave, image_begin, images, 0, g.channels,
                              row_begin - g.pad_h, rows + g.halo(), g.pad_w, columns});
  const Taps taps{g.channels, channel_stride, g.kernel_h, g.dilation_h * g.row_stride, g.kernel_w,
                  g.dilation_w * g.interleave};
  T* const sums = scratch + g.channels * channel_stride;
  T* const pooled = sums + strip_elements(job);
  uint8_t* const where = reinterpret_cast<uint8_t*>(pooled + pooled_elements(job));
  const int64_t strip = strip_rows(job);
  const int64_t sums_stride = strip_elements(job) / kOutBlock;
  for (int64_t b = 0; b < block_count(job.out_channels, kOutBlock); ++b) {
    const int64_t begin = block_begin(job.out_channels, kOutBlock, b);
    const int64_t block = block_begin(job.out_channels, kOutBlock, b + 1) - begin;
    for (int64_t row = 0; row < rows; row += strip) {
      const int64_t count = least(strip, rows - row);
      conv_strip(job, scratch, taps, row, count, begin, block, sums, sums_stride);
      for (int64_t o = 0; o < block; ++o) {
        finish_strip(job, Strip<T>{sums + o * sums_stride, g.row_vectors * kLanes<T>, row_begin + row, count, begin + o,
                                   image_begin, images}, pooled, where);
      }
    }
  }
}

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
