// verify/store/ in Python: runs to files and back.
#include "lens/saved_run.h"
#include "python/bind.h"
#include "verify/store/sealed_file.h"

namespace lenscpp::python {
namespace {

template <class Held>
RunNotes notes_of(const Held& held, const RunRecord& record) {
  return {.strings = held.tokenizer ? token_strings(*held.tokenizer, record.tokens) : held.strings,
          .positions = held.positions};
}

std::optional<ModelAtHand> at_hand_or_none(const HookedTransformer* model) {
  return model == nullptr ? std::nullopt : std::optional(at_hand(*model));
}

// The model's tokenizer, if the run was tokenized by it.
std::optional<Tokenizer> tokenizer_for(const HookedTransformer* model, const RunRecord& record) {
  if (model == nullptr || !model->has_tokenizer() ||
      model->tokenizer().source_bytes_hash() != record.tokenizer_digest)
    return {};
  return model->tokenizer();
}

const HookedTransformer* model_in(const py::object& object) {
  if (object.is_none()) return nullptr;
  if (const auto* model = held_by<HookedTransformer>(object)) return model;
  throw py::type_error("[store] needed: a model; found: " + kind_of(object));
}

}  // namespace

void save(const HeldVerified& held, const std::filesystem::path& path) {
  save_run(path, held.cache, notes_of(held, held.cache.record()));
}
void save(const HeldUnverified& held, const std::filesystem::path& path) {
  save_run(path, *held.cache, notes_of(held, held.cache->record()));
}

std::filesystem::path to_path(py::handle object) {
  PyObject* bytes = nullptr;
  if (PyUnicode_FSConverter(object.ptr(), &bytes) == 0) throw py::error_already_set();
  return std::string(py::reinterpret_steal<py::bytes>(bytes));
}

void bind_store(py::module_& m) {
  m.def(
      "file_kind",
      [](const py::object& path) {
        std::filesystem::path file = to_path(path);
        py::gil_scoped_release release;
        return std::string(name_of(SealedFile::kind_of(file)));
      },
      py::arg("path"));
  m.def(
      "load_run",
      [](const py::object& path, const py::object& model) {
        std::filesystem::path file = to_path(path);
        const HookedTransformer* own = model_in(model);
        py::gil_scoped_release release;
        LoadedRun run = load_run(file, at_hand_or_none(own));
        auto tokenizer = tokenizer_for(own, run.cache.record());
        return HeldVerified{std::move(run.cache), std::move(tokenizer),
                            std::move(run.notes.positions), std::move(run.notes.strings)};
      },
      py::arg("path"), py::arg("model") = py::none());
  m.def(
      "load_run_unverified",
      [](const py::object& path, const py::object& model) {
        std::filesystem::path file = to_path(path);
        const HookedTransformer* own = model_in(model);
        py::gil_scoped_release release;
        LoadedUnverifiedRun run = load_run_unverified(file, at_hand_or_none(own));
        auto tokenizer = tokenizer_for(own, run.cache.record());
        return HeldUnverified{std::make_shared<const UnverifiedCache>(std::move(run.cache)),
                              std::move(tokenizer), std::move(run.notes.positions),
                              std::move(run.notes.strings)};
      },
      py::arg("path"), py::arg("model") = py::none());
}

}  // namespace lenscpp::python
