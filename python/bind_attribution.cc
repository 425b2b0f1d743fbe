// lens/decomposition and lens/attribution in Python: what they compute, and the names under which
// caches offer it. The arguments of the methods are adapted by lenscpp/_attribution.py.
#include "lens/attribution.h"

#include "lens/decomposition.h"
#include "python/bind.h"

namespace lenscpp::python {
namespace {

// None, or (indices, whether the axis is dropped).
using Slice = std::optional<std::pair<std::vector<std::int64_t>, bool>>;
Choice choice(const Slice& slice) {
  return slice ? Choice{.indices = slice->first, .collapses = slice->second} : Choice{};
}
using Layer = std::optional<std::int64_t>;

Array array_or_none(const py::object& tensor, std::string_view what) {
  return tensor.is_none() ? Array() : to_array(tensor, what);
}

// Runs `compute` without the GIL; (values, labels).
template <class Compute>
py::tuple stacked(const Compute& compute) {
  Stack stack;
  {
    py::gil_scoped_release release;
    stack = compute();
  }
  return py::make_tuple(to_python(stack.values), stack.labels);
}
template <class Compute>
py::object computed(const Compute& compute) {
  Array array;
  {
    py::gil_scoped_release release;
    array = compute();
  }
  return to_python(array);
}

ResidMode mode_from_name(const std::string& name) {
  if (name == "all") return ResidMode::all;
  if (name == "mlp") return ResidMode::mlp;
  if (name == "attn") return ResidMode::attn;
  throw std::invalid_argument("[decompose_resid] mode \"" + name + "\"; allowed: all, mlp, attn");
}

std::optional<Array> ids_or_none(const py::object& tensor, std::string_view what) {
  return tensor.is_none() ? std::nullopt : std::optional(to_ids(tensor, what));
}

struct Method {
  const char *name, *doc;
};
constexpr Method kMethods[] = {
    {"accumulated_resid",
     R"(accumulated_resid(layer=None, incl_mid=False, apply_ln=False, pos_slice=None, mlp_input=False, return_labels=False) -> Tensor, or (Tensor, labels)

The residual stream at each layer up to the input of `layer` (None: the unembedding): [component, batch, pos,
d_model], "0_pre", ("0_mid",) ..., "final_post". apply_ln: through the final norm, recomputed for each; below
the last layer by that layer's own scale. pos_slice: as TransformerLens's Slice; an int drops the axis.
ValueError names an activation that was not kept, IndexError a layer or position that is not there.)"},
    {"decompose_resid",
     R"(decompose_resid(layer=None, mlp_input=False, mode="all", apply_ln=False, pos_slice=None, incl_embeds=True, return_labels=False) -> Tensor, or (Tensor, labels)

What was written into the residual stream before `layer` (None: the unembedding): [component, batch, pos,
d_model], "embed", "pos_embed", "0_attn_out", "0_mlp_out", ... mode: "all", "mlp" or "attn". apply_ln: centred
and divided by the run's own scale. Errors as accumulated_resid.)"},
    {"stack_head_results",
     R"(stack_head_results(layer=-1, return_labels=False, incl_remainder=False, pos_slice=None, apply_ln=False) -> Tensor, or (Tensor, labels)

What each head before `layer` wrote, without b_O: [component, batch, pos, d_model], "L0H0", "L0H1", ...,
"remainder" (the residual less all heads). Changes nothing in the cache. Errors as accumulated_resid.)"},
    {"stack_neuron_results",
     R"(stack_neuron_results(layer, pos_slice=None, neuron_slice=None, return_labels=False, incl_remainder=False, apply_ln=False, project_output_onto=None) -> Tensor, or (Tensor, labels)

What each neuron before `layer` wrote, without b_out: [component, batch, pos, d_model], "L0N0", ...
project_output_onto: a tensor [d_model] or [d_model, output] that takes the place of the last axis.)"},
    {"get_neuron_results",
     R"(get_neuron_results(layer, neuron_slice=None, pos_slice=None, project_output_onto=None) -> Tensor

What each neuron of one layer wrote: [batch, pos, neuron, d_model].)"},
    {"get_full_resid_decomposition",
     R"(get_full_resid_decomposition(layer=None, mlp_input=False, expand_neurons=True, apply_ln=False, pos_slice=None, return_labels=False, project_output_onto=None) -> Tensor, or (Tensor, labels)

Heads, then neurons (or whole MLPs), "embed", "pos_embed" and "bias": [component, batch, pos, d_model]. They sum
to the input of `layer` where no edit came between.)"},
    {"stack_activation",
     R"(stack_activation(activation_name, layer=-1, sublayer_type=None) -> Tensor

One activation over the layers before `layer`, in its own dtype: [layer, ...].)"},
    {"apply_ln_to_stack",
     R"(apply_ln_to_stack(residual_stack, layer=None, mlp_input=False, pos_slice=None, batch_slice=None, has_batch_dim=True, recompute_ln=False) -> Tensor

A stack [component, batch, pos, d_model] centred and divided by the scale by which the run divided the input of
`layer` (None: the unembedding). pos_slice was applied to the stack before, batch_slice is applied here.)"},
    {"logit_attrs",
     R"(logit_attrs(residual_stack, tokens, incorrect_tokens=None, pos_slice=None, batch_slice=None, has_batch_dim=True) -> Tensor

What each component of a stack adds to the logit of `tokens`, less that of `incorrect_tokens`: [component, batch,
pos]. Tokens: a str or an id for all, a list or tensor of one a prompt, or a tensor [batch, pos]. In a model that
was not processed the final norm's weight is counted, which TransformerLens leaves out.)"},
};

void bind_functions(py::module_& m) {
  m.def(
      "cache_extents",
      [](Analysed cache) {
        HeldExtents held = held_extents(cache->cache);
        return py::make_tuple(held.batch, held.pos);
      },
      py::arg("cache"));
  m.def(
      "cache_d_mlp", [](Analysed cache) { return cache->cache.config().d_mlp; }, py::arg("cache"));
  m.def(
      "accumulated_resid",
      [](Analysed cache, Layer layer, bool incl_mid, bool apply_ln, const Slice& pos,
         bool mlp_input) {
        return stacked([&] {
          return accumulated_resid(cache->cache, {.layer = layer,
                                                  .incl_mid = incl_mid,
                                                  .apply_ln = apply_ln,
                                                  .pos = choice(pos),
                                                  .mlp_input = mlp_input});
        });
      },
      py::arg("cache"), py::arg("layer"), py::arg("incl_mid"), py::arg("apply_ln"),
      py::arg("pos_slice"), py::arg("mlp_input"));
  m.def(
      "decompose_resid",
      [](Analysed cache, Layer layer, bool mlp_input, const std::string& mode, bool apply_ln,
         const Slice& pos, bool incl_embeds) {
        return stacked([&] {
          return decompose_resid(cache->cache, {.layer = layer,
                                                .mlp_input = mlp_input,
                                                .mode = mode_from_name(mode),
                                                .apply_ln = apply_ln,
                                                .pos = choice(pos),
                                                .incl_embeds = incl_embeds});
        });
      },
      py::arg("cache"), py::arg("layer"), py::arg("mlp_input"), py::arg("mode"),
      py::arg("apply_ln"), py::arg("pos_slice"), py::arg("incl_embeds"));
  m.def(
      "stack_head_results",
      [](Analysed cache, Layer layer, bool incl_remainder, const Slice& pos, bool apply_ln) {
        return stacked([&] {
          return stack_head_results(cache->cache, {.layer = layer,
                                                   .incl_remainder = incl_remainder,
                                                   .pos = choice(pos),
                                                   .apply_ln = apply_ln});
        });
      },
      py::arg("cache"), py::arg("layer"), py::arg("incl_remainder"), py::arg("pos_slice"),
      py::arg("apply_ln"));
  m.def(
      "stack_neuron_results",
      [](Analysed cache, Layer layer, const Slice& pos, const Slice& neurons, bool incl_remainder,
         bool apply_ln, const py::object& projection) {
        Array onto = array_or_none(projection, "[stack_neuron_results] project_output_onto");
        return stacked([&] {
          return stack_neuron_results(cache->cache, {.layer = layer,
                                                     .pos = choice(pos),
                                                     .neurons = choice(neurons),
                                                     .incl_remainder = incl_remainder,
                                                     .apply_ln = apply_ln,
                                                     .project_output_onto = onto});
        });
      },
      py::arg("cache"), py::arg("layer"), py::arg("pos_slice"), py::arg("neuron_slice"),
      py::arg("incl_remainder"), py::arg("apply_ln"), py::arg("project_output_onto"));
  m.def(
      "get_neuron_results",
      [](Analysed cache, std::int64_t layer, const Slice& neurons, const Slice& pos,
         const py::object& projection) {
        Array onto = array_or_none(projection, "[get_neuron_results] project_output_onto");
        return computed([&] {
          return get_neuron_results(cache->cache, {.layer = layer,
                                                   .pos = choice(pos),
                                                   .neurons = choice(neurons),
                                                   .project_output_onto = onto});
        });
      },
      py::arg("cache"), py::arg("layer"), py::arg("neuron_slice"), py::arg("pos_slice"),
      py::arg("project_output_onto"));
  m.def(
      "get_full_resid_decomposition",
      [](Analysed cache, Layer layer, bool mlp_input, bool expand_neurons, bool apply_ln,
         const Slice& pos, const py::object& projection) {
        Array onto =
            array_or_none(projection, "[get_full_resid_decomposition] project_output_onto");
        return stacked([&] {
          return get_full_resid_decomposition(cache->cache, {.layer = layer,
                                                             .mlp_input = mlp_input,
                                                             .expand_neurons = expand_neurons,
                                                             .apply_ln = apply_ln,
                                                             .pos = choice(pos),
                                                             .project_output_onto = onto});
        });
      },
      py::arg("cache"), py::arg("layer"), py::arg("mlp_input"), py::arg("expand_neurons"),
      py::arg("apply_ln"), py::arg("pos_slice"), py::arg("project_output_onto"));
  m.def(
      "stack_activation",
      [](Analysed cache, const std::string& name, Layer layer, const std::string& sublayer_type) {
        return computed([&] { return stack_activation(cache->cache, name, layer, sublayer_type); });
      },
      py::arg("cache"), py::arg("activation_name"), py::arg("layer"), py::arg("sublayer_type"));
  m.def(
      "apply_ln_to_stack",
      [](Analysed cache, const py::object& stack, Layer layer, bool mlp_input, const Slice& pos,
         const Slice& batch, bool has_batch_dim, bool recompute_ln) {
        Array residual_stack = to_array(stack, "[apply_ln_to_stack] residual_stack");
        return computed([&] {
          return apply_ln_to_stack(
              cache->cache, residual_stack,
              {.layer = layer,
               .mlp_input = mlp_input,
               .rows = {.pos = choice(pos), .batch = choice(batch), .has_batch_dim = has_batch_dim},
               .recompute_ln = recompute_ln});
        });
      },
      py::arg("cache"), py::arg("residual_stack"), py::arg("layer"), py::arg("mlp_input"),
      py::arg("pos_slice"), py::arg("batch_slice"), py::arg("has_batch_dim"),
      py::arg("recompute_ln"));
  m.def(
      "logit_attrs",
      [](Analysed cache, const py::object& stack, const py::object& tokens, const py::object& wrong,
         const Slice& pos, const Slice& batch, bool has_batch_dim) {
        Array residual_stack = to_array(stack, "[logit_attrs] residual_stack");
        Array ids = to_ids(tokens, "[logit_attrs] tokens");
        auto wrong_ids = ids_or_none(wrong, "[logit_attrs] incorrect_tokens");
        return computed([&] {
          return logit_attrs(
              cache->cache, residual_stack, ids, wrong_ids,
              {.pos = choice(pos), .batch = choice(batch), .has_batch_dim = has_batch_dim});
        });
      },
      py::arg("cache"), py::arg("residual_stack"), py::arg("tokens"), py::arg("incorrect_tokens"),
      py::arg("pos_slice"), py::arg("batch_slice"), py::arg("has_batch_dim"));
  m.def(
      "direct_logit_attribution",
      [](Analysed cache, const py::object& answer, const py::object& wrong, const std::string& unit,
         const Slice& pos) {
        Array ids = to_ids(answer, "[direct_logit_attribution] answer");
        auto wrong_ids = ids_or_none(wrong, "[direct_logit_attribution] wrong");
        LogitAttribution found;
        {
          py::gil_scoped_release release;
          found = direct_logit_attribution(cache->cache, ids, wrong_ids,
                                           attribution_unit_from_name(unit), choice(pos));
        }
        return py::make_tuple(found.labels, to_python(found.values), to_python(found.total),
                              to_python(found.logit_diff), to_python(found.bound));
      },
      py::arg("cache"), py::arg("answer"), py::arg("wrong"), py::arg("unit"), py::arg("pos"));
}

// A method of the class under its doc's own signature.
template <class Call>
void add_method(py::handle cls, const Method& method, Call call) {
  py::setattr(cls, method.name,
              py::cpp_function(std::move(call), py::is_method(cls), py::name(method.name),
                               py::doc(method.doc)));
}

}  // namespace

void bind_attribution(py::module_& m) { bind_functions(m); }

void bind_analyses(py::class_<HeldVerified>& cache) {
  py::options options;
  options.disable_function_signatures();
  for (const Method& method : kMethods)
    add_method(
        cache, method,
        [name = method.name](const py::object& self, const py::args& args,
                             const py::kwargs& kwargs) {
          return py::module_::import("lenscpp._attribution").attr(name)(self, *args, **kwargs);
        });
}

void bind_analyses(py::class_<HeldUnverified>& cache) {
  py::options options;
  options.disable_function_signatures();
  for (const Method& method : kMethods)
    add_method(
        cache, method,
        [name = method.name](const py::object&, const py::args&, const py::kwargs&) -> py::object {
          throw NotVerified(std::string("[") + name +
                            "] needed: a VerifiedCache, as run_with_cache and "
                            "verify_recorded return; found: an UnverifiedCache");
        });
}

}  // namespace lenscpp::python
