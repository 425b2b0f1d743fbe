// lenscpp preflight: does it fit? Arithmetic over config.json alone.
#include "lens/preflight.h"
#include "hooks/nearest.h"
#include "patching/command/common.h"
#include "patching/command/report.h"
#include "patching/command/shipped_models.h"
#include "patching/command/terminal.h"

namespace lenscpp::command {
namespace {

using nlohmann::ordered_json;

constexpr const char* kFooter = R"(Examples:
  lenscpp preflight tiny-ioi
  lenscpp preflight tiny-ioi --device mps --batch 64 --length 15 --dtype bfloat16
  lenscpp preflight tiny-ioi --device mps --batch 4000000    # does not fit, status 4

Only config.json is read, of an adapter its config and the sizes of its tensors, and nothing is allocated: the sizes of
every weight and of every tensor of a run, beside the limits of the device in the PyTorch of this build, and the memory
that loading and running need beside what there is.
Exit status: 0 it fits, 4 it does not or there is no such device.
)";

struct Options : CommonOptions {
  std::int64_t batch = 1, length = 0;
};

ExitStatus preflight(const Options& o) {
  PreflightOptions options{.load = {.device = o.device, .dtype = dtype_from_name(o.dtype)},
                           .batch = o.batch};
  if (options.load.dtype == DType::i64)
    throw std::invalid_argument(
        "[--dtype] a model cannot be int64; allowed: float32, float64, bfloat16, float16");
  if (o.no_processing) options.load.processing = Processing::none();
  if (o.adapter) options.load.adapter = *o.adapter;
  if (o.length > 0) options.pos = o.length;
  std::optional<Preflight> found;
  from_disk([&] { found = lenscpp::preflight(resolve_model(o.model), options); });
  ExitStatus status = found->fits() ? ExitStatus::done : ExitStatus::device;
  if (o.json) {
    ordered_json document{{"command", "preflight"}, {"exit_status", static_cast<int>(status)}};
    document.update(ordered_json(to_json(*found)));
    print_json(document);
  } else {
    print(in_words(*found));
  }
  return status;
}

}  // namespace

Action add_preflight(CLI::App& program) {
  auto o = std::make_shared<Options>();
  CLI::App& command = *program.add_subcommand(
      "preflight", "Whether a model and a run fit on a device, without running either");
  add_model_option(command, *o);
  command.add_option("--batch", o->batch, "Prompts that run together")
      ->type_name("N")
      ->group("Input")
      ->capture_default_str()
      ->check(whole_number(1, kAnyNumber));
  command.add_option("--length", o->length, "Tokens of each; 0: as many as the model takes")
      ->type_name("N")
      ->group("Input")
      ->capture_default_str()
      ->check(whole_number(0, kAnyNumber));
  add_common_options(command, *o);
  for (const char* name : {"--threads", "--seed"}) command.remove_option(command.get_option(name));
  command.footer(kFooter);
  return [o] { return preflight(*o); };
}

}  // namespace lenscpp::command
