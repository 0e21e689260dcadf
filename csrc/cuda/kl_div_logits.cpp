// GPU kernels of kl_div_logits, its backward, and its value and gradient in one pass: from tensors to launches.
#include <torch/library.h>

#include <tuple>

#include "../tensors/python_fallback.h"
#include "row_tensors.h"

namespace plantops::cuda {
namespace {

using at::Tensor;
using std::string_view;

double factor_of(const Tensor& student, Reduction reduction) {
  return reduction_factor(reduction, student.size(0), student.numel());
}

std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& student, const Tensor& teacher, double temperature, string_view reduction_name, string_view impl) {
  if (impl != "native")
    return call_python<decltype(forward)>("kl_div_logits", student, teacher, temperature, reduction_name, impl);
  check_logit_pair(student, teacher);
  const c10::cuda::CUDAGuard device(student.device());
  const Reduction reduction = parse_kl_reduction(reduction_name);
  const bool pointwise = reduction == Reduction::none;
  const RowView s = view_rows(student), t = view_rows(teacher);
  const int64_t classes = student.size(-1), rows = student.numel() / classes;
  check_limits("kl_div_logits", student, rows);
  Tensor lse_student = empty_rows(student), lse_teacher = empty_rows(student);
  Tensor loss = pointwise ? empty_logits(student, compute_type(student)) : empty_loss(student);
  const Tensor partials = empty_partials(student, rows, !pointwise);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const KlForward arguments{{s.rows, t.rows, classes, temperature},
                            rows,
                            loss_sum(factor_of(student, reduction), partials, loss, stream),
                            pointwise ? loss.mutable_data_ptr() : nullptr,
                            lse_student.mutable_data_ptr(),
                            lse_teacher.mutable_data_ptr()};
  C10_CUDA_CHECK(launch(arguments, stream));
  return {std::move(loss), std::move(lse_student), std::move(lse_teacher)};
}

Tensor backward(
    const Tensor& grad, const Tensor& student, const Tensor& teacher, const Tensor& lse_student,
    const Tensor& lse_teacher, double temperature, string_view reduction_name, string_view impl) {
  if (impl != "native")
    return call_python<decltype(backward)>(
        "kl_div_logits_backward", grad, student, teacher, lse_student, lse_teacher, temperature, reduction_name, impl);
  check_logit_pair(student, teacher);
  check_row_values("lse_student", lse_student, student);
  check_row_values("lse_teacher", lse_teacher, student);
  const c10::cuda::CUDAGuard device(student.device());
  const Reduction reduction = parse_kl_reduction(reduction_name);
  const bool pointwise = reduction == Reduction::none;
  const RowView s = view_rows(student), t = view_rows(teacher);
  RowView pointwise_grad;
  if (pointwise) {
    check_pointwise_grad(grad, student);
    pointwise_grad = view_rows(grad);
  } else {
    check_scalar_grad(grad, student);
  }
  const int64_t classes = student.size(-1), rows = student.numel() / classes;
  check_limits("kl_div_logits_backward", student, rows);
  Tensor result = empty_logits(student, student.scalar_type());
  const KlBackward arguments{{s.rows, t.rows, classes, temperature},
                             rows,
                             lse_student.const_data_ptr(),
                             lse_teacher.const_data_ptr(),
                             factor_of(student, reduction) / temperature,
                             pointwise ? nullptr : grad.const_data_ptr(),
                             pointwise_grad.rows,
                             result.mutable_data_ptr()};
  C10_CUDA_CHECK(launch(arguments, c10::cuda::getCurrentCUDAStream()));
  return result;
}

std::tuple<Tensor, Tensor> value_and_grad(
    const Tensor& student, const Tensor& teacher, double temperature, string_view reduction_name, string_view impl) {
  if (impl != "native")
    return call_python<decltype(value_and_grad)>(
        "kl_div_logits_value_and_grad", student, teacher, temperature, reduction_name, impl);
  check_logit_pair(student, teacher);
  const c10::cuda::CUDAGuard device(student.device());
  const Reduction reduction = parse_kl_reduction(reduction_name);
  const bool pointwise = reduction == Reduction::none;
  const RowView s = view_rows(student), t = view_rows(teacher);
  const int64_t classes = student.size(-1), rows = student.numel() / classes;
  check_limits("kl_div_logits_value_and_grad", student, rows);
  const double factor = factor_of(student, reduction);
  Tensor loss = pointwise ? empty_logits(student, compute_type(student)) : empty_loss(student);
  Tensor grad = empty_logits(student, student.scalar_type());
  const Tensor partials = empty_partials(student, rows, !pointwise);
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  const KlValueAndGrad arguments{{s.rows, t.rows, classes, temperature},
                                 rows,
                                 factor / temperature,
                                 loss_sum(factor, partials, loss, stream),
                                 pointwise ? loss.mutable_data_ptr() : nullptr,
                                 grad.mutable_data_ptr()};
  C10_CUDA_CHECK(launch(arguments, stream));
  return {std::move(loss), std::move(grad)};
}

TORCH_LIBRARY_IMPL(plantops, CUDA, m) {
  m.impl("kl_div_logits", forward);
  m.impl("kl_div_logits_backward", backward);
  m.impl("kl_div_logits_value_and_grad", value_and_grad);
}

}  // namespace
}  // namespace plantops::cuda
