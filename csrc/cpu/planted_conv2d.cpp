// planted_conv2d on the CPU: reads torch tensors, plans, and runs the SIMD kernels on at::parallel_for.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <array>
#include <cstdlib>
#include <memory>
#include <vector>

#include "../aten/planted_conv2d.h"
#include "../tensors/planted_conv2d.h"
#include "../tensors/python_fallback.h"
#include "planted_conv2d_plan.h"
#include "simd/isa.h"

namespace plantops {
namespace {

using at::Tensor;

template <class T>
const ConvKernels<T>& kernels() {
  switch (active_isa()) {
#if defined(__x86_64__)
    case Isa::avx512: return avx512::conv_kernels(T());
    case Isa::avx2: return avx2::conv_kernels(T());
#endif
    default: return baseline::conv_kernels(T());
  }
}

struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <class T>
using Scratch = std::unique_ptr<T[], Free>;

template <class T>
Scratch<T> allocate(int64_t elements) {
  const size_t bytes = (size_t(elements) * sizeof(T) + 63) / 64 * 64;
  T* memory = static_cast<T*>(std::aligned_alloc(64, std::max<size_t>(bytes, 64)));
  TORCH_CHECK(memory != nullptr, "planted_conv2d: no memory for ", bytes, " bytes of scratch");
  return Scratch<T>(memory);
}

// The kernels keep what they leave untouched in scratch at zero.
template <class T>
Scratch<T> allocate_zeroed(int64_t elements) {
  Scratch<T> scratch = allocate<T>(elements);
  std::fill_n(scratch.get(), elements, T(0));
  return scratch;
}

// A result to be written. Large ones ask for huge pages: fresh memory of tens of megabytes otherwise costs ten
// thousand page faults, a tenth of a convolution's time.
Tensor new_result(at::IntArrayRef shape, const at::TensorOptions& options, at::MemoryFormat format) {
  Tensor result = at::empty(shape, options, format);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = uintptr_t(2) << 20;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(result.const_data_ptr()) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(result.const_data_ptr()) + result.nbytes()) / kPage * kPage;
  if (end >= begin + 4 * kPage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // only a hint
#endif
  return result;
}

void check_supported(const Tensor& weight, at::IntArrayRef stride, int64_t groups) {
  TORCH_CHECK_NOT_IMPLEMENTED(
      weight.scalar_type() == at::kFloat || weight.scalar_type() == at::kDouble,
      "planted_conv2d: impl='native' computes float32 and float64, got ", weight.scalar_type());
  TORCH_CHECK_VALUE(groups >= 1, "groups: expected an integer >= 1, got ", groups);
  TORCH_CHECK_NOT_IMPLEMENTED(groups == 1, "planted_conv2d: impl='native' computes groups 1, got ", groups);
  TORCH_CHECK_VALUE(stride.size() == 2 && stride[0] >= 1 && stride[1] >= 1, "stride: expected integers >= 1, got ",
                    stride);
  TORCH_CHECK_NOT_IMPLEMENTED(
      stride[0] == 1 && stride[1] == 1, "planted_conv2d: impl='native' computes stride 1, got ", stride);
}

template <class T>
View<const T> read(const Tensor& t, int64_t channel = 0) {
  return {t.const_data_ptr<T>() + channel * t.stride(1), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

template <class T>
View<T> write(const Tensor& t, int64_t channel = 0) {
  return {t.mutable_data_ptr<T>() + channel * t.stride(1), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

template <class T>
struct Weights {
  Tensor trunk, in, out;  // contiguous; undefined where absent
  PlantedChannels channels;
  int64_t taps;

  Weights(const Convolution& c, const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in)
      : trunk(weight.contiguous()), channels(c.channels), taps(c.taps()) {
    if (c.channels.planted_in) in = weight_in->contiguous();
    if (c.channels.planted_out) out = weight_out->contiguous();
  }
  const T* kernel(int64_t o, int64_t i) const {
    return planted_kernel(channels, pointer(trunk), pointer(in), pointer(out), taps, o, i);
  }

 private:
  static const T* pointer(const Tensor& t) { return t.defined() ? t.const_data_ptr<T>() : nullptr; }
};

// Weights of a convolution from `inputs` to `outputs` channels as the kernels read them: [block][input][tap][block's
// output channels]. kernel(output, input) points at the taps, read backwards when flipped.
template <class T, class Kernel>
Scratch<T> pack_weights(int64_t outputs, int64_t inputs, int64_t taps, bool flipped, const Kernel& kernel) {
  const int64_t most = kernels<T>().out_block, blocks = block_count(outputs, most);
  Scratch<T> packed = allocate<T>(outputs * inputs * taps);
  at::parallel_for(0, blocks, divide_up(4096, inputs * taps * most + 1), [&](int64_t from, int64_t until) {
    for (int64_t b = from; b < until; ++b) {
      const int64_t begin = block_begin(outputs, most, b), size = block_begin(outputs, most, b + 1) - begin;
      T* to = packed.get() + begin * inputs * taps;
      for (int64_t i = 0; i < inputs; ++i, to += taps * size)
        for (int64_t o = 0; o < size; ++o) {
          const T* source = kernel(begin + o, i);
          for (int64_t t = 0; t < taps; ++t) to[t * size + o] = source[flipped ? taps - 1 - t : t];
        }
    }
  });
  return packed;
}

template <class T>
void run_convolution(ConvJob<T>& job) {
  const Geometry& g = job.geometry;
  job.band_rows = choose_band<T>(g, job.pool, at::get_num_threads());
  const int64_t bands = divide_up(g.out_height / job.pool * job.pool, job.band_rows);
  const auto& table = kernels<T>();
  at::parallel_for(0, g.groups() * bands, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch = allocate_zeroed<T>(table.conv_scratch(job));
    for (int64_t unit = begin; unit < end; ++unit)
      table.conv(job, unit / bands, unit % bands * job.band_rows, scratch.get());
  });
}

template <class T>
std::vector<T> joined_bias(const PlantedChannels& n, const OptionalTensor& bias, const OptionalTensor& bias_out) {
  std::vector<T> joined;
  const auto copy = [&](const OptionalTensor& from, int64_t begin, int64_t count, const char* name) {
    if (!from || !from->defined()) return;
    check_tensor(name, *from, c10::CppTypeToScalarType<T>::value, {count});
    joined.resize(n.out(), T(0));
    const T* values = from->const_data_ptr<T>();
    for (int64_t i = 0; i < count; ++i) joined[begin + i] = values[i * from->stride(0)];
  };
  copy(bias, 0, n.trunk_out, "bias");
  copy(bias_out, n.trunk_out, n.planted_out, "bias_out");
  return joined;
}

template <class T>
std::tuple<Tensor, Tensor> forward(
    const Tensor& input, const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
    const OptionalTensor& bias, const OptionalTensor& bias_out, const Convolution& c, const OptionalTensor& addend,
    bool save_indices) {
  const auto& n = c.channels;
  const Size2 conv_size = check_input(c, input, weight.scalar_type());
  Geometry g{};
  g.batch = input.size(0);
  g.channels = n.in();
  g.out_height = conv_size[0], g.out_width = conv_size[1];
  g.kernel_h = c.kernel[0], g.kernel_w = c.kernel[1];
  g.dilation_h = c.dilation[0], g.dilation_w = c.dilation[1];
  g.pad_h = c.padding[0], g.pad_w = c.padding[1];

  const std::array<int64_t, 4> shape{
      g.batch, n.out(), pool_output_size(g.out_height, c.pool), pool_output_size(g.out_width, c.pool)};
  const auto format = memory_format(input);
  const Tensor output = new_result(shape, input.options(), format);
  const bool indexed = c.pool > 1 && save_indices;
  const Tensor indices = indexed ? at::empty(shape, input.options().dtype(at::kByte), format)
                                 : at::empty({0}, input.options().dtype(at::kByte));
  if (output.numel() == 0) return {output, indices};

  lay_out(g, kernels<T>().vector);
  const Weights<T> weights(c, weight, weight_out, weight_in);
  const Scratch<T> packed = pack_weights<T>(
      n.out(), n.in(), c.taps(), false, [&](int64_t o, int64_t i) { return weights.kernel(o, i); });
  const std::vector<T> biases = joined_bias<T>(n, bias, bias_out);
  ConvJob<T> job{};
  job.geometry = g;
  job.source.values = read<T>(input);
  job.source.height = input.size(2), job.source.width = input.size(3);
  job.weights = packed.get();
  job.out_channels = n.out();
  job.bias = biases.empty() ? nullptr : biases.data();
  if (addend && addend->defined()) {
    check_tensor("addend", *addend, weight.scalar_type(), {g.batch, n.out(), g.out_height, g.out_width});
    job.addend = read<T>(*addend);
  }
  job.relu = c.relu;
  job.pool = c.pool;
  job.out = write<T>(output);
  if (indexed) job.indices = write<uint8_t>(indices);
  run_convolution(job);
  return {output, indices};
}

std::tuple<Tensor, Tensor> planted_conv2d(
    const Tensor& input, const Tensor& weight, const OptionalTensor& weight_out, const OptionalTensor& weight_in,
    const OptionalTensor& bias, const OptionalTensor& bias_out, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, int64_t in_start, const OptionalTensor& addend, c10::string_view activation,
    int64_t max_pool, bool save_indices, c10::string_view impl) {
  if (aten::computes(impl, groups))
    return aten::forward(input, weight, weight_out, weight_in, bias, bias_out, stride, padding, dilation, in_start,
                         addend, activation, max_pool, save_indices);
  if (impl != "native" || !weight.is_cpu())
    return call_python<decltype(planted_conv2d)>(
        "planted_conv2d", input, weight, weight_out, weight_in, bias, bias_out, stride, padding, dilation, groups,
        in_start, addend, activation, max_pool, save_indices, impl);
  check_supported(weight, stride, groups);
  const Convolution c =
      convolution_of(weight, weight_out, weight_in, stride, padding, dilation, in_start, activation, max_pool);
  return weight.scalar_type() == at::kFloat
             ? forward<float>(input, weight, weight_out, weight_in, bias, bias_out, c, addend, save_indices)
             : forward<double>(input, weight, weight_out, weight_in, bias, bias_out, c, addend, save_indices);
}

// The backward's view of things: the gradient of the convolution's output, recomputed through pool and ReLU wherever
// it is read, never stored.
template <class T>
struct Backward : ConvBackward {
  // Gradient channels [first, ...). Saved tensors may hold the planted rows alone.
  Source<T> gradient(int64_t first) const {
    Source<T> s{};
    s.values = read<T>(grad_output, first);
    if (c.relu) s.output = read<T>(*output, first - missing(*output));
    if (c.pool > 1) s.indices = read<uint8_t>(*indices, first - missing(*indices));
    s.pool = c.pool;
    s.height = conv_size[0], s.width = conv_size[1];
    return s;
  }
};

template <class T>
Tensor input_gradient(const Backward<T>& b, const Weights<T>& weights, bool planted_only) {
  const auto& n = b.c.channels;
  const int64_t batch = b.grad_output.size(0);
  const std::array<int64_t, 4> shape{batch, n.in(), b.input_size[0], b.input_size[1]};
  const bool partial = planted_only && n.planted_in < n.in();
  const Tensor grad = new_result(shape, b.grad_output.options(), memory_format(b.grad_output));
  if (partial) grad.zero_();
  const int64_t first = planted_only ? n.in_start : 0, count = planted_only ? n.planted_in : n.in();
  if (grad.numel() == 0 || count == 0) return grad;
  Geometry g{};
  g.batch = batch;
  g.channels = n.out();
  g.out_height = b.input_size[0], g.out_width = b.input_size[1];
  g.kernel_h = b.c.kernel[0], g.kernel_w = b.c.kernel[1];
  g.dilation_h = b.c.dilation[0], g.dilation_w = b.c.dilation[1];
  g.pad_h = transposed_padding(g.kernel_h, b.c.padding[0], g.dilation_h);
  g.pad_w = transposed_padding(g.kernel_w, b.c.padding[1], g.dilation_w);
  lay_out(g, kernels<T>().vector);
  const Scratch<T> packed = pack_weights<T>(
      count, n.out(), b.c.taps(), true, [&](int64_t i, int64_t o) { return weights.kernel(o, first + i); });
  ConvJob<T> job{};
  job.geometry = g;
  if (n.out() > 0) job.source = b.gradient(0);
  job.weights = packed.get();
  job.out_channels = count;
  job.pool = 1;
  job.out = write<T>(grad, first);
  run_convolution(job);
  return grad;
}

// Splits a weight gradient into a number of partial sums that depends on shapes alone, and adds them in order: the
// same bits for any number of threads. More threads than sums share the channels.
template <class T>
void run_weight_grad(WeightGradJob<T> job, T* weight, T* bias) {
  constexpr int64_t kSums = 8;
  const auto& table = kernels<T>();
  plan_weight_grad(job, table.vector);
  const int64_t taps = job.geometry.kernel_h * job.geometry.kernel_w, channels = job.geometry.channels;
  const int64_t weights = job.out_channels * channels * taps, values = weights + (job.bias ? job.out_channels : 0);
  job.out_stride = channels * taps;
  const int64_t cells = job.geometry.groups() * job.bands, chunks = divide_up(cells, job.chunk_cells);
  const int64_t sums = std::min(kSums, chunks);
  const int64_t shares = std::clamp<int64_t>(divide_up(at::get_num_threads(), sums), 1, std::max<int64_t>(1, channels));
  const Scratch<T> partial = allocate<T>(sums * values);
  at::parallel_for(0, sums * shares, 1, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch = allocate_zeroed<T>(table.weight_grad_scratch(job));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t sum = task / shares, share = task % shares;
      const int64_t from = channels * share / shares, until = channels * (share + 1) / shares;
      WeightGradJob<T> part = job;
      part.geometry.channels = until - from;
      part.input.values.data += from * job.input.values.c;
      part.bias = job.bias && share == 0;
      T* to = partial.get() + sum * values;
      for (int64_t o = 0; o < job.out_channels; ++o)
        std::fill(to + o * job.out_stride + from * taps, to + o * job.out_stride + until * taps, T(0));
      if (part.bias) std::fill(to + weights, to + values, T(0));
      table.weight_grad(part, chunks * sum / sums * job.chunk_cells,
                        std::min(cells, chunks * (sum + 1) / sums * job.chunk_cells), scratch.get(), to + from * taps,
                        to + weights);
    }
  });
  at::parallel_for(0, values, 16384, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T total = T(0);
      for (int64_t s = 0; s < sums; ++s) total += partial[s * values + i];
      (i < weights ? weight[i] : bias[i - weights]) = total;
    }
  });
}

// Gradient of the kernels from input channels (those of `input`, from `input_channel` on) to gradient channels
// [first, first + rows).
template <class T>
void weight_gradient(
    const Backward<T>& b, const Tensor* input, int64_t input_channel, int64_t channels, int64_t first, int64_t rows,
    T* weight, T* bias) {
  if (b.grad_output.size(0) == 0 || rows == 0) {
    if (weight) std::fill(weight, weight + rows * channels * b.c.taps(), T(0));
    if (bias) std::fill(bias, bias + rows, T(0));
    return;
  }
  WeightGradJob<T> job{};
  Geometry& g = job.geometry;
  g.batch = b.grad_output.size(0);
  g.channels = channels;
  g.out_height = b.conv_size[0], g.out_width = b.conv_size[1];
  g.kernel_h = b.c.kernel[0], g.kernel_w = b.c.kernel[1];
  g.dilation_h = b.c.dilation[0], g.dilation_w = b.c.dilation[1];
  g.pad_h = b.c.padding[0], g.pad_w = b.c.padding[1];
  lay_out(g, kernels<T>().vector);
  if (input) job.input.values = read<T>(*input, input_channel);
  job.input.height = b.input_size[0], job.input.width = b.input_size[1];
  job.gradient = b.gradient(first);
  job.out_channels = rows;
  job.bias = bias != nullptr;
  run_weight_grad(job, weight, bias);
}

// The gradient of the addend: grad_output through pool and ReLU, stored.
template <class T>
Tensor addend_gradient(const Backward<T>& b) {
  const int64_t batch = b.grad_output.size(0), channels = b.c.channels.out();
  const Tensor grad = new_result(
      {batch, channels, b.conv_size[0], b.conv_size[1]}, b.grad_output.options(), memory_format(b.grad_output));
  if (grad.numel() == 0) return grad;
  const Source<T> source = b.gradient(0);
  const int64_t image = channels * b.conv_size[0] * b.conv_size[1];
  const bool contiguous = grad.is_contiguous();
  at::parallel_for(0, batch, divide_up(16384, image), [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch = allocate<T>(contiguous ? 0 : image);
    for (int64_t n = begin; n < end; ++n) {
      T* to = grad.mutable_data_ptr<T>() + n * grad.stride(0);
      if (contiguous) {
        kernels<T>().expand(source, n, channels, to);
        continue;
      }
      kernels<T>().expand(source, n, channels, scratch.get());
      const T* from = scratch.get();
      for (int64_t o = 0; o < channels; ++o)
        for (int64_t h = 0; h < grad.size(2); ++h)
          for (int64_t w = 0; w < grad.size(3); ++w)
            to[o * grad.stride(1) + h * grad.stride(2) + w * grad.stride(3)] = *from++;
    }
  });
  return grad;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    const Backward<T>& b, const OptionalTensor& input, const Tensor& weight, const OptionalTensor& weight_out,
    const OptionalTensor& weight_in, c10::string_view input_grad, const std::array<bool, 5>& mask) {
  const auto& n = b.c.channels;
  const auto options = b.grad_output.options();
  const auto [want_input, want_out, want_in, want_bias, want_addend] = mask;
  b.check(weight.scalar_type());
  if (want_input || want_in || want_addend) b.check_all_rows();
  Tensor grad_input, grad_out, grad_in, grad_bias, grad_addend;
  const int64_t planted_from =
      want_out || want_in ? check_saved_input(b, input, weight.scalar_type(), want_out) : 0;
  if (want_out || want_bias) {
    if (want_out) grad_out = at::empty({n.planted_out, n.in(), b.c.kernel[0], b.c.kernel[1]}, options);
    if (want_bias) grad_bias = at::empty({n.planted_out}, options);
    weight_gradient<T>(b, want_out ? &*input : nullptr, 0, want_out ? n.in() : 0, n.trunk_out, n.planted_out,
                       want_out ? grad_out.mutable_data_ptr<T>() : nullptr,
                       want_bias ? grad_bias.mutable_data_ptr<T>() : nullptr);
    if (want_out) grad_out = with_strides_of(grad_out, weight_out);
  }
  if (want_in) {
    grad_in = at::empty({n.trunk_out, n.planted_in, b.c.kernel[0], b.c.kernel[1]}, options);
    weight_gradient<T>(b, &*input, planted_from, n.planted_in, 0, n.trunk_out, grad_in.mutable_data_ptr<T>(), nullptr);
    grad_in = with_strides_of(grad_in, weight_in);
  }
  if (want_input) {
    TORCH_CHECK_VALUE(input_grad == "full" || input_grad == "planted",
                      "input_grad: expected 'full' or 'planted' when the input's gradient is requested, got '", input_grad, "'");
    grad_input = input_gradient(b, Weights<T>(b.c, weight, weight_out, weight_in), input_grad == "planted");
  }
  if (want_addend) grad_addend = addend_gradient(b);
  // The results of an op may not alias: one empty tensor for each gradient that was not asked for.
  const auto or_empty = [&](const Tensor& result) { return result.defined() ? result : at::empty({0}, options); };
  return {or_empty(grad_input), or_empty(grad_out), or_empty(grad_in), or_empty(grad_bias), or_empty(grad_addend)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> planted_conv2d_backward(
    const Tensor& grad_output, const OptionalTensor& input, const Tensor& weight, const OptionalTensor& weight_out,
    const OptionalTensor& weight_in, const OptionalTensor& output, const OptionalTensor& indices,
    at::IntArrayRef input_size, at::IntArrayRef conv_size, at::IntArrayRef stride, at::IntArrayRef padding,
    at::IntArrayRef dilation, int64_t groups, int64_t in_start, int64_t planted_in, c10::string_view activation,
    int64_t max_pool, c10::string_view input_grad, std::array<bool, 5> output_mask, c10::string_view impl) {
  if (aten::computes(impl, groups))
    return aten::backward(grad_output, input, weight, weight_out, weight_in, output, indices, input_size, conv_size,
                          stride, padding, dilation, in_start, activation, max_pool, input_grad, output_mask);
  if (impl != "native" || !weight.is_cpu())
    return call_python<decltype(planted_conv2d_backward)>(
        "planted_conv2d_backward", grad_output, input, weight, weight_out, weight_in, output, indices, input_size,
        conv_size, stride, padding, dilation, groups, in_start, planted_in, activation, max_pool, input_grad, output_mask,
        impl);
  check_supported(weight, stride, groups);
  const Convolution c =
      convolution_of(weight, weight_out, weight_in, stride, padding, dilation, in_start, activation, max_pool);
  const Size2 in_size{input_size[0], input_size[1]}, out_size{conv_size[0], conv_size[1]};
  if (weight.scalar_type() == at::kFloat)
    return backward(Backward<float>{{c, grad_output, output, indices, in_size, out_size}}, input, weight, weight_out,
                    weight_in, input_grad, output_mask);
  return backward(Backward<double>{{c, grad_output, output, indices, in_size, out_size}}, input, weight, weight_out,
                  weight_in, input_grad, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(plantops, CPU, m) {
  m.impl("planted_conv2d", &planted_conv2d);
  m.impl("planted_conv2d_backward", &planted_conv2d_backward);
}

#if !defined(PLANTOPS_CUDA_VERSION)
// A module without CUDA kernels has ATen's calls for a GPU too; the rest goes to Python.
TORCH_LIBRARY_IMPL(plantops, CUDA, m) {
  m.impl("planted_conv2d", &planted_conv2d);
  m.impl("planted_conv2d_backward", &planted_conv2d_backward);
}
#endif

}  // namespace plantops
