// Bias, addend, ReLU and 2 x 2 max-pool of whole rows of one image, or of two side by side, from the sums of the
// convolution straight into the output: what nearly every epilogue consists of.
#pragma once

#include "planted_conv2d_vector.h"

namespace plantops::PLANTOPS_ISA {
namespace {

// A strip of finished convolution rows of one output channel, [row][column][image], and where it belongs.
template <class T>
struct Strip {
  T* sums;
  int64_t row_elements;     // whole vectors
  int64_t row_begin, rows;  // before pooling
  int64_t channel, image_begin, images;
};

template <class T>
inline T* element(const View<T>& view, int64_t n, int64_t c, int64_t h) {
  return view.data + n * view.n + c * view.c + h * view.h;
}

// The same row of `Step` images; null pointers where the view is absent.
template <class T, int Step>
struct RowsOf {
  T* images[Step];

  RowsOf(const View<T>& view, int64_t n, int64_t c, int64_t h) {
    for (int i = 0; i < Step; ++i) images[i] = view.data ? element(view, n + i, c, h) : nullptr;
  }
};

// A vector of sums with what is added to it, [pixel][image]; the order of the additions is that of activate().
template <class T, int Step>
inline __attribute__((always_inline)) Vector<T> activated(
    const T* sums, const RowsOf<const T, Step>& addend, int64_t at, Vector<T> bias, bool relu_follows) {
  Vector<T> v = load(sums + at * Step);
  if (addend.images[0]) v += interleaved<T, Step>(load_images<kVectorBytes>(addend.images, at));
  v += bias;
  return relu_follows ? relu<T>(v) : v;
}

template <class V, class Lane>
inline __attribute__((always_inline)) void keep_larger(V value, int position, V& best, Lane& tap) {
  const Lane replaces = (value > best) | ((value != value) & (best == best));  // pool_replaces()
  best = replaces ? value : best;
  tap = replaces ? Lane{} + position : tap;
}

// The windows of a vector from each of two rows, an image behind the other.
template <class T, int Step, class Lane>
inline __attribute__((always_inline)) auto pooled_images(Vector<T> upper, Vector<T> lower, Lane& tap) {
  constexpr int kHalf = kLanes<T> / 2, kWindows = kHalf / Step;
  const auto left = [](int i) { return i % kWindows * 2 * Step + i / kWindows; };
  const auto right = [](int i) { return (i % kWindows * 2 + 1) * Step + i / kWindows; };
  auto best = shuffle<kHalf>(upper, upper, left);
  tap = Lane{};
  keep_larger(shuffle<kHalf>(upper, upper, right), 1, best, tap);
  keep_larger(shuffle<kHalf>(lower, lower, left), 2, best, tap);
  keep_larger(shuffle<kHalf>(lower, lower, right), 3, best, tap);
  return best;
}

// The last vector of a row overlaps the one before where the width is no multiple of it.
template <class T, int Step>
void finish_rows(const ConvJob<T>& job, const Strip<T>& s) {
  constexpr int64_t kPixels = kLanes<T> / Step;
  const int64_t width = job.geometry.out_width, n = s.image_begin, c = s.channel;
  const Vector<T> bias = broadcast(job.bias ? job.bias[c] : T(0));
  for (int64_t r = 0; r < s.rows; ++r) {
    const RowsOf<const T, Step> addend(job.addend, n, c, s.row_begin + r);
    const RowsOf<T, Step> out(job.out, n, c, s.row_begin + r);
    const T* const sums = s.sums + r * s.row_elements;
    for (int64_t w = 0; w < width; w += kPixels) {
      const int64_t at = least(w, width - kPixels);
      store_images(out.images, at, by_image<T, Step>(activated<T, Step>(sums, addend, at, bias, job.relu)));
    }
  }
}

template <class T, int Step>
void finish_windows(const ConvJob<T>& job, const Strip<T>& s) {
  constexpr int64_t kHalf = kLanes<T> / 2, kWindows = kHalf / Step;
  using Half = Part<T, kVectorBytes / 2>;
  const int64_t windows = job.geometry.out_width / 2, n = s.image_begin, c = s.channel;
  const Vector<T> bias = broadcast(job.bias ? job.bias[c] : T(0));
  for (int64_t r = 0; r + 2 <= s.rows; r += 2) {
    const int64_t h = s.row_begin + r;
    const RowsOf<const T, Step> above(job.addend, n, c, h), below(job.addend, n, c, h + 1);
    const RowsOf<T, Step> out(job.out, n, c, h / 2);
    const RowsOf<uint8_t, Step> indices(job.indices, n, c, h / 2);
    const T* const sums = s.sums + r * s.row_elements;
    for (int64_t p = 0; p < windows; p += kWindows) {
      const int64_t at = least(p, windows - kWindows);
      decltype(Half{} < Half{}) tap;
      const Half best = pooled_images<T, Step>(
          activated<T, Step>(sums, above, 2 * at, bias, job.relu),
          activated<T, Step>(sums + s.row_elements, below, 2 * at, bias, job.relu), tap);
      store_images(out.images, at, best);
      if (indices.images[0]) store_positions(indices.images, at, tap);
    }
  }
}

// Whether one of the two can do it: pixels in a row lie side by side and fill a vector.
template <class T, int Step>
bool finishes_rows(const ConvJob<T>& job, int64_t images) {
  const int64_t width = job.geometry.out_width;
  const bool adjacent = job.out.w == 1 && (job.addend.data == nullptr || job.addend.w == 1) &&
                        (job.indices.data == nullptr || job.indices.w == 1);
  const bool windows = job.pool == 1 || (job.pool == 2 && kLanes<T> >= 4 * Step);
  return adjacent && windows && width / job.pool * job.pool * Step >= kLanes<T> &&
         job.geometry.interleave == Step && images == Step && kLanes<T> >= Step;
}

template <class T, int Step>
void finish(const ConvJob<T>& job, const Strip<T>& s) {
  if constexpr (kLanes<T> >= 4 * Step) {
    if (job.pool == 2) return finish_windows<T, Step>(job, s);
  }
  finish_rows<T, Step>(job, s);
}

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
