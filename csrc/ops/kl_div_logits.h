// The maths of kl_div_logits that CPU and GPU kernels share. V is a number, or on the CPU a SIMD vector of numbers.
#pragma once

#include <cstdint>

#include "host_device.h"

namespace plantops {

enum class Reduction { none, sum, mean, batchmean };

// The factor between the sum over all elements and the reduced loss. An empty mean is 0/0 = NaN, as in torch.
PLANTOPS_INLINE double reduction_factor(Reduction reduction, int64_t batch, int64_t elements) {
  int64_t count = 1;
  if (reduction == Reduction::mean) count = elements;
  if (reduction == Reduction::batchmean) count = batch;
  return count == 0 ? __builtin_nan("") : 1.0 / double(count);
}

// p_T (log p_T - log p_S) for a class, up to the normalisers when `p_t` and the logits lack them. p_T = 0 adds 0 also
// where both logits are minus infinity, whose difference is NaN.
template <class V>
PLANTOPS_INLINE V kl_term(V p_t, V log_p_t, V log_p_s) {
  const V zero{};
  return p_t == zero ? zero : p_t * (log_p_t - log_p_s);
}

// The divergence of a row from sums over its classes, with z = logits / T less their row maximum:
// log_s = log sum exp(z_s), sum_t = sum exp(z_t), log_t = log sum_t, weighted = sum exp(z_t) (z_t - z_s).
PLANTOPS_INLINE double kl_of_row(double log_s, double sum_t, double log_t, double weighted) {
  return weighted / sum_t + (log_s - log_t);
}

// Gradient of a reduced loss: `factor` is upstream gradient x reduction factor / T.
template <class V>
PLANTOPS_INLINE V kl_gradient(V p_s, V p_t, V factor) {
  return factor * (p_s - p_t);
}

// The same from exponentials: `norm` is the factor over their row's sum.
template <class V>
PLANTOPS_INLINE V kl_gradient(V exp_s, V norm_s, V exp_t, V norm_t) {
  return exp_s * norm_s - exp_t * norm_t;
}

// Gradient of the pointwise terms: `weighted` is upstream gradient x p_T of this class, `dot` its sum over the row.
template <class V>
PLANTOPS_INLINE V kl_gradient_pointwise(V p_s, V weighted, V dot, V inv_temperature) {
  return inv_temperature * (p_s * dot - weighted);
}

}  // namespace plantops
