// What the ops on rows of logits do with the values that a reader shows them.
#pragma once

#include "../ops/row_sums.h"
#include "row_readers.cuh"

namespace plantops::cuda {

template <class Reader>
__device__ __forceinline__ bool inside(const Reader& reader, int position) {
  return position >= 0 && position < reader.count;
}

// Adds all classes that this thread meets to `sums` (KlSums or DistillationSums) and brings the team to one shift. What
// remains is to add up the threads' sums.
template <class Sums, class Reader, class Team, class W = Wide<typename Reader::Type>>
__device__ __forceinline__ void collect(Sums& sums, Reader& reader, Team& team, W inv_temperature) {
  reader.first([&](int position, const W(&student)[Reader::kValues], const W(&teacher)[Reader::kValues]) {
    W most_s = student[0], most_t = teacher[0];
    PLANTOPS_UNROLL
    for (int k = 1; k < Reader::kValues; ++k) {
      most_s = student[k] > most_s || most_s != most_s ? student[k] : most_s;
      most_t = teacher[k] > most_t || most_t != most_t ? teacher[k] : most_t;
    }
    sums.raise(most_s, most_t, inv_temperature);
    PLANTOPS_UNROLL
    for (int k = 0; k < Reader::kValues; ++k)
      if (inside(reader, position + k)) sums.add(student[k], teacher[k], inv_temperature);
  });
  W most[2] = {sums.max_s, sums.max_t};
  team.max(most);
  sums.raise(most[0], most[1], inv_temperature);
}

// p = norm exp((x - shift) / T). From a log-sum-exp `norm` would be 1, were it not rounded: where it is large its last
// place alone would cost the gradient several digits, so backward passes divide by the sum all the same.
template <class W>
struct Softmax {
  W shift, inv_temperature, norm;

  static __device__ __forceinline__ Softmax from_log_sum_exp(const void* values, int64_t row, double temperature) {
    return {W(double(static_cast<const W*>(values)[row]) * temperature), W(1.0 / temperature), W(1)};
  }
  template <class T>
  __device__ __forceinline__ W operator()(W x) const {
    return norm * exponential<T>((x - shift) * inv_temperature);
  }
};

template <class W>
__device__ __forceinline__ W value_of(const void* values, int64_t index = 0) {
  return static_cast<const W*>(values)[index];
}
template <class W>
__device__ __forceinline__ void set_value_of(void* values, int64_t index, W value) {
  static_cast<W*>(values)[index] = value;
}

}  // namespace plantops::cuda
