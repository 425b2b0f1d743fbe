// The simulated device in Python: loading it, its limits, what it saw.
#include <nlohmann/json.hpp>

#include "python/bind.h"
#include "verify/device/simulated.h"

namespace lenscpp::python {

void bind_simulated(py::module_& m) {
  m.def("simulated_load", [] { simulated_device(); });
  m.def("simulated_limits", [] { return to_json(*simulated_device().limits()).dump(); });
  m.def(
      "simulated_set_limits",
      [](const std::string& json) {
        auto object = nlohmann::json::parse(json);
        simulated_device().set_limits(simulated_limits_from_json(object));
      },
      py::arg("json"));
  m.def("simulated_violations", [] { return simulated_device().violations(); });
  m.def("simulated_calls", [] { return simulated_device().calls(); });
}

}  // namespace lenscpp::python
