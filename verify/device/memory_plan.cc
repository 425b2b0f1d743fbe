// Peaks of memory, counted over the list of links as the device pass and the verifier walk it.
#include "verify/device/memory_plan.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <limits>
#include <sstream>

#include "hooks/checkpoint/families/family.h"

namespace lenscpp {
namespace {

constexpr std::int64_t kMiB = 1 << 20;
constexpr std::int64_t kDouble = 8;
// What oneDNN takes a thread to pack the operands of a bfloat16 product on the CPU.
constexpr std::int64_t kPacking_bytes = 128 << 10;

std::int64_t scaled(std::int64_t bytes, std::int64_t by) { return product_of(bytes, by); }

// Elements of the arrays of a config for whose name `counts` holds.
template <class Counts>
std::int64_t elements_of(const Weights& weights, const Counts& counts) {
  std::int64_t total = 0;
  weights.for_each([&](const std::string& name, const Array& array) {
    if (counts(name)) total = sum_of(total, array.numel());
  });
  return total;
}

// Whether hooks/checkpoint/processing.cc makes a new array of this name.
bool rewritten(const std::string& name, const Processing& p) {
  auto ends = [&](std::string_view end) { return name.ends_with(end); };
  if (ends(".W_U") || ends(".b_U")) return p.fold_ln || p.center_unembed;
  if (ends(".W_QKV") || ends(".W_in") || ends(".b_in") || ends("_gate") || ends("_router"))
    return p.fold_ln;
  if (ends(".b_QKV")) return p.fold_ln || p.fold_value_biases;
  if (ends(".b_O")) return p.center_writing_weights || p.fold_value_biases;
  if (ends(".w") || ends(".b")) return false;
  return p.center_writing_weights;  // W_O, W_out, b_out, W_E, W_pos
}

// Bytes of float64 with which verify/reference recomputes one link.
class Scratch {
 public:
  Scratch(std::int64_t threads, DType dtype)
      : threads_(threads), narrow_(dtype == DType::bf16 || dtype == DType::f16) {}

  std::int64_t of(const PlannedLink& planned) const {
    const Link& l = planned.link;
    const Shape& out = planned.output.shape;
    switch (l.op) {
      case Op::linear:
        return linear(product_of(out) / l.weight->out, l.weight->in);
      case Op::head_linear:
      case Op::head_result:
        return by_head(rows_of(out, 2),
                       l.op == Op::head_result ? l.weight->in / out[2] : l.weight->in);
      case Op::scores:
      case Op::softmax:
        return out.size() == 4 ? scores(out[2], out[3]) : kRowBlocks * threads_;  // a router's: 3
      case Op::mix:
        return mix(out[1], out[3]);
      default:
        return kRowBlocks * threads_;
    }
  }

  // At least what any link of a run takes.
  std::int64_t most(const Config& c, const Request& request) const {
    Extents e = request.rows.extents();
    std::int64_t rows = product_of(e.batch, e.pos), found = kRowBlocks * threads_;
    for (std::int64_t terms : {c.d_model, c.n_heads * c.d_head, c.n_neurons()})
      found = std::max(found, linear(rows, terms));
    if (!request.on_demand.empty() || !request.plan.edits().empty() || !request.callbacks.empty())
      for (std::int64_t terms : {c.d_model, c.d_head})
        found = std::max(found, by_head(rows, terms));
    return std::max({found, scores(e.pos, e.key), mix(e.pos, c.d_head)});
  }

 private:
  static constexpr std::int64_t kRowBlocks = kDouble * 16384 * 6;  // see row_blocks in ops.cc

  static std::int64_t rows_of(const Shape& shape, std::size_t last_axes) {
    return product_of(Shape(shape.begin(), shape.end() - static_cast<std::ptrdiff_t>(last_axes)));
  }
  std::int64_t linear(std::int64_t rows, std::int64_t terms) const {
    return sum_of(input(rows, terms), scaled(block(rows, terms), threads_));
  }
  std::int64_t by_head(std::int64_t rows, std::int64_t terms) const {
    return scaled(sum_of(input(rows, terms), block(rows, terms)), threads_);
  }
  std::int64_t scores(std::int64_t queries, std::int64_t keys) const {
    return scaled(product_of({kDouble * 5, queries, keys}), threads_);
  }
  std::int64_t mix(std::int64_t positions, std::int64_t d_head) const {
    return scaled(product_of({kDouble * 2, positions, positions + 4 * d_head}), threads_);
  }
  // The input, once more while rows of zeros are put below it, and every fourth square.
  std::int64_t input(std::int64_t rows, std::int64_t terms) const {
    std::int64_t whole = product_of({kDouble, rows, terms});
    return sum_of(whole, rows % 4 != 0 ? whole : narrow_ ? 0 : whole / 4);
  }
  std::int64_t block(std::int64_t rows, std::int64_t terms) const {
    std::int64_t columns = std::clamp<std::int64_t>(98304 / terms, 96, 240) / 24 * 24;
    return product_of({kDouble, columns, sum_of(scaled(rows, 4), terms + terms / 4)});
  }

  std::int64_t threads_;
  bool narrow_;
};

// Walks the links and counts what is held at each of them.
class Walk {
 public:
  Walk(const Weights& weights, const Request& request, const PlannedUse& use)
      : weights_(weights),
        request_(request),
        use_(use),
        scratch_(use.threads, weights.dtype),
        links_(plan_links(weights, request)) {}

  // Host and device reach their peaks at links of their own.
  MemoryPlan peak() {
    find_owners();
    MemoryPlan host, device;
    for (std::size_t i = 0; i < links_.size(); ++i) {
      MemoryPlan now = at(i);
      if (now.host() > host.host()) host = now;
      if (now.device() > device.device()) device = std::move(now);
    }
    for (std::size_t i = 0; i < host.items.size(); ++i)
      host.items[i].device = device.items.empty() ? 0 : device.items[i].device;
    return host;
  }

 private:
  // Tensors that are one buffer: a copy under another name counts with the first of them.
  void find_owners() {
    std::map<TensorId, std::size_t> made;
    kept_.resize(links_.size());
    for (std::size_t i = 0; i < links_.size(); ++i) {
      const PlannedLink& l = links_[i];
      made[l.output.id] = i;
      owner_.push_back(l.same_memory ? owner_[made.at(l.link.inputs[0])] : i);
      std::int64_t kept = kept_bytes(i);
      bool whole = kept == l.output.bytes();
      if (use_.on_host && whole && kept > 0)
        kept_[owner_[i]] = kept;
      else
        kept_[i] = sum_of(kept_[i], kept);
    }
  }

  std::int64_t kept_bytes(std::size_t i) const {
    const PlannedTensor& t = links_[i].output;
    if (t.id == request_.output(weights_.config)) return t.bytes();
    if (!use_.recorded) return 0;
    if (!use_.verified) return t.bytes();
    if (t.id.stage != request_.stages(t.id.site, t.id.layer) ||
        info(t.id.site).presence == Presence::internal ||
        (use_.keep && !use_.keep(t.id.site, t.id.layer)))
      return 0;
    if (!use_.kept_positions) return t.bytes();
    return product_of(t.bytes() / std::max<std::int64_t>(1, request_.rows.pos),
                      *use_.kept_positions);
  }

  // Everything while link `now` is computed and checked.
  MemoryPlan at(std::size_t now) const {
    MemoryPlan::Item kept{"activations kept"}, alive{"activations alive at once"},
        parts{"intermediates of the device pass"}, checks{"verification"};
    auto on_device = [this](MemoryPlan::Item& item) -> std::int64_t& {
      return use_.on_host ? item.host : item.device;
    };
    auto add = [](std::int64_t& total, std::int64_t bytes) { total = sum_of(total, bytes); };
    add(on_device(parts), planned_mask(weights_, request_).bytes());
    if (use_.on_host && weights_.dtype == DType::bf16)
      add(parts.host, kPacking_bytes * use_.threads);
    for (std::size_t i = 0; i <= now; ++i) {
      const PlannedLink& l = links_[i];
      std::int64_t bytes = l.output.bytes();
      add(kept.host, kept_[i]);
      bool stays = use_.on_host && kept_[i] == bytes;  // the kept buffer is the device's
      if (!l.same_memory && l.last_use >= now && !stays) add(on_device(alive), bytes);
      bool copied = !use_.on_host && use_.recorded;
      if (copied && l.last_reader >= now && kept_[i] != bytes) add(alive.host, bytes);
      if (use_.drift && l.last_reader >= now)
        add(checks.host, product_of(kDouble, l.output.elements()));
      if (l.parts_until >= now)
        for (const PlannedTensor& part : l.parts)
          add(part.role == Role::host ? parts.host : on_device(parts), part.bytes());
    }
    if (use_.verified) add(checks.host, scratch_.of(links_[now]));
    return {.items = {kept, alive, parts, checks}};
  }

  const Weights& weights_;
  const Request& request_;
  const PlannedUse& use_;
  Scratch scratch_;
  std::vector<PlannedLink> links_;
  std::vector<std::size_t> owner_;
  std::vector<std::int64_t> kept_;
};

// ---- what there is ----

// The first whole number of a file; nothing where there is none ("max").
std::optional<std::int64_t> number_in(const std::filesystem::path& file) {
  std::ifstream in(file);
  std::int64_t value = 0;
  return in >> value ? std::optional(value) : std::nullopt;
}
// The number after `key` in a file of lines "key value".
std::optional<std::int64_t> number_after(const std::filesystem::path& file,
                                         const std::string& key) {
  std::ifstream in(file);
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream words(line);
    std::string word;
    std::int64_t value = 0;
    if (words >> word && word == key && words >> value) return value;
  }
  return {};
}

void lower_to(std::optional<AvailableMemory>& least, std::int64_t bytes, const char* from) {
  bytes = std::max<std::int64_t>(bytes, 0);
  if (!least || bytes < least->bytes) least = AvailableMemory{bytes, from};
}

// Each group up to the root may set a limit; pages of files that nobody uses do not count.
void lower_to_groups(std::optional<AvailableMemory>& least, const std::filesystem::path& root) {
  std::ifstream in(root / "proc/self/cgroup");
  std::string line;
  while (std::getline(in, line)) {
    bool unified = line.starts_with("0::");
    if (!unified && line.find(":memory:") == line.npos) continue;
    std::filesystem::path base = root / (unified ? "sys/fs/cgroup" : "sys/fs/cgroup/memory");
    std::filesystem::path group = line.substr(line.rfind(':') + 1);
    for (group = group.relative_path();; group = group.parent_path()) {
      auto most = number_in(base / group / (unified ? "memory.max" : "memory.limit_in_bytes"));
      auto used = number_in(base / group / (unified ? "memory.current" : "memory.usage_in_bytes"));
      auto files = number_after(base / group / "memory.stat",
                                unified ? "inactive_file" : "total_inactive_file");
      if (most && used)
        lower_to(least, *most - *used + files.value_or(0), "the limit of the control group");
      if (group.empty()) break;
    }
  }
}

void lower_to_own_limits(std::optional<AvailableMemory>& least, const std::filesystem::path& root) {
  auto consider = [&](auto which, const std::string& used_key, const char* from) {
    rlimit limit{};
    auto used = number_after(root / "proc/self/status", used_key);
    if (getrlimit(which, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY || !used) return;
    auto most = static_cast<std::int64_t>(
        std::min<rlim_t>(limit.rlim_cur, std::numeric_limits<std::int64_t>::max()));
    lower_to(least, most - 1024 * *used, from);
  };
  consider(RLIMIT_AS, "VmSize:", "RLIMIT_AS of this process");
  consider(RLIMIT_DATA, "VmData:", "RLIMIT_DATA of this process");
}

}  // namespace

std::int64_t MemoryPlan::host() const {
  std::int64_t total = 0;
  for (const Item& item : items) total = sum_of(total, item.host);
  return total;
}
std::int64_t MemoryPlan::device() const {
  std::int64_t total = 0;
  for (const Item& item : items) total = sum_of(total, item.device);
  return total;
}

namespace {

std::int64_t bytes_of(std::int64_t elements, DType dtype) {
  return product_of(elements, static_cast<std::int64_t>(size_of(dtype)));
}

// Of a model that is loaded: nothing, a copy on the host in another dtype, one on another device.
MemoryPlan plan_move(std::int64_t elements, const PlannedLoad& load) {
  MemoryPlan plan;
  bool rounded = load.dtype != load.loaded->dtype;
  plan.stays = rounded ? bytes_of(elements, load.dtype) : 0;
  if (rounded) plan.items.push_back({"rounded to " + std::string(name_of(load.dtype)), plan.stays});
  if (!load.on_host && (rounded || !load.loaded->in_place))
    plan.items.push_back({"weights on the device", 0, bytes_of(elements, load.dtype)});
  return plan;
}

bool stores_in_out(const std::string& model_type) {
  return std::ranges::any_of(families(), [&](const Family& family) {
    return family.model_type == model_type && family.stores_in_out;
  });
}

}  // namespace

MemoryPlan plan_load(const Config& config, const PlannedLoad& load) {
  constexpr std::int64_t kProbe = 6 * 4 * kDouble;  // positions of two float64 runs, logits twice
  DType master = load.dtype == DType::f64 ? DType::f64 : DType::f32;
  if (!load.processing.any()) master = load.dtype;
  Config processed = config;
  if (applicable(load.processing, config).fold_ln) processed.norm = folded(processed.norm);
  Weights raw = outline(config, master), used = outline(processed, load.dtype);
  auto in_file = [&](const std::string& name) {
    return !name.ends_with(".b_U") &&
           (!config.tied_unembedding || config.embed_scale != 1 || !name.ends_with(".W_U"));
  };
  // Of a file of the same dtype: the zeros of b_U, and matrices that are turned round.
  bool turned = !stores_in_out(config.family);
  auto copied = [turned](const std::string& name) {
    return name.ends_with(".b_U") ||
           (turned && name.starts_with("blocks.") && name.find(".W_") != name.npos);
  };
  auto all = [](const std::string&) { return true; };
  if (load.loaded) return plan_move(elements_of(used, all), load);
  MemoryPlan plan{.mapped = bytes_of(elements_of(raw, in_file), config.stored_dtype)};
  bool as_mapped = config.stored_dtype == master;
  plan.items.push_back(
      {"weights as read",
       bytes_of(as_mapped ? elements_of(raw, copied) : elements_of(raw, in_file), master)});
  // Merged weights no longer lie in the file, and their factors are widened while they are merged.
  std::int64_t unmapped = as_mapped && !turned ? bytes_of(load.merged_elements, master) : 0;
  if (load.merged_elements > 0)
    plan.items.push_back(
        {"merging the adapter", sum_of(unmapped, product_of(kDouble, load.adapter_bytes))});
  plan.stays = sum_of(plan.items[0].host, unmapped);
  if (load.processing.any()) {
    auto changes = [&](const std::string& name) { return rewritten(name, load.processing); };
    plan.items.push_back({"processed weights", bytes_of(elements_of(used, changes), master)});
    // What processing does not rewrite stays as it was read; what was mapped is no memory.
    auto read = [&](const std::string& name) {
      return !changes(name) && (!as_mapped || copied(name));
    };
    plan.stays = load.dtype == master
                     ? sum_of(plan.items.back().host, bytes_of(elements_of(used, read), master))
                     : bytes_of(elements_of(used, all), load.dtype);
    std::int64_t check = product_of(kProbe, config.d_vocab);
    std::int64_t cast = load.dtype == master ? 0 : bytes_of(elements_of(used, all), load.dtype);
    plan.items.push_back(
        cast > check ? MemoryPlan::Item{"rounded to " + std::string(name_of(load.dtype)), cast}
                     : MemoryPlan::Item{"check of the processing", check});
  }
  if (!load.on_host)
    plan.items.push_back(
        {"weights on the device", 0, bytes_of(elements_of(used, all), load.dtype)});
  return plan;
}

MemoryPlan plan_run(const Weights& weights, const Request& request, const PlannedUse& use) {
  return Walk(weights, request, use).peak();
}

std::int64_t rough_run_bytes(const Config& config, const Request& request, std::int64_t threads) {
  constexpr std::int64_t kCopies = 4;  // device, host, intermediates, float64
  std::int64_t total = 0;
  for (const SiteInfo& row : all_sites())
    total = sum_of(total, product_of(product_of(shape_of(row.site, config, request.rows.extents())),
                                     row.per_layer ? config.n_layers : 1));
  auto edits = static_cast<std::int64_t>(request.plan.edits().size());
  std::int64_t run = product_of({total, kDouble, kCopies, 1 + edits});
  std::int64_t threads_own =
      sum_of(Scratch(threads, DType::f32).most(config, request), scaled(kPacking_bytes, threads));
  return sum_of(run, threads_own);
}

std::optional<AvailableMemory> available_host_memory(const std::filesystem::path& root) {
  std::optional<AvailableMemory> least;
  if (auto kib = number_after(root / "proc/meminfo", "MemAvailable:"))
    lower_to(least, 1024 * *kib, "MemAvailable of /proc/meminfo");
  lower_to_groups(least, root);
  lower_to_own_limits(least, root);
  return least;
}

std::int64_t margin_of(const AvailableMemory& available) {
  return std::max(available.bytes / 20, 64 * kMiB);
}

std::string size_in_words(std::int64_t bytes) {
  constexpr std::array<const char*, 5> kUnits{"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return std::to_string(bytes) + " bytes";
  double value = static_cast<double>(bytes) / 1024;
  std::size_t unit = 0;
  for (; value >= 1024 && unit + 1 < kUnits.size(); ++unit) value /= 1024;
  std::ostringstream text;
  text.precision(value < 10 ? 2 : value < 100 ? 3 : 4);
  text << value << " " << kUnits[unit];
  return text.str();
}

}  // namespace lenscpp
