// The sums over a row of logits that the losses need, for kernels that meet its classes in parts: each thread or block
// sums its own, and they are added up.
#pragma once

#include <math.h>

#include "kl_div_logits.h"
#include "numbers.h"

namespace plantops {

// e^x. For values that were stored in 16 bits the GPU's approximation: near 0, where it counts, exact to 2^-22.
template <class T>
PLANTOPS_INLINE Wide<T> exponential(Wide<T> x) {
  if constexpr (sizeof(T) == 8) {
    return exp(x);
  } else {
#if defined(__CUDA_ARCH__)
    if constexpr (sizeof(T) == 2) return __expf(x);
#endif
    return expf(x);
  }
}

// The sums of kl_of_row over classes that come one by one, in any number of parts; T is the type the logits are stored
// in. z is a logit over the temperature less the row's shift: its largest logit so far, 0 while all are minus infinity.
template <class T>
struct KlSums {
  using W = Wide<T>;
  W max_s = -infinity<W>(), max_t = -infinity<W>();
  W sum_s = 0, sum_t = 0, weighted = 0;

  static PLANTOPS_INLINE W shift(W max) { return max == -infinity<W>() ? W(0) : max; }

  // Makes room for logits up to these. What has been summed is carried over to the new shifts.
  PLANTOPS_INLINE void raise(W to_s, W to_t, W inv_temperature) {
    W down_s = 0, down_t = 0;  // how far z falls
    if (to_s > max_s) {
      if (max_s != -infinity<W>()) down_s = (max_s - to_s) * inv_temperature;
      max_s = to_s;
      sum_s *= exponential<T>(down_s);
    }
    if (to_t > max_t) {
      if (max_t != -infinity<W>()) down_t = (max_t - to_t) * inv_temperature;
      max_t = to_t;
    }
    const W scale = exponential<T>(down_t);
    // What has become too small to count counts as 0, also where the student's share is infinite.
    weighted = scale == W(0) ? W(0) : scale * (weighted + sum_t * (down_t - down_s));
    sum_t *= scale;
  }

  // A class whose logits are not above the maxima.
  PLANTOPS_INLINE void add(W student, W teacher, W inv_temperature) {
    const W z_s = (student - shift(max_s)) * inv_temperature, z_t = (teacher - shift(max_t)) * inv_temperature;
    const W e_t = exponential<T>(z_t);
    sum_s += exponential<T>(z_s);
    sum_t += e_t;
    weighted += kl_term(e_t, z_t, z_s);
  }

  // Behind them, with all parts added up.
  PLANTOPS_INLINE double divergence() const {
    return kl_of_row(log(double(sum_s)), double(sum_t), log(double(sum_t)), double(weighted));
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
  W sum_1 = 0, centred = 0;
  int32_t classes = 0;

  PLANTOPS_INLINE void raise(W to_s, W to_t, W inv_temperature) {
    if (to_s > this->max_s) {
      const W down = this->shift(this->max_s) - to_s;
      if (this->max_s != -infinity<W>()) sum_1 *= exponential<T>(down);
      centred += W(classes) * down;
    }
    KlSums<T>::raise(to_s, to_t, inv_temperature);
  }

  PLANTOPS_INLINE void add(W student, W teacher, W inv_temperature) {
    KlSums<T>::add(student, teacher, inv_temperature);
    const W x = student - this->shift(this->max_s);
    if (inv_temperature != W(1)) sum_1 += exponential<T>(x);
    centred += x;
    ++classes;
  }
};

}  // namespace plantops
