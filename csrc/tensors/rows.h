// From tensors to the raw rows of logits that the losses' kernels read, on any device.
#pragma once

#include <ATen/core/Tensor.h>

#include <string_view>

#include "../ops/kl_div_logits.h"
#include "../ops/rows.h"

namespace plantops {

// A matrix [rows, classes] over a tensor's memory. `owner` keeps a copy alive where leading dimensions could not be
// read with one stride.
struct RowView {
  at::Tensor owner;
  Rows rows;
};
RowView view_rows(const at::Tensor& tensor);

Scalar scalar_of(at::ScalarType type);  // of float64, float32, bfloat16 and float16

// Checks what would make the kernels read or write outside the tensors; raises naming the argument.
void check_logit_pair(const at::Tensor& student, const at::Tensor& teacher);
void check_row_values(const char* name, const at::Tensor& values, const at::Tensor& student);
void check_pointwise_grad(const at::Tensor& grad, const at::Tensor& student);
void check_target_tensor(const at::Tensor& target, const at::Tensor& student);  // its range aside

Reduction parse_kl_reduction(std::string_view name);   // "none", "sum", "mean" or "batchmean"
Reduction parse_row_reduction(std::string_view name);  // "none", "sum" or "mean"

at::ScalarType compute_type(const at::Tensor& student);

}  // namespace plantops
