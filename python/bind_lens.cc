// lens/ in Python: the model with its runs, the logit lens, faults to inject. Everything that
// computes or checks lets go of the GIL.
#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>

#include "lens/device.h"
#include "lens/fault_injection.h"
#include "lens/hooked_transformer.h"
#include "lens/logit_lens.h"
#include "lens/loss.h"
#include "lens/weight_views.h"
#include "python/bind.h"
#include "python/edits.h"

namespace lenscpp::python {
namespace {

using std::chrono::steady_clock;

std::optional<Tokenizer> tokenizer_of(const HookedTransformer& model) {
  return model.has_tokenizer() ? std::optional(model.tokenizer()) : std::nullopt;
}

std::optional<PaddingSide> side_from(const std::optional<std::string>& name) {
  if (!name) return {};
  for (PaddingSide side : {PaddingSide::left, PaddingSide::right})
    if (*name == name_of(side)) return side;
  throw std::invalid_argument("[model] padding_side \"" + *name +
                              "\"; allowed: \"left\", \"right\"");
}

// With an attention mask, which must say the same of what is known to be padding.
Tokens masked(const Tokens& tokens, const std::vector<std::int64_t>& mask) {
  Tokens result = tokens;
  result.spans = spans_of_mask(mask, tokens.batch, tokens.pos);
  if (!tokens.spans.empty() && result.spans != tokens.spans)
    throw std::invalid_argument(
        "[model] attention_mask is another than the padding of these prompts of unequal length");
  return result;
}

Tokens typed(const Tokens& tokens, std::vector<std::int64_t> types) {
  if (types.size() != tokens.ids.size())
    throw std::invalid_argument("[model] token_type_ids has " + std::to_string(types.size()) +
                                " values; needed: one for each of " +
                                std::to_string(tokens.ids.size()) + " tokens");
  Tokens result = tokens;
  result.types = std::move(types);
  return result;
}

// Token ids as tensors or rows; those that a model is to run are held to its vocabulary and
// context.
Tokens tokens_from(const HookedTransformer& model, const py::object& ids, bool to_run,
                   std::optional<PaddingSide> side) {
  auto checked = [&](std::vector<std::int64_t> flat, std::int64_t batch) {
    if (to_run) return model.tokens_of(std::move(flat), batch);
    return Tokens{.batch = batch,
                  .pos = static_cast<std::int64_t>(flat.size()) / batch,
                  .ids = std::move(flat)};
  };
  if (py::isinstance<py::list>(ids)) {
    Tokens padded = model.padded(ids.cast<std::vector<std::vector<std::int64_t>>>(), side);
    if (!to_run && !padded.spans.empty())
      throw std::invalid_argument("[model] rows of tokens of unequal length");
    Tokens tokens = checked(std::move(padded.ids), padded.batch);
    tokens.spans = std::move(padded.spans);
    return tokens;
  }
  Array array = to_ids(ids, "[model] tokens");
  if ((array.rank() != 1 && array.rank() != 2) || array.empty())
    throw std::invalid_argument("[model] tokens of shape " + to_string(array.shape()) +
                                "; allowed: [pos] and [batch, pos], neither of them 0");
  auto values = array.as<std::int64_t>();
  return checked({values.begin(), values.end()}, array.rank() == 1 ? 1 : array.size(0));
}

// Ctrl-C is heard between two tensors of a run, at most every 50 ms: more would cost more than it
// gives.
Interference interruptible(Interference inner) {
  auto heard = std::make_shared<steady_clock::time_point>(steady_clock::now());
  return [inner = std::move(inner), heard](const TensorId& id, const at::Tensor& x) {
    if (auto now = steady_clock::now(); now - *heard > std::chrono::milliseconds(50)) {
      *heard = now;
      py::gil_scoped_acquire gil;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    return inner ? inner(id, x) : x;
  };
}

std::vector<FaultSpec> specs_from(const py::sequence& faults) {
  std::vector<FaultSpec> specs;
  for (py::handle fault : faults) {
    const auto* spec = held_by<FaultSpec>(fault);
    if (spec == nullptr) throw py::type_error("[faults] needed: a fault; found: " + kind_of(fault));
    specs.push_back(*spec);
  }
  return specs;
}

// Python objects in the hands of threads that have no GIL: it is taken where the last one lets go.
std::shared_ptr<const py::function> held_function(py::function function) {
  return {new py::function(std::move(function)), [](const py::function* last) {
            py::gil_scoped_acquire gil;
            delete last;
          }};
}

// A Python function gets a copy; where it returns nothing, the copy counts as returned, since many
// write into it.
Callback callback_from(const TensorId& id, std::string name, py::function function) {
  Callback callback{.site = id.site, .layer = id.layer, .name = std::move(name), .call = {}};
  callback.call = [held = held_function(std::move(function)), where = describe(callback)](
                      const TensorId&, const Array& before) -> std::optional<Array> {
    py::gil_scoped_acquire gil;
    std::string what = "[hook] what " + where + " returned";
    py::object tensor = to_python(before), dtype = tensor.attr("dtype");
    py::object returned = (*held)(tensor);
    if (returned.is_none()) returned = tensor;
    if (is_tensor(returned) &&
        !(returned.attr("is_cpu").cast<bool>() && py::object(returned.attr("dtype")).is(dtype)))
      throw std::invalid_argument(what + ": a tensor of " +
                                  std::string(py::str(returned.attr("dtype"))) + " on " +
                                  std::string(py::str(returned.attr("device"))) +
                                  "; allowed: " + std::string(py::str(dtype)) + " on cpu");
    return to_array(returned, what);
  };
  return callback;
}

bool has_positions(Site site) {
  return std::ranges::any_of(info(site).axes,
                             [](Axis axis) { return axis == Axis::pos || axis == Axis::query; });
}

Span span_of(const std::vector<Span>& spans, std::int64_t prompt, std::int64_t pos) {
  return spans.empty() ? Span{0, pos} : spans[static_cast<std::size_t>(prompt)];
}

std::string in_words(const Span& span) {
  return std::to_string(span.begin) + " to " + std::to_string(span.end - 1);
}

// What another run has at a position is written at that very position: of prompts that are padded
// otherwise it is another token's, or padding. Shapes that do not fit the run refuses.
void check_padding(const NamedEdit& edit, const Config& config, const Tokens& into) {
  if (!edit.cache || edit.kind == EditKind::mean) return;
  const RunRecord& from = edit.cache->record();
  TensorId id = find_hook(edit.name, edit.layer, edit.layer_type, config);
  bool fits = from.pos == into.pos && (from.batch == 1 || from.batch == into.batch);
  if (!fits || !has_positions(id.site)) return;
  for (std::int64_t b = 0; b < into.batch; ++b) {
    if (edit.where.batch && b != *edit.where.batch && b != *edit.where.batch + into.batch) continue;
    Span here = span_of(into.spans, b, into.pos),
         there = span_of(from.spans, from.batch == 1 ? 0 : b, from.pos);
    if (here != there)
      throw std::invalid_argument("[plan] " + std::string(name_of(edit.kind)) + " at " +
                                  hook_name(id.site, id.layer) + ": prompt " + std::to_string(b) +
                                  " has its tokens at positions " + in_words(here) +
                                  ", the source's prompt at " + in_words(there) +
                                  ": they are padded otherwise; where that is meant, give the "
                                  "tensor instead of the cache");
  }
}

// Everything that the keywords of a call say.
RunOptions options_from(const HookedTransformer& model, const Tokens& tokens,
                        const py::kwargs& call) {
  auto given = [&](const char* key) { return call.contains(key) && !call[key].is_none(); };
  RunOptions options;
  if (given("names")) options.names = call["names"].cast<std::vector<std::string>>();
  if (given("among")) {
    auto listed = call["among"].cast<std::vector<std::string>>();
    options.filter = [names = std::set<std::string>(listed.begin(), listed.end())](
                         const std::string& name) { return names.contains(name); };
  }
  if (given("pos_slice")) options.pos_slice = call["pos_slice"].cast<std::vector<std::int64_t>>();
  if (given("plan")) {
    const auto* plan = held_by<NamedPlan>(call["plan"]);
    if (plan == nullptr)
      throw py::type_error("[plan] needed: a lens.Plan; found: " + kind_of(call["plan"]));
    for (const NamedEdit& edit : plan->edits) check_padding(edit, model.config(), tokens);
    options.plan = resolve(*plan, model.config());
  }
  if (given("callbacks"))
    for (auto [name, function_name, function] :
         call["callbacks"].cast<std::vector<std::tuple<std::string, std::string, py::function>>>())
      options.callbacks.push_back(callback_from(find_hook(name, {}, {}, model.config()),
                                                std::move(function_name), std::move(function)));
  if (given("start_at_layer"))
    options.start = {call["start_at_layer"].cast<std::int64_t>(),
                     to_array(call["residual"], "[model] the residual to start from")};
  if (given("stop_at_layer")) options.stop_at_layer = call["stop_at_layer"].cast<std::int64_t>();
  if (given("verify")) options.verify = verify_mode_from_name(call["verify"].cast<std::string>());
  if (given("drift")) options.drift = call["drift"].cast<bool>();
  return options;
}

// An edit at a position by name is at a token, not at padding, of every prompt that it is in.
void require_tokens(const Plan& plan, const Tokens& tokens) {
  const std::vector<Span>& spans = tokens.spans;
  for (const Edit& edit : plan.edits())
    for (std::size_t b = 0; b < spans.size() && edit.where.pos; ++b) {
      auto batch = static_cast<std::int64_t>(b), prompts = std::ssize(spans);
      if (edit.where.batch && (*edit.where.batch + prompts) % prompts != batch) continue;
      for (std::int64_t given : *edit.where.pos)
        if (std::int64_t p = given < 0 ? given + tokens.pos : given;
            p < spans[b].begin || p >= spans[b].end)
          throw std::invalid_argument("[plan] " + hook_name(edit.site, edit.layer) + ": position " +
                                      std::to_string(p) + " of prompt " + std::to_string(b) +
                                      " is padding; pad on the other side (padding_side), or "
                                      "edit prompts one by one (batch)");
    }
}

// Runs; what the faults of this call changed is added to `fired` whether the run was refused or
// not.
template <class Run>
void with_faults(const HookedTransformer& model, RunOptions& options, const py::kwargs& call,
                 const Run& run) {
  auto specs = call.contains("faults") ? specs_from(call["faults"]) : std::vector<FaultSpec>{};
  InjectedFaults injected(specs, model.config());
  options.interference = interruptible(injected.interference());
  options.device_faults = injected.device_faults();
  Request named{.rows = {}, .plan = options.plan, .on_demand = {}, .callbacks = options.callbacks};
  auto report = [&] {
    for (const auto& firing : injected.log(named))
      call["fired"].attr("append")(py::make_tuple(firing.fault, firing.name, firing.changed));
  };
  try {
    py::gil_scoped_release release;
    run();
  } catch (...) {
    report();
    throw;
  }
  report();
}

py::object wanted(const std::string& return_type, const Array& output,
                  const std::optional<Array>& loss) {
  if (return_type == "none") return py::none();
  if (return_type == "loss") return to_python(*loss);
  if (return_type == "both") return py::make_tuple(to_python(output), to_python(*loss));
  return to_python(output);
}

// (what return_type asks for, the cache or None)
py::tuple run(Ours<HookedTransformer> self, Ours<Tokens> tokens, const std::string& return_type,
              bool loss_per_token, bool keep, const py::kwargs& call) {
  const HookedTransformer& model = *self;
  RunOptions options = options_from(model, *tokens, call);
  bool verified = options.verify.value_or(model.options().verify) != VerifyMode::off;
  bool wants_loss = return_type == "loss" || return_type == "both";
  if (wants_loss && (!model.config().causal || !unembeds(model.config().head)))
    throw std::invalid_argument("[model] return_type \"" + return_type +
                                "\": the loss is that of the next token, which this model does not "
                                "predict; allowed: \"logits\", None");
  require_tokens(options.plan, *tokens);
  std::optional<HeldVerified> cache;
  std::optional<HeldUnverified> unverified;
  Array output;
  std::optional<Array> loss;
  with_faults(model, options, call, [&] {
    Tokens start = options.start ? Tokens{.spans = tokens->spans} : *tokens;
    if (!keep) {
      output = model.forward(start, options);
    } else if (verified) {
      cache = HeldVerified{model.run_with_cache(start, options), tokenizer_of(model),
                           options.pos_slice};
      output = cache->cache.output();
    } else {
      unverified = HeldUnverified{
          std::make_shared<const UnverifiedCache>(model.run_unverified(start, options)),
          tokenizer_of(model), options.pos_slice};
      output = unverified->cache->activations().output().value;
    }
    if (wants_loss && !options.stop_at_layer) {
      loss = next_token_loss(output, tokens->ids, tokens->spans);
      if (!loss_per_token) loss = mean_loss(*loss, tokens->spans);
    }
  });
  py::object result = options.stop_at_layer ? to_python(output) : wanted(return_type, output, loss);
  return py::make_tuple(result, cache        ? py::cast(std::move(*cache))
                                : unverified ? py::cast(std::move(*unverified))
                                             : py::none());
}

LoadOptions load_options(const py::kwargs& call) {
  auto given = [&](const char* key) { return call.contains(key) && !call[key].is_none(); };
  LoadOptions options;
  options.processing = {call["fold_ln"].cast<bool>(), call["center_writing_weights"].cast<bool>(),
                        call["center_unembed"].cast<bool>(),
                        call["fold_value_biases"].cast<bool>()};
  options.device = call["device"].cast<std::string>();
  options.dtype = dtype_from_name(call["dtype"].cast<std::string>());
  options.verify = verify_mode_from_name(call["verify"].cast<std::string>());
  options.matmul_precision =
      matmul_precision_from_name(call["matmul_precision"].cast<std::string>());
  options.allow_fallback = call["allow_fallback"].cast<bool>();
  if (given("first_n_layers")) options.first_n_layers = call["first_n_layers"].cast<std::int64_t>();
  if (given("adapter")) options.adapter = call["adapter"].cast<std::string>();
  if (auto side = side_from(call["default_padding_side"].cast<std::optional<std::string>>()))
    options.default_padding_side = *side;
  if (given("default_prepend_bos"))
    options.default_prepend_bos = call["default_prepend_bos"].cast<bool>();
  if (given("tokenizer") && py::isinstance<Tokenizer>(call["tokenizer"])) {
    options.loaded_tokenizer = call["tokenizer"].cast<const Tokenizer&>();
  } else if (given("tokenizer")) {
    options.tokenizer = call["tokenizer"].cast<std::string>();
  }
  return options;
}

void bind_model(py::module_& m) {
  auto tokens = py::class_<Tokens>(m, "Tokens", py::is_final(),
                                   "Token ids that a model can run: [batch, pos].");
  tokens.def_property_readonly("batch", [](Ours<Tokens> self) { return self->batch; })
      .def_property_readonly("pos", [](Ours<Tokens> self) { return self->pos; })
      .def_property_readonly("spans",
                             [](Ours<Tokens> self) {
                               std::vector<std::vector<std::int64_t>> spans;
                               for (const Span& span : self->spans)
                                 spans.push_back({span.begin, span.end});
                               return spans;
                             })
      .def("types",
           [](Ours<Tokens> self) {
             std::vector<std::int64_t> types = self->types;
             types.resize(self->ids.size());  // none given: all 0
             return to_python(
                 Array::of(std::span<const std::int64_t>(types), {self->batch, self->pos}));
           })
      .def("mask",
           [](Ours<Tokens> self) {
             std::vector<std::int64_t> mask(self->ids.size(), self->spans.empty() ? 1 : 0);
             for (std::size_t b = 0; b < self->spans.size(); ++b)
               std::fill(
                   mask.begin() + static_cast<std::int64_t>(b) * self->pos + self->spans[b].begin,
                   mask.begin() + static_cast<std::int64_t>(b) * self->pos + self->spans[b].end, 1);
             return to_python(
                 Array::of(std::span<const std::int64_t>(mask), {self->batch, self->pos}));
           })
      .def(
          "masked",
          [](Ours<Tokens> self, const std::vector<std::int64_t>& mask) {
            return masked(*self, mask);
          },
          py::arg("mask"))
      .def(
          "typed",
          [](Ours<Tokens> self, std::vector<std::int64_t> types) {
            return typed(*self, std::move(types));
          },
          py::arg("types"))
      .def("tensor",
           [](Ours<Tokens> self) {
             return to_python(
                 Array::of(std::span<const std::int64_t>(self->ids), {self->batch, self->pos}));
           })
      .def("rows", [](Ours<Tokens> self) {
        std::vector<std::vector<std::int64_t>> rows;
        for (std::int64_t b = 0; b < self->batch; ++b)
          rows.emplace_back(self->ids.begin() + b * self->pos,
                            self->ids.begin() + (b + 1) * self->pos);
        return rows;
      });
  seal(tokens, ": use tensor()");

  auto model = py::class_<HookedTransformer>(m, "Model", py::is_final(),
                                             "A model, its tokenizer and its verifier. Immutable.");
  model
      .def_static(
          "load",
          [](const std::string& folder, const py::kwargs& call) {
            LoadOptions options = load_options(call);
            py::gil_scoped_release release;
            return std::make_unique<HookedTransformer>(
                HookedTransformer::from_pretrained(folder, options));
          },
          py::arg("folder"))
      .def("config",
           [](Ours<HookedTransformer> self) { return to_python(to_json(self->config())); })
      .def_property_readonly("name", [](Ours<HookedTransformer> self) { return self->name(); })
      .def_property_readonly("adapter",
                             [](Ours<HookedTransformer> self) { return self->adapter(); })
      .def_property_readonly("device",
                             [](Ours<HookedTransformer> self) { return self->options().device; })
      .def_property_readonly(
          "dtype",
          [](Ours<HookedTransformer> self) { return std::string(name_of(self->options().dtype)); })
      .def_property_readonly(
          "verify",
          [](Ours<HookedTransformer> self) { return std::string(name_of(self->options().verify)); })
      .def_property_readonly("default_padding_side",
                             [](Ours<HookedTransformer> self) {
                               return std::string(name_of(self->options().default_padding_side));
                             })
      .def_property_readonly("pad_token",
                             [](Ours<HookedTransformer> self) -> std::optional<std::int64_t> {
                               if (!self->has_tokenizer()) return {};
                               return self->tokenizer().pad_token_id();
                             })
      .def("processing",
           [](Ours<HookedTransformer> self) {
             const Processing p = self->processing();
             return py::dict(py::arg("fold_ln") = p.fold_ln,
                             py::arg("center_writing_weights") = p.center_writing_weights,
                             py::arg("center_unembed") = p.center_unembed,
                             py::arg("fold_value_biases") = p.fold_value_biases);
           })
      .def_property_readonly("default_prepend_bos",
                             [](Ours<HookedTransformer> self) -> std::optional<bool> {
                               auto given = self->options().default_prepend_bos;
                               if (given || !self->config().causal) return given;
                               return self->has_tokenizer() && self->tokenizer().bos_token_id();
                             })
      .def_property_readonly("tokenizer",
                             [](Ours<HookedTransformer> self) { return tokenizer_of(*self); })
      .def("digest",
           [](Ours<HookedTransformer> self) {
             py::gil_scoped_release release;
             return self->digest();
           })
      .def(
          "hook_names",
          [](Ours<HookedTransformer> self, bool on_demand) {
            return hook_names(self->config(), on_demand);
          },
          py::arg("on_demand") = false)
      .def(
          "find_hook",
          [](Ours<HookedTransformer> self, const std::string& name,
             std::optional<std::int64_t> layer, const std::string& layer_type) {
            TensorId id = find_hook(name, layer, layer_type, self->config());
            return hook_name(id.site, id.layer);
          },
          py::arg("name"), py::arg("layer") = py::none(), py::arg("layer_type") = "")
      .def(
          "tokens_of_texts",
          [](Ours<HookedTransformer> self, const std::vector<std::string>& texts,
             std::optional<bool> prepend_bos, const std::optional<std::string>& padding_side) {
            py::gil_scoped_release release;
            return self->to_tokens(texts, prepend_bos, side_from(padding_side));
          },
          py::arg("texts"), py::arg("prepend_bos") = py::none(),
          py::arg("padding_side") = py::none())
      .def(
          "tokens_of_pairs",
          [](Ours<HookedTransformer> self,
             const std::vector<std::pair<std::string, std::string>>& pairs,
             const std::optional<std::string>& padding_side) {
            py::gil_scoped_release release;
            return self->to_tokens_of_pairs(pairs, side_from(padding_side));
          },
          py::arg("pairs"), py::arg("padding_side") = py::none())
      .def(
          "tokens_of_ids",
          [](Ours<HookedTransformer> self, const py::object& ids, bool to_run,
             const std::optional<std::string>& padding_side) {
            return tokens_from(*self, ids, to_run, side_from(padding_side));
          },
          py::arg("ids"), py::arg("to_run") = true, py::arg("padding_side") = py::none())
      .def(
          "to_single_token",
          [](Ours<HookedTransformer> self, const std::string& text) {
            return self->to_single_token(text);
          },
          py::arg("text"))
      .def(
          "weight",
          [](Ours<HookedTransformer> self, const std::string& name) {
            std::optional<Array> view;
            {
              py::gil_scoped_release release;
              view = weight_view(self->weights(), name);
            }
            return to_python(*view);
          },
          py::arg("name"))
      .def(
          "residual_directions",
          [](Ours<HookedTransformer> self, const std::vector<std::int64_t>& tokens, Shape shape) {
            shape.push_back(self->config().d_model);
            return to_python(residual_directions(self->weights(), tokens).reshaped(shape));
          },
          py::arg("tokens"), py::arg("shape"))
      .def("run", &run, py::arg("tokens"), py::arg("return_type"), py::arg("loss_per_token"),
           py::arg("keep"))
      .def(
          "verify_recorded",
          [](Ours<HookedTransformer> self, Ours<Tokens> tokens, const py::dict& activations) {
            std::map<std::string, Array> recorded;
            for (const auto& [name, tensor] : activations)
              recorded[name.cast<std::string>()] =
                  to_array(tensor, "[verify] " + name.cast<std::string>());
            py::gil_scoped_release release;
            return HeldVerified{self->verify_recorded(*tokens, recorded), tokenizer_of(*self),
                                std::nullopt};
          },
          py::arg("tokens"), py::arg("activations"));
  seal(model, ": load it again from its folder");
}

void bind_logit_lens(py::module_& m) {
  auto lens = py::class_<LogitLens>(
      m, "Lens", py::is_final(), "What logit_lens returns, before lenscpp.LogitLens dresses it.");
  lens.def_property_readonly("labels", [](Ours<LogitLens> self) { return self->labels(); })
      .def_property_readonly("site",
                             [](Ours<LogitLens> self) {
                               std::string name(info(self->site()).name);
                               return name.starts_with("hook_") ? name.substr(5) : name;
                             })
      .def_property_readonly("apply_ln", [](Ours<LogitLens> self) { return self->apply_ln(); })
      .def_property_readonly(
          "shape", [](Ours<LogitLens> self) { return py::tuple(py::cast(self->logits().shape())); })
      .def("logits", [](Ours<LogitLens> self) { return to_python(self->logits()); })
      .def("probs",
           [](Ours<LogitLens> self) {
             std::optional<Array> probs;
             {
               py::gil_scoped_release release;
               probs = self->probs();
             }
             return to_python(*probs);
           })
      .def(
          "rank",
          [](Ours<LogitLens> self, std::int64_t token) { return to_python(self->rank(token)); },
          py::arg("token"))
      .def("entropy", [](Ours<LogitLens> self) { return to_python(self->entropy()); })
      .def(
          "top_k",
          [](Ours<LogitLens> self, std::int64_t k) {
            const Shape& s = self->logits().shape();
            Shape shape{s[0], s[1], s[2], k};
            std::vector<std::int64_t> tokens;
            std::vector<double> logits, probabilities;
            {
              py::gil_scoped_release release;
              for (std::int64_t l = 0; l < s[0]; ++l)
                for (std::int64_t b = 0; b < s[1]; ++b)
                  for (std::int64_t p = 0; p < s[2]; ++p)
                    for (const RankedToken& top : self->top_k(l, b, p, k)) {
                      tokens.push_back(top.token);
                      logits.push_back(top.logit);
                      probabilities.push_back(top.probability);
                    }
            }
            return py::make_tuple(
                to_python(Array::of(std::span<const std::int64_t>(tokens), shape)),
                to_python(Array::of(std::span<const double>(probabilities), shape).to(DType::f32)),
                to_python(Array::of(std::span<const double>(logits), shape).to(DType::f32)));
          },
          py::arg("k"));
  seal(lens, ": take the tensors out");

  m.def(
      "logit_lens",
      [](Analysed cache, const std::string& site, bool apply_ln) {
        TensorId id = find_hook(site, 0, "", cache->cache.weights().config);
        py::gil_scoped_release release;
        return logit_lens(cache->cache, {.site = id.site, .apply_ln = apply_ln});
      },
      py::arg("cache"), py::arg("site"), py::arg("apply_ln"));

  m.def(
      "single_token",
      [](Ours<Tokenizer> tokenizer, const std::string& text) {
        return single_token(*tokenizer, text);
      },
      py::arg("tokenizer"), py::arg("text"));
}

void bind_faults(py::module_& m) {
  auto spec =
      py::class_<FaultSpec>(m, "FaultSpec", py::is_final(),
                            "One fault to inject; what is not given is chosen by the seed.");
  spec.def(py::init([](const std::string& name, const std::map<std::string, double>& parameters,
                       std::optional<std::string> hook, std::optional<std::int64_t> layer,
                       std::uint64_t seed, std::int64_t stage) {
             if (!is_device_fault(name)) fault_info(name);
             return FaultSpec{.name = name,
                              .parameters = parameters,
                              .hook = std::move(hook),
                              .layer = layer,
                              .seed = seed,
                              .stage = stage};
           }),
           py::arg("name"), py::arg("parameters"), py::arg("hook"), py::arg("layer"),
           py::arg("seed"), py::arg("stage"))
      .def_property_readonly("name", [](Ours<FaultSpec> self) { return self->name; })
      .def("__repr__", [](Ours<FaultSpec> self) {
        return "<fault " + self->name + " at " + self->hook.value_or("every site") + ">";
      });
  freeze(spec);
  m.def("fault_catalogue", [] {
    auto add = [](py::dict& parameters, std::span<const FaultParameter> list) {
      for (const FaultParameter& p : list)
        parameters[py::str(std::string(p.name))] =
            py::dict(py::arg("meaning") = std::string(p.meaning), py::arg("default") = p.preset,
                     py::arg("whole") = p.whole);
    };
    py::list rows;
    for (const FaultInfo& fault : fault_catalogue()) {
      py::dict parameters;
      add(parameters, fault.parameters);
      rows.append(py::dict(py::arg("name") = std::string(fault.name), py::arg("kind") = "tap",
                           py::arg("description") = std::string(fault.description),
                           py::arg("source") = std::string(fault.source),
                           py::arg("parameters") = parameters));
    }
    for (const DeviceFaultInfo& fault : device_fault_catalogue()) {
      py::dict parameters;
      add(parameters, fault.parameters);
      add(parameters, device_fault_parameters());
      rows.append(py::dict(py::arg("name") = std::string(fault.name), py::arg("kind") = "device",
                           py::arg("id") = std::string(fault.id),
                           py::arg("description") = std::string(fault.description),
                           py::arg("source") = std::string(fault.source),
                           py::arg("trigger") = std::string(fault.trigger),
                           py::arg("recipe") = std::string(fault.recipe),
                           py::arg("operators") = std::vector<std::string>(fault.operators.begin(),
                                                                           fault.operators.end()),
                           py::arg("parameters") = parameters));
    }
    return rows;
  });
}

}  // namespace

void bind_lens(py::module_& m) {
  m.def("device_warning_once", &device_warning_once, py::arg("device"));
  bind_model(m);
  bind_logit_lens(m);
  bind_faults(m);
}

}  // namespace lenscpp::python
