// kl_div_logits and distillation_loss as Python calls them: arguments, checks and autograd without a detour through the
// interpreter.
#include <c10/core/GradMode.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "arguments.h"
#include "autograd.h"
#include "choice.h"

namespace plantops::eager {
namespace {

namespace py = pybind11;
using at::Tensor;
using std::string_view;

PyObject* wrapped_or_none(std::optional<Tensor> t) {
  if (!t) Py_RETURN_NONE;
  return THPVariable_Wrap(*std::move(t));
}

bool positive(double value) { return value > 0 && std::isfinite(value); }
bool unit(double value) { return value >= 0 && value <= 1; }

// What plantops/ops/_checks.py requires of every pair of logits.
bool valid_logits(const Tensor& student, const Tensor& teacher, double temperature) {
  constexpr int64_t kFewest = 2, kMost = 262144;
  return is_float(student) && is_float(teacher) && student.dim() > 0 && student.sizes() == teacher.sizes() &&
         student.device() == teacher.device() && student.size(-1) >= kFewest && student.size(-1) <= kMost &&
         !(teacher.requires_grad() && c10::GradMode::is_enabled()) && positive(temperature);
}

bool valid_kl_reduction(string_view name) {
  return name == "none" || name == "sum" || name == "mean" || name == "batchmean";
}

// What a decision between implementations depends on.
CallShape shape_of(const Tensor& student) {
  return {int64_t(student.scalar_type()), student.device().index(), student.size(-1), student.numel()};
}

// Calls compute(name of an implementation) while other threads may run Python. Null where the call is not ordinary.
template <class Result, class Compute>
std::optional<Result> resolved(const char* stem, const Tensor& student, string_view name, const Compute& compute) {
  const int64_t impl = impl_index(name);
  if (impl < 0) return std::nullopt;
  const auto released = [&](int64_t chosen) -> Result {
    const py::gil_scoped_release others_run;
    return compute(kImpls[chosen]);
  };
  if (impl != kAuto || student.is_cpu()) return released(impl);  // on a CPU the compiled kernels take "auto" themselves
  const int64_t chosen = resolve_auto(stem, shape_of(student), [&] { return py::make_tuple(wrapped(student)); });
  return computed(chosen, stem, [&] { return shape_of(student); }, released);
}

bool wants_grad(const Tensor& student) { return c10::GradMode::is_enabled() && student.requires_grad(); }

// A backward's "auto" on a GPU: by the measured table, as in `resolved`.
template <class Compute>
Tensor resolved_backward(const char* stem, const Tensor& grad, const Tensor& student, string_view name,
                         const Compute& compute) {
  const auto by_index = [&](int64_t impl) { return compute(kImpls[impl]); };
  const int64_t impl = impl_index(name);
  if (impl != kAuto || student.is_cpu()) return by_index(impl);
  const int64_t chosen =
      resolve_auto(stem, shape_of(student), [&] { return py::make_tuple(wrapped(grad), wrapped(student)); });
  return computed(chosen, stem, [&] { return shape_of(student); }, by_index);
}

// Whether some row may be left out: where the labels cannot be looked at without a wait, or where one is the index.
bool may_ignore(const Tensor& target, int64_t ignore_index) {
  if (!target.is_cpu() || !target.is_contiguous()) return true;
  const int64_t* labels = target.const_data_ptr<int64_t>();
  return std::find(labels, labels + target.numel(), ignore_index) != labels + target.numel();
}

struct KLDivLogits : torch::autograd::Function<KLDivLogits> {
  static constexpr char kForward[] = "kl_div_logits", kBackward[] = "kl_div_logits_backward";

  static std::tuple<Tensor, Tensor, Tensor> op(
      const Tensor& student, const Tensor& teacher, double temperature, string_view reduction, string_view impl) {
    static const Op<std::tuple<Tensor, Tensor, Tensor>(const Tensor&, const Tensor&, double, string_view, string_view)>
        call("plantops::kl_div_logits");
    return call(student, teacher, temperature, reduction, impl);
  }

  static Tensor forward(AutogradContext* context, const Tensor& student, const Tensor& teacher, double temperature,
                        string_view reduction, string_view impl, string_view asked) {
    auto [loss, lse_student, lse_teacher] = op(student, teacher, temperature, reduction, impl);
    context->save_for_backward({student, teacher, std::move(lse_student), std::move(lse_teacher)});
    context->saved_data["temperature"] = temperature;
    context->saved_data["reduction"] = std::string(reduction);
    context->saved_data["impl"] = std::string(asked);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const Op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, double,
                           string_view, string_view)>
        call("plantops::kl_div_logits_backward");
    const variable_list t = context->get_saved_variables();
    auto& saved = context->saved_data;
    variable_list results(6);
    results[0] = resolved_backward(kBackward, gradients[0], t[0], saved["impl"].toStringView(), [&](string_view impl) {
      return call(gradients[0], t[0], t[1], t[2], t[3], saved["temperature"].toDouble(),
                  saved["reduction"].toStringView(), impl);
    });
    refuse_double_backward(kForward, gradients[0], results, t);
    return results;
  }
};

struct DistillationLoss : torch::autograd::Function<DistillationLoss> {
  static constexpr char kForward[] = "distillation_loss", kBackward[] = "distillation_loss_backward";

  static std::tuple<Tensor, Tensor, Tensor, Tensor> op(
      const Tensor& student, const Tensor& teacher, const Tensor& target, const std::array<double, 3>& factors,
      string_view reduction, string_view impl) {
    static const Op<std::tuple<Tensor, Tensor, Tensor, Tensor>(
        const Tensor&, const Tensor&, const Tensor&, double, double, double, string_view, string_view)>
        call("plantops::distillation_loss");
    return call(student, teacher, target, factors[0], factors[1], factors[2], reduction, impl);
  }

  // factors: alpha, temperature, label smoothing
  static Tensor forward(AutogradContext* context, const Tensor& student, const Tensor& teacher, const Tensor& target,
                        const std::array<double, 3>& factors, string_view reduction, string_view impl,
                        string_view asked) {
    auto [loss, student_t, teacher_t, student_1] = op(student, teacher, target, factors, reduction, impl);
    context->save_for_backward(
        {student, teacher, target, std::move(student_t), std::move(teacher_t), std::move(student_1)});
    context->saved_data["factors"] = std::vector<double>(factors.begin(), factors.end());
    context->saved_data["reduction"] = std::string(reduction);
    context->saved_data["impl"] = std::string(asked);
    return loss;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    static const Op<Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                           const Tensor&, double, double, double, string_view, string_view)>
        call("plantops::distillation_loss_backward");
    const variable_list t = context->get_saved_variables();
    auto& saved = context->saved_data;
    const auto factors = saved["factors"].toDoubleVector();
    variable_list results(7);
    results[0] = resolved_backward(kBackward, gradients[0], t[0], saved["impl"].toStringView(), [&](string_view impl) {
      return call(gradients[0], t[0], t[1], t[2], t[3], t[4], t[5], factors[0], factors[1], factors[2],
                  saved["reduction"].toStringView(), impl);
    });
    refuse_double_backward(kForward, gradients[0], results, t);
    return results;
  }
};

}  // namespace

PyObject* kl_div_logits(PyObject*, PyObject* const* values, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments a(values, count, Autocast::means_nothing);
  const Tensor student = a.tensor(), teacher = a.tensor();
  const double temperature = a.number();
  const string_view reduction = a.text(), impl = a.text();
  if (!a.ordinary() || !valid_logits(student, teacher, temperature) || !valid_kl_reduction(reduction)) Py_RETURN_NONE;
  return wrapped_or_none(resolved<Tensor>(KLDivLogits::kForward, student, impl, [&](string_view chosen) {
    if (wants_grad(student))
      return KLDivLogits::apply(student, teacher, temperature, reduction, chosen, impl);
    return std::get<0>(KLDivLogits::op(student, teacher, temperature, reduction, chosen));
  }));
  END_HANDLE_TH_ERRORS
}

PyObject* kl_div_logits_value_and_grad(PyObject*, PyObject* const* values, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  static const Op<std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, double, string_view, string_view)> op(
      "plantops::kl_div_logits_value_and_grad");
  Arguments a(values, count, Autocast::means_nothing);
  const Tensor student = a.tensor(), teacher = a.tensor();
  const double temperature = a.number();
  const string_view reduction = a.text(), impl = a.text();
  const c10::AutoGradMode no_grad(false);
  if (!a.ordinary() || !valid_logits(student, teacher, temperature) || !valid_kl_reduction(reduction)) Py_RETURN_NONE;
  const auto both = resolved<std::tuple<Tensor, Tensor>>(
      "kl_div_logits_value_and_grad", student, impl,
      [&](string_view chosen) { return op(student, teacher, temperature, reduction, chosen); });
  if (!both) Py_RETURN_NONE;
  return py::make_tuple(wrapped(std::get<0>(*both)), wrapped(std::get<1>(*both))).release().ptr();
  END_HANDLE_TH_ERRORS
}

PyObject* distillation_loss(PyObject*, PyObject* const* values, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  Arguments a(values, count, Autocast::means_nothing);
  const Tensor student = a.tensor(), teacher = a.tensor(), target = a.tensor();
  const std::array<double, 3> factors{a.number(), a.number(), a.number()};
  const auto [alpha, temperature, label_smoothing] = factors;
  const std::optional<int64_t> ignore_index = a.optional_integer();
  const string_view reduction = a.text(), impl = a.text();
  if (!a.ordinary() || !valid_logits(student, teacher, temperature)) Py_RETURN_NONE;
  if (target.scalar_type() != at::kLong || target.device() != student.device()) Py_RETURN_NONE;
  if (target.sizes() != student.sizes().slice(0, student.dim() - 1)) Py_RETURN_NONE;
  if (!unit(alpha) || !unit(label_smoothing)) Py_RETURN_NONE;
  if (reduction != "none" && reduction != "sum" && reduction != "mean") Py_RETURN_NONE;
  if (ignore_index && may_ignore(target, *ignore_index)) Py_RETURN_NONE;
  return wrapped_or_none(resolved<Tensor>(DistillationLoss::kForward, student, impl, [&](string_view chosen) {
    if (wants_grad(student))
      return DistillationLoss::apply(student, teacher, target, factors, reduction, chosen, impl);
    return std::get<0>(DistillationLoss::op(student, teacher, target, factors, reduction, chosen));
  }));
  END_HANDLE_TH_ERRORS
}

}  // namespace plantops::eager
