#include "choice.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "arguments.h"

namespace plantops::eager {
namespace {

using Known = std::map<std::pair<std::string_view, CallShape>, bool>;

constexpr size_t kMost = 4096;  // someone whose images have a new size every time starts again
std::mutex lock;
Known known;

void remember(const char* stem, CallShape shape, bool native) {
  const std::lock_guard<std::mutex> guard(lock);
  if (known.size() >= kMost) known.clear();
  known.insert_or_assign({stem, std::move(shape)}, native);
}

}  // namespace

bool auto_is_native(const char* stem, CallShape shape, const std::function<pybind11::tuple()>& arguments) {
  const Known::key_type key{stem, std::move(shape)};
  {
    const std::lock_guard<std::mutex> guard(lock);
    if (const auto found = known.find(key); found != known.end()) return found->second;
  }
  const pybind11::gil_scoped_acquire interpreter;
  const auto choice = pybind11::module_::import("plantops.ops._registry").attr("choice");
  const bool native = choice(stem, *arguments()).cast<std::string>() == "native";
  remember(stem, key.second, native);
  return native;
}

void remember_not_native(const char* stem, CallShape shape) { remember(stem, std::move(shape), false); }

PyObject* forget_choices(PyObject*, PyObject*) {
  const std::lock_guard<std::mutex> guard(lock);
  known.clear();
  Py_RETURN_NONE;
}

}  // namespace plantops::eager
