// Rows of group_sparsity: the norms of an output channel's kernels, and its gradient. In an unnamed namespace: no symbol
// of one copy may serve another.
#pragma once

#include "group_sparsity.h"
#include "row_losses_vector.h"

namespace plantops::PLANTOPS_ISA {
namespace {

// Sum in a fixed order: sixteen interleaved partial sums.
template <class T, class Value>
inline PLANTOPS_ALWAYS T ordered_sum(int64_t count, const Value& value) {
  T lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int64_t k = 0; k < 16; ++k) lanes[k] += value(i + k);
  for (int64_t k = 0; i + k < count; ++k) lanes[k] += value(i + k);
  for (int64_t half = 8; half > 0; half /= 2)
    for (int64_t k = 0; k < half; ++k) lanes[k] += lanes[k + half];
  return lanes[0];
}

template <bool Squares, class V>
inline PLANTOPS_ALWAYS V term(V w) {
  if constexpr (Squares) return w * w;
  return w < 0 ? -w : w;
}

// 3 x 3 kernels, the common ones, lie nine values apart: eight kernels at a time are added up by a tree of shuffles
// where registers hold eight values.
template <class T>
constexpr bool kTree = int64_t(sizeof(T)) * 8 <= kBytes;
template <class T>
using Eight = typename Part<T, 8 * sizeof(T)>::type;

template <class T>
inline PLANTOPS_ALWAYS Eight<T> add_neighbours(Eight<T> a, Eight<T> b) {
  using Index = typename Part<std::conditional_t<sizeof(T) == 4, int32_t, int64_t>, 8 * sizeof(T)>::type;
  return __builtin_shuffle(a, b, Index{0, 2, 4, 6, 8, 10, 12, 14}) +
         __builtin_shuffle(a, b, Index{1, 3, 5, 7, 9, 11, 13, 15});
}

template <bool Squares, class T>
inline PLANTOPS_ALWAYS Eight<T> norms_of_eight(const T* w) {
  const auto terms = [w](int k) PLANTOPS_ALWAYS {
    Eight<T> v;
    __builtin_memcpy(&v, w + 9 * k, sizeof(v));
    return term<Squares>(v);
  };
  const auto four = [&](int k) PLANTOPS_ALWAYS {
    return add_neighbours<T>(add_neighbours<T>(terms(k), terms(k + 1)), add_neighbours<T>(terms(k + 2), terms(k + 3)));
  };
  const Eight<T> ninth{w[8], w[17], w[26], w[35], w[44], w[53], w[62], w[71]};
  return add_neighbours<T>(four(0), four(4)) + term<Squares>(ninth);
}

template <bool Squares, class T>
inline PLANTOPS_ALWAYS void norms_of_nines(int64_t count, const T* w, T* norms) {
  int64_t i = 0;
  if constexpr (kTree<T>)
    for (; i + 8 <= count; i += 8) {
      const Eight<T> eight = norms_of_eight<Squares>(w + 9 * i);
      __builtin_memcpy(norms + i, &eight, sizeof(eight));
    }
  for (; i < count; ++i) {
    T sum = T(0);
    for (int64_t t = 0; t < 9; ++t) sum += term<Squares>(w[9 * i + t]);
    norms[i] = sum;
  }
}

// norms[i] = sum over the taps of kernel i.
template <bool Squares, class T>
void norms_of_row(const KernelBlock<T>& b, const T* w, T* norms) {
  if (b.channels_last || b.taps == 1) {
    for (int64_t i = 0; i < b.inputs; ++i) norms[i] = term<Squares>(w[i]);
    for (int64_t t = 1; t < b.taps; ++t) {
      const T* row = w + t * b.inputs;
      for (int64_t i = 0; i < b.inputs; ++i) norms[i] += term<Squares>(row[i]);
    }
  } else if (b.taps == 9) {
    norms_of_nines<Squares>(b.inputs, w, norms);
  } else {
    for (int64_t i = 0; i < b.inputs; ++i) {
      const T* kernel = w + i * b.taps;
      norms[i] = ordered_sum<T>(b.taps, [=](int64_t t) { return term<Squares>(kernel[t]); });
    }
  }
}

// coefficient d + l1 sign(w), d as in GroupSparsityJob.
template <bool Squares, bool L1, class V>
inline PLANTOPS_ALWAYS V direction(V w, V coefficient, V l1) {
  const V zero{};
  if constexpr (Squares && !L1) return coefficient * w;
  if constexpr (Squares) return coefficient * w + (w > zero ? l1 : w < zero ? -l1 : zero);
  const V slope = L1 ? coefficient + l1 : coefficient;
  return w > zero ? slope : w < zero ? -slope : zero;
}

// Stores past the caches: a gradient that will not stay in them is then not read in before it is overwritten. `to` is
// aligned to a whole vector. The order of such stores is only fixed by finish_streams().
template <class T>
inline PLANTOPS_ALWAYS void stream(T* to, Vector<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), (__m256i)v);
#elif defined(__SSE2__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), (__m128i)v);
#else
  __builtin_memcpy(to, &v, sizeof(v));
#endif
}

inline PLANTOPS_ALWAYS void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// As many 3 x 3 kernels as a vector has lanes are nine whole vectors: value k of them belongs to kernel k / 9.
template <bool Squares, bool L1, bool Stream, class T>
inline PLANTOPS_ALWAYS void gradient_of_nines(int64_t count, const T* w, const T* coefficient, T scale, T l1, T* out) {
  using V = Vector<T>;
  using Bits = typename Simd<T>::Bits;
  constexpr int64_t lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const V slopes = Whole<T>{i}.load(coefficient, T(0)) * scale;
#pragma GCC unroll 9
    for (int64_t v = 0; v < 9; ++v) {
      Bits kernel;
      for (int64_t k = 0; k < lanes; ++k) kernel[k] = (v * lanes + k) / 9;
      const Whole<T> at{9 * i + v * lanes};
      const V value = direction<Squares, L1, V>(at.load(w, T(0)), __builtin_shuffle(slopes, kernel), splat(l1));
      if constexpr (Stream)
        stream(out + at.i, value);
      else
        at.store(out, value);
    }
  }
  for (; i < count; ++i)
    for (int64_t t = 9 * i; t < 9 * (i + 1); ++t)
      out[t] = direction<Squares, L1, T>(w[t], scale * coefficient[i], l1);
}

template <bool Squares, bool L1, class T>
void gradient_of_row(
    const KernelBlock<T>& b, const T* __restrict w, const T* __restrict coefficient, T scale, T l1, T* __restrict out) {
  if (b.channels_last || b.taps == 1) {
    for (int64_t t = 0; t < b.taps; ++t)
      for (int64_t i = 0; i < b.inputs; ++i)
        out[t * b.inputs + i] = direction<Squares, L1, T>(w[t * b.inputs + i], scale * coefficient[i], l1);
  } else if (b.taps == 9) {
    if (b.stream && reinterpret_cast<uintptr_t>(out) % kBytes == 0)
      gradient_of_nines<Squares, L1, true>(b.inputs, w, coefficient, scale, l1, out);
    else
      gradient_of_nines<Squares, L1, false>(b.inputs, w, coefficient, scale, l1, out);
  } else {
    for (int64_t i = 0; i < b.inputs; ++i)
      for (int64_t t = i * b.taps; t < (i + 1) * b.taps; ++t)
        out[t] = direction<Squares, L1, T>(w[t], scale * coefficient[i], l1);
  }
}

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
