// compare in Python: one prompt on several devices.
#include <nlohmann/json.hpp>

#include "lens/compare.h"
#include "python/bind.h"

namespace lenscpp::python {
namespace {

py::list compare_rows(Ours<HookedTransformer> model, Ours<Tokens> prompt, std::int64_t answer,
                      std::int64_t wrong, const std::vector<std::string>& devices,
                      const std::vector<std::string>& dtypes,
                      const std::vector<std::tuple<std::string, std::string, std::string>>& prompts,
                      const py::list& faults) {
  CompareOptions options{.devices = devices};
  for (const std::string& name : dtypes) options.dtypes.push_back(dtype_from_name(name));
  for (const auto& [text, right, other] : prompts) options.prompts.push_back({text, right, other});
  for (py::handle fault : faults) {
    const auto* spec = held_by<FaultSpec>(fault);
    if (spec == nullptr) throw py::type_error("[faults] needed: a fault; found: " + kind_of(fault));
    options.faults.push_back(*spec);
  }
  std::vector<CompareRow> rows;
  {
    py::gil_scoped_release release;
    rows = compare(*model, *prompt, answer, wrong, options);
  }
  py::list list;
  for (CompareRow& row : rows) {
    nlohmann::json json = to_json(row, *model);
    json.erase("verdict");  // handed out as an object, which knows its status
    json.erase("status");
    py::object verdict = py::none();
    if (row.error.empty()) verdict = py::cast(std::move(row.verdict));
    list.append(py::make_tuple(to_python(json), verdict));
  }
  return list;
}

}  // namespace

void bind_compare(py::module_& m) {
  m.def("compare_rows", &compare_rows, py::arg("model"), py::arg("prompt"), py::arg("answer"),
        py::arg("wrong"), py::kw_only(), py::arg("devices"), py::arg("dtypes"), py::arg("prompts"),
        py::arg("faults"));
  m.def(
      "read_choice_prompts",
      [](const std::string& file) {
        py::list list;
        for (const ChoicePrompt& p : read_choice_prompts(file))
          list.append(py::make_tuple(p.text, p.answer, p.wrong));
        return list;
      },
      py::arg("file"));
}

}  // namespace lenscpp::python
