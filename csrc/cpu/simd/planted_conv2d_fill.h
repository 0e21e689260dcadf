// Copies rows of a tensor, or of a gradient through max-pool and ReLU, into scratch.
#pragma once

#include "planted_conv2d_fill_rows.h"

namespace plantops::PLANTOPS_ISA {
namespace {

// Columns [from, until) of one source row, in elements from the row's start.
template <class T>
struct SourceRow {
  const T* values;
  const T* output;         // nullptr: no ReLU
  const uint8_t* indices;  // nullptr: no max-pool
  int64_t values_w, output_w, indices_w;
  int64_t from, until;
};

template <class T>
inline T masked(const SourceRow<T>& s, int64_t w) {
  const T value = s.values[w * s.values_w];
  return s.output == nullptr ? value : relu_backward(value, s.output[w * s.output_w]);
}

template <class T>
inline void copy_row(const SourceRow<T>& s, T* to, int64_t step) {
  for (int64_t w = s.from; w < s.until; ++w) to[w * step] = masked(s, w);
}

// Row `h` of the gradient before max-pool: each pooled gradient goes to where its maximum was.
template <class T>
inline void scatter_row(const SourceRow<T>& s, T* to, int64_t step, int64_t m, int64_t h, int64_t width) {
  const int64_t first_tap = h % m * m;
  for (int64_t p = s.from / m; p * m < s.until; ++p) {
    const bool window = p < width / m;  // the columns after the last window have no gradient
    const int64_t tap = window ? s.indices[p * s.indices_w] - first_tap : -1;
    const T value = window ? masked(s, p) : T(0);
    for (int64_t k = 0; k < m; ++k) {
      const int64_t w = p * m + k;
      if (w >= s.from && w < s.until) to[w * step] = tap == k ? value : T(0);
    }
  }
}

template <class T>
inline void zero_columns(T* to, int64_t step, int64_t from, int64_t until) {
  for (int64_t w = from; w < until; ++w) to[w * step] = T(0);
}

template <class T>
inline SourceRow<T> source_row(const Source<T>& s, const Filling<T>& f, int64_t n, int64_t channel, int64_t h) {
  const int64_t row = h / s.pool;
  SourceRow<T> r{};
  r.values = s.values.data + n * s.values.n + channel * s.values.c + row * s.values.h;
  if (s.output.data) r.output = s.output.data + n * s.output.n + channel * s.output.c + row * s.output.h;
  if (s.pool > 1) r.indices = s.indices.data + n * s.indices.n + channel * s.indices.c + row * s.indices.h;
  r.values_w = s.values.w, r.output_w = s.output.w, r.indices_w = s.indices.w;
  r.from = f.from(), r.until = f.until(s.width);
  return r;
}

template <class T>
inline void fill_row(const Source<T>& s, const Filling<T>& f, int64_t channel, int64_t h, T* row) {
  const int64_t step = f.interleave;
  T* const to = row + f.pad_w * step;
  const bool inside = h >= 0 && h < s.height && (s.pool == 1 || h / s.pool < s.height / s.pool);
  const int64_t from = f.from(), until = f.until(s.width);
  if (!inside) return zero_columns(to, 1, from * step, until * step);
  for (int64_t i = 0; i < step; ++i) {
    if (i >= f.images) {
      zero_columns(to + i, step, from, until);
      continue;
    }
    const SourceRow<T> r = source_row(s, f, f.image_begin + i, channel, h);
    if (s.pool == 1)
      copy_row(r, to + i, step);
    else
      scatter_row(r, to + i, step, s.pool, h, s.width);
  }
}

// channels_last: a pixel's channels are read together, else every cache line would be fetched once per channel.
template <class T>
void fill_by_pixels(const Source<T>& s, const Filling<T>& f) {
  constexpr int64_t kTogether = 64 / sizeof(T);
  for (int64_t r = 0; r < f.rows; ++r) {
    const int64_t h = f.row_begin + r;
    for (int64_t begin = 0; begin < f.channels; begin += kTogether) {
      const int64_t count = least(kTogether, f.channels - begin);
      T* const rows = f.scratch + begin * f.channel_stride + r * f.row_stride;
      if (h < 0 || h >= s.height || f.images < f.interleave)
        for (int64_t c = 0; c < count; ++c)
          zero_columns(rows + c * f.channel_stride + f.pad_w * f.interleave, 1, f.from() * f.interleave,
                       f.until(s.width) * f.interleave);
      if (h < 0 || h >= s.height) continue;
      for (int64_t i = 0; i < f.images; ++i) {
        const SourceRow<T> row = source_row(s, f, f.image_begin + i, f.channel_begin + begin, h);
        for (int64_t w = row.from; w < row.until; ++w) {
          T* const to = rows + (w + f.pad_w) * f.interleave + i;
          const T* values = row.values + w * row.values_w;
          if (row.output == nullptr) {
            for (int64_t c = 0; c < count; ++c) to[c * f.channel_stride] = values[c];
          } else {
            const T* output = row.output + w * row.output_w;
            for (int64_t c = 0; c < count; ++c) to[c * f.channel_stride] = relu_backward(values[c], output[c * s.output.c]);
          }
        }
      }
    }
  }
}

template <class T>
void fill(const Source<T>& s, const Filling<T>& f) {
  if (f.until(s.width) <= f.from()) return;
  if (s.pool == 1 && s.values.c == 1 && s.values.w != 1) return fill_by_pixels(s, f);
  const bool one = fills_rows<T, 1>(s, f), two = fills_rows<T, 2>(s, f);
  for (int64_t c = 0; c < f.channels; ++c) {
    T* const to = f.scratch + c * f.channel_stride;
    if (one)
      fill_channel<T, 1>(s, f, f.channel_begin + c, to + f.pad_w);
    else if (two)
      fill_channel<T, 2>(s, f, f.channel_begin + c, to + 2 * f.pad_w);
    else
      for (int64_t r = 0; r < f.rows; ++r) fill_row(s, f, f.channel_begin + c, f.row_begin + r, to + r * f.row_stride);
  }
}

template <class T>
void expand(const Source<T>& s, int64_t image, int64_t channels, T* out) {
  fill(s, Filling<T>{out, s.height * s.width, s.width, 1, image, 1, 0, channels, 0, s.height, 0, s.width});
}

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
