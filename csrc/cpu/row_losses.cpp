#include "row_losses.h"

#include <ATen/ops/empty_native.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include "simd/isa.h"

namespace plantops {

const RowLosses& active_row_losses() {
#if defined(__x86_64__)
  if (active_isa() == Isa::avx512) return avx512::row_losses;
  if (active_isa() == Isa::avx2) return avx2::row_losses;
#endif
  return baseline::row_losses;
}

namespace {

// at::empty without the dispatcher, which would take as long as the arithmetic on a small batch.
at::Tensor empty(at::IntArrayRef sizes, at::ScalarType type) {
  return at::native::empty_cpu(sizes, type, std::nullopt, std::nullopt, std::nullopt, std::nullopt);
}

}  // namespace

at::Tensor empty_rows(const at::Tensor& student) {
  return empty(student.sizes().slice(0, student.dim() - 1), compute_type(student));
}

at::Tensor empty_logits(const at::Tensor& student, at::ScalarType type) { return empty(student.sizes(), type); }

at::Tensor loss_scalar(const at::Tensor& student, double value) {
  at::Tensor loss = empty({}, compute_type(student));
  if (loss.scalar_type() == at::kDouble)
    *loss.mutable_data_ptr<double>() = value;
  else
    *loss.mutable_data_ptr<float>() = static_cast<float>(value);
  return loss;
}

double scalar_value(const char* name, const at::Tensor& tensor, const at::Tensor& student) {
  TORCH_CHECK_VALUE(tensor.numel() == 1 && tensor.is_cpu(), name, ": expected one value on the cpu, got ",
                    tensor.sizes(), " on ", tensor.device());
  TORCH_CHECK_TYPE(tensor.scalar_type() == compute_type(student), name, ": expected ", compute_type(student),
                   ", got ", tensor.scalar_type());
  if (tensor.scalar_type() == at::kDouble) return *tensor.const_data_ptr<double>();
  return *tensor.const_data_ptr<float>();
}

double fixed_order_sum(const double* values, int64_t count) {
  double partial[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int k = 0; k < 8; ++k) partial[k] += values[i + k];
  for (; i < count; ++i) partial[0] += values[i];
  return ((partial[0] + partial[4]) + (partial[1] + partial[5])) +
         ((partial[2] + partial[6]) + (partial[3] + partial[7]));
}

}  // namespace plantops
