// A compiled kernel computes impl = "native" (and "auto" where it always wins) and hands every other impl to the Python
// kernel of the same op, which plantops/ops/_registry.py registers in the private namespace plantops_python.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

#include <string>

namespace plantops {

template <class Signature, class... Args>
auto call_python(const char* stem, Args&&... args) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow((std::string("plantops_python::") + stem).c_str(), "")
                      .template typed<Signature>();
  return op.call(std::forward<Args>(args)...);
}

}  // namespace plantops
