// verify/ in Python: verdicts with their points, and the two kinds of caches.
#include <nlohmann/json.hpp>

#include "python/bind.h"

namespace lenscpp::python {
namespace {

py::tuple index_of(std::int64_t flat, const Shape& shape) {
  py::tuple index(shape.size());
  for (std::size_t d = shape.size(); d-- > 0;) {
    std::int64_t extent = std::max<std::int64_t>(shape[d], 1);
    index[d] = flat % extent;
    flat /= extent;
  }
  return index;
}

void bind_point(py::module_& m) {
  auto point = py::class_<Point>(m, "Point", py::is_final(),
                                 R"(One link of a run and the evidence of its check.)");
  point
      .def_property_readonly(
          "name", [](Ours<Point> self) { return to_string(*self); },
          "Hook name; links that have none in TransformerLens under a name of our own.")
      .def_property_readonly(
          "op", [](Ours<Point> self) { return std::string(name_of(self->op)); },
          "What the link computes: \"linear\", \"softmax\", ...")
      .def_property_readonly("shape",
                             [](Ours<Point> self) { return py::tuple(py::cast(self->shape)); })
      .def_property_readonly(
          "compared", [](Ours<Point> self) { return self->compared; }, "Elements compared exactly.")
      .def_property_readonly(
          "projected", [](Ours<Point> self) { return self->projected; },
          "Elements that only checksums of their rows covered; 0 but in mode \"checksum\".")
      .def_property_readonly(
          "residual", [](Ours<Point> self) { return self->residual; },
          "Worst residual of those checksums over its limit.")
      .def_property_readonly(
          "failed", [](Ours<Point> self) { return self->failed; },
          "Elements beyond their bound; NaN always is.")
      .def_property_readonly("passed", [](Ours<Point> self) { return self->passed(); })
      .def_property_readonly(
          "worst_ratio", [](Ours<Point> self) { return self->worst_ratio; },
          "Largest error over its bound.")
      .def_property_readonly(
          "rms_ratio", [](Ours<Point> self) { return self->rms_ratio; },
          "RMS of the errors over RMS of the rounding errors that the dtype makes; 0 where there "
          "is no such test.")
      .def_property_readonly(
          "worst_index", [](Ours<Point> self) { return index_of(self->worst_index, self->shape); },
          "Where the worst element is.")
      .def_property_readonly(
          "device_value", [](Ours<Point> self) { return self->device_value; }, "At worst_index.")
      .def_property_readonly(
          "reference_value", [](Ours<Point> self) { return self->reference_value; },
          "At worst_index, in float64.")
      .def_property_readonly(
          "why", [](Ours<Point> self) { return self->why; },
          "What failed where it is not elements: \"never computed\", a shape.")
      .def_property_readonly(
          "hint", [](Ours<Point> self) { return self->hint; },
          "What the error looks like: \"one element\", \"head 2\", ...")
      .def(
          "to_dict", [](Ours<Point> self) { return to_python(to_json(*self)); },
          "All of it, fit for JSON: what is not finite as a str.")
      .def("__repr__", [](Ours<Point> self) {
        return "<Point " + to_string(*self) + " (" + std::string(name_of(self->op)) +
               "): " + (self->passed() ? "passed" : "FAILED") + ", " +
               std::to_string(self->compared) + " compared, " + std::to_string(self->failed) +
               " failed>";
      });
  seal(point, "; use to_dict()");
}

void bind_verdict(py::module_& m) {
  auto verdict = py::class_<Verdict>(m, "Verdict", py::is_final(),
                                     R"(What the check of a run came to, with the evidence.

print(verdict) shows a table; a notebook an HTML one.)");
  verdict
      .def_property_readonly(
          "status", [](Ours<Verdict> self) { return std::string(name_of(self->status)); },
          "\"VERIFIED\" (every link was compared and passed), \"INVALID\" or \"UNVERIFIED\".")
      .def_property_readonly(
          "mode", [](Ours<Verdict> self) { return std::string(name_of(self->mode)); },
          "How it was checked: \"exact\", \"checksum\" or \"off\".")
      .def_property_readonly(
          "points", [](Ours<Verdict> self) { return self->points; },
          "list[Point], in execution order.")
      .def_property_readonly(
          "first_failure",
          [](Ours<Verdict> self) -> std::optional<Point> {
            const Point* first = self->first_failure();
            return first == nullptr ? std::nullopt : std::optional(*first);
          },
          "The first point that did not pass, or None.")
      .def_property_readonly(
          "n_compared", [](Ours<Verdict> self) { return self->n_compared(); },
          "Elements compared with the reference.")
      .def_property_readonly(
          "n_projected", [](Ours<Verdict> self) { return self->n_projected(); },
          "Elements that only checksums of their rows covered.")
      .def_property_readonly(
          "coverage", [](Ours<Verdict> self) { return self->coverage; },
          "Share of the elements of all links that were compared exactly.")
      .def_property_readonly(
          "seconds", [](Ours<Verdict> self) { return self->seconds; }, "Spent checking.")
      .def_property_readonly(
          "drift", [](Ours<Verdict> self) { return to_python(to_json(*self).at("drift")); },
          "How far the run is from a float64 run from the same tokens: a list of {name, max_abs, "
          "relative}, or None unless drift=True.")
      .def_property_readonly(
          "recomputed", [](Ours<Verdict> self) { return self->recomputed; },
          "Of verify_recorded: links that were not recorded.")
      .def_property_readonly(
          "fallbacks", [](Ours<Verdict> self) { return self->fallbacks; },
          "Operators that ran on the CPU instead of the device.")
      .def_property_readonly(
          "summary", [](Ours<Verdict> self) { return self->summary(); },
          "One line: what, where, how bad, what to do.")
      .def(
          "to_dict", [](Ours<Verdict> self) { return to_python(to_json(*self)); },
          "All of it, fit for JSON: what is not finite as a str.")
      .def("__str__", [](Ours<Verdict> self) { return self->table(); })
      .def("__repr__", [](Ours<Verdict> self) { return "<Verdict " + self->summary() + ">"; })
      .def("_repr_html_", [](const py::object& self) {
        return py::module_::import("lenscpp._html").attr("verdict")(self);
      });
  seal(verdict, "; use to_dict()");
}

// --- caches ---

const Activations& activations(const HeldVerified& held) { return held.cache.activations(); }
const Activations& activations(const HeldUnverified& held) { return held.cache->activations(); }
const Array& value(const HeldVerified& held, const std::string& name) { return held.cache[name]; }
const Array& value(const HeldUnverified& held, const std::string& name) {
  return (*held.cache)[name];
}
const VerifiedCache& inner(const HeldVerified& held) { return held.cache; }
const UnverifiedCache& inner(const HeldUnverified& held) { return *held.cache; }

// "blocks.3.hook_resid_pre", "resid_pre3", ("resid_pre", 3), ("scale", -1, "ln1"): as
// TransformerLens reads them.
std::string full_name(py::handle key, const Config& config) {
  py::tuple parts =
      py::isinstance<py::tuple>(key) ? py::reinterpret_borrow<py::tuple>(key) : py::make_tuple(key);
  bool shaped = !parts.empty() && parts.size() <= 3 && py::isinstance<py::str>(parts[0]);
  if (shaped && parts.size() > 1)
    shaped = parts[1].is_none() ||
             (py::hasattr(parts[1], "__index__") && !py::isinstance<py::bool_>(parts[1]));
  if (shaped && parts.size() > 2) shaped = parts[2].is_none() || py::isinstance<py::str>(parts[2]);
  if (!shaped) {
    std::string found;
    for (py::handle part : parts) found += (found.empty() ? "" : ", ") + kind_of(part);
    throw py::type_error(
        "[cache] a key is a hook name, (name, layer) or (name, layer, layer_type); found: (" +
        found + ")");
  }
  std::optional<std::int64_t> layer;
  if (parts.size() > 1 && !parts[1].is_none())
    layer =
        py::cast<std::int64_t>(py::reinterpret_steal<py::object>(PyNumber_Index(parts[1].ptr())));
  std::string type = parts.size() > 2 && !parts[2].is_none() ? py::cast<std::string>(parts[2]) : "";
  try {
    TensorId id = find_hook(py::cast<std::string>(parts[0]), layer, type, config);
    return hook_name(id.site, id.layer);
  } catch (const std::invalid_argument& error) {
    throw py::key_error(error.what());
  }
}

// The name of an entry of this cache. Throws py::key_error.
template <class Held>
std::string entry_name(const Held& held, py::handle key) {
  std::string name = full_name(key, inner(held).config());
  try {
    return activations(held).at(name).name;
  } catch (const std::invalid_argument& error) {
    throw py::key_error(error.what());
  }
}

template <class Held>
bool contains(const Held& held, py::handle key) {
  try {
    entry_name(held, key);
    return true;
  } catch (const py::key_error&) {
    return false;
  } catch (const py::type_error&) {
    return false;
  } catch (const std::out_of_range&) {
    return false;
  }
}

template <class Held>
py::object get(const Held& held, py::handle key) {
  std::string name = entry_name(held, key);
  std::optional<Array> array;
  {
    py::gil_scoped_release release;
    array = value(held, name);
  }
  return to_python(*array);
}

template <class Held>
py::list names(const Held& held) {
  py::list names;
  for (const auto& entry : activations(held).entries()) names.append(py::str(entry.name));
  return names;
}

py::object view(const char* name, const py::object& cache) {
  return py::module_::import("collections.abc").attr(name)(cache);
}

template <class Held>
Array tokens_of(const Held& held) {
  const RunRecord& record = inner(held).record();
  return record.tokens.empty()
             ? Array()
             : Array::of(std::span<const std::int64_t>(record.tokens), {record.batch, record.pos});
}

template <class Held>
void bind_cache(py::class_<Held>& cache) {
  cache
      .def(
          "__getitem__", [](Ours<Held> self, const py::object& key) { return get(*self, key); },
          py::arg("key"),
          R"(A CPU tensor of the caller's own: changing it alters no analysis and no later read.

key: a hook name, or (name, layer) or (name, layer, layer_type) with short names, negative layers from the end.
KeyError for a name that is not here, IndexError for a layer that the model has not.)")
      .def(
          "get",
          [](Ours<Held> self, const py::object& key, const py::object& fallback) {
            return contains(*self, key) ? get(*self, key) : fallback;
          },
          py::arg("key"), py::arg("default") = py::none())
      .def(
          "__contains__",
          [](Ours<Held> self, const py::object& key) { return contains(*self, key); },
          py::arg("key"))
      .def("__len__", [](Ours<Held> self) { return activations(*self).entries().size(); })
      .def("__iter__", [](Ours<Held> self) { return py::iter(names(*self)); })
      .def(
          "keys",
          [](Ours<Held> self) {
            return py::module_::import("builtins")
                .attr("dict")
                .attr("fromkeys")(names(*self))
                .attr("keys")();
          },
          "Full hook names, in execution order.")
      .def(
          "values", [](const py::object& self) { return view("ValuesView", self); },
          "Tensors, copied one by one as they are read.")
      .def(
          "items", [](const py::object& self) { return view("ItemsView", self); },
          "Names and tensors, copied one by one as they are read.")
      .def_property_readonly(
          "verdict", [](Ours<Held> self) { return inner(*self).verdict(); },
          "Verdict: what the check came to.")
      .def_property_readonly(
          "record", [](Ours<Held> self) { return to_python(to_json(inner(*self).record())); },
          "dict: model, tokens, plan, processing, device, dtype, versions, ... of the run. A fresh "
          "copy.")
      .def_property_readonly(
          "tokens",
          [](Ours<Held> self) -> py::object {
            Array tokens = tokens_of(*self);
            return tokens.empty() ? py::none() : to_python(tokens);
          },
          "LongTensor [batch, pos]; None when the run started from a residual.")
      .def_property_readonly(
          "positions", [](Ours<Held> self) { return self->positions; },
          "list[int]: the positions that pos_slice kept, None where all were.")
      .def_property_readonly(
          "tokenizer", [](Ours<Held> self) { return self->tokenizer; },
          "The model's Tokenizer, or None.")
      .def(
          "save",
          [](Ours<Held> self, const py::object& path) {
            std::filesystem::path file = to_path(path);
            py::gil_scoped_release release;
            save(*self, file);
          },
          py::arg("path"),
          R"(Saves the run as an HDF5 file with a digest of everything in it, and with its status.

lenscpp.load reads it back; h5py reads it too. What stood at path stays until the new file is complete. NotVerified
when an activation's bytes are no longer those that were verified, OSError when the disk refuses.)");
}

void bind_caches(py::module_& m) {
  auto verified = py::class_<HeldVerified>(
      m, "VerifiedCache", py::is_final(),
      R"(Activations that were checked, all of them, against an independent float64 reference.

A mapping from hook name to tensor, as TransformerLens's ActivationCache: cache["resid_post", 3],
cache["scale", 3, "ln1"], cache["blocks.3.attn.hook_pattern"]. Only a verified run makes one; it is immutable,
final, and cannot be pickled. What it hands out are copies.)");
  bind_cache(verified);
  verified.def("__repr__", [](Ours<HeldVerified> self) {
    const RunRecord& r = self->cache.record();
    return "<VerifiedCache of " + std::to_string(activations(*self).entries().size()) +
           " activations: " + r.model + ", " + std::to_string(r.batch) + " x " +
           std::to_string(r.pos) + " tokens, " + r.device + ", " + r.dtype + ">";
  });
  verified.def("_repr_html_", [](const py::object& self) {
    return py::module_::import("lenscpp._html").attr("cache")(self);
  });
  bind_analyses(verified);
  seal(verified, ": what comes back could not be told from something else");

  auto unverified = py::class_<HeldUnverified>(
      m, "UnverifiedCache", py::is_final(),
      R"(Activations of which nothing is known: of a run with verify="off", or of one that was refused.

Readable like a VerifiedCache; every analysis refuses it (NotVerified).)");
  bind_cache(unverified);
  unverified.def("__repr__", [](Ours<HeldUnverified> self) {
    return "<UnverifiedCache (" + std::string(name_of(self->cache->verdict().status)) + ") of " +
           std::to_string(activations(*self).entries().size()) +
           " activations: no analysis takes it>";
  });
  unverified.def("_repr_html_", [](const py::object& self) {
    return py::module_::import("lenscpp._html").attr("cache")(self);
  });
  bind_analyses(unverified);
  seal(unverified, ": take the tensors out");
}

}  // namespace

void bind_verify(py::module_& m) {
  bind_point(m);
  bind_verdict(m);
  bind_caches(m);
}

}  // namespace lenscpp::python
