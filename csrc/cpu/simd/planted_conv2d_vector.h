// Vectors of the widest registers of the instruction set this copy is compiled for. Everything here and in the other
// planted_conv2d_*.h lives in an unnamed namespace: no symbol of one copy may serve another.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <type_traits>
#include <utility>

#include "planted_conv2d.h"

namespace plantops::PLANTOPS_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kRegisters = 32;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kRegisters = 16;
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kRegisters = 32;
#else
constexpr int kVectorBytes = 16, kRegisters = 16;
#endif

// Register blocks: output channels x pixel vectors of the convolution, gradient rows x (channel, tap) columns of the
// weight gradient. The accumulators and the operands of one step must fit the registers.
constexpr int kOutBlock = 6;
constexpr int kPixelBlock = kRegisters == 32 ? 4 : 2;
constexpr int kGradRows = 4;
constexpr int kGradColumns = kRegisters == 32 ? 6 : 3;

template <class T, int Bytes>
struct VectorOf {
  typedef T type __attribute__((vector_size(Bytes)));
};
template <class T, int Bytes>
using Part = typename VectorOf<T, Bytes>::type;
template <class T>
using Vector = Part<T, kVectorBytes>;
template <class T>
constexpr int kLanes = kVectorBytes / sizeof(T);

template <int Bytes, class T>
inline __attribute__((always_inline)) Part<T, Bytes> load_part(const T* from) {
  Part<T, Bytes> v;
  __builtin_memcpy(&v, from, sizeof(v));
  return v;
}

template <class T>
inline __attribute__((always_inline)) Vector<T> load(const T* from) {
  return load_part<kVectorBytes>(from);
}

template <class T, class V>
inline __attribute__((always_inline)) void store(T* to, V v) {
  __builtin_memcpy(to, &v, sizeof(v));
}

// Element numbers of a vector of T: int32_t for float, int64_t for double.
template <class T>
using Lane = decltype(Vector<T>{} < Vector<T>{});

template <class T>
inline __attribute__((always_inline)) Vector<T> broadcast(T value) {
  return value - Vector<T>{};
}

// A vector whose element i is element from(i) of a and b, counted through both; `from` is a lambda without captures.
template <int Count, class V, class From, int... I>
inline __attribute__((always_inline)) auto shuffle(V a, V b, From from, std::integer_sequence<int, I...>) {
#if __has_builtin(__builtin_shufflevector)
  return __builtin_shufflevector(a, b, from(I)...);
#else
  constexpr int kSize = sizeof(a) / sizeof(a[0]);
  Part<std::remove_cvref_t<decltype(a[0])>, Count * int(sizeof(a[0]))> result;
  ((result[I] = from(I) < kSize ? a[from(I) % kSize] : b[from(I) % kSize]), ...);
  return result;
#endif
}
template <int Count, class V, class From>
inline __attribute__((always_inline)) auto shuffle(V a, V b, From from) {
  return shuffle<Count>(a, b, from, std::make_integer_sequence<int, Count>{});
}

// One vector of the next pixels of `Step` images, an image behind the other, and back.
template <int Bytes, class T, int Step>
inline __attribute__((always_inline)) Part<T, Bytes> load_images(const T* const (&images)[Step], int64_t at) {
  if constexpr (Step == 1) {
    return load_part<Bytes>(images[0] + at);
  } else {
    static_assert(Step == 2);
    return shuffle<Bytes / int(sizeof(T))>(load_part<Bytes / 2>(images[0] + at), load_part<Bytes / 2>(images[1] + at),
                                           [](int i) { return i; });
  }
}
template <class T, int Step, class V>
inline __attribute__((always_inline)) void store_images(T* const (&images)[Step], int64_t at, V v) {
  constexpr int kPart = sizeof(v) / sizeof(T) / Step;
  store(images[0] + at, shuffle<kPart>(v, v, [](int i) { return i; }));
  if constexpr (Step == 2) store(images[1] + at, shuffle<kPart>(v, v, [](int i) { return i + kPart; }));
}

// Positions in a window of `Step` images, an image behind the other: a byte each in memory, as wide as the values in
// registers. GCC converts such short vectors element by element, so the instruction is named.
template <class Lanes, int Step>
inline __attribute__((always_inline)) Lanes load_positions(const uint8_t* const (&images)[Step], int64_t at) {
  constexpr int kCount = sizeof(Lanes) / sizeof(Lanes{}[0]), kPart = kCount / Step;
  uint64_t bytes = 0;
  for (int i = 0; i < Step; ++i) {
    uint64_t part = 0;
    __builtin_memcpy(&part, images[i] + at, kPart);
    bytes |= part << (8 * kPart * i);
  }
#if defined(__AVX2__)
  const __m128i narrow = _mm_cvtsi64_si128(static_cast<int64_t>(bytes));
  if constexpr (sizeof(Lanes) == 32)
    return kCount == 8 ? Lanes(_mm256_cvtepu8_epi32(narrow)) : Lanes(_mm256_cvtepu8_epi64(narrow));
  else
    return kCount == 4 ? Lanes(_mm_cvtepu8_epi32(narrow)) : Lanes(_mm_cvtepu8_epi64(narrow));
#else
  Lanes positions;
  for (int i = 0; i < kCount; ++i) positions[i] = bytes >> (8 * i) & 255;
  return positions;
#endif
}
template <class Lanes, int Step>
inline __attribute__((always_inline)) void store_positions(uint8_t* const (&images)[Step], int64_t at, Lanes positions) {
  constexpr int kCount = sizeof(Lanes) / sizeof(positions[0]), kPart = kCount / Step;
  uint64_t bytes = 0;
#if defined(__AVX512VL__)
  const __m256i wide = __m256i(positions);  // (the forms without a mask warn in GCC 12's own header)
  bytes = _mm_cvtsi128_si64(kCount == 8 ? _mm256_maskz_cvtepi32_epi8(255, wide) : _mm256_maskz_cvtepi64_epi8(255, wide));
#else
  for (int i = 0; i < kCount; ++i) bytes |= static_cast<uint64_t>(positions[i]) << (8 * i);
#endif
  for (int i = 0; i < Step; ++i) {
    const uint64_t part = bytes >> (8 * kPart * i);
    __builtin_memcpy(images[i] + at, &part, kPart);
  }
}

// From an image behind the other to pixel by pixel, [pixel][image].
template <class T, int Step>
inline __attribute__((always_inline)) Vector<T> interleaved(Vector<T> v) {
  if constexpr (Step == 1) return v;
  return shuffle<kLanes<T>>(v, v, [](int i) { return i % Step * (kLanes<T> / Step) + i / Step; });
}
template <class T, int Step>
inline __attribute__((always_inline)) Vector<T> by_image(Vector<T> v) {
  if constexpr (Step == 1) return v;
  return shuffle<kLanes<T>>(v, v, [](int i) { return i % (kLanes<T> / Step) * Step + i / (kLanes<T> / Step); });
}

// relu'(0) = 0, NaN stays.
template <class T>
inline __attribute__((always_inline)) Vector<T> relu(Vector<T> v) {
  return v <= Vector<T>{} ? Vector<T>{} : v;
}

// Sum of the lanes of a vector in memory, by halves. (In memory, because taking a vector apart in registers makes
// GCC keep the accumulators it comes from on the stack all through the loop.)
template <class T, int Lanes = kLanes<T>>
inline __attribute__((always_inline)) T lane_sum(const T* lanes) {
  if constexpr (Lanes == 1) {
    return lanes[0];
  } else {
    using Half = typename VectorOf<T, Lanes / 2 * int(sizeof(T))>::type;
    Half low, high;
    __builtin_memcpy(&low, lanes, sizeof(Half));
    __builtin_memcpy(&high, lanes + Lanes / 2, sizeof(Half));
    low += high;
    T sums[Lanes / 2];
    __builtin_memcpy(sums, &low, sizeof(Half));
    return lane_sum<T, Lanes / 2>(sums);
  }
}

inline __attribute__((always_inline)) int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline __attribute__((always_inline)) int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

}  // namespace
}  // namespace plantops::PLANTOPS_ISA
