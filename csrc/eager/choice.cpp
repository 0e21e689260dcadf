#include "choice.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "arguments.h"

namespace plantops::eager {
namespace {

using Known = std::map<std::pair<std::string_view, CallShape>, int64_t>;

constexpr size_t kMost = 4096;  // someone whose images have a new size every time starts again
std::mutex lock;
Known known;

void remember(const char* stem, CallShape shape, int64_t impl) {
  const std::lock_guard<std::mutex> guard(lock);
  if (known.size() >= kMost) known.clear();
  known.insert_or_assign({stem, std::move(shape)}, impl);
}

}  // namespace

int64_t impl_index(std::string_view name) {
  const auto found = std::find(std::begin(kImpls), std::end(kImpls), name);
  return found == std::end(kImpls) ? -1 : found - std::begin(kImpls);
}

int64_t resolve_auto(const char* stem, CallShape shape, const std::function<pybind11::tuple()>& arguments) {
  const Known::key_type key{stem, std::move(shape)};
  {
    const std::lock_guard<std::mutex> guard(lock);
    if (const auto found = known.find(key); found != known.end()) return found->second;
  }
  const pybind11::gil_scoped_acquire interpreter;
  const auto choice = pybind11::module_::import("plantops.ops._registry").attr("choice");
  const int64_t named = impl_index(choice(stem, *arguments()).cast<std::string>());
  const int64_t impl = named > kAuto ? named : kAten;
  remember(stem, key.second, impl);
  return impl;
}

void remember_aten(const char* stem, CallShape shape) { remember(stem, std::move(shape), kAten); }

bool is_not_implemented(const pybind11::error_already_set& error) {
  const pybind11::gil_scoped_acquire interpreter;
  return error.matches(PyExc_NotImplementedError);
}

PyObject* forget_choices(PyObject*, PyObject*) {
  const std::lock_guard<std::mutex> guard(lock);
  known.clear();
  Py_RETURN_NONE;
}

}  // namespace plantops::eager
