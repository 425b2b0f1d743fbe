// The drill in Python: its report as a document and a table.
#include <nlohmann/json.hpp>

#include "lens/drill.h"
#include "python/bind.h"

namespace lenscpp::python {
namespace {

py::tuple drill_report(Ours<HookedTransformer> model, const py::list& faults,
                       const std::vector<std::string>& sites,
                       const std::vector<std::int64_t>& layers, const std::string& verify,
                       const std::vector<std::string>& dtypes,
                       const std::vector<std::int64_t>& batches,
                       const std::vector<std::int64_t>& lengths, std::optional<std::int64_t> sample,
                       std::uint64_t seed) {
  DrillOptions options{.sites = sites,
                       .layers = layers,
                       .verify = verify_mode_from_name(verify),
                       .dtypes = {},
                       .batches = batches,
                       .lengths = lengths,
                       .sample = sample,
                       .seed = seed};
  for (const std::string& name : dtypes) options.dtypes.push_back(dtype_from_name(name));
  for (py::handle fault : faults) {
    const auto* spec = held_by<FaultSpec>(fault);
    if (spec == nullptr) throw py::type_error("[drill] needed: a fault; found: " + kind_of(fault));
    options.faults.push_back(*spec);
  }
  // Ctrl-C is heard between two runs.
  options.progress = [](std::int64_t, std::int64_t) {
    py::gil_scoped_acquire gil;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
  };
  DrillReport report;
  {
    py::gil_scoped_release release;
    report = drill(*model, options);
  }
  return py::make_tuple(to_python(to_json(report)), report.table());
}

}  // namespace

void bind_drill(py::module_& m) {
  m.def("drill_report", &drill_report, py::arg("model"), py::kw_only(), py::arg("faults"),
        py::arg("sites"), py::arg("layers"), py::arg("verify"), py::arg("dtypes"),
        py::arg("batches"), py::arg("lengths"), py::arg("sample"), py::arg("seed"));
}

}  // namespace lenscpp::python
