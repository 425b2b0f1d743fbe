// patching/ in Python: metrics, grids. Everything that computes or checks lets go of the GIL.
#include <chrono>
#include <nlohmann/json.hpp>

#include "lens/fault_injection.h"
#include "patching/grid_file.h"
#include "python/bind.h"

namespace lenscpp::python {
namespace {

// --- metrics ---

// A Python function as a metric. Called with the GIL on a tensor of the caller's own, in the
// model's dtype (the float64 run's logits as float32 unless the model is in float64, so that the
// function may hold constants of its own dtype).
Metric metric_of_function(const py::function& function) {
  std::shared_ptr<py::function> held(new py::function(function), [](py::function* f) {
    py::gil_scoped_acquire gil;
    delete f;
  });
  auto dtype = std::make_shared<std::optional<DType>>();
  auto values = [held, dtype](const Array& logits) {
    if (!*dtype) *dtype = logits.dtype();  // the first call is for the clean run
    DType told =
        logits.dtype() == DType::f64 && **dtype != DType::f64 ? DType::f32 : logits.dtype();
    py::gil_scoped_acquire gil;
    py::object result = (*held)(to_python(logits.to(told)));
    if (!is_tensor(result)) {
      if (!PyFloat_Check(result.ptr()) && !PyLong_Check(result.ptr()) &&
          !PyObject_HasAttrString(result.ptr(), "__float__"))
        throw py::type_error(
            "[metric] the function must return a number, or a tensor of one or of one a prompt; "
            "found: " +
            kind_of(result));
      return std::vector<double>{py::float_(result).cast<double>()};
    }
    py::object flat = result.attr("detach")().attr("double")().attr("cpu")();
    Array array = to_array(flat, "[metric] what the function returned");
    if (array.rank() > 1)
      throw std::invalid_argument("[metric] the function returned a tensor of shape " +
                                  to_string(array.shape()) + "; allowed: [] and [batch]");
    return array.to_doubles();
  };
  return Metric(
      std::move(values),
      {{"metric", "function"},
       {"name", py::str(py::getattr(function, "__name__", py::str("?"))).cast<std::string>()}});
}

void bind_metric(py::module_& m) {
  using Ids = std::vector<std::int64_t>;
  auto metric =
      py::class_<Metric>(m, "Metric", py::is_final(),
                         "What a run is scored by: made by lenscpp.LogitDiff and others.");
  metric
      .def_static(
          "logit_diff",
          [](const Ids& answer, const Ids& wrong, std::int64_t pos) {
            return Metric(LogitDiff{answer, wrong, pos});
          },
          py::arg("answer"), py::arg("wrong"), py::arg("pos"))
      .def_static(
          "prob",
          [](const Ids& token, std::int64_t pos) {
            return Metric(Prob{token, pos});
          },
          py::arg("token"), py::arg("pos"))
      .def_static(
          "log_prob",
          [](const Ids& token, std::int64_t pos) {
            return Metric(LogProb{token, pos});
          },
          py::arg("token"), py::arg("pos"))
      .def_static(
          "prob_diff",
          [](const std::vector<Ids>& answers, const std::vector<Ids>& wrong, std::int64_t pos) {
            return Metric(ProbDiff{answers, wrong, pos});
          },
          py::arg("answers"), py::arg("wrong"), py::arg("pos"))
      .def_static(
          "kl",
          [](const py::object& reference, std::int64_t pos) {
            return Metric(KL{to_array(reference, "[metric] reference logits"), pos});
          },
          py::arg("reference"), py::arg("pos"))
      .def_static(
          "loss", [](const Ids& tokens) { return Metric(Loss{tokens}); }, py::arg("tokens"))
      .def_static("function", &metric_of_function, py::arg("function"))
      .def(
          "values",
          [](Ours<Metric> self, const py::object& logits) {
            Array array = to_array(logits, "[metric] logits");
            std::vector<double> values;
            {
              py::gil_scoped_release release;
              values = self->values(array);
            }
            return to_python(Array::of(std::span<const double>(values),
                                       {static_cast<std::int64_t>(values.size())}));
          },
          py::arg("logits"))
      .def_property_readonly("description",
                             [](Ours<Metric> self) { return to_python(self->description()); });
  seal(metric, "");
}

// --- grids ---

py::list labels_of(const GridResult& grid) {
  py::list axes;
  for (const GridAxis& axis : grid.axes())
    axes.append(py::make_tuple(std::string(name_of(axis.axis)), axis.labels));
  return axes;
}

void bind_grid_verdict(py::module_& m) {
  auto verdict = py::class_<GridVerdict>(m, "GridVerdict", py::is_final(),
                                         "What the checks of all runs of a grid came to.");
  verdict
      .def_property_readonly(
          "status", [](Ours<GridVerdict> self) { return std::string(name_of(self->status)); },
          "\"VERIFIED\" (every run passed), \"INVALID\" (some were refused) or \"UNVERIFIED\".")
      .def_property_readonly(
          "mode", [](Ours<GridVerdict> self) { return std::string(name_of(self->mode)); },
          "How the patched runs were checked: \"checksum\", \"exact\" or \"off\".")
      .def_property_readonly(
          "cells", [](Ours<GridVerdict> self) { return self->cells; }, "Patches asked for.")
      .def_property_readonly(
          "runs", [](Ours<GridVerdict> self) { return self->runs; }, "Runs made for them.")
      .def_property_readonly(
          "equal_cells", [](Ours<GridVerdict> self) { return self->equal_cells; },
          "Patches that change nothing that the metric reads: the base run's metric, without a "
          "run.")
      .def_property_readonly(
          "refused_runs", [](Ours<GridVerdict> self) { return self->refused_runs; },
          "Runs that were INVALID.")
      .def_property_readonly(
          "refused_cells", [](Ours<GridVerdict> self) { return self->refused_cells; },
          "list[int]: cells without a value, as flat indices.")
      .def_property_readonly(
          "n_compared", [](Ours<GridVerdict> self) { return self->n_compared; },
          "Elements compared with the reference, in runs that passed.")
      .def_property_readonly(
          "n_projected", [](Ours<GridVerdict> self) { return self->n_projected; },
          "Elements more that were checked by checksums of their rows alone.")
      .def_property_readonly(
          "worst_ratio", [](Ours<GridVerdict> self) { return self->worst_ratio; },
          "Largest error over its bound, in runs that passed.")
      .def_property_readonly(
          "worst_name", [](Ours<GridVerdict> self) { return self->worst_name; }, "Where that is.")
      .def_property_readonly(
          "seconds", [](Ours<GridVerdict> self) { return self->seconds; }, "Spent checking.")
      .def_property_readonly(
          "first_failure", [](Ours<GridVerdict> self) { return self->first_failure; },
          "Of the first refused run: what, where, how bad; else empty.")
      .def_property_readonly(
          "summary", [](Ours<GridVerdict> self) { return self->summary(); }, "One line.")
      .def(
          "to_dict", [](Ours<GridVerdict> self) { return to_python(to_json(*self)); },
          "All of it, fit for JSON.")
      .def("__str__", [](Ours<GridVerdict> self) { return self->summary(); })
      .def("__repr__",
           [](Ours<GridVerdict> self) { return "<GridVerdict " + self->summary() + ">"; });
  seal(verdict, "; use to_dict()");
}

void bind_grid(py::module_& m) {
  auto grid = py::class_<GridResult>(
      m, "Grid", py::is_final(), "What patch_grid returns, before lenscpp.GridResult dresses it.");
  grid.def_property_readonly("site", [](Ours<GridResult> self) { return short_name(self->site()); })
      .def_property_readonly(
          "direction",
          [](Ours<GridResult> self) { return std::string(name_of(self->direction())); })
      .def_property_readonly("axes", [](Ours<GridResult> self) { return labels_of(*self); })
      .def("values", [](Ours<GridResult> self) { return to_python(self->values()); })
      .def("values_of_prompts",
           [](Ours<GridResult> self) { return to_python(self->values_of_prompts()); })
      .def("normalized",
           [](Ours<GridResult> self) {
             std::optional<Array> scaled;
             {
               py::gil_scoped_release release;
               scaled = self->normalized();
             }
             return to_python(*scaled);
           })
      .def_property_readonly("clean", [](Ours<GridResult> self) { return self->clean(); })
      .def_property_readonly("corrupted", [](Ours<GridResult> self) { return self->corrupted(); })
      .def_property_readonly("error_bar",
                             [](Ours<GridResult> self) {
                               py::gil_scoped_release release;
                               return self->error_bar();
                             })
      .def_property_readonly("metric",
                             [](Ours<GridResult> self) { return to_python(self->metric()); })
      .def_property_readonly(
          "clean_record",
          [](Ours<GridResult> self) { return to_python(to_json(self->clean_record())); })
      .def_property_readonly(
          "corrupted_record",
          [](Ours<GridResult> self) { return to_python(to_json(self->corrupted_record())); })
      .def_property_readonly("verdict", [](Ours<GridResult> self) { return self->verdict(); });
  grid.def(
      "save",
      [](Ours<GridResult> self, const py::object& path) {
        std::filesystem::path file = to_path(path);
        py::gil_scoped_release release;
        save_grid(file, *self);
      },
      py::arg("path"));
  for (auto [name, load] : {std::pair{"load_grid", &load_grid},
                            std::pair{"load_grid_unverified", &load_grid_unverified}})
    m.def(
        name,
        [load = load](const py::object& path) {
          std::filesystem::path file = to_path(path);
          py::gil_scoped_release release;
          return load(file);
        },
        py::arg("path"));
  seal(grid, ": save it to a file");
}

GridOptions options_from(const HookedTransformer& model, const py::kwargs& call) {
  auto given = [&](const char* key) { return call.contains(key) && !call[key].is_none(); };
  GridOptions options{.site = grid_site(call["site"].cast<std::string>(), model.config()),
                      .over = {}};
  for (const auto& name : call["over"].cast<std::vector<std::string>>())
    options.over.push_back(grid_axis(options.site, name));
  options.direction = direction_from_name(call["direction"].cast<std::string>());
  if (given("verify")) options.verify = verify_mode_from_name(call["verify"].cast<std::string>());
  if (!call["savings"].cast<bool>())
    options.savings = {
        .layers = false, .rows = false, .positions = false, .equal = false, .output = false};
  if (given("positions")) options.positions = call["positions"].cast<std::vector<std::int64_t>>();
  if (given("max_cells")) options.max_cells = call["max_cells"].cast<std::int64_t>();
  if (given("progress")) {
    options.progress = [progress = call["progress"]](std::int64_t done, std::int64_t cells) {
      py::gil_scoped_acquire gil;
      progress(done, cells);
    };
  }
  return options;
}

GridResult sweep(Ours<HookedTransformer> model, Ours<HeldVerified> clean,
                 const py::object& corrupted, Ours<Metric> metric, const py::kwargs& call) {
  const auto* tokens = held_by<Tokens>(corrupted);
  const auto* cache = held_by<HeldVerified>(corrupted);
  if (tokens == nullptr && cache == nullptr)
    throw NotVerified("[patch_grid] corrupted: needed: tokens or a VerifiedCache; found: " +
                      kind_of(corrupted));
  GridOptions options = options_from(*model, call);
  std::vector<FaultSpec> specs;
  for (py::handle fault : call["faults"]) specs.push_back(*fault.cast<Ours<FaultSpec>>());
  InjectedFaults injected(specs, model->config());
  options.interference = heard(injected.interference());
  options.device_faults = injected.device_faults();
  auto report = [&] {
    for (const auto& f : injected.log({}))
      call["fired"].attr("append")(py::make_tuple(f.fault, f.name, f.changed));
  };
  try {
    std::optional<GridResult> grid;
    {
      py::gil_scoped_release release;
      grid = tokens != nullptr ? patch_grid(*model, clean->cache, *tokens, options, *metric)
                               : patch_grid(*model, clean->cache, cache->cache, options, *metric);
    }
    report();
    return std::move(*grid);
  } catch (...) {
    report();
    throw;
  }
}

}  // namespace

Interference heard(Interference inner) {
  auto last = std::make_shared<std::chrono::steady_clock::time_point>();
  return [inner = std::move(inner), last](const TensorId& id, const at::Tensor& x) {
    if (auto now = std::chrono::steady_clock::now(); now - *last > std::chrono::milliseconds(50)) {
      *last = now;
      py::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    return inner ? inner(id, x) : x;
  };
}

void bind_patching(py::module_& m) {
  bind_metric(m);
  bind_grid_verdict(m);
  bind_grid(m);
  m.def(
      "grid_hooks",
      [](Ours<HookedTransformer> model, const std::string& site) {
        return grid_hooks(grid_site(site, model->config()), model->config());
      },
      py::arg("model"), py::arg("site"));
  m.def("patch_grid", &sweep, py::arg("model"), py::arg("clean"), py::arg("corrupted"),
        py::arg("metric"));
}

}  // namespace lenscpp::python
