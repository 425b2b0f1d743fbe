// The extension module lenscpp._lenscpp. Users import lenscpp, which adapts it.
#include "hooks/build_info.h"
#include "python/bind.h"

PYBIND11_MODULE(_lenscpp, m) {
  m.doc() = "The C++ side of lenscpp. Import lenscpp instead.";
  m.attr("__version__") = std::string(lenscpp::lenscpp_version());
  lenscpp::python::bind_errors(m);
  lenscpp::python::bind_hooks(m);
  lenscpp::python::bind_verify(m);
  lenscpp::python::bind_store(m);
  lenscpp::python::bind_lens(m);
  lenscpp::python::bind_simulated(m);
  lenscpp::python::bind_compare(m);
  lenscpp::python::bind_preflight(m);
  lenscpp::python::bind_drill(m);
  lenscpp::python::bind_patching(m);
  lenscpp::python::bind_batch(m);
  lenscpp::python::bind_attribution(m);
}
