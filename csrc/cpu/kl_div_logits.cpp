// CPU kernels of kl_div_logits, its backward, and its value and gradient in one pass.
#include <torch/library.h>

#include <tuple>

#include "../ops/kl_div_logits.h"
#include "../tensors/python_fallback.h"
#include "row_losses.h"

namespace plantops {
namespace {

using at::Tensor;
using std::string_view;

double factor_of(const Tensor& student, Reduction reduction) {
  return reduction_factor(reduction, student.size(0), student.numel());
}

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& student, const Tensor& teacher, double temperature, string_view reduction_name, string_view impl) {
  if (!computes_here(impl))
    return call_python<decltype(forward)>("kl_div_logits", student, teacher, temperature, reduction_name, impl);
  check_logit_pair(student, teacher);
  const Reduction reduction = parse_kl_reduction(reduction_name);
  const bool pointwise = reduction == Reduction::none;
  const RowView s = view_rows(student), t = view_rows(teacher);
  const int64_t classes = student.size(-1), rows = student.numel() / classes;
  Tensor lse_student = empty_rows(student), lse_teacher = empty_rows(student);
  Tensor terms = pointwise ? empty_logits(student, compute_type(student)) : Tensor();
  RowBuffer row_loss(pointwise ? 0 : rows);
  const KlForward args{{s.rows, t.rows, classes, temperature},
                       pointwise ? nullptr : row_loss.data(),
                       pointwise ? terms.mutable_data_ptr() : nullptr,
                       lse_student.mutable_data_ptr(),
                       lse_teacher.mutable_data_ptr()};
  for_rows(rows, classes, s.rows.type == Scalar::f64, [&](void* scratch, int64_t begin, int64_t end) {
    active_row_losses().kl_forward(args, scratch, begin, end);
  });
  if (!pointwise)
    terms = loss_scalar(student, fixed_order_sum(row_loss.data(), rows) * factor_of(student, reduction));
  return {std::move(terms), std::move(lse_student), std::move(lse_teacher)};
}

Tensor backward(
    const Tensor& grad, const Tensor& student, const Tensor& teacher, const Tensor& lse_student,
    const Tensor& lse_teacher, double temperature, string_view reduction_name, string_view impl) {
  if (!computes_here(impl))
    return call_python<decltype(backward)>(
        "kl_div_logits_backward", grad, student, teacher, lse_student, lse_teacher, temperature, reduction_name, impl);
  check_logit_pair(student, teacher);
  check_row_values("lse_student", lse_student, student);
  check_row_values("lse_teacher", lse_teacher, student);
  const Reduction reduction = parse_kl_reduction(reduction_name);
  const RowView s = view_rows(student), t = view_rows(teacher);
  const int64_t classes = student.size(-1), rows = student.numel() / classes;
  RowView g;
  double factor = 0;
  if (reduction == Reduction::none) {
    check_pointwise_grad(grad, student);
    g = view_rows(grad);
  } else {
    factor = scalar_value("grad", grad, student) * factor_of(student, reduction) / temperature;
  }
  Tensor result = empty_logits(student, student.scalar_type());
  const KlBackward args{{s.rows, t.rows, classes, temperature},
                        lse_student.const_data_ptr(),
                        lse_teacher.const_data_ptr(),
                        factor,
                        reduction == Reduction::none ? &g.rows : nullptr,
                        result.mutable_data_ptr()};
  for_rows(rows, classes, s.rows.type == Scalar::f64, [&](void* scratch, int64_t begin, int64_t end) {
    active_row_losses().kl_backward(args, scratch, begin, end);
  });
  return result;
}

std::tuple<Tensor, Tensor> value_and_grad(
    const Tensor& student, const Tensor& teacher, double temperature, string_view reduction_name, string_view impl) {
  if (!computes_here(impl))
    return call_python<decltype(value_and_grad)>(
        "kl_div_logits_value_and_grad", student, teacher, temperature, reduction_name, impl);
  check_logit_pair(student, teacher);
  const Reduction reduction = parse_kl_reduction(reduction_name);
  const bool pointwise = reduction == Reduction::none;
  const RowView s = view_rows(student), t = view_rows(teacher);
  const int64_t classes = student.size(-1), rows = student.numel() / classes;
  const double factor = factor_of(student, reduction);
  Tensor loss = pointwise ? empty_logits(student, compute_type(student)) : Tensor();
  Tensor grad = empty_logits(student, student.scalar_type());
  RowBuffer row_loss(pointwise ? 0 : rows);
  const KlValueAndGrad args{{s.rows, t.rows, classes, temperature},
                            factor / temperature,
                            pointwise ? nullptr : row_loss.data(),
                            pointwise ? loss.mutable_data_ptr() : nullptr,
                            grad.mutable_data_ptr()};
  for_rows(rows, classes, s.rows.type == Scalar::f64, [&](void* scratch, int64_t begin, int64_t end) {
    active_row_losses().kl_value_and_grad(args, scratch, begin, end);
  });
  if (!pointwise) loss = loss_scalar(student, fixed_order_sum(row_loss.data(), rows) * factor);
  return {std::move(loss), std::move(grad)};
}

TORCH_LIBRARY_IMPL(plantops, CPU, m) {
  m.impl("kl_div_logits", forward);
  m.impl("kl_div_logits_backward", backward);
  m.impl("kl_div_logits_value_and_grad", value_and_grad);
}

}  // namespace
}  // namespace plantops
