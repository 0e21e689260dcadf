// The sums over a row of logits that the losses need, for kernels that meet its classes in parts: each thread or block
// sums its own, and they are added up.
#pragma once

#include <math.h>

#include "kl_div_logits.h"
#include "numbers.h"

namespace plantops {

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

PLANTOPS_INLINE double power_of_two(double x) { return exp2(x); }
// On a GPU one instruction: exact to 2^-22, and 0 for results below 2^-126.
PLANTOPS_INLINE float power_of_two(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  return exp2f(x);
#endif
}

// The larger of two; a NaN is passed over.
PLANTOPS_INLINE double larger_number(double a, double b) { return fmax(a, b); }
PLANTOPS_INLINE float larger_number(float a, float b) { return fmaxf(a, b); }

// The sums of kl_of_row over classes that come one by one, in any number of parts; T is the type the logits are stored
// in. z is a logit less the row's shift (its largest logit so far, 0 while all are minus infinity) times a scale,
// log2(e) / temperature: exponentials are powers of two, and what is weighted counts in units of ln(2).
template <class T>
struct KlSums {
  using W = Wide<T>;
  static constexpr bool kInsideOnly = false;  // a class at minus infinity adds nothing
  W max_s = -infinity<W>(), max_t = -infinity<W>();
  W sum_s = 0, sum_t = 0, weighted = 0;

  static PLANTOPS_INLINE W shift(W max) { return max == -infinity<W>() ? W(0) : max; }

  // Makes room for logits up to these. What has been summed is carried over to the new shifts.
  PLANTOPS_INLINE void raise(W to_s, W to_t, W scale) {
    W down_s = 0, down_t = 0;  // how far z falls
    if (to_s > max_s) {
      if (max_s != -infinity<W>()) down_s = (max_s - to_s) * scale;
      max_s = to_s;
      sum_s *= power_of_two(down_s);
    }
    if (to_t > max_t) {
      if (max_t != -infinity<W>()) down_t = (max_t - to_t) * scale;
      max_t = to_t;
    }
    const W rest = power_of_two(down_t);
    // What has become too small to count counts as 0, also where the student's share is infinite.
    weighted = rest == W(0) ? W(0) : rest * (weighted + sum_t * (down_t - down_s));
    sum_t *= rest;
  }

  // A class whose logits are not above the maxima.
  PLANTOPS_INLINE void add(W student, W teacher, W scale) {
    const W z_s = (student - shift(max_s)) * scale, z_t = (teacher - shift(max_t)) * scale;
    const W e_t = power_of_two(z_t);
    sum_s += power_of_two(z_s);
    sum_t += e_t;
    weighted += kl_term(e_t, z_t, z_s);
  }

  // Behind them, with all parts added up.
  PLANTOPS_INLINE double divergence() const {
    return kl_of_row(log(double(sum_s)), double(sum_t), log(double(sum_t)), kLn2 * double(weighted));
  }
  static PLANTOPS_INLINE W log_sum_exp(W max, W sum, double temperature) {
    return W(double(max) / temperature + log(double(sum)));
  }
};

// KlSums with what the cross entropy needs of the same classes: x is the student's logit less its shift, at
// temperature 1. The two softmaxes of the student are one at temperature 1, and only label smoothing reads `centred`.
template <class T>
struct DistillationSums : KlSums<T> {
  using W = Wide<T>;
  static constexpr bool kInsideOnly = true;
  W sum_1 = 0, centred = 0;
  int32_t classes = 0;

  PLANTOPS_INLINE void raise(W to_s, W to_t, W scale) {
    if (to_s > this->max_s) {
      const W down = this->shift(this->max_s) - to_s;
      if (this->max_s != -infinity<W>()) sum_1 *= power_of_two(down * W(kLog2e));
      centred += W(classes) * down;
    }
    KlSums<T>::raise(to_s, to_t, scale);
  }

  PLANTOPS_INLINE void add(W student, W teacher, W scale) {
    KlSums<T>::add(student, teacher, scale);
    const W x = student - this->shift(this->max_s);
    if (scale != W(kLog2e)) sum_1 += power_of_two(x * W(kLog2e));
    centred += x;
    ++classes;
  }
};

}  // namespace plantops
