// hooks/ in Python: names of hook points, edits and plans, the tokenizer.
#include <algorithm>

#include "hooks/hook_point.h"
#include "python/bind.h"
#include "python/edits.h"

namespace lenscpp::python {
namespace {

std::string spelled(const NamedEdit& edit) {
  std::string text = edit.name;
  if (edit.layer) text += ", layer " + std::to_string(*edit.layer);
  return text;
}

std::string describe(const NamedEdit& edit) {
  std::string text = std::string(name_of(edit.kind)) + " at " + spelled(edit);
  auto add = [&](const char* what, const std::optional<std::int64_t>& index) {
    if (index) text += std::string(", ") + what + " " + std::to_string(*index);
  };
  add("batch", edit.where.batch);
  add("head", edit.where.head);
  if (edit.where.pos) text += ", pos " + to_string(Shape(*edit.where.pos));
  add("key", edit.where.key);
  if (edit.cache) text += ", from a VerifiedCache";
  if (edit.values) text += ", from " + to_string(edit.values->shape());
  if (edit.kind == EditKind::add || edit.kind == EditKind::scale)
    text += ", factor " + std::string(py::str(py::float_(edit.factor)));
  return text;
}

EditKind kind_from(const std::string& name) {
  for (EditKind kind :
       {EditKind::patch, EditKind::zero, EditKind::mean, EditKind::add, EditKind::scale})
    if (name_of(kind) == name) return kind;
  throw std::invalid_argument("[plan] \"" + name +
                              "\" is not an edit; allowed: patch, zero, mean, add, scale");
}

// A cache's own value, or a tensor's: anything else could not be vouched for.
void take_source(NamedEdit& edit, py::handle source) {
  if (source.is_none()) return;
  if (const auto* held = held_by<HeldVerified>(source)) {
    edit.cache = held->cache;
  } else if (!is_tensor(source)) {
    throw NotVerified(
        "[plan] " + describe(edit) +
        ": needed as a source: a VerifiedCache or a torch.Tensor; found: " + kind_of(source));
  } else {
    edit.values = to_array(source, "[plan] " + describe(edit) + ": source");
  }
}

void bind_edits(py::module_& m) {
  auto edit = py::class_<NamedEdit>(m, "Edit", py::is_final(),
                                    R"(One intervention at one hook point, as data.

Made by Patch, Ablate, Add and Scale. Names and indices are checked against the model that runs it.)");
  edit.def(py::init([](const std::string& kind, const std::string& name,
                       std::optional<std::int64_t> layer, const std::string& layer_type,
                       const py::object& source, double factor, std::optional<std::int64_t> batch,
                       std::optional<std::int64_t> head,
                       std::optional<std::vector<std::int64_t>> pos,
                       std::optional<std::int64_t> key) {
             NamedEdit made{
                 .kind = kind_from(kind),
                 .name = name,
                 .layer = layer,
                 .layer_type = layer_type,
                 .where = {.batch = batch, .head = head, .key = key, .pos = std::move(pos)},
                 .factor = factor};
             take_source(made, source);
             return made;
           }),
           py::kw_only(), py::arg("kind"), py::arg("name"), py::arg("layer") = py::none(),
           py::arg("layer_type") = "", py::arg("source") = py::none(), py::arg("factor") = 1.0,
           py::arg("batch") = py::none(), py::arg("head") = py::none(), py::arg("pos") = py::none(),
           py::arg("key") = py::none())
      .def_property_readonly(
          "name", [](Ours<NamedEdit> self) { return self->name; },
          "The hook point as it was named.")
      .def_property_readonly(
          "kind", [](Ours<NamedEdit> self) { return std::string(name_of(self->kind)); },
          "\"patch\", \"zero\", \"mean\", \"add\" or \"scale\".")
      .def("__repr__", [](Ours<NamedEdit> self) { return "<Edit: " + describe(*self) + ">"; });
  freeze(edit);

  auto plan = py::class_<NamedPlan>(m, "Plan", py::is_final(),
                                    R"(Edits, applied at their hook points in this order.

Plan([lens.Patch(...), lens.Ablate(...), ...]); taken by run_with_cache(plan=...) and by a model's call.
A run with a plan is verified like any other: the reference makes the same edits.)");
  plan.def(py::init([](const py::iterable& edits) {
             NamedPlan made;
             for (py::handle item : edits) {
               const auto* one = held_by<NamedEdit>(item);
               if (one == nullptr)
                 throw py::type_error("[plan] needed: lens.Patch, Ablate, Add or Scale; found: " +
                                      kind_of(item));
               made.edits.push_back(*one);
             }
             return made;
           }),
           py::arg("edits") = py::tuple())
      .def("__len__", [](Ours<NamedPlan> self) { return self->edits.size(); })
      .def_property_readonly(
          "edits", [](Ours<NamedPlan> self) { return py::tuple(py::cast(self->edits)); },
          "The edits, in order.")
      .def("__repr__", [](Ours<NamedPlan> self) {
        std::string text = "<Plan of " + std::to_string(self->edits.size()) + " edits";
        for (const NamedEdit& e : self->edits) text += "\n  " + describe(e);
        return text + ">";
      });
  freeze(plan);
}

void bind_tokenizer(py::module_& m) {
  auto tokenizer = py::class_<Tokenizer>(
      m, "Tokenizer", py::is_final(),
      R"(BPE, WordPiece or Unigram: what the package `tokenizers` makes of a tokenizer.json.

Immutable. Belongs to a model: model.tokenizer.)");
  tokenizer
      .def(
          "encode",
          [](Ours<Tokenizer> self, const std::string& text) { return self->encode(text); },
          py::arg("text"),
          "The token ids of a text, special tokens written in it included, none added. ValueError "
          "for what has no token.")
      .def(
          "encode_with_special_tokens",
          [](Ours<Tokenizer> self, const std::string& text,
             const std::optional<std::string>& text_pair) {
            auto made = text_pair ? self->encode_with_special(text, *text_pair)
                                  : self->encode_with_special(text);
            return std::pair(std::move(made.ids), std::move(made.type_ids));
          },
          py::arg("text"), py::arg("text_pair") = py::none(),
          "Token ids with the special tokens that tokenizer.json puts around a text or two "
          "(\"[CLS]\", \"<s>\"), and the type ids that tell the two apart.")
      .def(
          "decode",
          [](Ours<Tokenizer> self, const std::vector<std::int64_t>& ids, bool skip_special_tokens) {
            return self->decode(ids, skip_special_tokens);
          },
          py::arg("ids"), py::arg("skip_special_tokens") = false,
          "The text of token ids; broken UTF-8 becomes U+FFFD. ValueError for an id that no token "
          "has.")
      .def(
          "convert_tokens_to_ids",
          [](Ours<Tokenizer> self, const std::string& spelling) { return self->id(spelling); },
          py::arg("spelling"),
          "The id of a token as the vocabulary spells it (\"\u0120the\"), or None.")
      .def(
          "convert_ids_to_tokens",
          [](Ours<Tokenizer> self, std::int64_t id) { return self->spelling(id); }, py::arg("id"),
          "How the vocabulary spells a token: \"\u0120the\". ValueError for an id that no token "
          "has.")
      .def("__len__", [](Ours<Tokenizer> self) { return self->vocab_size(); })
      .def_property_readonly(
          "vocab_size", [](Ours<Tokenizer> self) { return self->vocab_size(); },
          "Number of tokens, added ones included.")
      .def_property_readonly(
          "bos_token_id", [](Ours<Tokenizer> self) { return self->bos_token_id(); },
          "None where there is none.")
      .def_property_readonly(
          "eos_token_id", [](Ours<Tokenizer> self) { return self->eos_token_id(); },
          "None where there is none.")
      .def_property_readonly(
          "bos_token",
          [](Ours<Tokenizer> self) -> std::optional<std::string> {
            auto id = self->bos_token_id();
            return id ? std::optional(self->spelling(*id)) : std::nullopt;
          },
          "None where there is none.")
      .def_property_readonly(
          "eos_token",
          [](Ours<Tokenizer> self) -> std::optional<std::string> {
            auto id = self->eos_token_id();
            return id ? std::optional(self->spelling(*id)) : std::nullopt;
          },
          "None where there is none.")
      .def_property_readonly(
          "digest", [](Ours<Tokenizer> self) { return self->source_bytes_hash(); },
          "XXH3-128 of the bytes of tokenizer.json.")
      .def("__repr__", [](Ours<Tokenizer> self) {
        return "<Tokenizer of " + std::to_string(self->vocab_size()) + " tokens>";
      });
  seal(tokenizer, ": it is read from its tokenizer.json");
}

}  // namespace

Plan resolve(const NamedPlan& plan, const Config& config) {
  std::vector<Edit> edits;
  for (const NamedEdit& named : plan.edits) {
    TensorId id = find_hook(named.name, named.layer, named.layer_type, config);
    Edit edit{.kind = named.kind,
              .site = id.site,
              .layer = id.layer,
              .where = named.where,
              .factor = named.factor};
    if (named.values) edit.source = *named.values;
    if (named.cache) edit.source = (*named.cache)[hook_name(id.site, id.layer)];
    edits.push_back(std::move(edit));
  }
  return Plan(std::move(edits));
}

void bind_hooks(py::module_& m) {
  m.def(
      "act_name",
      [](const std::string& name, std::optional<std::int64_t> layer,
         const std::string& layer_type) { return act_name(name, layer, layer_type); },
      py::arg("name"), py::arg("layer") = py::none(), py::arg("layer_type") = "",
      "The full hook name of a short one.");
  bind_tokenizer(m);
  m.def(
      "tokenizer_from_json",
      [](const std::string& json, const std::string& origin,
         const std::optional<std::string>& config) {
        py::gil_scoped_release release;
        return Tokenizer::from_json(json, origin, config);
      },
      py::arg("json"), py::arg("origin"), py::arg("config") = py::none(),
      "A Tokenizer from the contents of a tokenizer.json and of a tokenizer_config.json.");
  bind_edits(m);
}

}  // namespace lenscpp::python
