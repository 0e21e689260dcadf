// Floating types in memory, and 16 bytes of them at once, for the GPU kernels and their tests on the CPU.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace plantops {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// 16 bytes: what one thread reads or writes at best.
struct alignas(16) Pack {
  uint32_t words[4];
};

template <class T>
constexpr int kPerPack = int(sizeof(Pack) / sizeof(T));

// The type that values of type T are computed in.
template <class T>
struct WideOf {
  using type = float;
};
template <>
struct WideOf<double> {
  using type = double;
};
template <class T>
using Wide = typename WideOf<T>::type;

template <class To, class From>
PLANTOPS_INLINE To bit_copy(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
PLANTOPS_INLINE T infinity() {
  if constexpr (sizeof(T) == 8)
    return bit_copy<T>(uint64_t(0x7ff) << 52);
  else
    return bit_copy<T>(uint32_t(0x7f800000));
}

PLANTOPS_INLINE double widen(double value) { return value; }
PLANTOPS_INLINE float widen(float value) { return value; }
PLANTOPS_INLINE float widen(Bfloat16 value) { return bit_copy<float>(uint32_t(value.bits) << 16); }

PLANTOPS_INLINE float widen(Float16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  // The exponent is 112 too small; the product is exact, subnormals included. Infinity and NaN get theirs by hand.
  uint32_t bits = bit_copy<uint32_t>(bit_copy<float>(uint32_t(value.bits & 0x7fff) << 13) * 0x1p112f);
  bits |= (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  return bit_copy<float>(bits | uint32_t(value.bits & 0x8000) << 16);
#endif
}

PLANTOPS_INLINE void narrow(double value, double& to) { to = value; }
PLANTOPS_INLINE void narrow(float value, float& to) { to = value; }

PLANTOPS_INLINE void narrow(float value, Bfloat16& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
  const uint32_t bits = bit_copy<uint32_t>(value);
  to.bits = value != value ? 0x7fff : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

PLANTOPS_INLINE void narrow(float value, Float16& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(value));
#else
  const uint32_t bits = bit_copy<uint32_t>(value), magnitude = bits & 0x7fffffff;
  // Below 2^-14 the result is subnormal: 0.5 has its unit in the last place, so adding it rounds there.
  uint32_t result = magnitude < (113u << 23)
                        ? bit_copy<uint32_t>(bit_copy<float>(magnitude) + 0.5f) - bit_copy<uint32_t>(0.5f)
                        : (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112u << 23)) >> 13;
  if (magnitude >= 0x477ff000) result = 0x7c00;  // 65520 and above round to infinity
  if (magnitude > 0x7f800000) result = 0x7fff;
  to.bits = uint16_t(result | (bits >> 16 & 0x8000));
#endif
}

// Two values in 16 bits each, the first in the lower half.
PLANTOPS_INLINE uint32_t narrow_pair(float first, float second, Bfloat16) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  Bfloat16 values[2];
  narrow(first, values[0]);
  narrow(second, values[1]);
  return values[0].bits | uint32_t(values[1].bits) << 16;
#endif
}
PLANTOPS_INLINE uint32_t narrow_pair(float first, float second, Float16) {
#if defined(__CUDA_ARCH__)
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  Float16 values[2];
  narrow(first, values[0]);
  narrow(second, values[1]);
  return values[0].bits | uint32_t(values[1].bits) << 16;
#endif
}

// Value `k` of a pack as it is stored; k is a constant once loops are unrolled, so a pack stays in registers.
template <class T>
PLANTOPS_INLINE T stored(const Pack& pack, int k) {
  if constexpr (sizeof(T) == 2) {
    return T{uint16_t(pack.words[k / 2] >> (k % 2 * 16))};
  } else if constexpr (sizeof(T) == 4) {
    return bit_copy<float>(pack.words[k]);
  } else {
    return bit_copy<double>(uint64_t(pack.words[2 * k]) | uint64_t(pack.words[2 * k + 1]) << 32);
  }
}
template <class T>
PLANTOPS_INLINE Wide<T> unpack(const Pack& pack, int k) {
  return widen(stored<T>(pack, k));
}

template <class T>
PLANTOPS_INLINE void set_value(Pack& pack, int k, T value) {
  if constexpr (sizeof(T) == 2) {
    const int shift = k % 2 * 16;
    pack.words[k / 2] = (pack.words[k / 2] & ~(0xffffu << shift)) | uint32_t(value.bits) << shift;
  } else if constexpr (sizeof(T) == 4) {
    pack.words[k] = bit_copy<uint32_t>(value);
  } else {
    pack.words[2 * k] = uint32_t(bit_copy<uint64_t>(value));
    pack.words[2 * k + 1] = uint32_t(bit_copy<uint64_t>(value) >> 32);
  }
}

template <class T>
PLANTOPS_INLINE T negative_infinity() {
  if constexpr (sizeof(T) == 2) {
    T value;
    narrow(-infinity<float>(), value);
    return value;
  } else {
    return -infinity<T>();
  }
}

// In one access: compilers make four of 4 bytes of an assignment. On a GPU to memory of the device.
PLANTOPS_INLINE void write_pack(void* to, const Pack& pack) {
#if defined(__CUDA_ARCH__)
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(pack.words[0]),
               "r"(pack.words[1]), "r"(pack.words[2]), "r"(pack.words[3])
               : "memory");
#else
  *static_cast<Pack*>(to) = pack;
#endif
}

// Which part of a row of `count` values a 16-byte access at `position` (may be negative) covers.
template <class T>
PLANTOPS_INLINE bool whole_pack(const T* row, int position, int count) {
  return position >= 0 && position + kPerPack<T> <= count && (reinterpret_cast<uintptr_t>(row + position) & 15) == 0;
}

// Values [position, position + kPerPack) of a row of `count`: one access where they are all inside and aligned, else
// one by one; minus infinity outside.
template <class T>
PLANTOPS_INLINE Pack load_pack(const T* row, int position, int count) {
  if (whole_pack(row, position, count)) return *reinterpret_cast<const Pack*>(row + position);
  Pack pack{};
  PLANTOPS_UNROLL
  for (int k = 0; k < kPerPack<T>; ++k) {
    const bool inside = position + k >= 0 && position + k < count;
    set_value(pack, k, inside ? row[position + k] : negative_infinity<T>());
  }
  return pack;
}

template <class T>
PLANTOPS_INLINE void store_pack(T* row, int position, int count, const Wide<T> (&values)[kPerPack<T>]) {
  Pack pack{};
  PLANTOPS_UNROLL
  for (int k = 0; k < kPerPack<T>; ++k) {
    if constexpr (sizeof(T) == 2) {
      if (k % 2 == 0) pack.words[k / 2] = narrow_pair(values[k], values[k + 1], T{});
    } else {
      set_value(pack, k, values[k]);
    }
  }
  if (whole_pack(row, position, count)) {
    write_pack(row + position, pack);
    return;
  }
  PLANTOPS_UNROLL
  for (int k = 0; k < kPerPack<T>; ++k)
    if (position + k >= 0 && position + k < count) row[position + k] = stored<T>(pack, k);
}

// How many values before `row` the last 16-byte boundary lies.
template <class T>
PLANTOPS_INLINE int values_since_boundary(const T* row) {
  return int((reinterpret_cast<uintptr_t>(row) & 15) / sizeof(T));
}

}  // namespace plantops
