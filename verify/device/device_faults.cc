// When a device fault fires, and what it is shown. The table itself: device_fault_table.cc.
#include "verify/device/device_faults.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "hooks/nearest.h"

namespace lenscpp {
namespace {

constexpr FaultParameter kGeneric[] = {
    {"call",
     "only the call with this number of those that meet the condition, from 0",
     {},
     true,
     0},
    {"probability", "that it happens where it could", 1, false, 0},
    {"always", "1: whether the condition is met or not", 0, true, 0}};

std::string names_of_all() {
  std::string text;
  for (const DeviceFaultInfo& fault : device_fault_catalogue())
    text += (text.empty() ? "" : ", ") + std::string(fault.id) + " " + std::string(fault.name);
  return text;
}

const DeviceFaultInfo* find_fault(std::string_view name) {
  for (const DeviceFaultInfo& fault : device_fault_catalogue())
    if (fault.id == name || fault.name == name) return &fault;
  return nullptr;
}

bool sits_in(const DeviceFaultInfo& fault, std::string_view op) {
  return std::ranges::find(fault.operators, op) != fault.operators.end() ||
         std::ranges::find(fault.operators, "*") != fault.operators.end();
}

PastCall past_of(const DeviceCall& call) {
  PastCall past;
  for (const Operand& input : call.inputs()) past.shapes.push_back(input.shape);
  for (const char* name : {"alpha", "beta", "scale"})
    if (auto value = call.scalar(name)) past.scalars[name] = *value;
  return past;
}

}  // namespace

bool Operand::contiguous() const {
  std::int64_t stride = 1;
  for (std::size_t d = shape.size(); d-- > 0;) {
    if (shape[d] != 1 && strides[d] != stride) return false;
    stride *= shape[d];
  }
  return true;
}

bool Operand::expanded() const {
  for (std::size_t d = 0; d < shape.size(); ++d)
    if (shape[d] > 1 && strides[d] == 0) return true;
  return false;
}

double DeviceFaultContext::get(std::string_view name) const {
  auto given = spec->parameters.find(std::string(name));
  if (given != spec->parameters.end()) return given->second;
  for (auto list : {parameters, std::span<const FaultParameter>(kGeneric)}) {
    auto known = std::ranges::find(list, name, &FaultParameter::name);
    if (known != list.end() && known->preset) return *known->preset;
  }
  throw std::logic_error("[faults] " + spec->name + " has no parameter " + std::string(name));
}
std::int64_t DeviceFaultContext::whole(std::string_view name) const {
  return static_cast<std::int64_t>(get(name));
}
double DeviceFaultContext::noise() { return static_cast<double>((*random)() >> 11) * 0x1p-52 - 1; }
std::int64_t DeviceFaultContext::draw(std::int64_t n) {
  return static_cast<std::int64_t>((*random)() % static_cast<std::uint64_t>(n));
}

std::vector<double> DeviceFaultContext::stale(DType dtype, std::int64_t n) const {
  // A block that was as large, else the largest one again and again.
  std::vector<double> values(static_cast<std::size_t>(n), 0.0);
  auto found = freed->lower_bound({dtype, n});
  if (found == freed->end() || found->first.first != dtype) {
    if (found == freed->begin() || std::prev(found)->first.first != dtype) return values;
    --found;
  }
  for (std::size_t i = 0; i < values.size() && !found->second.empty(); ++i)
    values[i] = found->second[static_cast<std::int64_t>(i) % found->second.numel()];
  return values;
}

std::span<const FaultParameter> device_fault_parameters() { return kGeneric; }

bool is_device_fault(std::string_view name) { return find_fault(name) != nullptr; }

const DeviceFaultInfo& device_fault_info(std::string_view name) {
  if (const DeviceFaultInfo* fault = find_fault(name)) return *fault;
  std::vector<std::string> names;
  for (const DeviceFaultInfo& fault : device_fault_catalogue()) names.emplace_back(fault.name);
  throw std::invalid_argument("[faults] no fault of a device " + in_quotes(name) + "; nearest: " +
                              nearest_names(name, names) + "; all: " + names_of_all());
}

DeviceFaults::DeviceFaults(std::vector<FaultSpec> specs, std::optional<Config> config)
    : specs_(std::move(specs)), config_(std::move(config)) {
  for (std::size_t i = 0; i < specs_.size(); ++i) {
    const FaultSpec& spec = specs_[i];
    Armed armed{.info = &device_fault_info(spec.name), .spec = i, .place = {}, .random = {}};
    std::vector<FaultParameter> known(armed.info->parameters.begin(), armed.info->parameters.end());
    known.insert(known.end(), std::begin(kGeneric), std::end(kGeneric));
    check_parameters(spec, known);
    if ((spec.hook || spec.layer) && !config_)
      throw std::invalid_argument("[faults] " + spec.name +
                                  ": a fault that is armed outside of runs has no hook and no "
                                  "layer: what is computed there is not known");
    if (spec.hook || spec.layer) {
      std::vector<std::string> allowed;
      for (const SiteInfo& row : all_sites())
        if (exists(row.site, *config_)) allowed.emplace_back(row.name);
      armed.place = place_of(spec, *config_, allowed);
    }
    std::seed_seq seeds{spec.seed & 0xffffffffu, spec.seed >> 32, std::uint64_t{i}};
    armed.random.seed(seeds);
    armed_.push_back(std::move(armed));
  }
}

void DeviceFaults::begin(const std::vector<TensorId>& order) {
  order_ = order;
  place_.clear();
  for (std::size_t i = 0; i < order_.size(); ++i) place_[order_[i]] = i;
  next_ = 0;
  running_ = true;
}
void DeviceFaults::passed(const TensorId& id) {
  if (auto found = place_.find(id); found != place_.end()) next_ = found->second + 1;
}
void DeviceFaults::end() { running_ = false; }

// What is copied to the host has just been computed; everything else serves what comes next.
std::optional<TensorId> DeviceFaults::tensor_of(const DeviceCall& call) const {
  if (!running_) return {};
  std::size_t i = call.op() == "copy_to_host" ? next_ - 1 : next_;
  return i < order_.size() ? std::optional(order_[i]) : std::nullopt;
}

bool DeviceFaults::in_place_of(const Armed& armed, const DeviceCall& call) const {
  if (!armed.place) return true;
  auto id = tensor_of(call);
  return id && id->stage == specs_[armed.spec].stage && armed.place->holds(*id);
}

DeviceFaultContext DeviceFaults::context(Armed& armed, DeviceCall& call) {
  auto first = first_.find(call.op()), past = past_.find(call.op());
  return {.call = call,
          .number = calls_[call.op()],
          .past = past != past_.end() ? &past->second : nullptr,
          .first = first != first_.end() ? &first->second : nullptr,
          .config = config_,
          .freed = &freed_,
          .spec = &specs_[armed.spec],
          .parameters = armed.info->parameters,
          .random = &armed.random};
}

bool DeviceFaults::begin_call(DeviceCall& call) {
  bool any = false;
  for (Armed& armed : armed_) {
    armed.due = false;
    armed.clobbered = 0;
    if (!sits_in(*armed.info, call.op()) || !in_place_of(armed, call)) continue;
    DeviceFaultContext c = context(armed, call);
    if (!c.always() && !armed.info->triggers(c)) continue;
    std::int64_t met = armed.met++;
    const auto& given = c.spec->parameters;
    if (auto only = given.find("call"); only != given.end() && only->second != met) continue;
    if (c.get("probability") < 1 && (c.noise() + 1) / 2 >= c.get("probability")) continue;
    armed.due = any = true;
  }
  return any;
}

void DeviceFaults::before(DeviceCall& call) {
  for (Armed& armed : armed_) {
    if (!armed.due || armed.info->before == nullptr) continue;
    DeviceFaultContext c = context(armed, call);
    armed.info->before(c);
    armed.clobbered += c.clobbered;
  }
}

void DeviceFaults::after(DeviceCall& call) {
  for (Armed& armed : armed_) {
    if (!armed.due || armed.info->after == nullptr) continue;
    DeviceFaultContext c = context(armed, call);
    armed.info->after(c);
    armed.clobbered += c.clobbered;
  }
}

void DeviceFaults::end_call(DeviceCall& call, std::int64_t changed) {
  for (const Armed& armed : armed_)
    if (armed.due && changed + armed.clobbered > 0)
      log_.push_back({.fault = specs_[armed.spec].name,
                      .op = call.op(),
                      .call = calls_[call.op()],
                      .id = tensor_of(call),
                      .changed = changed + armed.clobbered});
  for (Armed& armed : armed_) armed.due = false;
  calls_[call.op()] += 1;
  PastCall past = past_of(call);
  first_.try_emplace(call.op(), past);
  past_[call.op()] = std::move(past);
  for (std::size_t i = 0; i < call.outputs().size(); ++i) {
    Array value = call.output(i);
    freed_[{value.dtype(), value.numel()}] = std::move(value);
  }
}

}  // namespace lenscpp
