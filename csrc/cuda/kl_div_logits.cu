// kl_div_logits, its backward, and its value and gradient in one pass.
#include "row_kernels.cuh"
#include "row_losses.h"
#include "row_ops.cuh"

namespace plantops::cuda {
namespace {

template <class T, class Team>
__device__ __forceinline__ void add_up(KlSums<T>& sums, Team& team) {
  Wide<T> values[3] = {sums.sum_s, sums.sum_t, sums.weighted};
  team.sum(values);
  sums.sum_s = values[0];
  sums.sum_t = values[1];
  sums.weighted = values[2];
}

// The pointwise terms of a row.
template <class T, class Reader>
__device__ __forceinline__ void write_terms(
    const Reader& reader, const KlSums<T>& sums, Wide<T> inv_temperature, void* to, int64_t row) {
  using W = Wide<T>;
  const W log_s = W(log(double(sums.sum_s))), log_t = W(log(double(sums.sum_t)));
  reader.again([&](int position, const W(&student)[1], const W(&teacher)[1]) {
    const W log_p_s = (student[0] - sums.shift(sums.max_s)) * inv_temperature - log_s;
    const W log_p_t = (teacher[0] - sums.shift(sums.max_t)) * inv_temperature - log_t;
    set_value_of(to, row * reader.count + position, kl_term(exp(log_p_t), log_p_t, log_p_s));
  });
}

struct Forward {
  using Arguments = KlForward;
  static constexpr bool kLoss = true, kHolds = false;

  template <class Reader, class Team>
  static __device__ __forceinline__ double run(
      const Arguments& a, Reader& reader, Team& team, int64_t row, bool active) {
    using T = typename Reader::Type;
    using W = Wide<T>;
    KlSums<T> sums;
    collect(sums, reader, team, W(kLog2e / a.logits.temperature));
    add_up(sums, team);
    double loss = 0;
    if (active && team.leader()) {
      set_value_of(a.lse_student, row, KlSums<T>::log_sum_exp(sums.max_s, sums.sum_s, a.logits.temperature));
      set_value_of(a.lse_teacher, row, KlSums<T>::log_sum_exp(sums.max_t, sums.sum_t, a.logits.temperature));
      loss = sums.divergence();
    }
    if constexpr (Reader::kValues == 1)
      if (a.pointwise != nullptr) write_terms<T>(reader, sums, W(1.0 / a.logits.temperature), a.pointwise, row);
    return loss;
  }
};

struct Backward {
  using Arguments = KlBackward;
  static constexpr bool kLoss = false, kHolds = true;

  template <class Reader, class Team>
  static __device__ __forceinline__ double run(
      const Arguments& a, Reader& reader, Team& team, int64_t row, bool active) {
    using T = typename Reader::Type;
    using W = Wide<T>;
    constexpr int kValues = Reader::kValues;
    const int64_t at = active ? row : 0;
    const auto exp_s = Exponentials<W>::from_log_sum_exp(a.lse_student, at, a.logits.temperature);
    const auto exp_t = Exponentials<W>::from_log_sum_exp(a.lse_teacher, at, a.logits.temperature);
    const bool pointwise = kValues == 1 && a.pointwise_grad.data != nullptr;
    const int64_t grad_row = row * a.pointwise_grad.row_stride, grad_step = a.pointwise_grad.class_stride;
    W sums[3] = {0, 0, 0};
    reader.first([&](int position, const W(&student)[kValues], const W(&teacher)[kValues]) {
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k) {  // outside the row minus infinity, which adds 0
        const W e_t = exp_t(teacher[k]);
        sums[0] += exp_s(student[k]);
        sums[1] += e_t;
        if constexpr (kValues == 1)
          if (pointwise) sums[2] += e_t * value_of<W>(a.pointwise_grad.data, grad_row + position * grad_step);
      }
    });
    team.sum(sums);
    const W factor = pointwise ? W(1) : W(a.factor * double(value_of<W>(a.grad)));
    const W norm_s = factor / sums[0], norm_t = factor / sums[1], dot = sums[2] * norm_t;
    reader.again([&](int position, const W(&student)[kValues], const W(&teacher)[kValues]) {
      W gradient[kValues];
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k) {
        const W e_s = exp_s(student[k]), e_t = exp_t(teacher[k]);
        gradient[k] = kl_gradient(e_s, norm_s, e_t, norm_t);
        if constexpr (kValues == 1) {
          if (!pointwise) continue;
          const W weighted = e_t * norm_t * value_of<W>(a.pointwise_grad.data, grad_row + position * grad_step);
          gradient[k] = kl_gradient_pointwise(e_s * norm_s, weighted, dot, W(1.0 / a.logits.temperature));
        }
      }
      write_values(reader, a.grad_student, a.logits.student.type, row, position, gradient);
    });
    return 0;
  }
};

struct ValueAndGrad {
  using Arguments = KlValueAndGrad;
  static constexpr bool kLoss = true, kHolds = true;

  template <class Reader, class Team>
  static __device__ __forceinline__ double run(
      const Arguments& a, Reader& reader, Team& team, int64_t row, bool active) {
    using T = typename Reader::Type;
    using W = Wide<T>;
    constexpr int kValues = Reader::kValues;
    const W scale = W(kLog2e / a.logits.temperature);
    KlSums<T> sums;
    collect(sums, reader, team, scale);
    add_up(sums, team);
    const Exponentials<W> exp_s{sums.shift(sums.max_s), scale}, exp_t{sums.shift(sums.max_t), scale};
    const W norm_s = W(a.factor) / sums.sum_s, norm_t = W(a.factor) / sums.sum_t;
    reader.again([&](int position, const W(&student)[kValues], const W(&teacher)[kValues]) {
      W gradient[kValues];
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k)
        gradient[k] = kl_gradient(exp_s(student[k]), norm_s, exp_t(teacher[k]), norm_t);
      write_values(reader, a.grad_student, a.logits.student.type, row, position, gradient);
    });
    if constexpr (kValues == 1)
      if (a.pointwise != nullptr) write_terms<T>(reader, sums, W(1.0 / a.logits.temperature), a.pointwise, row);
    return active && team.leader() ? sums.divergence() : 0;
  }
};

}  // namespace

cudaError_t launch(const KlForward& arguments, cudaStream_t stream) {
  return launch_rows<Forward>(arguments, arguments.pointwise != nullptr, stream);
}

cudaError_t launch(const KlBackward& arguments, cudaStream_t stream) {
  return launch_rows<Backward>(arguments, arguments.pointwise_grad.data != nullptr, stream);
}

cudaError_t launch(const KlValueAndGrad& arguments, cudaStream_t stream) {
  return launch_rows<ValueAndGrad>(arguments, arguments.pointwise != nullptr, stream);
}

}  // namespace plantops::cuda
