// One copy of the group_sparsity kernels; compiled once per instruction set. Loops without intrinsics are written so
// that the compiler vectorises them.
#include "group_sparsity_rows.h"

namespace plantops::PLANTOPS_ISA {
namespace {

// Calls body with the penalty's choices as constants.
template <class Body>
inline PLANTOPS_ALWAYS auto with_penalty(const Penalty& penalty, const Body& body) {
  const auto with_outer = [&](auto squares, auto inner) PLANTOPS_ALWAYS {
    using Inner = decltype(inner);
    using Squares = decltype(squares);
    switch (penalty.outer) {
      case Power::half: return body.template operator()<Squares::value, Inner::value, Power::half>();
      case Power::two: return body.template operator()<Squares::value, Inner::value, Power::two>();
      default: return body.template operator()<Squares::value, Inner::value, Power::one>();
    }
  };
  const auto with_inner = [&](auto squares) PLANTOPS_ALWAYS {
    switch (penalty.inner) {
      case Power::half: return with_outer(squares, std::integral_constant<Power, Power::half>());
      case Power::two: return with_outer(squares, std::integral_constant<Power, Power::two>());
      default: return with_outer(squares, std::integral_constant<Power, Power::one>());
    }
  };
  return penalty.squares ? with_inner(std::true_type()) : with_inner(std::false_type());
}

template <class T>
T factor_of(const GroupSparsityJob& job) {
  return T(job.strength * (job.penalty.squares ? 2.0 : 1.0));
}

template <class T>
int64_t row_values(const KernelBlock<T>& b) {
  return b.inputs * b.taps;
}

template <class T>
void gradient_row(const GroupSparsityJob& job, const KernelBlock<T>& b, int64_t o, T scale) {
  const T* w = b.weight + o * row_values(b);
  const T* coefficient = b.coefficient + o * b.inputs;
  T* out = b.gradient + o * row_values(b);
  const T l1 = T(scale * job.l1);
  if (job.penalty.squares)
    l1 != T(0) ? gradient_of_row<true, true>(b, w, coefficient, scale, l1, out)
               : gradient_of_row<true, false>(b, w, coefficient, scale, l1, out);
  else
    l1 != T(0) ? gradient_of_row<false, true>(b, w, coefficient, scale, l1, out)
               : gradient_of_row<false, false>(b, w, coefficient, scale, l1, out);
}

template <class T>
void gradient(const GroupSparsityJob& job, const KernelBlock<T>& b, T scale) {
  for (int64_t o = 0; o < b.outputs; ++o) gradient_row(job, b, o, scale);
  finish_streams();
}

// The norms of an output channel; returns its l1 term.
template <bool Squares, class T>
double norms(const GroupSparsityJob& job, const KernelBlock<T>& b, int64_t o) {
  const T* w = b.weight + o * row_values(b);
  const T* r = b.coefficient + o * b.inputs;
  norms_of_row<Squares>(b, w, b.coefficient + o * b.inputs);
  if (job.l1 == 0) return 0;
  const T sum = Squares ? ordered_sum<T>(row_values(b), [=](int64_t i) { return term<false>(w[i]); })
                        : ordered_sum<T>(b.inputs, [=](int64_t i) { return r[i]; });
  return job.l1 * double(sum);
}

template <class T>
double neuron(const GroupSparsityJob& job, const KernelBlock<T>& b) {
  return with_penalty(job.penalty, [&]<bool Squares, Power Inner, Power Outer>() {
    double value = 0, l1 = 0;
    for (int64_t o = 0; o < b.outputs; ++o) {
      l1 += norms<Squares>(job, b, o);
      T* r = b.coefficient + o * b.inputs;
      const T g = ordered_sum<T>(b.inputs, [=](int64_t i) { return raise<Inner>(r[i]); });
      value += raise<Outer>(g);
      const T factor = factor_of<T>(job) * slope<Outer>(g);
      for (int64_t i = 0; i < b.inputs; ++i) r[i] = factor * slope<Inner>(r[i]);
      if (b.gradient) gradient_row(job, b, o, T(1));
    }
    finish_streams();
    return job.strength * value + l1;
  });
}

template <class T>
double feature_norms(const GroupSparsityJob& job, const KernelBlock<T>& b, T* sums) {
  return with_penalty(job.penalty, [&]<bool Squares, Power Inner, Power Outer>() {
    double l1 = 0;
    for (int64_t i = 0; i < b.inputs; ++i) sums[i] = T(0);
    for (int64_t o = 0; o < b.outputs; ++o) {
      l1 += norms<Squares>(job, b, o);
      const T* r = b.coefficient + o * b.inputs;
      for (int64_t i = 0; i < b.inputs; ++i) sums[i] += raise<Inner>(r[i]);
    }
    return l1;
  });
}

template <class T>
double feature_groups(const GroupSparsityJob& job, int64_t inputs, int64_t blocks, T* sums) {
  return with_penalty(job.penalty, [&]<bool Squares, Power Inner, Power Outer>() {
    for (int64_t block = 1; block < blocks; ++block)
      for (int64_t i = 0; i < inputs; ++i) sums[i] += sums[block * inputs + i];
    double value = 0;
    for (int64_t i = 0; i < inputs; ++i) {
      value += raise<Outer>(sums[i]);
      sums[i] = factor_of<T>(job) * slope<Outer>(sums[i]);
    }
    return job.strength * value;
  });
}

template <class T>
void feature_finish(const GroupSparsityJob& job, const KernelBlock<T>& b, const T* factors) {
  with_penalty(job.penalty, [&]<bool Squares, Power Inner, Power Outer>() {
    for (int64_t o = 0; o < b.outputs; ++o) {
      T* r = b.coefficient + o * b.inputs;
      for (int64_t i = 0; i < b.inputs; ++i) r[i] = factors[i] * slope<Inner>(r[i]);
      if (b.gradient) gradient_row(job, b, o, T(1));
    }
    finish_streams();
  });
}

template <class T>
constexpr GroupSparsityKernels<T> kKernels = {
    neuron<T>, feature_norms<T>, feature_groups<T>, feature_finish<T>, gradient<T>};

}  // namespace

const GroupSparsityKernels<float>& group_sparsity_kernels(float) { return kKernels<float>; }
const GroupSparsityKernels<double>& group_sparsity_kernels(double) { return kKernels<double>; }

}  // namespace plantops::PLANTOPS_ISA
