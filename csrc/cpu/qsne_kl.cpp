// qsne_kl on the CPU: points in parallel, sums over points in order, so the number of threads changes no bit.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "../tensors/python_fallback.h"
#include "simd/isa.h"
#include "simd/qsne_kl.h"

namespace plantops {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using std::string_view;

template <class T>
const QsneKernels<T>& kernels() {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512: return avx512::qsne_kernels(T());
    case Isa::avx2: return avx2::qsne_kernels(T());
#endif
    default: return baseline::qsne_kernels(T());
  }
}

bool computes(const Tensor& embedding) {
  return embedding.scalar_type() == at::kFloat || embedding.scalar_type() == at::kDouble;
}

void check(const Tensor& y, const Tensor& p, const OptionalTensor& crow, const OptionalTensor& col, double q) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      computes(y), "qsne_kl: impl='native' computes float32 and float64, got ", y.scalar_type());
  TORCH_CHECK_VALUE(y.dim() == 2 && y.size(1) >= 1 && y.size(1) <= kMostDimensions,
                    "embedding: expected [points, 1 to 3], got ", y.sizes());
  TORCH_CHECK_VALUE(q >= 1.0 && q < 3.0, "q: expected a number in [1, 3), got ", q);
  TORCH_CHECK_TYPE(p.scalar_type() == y.scalar_type(), "p: expected ", y.scalar_type(), " like embedding, got ",
                   p.scalar_type());
  const int64_t n = y.size(0);
  if (!crow) {
    TORCH_CHECK_VALUE(p.dim() == 2 && p.size(0) == n && p.size(1) == n, "p: expected shape [", n, ", ", n, "], got ",
                      p.sizes());
    return;
  }
  TORCH_CHECK_VALUE(col.has_value(), "col: expected column indices beside crow, got none");
  TORCH_CHECK_TYPE(crow->scalar_type() == at::kLong && col->scalar_type() == at::kLong,
                   "crow and col: expected int64, got ", crow->scalar_type(), " and ", col->scalar_type());
  TORCH_CHECK_VALUE(crow->dim() == 1 && crow->size(0) == n + 1, "crow: expected shape [", n + 1, "], got ", crow->sizes());
  TORCH_CHECK_VALUE(p.dim() == 1 && col->sizes() == p.sizes(), "col: expected the shape of p's values, got ",
                    col->sizes(), " for ", p.sizes());
}

// The indices are the caller's: they are followed only after they were seen to stay inside.
void check_indices(const int64_t* crow, const int64_t* col, int64_t points, int64_t values) {
  bool inside = crow[0] == 0 && crow[points] == values;
  for (int64_t i = 0; i < points; ++i) inside &= crow[i] <= crow[i + 1];
  TORCH_CHECK_VALUE(inside, "crow: expected ascending offsets from 0 to ", values);
  for (int64_t k = 0; k < values; ++k) inside &= col[k] >= 0 && col[k] < points;
  TORCH_CHECK_VALUE(inside, "col: expected column indices in [0, ", points, ")");
}

// [points, dimensions] to [dimensions][stride].
template <class T>
std::vector<T> columns_of(const Tensor& y, int64_t stride) {
  const int64_t n = y.size(0), dimensions = y.size(1);
  std::vector<T> columns(stride * dimensions, T(0));
  const T* from = y.const_data_ptr<T>();
  for (int64_t k = 0; k < dimensions; ++k)
    for (int64_t i = 0; i < n; ++i) columns[k * stride + i] = from[i * y.stride(0) + k * y.stride(1)];
  return columns;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> compute(
    const Tensor& y, const Tensor& p, const OptionalTensor& crow, const OptionalTensor& col, double q,
    double exaggeration, bool value) {
  const auto& table = kernels<T>();
  const int64_t n = y.size(0), dimensions = y.size(1);
  const Tensor dense = crow || p.stride(1) == 1 ? p : p.contiguous();
  const Tensor values = crow ? p.contiguous() : dense;
  const Tensor offsets = crow ? crow->contiguous() : Tensor(), indices = crow ? col->contiguous() : Tensor();
  if (crow) check_indices(offsets.const_data_ptr<int64_t>(), indices.const_data_ptr<int64_t>(), n, p.numel());

  const int64_t stride = (n + table.lanes - 1) / table.lanes * table.lanes;
  const std::vector<T> columns = columns_of<T>(y, stride);
  const std::unique_ptr<double[]> sums(new double[n * (2 + 2 * dimensions)]);
  QsneJob<T> job{qsne_formula(q), n, dimensions, columns.data(), stride, values.const_data_ptr<T>(),
                 crow ? 0 : values.stride(0), crow ? offsets.const_data_ptr<int64_t>() : nullptr,
                 crow ? indices.const_data_ptr<int64_t>() : nullptr, value, sums.get(), sums.get() + n,
                 sums.get() + 2 * n, sums.get() + (2 + dimensions) * n};
  constexpr int64_t kPairsPerThread = 1 << 14;
  at::parallel_for(0, n, std::max<int64_t>(1, kPairsPerThread / std::max<int64_t>(n, 1)),
                   [&](int64_t begin, int64_t end) { table.rows(job, begin, end); });

  double partition = 0, cross = 0;
  for (int64_t i = 0; i < n; ++i) partition += job.partition[i], cross += job.cross[i];
  // Points so far apart that every u underflows: no repulsion, instead of 0/0.
  partition = partition < std::numeric_limits<T>::min() ? std::numeric_limits<T>::min() : partition;
  Tensor grad = at::empty(y.sizes(), y.options());
  T* to = grad.mutable_data_ptr<T>();
  for (int64_t k = 0; k < n * dimensions; ++k)
    to[k] = T(job.formula.factor * (exaggeration * job.attraction[k] - job.repulsion[k] / partition));
  const auto wide = y.options().dtype(at::kDouble);
  return {value ? at::scalar_tensor(cross, wide) : at::empty({0}, wide), at::scalar_tensor(std::log(partition), wide),
          std::move(grad)};
}

std::tuple<Tensor, Tensor, Tensor> qsne_kl(
    const Tensor& embedding, const Tensor& p, const OptionalTensor& crow, const OptionalTensor& col, double q,
    double exaggeration, bool value, string_view impl) {
  if (impl != "native" && !(impl == "auto" && computes(embedding)))
    return call_python<decltype(qsne_kl)>("qsne_kl", embedding, p, crow, col, q, exaggeration, value, impl);
  check(embedding, p, crow, col, q);
  return embedding.scalar_type() == at::kFloat ? compute<float>(embedding, p, crow, col, q, exaggeration, value)
                                               : compute<double>(embedding, p, crow, col, q, exaggeration, value);
}

TORCH_LIBRARY_IMPL(plantops, CPU, m) { m.impl("qsne_kl", qsne_kl); }

}  // namespace
}  // namespace plantops
