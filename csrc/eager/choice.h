// What impl="auto" stands for: Python decides by its measured tables (`choice` of plantops/ops/_registry.py), once for
// each shape; the answers are remembered here.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <string_view>
#include <vector>

namespace plantops::eager {

// All that a decision depends on.
using CallShape = std::vector<int64_t>;

// Whether "auto" stands for the compiled kernel of this op. `arguments` makes the op's arguments without `impl`; it is
// called with the interpreter's lock held, and only where the answer is not known yet.
bool auto_is_native(const char* stem, CallShape shape, const std::function<pybind11::tuple()>& arguments);

// For a call that the compiled kernel refused although a neighbouring shape's measurement had chosen it.
void remember_not_native(const char* stem, CallShape shape);

}  // namespace plantops::eager
