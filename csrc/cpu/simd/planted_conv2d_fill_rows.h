// Whole rows of one image, or of two side by side, into scratch by vectors: what nearly every filling consists of.
#pragma once

#include "planted_conv2d_vector.h"

namespace plantops::PLANTOPS_ISA {
namespace {

// Where a filling goes and which part of the source it takes: scratch row r is source row row_begin + r, scratch
// column j is source column j - pad_w. Columns outside the source are never written: scratch comes zeroed, and every
// filling of one scratch has the same columns. Rows outside the source are set to zero.
template <class T>
struct Filling {
  T* scratch;
  int64_t channel_stride, row_stride, interleave;
  int64_t image_begin, images;  // images < interleave: the other lanes are set to zero
  int64_t channel_begin, channels;
  int64_t row_begin, rows;
  int64_t pad_w, columns;

  // Columns [from, until) of the source are taken.
  int64_t from() const { return most(0, -pad_w); }
  int64_t until(int64_t width) const { return least(width, columns - pad_w); }
};

// The same row of `Step` images.
template <class T, int Step>
struct ImageRows {
  const T* values[Step];
  const T* output[Step];         // nullptr: no ReLU
  const uint8_t* indices[Step];  // nullptr: no max-pool

  ImageRows(const Source<T>& s, int64_t image, int64_t channel) {
    for (int i = 0; i < Step; ++i) {
      const auto first = [&](const auto& view) {
        return view.data ? view.data + (image + i) * view.n + channel * view.c : nullptr;
      };
      values[i] = first(s.values), output[i] = first(s.output), indices[i] = first(s.indices);
    }
  }
  // This is the first row; another one.
  ImageRows at(const Source<T>& s, int64_t row) const {
    ImageRows rows = *this;
    for (int i = 0; i < Step; ++i) {
      rows.values[i] += row * s.values.h;
      if (output[0]) rows.output[i] += row * s.output.h;
      if (indices[0]) rows.indices[i] += row * s.indices.h;
    }
    return rows;
  }
};

// Values through ReLU at the next columns of all images, an image behind the other.
template <int Bytes, class T, int Step>
inline __attribute__((always_inline)) Part<T, Bytes> masked_images(const ImageRows<T, Step>& rows, int64_t at) {
  const Part<T, Bytes> value = load_images<Bytes>(rows.values, at);
  if (rows.output[0] == nullptr) return value;
  return load_images<Bytes>(rows.output, at) <= Part<T, Bytes>{} ? Part<T, Bytes>{} : value;
}

// The last vector of a row overlaps the one before where the width is no multiple of it.
template <class T, int Step>
inline void copy_rows(const ImageRows<T, Step>& rows, T* to, int64_t width) {
  constexpr int64_t kPixels = kLanes<T> / Step;
  for (int64_t w = 0; w < width; w += kPixels) {
    const int64_t at = least(w, width - kPixels);
    store(to + at * Step, interleaved<T, Step>(masked_images<kVectorBytes>(rows, at)));
  }
}

// The upper or lower row of 2 x 2 windows of the gradient before max-pool: each pooled gradient goes to where its
// maximum was. `first_tap` is the position of the row's left pixels.
template <class T, int Step>
inline void unpool_rows(const ImageRows<T, Step>& rows, T* to, int64_t windows, int first_tap) {
  constexpr int kHalf = kLanes<T> / 2, kWindows = kHalf / Step;
  using Half = Part<T, kVectorBytes / 2>;
  using Taps = decltype(Half{} < Half{});
  for (int64_t p = 0; p < windows; p += kWindows) {
    const int64_t at = least(p, windows - kWindows);
    const Half value = masked_images<kVectorBytes / 2>(rows, at);
    const Taps tap = load_positions<Taps>(rows.indices, at);
    const Half left = tap == first_tap ? value : Half{}, right = tap == first_tap + 1 ? value : Half{};
    store(to + 2 * at * Step, shuffle<kLanes<T>>(left, right, [](int i) {
            const int image = i % Step, pixel = i / Step;
            return pixel % 2 * kHalf + image * kWindows + pixel / 2;
          }));
  }
}

// All rows of a channel. `to` is where the first column of the source goes.
template <class T, int Step>
void fill_channel(const Source<T>& s, const Filling<T>& f, int64_t channel, T* to) {
  const ImageRows<T, Step> first(s, f.image_begin, channel);
  const int64_t height = s.height / s.pool * s.pool;  // rows below the last window have no gradient
  for (int64_t r = 0; r < f.rows; ++r, to += f.row_stride) {
    const int64_t h = f.row_begin + r;
    if (h < 0 || h >= height) {
      for (int64_t e = 0; e < s.width * Step; e += kLanes<T>)
        store(to + least(e, s.width * Step - kLanes<T>), Vector<T>{});
    } else if (s.pool == 1) {
      copy_rows(first.at(s, h), to, s.width);
    } else if constexpr (kLanes<T> >= 4 * Step) {
      unpool_rows(first.at(s, h / 2), to, s.width / 2, int(h % 2 * 2));
    }
  }
}

// Whether fill_channel() can do it: pixels in a row lie side by side, all are taken, and they fill a vector.
template <class T, int Step>
bool fills_rows(const Source<T>& s, const Filling<T>& f) {
  const bool adjacent =
      s.values.w == 1 && (s.output.data == nullptr || s.output.w == 1) && (s.pool == 1 || s.indices.w == 1);
  const bool whole = f.from() == 0 && f.until(s.width) == s.width && s.width * Step >= kLanes<T>;
  const bool windows = s.pool == 1 || (s.pool == 2 && s.width % 2 == 0 && kLanes<T> >= 4 * Step);
  return adjacent && whole && windows && f.interleave == Step && f.images == Step && kLanes<T> >= Step;
}

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
