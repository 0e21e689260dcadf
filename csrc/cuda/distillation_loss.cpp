// GPU kernels of distillation_loss and its backward: from tensors to launches.
#include <torch/library.h>

#include <tuple>

#include "../tensors/python_fallback.h"
#include "row_tensors.h"

namespace plantops::cuda {
namespace {

using at::Tensor;
using std::string_view;

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& student, const Tensor& teacher, const Tensor& target, double alpha, double temperature,
    double label_smoothing, string_view reduction_name, string_view impl) {
  if (impl != "native")
    return call_python<decltype(forward)>("distillation_loss", student, teacher, target, alpha, temperature,
                                          label_smoothing, reduction_name, impl);
  check_logit_pair(student, teacher);
  check_target_tensor(target, student);
  const c10::cuda::CUDAGuard device(student.device());
  const Reduction reduction = parse_row_reduction(reduction_name);
  const bool reduced = reduction != Reduction::none;
  const RowView s = view_rows(student), t = view_rows(teacher);
  const Tensor classes_of_rows = target.contiguous();
  const int64_t classes = student.size(-1), rows = target.numel();
  check_limits("distillation_loss", student, rows);
  Tensor lse_student_t = empty_rows(student), lse_teacher_t = empty_rows(student), lse_student = empty_rows(student);
  Tensor loss = reduced ? empty_loss(student) : empty_rows(student);
  const Tensor partials = empty_partials(student, rows, reduced);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const DistillationForward arguments{{s.rows, t.rows, classes, temperature},
                                      {classes_of_rows.const_data_ptr<int64_t>(), alpha, label_smoothing},
                                      rows,
                                      loss_sum(reduction_factor(reduction, rows, rows), partials, loss, stream),
                                      reduced ? nullptr : loss.mutable_data_ptr(),
                                      lse_student_t.mutable_data_ptr(),
                                      lse_teacher_t.mutable_data_ptr(),
                                      lse_student.mutable_data_ptr()};
  C10_CUDA_CHECK(launch(arguments, stream));
  return {std::move(loss), std::move(lse_student_t), std::move(lse_teacher_t), std::move(lse_student)};
}

Tensor backward(
    const Tensor& grad, const Tensor& student, const Tensor& teacher, const Tensor& target,
    const Tensor& lse_student_t, const Tensor& lse_teacher_t, const Tensor& lse_student, double alpha,
    double temperature, double label_smoothing, string_view reduction_name, string_view impl) {
  if (impl != "native")
    return call_python<decltype(backward)>("distillation_loss_backward", grad, student, teacher, target, lse_student_t,
                                           lse_teacher_t, lse_student, alpha, temperature, label_smoothing,
                                           reduction_name, impl);
  check_logit_pair(student, teacher);
  check_target_tensor(target, student);
  check_row_values("lse_student_t", lse_student_t, student);
  check_row_values("lse_teacher_t", lse_teacher_t, student);
  check_row_values("lse_student", lse_student, student);
  const c10::cuda::CUDAGuard device(student.device());
  const Reduction reduction = parse_row_reduction(reduction_name);
  const bool reduced = reduction != Reduction::none;
  const RowView s = view_rows(student), t = view_rows(teacher);
  const Tensor classes_of_rows = target.contiguous();
  const int64_t classes = student.size(-1), rows = target.numel();
  check_limits("distillation_loss_backward", student, rows);
  Tensor row_grad;
  if (reduced) {
    check_scalar_grad(grad, student);
  } else {
    row_grad = grad.contiguous();
    check_row_values("grad", row_grad, student);
  }
  Tensor result = empty_logits(student, student.scalar_type());
  const DistillationBackward arguments{{s.rows, t.rows, classes, temperature},
                                       {classes_of_rows.const_data_ptr<int64_t>(), alpha, label_smoothing},
                                       rows,
                                       lse_student_t.const_data_ptr(),
                                       lse_teacher_t.const_data_ptr(),
                                       lse_student.const_data_ptr(),
                                       reduction_factor(reduction, rows, rows),
                                       reduced ? grad.const_data_ptr() : nullptr,
                                       reduced ? nullptr : row_grad.const_data_ptr(),
                                       result.mutable_data_ptr()};
  C10_CUDA_CHECK(launch(arguments, c10::cuda::getCurrentCUDAStream()));
  return result;
}

TORCH_LIBRARY_IMPL(plantops, CUDA, m) {
  m.impl("distillation_loss", forward);
  m.impl("distillation_loss_backward", backward);
}

}  // namespace
}  // namespace plantops::cuda
