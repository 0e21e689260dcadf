// What the GPU's glue of both losses shares: results, and the limits of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../tensors/rows.h"
#include "row_losses.h"
#include "row_tickets.h"

namespace plantops::cuda {

inline at::Tensor empty_rows(const at::Tensor& student) {
  return at::empty(student.sizes().slice(0, student.dim() - 1), student.options().dtype(compute_type(student)));
}
inline at::Tensor empty_logits(const at::Tensor& student, at::ScalarType type) {
  return at::empty(student.sizes(), student.options().dtype(type));
}
inline at::Tensor empty_loss(const at::Tensor& student) {
  return at::empty({}, student.options().dtype(compute_type(student)));
}
// Where blocks leave their sums of the loss; undefined where it is not reduced.
inline at::Tensor empty_partials(const at::Tensor& student, int64_t rows, bool reduced) {
  return reduced ? at::empty({rows}, student.options().dtype(at::kDouble)) : at::Tensor();
}
inline LossSum loss_sum(double factor, const at::Tensor& partials, const at::Tensor& loss, cudaStream_t stream) {
  if (!partials.defined()) return {factor, nullptr, nullptr};
  return {factor, partials.mutable_data_ptr<double>(), loss.mutable_data_ptr(), ticket_of(stream)};
}

inline void check_limits(const char* op, const at::Tensor& student, int64_t rows) {
  constexpr int64_t kMostClasses = int64_t(1) << 30, kMostRows = int64_t(1) << 28;
  TORCH_CHECK_NOT_IMPLEMENTED(student.size(-1) <= kMostClasses && rows <= kMostRows, op,
                              ": impl='native' on a GPU computes up to ", kMostRows, " rows of up to ", kMostClasses,
                              " classes, got ", student.sizes());
}

inline void check_scalar_grad(const at::Tensor& grad, const at::Tensor& student) {
  TORCH_CHECK_VALUE(grad.numel() == 1 && grad.device() == student.device(), "grad: expected one value on ",
                    student.device(), ", got ", grad.sizes(), " on ", grad.device());
  TORCH_CHECK_TYPE(grad.scalar_type() == compute_type(student), "grad: expected ", compute_type(student), ", got ",
                   grad.scalar_type());
}

}  // namespace plantops::cuda
