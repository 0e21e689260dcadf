// CPU kernels of distillation_loss and its backward.
#include <torch/library.h>

#include <tuple>

#include "../ops/distillation_loss.h"
#include "../tensors/python_fallback.h"
#include "row_losses.h"

namespace plantops {
namespace {

using at::Tensor;
using std::string_view;

// Contiguous and in range: an index outside would be read from and written to foreign memory.
Tensor check_target(const Tensor& target, const Tensor& student) {
  check_target_tensor(target, student);
  const int64_t classes = student.size(-1);
  Tensor result = target.contiguous();
  const int64_t* values = result.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < result.numel(); ++i)
    TORCH_CHECK_VALUE(values[i] >= 0 && values[i] < classes, "target: expected class indices in [0, ", classes,
                      "), got ", values[i]);
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    const Tensor& student, const Tensor& teacher, const Tensor& target, double alpha, double temperature,
    double label_smoothing, string_view reduction_name, string_view impl) {
  if (!computes_here(impl))
    return call_python<decltype(forward)>("distillation_loss", student, teacher, target, alpha, temperature,
                                          label_smoothing, reduction_name, impl);
  check_logit_pair(student, teacher);
  const Tensor classes_of_rows = check_target(target, student);
  const Reduction reduction = parse_row_reduction(reduction_name);
  const RowView s = view_rows(student), t = view_rows(teacher);
  const int64_t classes = student.size(-1), rows = target.numel();
  Tensor lse_student_t = empty_rows(student), lse_teacher_t = empty_rows(student), lse_student = empty_rows(student);
  RowBuffer row_loss(rows);
  const DistillationForward args{{s.rows, t.rows, classes, temperature},
                                 {classes_of_rows.const_data_ptr<int64_t>(), alpha, label_smoothing},
                                 row_loss.data(),
                                 lse_student_t.mutable_data_ptr(),
                                 lse_teacher_t.mutable_data_ptr(),
                                 lse_student.mutable_data_ptr()};
  for_rows(rows, classes, s.rows.type == Scalar::f64, [&](void* scratch, int64_t begin, int64_t end) {
    active_row_losses().distillation_forward(args, scratch, begin, end);
  });
  Tensor loss;
  if (reduction == Reduction::none) {
    loss = empty_rows(student);
    if (s.rows.type == Scalar::f64)
      std::copy_n(row_loss.data(), rows, loss.mutable_data_ptr<double>());
    else
      std::copy_n(row_loss.data(), rows, loss.mutable_data_ptr<float>());
  } else {
    loss = loss_scalar(student, fixed_order_sum(row_loss.data(), rows) * reduction_factor(reduction, rows, rows));
  }
  return {std::move(loss), std::move(lse_student_t), std::move(lse_teacher_t), std::move(lse_student)};
}

Tensor backward(
    const Tensor& grad, const Tensor& student, const Tensor& teacher, const Tensor& target,
    const Tensor& lse_student_t, const Tensor& lse_teacher_t, const Tensor& lse_student, double alpha,
    double temperature, double label_smoothing, string_view reduction_name, string_view impl) {
  if (!computes_here(impl))
    return call_python<decltype(backward)>("distillation_loss_backward", grad, student, teacher, target, lse_student_t,
                                           lse_teacher_t, lse_student, alpha, temperature, label_smoothing,
                                           reduction_name, impl);
  check_logit_pair(student, teacher);
  const Tensor classes_of_rows = check_target(target, student);
  check_row_values("lse_student_t", lse_student_t, student);
  check_row_values("lse_teacher_t", lse_teacher_t, student);
  check_row_values("lse_student", lse_student, student);
  const Reduction reduction = parse_row_reduction(reduction_name);
  const RowView s = view_rows(student), t = view_rows(teacher);
  const int64_t classes = student.size(-1), rows = target.numel();
  Tensor row_grad;
  double factor = 1;
  if (reduction == Reduction::none) {
    row_grad = grad.contiguous();
    check_row_values("grad", row_grad, student);
  } else {
    factor = scalar_value("grad", grad, student) * reduction_factor(reduction, rows, rows);
  }
  Tensor result = empty_logits(student, student.scalar_type());
  const DistillationBackward args{{s.rows, t.rows, classes, temperature},
                                  {classes_of_rows.const_data_ptr<int64_t>(), alpha, label_smoothing},
                                  lse_student_t.const_data_ptr(),
                                  lse_teacher_t.const_data_ptr(),
                                  lse_student.const_data_ptr(),
                                  factor,
                                  reduction == Reduction::none ? row_grad.const_data_ptr() : nullptr,
                                  result.mutable_data_ptr()};
  for_rows(rows, classes, s.rows.type == Scalar::f64, [&](void* scratch, int64_t begin, int64_t end) {
    active_row_losses().distillation_backward(args, scratch, begin, end);
  });
  return result;
}

TORCH_LIBRARY_IMPL(plantops, CPU, m) {
  m.impl("distillation_loss", forward);
  m.impl("distillation_loss_backward", backward);
}

}  // namespace
}  // namespace plantops
