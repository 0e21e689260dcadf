// planted_linear as Python calls it: arguments, checks and autograd without a detour through the interpreter.
#include <c10/util/accumulate.h>

#include <string>
#include <tuple>

#include "planted.h"

namespace plantops::eager {
namespace {

namespace py = pybind11;
using at::Tensor;
using std::string_view;

constexpr char kForward[] = "planted_linear", kBackward[] = "planted_linear_backward";

using ForwardSignature = Tensor(
    const Tensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, int64_t, const OptionalTensor&, string_view, string_view);
using BackwardSignature = Gradients(
    const Tensor&, const OptionalTensor&, const Tensor&, const OptionalTensor&, const OptionalTensor&,
    const OptionalTensor&, int64_t, string_view, string_view, std::array<bool, 5>, string_view);

struct Call {
  Tensor input, weight;
  OptionalTensor weight_out, weight_in, bias, bias_out;
  std::optional<int64_t> in_start;
  OptionalTensor addend;
  string_view activation, input_grad, impl;

  explicit Call(Arguments& a)
      : input(a.tensor()), weight(a.tensor()), weight_out(a.optional_tensor()), weight_in(a.optional_tensor()),
        bias(a.optional_tensor()), bias_out(a.optional_tensor()), in_start(a.optional_integer()),
        addend(a.optional_tensor()), activation(a.text()), input_grad(a.text()), impl(a.text()) {}

  bool valid() const;  // passes every check of planted_linear in plantops/functional.py
  int64_t planted_in() const { return weight_in ? weight_in->size(-1) : 0; }
  int64_t planted_out() const { return weight_out ? weight_out->size(0) : 0; }
  int64_t start() const { return in_start.value_or(weight.size(1)); }
};

bool Call::valid() const {
  if (!is_float(input) || input.dim() == 0 || weight.dim() != 2) return false;
  for (const OptionalTensor* t : {&weight_out, &weight_in, &bias, &bias_out, &addend})
    if (!alike(*t, input)) return false;
  if (!alike(weight, input) || !frozen(weight) || !frozen(bias)) return false;
  if (activation != "none" && activation != "relu") return false;
  if (input_grad != "full" && input_grad != "planted" && input_grad != "none") return false;
  if ((weight_in && weight_in->dim() != 2) || (weight_out && weight_out->dim() != 2)) return false;
  const int64_t rows = weight.size(0), columns = weight.size(1) + planted_in();
  if (!has_shape(weight_in, {rows, planted_in()}) || !has_shape(weight_out, {planted_out(), columns})) return false;
  if (!has_shape(bias, {rows}) || !has_shape(bias_out, {planted_out()})) return false;
  if (input.size(-1) != columns || start() < 0 || start() > weight.size(1)) return false;
  at::DimVector result(input.sizes());
  result.back() = rows + planted_out();
  return has_shape(addend, result);
}

CallShape shape_of(const Tensor& x, const Tensor& weight, int64_t planted_out, int64_t planted_in, int64_t input_grad) {
  const int64_t rows = c10::multiply_integers(x.sizes().slice(0, x.dim() - 1));
  return {int64_t(x.scalar_type()), x.device().index(), rows, weight.size(0), weight.size(1), planted_out, planted_in,
          input_grad};
}

CallShape shape_of(const Call& c) { return shape_of(c.input, c.weight, c.planted_out(), c.planted_in(), 0); }

// An index into kImpls, behind it nothing is chosen any more; -1 where the call is not ordinary.
int64_t resolve(const Call& c) {
  const int64_t impl = impl_index(c.impl);
  if (impl != kAuto) return impl;
  if (c.input.is_cpu()) return kAten;
  return resolve_auto(kForward, shape_of(c), [&] {
    return py::make_tuple(wrapped(c.input), wrapped(c.weight), wrapped(c.weight_out), wrapped(c.weight_in));
  });
}

Tensor call_op(const Call& c, int64_t impl) {
  static const Op<ForwardSignature> op("plantops::planted_linear");
  return op(c.input, c.weight, c.weight_out, c.weight_in, c.bias, c.bias_out, c.start(), c.addend, c.activation,
            kImpls[impl]);
}

struct PlantedLinear : torch::autograd::Function<PlantedLinear> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const OptionalTensor& weight_out,
                        const OptionalTensor& weight_in, const OptionalTensor& /*bias_out*/,
                        const OptionalTensor& /*addend*/, const Call& c, const Needs& needs,
                        int64_t impl) {
    const Tensor output = call_op(c, impl);
    const auto [need_input, need_out, need_in, need_bias, need_addend] = needs;
    const bool relu = c.activation == "relu", all_rows = need_input || need_in || need_addend;
    const int64_t rows = c.weight.size(0);
    context->save_for_backward({need_out  ? input
                                : need_in ? compact(input, -1, c.start(), c.planted_in())
                                          : Tensor(),
                                c.weight, weight_out.value_or(Tensor()), weight_in.value_or(Tensor()),
                                !relu      ? Tensor()
                                : all_rows ? output
                                           : compact(output, -1, rows, output.size(-1) - rows)});
    context->saved_data["integers"] =
        std::vector<int64_t>{c.start(), relu, c.input_grad == "planted", impl_index(c.impl), needs[0], needs[1],
                             needs[2], needs[3], needs[4]};
    return output;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto v = context->saved_data["integers"].toIntVector();
    const variable_list saved = context->get_saved_variables();
    const bool relu = v[1], planted = v[2];
    const Needs needs{bool(v[4]), bool(v[5]), bool(v[6]), bool(v[7]), bool(v[8])};
    return planted_gradients(kForward, needs, !relu, gradients[0], saved, [&](const Needs& mask) {
      return computed_gradients(gradients[0], saved, v[0], relu, planted, v[3], mask);
    });
  }

 private:
  static Gradients computed_gradients(
      const Tensor& grad, const variable_list& t, int64_t in_start, bool relu, bool planted, int64_t asked,
      const Needs& mask) {
    static const Op<BackwardSignature> op("plantops::planted_linear_backward");
    const OptionalTensor input = given(t[0]), weight_out = given(t[2]), weight_in = given(t[3]), output = given(t[4]);
    const string_view activation = relu ? "relu" : "none", input_grad = planted ? "planted" : "full";
    const auto call = [&](int64_t impl) {
      return op(grad, input, t[1], weight_out, weight_in, output, in_start, activation, input_grad, mask, kImpls[impl]);
    };
    if (asked != kAuto) return call(asked);
    if (grad.is_cpu()) return call(kAten);
    const auto shape = [&] {
      return shape_of(grad, t[1], weight_out ? weight_out->size(0) : 0, weight_in ? weight_in->size(1) : 0,
                      !mask[0] ? 1 : planted ? 2 : 3);
    };
    const int64_t impl = resolve_auto(kBackward, shape(), [&] {
      return py::make_tuple(wrapped(grad), wrapped(input), wrapped(t[1]), wrapped(weight_out), wrapped(weight_in),
                            wrapped(output), in_start, py::str(std::string(activation)),
                            py::str(std::string(input_grad)),
                            py::make_tuple(mask[0], mask[1], mask[2], mask[3], mask[4]));
    });
    return computed(impl, kBackward, shape, call);
  }
};

}  // namespace

PyObject* planted_linear(PyObject*, PyObject* const* values, Py_ssize_t count) {
  return planted_call<PlantedLinear, Call>(kForward, values, count, call_op);
}

}  // namespace plantops::eager
