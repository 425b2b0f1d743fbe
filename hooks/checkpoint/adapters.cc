// Reading an adapter, laying it onto a checkpoint, merging one tensor.
#include "hooks/checkpoint/adapters.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <utility>

#include "hooks/checkpoint/finite.h"
#include "hooks/checkpoint/json.h"
#include "hooks/nearest.h"

namespace lenscpp {
namespace {

constexpr std::size_t kLongestConfig_bytes = 1'000'000;
constexpr std::size_t kLongestName = 500;  // of a module: regular expressions are matched with it
constexpr const char* kFile = "adapter_model.safetensors";
constexpr const char* kPickled = "adapter_model.bin";
constexpr std::string_view kPeft = "base_model.model.";
constexpr std::string_view kA = ".lora_A.weight", kB = ".lora_B.weight",
                           kMagnitude = ".lora_magnitude_vector";

[[noreturn]] void refuse_at(const std::string& origin, const std::string& what) {
  throw std::invalid_argument("[adapter] " + origin + ": " + what);
}

SafetensorsFile open_tensors(const std::filesystem::path& folder) {
  if (std::filesystem::exists(folder / kFile) || !std::filesystem::exists(folder / kPickled))
    return SafetensorsFile::open(folder / kFile);
  std::string from = (folder / kPickled).string(), to = (folder / kFile).string();
  refuse_at(folder.string(),
            "only pickled weights (" + std::string(kPickled) +
                "), which run code when they are opened; allowed: safetensors. To convert: python "
                "-c \"import torch; from safetensors.torch import save_file; save_file({k: "
                "v.clone().contiguous() for k, v in torch.load('" +
                from + "', map_location='cpu', weights_only=True).items()}, '" + to + "')\"");
}

bool is_weight(const TensorInfo& info) {
  return info.dtype == "F64" || info.dtype == "F32" || info.dtype == "F16" || info.dtype == "BF16";
}

std::string without(std::string_view text, std::string_view ending) {
  return std::string(text.substr(0, text.size() - ending.size()));
}

std::string first_component(const std::string& name) { return name.substr(0, name.find('.') + 1); }

}  // namespace

// ---- Adapter ----

Adapter::Adapter(std::string origin, std::string text, SafetensorsFile file, AdapterConfig config)
    : origin_(std::move(origin)),
      text_(std::move(text)),
      file_(std::move(file)),
      config_(std::move(config)) {}

Adapter Adapter::open(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "adapter_config.json";
  std::string text = read_text(path, kLongestConfig_bytes);
  AdapterConfig config = parse_adapter_config(text, path.string());
  Adapter adapter(folder.string(), std::move(text), open_tensors(folder), std::move(config));
  const auto& tensors = adapter.file_.tensors();
  if (tensors.empty()) refuse_at(adapter.file_.origin(), "it holds no tensors");
  for (const auto& [key, info] : tensors) {
    std::string where = "tensor " + in_quotes(key);
    if (!key.starts_with(kPeft) || key.size() > kLongestName)
      refuse_at(adapter.file_.origin(), where + " is none of peft's, which begin with " +
                                            in_quotes(kPeft) + " and the name of a module");
    if (!is_weight(info))
      refuse_at(adapter.file_.origin(), where + " is stored as " + info.dtype +
                                            "; weights must be one of F64 F32 F16 BF16");
  }
  return adapter;
}

std::string Adapter::digest() const {
  std::string text = text_ + "\n";
  for (const auto& entry : file_.tensors())
    text += entry.first + " " + file_.tensor(entry.first).digest() + "\n";
  std::vector<std::int64_t> letters(text.begin(), text.end());
  return Array::of(letters, {static_cast<std::int64_t>(letters.size())}).digest();
}

std::int64_t Adapter::nbytes() const {
  std::int64_t total = 0;
  for (const auto& entry : file_.tensors())
    total += static_cast<std::int64_t>(entry.second.end_byte - entry.second.begin_byte);
  return total;
}

std::int64_t Adapter::merged_elements() const {
  std::int64_t total = 0;
  for (const auto& [key, info] : file_.tensors()) {
    if (key.ends_with(kMagnitude) || key.ends_with(kB)) continue;
    auto other = key.ends_with(kA) ? file_.tensors().find(without(key, kA) + std::string(kB))
                                   : file_.tensors().end();
    bool pair =
        other != file_.tensors().end() && info.shape.size() == 2 && other->second.shape.size() == 2;
    total += pair ? numel({other->second.shape[0], info.shape[1]}) : numel(info.shape);
  }
  return total;
}

// ---- names ----

void Merge::refuse(const std::string& what) const { refuse_at(adapter_.file().origin(), what); }

// A language model's trunk may be stored by itself: then one of the two names lacks its prefix.
std::string Merge::in_checkpoint(const std::string& tensor) const {
  if (checkpoint_.has(tensor)) return tensor;
  if (!added_.empty() && tensor.starts_with(added_)) return tensor.substr(added_.size());
  return dropped_ + tensor;
}

std::string Merge::as_adapter_says(const std::string& tensor) const {
  if (!dropped_.empty() && tensor.starts_with(dropped_)) return tensor.substr(dropped_.size());
  bool of_trunk = !tensor.starts_with("lm_head.") && !tensor.starts_with("embed_out.");
  return of_trunk ? added_ + tensor : tensor;
}

// ---- what is changed ----

Merge::Change& Merge::change_of(const std::string& key, const std::string& tensor) {
  std::string name = in_checkpoint(tensor);
  if (!checkpoint_.has(name))
    refuse("tensor " + in_quotes(key) + " is of a module that the model in " +
           checkpoint_.origin() + " has not: there is no " + in_quotes(tensor) +
           ", the nearest names are " + nearest_names(tensor, checkpoint_.names()));
  Change& change = changes_[name];
  change.module = tensor.substr(0, tensor.rfind('.'));
  return change;
}

void Merge::add(const std::string& key) {
  const AdapterConfig& config = adapter_.config();
  std::string name = key.substr(kPeft.size());
  auto one_of_lora = [&](std::string_view ending, std::string Change::*part) {
    std::string module = without(name, ending);
    if (!config.targets_module(module))
      refuse("tensor " + in_quotes(key) + ": adapter_config.json puts no LoRA on " +
             in_quotes(module));
    change_of(key, module + ".weight").*part = key;
  };
  if (name.ends_with(kA)) return one_of_lora(kA, &Change::A);
  if (name.ends_with(kB)) return one_of_lora(kB, &Change::B);
  if (name.ends_with(kMagnitude)) {
    if (!config.dora) refuse("tensor " + in_quotes(key) + ", but use_dora is false");
    return one_of_lora(kMagnitude, &Change::magnitude);
  }
  if (name.find("lora_") != std::string::npos)
    refuse("tensor " + in_quotes(key) +
           ": only the LoRA of matrices is merged (lora_A.weight, lora_B.weight, "
           "lora_magnitude_vector), of embeddings none");
  for (const char* wrapper : {".base_layer.", ".modules_to_save."})
    if (auto at = name.find(wrapper); at != std::string::npos)
      name.replace(at, std::string_view(wrapper).size(), ".");
  std::string module = name.substr(0, name.rfind('.'));
  bool bias = name.ends_with(".bias") &&
              (config.bias == AdapterBias::all ||
               (config.bias == AdapterBias::lora_only && config.targets_module(module)));
  if (!bias && !config.saves(module))
    refuse("tensor " + in_quotes(key) +
           " is left over: neither modules_to_save nor bias of adapter_config.json asks for it");
  change_of(key, name).replacement = key;
}

void Merge::check(const std::string& name, const Change& change) const {
  const Shape& base = checkpoint_.info(name).shape;
  auto shape = [&](const std::string& key) { return adapter_.file().tensors().at(key).shape; };
  auto require = [&](const std::string& key, const Shape& needed) {
    if (shape(key) != needed)
      refuse("tensor " + in_quotes(key) + " has shape " + to_string(shape(key)) + "; " +
             in_quotes(name) + " " + to_string(base) + " of " + checkpoint_.origin() + " needs " +
             to_string(needed) + ". Is the adapter of another model?");
  };
  if (!change.replacement.empty()) {
    require(change.replacement, base);
    if (!change.A.empty() || !change.B.empty())
      refuse("both replaces " + in_quotes(name) + " and puts a LoRA on it");
    return;
  }
  std::string at = std::string(kPeft) + change.module;
  if (change.A.empty() || change.B.empty())
    refuse("tensor " + in_quotes(at + std::string(change.A.empty() ? kA : kB)) + " is missing");
  if (adapter_.config().dora && change.magnitude.empty())
    refuse("tensor " + in_quotes(at + std::string(kMagnitude)) + " is missing, use_dora is true");
  if (base.size() != 2)
    refuse("puts a LoRA on " + in_quotes(name) + " " + to_string(base) + ", which is no matrix");
  if (in_out_ && name == "lm_head.weight")
    refuse("puts a LoRA on " + in_quotes(name) +
           ", an [out, in] matrix beside [in, out] ones, which peft's flags cannot tell apart");
  Shape a = shape(change.A);
  double rank = adapter_.config().rank_of(change.module);
  if (a.size() != 2 || !(static_cast<double>(a[0]) == rank))
    refuse("tensor " + in_quotes(change.A) + " has shape " + to_string(a) +
           "; r and rank_pattern of adapter_config.json make its rank " +
           show(nlohmann::json(rank)));
  std::int64_t out = base[in_out_ ? 1 : 0], in = base[in_out_ ? 0 : 1];
  require(change.A, {a[0], in});
  require(change.B, {out, a[0]});
  if (!change.magnitude.empty()) require(change.magnitude, {out});
}

// What adapter_config.json asks for must be there: peft would fill in a LoRA that does nothing.
void Merge::require_targets() const {
  const AdapterConfig& config = adapter_.config();
  std::set<std::string> found;
  for (const std::string& name : checkpoint_.names()) {
    if (!name.ends_with(".weight") || name.size() > kLongestName) continue;
    std::string module = without(as_adapter_says(name), ".weight");
    for (const std::string& listed : config.targets.listed)
      if (module == listed || module.ends_with("." + listed)) found.insert(listed);
    bool matrix = checkpoint_.info(name).shape.size() == 2;
    if (matrix && config.targets_module(module) && !changes_.contains(name))
      refuse("adapter_config.json puts a LoRA on " + in_quotes(module) +
             ", but the file holds none for it");
  }
  for (const std::string& listed : config.targets.listed)
    if (!found.contains(listed))
      refuse("target_modules of adapter_config.json names " + in_quotes(listed) +
             ", which the model in " + checkpoint_.origin() + " has not");
  for (const std::string& saved : config.saved)
    if (std::ranges::none_of(changes_, [&](const auto& entry) {
          return !entry.second.replacement.empty() &&
                 AdapterConfig{.rank = 1, .alpha = 1, .targets = {}, .saved = {saved}}.saves(
                     entry.second.module);
        }))
      refuse("modules_to_save of adapter_config.json names " + in_quotes(saved) +
             ", of which the file holds nothing");
}

void Merge::require_biases() const {
  const AdapterConfig& config = adapter_.config();
  if (config.bias == AdapterBias::none) return;
  for (const std::string& name : checkpoint_.names()) {
    if (!name.ends_with(".bias") || name.size() > kLongestName) continue;
    std::string module = without(as_adapter_says(name), ".bias");
    bool trained = config.bias == AdapterBias::all || config.targets_module(module);
    // Old files hold masks of rank 4 under this name.
    if (trained && checkpoint_.info(name).shape.size() == 1 && !changes_.contains(name))
      refuse("bias of adapter_config.json says that " + in_quotes(module + ".bias") +
             " was trained, but the file does not hold it");
  }
}

Merge::Merge(const Adapter& adapter, const Checkpoint& checkpoint, bool in_out)
    : adapter_(adapter), checkpoint_(checkpoint), in_out_(in_out) {
  if (adapter.config().fan_in_fan_out != in_out)
    refuse_at(adapter.origin(), std::string("fan_in_fan_out is ") + (in_out ? "false" : "true") +
                                    ", but the matrices of this model are " +
                                    (in_out ? "[in, out]" : "[out, in]") +
                                    ". Is the adapter of another model?");
  std::vector<std::string> keys = adapter.file().names();
  std::vector<std::string> stored = checkpoint.names();
  // Prefixes from the first LoRA: a later name that they do not explain is refused.
  for (const std::string& key : keys) {
    if (!key.ends_with(kA)) continue;
    std::string tensor = without(std::string_view(key).substr(kPeft.size()), kA) + ".weight";
    if (checkpoint.has(tensor)) break;
    std::string first = first_component(tensor);
    if (checkpoint.has(tensor.substr(first.size()))) {
      added_ = first;
      break;
    }
    auto found = std::ranges::find_if(
        stored, [&](const std::string& name) { return name == first_component(name) + tensor; });
    if (found != stored.end()) dropped_ = first_component(*found);
    break;
  }
  for (const std::string& key : keys) add(key);
  for (const auto& [name, change] : changes_) check(name, change);
  require_targets();
  require_biases();
}

std::vector<std::string> Merge::changed() const {
  std::vector<std::string> names;
  for (const auto& entry : changes_) names.push_back(entry.first);
  return names;
}

// ---- merging ----

namespace {

// rows x terms times terms x cols, whose product is what is added before scaling.
struct Factors {
  std::vector<double> left, right;
  std::int64_t rows, terms, cols;
  double scale;

  // Row r of base + scale left right, in `sums`.
  void add_row(std::int64_t r, std::vector<double>& sums) const {
    for (std::int64_t t = 0; t < terms; ++t) {
      double factor = scale * left[static_cast<std::size_t>(r * terms + t)];
      const double* from = right.data() + t * cols;
      for (std::int64_t c = 0; c < cols; ++c) sums[static_cast<std::size_t>(c)] += factor * from[c];
    }
  }
};

std::vector<double> transposed_doubles(const Array& matrix) {
  std::vector<double> values = matrix.to_doubles(), result(values.size());
  auto rows = static_cast<std::size_t>(matrix.size(0)),
       cols = static_cast<std::size_t>(matrix.size(1));
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < cols; ++c) result[c * rows + r] = values[r * cols + c];
  return result;
}

Factors factors_of(const MergedTensor& m) {
  Factors f{.left = m.in_out ? transposed_doubles(m.A) : m.B.to_doubles(),
            .right = m.in_out ? transposed_doubles(m.B) : m.A.to_doubles(),
            .rows = m.base.size(0),
            .terms = m.A.size(0),
            .cols = m.base.size(1),
            .scale = m.alpha / (m.rank_stabilized ? std::sqrt(m.rank) : m.rank)};
  return f;
}

// Calls visit(row, base + delta).
template <class Visit>
void for_each_sum(const MergedTensor& m, const Factors& f, const Visit& visit) {
  std::vector<double> sums(static_cast<std::size_t>(f.cols));
  for (std::int64_t r = 0; r < f.rows; ++r) {
    m.base.widen(r * f.cols, sums);
    f.add_row(r, sums);
    visit(r, sums);
  }
}

// What each output is multiplied by: its magnitude over the norm of its weights.
std::vector<double> dora_factors(const MergedTensor& m, const Factors& f) {
  std::vector<double> result = m.magnitude.to_doubles(), squares(result.size());
  for_each_sum(m, f, [&](std::int64_t r, const std::vector<double>& row) {
    for (std::size_t c = 0; c < row.size(); ++c)
      squares[m.in_out ? c : static_cast<std::size_t>(r)] += row[c] * row[c];
  });
  for (std::size_t o = 0; o < result.size(); ++o) result[o] /= std::sqrt(squares[o]);
  return result;
}

Array sum_of_base_and_delta(const MergedTensor& m, DType dtype) {
  Factors f = factors_of(m);
  std::vector<double> factors = m.magnitude.empty() ? std::vector<double>() : dora_factors(m, f);
  MutableArray result(m.base.shape(), dtype);
  for_each_sum(m, f, [&](std::int64_t r, std::vector<double>& row) {
    for (std::size_t c = 0; c < row.size() && !factors.empty(); ++c)
      row[c] *= factors[m.in_out ? c : static_cast<std::size_t>(r)];
    result.store(r * f.cols, row);
  });
  return std::move(result).freeze();
}

}  // namespace

MergedTensor Merge::merged(const std::string& name, const Array& base, DType dtype) const {
  const Change& change = changes_.at(name);
  auto read = [&](const std::string& key) {
    if (key.empty()) return Array();
    Array array = adapter_.file().tensor(key);
    require_finite(array, "[adapter] " + adapter_.file().origin() + ": tensor " + in_quotes(key),
                   "");
    return array;
  };
  MergedTensor m{.name = name,
                 .base = base,
                 .result = {},
                 .A = read(change.A),
                 .B = read(change.B),
                 .magnitude = read(change.magnitude),
                 .replacement = read(change.replacement),
                 .rank = adapter_.config().rank_of(change.module),
                 .alpha = adapter_.config().alpha_of(change.module),
                 .rank_stabilized = adapter_.config().rank_stabilized,
                 .in_out = in_out_};
  m.result = m.replacement.empty() ? sum_of_base_and_delta(m, dtype) : m.replacement.to(dtype);
  require_finite(m.result,
                 "[adapter] " + adapter_.file().origin() + ": merged into " + in_quotes(name) +
                     " as " + std::string(name_of(dtype)) + ", it",
                 "; load as a wider dtype");
  return m;
}

}  // namespace lenscpp
