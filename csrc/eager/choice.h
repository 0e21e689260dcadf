// What impl="auto" stands for: Python decides by its measured tables (`choice` of plantops/ops/_registry.py), once for
// each shape; the answers are remembered here.
#pragma once

#include <c10/util/Exception.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace plantops::eager {

// All that a decision depends on.
using CallShape = std::vector<int64_t>;

// The implementations whose calls are ordinary. ("reference" is not: it is there to be read.)
constexpr std::string_view kImpls[] = {"auto", "native", "aten", "triton"};
constexpr int64_t kAuto = 0, kAten = 2;
int64_t impl_index(std::string_view name);  // into kImpls; -1 for any other

// What "auto" stands for, an index into kImpls. `arguments` makes the op's arguments without `impl`; it is called with
// the interpreter's lock held, and only where the answer is not known yet.
int64_t resolve_auto(const char* stem, CallShape shape, const std::function<pybind11::tuple()>& arguments);

void remember_aten(const char* stem, CallShape shape);

bool is_not_implemented(const pybind11::error_already_set& error);

// compute(impl), or by ATen, from now on, where the chosen kernel refuses: the measurement was a neighbouring shape's.
// `shape` makes the call's shape, which holds all that a kernel may refuse.
template <class Shape, class Compute>
auto computed(int64_t impl, const char* stem, const Shape& shape, const Compute& compute) {
  if (impl == kAten) return compute(impl);
  try {
    return compute(impl);
  } catch (const c10::NotImplementedError&) {
  } catch (const pybind11::error_already_set& error) {  // of a kernel in Python
    if (!is_not_implemented(error)) throw;
  }
  remember_aten(stem, shape());
  return compute(kAten);
}

}  // namespace plantops::eager
