// What follows the convolution: bias, addend, ReLU, max-pool, from a strip of sums straight into the output.
#pragma once

#include "planted_conv2d_epilogue_rows.h"
#include "planted_conv2d_fill.h"

namespace plantops::PLANTOPS_ISA {
namespace {

// Bias, addend and ReLU, in place.
template <class T>
inline void activate(const ConvJob<T>& job, const Strip<T>& s) {
  const int64_t step = job.geometry.interleave;
  if (job.addend.data)
    for (int64_t r = 0; r < s.rows; ++r)
      for (int64_t i = 0; i < s.images; ++i) {
        const T* addend = element(job.addend, s.image_begin + i, s.channel, s.row_begin + r);
        T* sums = s.sums + r * s.row_elements + i;
        for (int64_t w = 0; w < job.geometry.out_width; ++w) sums[w * step] += addend[w * job.addend.w];
      }
  const Vector<T> bias = broadcast(job.bias ? job.bias[s.channel] : T(0));
  if (job.relu)
    for (int64_t e = 0; e < s.rows * s.row_elements; e += kLanes<T>) store(s.sums + e, relu<T>(load(s.sums + e) + bias));
  else if (job.bias)
    for (int64_t e = 0; e < s.rows * s.row_elements; e += kLanes<T>) store(s.sums + e, load(s.sums + e) + bias);
}

// A row of `width` pixels, [pixel][image], to the images' rows.
template <class Element>
inline void write_row(
    const View<Element>& out, const Element* row, int64_t width, int64_t step, int64_t images, int64_t n, int64_t channel,
    int64_t h) {
  for (int64_t i = 0; i < images; ++i) {
    Element* to = element(out, n + i, channel, h);
    for (int64_t w = 0; w < width; ++w) to[w * out.w] = row[w * step + i];
  }
}

// Maximum over 2 x 2 windows of two rows, a vector of windows at a time; [window][image] into `maximum` and `where`.
// `step` divides the vector, so no window straddles a pair of vectors.
template <class T>
inline void pool_two(const Strip<T>& s, const T* row, int64_t step, int64_t elements, T* maximum, uint8_t* where) {
  using Index = Lane<T>;
  Index even, odd;  // where a window's left and right pixels lie in two adjacent vectors
  for (int j = 0; j < kLanes<T>; ++j) {
    even[j] = j / step * 2 * step + j % step;
    odd[j] = even[j] + step;
  }
  for (int64_t e = 0; e < elements; e += kLanes<T>) {
    Vector<T> best{};
    Index tap{};
    for (int k = 0; k < 2; ++k) {
      const T* at = row + k * s.row_elements + 2 * e;
      const Vector<T> low = load(at);
      // A row of an odd number of vectors: the last has no neighbour, and needs none.
      const Vector<T> high = 2 * e + kLanes<T> < s.row_elements ? load(at + kLanes<T>) : low;
      const Vector<T> left = __builtin_shuffle(low, high, even), right = __builtin_shuffle(low, high, odd);
      if (k == 0)
        best = left;
      else
        keep_larger(left, 2, best, tap);
      keep_larger(right, 2 * k + 1, best, tap);
    }
    store(maximum + e, best);
    for (int j = 0; j < kLanes<T>; ++j) where[e + j] = static_cast<uint8_t>(tap[j]);
  }
}

template <class T>
inline void pool_any(
    const Strip<T>& s, const T* row, int64_t m, int64_t step, int64_t elements, T* maximum, uint8_t* where) {
  for (int64_t e = 0; e < elements; ++e) {
    const T* window = row + e / step * m * step + e % step;
    T best = window[0];
    int64_t tap = 0;
    for (int64_t k = 1; k < m * m; ++k) {
      const T value = window[k / m * s.row_elements + k % m * step];
      if (pool_replaces(value, best)) best = value, tap = k;
    }
    maximum[e] = best;
    where[e] = static_cast<uint8_t>(tap);
  }
}

// Takes a strip to the output; `pooled` and `where` hold one pooled row.
template <class T>
inline void finish_strip(const ConvJob<T>& job, const Strip<T>& s, T* pooled, uint8_t* where) {
  if (finishes_rows<T, 1>(job, s.images)) return finish<T, 1>(job, s);
  if (finishes_rows<T, 2>(job, s.images)) return finish<T, 2>(job, s);
  const int64_t step = job.geometry.interleave, m = job.pool, width = job.geometry.out_width / m;
  activate(job, s);
  for (int64_t r = 0; r + m <= s.rows; r += m) {
    const T* row = s.sums + r * s.row_elements;
    const int64_t h = (s.row_begin + r) / m;
    if (m == 1) {
      write_row(job.out, row, width, step, s.images, s.image_begin, s.channel, h);
      continue;
    }
    if (m == 2 && kLanes<T> % step == 0)
      pool_two(s, row, step, width * step, pooled, where);
    else
      pool_any(s, row, m, step, width * step, pooled, where);
    write_row(job.out, pooled, width, step, s.images, s.image_begin, s.channel, h);
    if (job.indices.data) write_row(job.indices, where, width, step, s.images, s.image_begin, s.channel, h);
  }
}

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
