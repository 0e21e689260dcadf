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
__device__ __forceinline__ void collect(Sums& sums, Reader& reader, Team& team, W scale) {
  reader.first([&](int position, const W(&student)[Reader::kValues], const W(&teacher)[Reader::kValues]) {
    W most_s = student[0], most_t = teacher[0];
    PLANTOPS_UNROLL
    for (int k = 1; k < Reader::kValues; ++k) {
      most_s = larger_number(most_s, student[k]);
      most_t = larger_number(most_t, teacher[k]);
    }
    if (most_s > sums.max_s || most_t > sums.max_t) sums.raise(most_s, most_t, scale);
    PLANTOPS_UNROLL
    for (int k = 0; k < Reader::kValues; ++k)
      if (!Sums::kInsideOnly || inside(reader, position + k)) sums.add(student[k], teacher[k], scale);
  });
  W most[2] = {sums.max_s, sums.max_t};
  team.max(most);
  sums.raise(most[0], most[1], scale);
}

// A class's share of its row's softmax is exp((x - shift) / T) over the sum of these. With the log-sum-exp as shift that
// sum would be 1, were it not rounded: where it is large its last place alone would cost the gradient several digits, so
// backward passes divide by the sum all the same.
template <class W>
struct Exponentials {
  W shift, scale;  // log2(e) / T

  static __device__ __forceinline__ Exponentials from_log_sum_exp(
      const void* values, int64_t row, double temperature) {
    return {W(double(static_cast<const W*>(values)[row]) * temperature), W(kLog2e / temperature)};
  }
  __device__ __forceinline__ W operator()(W x) const { return power_of_two((x - shift) * scale); }
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
