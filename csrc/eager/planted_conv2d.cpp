// planted_conv2d as Python calls it: arguments, checks and autograd without a detour through the interpreter.

#include <tuple>

#include "../tensors/planted_conv2d.h"
#include "planted.h"

namespace plantops::eager {
namespace {

namespace py = pybind11;
using at::Tensor;
using std::string_view;

constexpr char kForward[] = "planted_conv2d", kBackward[] = "planted_conv2d_backward";

using ForwardSignature = std::tuple<Tensor, Tensor>(
    const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, int64_t, int64_t, const OptionalTensor&,
    string_view, int64_t, bool, string_view);
using BackwardSignature = Gradients(
    const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, const OptionalTensor&, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef, at::IntArrayRef,
    at::IntArrayRef, int64_t, int64_t, int64_t, string_view, int64_t, string_view, std::array<bool, 5>, string_view);

struct Call {
  Tensor input, weight;
  OptionalTensor weight_out, weight_in, bias, bias_out;
  Size2 stride, padding, dilation;
  int64_t groups;
  std::optional<int64_t> in_start;
  OptionalTensor addend;
  string_view activation;
  int64_t max_pool;
  string_view input_grad, impl;

  explicit Call(Arguments& a)
      : input(a.tensor()), weight(a.tensor()), weight_out(a.optional_tensor()), weight_in(a.optional_tensor()),
        bias(a.optional_tensor()), bias_out(a.optional_tensor()), stride(a.pair()), padding(a.pair()),
        dilation(a.pair()), groups(a.integer()), in_start(a.optional_integer()), addend(a.optional_tensor()),
        activation(a.text()), max_pool(a.integer()), input_grad(a.text()), impl(a.text()) {}

  bool valid() const;  // passes every check of planted_conv2d in plantops/functional.py
  int64_t trunk_in() const { return weight.size(1); }
  int64_t planted_in() const { return weight_in ? weight_in->size(1) : 0; }
  int64_t planted_out() const { return weight_out ? weight_out->size(0) : 0; }
  int64_t start() const { return in_start.value_or(trunk_in()); }
  Size2 input_size() const { return {input.size(2), input.size(3)}; }
  Size2 conv_size() const {
    const auto axis = [&](int i) {
      return conv_output_size(input.size(2 + i), weight.size(2 + i), stride[i], padding[i], dilation[i]);
    };
    return {axis(0), axis(1)};
  }
};

bool Call::valid() const {
  if (!is_float(input) || groups != 1 || input.dim() != 4 || weight.dim() != 4) return false;
  for (const OptionalTensor* t : {&weight_out, &weight_in, &bias, &bias_out, &addend})
    if (!alike(*t, input)) return false;
  if (!alike(weight, input) || !frozen(weight) || !frozen(bias)) return false;
  if ((activation != "none" && activation != "relu") || max_pool < 1 || max_pool > kMostPool) return false;
  if (input_grad != "full" && input_grad != "planted" && input_grad != "none") return false;
  if (weight_in && weight_in->dim() != 4) return false;
  if (weight_out && weight_out->dim() != 4) return false;
  const int64_t rows = weight.size(0), height = weight.size(2), width = weight.size(3);
  if (!has_shape(weight_in, {rows, planted_in(), height, width})) return false;
  if (!has_shape(weight_out, {planted_out(), trunk_in() + planted_in(), height, width})) return false;
  if (!has_shape(bias, {rows}) || !has_shape(bias_out, {planted_out()})) return false;
  if (input.size(1) != trunk_in() + planted_in() || start() < 0 || start() > trunk_in()) return false;
  for (int axis = 0; axis < 2; ++axis)
    if (stride[axis] < 1 || dilation[axis] < 1 || padding[axis] < 0) return false;
  const Size2 size = conv_size();
  return size[0] >= max_pool && size[1] >= max_pool &&
         has_shape(addend, {input.size(0), rows + planted_out(), size[0], size[1]});
}

py::tuple pair(const Size2& values) { return py::make_tuple(values[0], values[1]); }

CallShape shape_of(const Tensor& images, const Tensor& weight, int64_t planted_out, int64_t planted_in,
                   const Size2& size, const Size2& stride, const Size2& padding, const Size2& dilation,
                   int64_t max_pool, int64_t input_grad) {
  return {int64_t(images.scalar_type()), int64_t(images.device().type()), images.device().index(),
          int64_t(memory_format(images)), images.size(0), weight.size(0), weight.size(1), weight.size(2), weight.size(3),
          planted_out, planted_in, size[0], size[1], stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1],
          max_pool, input_grad};
}

CallShape shape_of(const Call& c) {
  return shape_of(c.input, c.weight, c.planted_out(), c.planted_in(), c.input_size(), c.stride, c.padding, c.dilation,
                  c.max_pool, 0);
}

// An index into kImpls, behind it nothing is chosen any more; -1 where the call is not ordinary.
int64_t resolve(const Call& c) {
  const int64_t impl = impl_index(c.impl);
  if (impl != kAuto) return impl;
  return resolve_auto(kForward, shape_of(c), [&] {
    return py::make_tuple(wrapped(c.input), wrapped(c.weight), wrapped(c.weight_out), wrapped(c.weight_in),
                          wrapped(c.bias), wrapped(c.bias_out), pair(c.stride), pair(c.padding), pair(c.dilation),
                          c.groups, c.start(), wrapped(c.addend), py::str(std::string(c.activation)), c.max_pool,
                          false);
  });
}

std::tuple<Tensor, Tensor> call_op(const Call& c, bool save_indices, int64_t impl) {
  static const Op<ForwardSignature> op("plantops::planted_conv2d");
  return op(c.input, c.weight, c.weight_out, c.weight_in, c.bias, c.bias_out, c.stride, c.padding, c.dilation, c.groups,
            c.start(), c.addend, c.activation, c.max_pool, save_indices, kImpls[impl]);
}

// What a backward needs beside tensors, in a row of integers, which autograd can store.
struct Saved {
  Size2 input_size, conv_size, stride, padding, dilation;
  int64_t in_start, planted_in, max_pool, impl;
  bool relu, planted_input_grad;
  Needs needs;

  Saved(const Call& c, const Needs& wanted)
      : input_size(c.input_size()), conv_size(c.conv_size()), stride(c.stride), padding(c.padding),
        dilation(c.dilation), in_start(c.start()), planted_in(c.planted_in()), max_pool(c.max_pool),
        impl(impl_index(c.impl)), relu(c.activation == "relu"), planted_input_grad(c.input_grad == "planted"),
        needs(wanted) {}

  explicit Saved(const std::vector<int64_t>& v)
      : input_size{v[0], v[1]}, conv_size{v[2], v[3]}, stride{v[4], v[5]}, padding{v[6], v[7]}, dilation{v[8], v[9]},
        in_start(v[10]), planted_in(v[11]), max_pool(v[12]), impl(v[13]), relu(v[14]), planted_input_grad(v[15]),
        needs{bool(v[16]), bool(v[17]), bool(v[18]), bool(v[19]), bool(v[20])} {}

  std::vector<int64_t> integers() const {
    return {input_size[0], input_size[1], conv_size[0], conv_size[1], stride[0], stride[1], padding[0], padding[1],
            dilation[0], dilation[1], in_start, planted_in, max_pool, impl, relu, planted_input_grad, needs[0], needs[1],
            needs[2], needs[3], needs[4]};
  }
};

Gradients call_backward(const Saved& s, const Tensor& grad, const variable_list& t, const Needs& mask) {
  static const Op<BackwardSignature> op("plantops::planted_conv2d_backward");
  const OptionalTensor input = given(t[0]), weight_out = given(t[2]), weight_in = given(t[3]), output = given(t[4]),
                       indices = given(t[5]);
  const Tensor& weight = t[1];
  const string_view activation = s.relu ? "relu" : "none", input_grad = s.planted_input_grad ? "planted" : "full";
  const auto call = [&](int64_t impl) {
    return op(grad, input, weight, weight_out, weight_in, output, indices, s.input_size, s.conv_size, s.stride,
              s.padding, s.dilation, 1, s.in_start, s.planted_in, activation, s.max_pool, input_grad, mask,
              kImpls[impl]);
  };
  if (s.impl != kAuto) return call(s.impl);
  const auto shape = [&] {
    return shape_of(grad, weight, weight_out ? weight_out->size(0) : 0, s.planted_in, s.input_size, s.stride, s.padding,
                    s.dilation, s.max_pool, !mask[0] ? 1 : s.planted_input_grad ? 2 : 3);
  };
  const int64_t impl = resolve_auto(kBackward, shape(), [&] {
    return py::make_tuple(wrapped(grad), wrapped(input), wrapped(weight), wrapped(weight_out), wrapped(weight_in),
                          wrapped(output), wrapped(indices), pair(s.input_size), pair(s.conv_size), pair(s.stride),
                          pair(s.padding), pair(s.dilation), 1, s.in_start, s.planted_in,
                          py::str(std::string(activation)), s.max_pool, py::str(std::string(input_grad)),
                          py::make_tuple(mask[0], mask[1], mask[2], mask[3], mask[4]));
  });
  return computed(impl, kBackward, shape, call);
}

struct PlantedConv2d : torch::autograd::Function<PlantedConv2d> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const OptionalTensor& weight_out,
                        const OptionalTensor& weight_in, const OptionalTensor& /*bias_out*/,
                        const OptionalTensor& /*addend*/, const Call& c, const Needs& needs,
                        int64_t impl) {
    auto [output, indices] = call_op(c, c.max_pool > 1, impl);
    const auto [need_input, need_out, need_in, need_bias, need_addend] = needs;
    const bool all_rows = need_input || need_in || need_addend;
    const int64_t rows = c.weight.size(0);
    const auto saved = [&](const Tensor& t) { return all_rows ? t : compact(t, 1, rows, t.size(1) - rows); };
    context->save_for_backward({need_out  ? input
                                : need_in ? compact(input, 1, c.start(), c.planted_in())
                                          : Tensor(),
                                c.weight, weight_out.value_or(Tensor()), weight_in.value_or(Tensor()),
                                c.activation == "relu" ? saved(output) : Tensor(),
                                c.max_pool > 1 ? saved(indices) : Tensor()});
    context->saved_data["integers"] = Saved(c, needs).integers();
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const Saved s(context->saved_data["integers"].toIntVector());
    const variable_list saved = context->get_saved_variables();
    const bool passes = !s.relu && s.max_pool == 1;  // the gradient, unchanged, to the addend
    return planted_gradients(kForward, s.needs, passes, gradients[0], saved,
                             [&](const Needs& mask) { return call_backward(s, gradients[0], saved, mask); });
  }
};

}  // namespace

PyObject* planted_conv2d(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return planted_call<PlantedConv2d, Call>(
      kForward, values, count, [](const Call& c, int64_t impl) { return std::get<0>(call_op(c, false, impl)); });
}

}  // namespace plantops::eager
