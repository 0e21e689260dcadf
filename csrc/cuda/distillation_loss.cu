// distillation_loss and its backward: alpha T^2 KL + (1 - alpha) CE for each row.
#include "../ops/distillation_loss.h"
#include "row_kernels.cuh"
#include "row_losses.h"
#include "row_ops.cuh"

namespace plantops::cuda {
namespace {

template <class Arguments>
__device__ __forceinline__ int target_of(const Arguments& a, int64_t row) {
  const int64_t target = a.hard.target[row];
  device_assert(target >= 0 && target < a.logits.classes, "target: expected class indices in [0, classes)");
  return int(target);
}

struct Forward {
  using Arguments = DistillationForward;
  static constexpr bool kLoss = true, kHolds = false;

  template <class Reader, class Team>
  static __device__ __forceinline__ double run(
      const Arguments& a, Reader& reader, Team& team, int64_t row, bool active) {
    using T = typename Reader::Type;
    using W = Wide<T>;
    const double t = a.logits.temperature, alpha = a.hard.alpha;
    DistillationSums<T> sums;
    const W scale = W(kLog2e / t);
    collect(sums, reader, team, scale);
    W values[5] = {sums.sum_s, sums.sum_t, sums.weighted, sums.sum_1, sums.centred};
    team.sum(values);
    if (!active || !team.leader()) return 0;
    sums.sum_s = values[0];
    sums.sum_t = values[1];
    sums.weighted = values[2];
    const W sum_1 = scale == W(kLog2e) ? sums.sum_s : values[3];
    set_value_of(a.lse_student_t, row, KlSums<T>::log_sum_exp(sums.max_s, sums.sum_s, t));
    set_value_of(a.lse_teacher_t, row, KlSums<T>::log_sum_exp(sums.max_t, sums.sum_t, t));
    set_value_of(a.lse_student, row, KlSums<T>::log_sum_exp(sums.max_s, sum_1, 1.0));
    const Rows& student = a.logits.student;
    const double at_target =
        double(read_value<W>(student, row * student.row_stride + target_of(a, row) * student.class_stride));
    const double loss =
        alpha * t * t * sums.divergence() +
        (1 - alpha) * cross_entropy_of_row(log(double(sum_1)), at_target - double(sums.shift(sums.max_s)),
                                           double(values[4]), reader.count,
                                           smooth_target(a.hard.label_smoothing, reader.count));
    if (a.row_loss != nullptr) set_value_of(a.row_loss, row, W(loss));
    return loss;
  }
};

struct Backward {
  using Arguments = DistillationBackward;
  static constexpr bool kLoss = false, kHolds = true;

  template <class Reader, class Team>
  static __device__ __forceinline__ double run(
      const Arguments& a, Reader& reader, Team& team, int64_t row, bool active) {
    using T = typename Reader::Type;
    using W = Wide<T>;
    constexpr int kValues = Reader::kValues;
    const int64_t at = active ? row : 0;
    const double t = a.logits.temperature;
    const auto exp_s = Exponentials<W>::from_log_sum_exp(a.lse_student_t, at, t);
    const auto exp_t = Exponentials<W>::from_log_sum_exp(a.lse_teacher_t, at, t);
    const auto exp_1 = Exponentials<W>::from_log_sum_exp(a.lse_student, at, 1.0);
    const bool at_one = exp_s.scale == exp_1.scale;
    W sums[3] = {0, 0, 0};
    reader.first([&](int, const W(&student)[kValues], const W(&teacher)[kValues]) {
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k) {  // outside the row minus infinity, which adds 0
        sums[0] += exp_s(student[k]);
        sums[1] += exp_t(teacher[k]);
        if (!at_one) sums[2] += exp_1(student[k]);
      }
    });
    team.sum(sums);
    const W grad = a.row_grad != nullptr ? value_of<W>(a.row_grad, at) : value_of<W>(a.grad);
    const double upstream = a.factor * double(grad);
    const DistillationWeights weights = distillation_weights(
        upstream, a.hard.alpha, t, smooth_target(a.hard.label_smoothing, a.logits.classes));
    const W norm_s = W(weights.kl) / sums[0], norm_t = W(weights.kl) / sums[1], uniform = W(weights.uniform);
    const W norm_1 = W(weights.ce) / (at_one ? sums[0] : sums[2]);
    const int target = target_of(a, at);
    reader.again([&](int position, const W(&student)[kValues], const W(&teacher)[kValues]) {
      W gradient[kValues];
      PLANTOPS_UNROLL
      for (int k = 0; k < kValues; ++k) {
        const W e_s = exp_s(student[k]), e_1 = at_one ? e_s : exp_1(student[k]);
        gradient[k] = kl_gradient(e_s, norm_s, exp_t(teacher[k]), norm_t) + (e_1 * norm_1 - uniform);
        if (position + k == target) gradient[k] -= W(weights.target);
      }
      write_values(reader, a.grad_student, a.logits.student.type, row, position, gradient);
    });
    return 0;
  }
};

}  // namespace

cudaError_t launch(const DistillationForward& arguments, cudaStream_t stream) {
  return launch_rows<Forward>(arguments, false, stream);
}

cudaError_t launch(const DistillationBackward& arguments, cudaStream_t stream) {
  return launch_rows<Backward>(arguments, false, stream);
}

}  // namespace plantops::cuda
