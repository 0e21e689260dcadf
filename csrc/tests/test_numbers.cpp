// Conversions of 16-bit floating types, and 16-byte packs of values. Exit status 0: all as expected.
#include "../ops/numbers.h"

#include <cmath>
#include <cstdio>

using namespace plantops;

namespace {

int failures = 0;

void expect(bool holds, const char* what, double at) {
  if (holds) return;
  if (++failures < 20) std::fprintf(stderr, "not so: %s at %.9g\n", what, at);
}

// Every value comes back; what lies between two neighbours goes to the nearer one, a tie to the even one.
template <class T>
void rounds_to_nearest(uint16_t infinity) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = widen(T{uint16_t(bits)});
    T back;
    narrow(value, back);
    if ((bits & 0x7fff) > infinity) {
      expect(std::isnan(value) && std::isnan(widen(back)), "NaN stays NaN", bits);
      continue;
    }
    expect(back.bits == bits, "every value comes back", value);
    if ((bits & 0x7fff) + 1 >= infinity) continue;  // the next one is not finite
    const T next{uint16_t(bits + 1)};
    const float middle = float((double(value) + double(widen(next))) / 2);
    narrow(middle, back);
    expect(back.bits == (bits % 2 == 0 ? bits : bits + 1), "a tie goes to the even one", middle);
    narrow(std::nextafter(middle, value), back);
    expect(back.bits == bits, "below the middle", middle);
    narrow(std::nextafter(middle, widen(next)), back);
    expect(back.bits == bits + 1, "above the middle", middle);
  }
  T back;
  narrow(3.4e38f, back);
  expect(back.bits == infinity, "too large becomes infinity", 3.4e38);
}

template <class T>
void packs(const T* values, int count) {
  for (int position = -kPerPack<T>; position <= count; ++position) {
    const Pack pack = load_pack(values, position, count);
    for (int k = 0; k < kPerPack<T>; ++k) {
      const bool inside = position + k >= 0 && position + k < count;
      const Wide<T> expected = inside ? widen(values[position + k]) : -infinity<Wide<T>>();
      expect(unpack<T>(pack, k) == expected, "what is loaded", position);
    }
    T to[40] = {};
    Wide<T> stored[kPerPack<T>];
    for (int k = 0; k < kPerPack<T>; ++k) stored[k] = Wide<T>(k + 1);
    store_pack(to + 1, position, count, stored);
    for (int i = -1; i <= count; ++i) {
      const bool written = i >= 0 && i < count && i >= position && i < position + kPerPack<T>;
      expect(widen(to[i + 1]) == (written ? Wide<T>(i - position + 1) : 0), "what is stored", position);
    }
  }
}

template <class T>
void packs_anywhere() {
  alignas(16) T values[40];
  for (int i = 0; i < 40; ++i) narrow(Wide<T>(i), values[i]);
  for (int offset = 0; offset < kPerPack<T>; ++offset) {
    expect(values_since_boundary(values + offset) == offset, "values since the boundary", offset);
    packs(values + offset, 21);
    packs(values + offset, 1);
  }
}

}  // namespace

int main() {
  rounds_to_nearest<Bfloat16>(0x7f80);
  rounds_to_nearest<Float16>(0x7c00);
  packs_anywhere<double>();
  packs_anywhere<float>();
  packs_anywhere<Bfloat16>();
  packs_anywhere<Float16>();
  return failures == 0 ? 0 : 1;
}
