// Batches of experiments in Python. Plans and reports cross as JSON, values as tensors.
#include <nlohmann/json.hpp>

#include "hooks/checkpoint/json.h"
#include "lens/fault_injection.h"
#include "patching/batch_folder.h"
#include "patching/merged_file.h"
#include "patching/tasks.h"
#include "python/bind.h"

namespace lenscpp::python {
namespace {

using nlohmann::json;

std::vector<Experiment> experiments_from(const std::string& text) {
  std::vector<Experiment> experiments;
  json list = parse_json(text, "[experiments]");
  for (std::size_t i = 0; i < list.size(); ++i)
    experiments.push_back(experiment_from_json(list[i], "experiment " + std::to_string(i)));
  return experiments;
}

// Of a dict that lenscpp._batch made: every key is there.
BatchOptions options_from(const py::dict& given) {
  auto set = [&](const char* key) { return !given[key].is_none(); };
  BatchOptions o{.direction = direction_from_name(given["direction"].cast<std::string>()),
                 .block = given["block"].cast<std::int64_t>(),
                 .least_difference = given["least_difference"].cast<double>(),
                 .keep_wrong = given["keep_wrong"].cast<bool>()};
  if (set("verify")) o.verify = verify_mode_from_name(given["verify"].cast<std::string>());
  if (set("prepend_bos")) o.tokenize.prepend_bos = given["prepend_bos"].cast<bool>();
  o.tokenize.sites.clear();
  for (const auto& [site, over] :
       given["sites"].cast<std::vector<std::pair<std::string, std::vector<std::string>>>>())
    o.tokenize.sites.push_back({site, over});
  return o;
}

// Faults of lenscpp.faults.inject, and Ctrl-C, in every run of a batch.
struct Armed {
  Armed(const py::list& faults, const Config& config) : injected(specs(faults), config) {
    for (py::handle fault : faults) names.push_back(py::repr(fault).cast<std::string>());
  }
  static std::vector<FaultSpec> specs(const py::list& faults) {
    std::vector<FaultSpec> all;
    for (py::handle fault : faults) all.push_back(*fault.cast<Ours<FaultSpec>>());
    return all;
  }
  void arm(BatchOptions& o) const {
    o.interference = heard(injected.interference());
    o.device_faults = injected.device_faults();
    o.injected = names;
  }
  InjectedFaults injected;
  std::vector<std::string> names;
};

json plan_json(const Batch& batch, const std::filesystem::path& folder) {
  json plan = read_plan(folder);
  BatchFolder there(folder, batch, true);
  std::vector<std::string> damaged;
  for (json& shard : plan.at("shards")) {
    std::string damage;
    auto file = there.finished(shard.at("name"), damage);
    shard["finished"] = file.has_value();
    if (file) shard["rejected"] = file->rejected();
    if (damage.empty()) continue;
    there.set_aside(shard.at("name"));
    damaged.push_back(damage);
  }
  plan["damaged"] = damaged;
  return plan;
}

void bind_running(py::module_& m) {
  m.def(
      "run_experiments",
      [](Ours<HookedTransformer> model, const std::string& experiments, const py::dict& options,
         const py::object& folder, bool resume, std::pair<std::int64_t, std::int64_t> share,
         const py::object& progress, const py::list& faults) {
        BatchOptions o = options_from(options);
        Armed armed(faults, model->config());
        armed.arm(o);
        FolderOptions where{
            .folder = to_path(folder), .resume = resume, .share = {share.first, share.second}};
        if (!progress.is_none())
          where.progress = [&](const BatchProgress& p) {
            py::gil_scoped_acquire gil;
            progress(p.patches_done, p.patches);
          };
        json report;
        {
          py::gil_scoped_release release;
          report = to_json(run_experiments(*model, experiments_from(experiments), o, where));
        }
        py::list fired;
        for (const auto& f : armed.injected.log({}))
          fired.append(py::make_tuple(f.fault, f.name, f.changed));
        return py::make_tuple(to_python(report), fired);
      },
      py::arg("model"), py::arg("experiments"), py::arg("options"), py::arg("folder"),
      py::arg("resume"), py::arg("share"), py::arg("progress"), py::arg("faults"));
  m.def(
      "open_batch",
      [](Ours<HookedTransformer> model, const std::string& experiments, const py::dict& options,
         const py::object& folder, bool resume) {
        BatchOptions o = options_from(options);
        std::filesystem::path path = to_path(folder);
        json plan;
        {
          py::gil_scoped_release release;
          Batch batch(*model, experiments_from(experiments), std::move(o));
          BatchFolder made(path, batch, resume);
          plan = plan_json(batch, path);
        }
        return to_python(plan);
      },
      py::arg("model"), py::arg("experiments"), py::arg("options"), py::arg("folder"),
      py::arg("resume"));
  m.def(
      "run_shard",
      [](Ours<HookedTransformer> model, const std::string& experiments, const py::dict& options,
         const std::string& name, const py::object& folder, const py::list& faults) {
        BatchOptions o = options_from(options);
        Armed armed(faults, model->config());
        armed.arm(o);
        std::filesystem::path path = to_path(folder) / (name + ".h5");
        json said;
        {
          py::gil_scoped_release release;
          Batch batch(*model, experiments_from(experiments), std::move(o));
          if (batch.blocks().size() != 1 || batch.blocks()[0].name != name)
            throw std::invalid_argument(
                "[batch] this process plans other shards than the one that asks for " +
                name.substr(0, 12) + ": the models or the versions of lenscpp are not the same");
          Shard shard = batch.run(batch.blocks()[0]);
          save_shard(path, shard);
          said = {{"verdict", shard.verdict},
                  {"seconds", shard.provenance.at("seconds")},
                  {"rejected", json::array()}};
          for (const Rejection& r : shard.rejected) said["rejected"].push_back(to_json(r));
        }
        return to_python(said);
      },
      py::arg("model"), py::arg("experiments"), py::arg("options"), py::arg("name"),
      py::arg("folder"), py::arg("faults"));
  m.def(
      "adopt_shard",
      [](const py::object& folder, const py::object& file) {
        std::filesystem::path to = to_path(folder), from = to_path(file);
        py::gil_scoped_release release;
        return std::string(name_of(adopt_shard(to, from)));
      },
      py::arg("folder"), py::arg("file"));
  m.def(
      "merge_batch",
      [](const py::object& folder, const py::object& out, bool partial, std::int64_t resamples,
         std::int64_t permutations, double false_discovery_rate, std::uint64_t seed) {
        std::filesystem::path from = to_path(folder), to = to_path(out);
        py::gil_scoped_release release;
        merge_batch(from, to,
                    {.partial = partial,
                     .statistics = {.resamples = resamples,
                                    .permutations = permutations,
                                    .false_discovery_rate = false_discovery_rate,
                                    .seed = seed}});
      },
      py::arg("folder"), py::arg("out"), py::arg("partial"), py::arg("resamples"),
      py::arg("permutations"), py::arg("false_discovery_rate"), py::arg("seed"));
}

void bind_experiments(py::module_& m) {
  auto dumped = [](const std::vector<Experiment>& experiments) {
    json list = json::array();
    for (const Experiment& e : experiments) list.push_back(to_json(e));
    return to_python(list);
  };
  m.def(
      "read_experiments",
      [dumped](const py::object& path) { return dumped(read_experiments(to_path(path))); },
      py::arg("path"));
  m.def(
      "write_experiments",
      [](const py::object& path, const std::string& experiments) {
        write_experiments(to_path(path), experiments_from(experiments));
      },
      py::arg("path"), py::arg("experiments"));
  m.def(
      "task",
      [dumped](Ours<HookedTransformer> model, const std::string& name, std::int64_t n,
               std::uint64_t seed, const std::string& corruption,
               const std::vector<std::string>& names, std::int64_t length) {
        Task task = task_named(
            name, *model,
            {.n = n, .seed = seed, .corruption = corruption, .names = names, .length = length});
        return py::make_tuple(dumped(task.experiments), task.dropped);
      },
      py::arg("model"), py::arg("name"), py::arg("n"), py::arg("seed"), py::arg("corruption"),
      py::arg("names"), py::arg("length"));
}

py::list axes_of(const std::vector<ShardFile::Grid>& grids) {
  py::list all;
  for (const ShardFile::Grid& grid : grids) {
    py::list axes;
    for (const GridAxis& axis : grid.axes)
      axes.append(py::make_tuple(std::string(name_of(axis.axis)), axis.labels));
    all.append(py::make_tuple(grid.key, axes));
  }
  return all;
}

template <class File>
py::object read(Ours<File> self, const std::function<Array(const File&)>& what) {
  Array array;
  {
    py::gil_scoped_release release;
    array = what(*self);
  }
  return to_python(array);
}

void bind_merged(py::module_& m) {
  auto merged = py::class_<MergedFile>(
      m, "MergedFile", py::is_final(),
      "A merged batch in its file, before lenscpp.ExperimentsResult dresses it.");
  merged
      .def_property_readonly(
          "status", [](Ours<MergedFile> self) { return std::string(name_of(self->status())); })
      .def_property_readonly("path", [](Ours<MergedFile> self) { return self->origin(); })
      .def_property_readonly("n", [](Ours<MergedFile> self) { return self->n(); })
      .def_property_readonly("about",
                             [](Ours<MergedFile> self) { return to_python(self->about()); })
      .def_property_readonly("grids", [](Ours<MergedFile> self) { return axes_of(self->grids()); })
      .def(
          "key",
          [](Ours<MergedFile> self, const std::string& name) { return self->grid(name).key; },
          py::arg("name"))
      .def("index",
           [](Ours<MergedFile> self) { return read<MergedFile>(self, &MergedFile::index); })
      .def("cluster",
           [](Ours<MergedFile> self) { return read<MergedFile>(self, &MergedFile::cluster); })
      .def("clean",
           [](Ours<MergedFile> self) { return read<MergedFile>(self, &MergedFile::clean); })
      .def("corrupted",
           [](Ours<MergedFile> self) { return read<MergedFile>(self, &MergedFile::corrupted); })
      .def(
          "rows",
          [](Ours<MergedFile> self, const std::string& key, std::int64_t begin, std::int64_t end) {
            return read<MergedFile>(
                self, [&](const MergedFile& file) { return file.rows(key, begin, end); });
          },
          py::arg("key"), py::arg("begin"), py::arg("end"))
      .def(
          "experiments",
          [](Ours<MergedFile> self, std::int64_t begin, std::int64_t end) {
            return to_python(self->experiments(begin, end));
          },
          py::arg("begin"), py::arg("end"))
      .def(
          "statistics",
          [](Ours<MergedFile> self, const std::string& key) {
            return to_python(to_json(self->statistics(key)));
          },
          py::arg("key"))
      .def("verify_all", [](Ours<MergedFile> self) {
        py::gil_scoped_release release;
        self->verify_all();
      });
  seal(merged, ": it is in its file");
}

void bind_shard(py::module_& m) {
  auto shard = py::class_<ShardFile>(m, "ShardFile", py::is_final(),
                                     "A shard in its file, before lenscpp.ShardResult dresses it.");
  shard
      .def_property_readonly(
          "status", [](Ours<ShardFile> self) { return std::string(name_of(self->status())); })
      .def_property_readonly("path", [](Ours<ShardFile> self) { return self->origin(); })
      .def_property_readonly("name", [](Ours<ShardFile> self) { return self->name(); })
      .def_property_readonly("n", [](Ours<ShardFile> self) { return self->n(); })
      .def_property_readonly("grids", [](Ours<ShardFile> self) { return axes_of(self->grids()); })
      .def_property_readonly("experiments",
                             [](Ours<ShardFile> self) { return to_python(self->experiments()); })
      .def_property_readonly("rejected",
                             [](Ours<ShardFile> self) { return to_python(self->rejected()); })
      .def_property_readonly("verdict",
                             [](Ours<ShardFile> self) { return to_python(self->verdict()); })
      .def_property_readonly("provenance",
                             [](Ours<ShardFile> self) { return to_python(self->provenance()); })
      .def("clean", [](Ours<ShardFile> self) { return read<ShardFile>(self, &ShardFile::clean); })
      .def("corrupted",
           [](Ours<ShardFile> self) { return read<ShardFile>(self, &ShardFile::corrupted); })
      .def(
          "values",
          [](Ours<ShardFile> self, const std::string& key) {
            return read<ShardFile>(self, [&](const ShardFile& file) { return file.values(key); });
          },
          py::arg("key"));
  seal(shard, ": it is in its file");
}

}  // namespace

void bind_batch(py::module_& m) {
  bind_running(m);
  bind_experiments(m);
  bind_merged(m);
  bind_shard(m);
  for (auto [name, load] : {std::pair{"load_merged", &MergedFile::open},
                            std::pair{"load_merged_unverified", &MergedFile::open_unverified}})
    m.def(
        name,
        [load = load](const py::object& path) {
          std::filesystem::path file = to_path(path);
          py::gil_scoped_release release;
          return load(file);
        },
        py::arg("path"));
  m.def(
      "load_shard",
      [](const py::object& path) {
        std::filesystem::path file = to_path(path);
        py::gil_scoped_release release;
        ShardFile shard = ShardFile::open(file);
        shard.verify_all();
        return shard;
      },
      py::arg("path"));
  m.def(
      "load_shard_unverified",
      [](const py::object& path) {
        std::filesystem::path file = to_path(path);
        py::gil_scoped_release release;
        return ShardFile::open_unverified(file);
      },
      py::arg("path"));
}

}  // namespace lenscpp::python
