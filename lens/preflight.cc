// Preflight on this machine.
#include "lens/preflight.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#include <set>

#include "hooks/checkpoint/adapters.h"
#include "lens/device.h"
#include "verify/device/simulated.h"

namespace lenscpp {
namespace {

// Tokens of a run that is only measured: none; positions neither.
Request request_of(const Config& config, const PreflightOptions& o) {
  std::int64_t pos = o.pos.value_or(config.n_ctx);
  if (o.batch < 1 || pos < 1)
    throw std::invalid_argument("[preflight] " + std::to_string(o.batch) + " prompts of " +
                                std::to_string(pos) + " tokens; at least one of each is needed");
  if (pos > config.n_ctx)
    throw std::out_of_range("[preflight] length " + std::to_string(pos) +
                            " is beyond the model's context: n_ctx is " +
                            std::to_string(config.n_ctx));
  Request request{.rows = {.batch = o.batch,
                           .pos = pos,
                           .tokens = {},
                           .positions = {},
                           .end_layer = config.n_layers},
                  .plan = o.plan,
                  .on_demand = {}};
  o.plan.validate(config, request.rows.extents());
  return request;
}

Config as_loaded(Config config, const LoadOptions& load) {
  if (!load.first_n_layers) return config;
  if (*load.first_n_layers < 1 || *load.first_n_layers > config.n_layers)
    throw std::out_of_range("[preflight] first_n_layers " + std::to_string(*load.first_n_layers) +
                            " out of range: the checkpoint has " + std::to_string(config.n_layers) +
                            " layers");
  config.n_layers = *load.first_n_layers;
  return config;
}

// What the simulated device imitates of Apple's, as it is set now.
DeviceLimits simulated_limits() {
  DeviceLimits limits;
  if (std::int64_t most = simulated_device().limits()->max_buffer_bytes; most > 0)
    limits.limits.push_back({.name = std::to_string(most) + " bytes a buffer",
                             .measure = Measure::bytes,
                             .most = most});
  return limits;
}

std::string kind_of(const std::string& device) { return device.substr(0, device.find(':')); }

// "cuda" is "cuda:0".
bool same_device(const std::string& a, const std::string& b) {
  c10::Device x = parsed_device(a), y = parsed_device(b);
  auto index = [](c10::Device d) { return d.has_index() ? d.index() : c10::DeviceIndex{0}; };
  return x.type() == y.type() && index(x) == index(y);
}

}  // namespace

std::optional<std::string> dtype_refused(const std::string& device, DType dtype) {
  bool simulated = kind_of(device) == "simulated";
  if (simulated && simulated_device().limits()->float64) return {};
  return why_not(simulated ? "mps" : kind_of(device), running_macos(), name_of(dtype));
}

DeviceLimits limits_of_device(const std::string& device) {
  DeviceLimits limits = kind_of(device) == "simulated"
                            ? simulated_limits()
                            : limits_of(kind_of(device), version_from(TORCH_VERSION));
  limits.device = device;
  return limits;
}

std::optional<AvailableMemory> available_device_memory(const std::string& device) {
  try {
    c10::Device which(device);
    if (which.is_cpu()) return {};
    at::globalContext().lazyInitDevice(which.type());  // before it the allocator knows no device
    c10::DeviceIndex index = which.has_index() ? which.index() : c10::DeviceIndex{0};
    c10::DeviceAllocator* allocator = c10::getDeviceAllocator(which.type());
    auto free = static_cast<std::int64_t>(allocator->getMemoryInfo(index).first);
    // What the allocator keeps for later is not free to the driver, but free to us.
    auto stats = allocator->getDeviceStats(index);
    free += stats.reserved_bytes.at(0).current - stats.allocated_bytes.at(0).current;
    return AvailableMemory{free, "the allocator of " + device};
  } catch (const c10::Error&) {
    return {};  // no such device, or one that does not say
  }
}

namespace {

// Of an adapter only its config and the headers of its tensors are read.
PlannedLoad planned_load(const LoadOptions& o, bool on_host,
                         const std::optional<AlreadyLoaded>& loaded) {
  PlannedLoad load{
      .processing = o.processing, .dtype = o.dtype, .on_host = on_host, .loaded = loaded};
  if (!o.adapter || loaded) return load;
  Adapter adapter = Adapter::open(*o.adapter);
  load.adapter_bytes = adapter.nbytes();
  load.merged_elements = adapter.merged_elements();
  return load;
}

Preflight preflight_of(const Config& config, const std::string& name, const PreflightOptions& o,
                       const std::optional<AlreadyLoaded>& loaded) {
  bool on_host = parsed_device(o.load.device).is_cpu();
  Request request = request_of(config, o);
  PreflightQuestion question{
      .model = name,
      .device = o.load.device,
      .load = planned_load(o.load, on_host, loaded),
      .use = {.on_host = on_host,
              .verified = o.verify.value_or(o.load.verify) != VerifyMode::off,
              .threads = at::get_num_threads()},
      .limits = o.load.limits.value_or(limits_of_device(o.load.device)),
      .dtype_refused = dtype_refused(o.load.device, o.load.dtype),
      .host = available_host_memory(),
      .device_memory = available_device_memory(o.load.device)};
  if (o.names) {
    std::set<std::pair<Site, std::int64_t>> wanted;
    for (const TensorId& id : selected_hooks(config, {.names = o.names})) {
      wanted.insert({id.site, id.layer});
      if (info(id.site).presence == Presence::on_demand)
        request.on_demand.insert({id.site, id.layer});
    }
    question.use.keep = [wanted](Site site, std::int64_t layer) {
      return wanted.contains({site, layer});
    };
  }
  return preflight(config, request, question);
}

}  // namespace

Preflight preflight(const std::filesystem::path& folder, const PreflightOptions& options) {
  auto name = folder.filename().empty() ? folder.parent_path().filename() : folder.filename();
  return preflight_of(as_loaded(read_config(folder), options.load), name.string(), options, {});
}

Preflight preflight(const HookedTransformer& model, PreflightOptions options,
                    const std::optional<Elsewhere>& elsewhere) {
  AlreadyLoaded loaded{.dtype = model.options().dtype, .in_place = true};
  options.load = model.options();
  if (elsewhere) {
    loaded.in_place = same_device(elsewhere->device, options.load.device);
    options.load.device = elsewhere->device;
    options.load.dtype = elsewhere->dtype;
  }
  return preflight_of(model.config(), model.name(), options, loaded);
}

}  // namespace lenscpp
