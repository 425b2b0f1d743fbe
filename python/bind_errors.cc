// Exceptions: three of ours, and the standard ones by what they mean in Python. Also the classes
// whose objects vouch for something: how they are sealed.
#include <c10/util/Exception.h>

#include <system_error>

#include "patching/patch_grid.h"
#include "python/bind.h"

namespace lenscpp::python {
namespace {

// Classes that live as long as the process: the translator may run while the module is torn down.
PyObject *verification_failed = nullptr, *not_verified = nullptr, *device_error = nullptr;

constexpr const char* kVerificationFailed =
    R"(The run was INVALID: what the device computed is not the model. A RuntimeError.

Attributes: verdict (Verdict), record (dict), unverified_cache (UnverifiedCache: what was computed, for
looking at what went wrong; no analysis takes it), partial (None; from a grid, what was not refused).
After pickling only the message is left.)";
constexpr const char* kNotVerified =
    R"(An analysis was handed something else than a VerifiedCache, or bytes no longer are those that were
verified. A TypeError.)";
constexpr const char* kDeviceError =
    "The device is unknown, missing, or out of its limits. A RuntimeError.";

PyObject* add_exception(py::module_& m, const char* name, const char* doc, PyObject* base,
                        const py::dict& attributes) {
  PyObject* type = PyErr_NewExceptionWithDoc((std::string("lenscpp.") + name).c_str(), doc, base,
                                             attributes.ptr());
  if (type == nullptr) throw py::error_already_set();
  m.add_object(name, py::reinterpret_borrow<py::object>(type));
  return type;
}

void raise(const VerificationFailed& error) {
  py::object raised = py::reinterpret_borrow<py::object>(verification_failed)(error.what());
  raised.attr("verdict") = py::cast(error.verdict());
  raised.attr("record") = to_python(to_json(error.record()));
  raised.attr("unverified_cache") =
      py::cast(HeldUnverified{std::make_shared<const UnverifiedCache>(error.unverified_cache()),
                              std::nullopt, std::nullopt});
  if (const auto* of_grid = dynamic_cast<const GridFailed*>(&error))
    raised.attr("partial") =
        py::module_::import("lenscpp._grid").attr("GridResult")(py::cast(of_grid->partial()));
  PyErr_SetObject(verification_failed, raised.ptr());
}

// OSError makes itself FileNotFoundError, PermissionError, ... from the number.
void raise(const std::system_error& error) {
  bool has_errno = error.code().category() == std::generic_category() ||
                   error.code().category() == std::system_category();
  py::object arguments = has_errno ? py::object(py::make_tuple(error.code().value(), error.what()))
                                   : py::object(py::str(error.what()));
  PyErr_SetObject(PyExc_OSError, arguments.ptr());
}

void translate(std::exception_ptr pointer) {
  try {
    if (pointer) std::rethrow_exception(pointer);
  } catch (const VerificationFailed& error) {
    raise(error);
  } catch (const NotVerified& error) {
    PyErr_SetString(not_verified, error.what());
  } catch (const DeviceError& error) {
    PyErr_SetString(device_error, error.what());
  } catch (const std::system_error& error) {
    raise(error);
  } catch (const c10::OutOfMemoryError& error) {
    PyErr_SetString(device_error, error.what_without_backtrace());
  } catch (const c10::IndexError& error) {
    PyErr_SetString(PyExc_IndexError, error.what_without_backtrace());
  } catch (const c10::ValueError& error) {
    PyErr_SetString(PyExc_ValueError, error.what_without_backtrace());
  } catch (const c10::TypeError& error) {
    PyErr_SetString(PyExc_TypeError, error.what_without_backtrace());
  } catch (const c10::Error& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what_without_backtrace());
  }
}

}  // namespace

void bind_errors(py::module_& m) {
  py::dict attributes;
  for (const char* name : {"verdict", "record", "unverified_cache", "partial"})
    attributes[name] = py::none();
  verification_failed =
      add_exception(m, "VerificationFailed", kVerificationFailed, PyExc_RuntimeError, attributes);
  // A worker process reports a refusal instead of failing to pickle what it was about.
  py::setattr(
      verification_failed, "__reduce__",
      py::cpp_function(
          [](py::handle self) { return py::make_tuple(py::type::of(self), self.attr("args")); },
          py::is_method(py::handle(verification_failed)), py::name("__reduce__")));
  not_verified = add_exception(m, "NotVerified", kNotVerified, PyExc_TypeError, py::dict());
  device_error = add_exception(m, "DeviceError", kDeviceError, PyExc_RuntimeError, py::dict());
  py::register_local_exception_translator(&translate);
}

std::string kind_of(py::handle object) {
  py::handle type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  std::string module = py::str(py::getattr(type, "__module__", py::str("builtins")));
  std::string name = py::str(type.attr("__qualname__"));
  if (object.is_none()) return "None";
  return "an object of " + (module == "builtins" ? name : module + "." + name);
}

void freeze(py::handle type) {
  py::setattr(type, "__module__", py::str("lenscpp"));
  auto* raw = reinterpret_cast<PyTypeObject*>(type.ptr());
  raw->tp_flags |= Py_TPFLAGS_IMMUTABLETYPE;
  PyType_Modified(raw);
}

void seal(py::handle type, const std::string& why) {
  std::string name = py::str(type.attr("__name__"));
  auto refuse = [&](const char* method, const std::string& message) {
    py::setattr(type, method,
                py::cpp_function([message](const py::args&, const py::kwargs&)
                                     -> py::object { throw py::type_error(message); },
                                 py::is_method(type), py::name(method), py::doc(message.c_str())));
  };
  refuse("__reduce_ex__", "a " + name + " cannot be pickled" + why);
  refuse("__reduce__", "a " + name + " cannot be pickled" + why);
  auto itself = [&](const char* method) {
    py::setattr(type, method,
                py::cpp_function([](const py::object& self, const py::args&) { return self; },
                                 py::is_method(type), py::name(method),
                                 py::doc("Itself: it is immutable.")));
  };
  itself("__copy__");
  itself("__deepcopy__");
  std::string none = "a " + name + " is made by lenscpp alone";
  py::object raiser = py::cpp_function(
      [none](const py::args&, const py::kwargs&) -> py::object { throw py::type_error(none); },
      py::name("__new__"));
  py::setattr(type, "__new__", py::module_::import("builtins").attr("staticmethod")(raiser));
  freeze(type);
}

}  // namespace lenscpp::python
