// The table of device faults: one row, and one or two functions, a bug that was reported.
#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "verify/device/device_faults.h"

namespace lenscpp {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

using Context = DeviceFaultContext;

std::optional<std::size_t> named(const std::vector<Operand>& operands, std::string_view name) {
  for (std::size_t i = 0; i < operands.size(); ++i)
    if (operands[i].name == name) return i;
  return {};
}

// What a matrix product multiplies: x [batch, m, k] by w [batch, k, n].
struct Product {
  std::size_t x, w;
  std::int64_t batch, m, k, n;
};
std::optional<Product> product(const DeviceCall& call) {
  const auto& in = call.inputs();
  constexpr std::pair<std::string_view, std::string_view> kNames[] = {
      {"mat1", "mat2"}, {"batch1", "batch2"}, {"self", "mat2"}};
  for (auto [x_name, w_name] : kNames) {
    auto x = named(in, x_name), w = named(in, w_name);
    if (!x || !w) continue;
    const Shape &a = in[*x].shape, &b = in[*w].shape;
    if (a.size() < 2 || a.size() != b.size()) continue;
    return Product{
        *x, *w, a.size() == 3 ? a[0] : 1, a[a.size() - 2], a[a.size() - 1], b[b.size() - 1]};
  }
  return {};
}

// The elements of `memory` that a tensor of this shape has if it lies with these strides; zero
// beyond its end.
Array strided(const Array& memory, const Shape& shape, const Shape& strides, std::int64_t offset) {
  MutableArray values(shape, memory.dtype());
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    std::int64_t at = offset, rest = i;
    for (std::size_t d = shape.size(); d-- > 0;) {
      at += rest % shape[d] * strides[d];
      rest /= shape[d];
    }
    if (at < memory.numel()) values.set(i, memory[at]);
  }
  return std::move(values).freeze();
}

Shape contiguous_strides(const Shape& shape) {
  Shape strides(shape.size(), 1);
  for (std::size_t d = shape.size(); d-- > 1;) strides[d - 1] = strides[d] * shape[d];
  return strides;
}

// An operand read as if it lay without gaps in the order of its shape; or, on demand, as if its
// last two axes lay exchanged, whatever the truth: this library hands over contiguous operands
// only.
void misread_strides(Context& c, std::size_t i) {
  const Operand& x = c.call.inputs()[i];
  Shape strides = contiguous_strides(x.shape);
  if (c.get("transposed") != 0 && x.shape.size() >= 2) {
    std::size_t last = x.shape.size() - 1;
    strides[last] = x.shape[last - 1];
    strides[last - 1] = 1;
  }
  c.call.replace(i, strided(c.call.memory(i), x.shape, strides, x.offset));
}
constexpr FaultParameter kTransposed{
    "transposed", "1: read as if its last two axes lay exchanged, however it lies", 0, true};

Array rounded(const Array& x, int bits) {
  MutableArray y(x);
  for (std::int64_t i = 0; i < y.numel(); ++i) {
    int exponent;
    double fraction = std::frexp(x[i], &exponent);
    if (std::isfinite(fraction))
      y.set(i, std::ldexp(std::nearbyint(std::ldexp(fraction, bits)), exponent - bits));
  }
  return std::move(y).freeze();
}

void garble(Context& c, MutableArray& x, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; ++i) x.set(i, c.noise());
}

constexpr std::string_view kProducts[] = {"addmm", "mm", "baddbmm", "bmm"};

// S1
bool weight_has_strides(Context& c) {
  auto p = product(c.call);
  return p && (!c.call.inputs()[p->w].contiguous() || c.get("transposed") != 0);
}
void ignore_weight_strides(Context& c) { misread_strides(c, product(c.call)->w); }
constexpr std::string_view kS1Operators[] = {"addmm", "mm"};
constexpr FaultParameter kS1[] = {kTransposed};

// Z7
bool reads_beyond(Context& c) {
  auto index = named(c.call.inputs(), "index");
  if (!index) return false;
  Array ids = c.call.input(*index);
  for (std::int64_t i = 0; i < ids.numel(); ++i)
    if (ids[i] >= c.get("id")) return true;
  return false;
}
void zero_rows_beyond(Context& c) {
  Array ids = c.call.input(*named(c.call.inputs(), "index"));
  MutableArray out(c.call.output(0));
  std::int64_t width = out.numel() / std::max<std::int64_t>(1, ids.numel());
  for (std::int64_t i = 0; i < ids.numel(); ++i)
    for (std::int64_t j = 0; ids[i] >= c.get("id") && j < width; ++j) out.set(i * width + j, 0);
  c.call.set_output(0, std::move(out).freeze());
}
constexpr std::string_view kZ7Operators[] = {"index_select"};
constexpr FaultParameter kZ7[] = {
    {"id", "from this row of the table on; in the wild 2^31 / d_model", 8, true}};

// U3
bool reads_column_slice(Context& c) {
  return std::ranges::any_of(c.call.inputs(), [](const Operand& x) {
    return x.shape.size() == 2 && x.strides[1] == 1 && x.strides[0] > x.shape[1] && x.shape[0] > 1;
  });
}
void clobber_neighbour(Context& c) {
  std::int64_t n = c.call.neighbours();
  if (n == 0) return;
  auto given = c.spec->parameters.find("neighbour");
  std::int64_t wanted = given != c.spec->parameters.end() ? n - c.whole("neighbour") : c.draw(n);
  if (wanted >= 0 && wanted < n)
    c.clobbered += c.call.clobber(wanted, c.whole("elements"), 1e3 * c.noise());
}
constexpr std::string_view kU3Operators[] = {"abs", "eq",   "ne",    "mul",
                                             "add", "gelu", "addmm", "copy_on_device"};
constexpr FaultParameter kU3[] = {
    {"neighbour", "which tensor, 1 being the youngest; else by the seed", {}, true},
    {"elements", "how many elements of it, from its first on", 8, true}};

// M1
bool has_narrow_mask(Context& c) {
  auto mask = named(c.call.inputs(), "self");
  DType dtype = mask ? c.call.inputs()[*mask].dtype : DType::f32;
  return dtype == DType::f16 || dtype == DType::bf16;
}
void group_mask(Context& c) {
  auto mask = named(c.call.inputs(), "self");
  if (!mask) return;
  MutableArray x(c.call.input(*mask));
  if (x.shape().size() < 2) return;
  std::int64_t keys = x.shape().back(), queries = x.shape()[x.shape().size() - 2];
  std::int64_t group = c.whole("group"), before = keys - queries;
  for (std::int64_t r = 0; r < x.numel() / keys; ++r) {
    std::int64_t last = before + r % queries;
    for (std::int64_t j = last + 1; j < std::min(keys, (last / group + 1) * group); ++j)
      if (std::isinf(x.get(r * keys + j))) x.set(r * keys + j, 0);
  }
  c.call.replace(*mask, std::move(x).freeze());
}
constexpr std::string_view kScores[] = {"baddbmm"};
constexpr FaultParameter kM1[] = {{"group", "queries that share one mask", 4, true}};

// P5, P6
bool is_matrix(Context& c) {
  auto p = product(c.call);
  return p && p->m >= 2 && p->n >= 2;
}
void round_operands(Context& c) {
  auto p = product(c.call);
  for (std::size_t i : {p->x, p->w})
    c.call.replace(i, rounded(c.call.input(i), static_cast<int>(c.whole("bits"))));
}
constexpr FaultParameter kP5[] = {{"bits", "of the significand, the first one counted", 11, true}};

// C1
bool does_not_wait(Context& c) { return c.call.scalar("non_blocking").value_or(0) != 0; }
void copy_recycled(Context& c) {
  Array x = c.call.input(0);
  MutableArray y(x.shape(), x.dtype());
  y.store(0, c.stale(x.dtype(), x.numel()));
  c.call.replace(0, std::move(y).freeze());
}
constexpr std::string_view kToDevice[] = {"copy_to_device"};

constexpr DeviceFaultInfo kTable[] = {
    {"S1", "ignores_weight_strides", "a weight that lies transposed is read as if it did not",
     "pytorch 161640, PR 161641, 162779; TransformerLens 1062, 1068, 1178; 2.8.0",
     "a weight that is not contiguous", "weight read with the strides of a contiguous one",
     kS1Operators, kS1, weight_has_strides, ignore_weight_strides, nullptr},
    {"Z7", "zero_embedding_rows", "rows of a large table come back as zeros",
     "pytorch 188756; 2.12 to 2.13", "an index beyond the threshold", "those rows are zero",
     kZ7Operators, kZ7, reads_beyond, nullptr, zero_rows_beyond},
    {"U3", "clobbers_neighbour", "an operator writes into the memory of another tensor",
     "pytorch 183419 (isfinite of a column slice); 2.11", "an operand that is a slice of columns",
     "the first elements of another live tensor are overwritten", kU3Operators, kU3,
     reads_column_slice, nullptr, clobber_neighbour},
    {"M1", "grouped_causal_mask", "queries of a group share the mask of the last of them",
     "pytorch 195910 (is_causal)", "a mask in float16 or bfloat16",
     "key j is seen up to 4 floor(i / 4) + 3", kScores, kM1, has_narrow_mask, group_mask, nullptr},
    {"P5", "short_operands", "operands of a product are rounded to 11 bits, as TF32 does",
     "mlx 4411, 3534, 3953 (M5)", "two rows and two columns or more: matrix times vector is exact",
     "both operands are rounded", kProducts, kP5, is_matrix, round_operands, nullptr},
    {"C1",
     "copies_recycled_memory",
     "the source of a copy to the device was freed before",
     "pytorch 139550, 189690; HF 43042; InvokeAI 6624",
     "a copy that does not wait",
     "what an earlier tensor left in memory arrives",
     kToDevice,
     {},
     does_not_wait,
     copy_recycled,
     nullptr},
};

}  // namespace

std::span<const DeviceFaultInfo> device_fault_catalogue() { return kTable; }

}  // namespace lenscpp
