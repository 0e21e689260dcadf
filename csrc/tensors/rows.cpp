#include "rows.h"

#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

namespace plantops {
namespace {

bool is_float_type(at::ScalarType type) {
  return type == at::kDouble || type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
}

// One stride over all leading dimensions, if there is one.
bool find_row_stride(const at::Tensor& tensor, int64_t& stride) {
  stride = 0;
  int64_t next = -1;  // the stride that the next outer dimension must have
  for (int64_t d = tensor.dim() - 2; d >= 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (next == -1)
      stride = tensor.stride(d);
    else if (tensor.stride(d) != next)
      return false;
    next = tensor.stride(d) * tensor.size(d);
  }
  return true;
}

}  // namespace

Scalar scalar_of(at::ScalarType type) {
  switch (type) {
    case at::kDouble: return Scalar::f64;
    case at::kFloat: return Scalar::f32;
    case at::kBFloat16: return Scalar::bf16;
    default: return Scalar::f16;
  }
}

RowView view_rows(const at::Tensor& tensor) {
  int64_t stride = 0;
  RowView view{tensor, {}};
  if (!find_row_stride(tensor, stride)) {
    view.owner = tensor.contiguous();
    stride = tensor.size(-1);
  }
  view.rows = {view.owner.const_data_ptr(), stride, view.owner.stride(-1), scalar_of(tensor.scalar_type())};
  return view;
}

void check_logit_pair(const at::Tensor& student, const at::Tensor& teacher) {
  TORCH_CHECK_TYPE(is_float_type(student.scalar_type()),
                   "student: expected float64, float32, bfloat16 or float16, got ", student.scalar_type());
  TORCH_CHECK_TYPE(is_float_type(teacher.scalar_type()),
                   "teacher: expected float64, float32, bfloat16 or float16, got ", teacher.scalar_type());
  TORCH_CHECK_VALUE(student.dim() >= 1, "student: expected at least one dimension (the classes), got a scalar");
  TORCH_CHECK_VALUE(student.size(-1) >= 1, "student: expected at least one class in the last dimension, got 0");
  TORCH_CHECK_VALUE(teacher.sizes() == student.sizes(), "teacher: expected the student's shape ", student.sizes(),
                    ", got ", teacher.sizes());
  TORCH_CHECK_VALUE(teacher.device() == student.device(), "teacher: expected the student's device ",
                    student.device(), ", got ", teacher.device());
}

void check_row_values(const char* name, const at::Tensor& values, const at::Tensor& student) {
  TORCH_CHECK_TYPE(values.scalar_type() == compute_type(student), name, ": expected ", compute_type(student),
                   ", got ", values.scalar_type());
  TORCH_CHECK_VALUE(values.device() == student.device() && values.is_contiguous() &&
                        values.numel() * student.size(-1) == student.numel(),
                    name, ": expected one contiguous value on ", student.device(), " for each row of student ",
                    student.sizes(), ", got ", values.sizes(), " on ", values.device());
}

void check_pointwise_grad(const at::Tensor& grad, const at::Tensor& student) {
  TORCH_CHECK_VALUE(grad.sizes() == student.sizes() && grad.device() == student.device(),
                    "grad: expected the student's shape ", student.sizes(), " on ", student.device(), ", got ",
                    grad.sizes(), " on ", grad.device());
  TORCH_CHECK_TYPE(grad.scalar_type() == compute_type(student), "grad: expected ", compute_type(student), ", got ",
                   grad.scalar_type());
}

void check_target_tensor(const at::Tensor& target, const at::Tensor& student) {
  const at::IntArrayRef shape = student.sizes().slice(0, student.dim() - 1);
  TORCH_CHECK_TYPE(target.scalar_type() == at::kLong, "target: expected an int64 tensor of class indices, got ",
                   target.scalar_type());
  TORCH_CHECK_VALUE(target.device() == student.device(), "target: expected the student's device ", student.device(),
                    ", got ", target.device());
  TORCH_CHECK_VALUE(target.sizes() == shape, "target: expected shape ", shape, ", got ", target.sizes());
}

Reduction parse_kl_reduction(std::string_view name) {
  if (name == "none") return Reduction::none;
  if (name == "sum") return Reduction::sum;
  if (name == "mean") return Reduction::mean;
  TORCH_CHECK_VALUE(name == "batchmean", "reduction: expected 'none', 'sum', 'mean' or 'batchmean', got '", name, "'");
  return Reduction::batchmean;
}

Reduction parse_row_reduction(std::string_view name) {
  if (name == "none") return Reduction::none;
  if (name == "sum") return Reduction::sum;
  TORCH_CHECK_VALUE(name == "mean", "reduction: expected 'none', 'sum' or 'mean', got '", name, "'");
  return Reduction::mean;
}

at::ScalarType compute_type(const at::Tensor& student) {
  return student.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace plantops
