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
    set_value_of(to, row * reader.count + position, kl_term(exponential<T>(log_p_t), log_p_t, log_p_s));
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
    const W inv_temperature = W(1.0 / a.logits.temperature);
    KlSums<T> sums;
    collect(sums, reader, team, inv_temperature);
    add_up(sums, team);
    double loss = 0;
    if (active && team.leader()) {
      set_value_of(a.lse_student, row, KlSums<T>::log_sum_exp(sums.max_s, sums.sum_s, a.logits.temperature));
      set_value_of(a.lse_teacher, row, KlSums<T>::log_sum_exp(sums.max_t, sums.sum_t, a.logits.temperature));
      loss = sums.divergence();
    }
    if constexpr (Reader::kValues == 1)
      if (a.pointwise != nullptr) write_terms<T>(reader, sums, inv_temperature, a.pointwise, row);
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
    Softmax<W> p_s = Softmax<W>::from_log_sum_exp(a.lse_student, at, a.logits.temperature);
    Softmax<W> p_t = Softmax<W>::from_log_sum_exp(a.lse_teacher, at, a.logits.temperature);
    const bool pointwise = kValues == 1 && a.pointwise_grad.data != nullptr;
    const int64_t grad_row = row * a.pointwise_grad.row_stride, grad_step = a.pointwise_grad.class_stride;
    W sums[3] = {0, 0, 0};
    reader.first([&](int position, const W(&student)[kValues], const W(&teacher)[kValues]) {
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k) {
        if (!inside(reader, position + k)) continue;
        const W e_t = p_t.template operator()<T>(teacher[k]);
        sums[0] += p_s.template operator()<T>(student[k]);
        sums[1] += e_t;
        if constexpr (kValues == 1)
          if (pointwise) sums[2] += e_t * value_of<W>(a.pointwise_grad.data, grad_row + position * grad_step);
      }
    });
    team.sum(sums);
    p_s.norm = W(1) / sums[0];
    p_t.norm = W(1) / sums[1];
    const W dot = sums[2] * p_t.norm;
    const W factor = pointwise ? W(0) : W(a.factor * double(value_of<W>(a.grad)));
    reader.again([&](int position, const W(&student)[kValues], const W(&teacher)[kValues]) {
      W gradient[kValues];
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k) {
        const W s = p_s.template operator()<T>(student[k]), t = p_t.template operator()<T>(teacher[k]);
        gradient[k] = kl_gradient(s, t, factor);
        if constexpr (kValues == 1) {
          if (!pointwise) continue;
          const W weighted = t * value_of<W>(a.pointwise_grad.data, grad_row + position * grad_step);
          gradient[k] = kl_gradient_pointwise(s, weighted, dot, p_s.inv_temperature);
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
    const W inv_temperature = W(1.0 / a.logits.temperature), factor = W(a.factor);
    KlSums<T> sums;
    collect(sums, reader, team, inv_temperature);
    add_up(sums, team);
    const Softmax<W> p_s{sums.shift(sums.max_s), inv_temperature, W(1) / sums.sum_s};
    const Softmax<W> p_t{sums.shift(sums.max_t), inv_temperature, W(1) / sums.sum_t};
    reader.again([&](int position, const W(&student)[kValues], const W(&teacher)[kValues]) {
      W gradient[kValues];
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k)
        gradient[k] =
            kl_gradient(p_s.template operator()<T>(student[k]), p_t.template operator()<T>(teacher[k]), factor);
      write_values(reader, a.grad_student, a.logits.student.type, row, position, gradient);
    });
    if constexpr (kValues == 1)
      if (a.pointwise != nullptr) write_terms<T>(reader, sums, inv_temperature, a.pointwise, row);
    return active && team.leader() ? sums.divergence() : 0;
  }
};

}  // namespace

cudaError_t launch(const KlForward& arguments, const LossSum& sum, cudaStream_t stream) {
  return launch_loss<Forward>(arguments, arguments.pointwise != nullptr, sum, stream);
}

cudaError_t launch(const KlBackward& arguments, cudaStream_t stream) {
  int64_t partials = 0;
  return launch_rows<Backward>(arguments, arguments.pointwise_grad.data != nullptr, stream, partials);
}

cudaError_t launch(const KlValueAndGrad& arguments, const LossSum& sum, cudaStream_t stream) {
  return launch_loss<ValueAndGrad>(arguments, arguments.pointwise != nullptr, sum, stream);
}

}  // namespace plantops::cuda
