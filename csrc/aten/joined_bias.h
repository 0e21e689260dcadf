// The biases of a planted layer, for the ATen paths.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/zeros.h>

#include <optional>

namespace plantops::aten {

// The biases of all rows, `old` and `planted` ones; a missing half is zero. None without any.
inline std::optional<at::Tensor> joined_bias(
    const std::optional<at::Tensor>& bias, const std::optional<at::Tensor>& bias_out, int64_t old, int64_t planted,
    const at::TensorOptions& options) {
  if (!bias && !bias_out) return std::nullopt;
  const at::Tensor first = bias ? *bias : at::zeros({old}, options);
  if (planted == 0) return first;
  return at::cat({first, bias_out ? *bias_out : at::zeros({planted}, options)});
}

}  // namespace plantops::aten
