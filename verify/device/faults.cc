// The table of faults, one function each, and the injector.
#include "verify/device/faults.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "hooks/nearest.h"

namespace lenscpp {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Where faults can occur.
bool is_ids(Site site) { return info(site).stored == Stored::ids; }
bool has_axis(Site site, Axis axis) {
  return std::ranges::find(info(site).axes, axis) != info(site).axes.end();
}
bool anywhere(Site) { return true; }
bool of_prompts(Site site) { return has_axis(site, Axis::batch); }
bool in_numbers(Site site) { return !is_ids(site); }
bool in_heads(Site site) { return has_axis(site, Axis::head) || has_axis(site, Axis::kv_head); }
bool in_scores(Site site) { return site == Site::attn_scores; }
bool in_patterns(Site site) { return site == Site::pattern; }

// A tensor as [outer, extent, inner] around one of its axes.
struct Around {
  std::int64_t outer = 1, extent = 1, inner = 1;
  std::int64_t operator()(std::int64_t o, std::int64_t e, std::int64_t i) const {
    return (o * extent + e) * inner + i;
  }
};
Around around(const Array& x, int axis) {
  Around a{.extent = x.size(axis)};
  for (int d = 0; d < axis; ++d) a.outer *= x.size(d);
  for (int d = axis + 1; d < x.rank(); ++d) a.inner *= x.size(d);
  return a;
}
template <class IsAxis>
Around around(const FaultContext& c, const IsAxis& is_axis) {
  auto axes = info(c.id().site).axes;
  auto found = std::ranges::find_if(axes, is_axis);
  if (found == axes.end())
    throw std::logic_error("[faults] " + to_string(c.id()) + " has no such axis");
  return around(c.value(), static_cast<int>(found - axes.begin()));
}
// Positions: what is computed row by row; of scores the queries, of keys read from elsewhere the
// keys; of what has one row a prompt the prompts.
Around positions(const FaultContext& c) {
  for (Axis wanted : {Axis::pos, Axis::query, Axis::key})
    if (has_axis(c.id().site, wanted)) return around(c, [=](Axis a) { return a == wanted; });
  return around(c, [](Axis a) { return a == Axis::batch; });
}
Around heads(const FaultContext& c) {
  return around(c, [](Axis a) { return a == Axis::head || a == Axis::kv_head; });
}

double finite_rms(const Array& x) {
  double square = 0;
  std::int64_t n = 0;
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (std::isfinite(x[i])) {
      square += x[i] * x[i];
      n += 1;
    }
  return n > 0 ? std::sqrt(square / static_cast<double>(n)) : 1;
}

// What a region is overwritten with: itself plus `delta` where that is given; numbers as large as
// the tensor's where `garbage` is 1; else zero.
class Filler {
 public:
  explicit Filler(FaultContext& c)
      : c_(c),
        delta_(c.get("delta")),
        garbage_(*c.get("garbage") != 0),
        size_(garbage_ ? std::sqrt(3.0) * finite_rms(c.value()) : 0) {}
  void fill(MutableArray& x, std::int64_t i) {
    if (delta_) return x.set(i, x.get(i) + *delta_);
    if (!garbage_) return x.set(i, 0);
    double value = size_ * c_.noise();
    x.set(i, x.dtype() == DType::i64 ? std::floor(std::abs(value)) : value);
  }

 private:
  FaultContext& c_;
  std::optional<double> delta_;
  bool garbage_;
  double size_;
};

MutableArray one_element(FaultContext& c) {
  MutableArray x(c.value());
  std::int64_t i = c.index("index", x.numel());
  // Of the elements from there on the first that is not masked: nothing can be added to -inf.
  for (std::int64_t n = 0; n < x.numel() && !c.get("index") && !std::isfinite(x.get(i)); ++n)
    i = (i + 1) % x.numel();
  x.set(i, x.get(i) + *c.get("delta"));
  return x;
}

MutableArray sign(FaultContext& c) {
  MutableArray x(c.value());
  std::int64_t i = c.index("index", x.numel());
  x.set(i, -x.get(i));
  return x;
}

MutableArray nan(FaultContext& c) {
  MutableArray x(c.value());
  x.set(c.index("index", x.numel()), std::numeric_limits<double>::quiet_NaN());
  return x;
}

MutableArray inf(FaultContext& c) {
  MutableArray x(c.value());
  x.set(c.index("index", x.numel()), std::copysign(kInfinity, *c.get("sign")));
  return x;
}

MutableArray row(FaultContext& c) {
  MutableArray x(c.value());
  Filler filler(c);
  Around p = positions(c);
  Around batch = around(c.value(), 0);
  std::int64_t pos = c.index("pos", p.extent), prompt = c.index("batch", batch.extent),
               per_prompt = p.outer / batch.extent;
  for (std::int64_t o = prompt * per_prompt; o < (prompt + 1) * per_prompt; ++o)
    for (std::int64_t i = 0; i < p.inner; ++i) filler.fill(x, p(o, pos, i));
  return x;
}

MutableArray zero_from(FaultContext& c) {
  MutableArray x(c.value());
  Around p = positions(c);
  std::int64_t first = c.get("pos") ? c.index("pos", p.extent) : p.extent / 2;
  for (std::int64_t o = 0; o < p.outer; ++o)
    for (std::int64_t i = p(o, first, 0); i < p(o, p.extent, 0); ++i) x.set(i, 0);
  return x;
}

MutableArray shift_rows(FaultContext& c) {
  MutableArray x(c.value());
  Around p = positions(c);
  auto by = static_cast<std::int64_t>(std::fmod(*c.get("by"), static_cast<double>(p.extent)));
  for (std::int64_t o = 0; o < p.outer; ++o)
    for (std::int64_t e = 0; e < p.extent; ++e)
      for (std::int64_t i = 0; i < p.inner; ++i)
        x.set(p(o, (e + by + p.extent) % p.extent, i), c.value()[p(o, e, i)]);
  return x;
}

MutableArray head(FaultContext& c) {
  MutableArray x(c.value());
  Filler filler(c);
  Around h = heads(c);
  std::int64_t wrong = c.index("head", h.extent);
  for (std::int64_t o = 0; o < h.outer; ++o)
    for (std::int64_t i = 0; i < h.inner; ++i) filler.fill(x, h(o, wrong, i));
  return x;
}

MutableArray swap_heads(FaultContext& c) {
  MutableArray x(c.value());
  Around h = heads(c);
  std::int64_t a = c.index("a", h.extent);
  std::int64_t b = c.get("b") || h.extent == 1 ? c.index("b", h.extent)
                                               : (a + 1 + c.draw(h.extent - 1)) % h.extent;
  for (std::int64_t o = 0; o < h.outer; ++o)
    for (std::int64_t i = 0; i < h.inner; ++i) {
      x.set(h(o, a, i), c.value()[h(o, b, i)]);
      x.set(h(o, b, i), c.value()[h(o, a, i)]);
    }
  return x;
}

// Of the tensor as a matrix of rows along its last axis.
MutableArray tile(FaultContext& c) {
  MutableArray x(c.value());
  Filler filler(c);
  std::int64_t columns = c.value().size(-1), rows = x.numel() / columns;
  std::int64_t first_row = c.index("row", rows), first_column = c.index("column", columns);
  auto height = static_cast<std::int64_t>(*c.get("height")),
       width = static_cast<std::int64_t>(*c.get("width"));
  for (std::int64_t r = first_row; r < std::min(rows, first_row + height); ++r)
    for (std::int64_t j = first_column; j < std::min(columns, first_column + width); ++j)
      filler.fill(x, r * columns + j);
  return x;
}

MutableArray stale(FaultContext& c) {
  return c.stale != nullptr ? MutableArray(*c.stale) : shift_rows(c);
}

MutableArray scale(FaultContext& c) {
  MutableArray x(c.value());
  for (std::int64_t i = 0; i < x.numel(); ++i) x.set(i, x.get(i) * *c.get("factor"));
  return x;
}

MutableArray round_bits(FaultContext& c) {
  MutableArray x(c.value());
  int bits = static_cast<int>(*c.get("bits"));
  for (std::int64_t i = 0; i < x.numel(); ++i) {
    int exponent;
    double fraction = std::frexp(x.get(i), &exponent);  // in [1/2, 1); infinities and NaN stay
    if (std::isfinite(fraction))
      x.set(i, std::ldexp(std::nearbyint(std::ldexp(fraction, bits)), exponent - bits));
  }
  return x;
}

// One bit of one element's stored form, counted from the last of the significand.
MutableArray bit_flip(FaultContext& c) {
  MutableArray x(c.value());
  std::int64_t i = c.index("index", x.numel());
  auto width = static_cast<std::int64_t>(size_of(x.dtype()));
  std::int64_t bit = c.index("bit", 8 * width);
  x.bytes()[i * width + bit / 8] ^= std::byte{1} << static_cast<int>(bit % 8);  // little-endian
  return x;
}

// What lay in memory that nobody wrote: of a row, one and the same number.
MutableArray poison(FaultContext& c) {
  MutableArray x(c.value());
  Around p = positions(c);
  std::int64_t pos = c.index("pos", p.extent);
  for (std::int64_t o = 0; o < p.outer; ++o)
    for (std::int64_t i = 0; i < p.inner; ++i) x.set(p(o, pos, i), *c.get("value"));
  return x;
}

MutableArray nan_above(FaultContext& c) {
  MutableArray x(c.value());
  double threshold = *c.get("threshold") * finite_rms(c.value());
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (std::isfinite(x.get(i)) && std::abs(x.get(i)) > threshold)
      x.set(i, std::numeric_limits<double>::quiet_NaN());
  return x;
}

MutableArray flush_small(FaultContext& c) {
  MutableArray x(c.value());
  double threshold = *c.get("threshold") * finite_rms(c.value());
  for (std::int64_t i = 0; i < x.numel(); ++i)
    if (std::abs(x.get(i)) < threshold) x.set(i, 0);
  return x;
}

// As though every key that the query sees had the same score.
MutableArray uniform_row(FaultContext& c) {
  MutableArray x(c.value());
  std::int64_t queries = c.value().size(2), keys = c.value().size(3);
  std::int64_t query = c.index("query", queries), seen = keys - queries + query + 1;
  for (std::int64_t r = query; r < x.numel() / keys; r += queries)
    for (std::int64_t j = 0; j < seen; ++j) x.set(r * keys + j, 1 / static_cast<double>(seen));
  return x;
}

MutableArray swap_prompts(FaultContext& c) {
  MutableArray x(c.value());
  Around batch = around(c.value(), 0);
  for (std::int64_t i = 0; batch.extent > 1 && i < batch.inner; ++i) {
    x.set(batch(0, 0, i), c.value()[batch(0, 1, i)]);
    x.set(batch(0, 1, i), c.value()[batch(0, 0, i)]);
  }
  return x;
}

// Visits every query's row of scores: `change(row, query, last)`, where `last` is the last key that
// it may see.
template <class Change>
MutableArray change_mask(FaultContext& c, const Change& change) {
  MutableArray x(c.value());
  std::int64_t queries = c.value().size(2), keys = c.value().size(3), before = keys - queries;
  for (std::int64_t r = 0; r < x.numel() / keys; ++r)
    change(x, r * keys, before + r % queries, keys);
  return x;
}

// What a key shows that should be masked: its own score is not known here, the query's last one is.
MutableArray mask_off_by_one(FaultContext& c) {
  bool future = *c.get("by") > 0;
  return change_mask(c,
                     [&](MutableArray& x, std::int64_t row, std::int64_t last, std::int64_t keys) {
                       if (future && last + 1 < keys) x.set(row + last + 1, x.get(row + last));
                       if (!future && last > 0) x.set(row + last, -kInfinity);
                     });
}

// Queries from some point on see every key, the future too.
MutableArray mask_ignored(FaultContext& c) {
  std::int64_t queries = c.value().size(2), before = c.value().size(3) - queries;
  std::int64_t first = before + (c.get("query") ? c.index("query", queries) : queries / 2);
  return change_mask(c,
                     [&](MutableArray& x, std::int64_t row, std::int64_t last, std::int64_t keys) {
                       for (std::int64_t j = last + 1; last >= first && j < keys; ++j)
                         x.set(row + j, x.get(row + last));
                     });
}

MutableArray mask_group(FaultContext& c) {
  auto group = static_cast<std::int64_t>(*c.get("group"));
  return change_mask(
      c, [&](MutableArray& x, std::int64_t row, std::int64_t last, std::int64_t keys) {
        for (std::int64_t j = last + 1; j < std::min(keys, (last / group + 1) * group); ++j)
          x.set(row + j, x.get(row + last));
      });
}

// Parameters.
constexpr FaultParameter kGarbage{"garbage", "1: random numbers of the tensor's own size; 0: zeros",
                                  0, true};
constexpr FaultParameter kDelta{"delta", "instead: added to every element of the region", {}};
constexpr FaultParameter kIndex{"index", "flat index of the element; else by the seed", {}, true};
constexpr FaultParameter kOneElement[] = {kIndex, {"delta", "what is added", 1}};
constexpr FaultParameter kSign[] = {kIndex};
constexpr FaultParameter kNan[] = {kIndex};
constexpr FaultParameter kInf[] = {kIndex, {"sign", "1: +inf; -1: -inf", 1}};
constexpr FaultParameter kRow[] = {{"pos", "the position; else by the seed", {}, true},
                                   {"batch", "the prompt; else by the seed", {}, true},
                                   kGarbage,
                                   kDelta};
constexpr FaultParameter kZeroFrom[] = {
    {"pos", "the first position of zeros; else the middle", {}, true}};
constexpr FaultParameter kShiftRows[] = {{"by", "positions; negative: towards the first", 1, true}};
constexpr FaultParameter kHead[] = {
    {"head", "the head; else by the seed", {}, true}, kGarbage, kDelta};
constexpr FaultParameter kSwapHeads[] = {{"a", "one head; else by the seed", {}, true},
                                         {"b", "the other; else by the seed", {}, true}};
constexpr FaultParameter kTile[] = {
    {"row", "first row, all axes but the last being rows; else by the seed", {}, true},
    {"column", "first column, along the last axis; else by the seed", {}, true},
    {"height", "rows", 4, true, 1},
    {"width", "columns", 4, true, 1},
    kGarbage,
    kDelta};
constexpr FaultParameter kStale[] = {
    {"by", "where nothing passed before: rows are shifted by as much", 1, true}};
constexpr FaultParameter kScale[] = {{"factor", "what everything is multiplied by", 1.01}};
constexpr FaultParameter kRoundBits[] = {
    {"bits", "of the significand: 11 as TF32 and float16, 8 as bfloat16", 11, true, 1}};
constexpr FaultParameter kMaskOffByOne[] = {
    {"by",
     "1: every query sees one key of the future; -1: every query but the first loses its last key",
     1, true}};
constexpr FaultParameter kBitFlip[] = {
    kIndex, {"bit", "0: the last of the significand; else by the seed", {}, true}};
constexpr FaultParameter kPoison[] = {
    {"pos", "the position; else by the seed", {}, true},
    {"value", "as huge as may lie there, or 1e-40: a denormal", 3e4}};
constexpr FaultParameter kNanAbove[] = {{"threshold", "in root mean squares of the tensor", 2}};
constexpr FaultParameter kFlushSmall[] = {{"threshold", "in root mean squares of the tensor", 0.1}};
constexpr FaultParameter kQuery[] = {{"query", "the query; else by the seed", {}, true}};
constexpr FaultParameter kMaskIgnored[] = {
    {"query", "the first query without a mask; else the middle", {}, true}};
constexpr FaultParameter kMaskGroup[] = {
    {"group", "queries that share the mask of the last of them", 4, true, 1}};

constexpr FaultInfo kFaults[] = {
    {"one_element", "one element is off", "a bit flip; a race", kOneElement, anywhere, one_element},
    {"sign", "one element has the other sign", "what checks of magnitudes overlook", kSign,
     in_numbers, sign},
    {"nan", "one element is not a number", "pytorch 186278 (fast tanh overflows)", kNan, in_numbers,
     nan},
    {"inf", "one element is infinite", "overflow in a narrow accumulator", kInf, in_numbers, inf},
    {"row", "one position of one prompt is zero or garbage", "pytorch 189495 (bias, large batch)",
     kRow, anywhere, row},
    {"zero_from", "positions from some point on are zero",
     "pytorch 188756, 189960 (beyond 2^31 elements)", kZeroFrom, anywhere, zero_from},
    {"shift_rows", "rows stand at a wrong position", "pytorch 131750 (storage offset dropped)",
     kShiftRows, anywhere, shift_rows},
    {"head", "one head is zero or garbage", "pytorch 174861 (heads read beyond memory)", kHead,
     in_heads, head},
    {"swap_heads", "two heads have changed places", "pytorch 193893 (head reads another's keys)",
     kSwapHeads, in_heads, swap_heads},
    {"tile", "a tile of a product is zero or garbage",
     "pytorch 116769, 195163 (tiles of large products)", kTile, anywhere, tile},
    {"stale", "what an earlier tensor of the same shape left in memory",
     "pytorch 139550, 139006 (buffer not written)", kStale, anywhere, stale},
    {"scale", "everything is multiplied by a constant",
     "pytorch PR 184122 (a scale of another call)", kScale, in_numbers, scale},
    {"round_bits", "everything is rounded to fewer bits", "mlx 4411, jax 7010, TF32", kRoundBits,
     in_numbers, round_bits},
    {"bit_flip", "one bit of one element is the other one", "a bit flip", kBitFlip, anywhere,
     bit_flip},
    {"poison", "one position holds what lay in memory", "pytorch 139006 (output not written)",
     kPoison, in_numbers, poison},
    {"nan_above", "what is large is not a number", "pytorch 186278 (fast tanh overflows)",
     kNanAbove, in_numbers, nan_above},
    {"flush_small", "what is small is zero", "flush to zero beyond denormals", kFlushSmall,
     in_numbers, flush_small},
    {"uniform_row", "one query looks at all its keys alike", "pytorch 111416 (fully masked rows)",
     kQuery, in_patterns, uniform_row},
    {"swap_prompts",
     "the first two prompts have changed places",
     "pytorch 189495 (batch taken modulo its limit)",
     {},
     of_prompts,
     swap_prompts},
    {"mask_ignored", "queries from some point on see the future",
     "pytorch 143486 (triu of large matrices)", kMaskIgnored, in_scores, mask_ignored},
    {"mask_off_by_one", "the causal mask is off by one key",
     "pytorch 183631 (mask read at an offset)", kMaskOffByOne, in_scores, mask_off_by_one},
    {"mask_group", "queries of a group share one causal mask",
     "pytorch 195910 (is_causal in float16)", kMaskGroup, in_scores, mask_group},
};

template <class Row>
std::vector<std::string> names_of(std::span<const Row> rows) {
  std::vector<std::string> names;
  for (const Row& row : rows) names.emplace_back(row.name);
  return names;
}
std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text.empty() ? "none" : text;
}

[[noreturn]] void refuse(const FaultSpec& spec, const std::string& what) {
  throw std::invalid_argument("[faults] " + spec.name + ": " + what);
}

// A site by its name without the layer, internal ones included, or by TransformerLens's short
// forms.
std::optional<Site> site_named(std::string_view name, const Config& config) {
  for (const SiteInfo& row : all_sites())
    if (row.name == name && exists(row.site, config)) return row.site;
  return {};
}

std::vector<std::string> hooks_where(const FaultInfo& fault, const Config& config) {
  std::vector<std::string> names;
  for (const SiteInfo& row : all_sites())
    if (fault.applies(row.site) && exists(row.site, config)) names.emplace_back(row.name);
  return names;
}

}  // namespace

FaultContext::FaultContext(const TensorId& id, const Array& value, const FaultSpec& spec,
                           std::span<const FaultParameter> parameters)
    : id_(id), value_(value), spec_(spec), parameters_(parameters) {
  std::seed_seq seeds{static_cast<std::uint64_t>(spec.seed & 0xffffffffu), spec.seed >> 32,
                      static_cast<std::uint64_t>(id.site), static_cast<std::uint64_t>(id.layer),
                      static_cast<std::uint64_t>(id.stage)};
  random_.seed(seeds);
}

std::optional<double> FaultContext::get(std::string_view name) const {
  auto given = spec_.parameters.find(std::string(name));
  if (given != spec_.parameters.end()) return given->second;
  auto known = std::ranges::find(parameters_, name, &FaultParameter::name);
  return known != parameters_.end() ? known->preset : std::nullopt;
}

std::int64_t FaultContext::index(std::string_view name, std::int64_t extent) {
  std::optional<double> given = get(name);
  if (!given) return draw(extent);
  if (*given < 0 || *given >= static_cast<double>(extent))
    throw std::out_of_range("[faults] " + spec_.name + ": " + std::string(name) + " " +
                            std::to_string(static_cast<std::int64_t>(*given)) +
                            " out of range: " + to_string(id_) + " " + to_string(value_.shape()) +
                            " allows 0.." + std::to_string(extent - 1));
  return static_cast<std::int64_t>(*given);
}

std::int64_t FaultContext::draw(std::int64_t n) {
  return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
}
double FaultContext::noise() { return static_cast<double>(random_() >> 11) * 0x1p-52 - 1; }

std::span<const FaultInfo> fault_catalogue() { return kFaults; }

const FaultInfo& fault_info(std::string_view name) {
  for (const FaultInfo& fault : kFaults)
    if (fault.name == name) return fault;
  throw std::invalid_argument("[faults] no fault " + in_quotes(name) +
                              "; nearest: " + nearest_names(name, names_of(fault_catalogue())) +
                              "; all: " + joined(names_of(fault_catalogue())));
}

void check_parameters(const FaultSpec& spec, std::span<const FaultParameter> parameters) {
  for (const auto& [name, value] : spec.parameters) {
    auto found = std::ranges::find(parameters, name, &FaultParameter::name);
    if (found == parameters.end())
      refuse(spec,
             "no parameter " + in_quotes(name) + "; allowed: " + joined(names_of(parameters)));
    if (!std::isfinite(value)) refuse(spec, name + " is not finite");
    if (found->whole && (value != std::floor(value) || std::abs(value) > 0x1p53))
      refuse(spec, name + " is " + std::to_string(value) + "; needed: a whole number");
    if (found->minimum && value < *found->minimum)
      refuse(spec, name + " is " + std::to_string(value) + "; needed: " +
                       std::to_string(static_cast<std::int64_t>(*found->minimum)) + " or more");
  }
}

FaultPlace place_of(const FaultSpec& spec, const Config& config,
                    std::span<const std::string> allowed) {
  FaultPlace place{.layer = spec.layer};
  if (place.layer && *place.layer < 0) *place.layer += config.n_layers;
  if (place.layer && (*place.layer < 0 || *place.layer >= config.n_layers))
    throw std::out_of_range("[faults] " + spec.name + ": layer " + std::to_string(*spec.layer) +
                            " out of range: the model has " + std::to_string(config.n_layers) +
                            " layers");
  if (!spec.hook) return place;
  std::string full = act_name(*spec.hook);
  std::string_view name = full;
  if (name.starts_with("blocks.")) {
    std::size_t dot = name.find('.', 7);
    std::string digits(name.substr(7, dot == std::string_view::npos ? dot : dot - 7));
    bool number = !digits.empty() && digits.size() < 10 &&
                  std::ranges::all_of(digits, [](char c) { return c >= '0' && c <= '9'; });
    std::int64_t named = number ? std::stoll(digits) : -1;
    if (number && named >= config.n_layers)
      throw std::out_of_range("[faults] " + spec.name + ": " + in_quotes(full) +
                              ": the model has " + std::to_string(config.n_layers) + " layers");
    if (number && place.layer && *place.layer != named)
      refuse(spec, "hook " + in_quotes(full) + " is not of layer " + std::to_string(*place.layer));
    if (number && dot != std::string_view::npos) {
      place.layer = named;
      name.remove_prefix(dot + 1);
    }
  }
  place.site = site_named(name, config);
  if (!place.site || (place.layer && !info(*place.site).per_layer))
    refuse(spec, "no hook point " + in_quotes(*spec.hook) + (place.site ? " in a layer" : "") +
                     "; nearest: " + nearest_names(name, allowed));
  return place;
}

FaultInjector::FaultInjector(std::vector<FaultSpec> specs, const Config& config) {
  for (FaultSpec& spec : specs) {
    const FaultInfo& fault = fault_info(spec.name);
    check_parameters(spec, fault.parameters);
    if (spec.stage < 0) refuse(spec, "stage " + std::to_string(spec.stage) + " is negative");
    auto allowed = hooks_where(fault, config);
    Armed armed{.info = &fault, .spec = {}, .place = place_of(spec, config, allowed)};
    if (armed.place.site && !fault.applies(*armed.place.site))
      refuse(spec, "cannot occur at " + in_quotes(*spec.hook) + "; nearest where it can: " +
                       nearest_names(info(*armed.place.site).name, allowed));
    remembers_ = remembers_ || fault.apply == stale;
    armed.spec = std::move(spec);
    armed_.push_back(std::move(armed));
  }
}

bool FaultInjector::Armed::matches(const TensorId& id) const {
  return id.stage == spec.stage && info->applies(id.site) && place.holds(id);
}

bool FaultInjector::wants(const TensorId& id) const {
  return remembers_ ||
         std::ranges::any_of(armed_, [&](const Armed& armed) { return armed.matches(id); });
}

Array FaultInjector::operator()(const TensorId& id, const Array& value) {
  Array result = value;
  for (const Armed& armed : armed_) {
    if (!armed.matches(id) || result.empty()) continue;
    FaultContext context(id, result, armed.spec, armed.info->parameters);
    context.stale = remembers_ ? stale_for(id, value) : nullptr;
    Array faulted = armed.info->apply(context).freeze();
    std::size_t width = size_of(result.dtype());
    std::int64_t changed = 0;
    for (std::size_t i = 0; i < result.nbytes(); i += width)
      changed += std::memcmp(result.bytes() + i, faulted.bytes() + i, width) != 0;
    if (changed == 0) continue;
    log_.push_back({.fault = armed.spec.name, .id = id, .changed = changed});
    result = std::move(faulted);
  }
  if (remembers_) remember(id, value);
  return result;
}

// The same site of the layer before or of the call before; else whatever lay in memory of that
// size.
const Array* FaultInjector::stale_for(const TensorId& id, const Array& value) const {
  auto here = last_at_site_.find({id.site, id.stage});
  if (here != last_at_site_.end() && here->second.shape() == value.shape() &&
      here->second.dtype() == value.dtype())
    return &here->second;
  auto shaped = last_of_shape_.find({value.dtype(), value.shape()});
  return shaped != last_of_shape_.end() ? &shaped->second : nullptr;
}

void FaultInjector::remember(const TensorId& id, const Array& value) {
  last_at_site_[{id.site, id.stage}] = value;
  last_of_shape_[{value.dtype(), value.shape()}] = value;
}

std::vector<std::string> FaultInjector::fired_names() const {
  std::vector<std::string> names;
  for (const Firing& firing : log_)
    if (std::ranges::find(names, to_string(firing.id)) == names.end())
      names.push_back(to_string(firing.id));
  return names;
}

}  // namespace lenscpp
