// What the bindings share: how arrays, JSON and errors cross into Python, and how an object of ours
// is told from one that only looks like it. No logic of the library lives in this folder.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "hooks/array.h"
#include "hooks/tokenizer/tokenizer.h"
#include "hooks/transformer/tap.h"
#include "verify/verified_cache.h"

namespace lenscpp::python {

namespace py = pybind11;

void bind_hooks(py::module_& m);
void bind_verify(py::module_& m);
void bind_lens(py::module_& m);
void bind_simulated(py::module_& m);
void bind_compare(py::module_& m);
void bind_preflight(py::module_& m);
void bind_drill(py::module_& m);
void bind_patching(py::module_& m);
void bind_batch(py::module_& m);
void bind_attribution(py::module_& m);
void bind_errors(py::module_& m);
void bind_store(py::module_& m);

/// Which positions were kept, where not all were.
using Positions = std::optional<std::vector<std::int64_t>>;

/// What lenscpp.VerifiedCache holds: a verified cache, and what its tokens mean.
struct HeldVerified {
  VerifiedCache cache;
  std::optional<Tokenizer> tokenizer;
  Positions positions;
  std::vector<std::string> strings = {};  // of the tokens, where a file said them
};
/// What lenscpp.UnverifiedCache holds.
struct HeldUnverified {
  std::shared_ptr<const UnverifiedCache> cache;
  std::optional<Tokenizer> tokenizer;
  Positions positions;
  std::vector<std::string> strings = {};
};

/// cache.save(path) (bind_store.cc).
void save(const HeldVerified& held, const std::filesystem::path& path);
void save(const HeldUnverified& held, const std::filesystem::path& path);
/// A str, bytes or os.PathLike as a path. Throws py::error_already_set (TypeError, ValueError).
std::filesystem::path to_path(py::handle object);

/// `inner`, and Ctrl-C heard between two tensors, at most every 50 ms (bind_patching.cc).
Interference heard(Interference inner);

// --- tensors (bind_tensors.cc) ---

/// A torch.Tensor on the CPU of the caller's own: a copy that no dispatch mode sees. Needs the GIL.
py::object to_python(const Array& array);
bool is_tensor(py::handle object);
/// A host copy of a torch.Tensor, whatever its device and strides; later writes to the tensor do
/// not reach it. Throws py::type_error naming `what` for anything else, std::invalid_argument for
/// its dtype.
Array to_array(py::handle tensor, std::string_view what);
/// The same for token ids: any integer dtype, widened to int64.
Array to_ids(py::handle tensor, std::string_view what);

// --- JSON ---

py::object to_python(const nlohmann::json& json);

// --- objects of ours ---

/// "a str", "a lenscpp.UnverifiedCache", "a numpy.ndarray": never the value itself, which may be
/// huge.
std::string kind_of(py::handle object);

/// The T inside `object`, or null when that is not of exactly the class bound to T, or was made
/// without its constructor (pybind11 would hand out uninitialised memory).
template <class T>
T* held_by(py::handle object) {
  const auto* info = py::detail::get_type_info(typeid(T));
  if (info == nullptr || !object || Py_TYPE(object.ptr()) != info->type) return nullptr;
  auto holder = reinterpret_cast<py::detail::instance*>(object.ptr())->get_value_and_holder(info);
  if (holder.value_ptr() == nullptr || !holder.holder_constructed()) return nullptr;
  return holder.value_ptr<T>();
}

/// An argument of a class of ours, checked by held_by.
template <class T>
struct Ours {
  const T* object = nullptr;
  const T& operator*() const { return *object; }
  const T* operator->() const { return object; }
};
/// The argument of an analysis: whatever is not a VerifiedCache is refused with NotVerified.
struct Analysed {
  const HeldVerified* held = nullptr;
  const HeldVerified& operator*() const { return *held; }
  const HeldVerified* operator->() const { return held; }
};

/// Adds the analyses that are methods of caches, before these are sealed: an unverified one refuses
/// them all.
void bind_analyses(py::class_<HeldVerified>& cache);
void bind_analyses(py::class_<HeldUnverified>& cache);

/// Makes a class immutable, so that no object of another class becomes one of it by assignment to
/// __class__: all of ours have one layout. Call it last.
void freeze(py::handle type);
/// freeze() for a class whose objects this library alone makes: no __new__, no pickles (`why` ends
/// the refusal), and copies that are the object itself.
void seal(py::handle type, const std::string& why);

}  // namespace lenscpp::python

namespace pybind11::detail {

template <class T>
struct type_caster<lenscpp::python::Ours<T>> {
  PYBIND11_TYPE_CASTER(lenscpp::python::Ours<T>, const_name<T>());
  bool load(handle source, bool) {
    value.object = lenscpp::python::held_by<T>(source);
    if (value.object != nullptr) return true;
    const auto* info = get_type_info(typeid(T));
    throw type_error(
        "needed: a " +
        std::string(str(handle(reinterpret_cast<PyObject*>(info->type)).attr("__qualname__"))) +
        " that this library made; found: " + lenscpp::python::kind_of(source));
  }
};

template <>
struct type_caster<lenscpp::python::Analysed> {
  PYBIND11_TYPE_CASTER(lenscpp::python::Analysed, const_name<lenscpp::python::HeldVerified>());
  bool load(handle source, bool) {
    value.held = lenscpp::python::held_by<lenscpp::python::HeldVerified>(source);
    if (value.held == nullptr)
      throw lenscpp::NotVerified(
          "needed: a VerifiedCache, as run_with_cache and verify_recorded return; found: " +
          lenscpp::python::kind_of(source));
    return true;
  }
};

}  // namespace pybind11::detail
