// Preflight in Python: of a folder or of a loaded model.
#include "lens/preflight.h"

#include <nlohmann/json.hpp>

#include "python/bind.h"

namespace lenscpp::python {
namespace {

PreflightOptions options_from(const std::string& device, const std::string& dtype,
                              const std::string& verify, std::int64_t batch,
                              std::optional<std::int64_t> length,
                              std::optional<std::vector<std::string>> names,
                              const std::map<std::string, bool>& processing) {
  PreflightOptions options{.load = {.device = device, .dtype = dtype_from_name(dtype)},
                           .verify = verify_mode_from_name(verify),
                           .batch = batch,
                           .pos = length,
                           .names = std::move(names)};
  options.load.processing = {processing.at("fold_ln"), processing.at("center_writing_weights"),
                             processing.at("center_unembed"), processing.at("fold_value_biases")};
  return options;
}

py::tuple answer(const Preflight& found) {
  return py::make_tuple(to_python(to_json(found)), in_words(found));
}

}  // namespace

void bind_preflight(py::module_& m) {
  m.def(
      "preflight_folder",
      [](const std::string& folder, const std::string& device, const std::string& dtype,
         const std::string& verify, std::int64_t batch, std::optional<std::int64_t> length,
         std::optional<std::vector<std::string>> names,
         const std::map<std::string, bool>& processing, std::optional<std::string> adapter) {
        PreflightOptions options =
            options_from(device, dtype, verify, batch, length, std::move(names), processing);
        if (adapter) options.load.adapter = *adapter;
        return answer(preflight(std::filesystem::path(folder), options));
      },
      py::arg("folder"), py::kw_only(), py::arg("device"), py::arg("dtype"), py::arg("verify"),
      py::arg("batch"), py::arg("length"), py::arg("names"), py::arg("processing"),
      py::arg("adapter"));
  m.def(
      "preflight_model",
      [](Ours<HookedTransformer> model, const std::string& device, const std::string& dtype,
         const std::string& verify, std::int64_t batch, std::optional<std::int64_t> length,
         std::optional<std::vector<std::string>> names) {
        return answer(preflight(*model,
                                {.verify = verify_mode_from_name(verify),
                                 .batch = batch,
                                 .pos = length,
                                 .names = std::move(names)},
                                Elsewhere{device, dtype_from_name(dtype)}));
      },
      py::arg("model"), py::kw_only(), py::arg("device"), py::arg("dtype"), py::arg("verify"),
      py::arg("batch"), py::arg("length"), py::arg("names"));
}

}  // namespace lenscpp::python
