// group_sparsity on the CPU. Layers are cut into blocks of output channels that fit a second-level cache and all blocks of
// all layers share a parallel loop. The cuts follow from the shapes and what the blocks give is added in order, so the
// number of threads changes no bit.
//
// A neuron group lies inside a block: one loop, and the gradient is made while the block is in cache. Feature groups run
// through all blocks of a layer: a loop for the norms and one for the rest, over as many layers as the third-level cache
// holds.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <tuple>
#include <vector>

#include "../tensors/python_fallback.h"
#include "simd/group_sparsity.h"
#include "simd/isa.h"

namespace plantops {
namespace {

using at::Tensor;
using at::TensorList;
using std::string_view;

constexpr int64_t kBlockBytes = 256 << 10;
constexpr int64_t kBatchBytes = 12 << 20;
constexpr int64_t kStreamBytes = 16 << 20;

template <class T>
const GroupSparsityKernels<T>& kernels() {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512: return avx512::group_sparsity_kernels(T());
    case Isa::avx2: return avx2::group_sparsity_kernels(T());
#endif
    default: return baseline::group_sparsity_kernels(T());
  }
}

bool computes(TensorList weights) {
  return !weights.empty() && (weights[0].scalar_type() == at::kFloat || weights[0].scalar_type() == at::kDouble);
}

bool taken(string_view impl, TensorList weights) {
  return impl == "native" || (impl == "auto" && computes(weights));
}

void check_weights(TensorList weights) {
  TORCH_CHECK_VALUE(!weights.empty(), "weights: expected at least one tensor, got none");
  TORCH_CHECK_NOT_IMPLEMENTED(
      computes(weights), "group_sparsity: impl='native' computes float32 and float64, got ", weights[0].scalar_type());
  for (const Tensor& w : weights) {
    TORCH_CHECK_TYPE(w.scalar_type() == weights[0].scalar_type(), "weights: expected ", weights[0].scalar_type(),
                     " like the first, got ", w.scalar_type());
    TORCH_CHECK_VALUE(w.dim() >= 2 && w.is_cpu(), "weights: expected [out, in, *kernel] on the cpu, got ", w.sizes(),
                      " on ", w.device());
  }
}

GroupSparsityJob job_of(string_view penalty, double strength, double l1) {
  GroupSparsityJob job{{}, strength, l1};
  TORCH_CHECK_VALUE(find_penalty(penalty, job.penalty), "penalty: no penalty is called '", penalty, "'");
  return job;
}

bool by_feature(string_view groups) {
  TORCH_CHECK_VALUE(groups == "feature" || groups == "neuron", "groups: expected 'feature' or 'neuron', got '", groups, "'");
  return groups == "feature";
}

// Whether weights and gradients together will not stay in the caches until they are used again.
bool overflows_caches(TensorList weights) {
  int64_t bytes = 0;
  for (const Tensor& w : weights) bytes += 2 * int64_t(w.nbytes());
  return bytes > kStreamBytes;
}

// Whether the memory is [out][taps][in], as channels_last leaves it.
bool channels_lie_last(const Tensor& w) {
  if (w.is_contiguous()) return false;
  return w.dim() == 4   ? w.is_contiguous(at::MemoryFormat::ChannelsLast)
         : w.dim() == 5 ? w.is_contiguous(at::MemoryFormat::ChannelsLast3d)
                        : false;
}

// A layer as the kernels read it; any other layout than the two is copied.
template <class T>
struct Layer {
  Tensor readable;
  Tensor gradient;  // undefined where not wanted
  KernelBlock<T> whole;

  Layer(const Tensor& weight, bool wants_gradient, bool stream) {
    const bool last = channels_lie_last(weight);
    readable = last ? weight : weight.contiguous();
    if (wants_gradient) gradient = at::empty_like(readable);
    const int64_t outputs = weight.size(0), inputs = weight.size(1);
    const int64_t taps = outputs * inputs == 0 ? 0 : weight.numel() / (outputs * inputs);
    whole = {readable.const_data_ptr<T>(), wants_gradient ? gradient.mutable_data_ptr<T>() : nullptr, nullptr, outputs,
             inputs, taps, last, stream};
  }

  // The gradient in the layout that torch.empty_like gives.
  Tensor result(const Tensor& weight) const {
    if (readable.is_same(weight)) return gradient;
    Tensor like = at::empty_like(weight);
    return like.is_contiguous() ? gradient : like.copy_(gradient);
  }
};

// A block, and where what it gives is kept: `sums` of the layer's blocks follow each other.
template <class T>
struct Unit {
  KernelBlock<T> block;
  int64_t layer, index;  // index: of the block in its layer
};

// The blocks of the layers [begin, end). Where a layer keeps no coefficients, its norms lie in `scratch`.
template <class T>
std::vector<Unit<T>> cut(const std::vector<Layer<T>>& layers, size_t begin, size_t end, T* scratch) {
  std::vector<Unit<T>> units;
  for (size_t l = begin; l < end; ++l) {
    KernelBlock<T> whole = layers[l].whole;
    if (whole.taps == 0) continue;
    if (!whole.coefficient) {
      whole.coefficient = scratch;
      scratch += whole.outputs * whole.inputs;
    }
    const int64_t row = whole.inputs * whole.taps;
    const int64_t rows = std::clamp<int64_t>(kBlockBytes / (row * int64_t(sizeof(T))), 1, whole.outputs);
    for (int64_t o = 0; o < whole.outputs; o += rows) {
      KernelBlock<T> b = whole;
      b.weight += o * row;
      if (b.gradient) b.gradient += o * row;
      b.coefficient += o * whole.inputs;
      b.outputs = std::min(rows, whole.outputs - o);
      units.push_back({b, int64_t(l), o / rows});
    }
  }
  return units;
}

template <class Body>
void for_each_unit(size_t count, const Body& body) {
  at::parallel_for(0, int64_t(count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t u = begin; u < end; ++u) body(u);
  });
}

double in_order(const std::vector<double>& values) {
  double total = 0;
  for (double value : values) total += value;
  return total;
}

template <class T>
double run_neuron(const GroupSparsityJob& job, const std::vector<Unit<T>>& units) {
  std::vector<double> values(units.size());
  for_each_unit(units.size(), [&](int64_t u) { values[u] = kernels<T>().neuron(job, units[u].block); });
  return in_order(values);
}

template <class T>
double run_feature(const GroupSparsityJob& job, const std::vector<Unit<T>>& units) {
  std::vector<int64_t> offsets(units.size());  // of the blocks' sums
  int64_t total = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    offsets[u] = total;
    total += units[u].block.inputs;
  }
  const std::unique_ptr<T[]> sums(new T[total]);
  std::vector<double> values(units.size());
  for_each_unit(units.size(), [&](int64_t u) {
    values[u] = kernels<T>().feature_norms(job, units[u].block, sums.get() + offsets[u]);
  });
  double value = in_order(values);
  for (size_t first = 0, last; first < units.size(); first = last) {
    for (last = first; last < units.size() && units[last].layer == units[first].layer;) ++last;
    value += kernels<T>().feature_groups(job, units[first].block.inputs, int64_t(last - first), sums.get() + offsets[first]);
  }
  for_each_unit(units.size(), [&](int64_t u) {
    kernels<T>().feature_finish(job, units[u].block, sums.get() + offsets[u - units[u].index]);
  });
  return value;
}

// The value; writes what the layers' pointers ask for.
template <class T>
Tensor run(const GroupSparsityJob& job, bool feature, const std::vector<Layer<T>>& layers, const Tensor& like) {
  double value = 0;
  for (size_t first = 0, last; first < layers.size(); first = last) {
    // Without gradients nothing is read twice, and a batch may hold all layers.
    const bool gradients = layers[first].gradient.defined();
    int64_t bytes = 0, kernels_in_batch = 0;
    for (last = first; last < layers.size(); ++last) {
      bytes += layers[last].readable.nbytes();
      if (gradients && last > first && bytes > kBatchBytes) break;
      kernels_in_batch += layers[last].whole.outputs * layers[last].whole.inputs;
    }
    const std::unique_ptr<T[]> norms(gradients ? new T[kernels_in_batch] : nullptr);
    const std::vector<Unit<T>> units = cut(layers, first, last, norms.get());
    value += feature ? run_feature(job, units) : run_neuron(job, units);
  }
  return at::scalar_tensor(value, like.options());
}

template <class T>
std::tuple<Tensor, std::vector<Tensor>> forward_as(const GroupSparsityJob& job, bool feature, TensorList weights) {
  std::vector<Layer<T>> layers;
  std::vector<Tensor> coefficients;
  layers.reserve(weights.size());
  for (const Tensor& weight : weights) {
    coefficients.push_back(at::empty({weight.size(0), weight.size(1)}, weight.options()));
    layers.emplace_back(weight, false, false).whole.coefficient = coefficients.back().template mutable_data_ptr<T>();
    if (weight.numel() == 0) coefficients.back().zero_();
  }
  Tensor value = run(job, feature, layers, weights[0]);
  return {std::move(value), std::move(coefficients)};
}

template <class T>
std::tuple<Tensor, std::vector<Tensor>> value_and_grad_as(const GroupSparsityJob& job, bool feature, TensorList weights) {
  std::vector<Layer<T>> layers;
  std::vector<Tensor> gradients;
  layers.reserve(weights.size());
  const bool stream = overflows_caches(weights);
  for (const Tensor& weight : weights) layers.emplace_back(weight, true, stream);
  Tensor value = run(job, feature, layers, weights[0]);
  for (size_t k = 0; k < layers.size(); ++k) gradients.push_back(layers[k].result(weights[k]));
  return {std::move(value), std::move(gradients)};
}

template <class T>
std::vector<Tensor> backward_as(
    const GroupSparsityJob& job, const Tensor& grad, TensorList weights, TensorList coefficients) {
  std::vector<Layer<T>> layers;
  std::vector<Tensor> readable, gradients;
  layers.reserve(weights.size());
  const bool stream = overflows_caches(weights);
  for (size_t k = 0; k < weights.size(); ++k) {
    const Tensor& weight = weights[k];
    TORCH_CHECK_VALUE(coefficients[k].sizes() == weight.sizes().slice(0, 2), "coefficients: expected shape ",
                      weight.sizes().slice(0, 2), ", got ", coefficients[k].sizes());
    readable.push_back(coefficients[k].contiguous());
    // Only read.
    layers.emplace_back(weight, true, stream).whole.coefficient = const_cast<T*>(readable.back().const_data_ptr<T>());
  }
  const T scale = *grad.contiguous().const_data_ptr<T>();
  const std::vector<Unit<T>> units = cut<T>(layers, 0, layers.size(), nullptr);
  for_each_unit(units.size(), [&](int64_t u) { kernels<T>().gradient(job, units[u].block, scale); });
  for (size_t k = 0; k < layers.size(); ++k) gradients.push_back(layers[k].result(weights[k]));
  return gradients;
}

std::tuple<Tensor, std::vector<Tensor>> forward(
    TensorList weights, string_view penalty, string_view groups, double strength, double l1, string_view impl) {
  if (!taken(impl, weights))
    return call_python<decltype(forward)>("group_sparsity", weights, penalty, groups, strength, l1, impl);
  check_weights(weights);
  const GroupSparsityJob job = job_of(penalty, strength, l1);
  const bool feature = by_feature(groups);
  return weights[0].scalar_type() == at::kFloat ? forward_as<float>(job, feature, weights)
                                                : forward_as<double>(job, feature, weights);
}

std::vector<Tensor> backward(
    const Tensor& grad, TensorList weights, TensorList coefficients, string_view penalty, double l1, string_view impl) {
  if (!taken(impl, weights))
    return call_python<decltype(backward)>("group_sparsity_backward", grad, weights, coefficients, penalty, l1, impl);
  check_weights(weights);
  TORCH_CHECK_VALUE(coefficients.size() == weights.size(), "coefficients: expected ", weights.size(),
                    " tensors like weights, got ", coefficients.size());
  TORCH_CHECK_VALUE(grad.numel() == 1, "grad: expected one number, got shape ", grad.sizes());
  const GroupSparsityJob job = job_of(penalty, 1.0, l1);
  return weights[0].scalar_type() == at::kFloat ? backward_as<float>(job, grad, weights, coefficients)
                                                : backward_as<double>(job, grad, weights, coefficients);
}

std::tuple<Tensor, std::vector<Tensor>> value_and_grad(
    TensorList weights, string_view penalty, string_view groups, double strength, double l1, string_view impl) {
  if (!taken(impl, weights))
    return call_python<decltype(value_and_grad)>(
        "group_sparsity_value_and_grad", weights, penalty, groups, strength, l1, impl);
  check_weights(weights);
  const GroupSparsityJob job = job_of(penalty, strength, l1);
  const bool feature = by_feature(groups);
  return weights[0].scalar_type() == at::kFloat ? value_and_grad_as<float>(job, feature, weights)
                                                : value_and_grad_as<double>(job, feature, weights);
}

TORCH_LIBRARY_IMPL(plantops, CPU, m) {
  m.impl("group_sparsity", forward);
  m.impl("group_sparsity_backward", backward);
  m.impl("group_sparsity_value_and_grad", value_and_grad);
}

}  // namespace
}  // namespace plantops
